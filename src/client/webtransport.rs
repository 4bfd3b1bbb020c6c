//! A WebTransport session as a link. The stack is not the server's: web-transport-quinn speaks for itself.

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};
use tokio::time::timeout;
use web_transport_quinn::{ReadError, RecvStream, SendStream, SessionError, WebTransportError, WriteError};

use super::{Closed, Error, Stats, lines::Lines, link::OPEN_DEADLINE};
use crate::protocol::CloseCode;

/// One session, which has its QUIC connection for itself.
#[derive(Debug)]
pub(super) struct Session {
    session: web_transport_quinn::Session,
    /// the code that this side closed it with
    closing: OnceLock<CloseCode>,
}

/// The way up of an attach stream.
#[derive(Debug)]
pub(super) struct Requests(SendStream);

/// One bidirectional stream.
pub(super) struct Stream {
    /// open on an attach stream only
    send: Option<Requests>,
    recv: RecvStream,
    lines: Lines,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("recv", &self.recv).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) const fn new(session: web_transport_quinn::Session) -> Self {
        Self { session, closing: OnceLock::new() }
    }

    pub(super) async fn exchange(&self, frame: &[u8], stays_open: bool) -> Result<Stream, Error> {
        let opened = async {
            let (mut send, recv) = self.session.open_bi().await.map_err(|err| Error::Closed(closed(&err)))?;
            send.write_all(&line(frame)).await.map_err(|err| write_failed(&err))?;
            Ok((send, recv))
        };
        let (mut send, recv) =
            timeout(OPEN_DEADLINE, opened).await.map_err(|_elapsed| Error::Timeout("a stream"))??;
        let send = if stays_open {
            Some(Requests(send))
        } else {
            // It fails only where the peer wants no more of it; the answers say what became of the request.
            drop(send.finish());
            None
        };
        Ok(Stream { send, recv, lines: Lines::default() })
    }

    pub(super) async fn datagram(&self) -> Bytes {
        loop {
            match self.session.read_datagram().await {
                Ok(payload) => return payload,
                // One of another session of this connection; there is none, so it is of nobody.
                Err(SessionError::WebTransportError(WebTransportError::UnknownSession)) => {}
                Err(_over) => std::future::pending().await,
            }
        }
    }

    pub(super) async fn closed(&self) -> Closed {
        let end = self.session.closed().await;
        self.closing.get().map_or_else(|| closed(&end), |code| Closed::by(*code))
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.session.close(code.webtransport(), code.reason().as_bytes());
        // The first code is the one that is sent.
        self.closing.get_or_init(|| code);
    }

    pub(super) fn stats(&self) -> Stats {
        let stats = quinn::Connection::stats(&self.session);
        Stats {
            rtt: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            received_bytes: stats.udp_rx.bytes,
            received_datagrams: stats.frame_rx.datagram,
        }
    }
}

impl Stream {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(Some(line));
            }
            let chunk = self.recv.read_chunk(usize::MAX, true).await.map_err(|err| read_failed(&err))?;
            match chunk {
                Some(chunk) if self.lines.arrive(chunk.bytes.clone()) => {}
                Some(_) => return Err(Error::Protocol("a frame has no end")),
                None if self.lines.unfinished() => return Err(Error::Protocol("a stream ended within a frame")),
                None => return Ok(None),
            }
        }
    }

    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), Error> {
        self.send.as_mut().ok_or(Error::Protocol("a request has one frame"))?.send(frame).await
    }

    pub(super) const fn requests(&mut self) -> Option<Requests> {
        self.send.take()
    }
}

impl Requests {
    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), Error> {
        let line = line(frame);
        let sent = timeout(OPEN_DEADLINE, self.0.write_all(&line)).await;
        sent.map_err(|_elapsed| Error::Timeout("a frame"))?.map_err(|err| write_failed(&err))
    }
}

/// The frame and its line feed in one write, so that they share a packet.
fn line(frame: &[u8]) -> BytesMut {
    let mut line = BytesMut::with_capacity(frame.len() + 1);
    line.extend_from_slice(frame);
    line.extend_from_slice(b"\n");
    line
}

fn closed(err: &SessionError) -> Closed {
    match err {
        SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
            Closed { code: CloseCode::from_webtransport(*code), reason: reason.clone() }
        }
        other => Closed::lost(other.to_string()),
    }
}

fn read_failed(err: &ReadError) -> Error {
    match err {
        ReadError::SessionError(err) => Error::Closed(closed(err)),
        _ => Error::Protocol("a stream was reset"),
    }
}

fn write_failed(err: &WriteError) -> Error {
    match err {
        WriteError::SessionError(err) => Error::Closed(closed(err)),
        _ => Error::Protocol("a stream was stopped"),
    }
}
