//! The contract with clients: [`ClientFrame`], [`ServerFrame`], error codes, close codes and the codec.
//!
//! A frame is one JSON object. [`decode`] is the only place where a client's bytes become types, and every
//! limit of the contract is checked there, so nothing above validates again. It knows no transport.

mod catalogue;
mod client;
pub(crate) mod fault;
mod repeat;
mod server;

pub use catalogue::{RequestType, requests};
pub use client::{
    CONTENT_CHARS_MAX, ClientFrame, REPLAY_ENTRIES_MAX, Rejection, Request, decode, decode_text, encode_request,
};
pub use repeat::{COPY_BYTES_MAX, Repeat, Tail};
pub use server::{
    Accepted, AiResponse, ConnectionStatus, EntryFrame, ErrorBody, Limits, Model, Presented, Reply, ReplyMetadata,
    ServerFrame, TypingMetadata, TypingState, Word,
};

use std::{
    cell::RefCell,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

/// The WebSocket subprotocol of this contract.
pub const SUBPROTOCOL: &str = "chatbox.v1";

/// What a thread keeps to write frames into.
const SCRATCH_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    /// Where frames are written before they are copied to memory of their own size.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A server frame as it goes over the wire: JSON in UTF-8, ended by a line feed. Cheap to share.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    line: Bytes,
    repeat: Option<Arc<Repeat>>,
}

impl Encoded {
    /// Writes a frame once, for any number of receivers.
    #[must_use]
    pub fn new(frame: &ServerFrame) -> Self {
        Self { line: Self::line_of(frame), repeat: None }
    }

    /// The same for a client that may be told the frame once more, where the frame allows it.
    #[must_use]
    pub fn repeatable(frame: ServerFrame) -> Self {
        let line = Self::line_of(&frame);
        let repeat = Repeat::of(frame, line.len()).map(Arc::new);
        Self { line, repeat }
    }

    /// The frame that is kept there, or, the first time, the one that is made and kept, which `made` is told;
    /// `repeatable` as above.
    #[must_use]
    pub fn once(
        kept: &OnceLock<Bytes>,
        repeatable: bool,
        frame: impl Fn() -> ServerFrame,
        made: impl FnOnce(),
    ) -> Self {
        let line = kept.get_or_init(|| {
            made();
            Self::line_of(&frame())
        });
        let line = line.clone();
        let repeat = if repeatable { Repeat::of(frame(), line.len()).map(Arc::new) } else { None };
        Self { line, repeat }
    }

    #[expect(clippy::expect_used, reason = "a frame has string keys and is written to memory")]
    fn line_of(frame: &ServerFrame) -> Bytes {
        SCRATCH.with_borrow_mut(|line| {
            frame.write(line).expect("a frame has string keys and writes to memory");
            line.push(b'\n');
            let exact = Bytes::copy_from_slice(line);
            line.clear();
            line.shrink_to(SCRATCH_BYTES_MAX);
            exact
        })
    }

    /// What a copy of the frame is made of; `None` when it is told once.
    #[must_use]
    pub fn repeat(&self) -> Option<&Repeat> {
        self.repeat.as_deref()
    }

    /// The frame and its line feed, as a QUIC stream carries it.
    #[must_use]
    pub fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// The frame alone, as a WebSocket message carries it.
    #[must_use]
    pub fn message(&self) -> Bytes {
        self.line.slice(..self.line.len().saturating_sub(1))
    }
}

/// What carries a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// an HTTP/3 WebTransport session: a QUIC stream for each exchange
    WebTransport,
    /// a WebSocket: all exchanges on one socket
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

/// Why a connection ends: the WebTransport session code. WebSocket adds 4000 or uses the standard code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CloseCode {
    /// nothing is wrong; stay closed
    Done,
    /// no valid token came in time; ask the host for one
    Unauthorized,
    /// the token ran out; renew it and resume
    TokenExpired,
    /// the server drains; reconnect after the announced delay
    GoingAway,
    /// the client reads too slowly; resume
    SlowConsumer,
    /// the client broke the protocol; do not retry
    ProtocolError,
    /// too many connections; retry later
    TooManyConnections,
    /// a frame was larger than `limits.frame_bytes`; do not retry
    FrameTooLarge,
    /// the server failed; resume
    InternalError,
}

impl CloseCode {
    /// The code in CLOSE_WEBTRANSPORT_SESSION.
    #[must_use]
    pub const fn webtransport(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Unauthorized => 1,
            Self::TokenExpired => 2,
            Self::GoingAway => 3,
            Self::SlowConsumer => 4,
            Self::ProtocolError => 5,
            Self::TooManyConnections => 6,
            Self::FrameTooLarge => 7,
            Self::InternalError => 8,
        }
    }

    /// The code in a WebSocket close frame (RFC 6455, section 7.4).
    #[must_use]
    pub const fn websocket(self) -> u16 {
        match self {
            Self::Done => 1000,
            Self::Unauthorized => 4001,
            Self::TokenExpired => 4002,
            Self::GoingAway => 1001,
            Self::SlowConsumer => 4004,
            Self::ProtocolError => 1002,
            Self::TooManyConnections => 4006,
            Self::FrameTooLarge => 1009,
            Self::InternalError => 4008,
        }
    }

    /// The meaning of a WebTransport session code; `None` for one that the contract does not know.
    #[must_use]
    pub const fn from_webtransport(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Done,
            1 => Self::Unauthorized,
            2 => Self::TokenExpired,
            3 => Self::GoingAway,
            4 => Self::SlowConsumer,
            5 => Self::ProtocolError,
            6 => Self::TooManyConnections,
            7 => Self::FrameTooLarge,
            8 => Self::InternalError,
            _ => return None,
        })
    }

    /// The meaning of a WebSocket close code: a standard one, or 4000 and the session code.
    #[must_use]
    pub fn from_websocket(code: u16) -> Option<Self> {
        match code {
            1000 => Some(Self::Done),
            1001 => Some(Self::GoingAway),
            // 1007 is text that is not UTF-8 (RFC 6455, section 7.4.1).
            1002 | 1007 => Some(Self::ProtocolError),
            1009 => Some(Self::FrameTooLarge),
            code => Self::from_webtransport(u32::from(code.checked_sub(4000)?)),
        }
    }

    /// A short text for people who look at the wire.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token expired",
            Self::GoingAway => "going away",
            Self::SlowConsumer => "slow consumer",
            Self::ProtocolError => "protocol error",
            Self::TooManyConnections => "too many connections",
            Self::FrameTooLarge => "frame too large",
            Self::InternalError => "internal error",
        }
    }
}
