//! Our `h3::quic` backend over quinn: WebTransport streams go to the session, everything else to h3.
//!
//! h3 0.0.8 reads WebTransport streams itself, one after the other: one half-written header stops all that come
//! later (hyperium/h3 issue 348). Here the headers of all streams are read side by side, each with a deadline.
//! It knows stream types and SETTINGS, not requests and not sessions.
//!
//! Everything runs inside the task that polls h3; there are no channels and no tasks of its own. What can wait
//! here is limited by the stream credit of the connection.

mod halves;

pub(crate) use halves::{Bidi, Outgoing, Receive, Send, varint};

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, StreamErrorIncoming},
};
use quinn::ConnectionError;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::ReusableBoxFuture;

use self::halves::{connection_error, internal};
use super::wire::{self, FrameGuard, Header, Kind};
use crate::metrics::Metrics;

/// How long a stream may take to say what it is.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// A bidirectional WebTransport stream, its header read.
pub(crate) struct Peeled {
    pub(crate) session: u64,
    pub(crate) send: quinn::SendStream,
    pub(crate) receive: quinn::RecvStream,
}

impl Peeled {
    /// Refuses a stream of a session that does not exist.
    pub(crate) fn reject(mut self) {
        let code = varint(wire::BUFFERED_STREAM_REJECTED);
        // Errors only say that the peer has closed that half itself.
        drop(self.send.reset(code));
        drop(self.receive.stop(code));
    }
}

/// One QUIC connection, as h3 sees it.
pub(crate) struct Demux {
    quic_conn: quinn::Connection,
    opener: h3_quinn::OpenStreams,
    control_opened: bool,
    incoming_bi: ReusableBoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>>,
    incoming_uni: ReusableBoxFuture<'static, Result<quinn::RecvStream, ConnectionError>>,
    waiting: Vec<Waiting>,
    deadline: Option<Pin<Box<Sleep>>>,
    requests: VecDeque<Bidi>,
    unidirectional: VecDeque<Receive>,
    /// WebTransport streams that nobody has taken yet.
    pub(crate) peeled: VecDeque<Peeled>,
    metrics: Arc<Metrics>,
}

/// A stream whose header is not whole.
struct Waiting {
    header: Header,
    since: Instant,
    /// Absent on a unidirectional stream.
    send: Option<quinn::SendStream>,
    receive: quinn::RecvStream,
}

impl Demux {
    pub(crate) fn new(quic_conn: quinn::Connection, metrics: Arc<Metrics>) -> Self {
        let binding = h3_quinn::Connection::new(quic_conn.clone());
        Self {
            opener: quic::Connection::<Bytes>::opener(&binding),
            control_opened: false,
            incoming_bi: ReusableBoxFuture::new(accept_bi(quic_conn.clone())),
            incoming_uni: ReusableBoxFuture::new(accept_uni(quic_conn.clone())),
            quic_conn,
            waiting: Vec::new(),
            deadline: None,
            requests: VecDeque::new(),
            unidirectional: VecDeque::new(),
            peeled: VecDeque::new(),
            metrics,
        }
    }

    /// Takes in what has arrived. Only an error of the connection ends it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionErrorIncoming> {
        self.recognise_waiting(cx);
        while self.accept_bidirectional(cx)? {}
        while let Poll::Ready(accepted) = self.incoming_uni.poll(cx) {
            let receive = accepted.map_err(connection_error)?;
            self.incoming_uni.set(accept_uni(self.quic_conn.clone()));
            self.recognise(Waiting::new(wire::UNIDIRECTIONAL, None, receive), cx);
        }
        self.expire(cx);
        Ok(())
    }

    /// The next WebTransport stream, without a look at what only h3 waits for.
    pub(crate) fn poll_peeled(&mut self, cx: &mut Context<'_>) -> Poll<Result<Peeled, ConnectionErrorIncoming>> {
        self.recognise_waiting(cx);
        while self.peeled.is_empty() && self.accept_bidirectional(cx)? {}
        if let Some(peeled) = next(&mut self.peeled) {
            return Poll::Ready(Ok(peeled));
        }
        self.expire(cx);
        Poll::Pending
    }

    /// Whether a stream was recognised that h3 has not taken.
    pub(crate) fn holds_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether a stream had arrived.
    fn accept_bidirectional(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionErrorIncoming> {
        let Poll::Ready(accepted) = self.incoming_bi.poll(cx) else { return Ok(false) };
        let (send, receive) = accepted.map_err(connection_error)?;
        self.incoming_bi.set(accept_bi(self.quic_conn.clone()));
        self.recognise(Waiting::new(wire::BIDIRECTIONAL, Some(send), receive), cx);
        Ok(true)
    }

    fn recognise_waiting(&mut self, cx: &mut Context<'_>) {
        for stream in std::mem::take(&mut self.waiting) {
            self.recognise(stream, cx);
        }
    }

    fn recognise(&mut self, mut stream: Waiting, cx: &mut Context<'_>) {
        let kind = match stream.poll_header(cx) {
            Poll::Pending => return self.waiting.push(stream),
            Poll::Ready(Some(kind)) => kind,
            Poll::Ready(None) => return self.refuse(stream, "header_incomplete"),
        };
        let Waiting { send, mut receive, .. } = stream;
        match (kind, send) {
            (Kind::WebTransport { session }, Some(send)) => self.peeled.push_back(Peeled { session, send, receive }),
            (Kind::WebTransport { .. }, None) => {
                self.metrics.refusals_total.with_label_values(&["unidirectional_stream"]).inc();
                drop(receive.stop(varint(wire::to_http3(0))));
            }
            (Kind::Http3 { read, .. }, Some(send)) => {
                let guard = FrameGuard::after(&read);
                let receive = Receive::new(receive, read, Some(guard));
                self.requests.push_back(Bidi::new(send, receive));
            }
            (Kind::Http3 { first, read }, None) => {
                // Only on the control stream does the type stand before frames.
                let guard = (first == wire::CONTROL_STREAM).then(FrameGuard::default);
                self.unidirectional.push_back(Receive::new(receive, read, guard));
            }
        }
    }

    fn refuse(&self, mut stream: Waiting, reason: &str) {
        self.metrics.streams_broken_total.with_label_values(&[reason]).inc();
        let code = varint(Code::H3_REQUEST_INCOMPLETE.value());
        if let Some(send) = &mut stream.send {
            drop(send.reset(code));
        }
        drop(stream.receive.stop(code));
    }

    /// Drops streams that took too long. A timer exists only while some stream waits.
    fn expire(&mut self, cx: &mut Context<'_>) {
        while let Some(oldest) = self.waiting.first() {
            let due = oldest.since + HEADER_DEADLINE;
            let timer = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let stream = self.waiting.remove(0);
            self.refuse(stream, "header_deadline");
        }
        self.deadline = None;
    }

    /// Opens the control stream, which h3 asks for first. Streams for QPACK are refused, which h3 takes: without a
    /// dynamic table they carry nothing (RFC 9204, section 4.2), and an idle session would pay for them.
    fn open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outgoing, StreamErrorIncoming>> {
        if self.control_opened {
            return Poll::Ready(Err(internal("no dynamic table is used")));
        }
        let stream = ready!(quic::OpenStreams::<Bytes>::poll_open_send(&mut self.opener, cx))?;
        self.control_opened = true;
        Poll::Ready(Ok(Outgoing::new(stream)))
    }
}

impl Waiting {
    fn new(marker: u64, send: Option<quinn::SendStream>, receive: quinn::RecvStream) -> Self {
        Self { header: Header::new(marker), since: Instant::now(), send, receive }
    }

    /// `None` when the stream ended before its header did.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<Option<Kind>> {
        let mut buffer = [0; 8];
        loop {
            let Some(wanted) = buffer.get_mut(..self.header.wanted()) else { return Poll::Ready(None) };
            let Ok(read @ 1..) = ready!(self.receive.poll_read(cx, wanted)) else { return Poll::Ready(None) };
            let kind = wanted.iter().take(read).find_map(|byte| self.header.push(*byte));
            if kind.is_some() {
                return Poll::Ready(kind);
            }
        }
    }
}

async fn accept_bi(quic_conn: quinn::Connection) -> Result<(quinn::SendStream, quinn::RecvStream), ConnectionError> {
    quic_conn.accept_bi().await
}

async fn accept_uni(quic_conn: quinn::Connection) -> Result<quinn::RecvStream, ConnectionError> {
    quic_conn.accept_uni().await
}

/// Takes the oldest. An empty queue keeps no room: most connections see a few streams at first and no more for long.
pub(crate) fn next<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let next = queue.pop_front();
    if queue.is_empty() {
        queue.shrink_to_fit();
    }
    next
}

impl quic::Connection<Bytes> for Demux {
    type RecvStream = Receive;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Receive, ConnectionErrorIncoming>> {
        self.poll(cx)?;
        next(&mut self.unidirectional).map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, ConnectionErrorIncoming>> {
        self.poll(cx)?;
        next(&mut self.requests).map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
    }

    fn opener(&self) -> Opener {
        Opener(self.quic_conn.clone())
    }
}

impl quic::OpenStreams<Bytes> for Demux {
    type BidiStream = Bidi;
    type SendStream = Outgoing;

    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        Poll::Ready(Err(never_opened()))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outgoing, StreamErrorIncoming>> {
        self.open(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quic_conn.close(varint(code.value()), reason);
    }
}

/// Closes the connection. A server of HTTP/3 opens no stream but the control stream, which [`Demux`] opens.
pub(crate) struct Opener(quinn::Connection);

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = Bidi;
    type SendStream = Outgoing;

    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<Bidi, StreamErrorIncoming>> {
        Poll::Ready(Err(never_opened()))
    }

    fn poll_open_send(&mut self, _: &mut Context<'_>) -> Poll<Result<Outgoing, StreamErrorIncoming>> {
        Poll::Ready(Err(never_opened()))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.0.close(varint(code.value()), reason);
    }
}

fn never_opened() -> StreamErrorIncoming {
    internal("a server opens no requests")
}
