//! The life of one WebSocket, in one task: reads requests, runs exchanges and watches, writes their frames.
//!
//! Reading never waits for an exchange. Exchanges are pulled only while the socket takes what they yield, so a
//! slow client makes them wait; no frame is dropped, and none is produced before it can be written.

use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, Sink, SinkExt, StreamExt,
    future::{BoxFuture, join_all},
};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        protocol::{CloseFrame, frame::coding::CloseCode as Status},
    },
};

use super::text;
use crate::{
    chat::{ErrorCode, RequestId},
    connection::{ATTACH_DEADLINE, Answers, HANDLE_DEADLINE, Outcome, Transport},
    metrics::Metrics,
    protocol::{self, ClientFrame, CloseCode, Encoded, ErrorBody, Rejection, Request, ServerFrame},
    woken::{Bell, Woken},
};

/// Requests that wait for one of `limits.streams` places, and requests that need none, at a time.
const WAITING_MAX: usize = 16;
/// What a refused request is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Refusals that wait to be written. While it is full nothing is read: the client does not read either.
const REFUSALS_MAX: usize = 32;
/// Frames that share one flush; bounds how long reading waits for writing.
const BATCH: usize = 32;
/// Below the idle time-outs of usual middleboxes and phones' radios.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// A client that is silent for so long, pongs included, is gone.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the peer has to take our last frames and to answer our close frame.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

type Incoming = Result<Request, Rejection>;

/// What ends a socket.
enum End {
    /// The peer closed, or vanished.
    Gone,
    /// We close: the last frame, if any, the code, and what RFC 6455 calls it where that differs.
    Close(Option<Encoded>, CloseCode, Option<Status>),
    /// The peer announced or sent more than a frame may hold.
    TooLarge,
    /// The server drops what runs.
    Stopped,
}

/// How far a socket has come.
#[derive(PartialEq, Eq)]
enum Phase {
    /// One request runs at a time, the `attach`, and everything else waits for it.
    Attaching,
    Attached,
    /// The peer has sent its close frame; only our reply to that is still written.
    Closing,
}

/// What a socket may cost.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) frame_bytes_max: usize,
    pub(super) write_timeout: Duration,
}

/// One WebSocket. `H` answers a request, and contains its own panics; it is called for one waiting request after the
/// other, in order.
pub(super) struct Driver<S, H> {
    socket: WebSocketStream<S>,
    handle: H,
    metrics: Arc<Metrics>,
    sent: IntCounter,
    limits: Limits,
    /// Exchanges and watches that may run at a time; before the first `attach` succeeded, that one request.
    places: usize,
    phase: Phase,
    waiting: VecDeque<(Incoming, usize)>,
    waiting_bytes: usize,
    /// The request at the head of the order, until its outcome is known.
    opening: Option<BoxFuture<'static, Outcome>>,
    running: Vec<Woken<Answers>>,
    /// Requests that need no place, and their answers.
    inline: Vec<Woken<BoxFuture<'static, Outcome>>>,
    replies: Vec<Woken<Answers>>,
    refusals: VecDeque<Encoded>,
    /// Something was fed and not yet flushed.
    dirty: bool,
    ping_due: bool,
    /// One timer for all deadlines: it fires at the earliest.
    timer: Pin<Box<Sleep>>,
    due: Bell,
    /// Rings when the socket may have something to read. To look costs: the library clears its buffer each time.
    readable: Bell,
    opened: Instant,
    heard: Instant,
    pinged: Instant,
    blocked: Option<Instant>,
}

impl<S, H> Driver<S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Incoming) -> BoxFuture<'static, Outcome>,
{
    pub(super) fn new(socket: WebSocketStream<S>, handle: H, metrics: Arc<Metrics>, limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            socket,
            handle,
            sent: metrics.frames_sent_total.with_label_values(&[Transport::WebSocket.name()]),
            metrics,
            limits,
            places: 1,
            phase: Phase::Attaching,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            opening: None,
            running: Vec::new(),
            inline: Vec::new(),
            replies: Vec::new(),
            refusals: VecDeque::new(),
            dirty: false,
            ping_due: false,
            timer: Box::pin(sleep(ATTACH_DEADLINE)),
            due: Bell::new(),
            readable: Bell::new(),
            opened: now,
            heard: now,
            pinged: now,
            blocked: None,
        }
    }

    /// Puts a request before all that the client sends.
    pub(super) fn begin(&mut self, request: Request) {
        self.waiting.push_front((Ok(request), 0));
    }

    /// Runs until the peer goes, a frame or `over` closes the connection, or `stopping` resolves; says with which
    /// code it ended. `too_large` makes the last frame for a peer that sent too much.
    pub(super) async fn run(
        mut self: Box<Self>,
        over: impl Future<Output = CloseCode>,
        stopping: impl Future<Output = ()>,
        too_large: impl FnOnce() -> Encoded,
    ) -> CloseCode {
        let ended = pin!(async {
            tokio::select! {
                biased;
                () = stopping => End::Stopped,
                code = over => End::Close(None, code, None),
            }
        });
        let end = tokio::select! {
            biased;
            end = Woken::new(ended) => end,
            end = std::future::poll_fn(|cx| self.poll(cx)) => end,
        };
        let (frame, code, status) = match end {
            End::Stopped => return CloseCode::GoingAway,
            End::Gone => {
                Box::pin(self.handled()).await;
                return CloseCode::Done;
            }
            End::Close(frame, code, status) => (frame, code, status),
            End::TooLarge => (Some(too_large()), CloseCode::FrameTooLarge, None),
        };
        // A peer that does not take our last words has lost nothing that resuming does not bring back.
        drop(timeout(CLOSE_DEADLINE, Box::pin(self.close(frame, code, status))).await);
        Box::pin(self.handled()).await;
        code
    }

    /// Has requests that are being handled handled to their end, so that what was stored is also started.
    async fn handled(&mut self) {
        let handled = async {
            if let Some(opening) = self.opening.take() {
                opening.await;
            }
            join_all(self.inline.drain(..)).await;
        };
        drop(timeout(HANDLE_DEADLINE, handled).await);
    }

    /// Makes all the progress that can be made without waiting.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        for _ in 0..BATCH {
            let mut progress = false;
            for step in [Self::poll_timer, Self::poll_read, Self::poll_requests, Self::poll_write] {
                match step(self, cx) {
                    Poll::Ready(Some(end)) => return Poll::Ready(end),
                    Poll::Ready(None) => progress = true,
                    Poll::Pending => {}
                }
            }
            if !progress {
                return Poll::Pending;
            }
        }
        // Others on this thread have their turn, and so has `over`.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if !self.due.rung(cx) {
            return Poll::Pending;
        }
        ready!(self.timer.as_mut().poll(&mut Context::from_waker(self.due.waker())));
        // It is asked again with its next deadline.
        self.due.again();
        let now = Instant::now();
        if self.opening.is_some() {
            // The client has asked in time; how long the answer takes is up to the server.
            self.opened = now;
        }
        let attach_due = (self.phase == Phase::Attaching).then(|| self.opened + ATTACH_DEADLINE);
        if attach_due.is_some_and(|due| due <= now) {
            return Poll::Ready(Some(End::Close(None, CloseCode::Unauthorized, None)));
        }
        let write_due = self.blocked.map(|since| since + self.limits.write_timeout);
        if write_due.is_some_and(|due| due <= now) {
            return Poll::Ready(Some(End::Close(None, CloseCode::SlowConsumer, None)));
        }
        if self.heard + IDLE_MAX <= now {
            return Poll::Ready(Some(End::Gone));
        }
        if self.pinged + PING_INTERVAL <= now {
            self.pinged = now;
            self.ping_due = true;
        }
        let dues = [attach_due, write_due, Some(self.heard + IDLE_MAX)].into_iter().flatten();
        let next = dues.fold(self.pinged + PING_INTERVAL, Instant::min);
        self.timer.as_mut().reset(next);
        Poll::Ready(None)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if self.refusals.len() >= REFUSALS_MAX || !self.readable.rung(cx) {
            return Poll::Pending;
        }
        let message = ready!(self.socket.poll_next_unpin(&mut Context::from_waker(self.readable.waker())));
        self.readable.again();
        let Some(message) = message else {
            return Poll::Ready(Some(End::Gone));
        };
        let end = match message {
            Ok(message) => {
                self.heard = Instant::now();
                match message {
                    Message::Text(text) => self.receive(text.as_bytes(), cx),
                    // RFC 6455, section 7.4.1: a type of data that this endpoint does not accept.
                    Message::Binary(_) => Some(End::Close(None, CloseCode::ProtocolError, Some(Status::Unsupported))),
                    Message::Close(_) => {
                        self.phase = Phase::Closing;
                        None
                    }
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => None,
                }
            }
            Err(Error::Capacity(_)) => Some(End::TooLarge),
            Err(Error::Utf8(_)) => Some(End::Close(None, CloseCode::ProtocolError, Some(Status::Invalid))),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_)) => Some(End::Gone),
            Err(_) => Some(End::Close(None, CloseCode::ProtocolError, None)),
        };
        Poll::Ready(end)
    }

    fn receive(&mut self, frame: &[u8], cx: &mut Context<'_>) -> Option<End> {
        let request = protocol::decode(frame);
        if self.phase == Phase::Attached && never_waits(&request) {
            if self.inline.len() + self.replies.len() >= WAITING_MAX {
                self.refuse(&request);
                return None;
            }
            // Nearly all of these are done at once, and need nothing that wakes them.
            let mut handled = (self.handle)(request);
            match handled.poll_unpin(cx) {
                Poll::Ready(outcome) => return self.apply(outcome, true),
                Poll::Pending => self.inline.push(Woken::new(handled)),
            }
            return None;
        }
        let full = self.waiting.len() >= WAITING_MAX || self.waiting_bytes + frame.len() > self.limits.frame_bytes_max;
        if full && !self.waiting.is_empty() {
            self.refuse(&request);
            return None;
        }
        self.waiting_bytes += frame.len();
        self.waiting.push_back((request, frame.len()));
        None
    }

    fn refuse(&mut self, request: &Incoming) {
        let code = ErrorCode::TooManyRequests;
        let retry_after = u64::try_from(RETRY_AFTER.as_millis()).ok();
        let error = ErrorBody { code, message: code.sentence().to_owned(), recoverable: true, retry_after };
        let frame = ServerFrame::Error { re: re(request), turn_id: None, error };
        self.metrics.errors_total.with_label_values(&["TOO_MANY_REQUESTS"]).inc();
        self.refusals.push_back(Encoded::new(&frame));
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        for at in 0..self.inline.len() {
            if let Some(Poll::Ready(outcome)) = self.inline.get_mut(at).map(|request| request.poll_unpin(cx)) {
                drop(self.inline.swap_remove(at));
                return Poll::Ready(self.apply(outcome, true));
            }
        }
        if self.opening.is_none() {
            // Requests open one after the other, so that messages are stored in the order they were sent.
            if self.running.len() >= self.places || self.phase == Phase::Closing {
                return Poll::Pending;
            }
            let Some((request, size)) = self.waiting.pop_front() else { return Poll::Pending };
            self.waiting_bytes -= size;
            self.opening = Some((self.handle)(request));
        }
        let Some(opening) = &mut self.opening else { return Poll::Pending };
        let outcome = ready!(opening.poll_unpin(cx));
        self.opening = None;
        Poll::Ready(self.apply(outcome, false))
    }

    fn apply(&mut self, outcome: Outcome, inline: bool) -> Option<End> {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Answers(answers) if inline => self.replies.push(Woken::new(answers)),
            Outcome::Answers(answers) => self.running.push(Woken::new(answers)),
            Outcome::Watch { streams, answers } => {
                if self.phase == Phase::Attaching {
                    self.phase = Phase::Attached;
                }
                self.places = self.places.max(usize::try_from(streams).unwrap_or(usize::MAX));
                self.running.push(Woken::new(answers));
            }
            Outcome::Close(frame, code) => return Some(End::Close(frame, code, None)),
        }
        None
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if self.phase == Phase::Closing {
            return Poll::Pending;
        }
        if self.dirty {
            return self.poll_flush(cx);
        }
        let held = (self.refusals.len(), self.running.len());
        let mut all = false;
        for _ in 0..BATCH {
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Some(End::Gone)),
                Poll::Pending if self.dirty => break,
                Poll::Pending => return Poll::Pending,
            }
            let message = self.poll_message(cx);
            all = message.is_none();
            let Some(message) = message else { break };
            if Pin::new(&mut self.socket).start_send(message).is_err() {
                return Poll::Ready(Some(End::Gone));
            }
            self.dirty = true;
        }
        let end = if self.dirty { ready!(self.poll_flush(cx)) } else { None };
        // What waits has a place now, or what is not read has room; else another round finds nothing to do.
        let freed = held != (self.refusals.len(), self.running.len());
        if end.is_none() && all && !self.dirty && !freed { Poll::Pending } else { Poll::Ready(end) }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.dirty = false;
                self.blocked = None;
                Poll::Ready(None)
            }
            Poll::Ready(Err(_)) => Poll::Ready(Some(End::Gone)),
            Poll::Pending if self.blocked.is_some() => Poll::Pending,
            Poll::Pending => {
                let now = Instant::now();
                self.blocked = Some(now);
                let due = self.timer.deadline().min(now + self.limits.write_timeout);
                self.timer.as_mut().reset(due);
                self.due.again();
                // The timer is to be asked again.
                Poll::Ready(None)
            }
        }
    }

    /// The next message to write, if there is one now.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Option<Message> {
        if std::mem::take(&mut self.ping_due) {
            return Some(Message::Ping(Bytes::new()));
        }
        let refusal = self.refusals.pop_front();
        let frame = refusal.or_else(|| next(&mut self.replies, cx)).or_else(|| next(&mut self.running, cx))?;
        self.sent.inc();
        Some(text(&frame))
    }

    /// Writes what is ready, the last frame and the close frame, then waits for the peer's.
    async fn close(&mut self, frame: Option<Encoded>, code: CloseCode, status: Option<Status>) -> Result<(), Error> {
        for _ in 0..BATCH {
            let Some(message) = std::future::poll_fn(|cx| Poll::Ready(self.poll_message(cx))).await else { break };
            self.socket.feed(message).await?;
        }
        if let Some(message) = frame.as_ref().map(text) {
            self.socket.feed(message).await?;
        }
        let code_on_wire = status.unwrap_or_else(|| code.websocket().into());
        let reason = Utf8Bytes::from_static(code.reason());
        self.socket.send(Message::Close(Some(CloseFrame { code: code_on_wire, reason }))).await?;
        while let Some(message) = self.socket.next().await {
            if matches!(message?, Message::Close(_)) {
                return Ok(());
            }
        }
        // The rest of a message that we refused is still on its way. Closing the socket over it would make the
        // kernel send a reset, and the peer would lose our close frame.
        let socket = self.socket.get_mut();
        socket.shutdown().await?;
        let mut rest = [0; 1024];
        while socket.read(&mut rest).await? > 0 {}
        Ok(())
    }
}

/// The next frame of any of them; whoever gave one comes last from then on, and whoever has ended goes.
fn next(all: &mut Vec<Woken<Answers>>, cx: &mut Context<'_>) -> Option<Encoded> {
    let mut at = 0;
    while let Some(answers) = all.get_mut(at) {
        match answers.poll_next_unpin(cx) {
            Poll::Ready(Some(frame)) => {
                all.rotate_left(at + 1);
                return Some(frame);
            }
            Poll::Ready(None) => drop(all.remove(at)),
            Poll::Pending => at += 1,
        }
    }
    None
}

/// What is answered beside the exchanges: they would otherwise wait for the very thing they are about.
fn never_waits(request: &Incoming) -> bool {
    match request {
        Err(_) => true,
        Ok(request) => match &request.frame {
            ClientFrame::Ping
            | ClientFrame::Auth { .. }
            | ClientFrame::Stop { .. }
            | ClientFrame::Detach { .. }
            | ClientFrame::Typing { .. } => true,
            ClientFrame::Attach(_)
            | ClientFrame::UserMessage(_)
            | ClientFrame::Regenerate { .. }
            | ClientFrame::ModelSelect { .. }
            | ClientFrame::Help { .. }
            | ClientFrame::Feedback(_)
            | ClientFrame::Unsupported { .. } => false,
        },
    }
}

const fn re(request: &Incoming) -> Option<RequestId> {
    match request {
        Ok(request) => request.id,
        Err(rejection) => rejection.re,
    }
}

#[cfg(test)]
mod tests;
