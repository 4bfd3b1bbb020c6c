//! The life of one WebSocket, in one task: reads requests, runs exchanges and watches, writes their frames.
//!
//! Reading never waits for an exchange. Exchanges are pulled only while the socket takes what they yield, so a
//! slow client makes them wait; no frame is dropped, and none is produced before it can be written.

mod asked;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use prometheus::IntCounter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_tungstenite::tungstenite::{
    Error, Utf8Bytes,
    error::ProtocolError,
    protocol::{CloseFrame, frame::coding::CloseCode as Status},
};

use self::asked::{Asked, Incoming, never_waits, next};
use super::socket::{Batch, Received, Socket};
use crate::{
    chat::ErrorCode,
    connection::{ATTACH_DEADLINE, Answers, HANDLE_DEADLINE, Outcome, Transport},
    metrics::Metrics,
    protocol::{self, CloseCode, Encoded, ErrorBody, Request, ServerFrame},
    woken::{Board, Hung},
};

/// Requests that wait for one of `limits.streams` places, and requests that need none, at a time.
const WAITING_MAX: usize = 16;
/// What a refused request is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Refusals that wait to be written. While it is full nothing is read: the client does not read either.
const REFUSALS_MAX: usize = 32;
/// Rounds in one poll; what is to be done then waits until others have had their turn.
const ROUNDS: usize = 32;
/// Below the idle time-outs of usual middleboxes and phones' radios.
const PING_INTERVAL: Duration = Duration::from_secs(25);
/// A client that is silent for so long, pongs included, is gone.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long the peer has to take our last frames and to answer our close frame.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

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
///
/// The fields lie as they are written here: a frame of the watch of an idle socket touches the first ones only.
#[repr(C)]
pub(super) struct Driver<S, H> {
    board: Board,
    running: Vec<Asked<Answers>>,
    /// The request at the head of the order, until its outcome is known.
    opening: Option<BoxFuture<'static, Outcome>>,
    /// Exchanges and watches that may run at a time; before the first `attach` succeeded, that one request.
    places: usize,
    sent: IntCounter,
    phase: Phase,
    /// Something was written and not yet flushed.
    dirty: bool,
    ping_due: bool,
    blocked: Option<Instant>,
    /// Requests that need no place; their answers are the replies.
    inline: Vec<Asked<BoxFuture<'static, Outcome>>>,
    replies: Vec<Asked<Answers>>,
    refusals: VecDeque<Encoded>,
    waiting: VecDeque<(Incoming, usize)>,
    socket: Socket<S>,
    due: Hung,
    /// Rings when the socket may have something to read.
    readable: Hung,
    /// Rings when the connection may be over.
    over: Hung,
    /// One timer for all deadlines: it fires at the earliest.
    timer: Pin<Box<Sleep>>,
    heard: Instant,
    handle: H,
    waiting_bytes: usize,
    limits: Limits,
    opened: Instant,
    pinged: Instant,
    metrics: Arc<Metrics>,
}

impl<S, H> Driver<S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Incoming) -> BoxFuture<'static, Outcome>,
{
    pub(super) fn new(socket: Socket<S>, handle: H, metrics: Arc<Metrics>, limits: Limits) -> Self {
        let now = Instant::now();
        let mut board = Board::new();
        // The first one is for what leaves most frames, the watch.
        let first = board.hang();
        let (due, readable, over) = (board.hang(), board.hang(), board.hang());
        board.take_down(&first);
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
            due,
            readable,
            over,
            board,
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
    pub(super) fn run(
        mut self: Box<Self>,
        over: impl Future<Output = CloseCode>,
        stopping: impl Future<Output = ()>,
        too_large: impl FnOnce() -> Encoded,
    ) -> impl Future<Output = CloseCode> {
        // Boxed, being rare: what is asked for each frame is not spread around it.
        let mut ended = Box::pin(async {
            tokio::select! {
                biased;
                () = stopping => End::Stopped,
                code = over => End::Close(None, code, None),
            }
        });
        async move {
            let end = poll_fn(|cx| self.poll(cx, ended.as_mut())).await;
            Box::pin(self.end(end, too_large)).await
        }
    }

    async fn end(&mut self, end: End, too_large: impl FnOnce() -> Encoded) -> CloseCode {
        let (frame, code, status) = match end {
            End::Stopped => return CloseCode::GoingAway,
            End::Gone => {
                self.handled().await;
                return CloseCode::Done;
            }
            End::Close(frame, code, status) => (frame, code, status),
            End::TooLarge => (Some(too_large()), CloseCode::FrameTooLarge, None),
        };
        // A peer that does not take our last words has lost nothing that resuming does not bring back.
        drop(timeout(CLOSE_DEADLINE, self.close(frame, code, status)).await);
        self.handled().await;
        code
    }

    /// Has requests that are being handled handled to their end, so that what was stored is also started.
    async fn handled(&mut self) {
        let handled = async {
            if let Some(opening) = self.opening.take() {
                opening.await;
            }
            join_all(self.inline.drain(..).map(|request| request.what)).await;
        };
        drop(timeout(HANDLE_DEADLINE, handled).await);
    }

    /// Makes all the progress that can be made without waiting.
    fn poll(&mut self, cx: &mut Context<'_>, mut ended: Pin<&mut impl Future<Output = End>>) -> Poll<End> {
        for _ in 0..ROUNDS {
            self.board.look(cx);
            if self.board.rang_rarely(&self.over)
                && let Poll::Ready(end) = ended.as_mut().poll(&mut Context::from_waker(self.over.waker()))
            {
                return Poll::Ready(end);
            }
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
        // Others on this thread have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_timer(&mut self, _cx: &mut Context<'_>) -> Poll<Option<End>> {
        if !self.board.rang_rarely(&self.due) {
            return Poll::Pending;
        }
        ready!(self.timer.as_mut().poll(&mut Context::from_waker(self.due.waker())));
        // It is asked again with its next deadline.
        self.board.again(&self.due);
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
        if self.refusals.len() >= REFUSALS_MAX || !self.board.rang_rarely(&self.readable) {
            return Poll::Pending;
        }
        let mut cx_of_bell = Context::from_waker(self.readable.waker());
        let read = |text: &str| (protocol::decode_text(text), text.len());
        let received = ready!(self.socket.poll_read(&mut cx_of_bell, read));
        self.board.again(&self.readable);
        let Some(received) = received else {
            return Poll::Ready(Some(End::Gone));
        };
        let end = match received {
            Ok(received) => {
                self.heard = Instant::now();
                match received {
                    Received::Text((request, bytes)) => self.receive(request, bytes, cx),
                    // RFC 6455, section 7.4.1: a type of data that this endpoint does not accept.
                    Received::Binary => Some(End::Close(None, CloseCode::ProtocolError, Some(Status::Unsupported))),
                    Received::Close => {
                        self.phase = Phase::Closing;
                        None
                    }
                    Received::Control => None,
                }
            }
            Err(Error::Capacity(_)) => Some(End::TooLarge),
            Err(Error::Utf8(_)) => Some(End::Close(None, CloseCode::ProtocolError, Some(Status::Invalid))),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_)) => Some(End::Gone),
            Err(_) => Some(End::Close(None, CloseCode::ProtocolError, None)),
        };
        Poll::Ready(end)
    }

    fn receive(&mut self, request: Incoming, bytes: usize, cx: &mut Context<'_>) -> Option<End> {
        if self.phase == Phase::Attached && never_waits(&request) {
            if self.inline.len() + self.replies.len() >= WAITING_MAX {
                self.refuse(&request);
                return None;
            }
            // Nearly all of these are done at once, and need nothing that wakes them.
            let mut handled = (self.handle)(request);
            match handled.poll_unpin(cx) {
                Poll::Ready(outcome) => return self.apply(outcome, true),
                Poll::Pending => self.inline.push(Asked::new(handled, &mut self.board)),
            }
            return None;
        }
        let full = self.waiting.len() >= WAITING_MAX || self.waiting_bytes + bytes > self.limits.frame_bytes_max;
        if full && !self.waiting.is_empty() {
            self.refuse(&request);
            return None;
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back((request, bytes));
        None
    }

    fn refuse(&mut self, request: &Incoming) {
        let code = ErrorCode::TooManyRequests;
        let retry_after = u64::try_from(RETRY_AFTER.as_millis()).ok();
        let error = ErrorBody { code, message: code.sentence().to_owned(), recoverable: true, retry_after };
        let re = request.as_ref().map_or_else(|rejection| rejection.re, |request| request.id);
        let frame = ServerFrame::Error { re, turn_id: None, error };
        self.metrics.errors_total.with_label_values(&["TOO_MANY_REQUESTS"]).inc();
        self.refusals.push_back(Encoded::new(&frame));
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let Self { inline, board, .. } = self;
        for (at, Asked { what, bell }) in inline.iter_mut().enumerate() {
            if board.rang(bell)
                && let Poll::Ready(outcome) = what.poll_unpin(&mut Context::from_waker(bell.waker()))
            {
                board.take_down(bell);
                drop(inline.swap_remove(at));
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
            Outcome::Answers(answers) if inline => self.replies.push(Asked::new(answers, &mut self.board)),
            Outcome::Answers(answers) => self.running.push(Asked::new(answers, &mut self.board)),
            Outcome::Watch { streams, answers } => {
                if self.phase == Phase::Attaching {
                    self.phase = Phase::Attached;
                }
                self.places = self.places.max(usize::try_from(streams).unwrap_or(usize::MAX));
                self.running.push(Asked::new(answers, &mut self.board));
            }
            Outcome::Close(frame, code) => return Some(End::Close(frame, code, None)),
        }
        None
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        if self.phase == Phase::Closing {
            return Poll::Pending;
        }
        if self.dirty || self.socket.owes() {
            return self.poll_flush(cx);
        }
        let held = (self.refusals.len(), self.running.len());
        let batch = self.batch();
        let all = !batch.full();
        let end = if batch.is_empty() {
            None
        } else {
            self.dirty = true;
            if self.socket.write(cx, &batch).is_err() {
                return Poll::Ready(Some(End::Gone));
            }
            drop(batch);
            ready!(self.poll_flush(cx))
        };
        // What waits has a place now, or what is not read has room; else another round finds nothing to do.
        let freed = held != (self.refusals.len(), self.running.len());
        if end.is_none() && all && !self.dirty && !freed { Poll::Pending } else { Poll::Ready(end) }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        match self.socket.poll_flush(cx) {
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
                self.board.again(&self.due);
                // The timer is to be asked again.
                Poll::Ready(None)
            }
        }
    }

    /// What is ready to be written, as far as it may share a write.
    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        while !batch.full() && self.poll_frame(&mut batch) {}
        batch
    }

    /// Adds the next frame to what is written, if there is one now.
    fn poll_frame(&mut self, batch: &mut Batch) -> bool {
        if std::mem::take(&mut self.ping_due) {
            batch.ping();
            return true;
        }
        let refusal = self.refusals.pop_front();
        let Self { replies, running, board, .. } = self;
        let frame = refusal.or_else(|| next(replies, board)).or_else(|| next(running, board));
        let Some(frame) = frame else { return false };
        self.sent.inc();
        batch.text(&frame);
        true
    }

    /// Writes what is ready, the last frame and the close frame, then waits for the peer's.
    async fn close(&mut self, frame: Option<Encoded>, code: CloseCode, status: Option<Status>) -> Result<(), Error> {
        poll_fn(|cx| self.socket.poll_flush(cx)).await?;
        let mut batch = self.batch();
        if let Some(frame) = &frame {
            batch.text(frame);
        }
        self.socket.keep(&batch);
        drop(batch);
        let reason = Utf8Bytes::from_static(code.reason());
        let code = status.unwrap_or_else(|| code.websocket().into());
        self.socket.close(CloseFrame { code, reason }).await?;
        while let Some(received) = poll_fn(|cx| self.socket.poll_read(cx, |_too_late| ())).await {
            if matches!(received?, Received::Close) {
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

#[cfg(test)]
mod tests;
