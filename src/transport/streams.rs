//! Chat over a WebTransport session: one stream for each exchange, long-lived ones for watches.
//!
//! It reads frames, hands them to the [`Connection`], and writes what comes back. What a frame means it does not
//! know. A stream is a task that ends with both halves ended, because only then the client gets its credit back;
//! the halves see to that when they are dropped.

mod copies;
mod read;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    net::IpAddr,
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_channel::mpsc;
use futures_util::{
    FutureExt as _, SinkExt as _, StreamExt as _,
    future::{BoxFuture, Fuse},
};
use http::StatusCode;
use prometheus::IntCounter;
use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};

use self::{
    copies::Copies,
    read::{Reader, Unread},
};
use super::{
    lines::Lines,
    webtransport::{Credit, End, Host, Incoming, RecvStream, SendStream, Session, StreamError},
};
use crate::{
    connection::{
        ATTACH_DEADLINE, Answers, Connection, FRAME_DEADLINE, Gate, HANDLE_DEADLINE, Hello, Outcome, Transport,
    },
    metrics::Metrics,
    protocol::{CloseCode, Encoded},
    woken::Woken,
};

/// Answers to requests on an attach stream that wait to be written; then the stream is read no further.
const INLINE_ANSWERS_MAX: usize = 4;

/// How long the client may take to acknowledge the last frame before its session is closed.
const LAST_FRAME_DEADLINE: Duration = Duration::from_secs(1);

/// How long the client may take to read the last frame before its session is closed: a page loses what it has
/// not read by then.
const FAREWELL: Duration = Duration::from_millis(250);

/// Chats over WebTransport.
impl Host for Arc<Gate> {
    type Connection = Connection;

    fn open(&self, address: IpAddr, token: Option<String>) -> Result<Connection, StatusCode> {
        let hello = Hello { token, old: false };
        Gate::open(self, Transport::WebTransport, address, hello).map_err(|code| match code {
            CloseCode::TooManyConnections => StatusCode::TOO_MANY_REQUESTS,
            CloseCode::Unauthorized | CloseCode::TokenExpired => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        })
    }

    async fn serve(&self, session: Session, connection: Connection) {
        let driver = Driver {
            credit: session.credit(),
            copies: Arc::new(Copies::new(session.datagrams(), Arc::clone(&self.metrics))),
            session,
            streams: JoinSet::new(),
            connection: connection.clone(),
            frame_bytes_max: self.frame_bytes_max(),
            write_timeout: self.write_timeout(),
            sent: self.metrics.frames_sent_total.with_label_values(&[Transport::WebTransport.name()]),
            metrics: Arc::clone(&self.metrics),
        };
        let code = driver.run().await;
        connection.closed(code);
    }
}

/// What a stream asks of its session when it ends.
type Ended = ControlFlow<CloseCode>;

struct Driver {
    session: Session,
    credit: Credit,
    copies: Arc<Copies>,
    streams: JoinSet<Ended>,
    connection: Connection,
    frame_bytes_max: usize,
    write_timeout: Duration,
    sent: IntCounter,
    metrics: Arc<Metrics>,
}

impl Driver {
    /// Serves streams until the client, a stream or the connection ends the session; says with which code.
    async fn run(mut self) -> CloseCode {
        let code = match self.serve().await {
            Ok(code) => {
                Box::pin(self.farewell()).await;
                Box::pin(self.session.close(code.webtransport(), code.reason())).await;
                code
            }
            Err(end) => {
                tracing::debug!(?end, "client has left");
                Box::pin(self.session.leave()).await;
                CloseCode::Done
            }
        };
        // Nothing can be read or written any longer. A request that is being handled is handled to its end, so
        // that what was stored is also started.
        let ended = async { while self.streams.join_next().await.is_some() {} };
        drop(timeout(HANDLE_DEADLINE, ended).await);
        code
    }

    /// Ends with our code, or with the client's end.
    async fn serve(&mut self) -> Result<CloseCode, End> {
        let connection = self.connection.clone();
        let over = pin!(connection.over());
        let mut over = Woken::new(over);
        let mut attach = Some(Box::pin(sleep(ATTACH_DEADLINE)));
        loop {
            tokio::select! {
                biased;
                code = &mut over => return Ok(code),
                Some(ended) = self.streams.join_next(), if !self.streams.is_empty() => {
                    if let ControlFlow::Break(code) = self.ended(ended) {
                        return Ok(code);
                    }
                }
                incoming = self.session.next() => match incoming {
                    Incoming::Stream(send, receive) => self.begin(send, receive),
                    Incoming::Ended(end) => return Err(end),
                },
                never = poll_fn(|cx| self.copies.poll(cx)) => match never {},
                () = deadline(&mut attach), if attach.is_some() => {
                    attach = None;
                    // Who has shown a token has asked in time; how long the answer takes is up to the server.
                    if !self.credit.raised() && !self.connection.authenticated() {
                        return Ok(CloseCode::Unauthorized);
                    }
                }
            }
        }
    }

    fn begin(&mut self, send: SendStream, receive: RecvStream) {
        let stream = Stream {
            writer: Writer {
                send,
                stopped: None,
                timeout: self.write_timeout,
                copies: Arc::clone(&self.copies),
                sent: self.sent.clone(),
                metrics: Arc::clone(&self.metrics),
            },
            reader: Reader { receive, lines: Lines::new(self.frame_bytes_max) },
            connection: self.connection.clone(),
            credit: self.credit.clone(),
        };
        self.streams.spawn(stream.run());
    }

    fn ended(&self, ended: Result<Ended, JoinError>) -> Ended {
        ended.unwrap_or_else(|error| {
            if error.is_panic() {
                self.metrics.panics_total.inc();
            }
            Ended::Continue(())
        })
    }

    /// Lets streams write what they have and the client read it, for a moment.
    async fn farewell(&mut self) {
        let Self { session, streams, .. } = self;
        let moment = async {
            loop {
                match session.next().await {
                    // Too late: the stream is refused by being dropped.
                    Incoming::Stream(..) => {}
                    Incoming::Ended(_) => return,
                }
            }
        };
        let written = async {
            while streams.join_next().await.is_some() {}
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            () = moment => {}
            never = written => match never {},
            () = sleep(FAREWELL) => {}
        }
    }
}

async fn deadline(timer: &mut Option<Pin<Box<tokio::time::Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => std::future::pending().await,
    }
}

/// One stream of the client.
struct Stream {
    reader: Reader,
    writer: Writer,
    connection: Connection,
    credit: Credit,
}

/// Why a stream did not begin.
enum Unopened {
    /// no frame came
    Unread(Unread),
    /// the first frame of the connection is not UTF-8
    NotText,
}

/// What is wrong with answering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unwritten {
    /// The client wants nothing more of this stream.
    Unwanted,
    /// The client reads nothing.
    Slow,
}

impl Stream {
    /// The stages are boxed one by one, so that a watch, which lives on, keeps no room for the others.
    async fn run(mut self) -> Ended {
        let outcome = match Box::pin(self.open()).await {
            ControlFlow::Continue(outcome) => outcome,
            ControlFlow::Break(Unopened::Unread(unread)) => return Box::pin(self.without_frame(unread)).await,
            ControlFlow::Break(Unopened::NotText) => return Ended::Break(CloseCode::ProtocolError),
        };
        match outcome {
            Outcome::Nothing => Box::pin(self.end(Ok(()))).await,
            Outcome::Answers(answers) => {
                let written = Box::pin(self.writer.write_all(answers)).await;
                Box::pin(self.end(written)).await
            }
            Outcome::Watch { streams, answers } => {
                self.credit.raise(streams);
                Box::pin(self.watch(answers)).await
            }
            Outcome::Close(frame, code) => Box::pin(self.last(frame, code)).await,
        }
    }

    /// Reads the frame for which the client opened the stream, and hands it in.
    async fn open(&mut self) -> ControlFlow<Unopened, Outcome> {
        let line = match timeout(FRAME_DEADLINE, self.reader.next()).await.unwrap_or(Err(Unread::Late)) {
            Ok(line) => line,
            Err(unread) => return ControlFlow::Break(Unopened::Unread(unread)),
        };
        if !self.credit.raised() && std::str::from_utf8(&line).is_err() {
            return ControlFlow::Break(Unopened::NotText);
        }
        ControlFlow::Continue(self.connection.handle(&line).await)
    }

    /// Ends a stream that was answered. The client may end its half itself: Firefox discards what it has not read of a
    /// stream on which it may send no more.
    async fn end(&mut self, written: Result<(), Unwritten>) -> Ended {
        let ended = self.finish(written);
        if written.is_ok() {
            drop(timeout(LAST_FRAME_DEADLINE, self.reader.receive.read(1)).await);
        }
        self.reader.receive.stop(0);
        ended
    }

    /// Ends a stream on which no frame came.
    async fn without_frame(&mut self, unread: Unread) -> Ended {
        let attached = self.credit.raised();
        if let Some(reason) = unread.reason() {
            self.writer.metrics.streams_broken_total.with_label_values(&[reason]).inc();
        }
        match unread {
            Unread::TooLarge if attached => {
                self.reader.receive.stop(0);
                let frame = self.connection.too_large(false);
                let written = self.writer.write(&frame).await;
                self.finish(written)
            }
            Unread::TooLarge => {
                let frame = self.connection.too_large(true);
                self.last(Some(frame), CloseCode::FrameTooLarge).await
            }
            // Before it is attached the client has one stream, and five seconds.
            Unread::Finished | Unread::Broken | Unread::Late => Ended::Continue(()),
        }
    }

    fn finish(&mut self, written: Result<(), Unwritten>) -> Ended {
        match written {
            Ok(()) => self.credit.finish(&mut self.writer.send),
            Err(Unwritten::Unwanted) => {}
            Err(Unwritten::Slow) => return Ended::Break(CloseCode::SlowConsumer),
        }
        Ended::Continue(())
    }

    /// Writes a last frame and waits for a moment until the client has it.
    async fn last(&mut self, frame: Option<Encoded>, code: CloseCode) -> Ended {
        if let Some(frame) = frame
            && self.writer.write(&frame).await.is_ok()
        {
            self.writer.send.finish();
            drop(timeout(LAST_FRAME_DEADLINE, self.writer.stopped()).await);
        }
        // Not before: Firefox discards what it has not read of a stream on which it may send no more.
        self.reader.receive.stop(0);
        Ended::Break(code)
    }

    /// Writes the events of a watch while it reads the requests that come on its stream. Neither waits for the
    /// other: a `stop` is heard while a piece of text is stuck.
    async fn watch(&mut self, answers: Answers) -> Ended {
        // A fifth of what tokio's channel takes, for one that is empty nearly always.
        let (inline_tx, inline) = mpsc::channel(INLINE_ANSWERS_MAX);
        let unheard = Notify::new();
        // Each ends when the other has: the writer after the answers to all requests, so that no frame is cut;
        // the reader after the request that is being handled. The reader is asked when it was woken, and not for each
        // frame that is written: it takes the connection's lock.
        let (end, written) = {
            let requests = pin!(read_requests(&mut self.reader, &self.connection, inline_tx, &unheard));
            tokio::join!(
                Woken::new(requests),
                self.writer.write_watch(answers, inline).inspect(|_written| unheard.notify_one()),
            )
        };
        match end {
            Request::Close(frame, code) => Box::pin(self.last(frame, code)).await,
            Request::Unread(unread) => Box::pin(self.unwatched(unread, written)).await,
            Request::Unheard => {
                if written.is_ok() {
                    self.writer.send.finish();
                    drop(timeout(LAST_FRAME_DEADLINE, self.writer.stopped()).await);
                }
                self.reader.receive.stop(0);
                self.finish(written)
            }
        }
    }

    /// Ends a watch on whose stream nothing more is read.
    async fn unwatched(&mut self, unread: Unread, written: Result<(), Unwritten>) -> Ended {
        if let Some(reason) = unread.reason() {
            self.writer.metrics.streams_broken_total.with_label_values(&[reason]).inc();
        }
        match unread {
            Unread::Finished => self.finish(written),
            Unread::Broken => Ended::Continue(()),
            Unread::Late => Ended::Break(CloseCode::ProtocolError),
            Unread::TooLarge => {
                let frame = self.connection.too_large(true);
                self.last(Some(frame), CloseCode::FrameTooLarge).await
            }
        }
    }
}

/// Why the requests on an attach stream end.
enum Request {
    Close(Option<Encoded>, CloseCode),
    Unread(Unread),
    /// the watch is over
    Unheard,
}

/// Hands the requests on an attach stream in, one after the other, and their answers on.
async fn read_requests(
    reader: &mut Reader,
    connection: &Connection,
    mut inline: mpsc::Sender<Answers>,
    unheard: &Notify,
) -> Request {
    loop {
        let line = tokio::select! {
            biased;
            () = unheard.notified() => return Request::Unheard,
            line = reader.next_within(FRAME_DEADLINE) => match line {
                Ok(line) => line,
                Err(unread) => return Request::Unread(unread),
            },
        };
        if std::str::from_utf8(&line).is_err() {
            return Request::Close(None, CloseCode::ProtocolError);
        }
        match Box::pin(connection.handle_inline(&line)).await {
            Outcome::Nothing => {}
            Outcome::Answers(answers) | Outcome::Watch { answers, .. } => {
                // Nobody waits for the answer when the watch is over.
                drop(inline.send(answers).await);
            }
            Outcome::Close(frame, code) => return Request::Close(frame, code),
        }
    }
}

type Stopped = Woken<Fuse<BoxFuture<'static, Option<StreamError>>>>;

/// Writes frames.
struct Writer {
    send: SendStream,
    /// Made by the first wait. Asked for each frame, and takes the connection's lock: only when it was woken.
    stopped: Option<Stopped>,
    timeout: Duration,
    copies: Arc<Copies>,
    sent: IntCounter,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Writes all answers of an exchange. Gives up at once when the client stops the stream.
    async fn write_all(&mut self, mut answers: Answers) -> Result<(), Unwritten> {
        while let Some(frame) = self.wanted(answers.next()).await? {
            self.write(&frame).await?;
        }
        Ok(())
    }

    /// Writes the events of a watch, and between them the answers to requests that came on its stream, until
    /// either ends.
    async fn write_watch(&mut self, mut events: Answers, mut inline: mpsc::Receiver<Answers>) -> Result<(), Unwritten> {
        // The status is the answer to the request: it comes also where the client has finished its side already.
        if let Some(frame) = self.wanted(events.next()).await? {
            self.write(&frame).await?;
        }
        loop {
            let next = async {
                tokio::select! {
                    biased;
                    answers = inline.next() => Next::Inline(answers),
                    frame = events.next() => Next::Event(frame),
                }
            };
            match self.wanted(next).await? {
                Next::Inline(Some(answers)) => self.write_all(answers).await?,
                Next::Inline(None) => return Ok(()),
                Next::Event(Some(frame)) => self.write(&frame).await?,
                Next::Event(None) => return Ok(()),
            }
        }
    }

    /// Waits for what comes next unless the client stops the stream before.
    async fn wanted<T>(&mut self, next: impl Future<Output = T>) -> Result<T, Unwritten> {
        let mut next = pin!(next);
        poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(next) => Poll::Ready(Ok(next)),
            Poll::Pending => self.stopped().poll_unpin(cx).map(|_stopped| Err(Unwritten::Unwanted)),
        })
        .await
    }

    /// Resolves when the client stops the stream, or has all of it.
    fn stopped(&mut self) -> &mut Stopped {
        self.stopped.get_or_insert_with(|| Woken::new(self.send.stopped().boxed().fuse()))
    }

    /// Writes a frame. What is written before the task waits again leaves together. The client is slow when it takes
    /// nothing at all for `limits.write_timeout`.
    async fn write(&mut self, frame: &Encoded) -> Result<(), Unwritten> {
        let mut line = [frame.line()];
        loop {
            // Mostly there is room, and no timer is needed.
            let written = match self.send.write(&mut line).now_or_never() {
                Some(written) => written,
                None => timeout(self.timeout, self.send.write(&mut line)).await.map_err(|_elapsed| Unwritten::Slow)?,
            };
            if written.map_err(|_ended| Unwritten::Unwanted)? == 1 {
                break;
            }
        }
        self.copies.written(frame);
        self.sent.inc();
        Ok(())
    }
}

enum Next {
    Inline(Option<Answers>),
    Event(Option<Encoded>),
}
