//! Everything that is tested over real sockets and files, as one binary.
#![expect(clippy::expect_used, clippy::panic, reason = "the harness fails loudly")]

mod harness; // servers, clients and providers that tests start
mod llm; // providers against a scripted server that speaks the vendor's format
mod quic; // the QUIC listener alone: WebTransport sessions, HTTP/3 requests, admission, drain
