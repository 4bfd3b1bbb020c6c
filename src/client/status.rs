//! What is to be shown of a connection.

use super::Transport;

/// How a client's connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// for the first time
    #[default]
    Connecting,
    /// it is there
    Connected,
    /// it is lost, and tried again
    Reconnecting,
    /// for good: the reason says why
    Closed,
}

/// What is to be shown of a client's connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// how it is
    pub state: State,
    /// what carries the frames; `None` unless connected
    pub transport: Option<Transport>,
    /// why it is not connected
    pub reason: Option<String>,
    /// how often it was lost or left
    pub reconnects: u32,
    /// frames that a datagram brought before their stream, on any connection; a watcher is not woken when it rises
    pub copies: u64,
}
