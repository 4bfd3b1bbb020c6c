//! Our `h3::quic` backend over quinn: WebTransport streams go to the session, everything else to h3.
//!
//! h3 0.0.8 reads WebTransport streams itself, one after the other: one half-written header stops all that come
//! later (hyperium/h3 issue 348). Here the headers of all streams are read side by side, each with a deadline.
//! It knows stream types and SETTINGS, not requests and not sessions.
//!
//! Everything runs inside the task that polls h3; there are no channels and no tasks of its own. What can wait
//! here is limited by the stream credit of the connection.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, SendStreamUnframed as _, StreamErrorIncoming, StreamId, WriteBuf},
};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::ReusableBoxFuture;

use super::wire::{self, FrameGuard, Header, Kind};
use crate::metrics::Metrics;

/// How long a stream may take to say what it is.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// What the drafts ask for beyond what h3 writes: `WT_MAX_SESSIONS` of draft-ietf-webtrans-http3-07, for Safari.
const EXTRA_SETTINGS: [(u64, u64); 1] = [(0xc671_706a, 1)];

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
    settings_sent: bool,
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
            settings_sent: false,
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
        while let Poll::Ready(accepted) = self.incoming_bi.poll(cx) {
            let (send, receive) = accepted.map_err(connection_error)?;
            self.incoming_bi.set(accept_bi(self.quic_conn.clone()));
            self.take(Header::new(wire::BIDIRECTIONAL), Some(send), receive);
        }
        while let Poll::Ready(accepted) = self.incoming_uni.poll(cx) {
            let receive = accepted.map_err(connection_error)?;
            self.incoming_uni.set(accept_uni(self.quic_conn.clone()));
            self.take(Header::new(wire::UNIDIRECTIONAL), None, receive);
        }
        for stream in std::mem::take(&mut self.waiting) {
            self.recognise(stream, cx);
        }
        self.expire(cx);
        Ok(())
    }

    fn take(&mut self, header: Header, send: Option<quinn::SendStream>, receive: quinn::RecvStream) {
        self.waiting.push(Waiting { header, since: Instant::now(), send, receive });
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
                self.requests.push_back(Bidi { send: Send::new(send), receive });
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

    fn open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Outgoing, StreamErrorIncoming>> {
        let stream = ready!(quic::OpenStreams::<Bytes>::poll_open_send(&mut self.opener, cx))?;
        // h3 opens the control stream before all others.
        let control = !std::mem::replace(&mut self.settings_sent, true);
        Poll::Ready(Ok(Outgoing { stream, patch: control, patched: Bytes::new() }))
    }
}

impl Waiting {
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

impl quic::Connection<Bytes> for Demux {
    type RecvStream = Receive;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Receive, ConnectionErrorIncoming>> {
        self.poll(cx)?;
        self.unidirectional.pop_front().map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bidi, ConnectionErrorIncoming>> {
        self.poll(cx)?;
        self.requests.pop_front().map_or(Poll::Pending, |stream| Poll::Ready(Ok(stream)))
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

/// Closes the connection. A server of HTTP/3 opens no streams but the first three, which [`Demux`] opens.
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

/// A stream that the server opened: control, QPACK encoder, QPACK decoder.
pub(crate) struct Outgoing {
    stream: h3_quinn::SendStream<Bytes>,
    /// Whether the next write is the SETTINGS frame.
    patch: bool,
    patched: Bytes,
}

impl quic::SendStream<Bytes> for Outgoing {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while self.patched.has_remaining() {
            ready!(self.stream.poll_send(cx, &mut self.patched))?;
        }
        self.stream.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if !std::mem::take(&mut self.patch) {
            return self.stream.send_data(data);
        }
        let mut written: WriteBuf<Bytes> = data.into();
        let written = written.copy_to_bytes(written.remaining());
        self.patched = wire::add_settings(&written, &EXTRA_SETTINGS)
            .ok_or_else(|| internal("h3 wrote something else than SETTINGS first"))?;
        Ok(())
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.stream.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.stream.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.stream.send_id()
    }
}

/// A request stream.
pub(crate) struct Bidi {
    send: Send,
    receive: Receive,
}

impl Bidi {
    /// Resolves when the client no longer wants the response, or has all of it.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + std::marker::Send + 'static {
        let stopped = self.send.stream.stopped();
        async move { drop(stopped.await) }
    }

    /// Set it once the request is being served: from then on half a response must not look like a whole one. Before,
    /// h3 answers by itself to what is no request, and leaves the stream to be finished by its drop.
    pub(crate) fn serving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.send.serving)
    }
}

impl quic::SendStream<Bytes> for Bidi {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl quic::RecvStream for Bidi {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receive.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receive.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receive.recv_id()
    }
}

impl quic::BidiStream<Bytes> for Bidi {
    type SendStream = Send;
    type RecvStream = Receive;

    fn split(self) -> (Send, Receive) {
        (self.send, self.receive)
    }
}

/// The sending half of a request stream. Dropped before it is finished, it resets the stream.
pub(crate) struct Send {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    finished: bool,
    serving: Arc<AtomicBool>,
}

impl Send {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None, finished: false, serving: Arc::default() }
    }
}

impl quic::SendStream<Bytes> for Send {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(write_error)?;
                data.advance(written);
            }
            self.writing = None;
        }
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(internal("send_data before poll_ready"));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.finished = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, code: u64) {
        self.finished = true;
        drop(self.stream.reset(varint(code)));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for Send {
    fn drop(&mut self) {
        if !self.finished && self.serving.load(Ordering::Relaxed) {
            drop(self.stream.reset(varint(Code::H3_REQUEST_CANCELLED.value())));
        }
    }
}

/// The receiving half of a stream that h3 reads, its first bytes put back.
pub(crate) struct Receive {
    prefix: Bytes,
    stream: quinn::RecvStream,
    guard: Option<FrameGuard>,
}

impl Receive {
    const fn new(stream: quinn::RecvStream, prefix: Bytes, guard: Option<FrameGuard>) -> Self {
        Self { prefix, stream, guard }
    }
}

impl quic::RecvStream for Receive {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.prefix))));
        }
        // Nothing is lost when this future is dropped while it is pending: it keeps its state in the stream.
        let read = { std::pin::pin!(self.stream.read_chunk(usize::MAX, true)).poll(cx) };
        let chunk = ready!(read).map_err(read_error)?;
        if let (Some(guard), Some(chunk)) = (&mut self.guard, &chunk)
            && guard.check(&chunk.bytes).is_err()
        {
            let code = Code::H3_EXCESSIVE_LOAD.value();
            drop(self.stream.stop(varint(code)));
            return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code: code }));
        }
        Poll::Ready(Ok(chunk.map(|chunk| chunk.bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        drop(self.stream.stop(varint(code)));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for Receive {
    /// Says that the rest is not needed (RFC 9114, section 4.1); nothing happens when all has been read.
    fn drop(&mut self) {
        drop(self.stream.stop(varint(Code::H3_NO_ERROR.value())));
    }
}

/// A code as quinn wants it.
pub(crate) fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[expect(clippy::expect_used, reason = "quinn's stream ids are varints too")]
fn stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(id)).expect("a stream id is a varint")
}

fn internal(reason: &str) -> StreamErrorIncoming {
    let connection_error = ConnectionErrorIncoming::InternalError(reason.to_owned());
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

fn never_opened() -> StreamErrorIncoming {
    internal("a server opens no requests")
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        ReadError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}
