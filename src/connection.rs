//! One connection, whatever carries it: frames in, answers out, identity and its end.
//!
//! A transport reads frames, calls [`Connection::handle`], and writes what the [`Answers`] yield. Nothing in
//! here knows which transport it is; nothing in a transport knows what a frame means.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures_util::stream::BoxStream;

use crate::protocol::{CloseCode, Encoded, Rejection, Request, decode};

/// The answers of one exchange, or the events of one watch. Pulled: nothing is produced that is not asked for.
/// Dropping it only stops watching. Never panics.
pub type Answers = BoxStream<'static, Encoded>;

/// How long a connection may take to attach.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(5);

/// How long the frame of a stream may take to arrive.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may leave one frame unread before it counts as gone.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// What carries a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// an HTTP/3 WebTransport session
    WebTransport,
    /// a WebSocket
    WebSocket,
}

impl Transport {
    /// The name in frames, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebTransport => "webtransport",
            Self::WebSocket => "websocket",
        }
    }
}

/// What a transport is to do with a frame that it handed in.
pub enum Outcome {
    /// Write these, then finish the exchange.
    Answers(Answers),
    /// The frame was an `attach` that succeeded: allow `streams` client streams at a time (the watch itself
    /// among them), then write these for as long as they come, then finish.
    Watch {
        /// the new cap; never lower than an earlier one of the connection
        streams: u32,
        /// the status, the replay and the live events
        answers: Answers,
    },
    /// Write the frame, if any, then close the connection.
    Close(Option<Encoded>, CloseCode),
}

/// Makes connections; shared by all listeners.
#[derive(Debug)]
pub struct Gate {}

/// One WebTransport session or WebSocket. Cheap to clone; the last clone's drop ends its watches' suppression.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {}

impl Gate {
    /// Opens a connection, not yet authenticated. `token` is what the transport carried, if it did.
    ///
    /// # Errors
    /// The close code when the server drains or has too many connections, in total or from this address.
    pub fn open(&self, transport: Transport, address: IpAddr, token: Option<String>) -> Result<Connection, CloseCode> {
        drop((transport, address, token));
        Ok(Connection(Arc::new(Shared {})))
    }

    /// Largest frame that a transport reads, in bytes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        1024 * 1024
    }
}

impl Connection {
    /// Handles a frame that opens an exchange: the first of a stream, or any on a WebSocket.
    pub async fn handle(&self, frame: &[u8]) -> Outcome {
        self.handle_request(decode(frame)).await
    }

    /// Handles a frame that its transport has decoded, because it had to know what may not wait: of a WebSocket
    /// every one, also those that an attach stream hands to [`Self::handle_inline`].
    pub async fn handle_request(&self, request: Result<Request, Rejection>) -> Outcome {
        drop((&self.0, request));
        std::future::ready(Outcome::Close(None, CloseCode::Done)).await
    }

    /// Handles a later frame of an attach stream: `auth`, `ping`, `stop`, `typing_indicator`.
    pub async fn handle_inline(&self, frame: &[u8]) -> Outcome {
        let _ = (&self.0, frame);
        std::future::ready(Outcome::Close(None, CloseCode::Done)).await
    }

    /// The `error` frame for a frame that the transport could not read, and what becomes of its stream.
    #[must_use]
    pub fn too_large(&self) -> Encoded {
        unreachable!("filled in by connection.rs")
    }

    /// Resolves when the connection has to end: its token expired, or the server's drain is over. Cancel safe.
    pub async fn over(&self) -> CloseCode {
        std::future::pending().await
    }

    /// Counts the end of the connection.
    pub fn closed(&self, code: CloseCode) {
        let _ = (&self.0, code);
    }
}
