//! One binary for all integration tests. A line for each module says what belongs there.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the harness fails loudly")]

/// The repository's own rules, checked on its text.
mod tidy;
/// TCP listeners and the WebSocket upgrade: refusals, deadlines, limits, drain.
mod websocket;
