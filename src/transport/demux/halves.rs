//! The streams that h3 reads and writes.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h3::{
    error::Code,
    quic::{self, ConnectionErrorIncoming, SendStreamUnframed as _, StreamErrorIncoming, StreamId, WriteBuf},
};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use crate::transport::wire::{self, FrameGuard};

/// What the drafts ask for beyond what h3 writes: `WT_MAX_SESSIONS` of draft-ietf-webtrans-http3-07, for Safari.
const EXTRA_SETTINGS: [(u64, u64); 1] = [(0xc671_706a, 1)];

/// The control stream, the only one that the server opens. h3 has room for three: hence the pointer.
pub(crate) struct Outgoing {
    stream: Box<h3_quinn::SendStream<Bytes>>,
    /// Whether the next write is the SETTINGS frame.
    patch: bool,
    patched: Bytes,
}

impl Outgoing {
    pub(super) fn new(stream: h3_quinn::SendStream<Bytes>) -> Self {
        Self { stream: Box::new(stream), patch: true, patched: Bytes::new() }
    }
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
    pub(super) fn new(send: quinn::SendStream, receive: Receive) -> Self {
        Self { send: Send { stream: send, writing: None, finished: false, serving: Arc::default() }, receive }
    }

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
    pub(super) const fn new(stream: quinn::RecvStream, prefix: Bytes, guard: Option<FrameGuard>) -> Self {
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

pub(super) fn internal(reason: &str) -> StreamErrorIncoming {
    let connection_error = ConnectionErrorIncoming::InternalError(reason.to_owned());
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}

pub(super) fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
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
