//! Everything that is tested over real sockets and files, as one binary.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "the harness fails loudly")]

mod harness; // servers, clients and providers that tests start
mod llm; // providers against a scripted server that speaks the vendor's format
mod store; // every store's contract, and the file's own promises
