//! Everything that is tested over real sockets and files, as one binary. A line for each module says what belongs
//! there.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "the harness fails loudly"
)]

mod chat; // one message, end to end, over both transports
mod harness; // servers, clients and providers that tests start
mod llm; // providers against a scripted server that speaks the vendor's format
mod websocket; // TCP listeners and the WebSocket upgrade: refusals, deadlines, limits, drain
