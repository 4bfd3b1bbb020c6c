//! A connection to a server, whichever transport carries it, and its exchanges.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::{Closed, Error, websocket, webtransport};
use crate::protocol::{CloseCode, Transport};

/// How long a request may wait for a stream, and for room to be written.
pub(super) const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// What is known of the path of a WebTransport session, since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// the smoothed round-trip time
    pub rtt: Duration,
    /// packets that this side sent
    pub sent_packets: u64,
    /// packets of this side that were lost
    pub lost_packets: u64,
    /// bytes that arrived, in UDP payloads
    pub received_bytes: u64,
    /// datagrams that arrived, in QUIC frames
    pub received_datagrams: u64,
}

/// One connection, not attached by itself: its first exchange must be an `attach`.
///
/// Dropping it closes the connection with code 0, whatever exchanges are left.
#[derive(Debug)]
pub struct Link(Inner);

#[derive(Debug)]
enum Inner {
    WebTransport(Box<webtransport::Session>),
    WebSocket(websocket::Socket),
}

/// A request and its answers, or a watch and its events.
///
/// Dropping it gives up reading: the server goes on, and what it says is not seen here. A watch ends with it.
#[derive(Debug)]
pub struct Exchange(Stream);

/// The way up of a watch, apart from the way down. Over WebTransport the watch ends when this is dropped.
#[derive(Debug)]
pub struct Requests(Way);

#[derive(Debug)]
enum Way {
    WebTransport(webtransport::Requests),
    WebSocket(websocket::Requests),
}

#[derive(Debug)]
enum Stream {
    WebTransport(Box<webtransport::Stream>),
    WebSocket(websocket::Answers),
}

/// What a link must know of a request of its own.
#[derive(Deserialize)]
pub(super) struct Asked<'a> {
    #[serde(borrow)]
    pub(super) r#type: std::borrow::Cow<'a, str>,
    pub(super) id: Option<uuid::Uuid>,
    pub(super) session_id: Option<uuid::Uuid>,
    #[serde(borrow)]
    pub(super) scope: Option<std::borrow::Cow<'a, str>>,
}

impl<'a> Asked<'a> {
    fn read(frame: &'a [u8]) -> Result<Self, Error> {
        serde_json::from_slice(frame).map_err(|_not_one| Error::Protocol("what was to be sent is no frame"))
    }
}

impl Link {
    pub(super) fn over_streams(session: webtransport::Session) -> Self {
        Self(Inner::WebTransport(Box::new(session)))
    }

    pub(super) const fn over_socket(socket: websocket::Socket) -> Self {
        Self(Inner::WebSocket(socket))
    }

    /// What carries it.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match self.0 {
            Inner::WebTransport(_) => Transport::WebTransport,
            Inner::WebSocket(_) => Transport::WebSocket,
        }
    }

    /// Sends a request: one JSON object without a line feed.
    ///
    /// Over WebTransport it gets a stream of its own, which waits for the server's credit; this side of it is finished
    /// with the frame, unless it is an `attach`. Over a WebSocket its answers are found by `re`, so the frame needs an
    /// `id`, and an exchange whose answers are not read holds up the others after 64 frames.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`] when there is no room for 30 seconds, [`Error::Protocol`] for what is no
    /// frame.
    pub async fn exchange(&self, frame: Bytes) -> Result<Exchange, Error> {
        let asked = Asked::read(&frame)?;
        match &self.0 {
            Inner::WebTransport(session) => {
                let stream = session.exchange(&frame, asked.r#type == "attach").await?;
                Ok(Exchange(Stream::WebTransport(Box::new(stream))))
            }
            Inner::WebSocket(socket) => socket.exchange(&frame, &asked).await.map(Stream::WebSocket).map(Exchange),
        }
    }

    /// The next datagram's payload: a copy of a small frame, without a line feed. Never comes over a WebSocket, nor once
    /// the link is closed. Cancel safe.
    pub async fn datagram(&self) -> Bytes {
        match &self.0 {
            Inner::WebTransport(session) => session.datagram().await,
            Inner::WebSocket(_) => std::future::pending().await,
        }
    }

    /// Resolves when the connection is over. Cancel safe; may be asked again.
    pub async fn closed(&self) -> Closed {
        match &self.0 {
            Inner::WebTransport(session) => session.closed().await,
            Inner::WebSocket(socket) => socket.closed().await,
        }
    }

    /// Closes with a code, and returns at once; [`Self::closed`] tells when it is done. A peer that does not answer is
    /// waited for 2 seconds at most.
    pub fn close(&self, code: CloseCode) {
        match &self.0 {
            Inner::WebTransport(session) => session.close(code),
            Inner::WebSocket(socket) => socket.close(code),
        }
    }

    /// What is known of the path; `None` over a WebSocket.
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        match &self.0 {
            Inner::WebTransport(session) => Some(session.stats()),
            Inner::WebSocket(_) => None,
        }
    }

    /// The smoothed round-trip time; `None` over a WebSocket.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.stats().map(|stats| stats.rtt)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close(CloseCode::Done);
    }
}

impl Exchange {
    /// The next frame without a line feed; `None` once the last one has come. Has no deadline: what an idle watch brings
    /// may take for ever, and a dead connection is an error within 60 seconds. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Protocol`] when the stream ends within a frame or a frame has no end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.0 {
            Stream::WebTransport(stream) => stream.next().await,
            Stream::WebSocket(answers) => answers.next().await,
        }
    }

    /// Sends a further frame on an `attach`: `auth`, `ping`, `stop`, `typing_indicator`. What answers it comes by
    /// [`Self::next`].
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`] after 30 seconds without room; [`Error::Protocol`] when this is no `attach`.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Error> {
        let asked = Asked::read(&frame)?;
        match &mut self.0 {
            Stream::WebTransport(stream) => stream.send(&frame).await,
            Stream::WebSocket(answers) => answers.send(&frame, &asked).await,
        }
    }

    /// Takes the way up of an `attach`, so that one can be written while the other is read; `None` when this is none, or
    /// it was taken already.
    pub fn requests(&mut self) -> Option<Requests> {
        let way = match &mut self.0 {
            Stream::WebTransport(stream) => stream.requests().map(Way::WebTransport),
            Stream::WebSocket(answers) => answers.requests().map(Way::WebSocket),
        };
        way.map(Requests)
    }
}

impl Requests {
    /// Sends a further frame, as [`Exchange::send`] does.
    ///
    /// # Errors
    /// Those of [`Exchange::send`].
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Error> {
        let asked = Asked::read(&frame)?;
        match &mut self.0 {
            Way::WebTransport(requests) => requests.send(&frame).await,
            Way::WebSocket(requests) => requests.send(&frame, &asked).await,
        }
    }
}
