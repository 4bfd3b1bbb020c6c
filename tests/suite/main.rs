//! Everything that is tested over real sockets and files, as one binary.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests and what they share fail loudly")]

mod auth; // which tokens are accepted, and which are not
mod cli; // the binary: commands, output, exit codes
mod config; // file, environment and flags together; what refuses the start
