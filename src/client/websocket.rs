//! A WebSocket as a link. One task drives the socket; `routes` says whose frame it is.

mod routes;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::IntoClientRequest as _,
        http::HeaderValue,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use tokio_util::task::TaskTracker;
use url::Url;
use uuid::Uuid;

use self::routes::{Answer, Purpose, Routes};
use super::{Closed, Error, dial, lines::FRAME_BYTES_MAX, link::Asked, link::OPEN_DEADLINE};
use crate::protocol::{CloseCode, SUBPROTOCOL};

/// Room for usual frames, in each direction. The library's default of 128 KiB is made for fewer sockets.
const BUFFER_BYTES: usize = 4 * 1024;

/// Frames of one exchange that are not read yet. Beyond it the socket is not read.
const QUEUE_FRAMES: usize = 64;

/// Requests that wait to be written.
const REQUESTS: usize = 16;

/// Exchanges and watches at a time; more than any server grants.
const EXCHANGES_MAX: usize = 1024;

/// The server pings every 25 seconds. After so long without a byte it is gone.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long a full socket may take nothing.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// How long the peer has to answer our close frame.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// One socket, as its link holds it.
#[derive(Debug)]
pub(super) struct Socket {
    requests: mpsc::Sender<Request>,
    places: Arc<Semaphore>,
    state: Arc<State>,
}

/// What came of the socket, and what is wished for it.
#[derive(Debug)]
struct State {
    /// how it ended, once it has
    closed: watch::Sender<Option<Closed>>,
    /// the code to close it with, once that is wished for
    closing: watch::Sender<Option<CloseCode>>,
    /// a watch is not read any more
    left: Notify,
}

/// The answers of one exchange, or the events of one watch.
#[derive(Debug)]
pub(super) struct Answers {
    frames: mpsc::Receiver<Answer>,
    requests: mpsc::Sender<Request>,
    /// to send further frames with, on a watch
    answers: Option<mpsc::WeakSender<Answer>>,
    state: Arc<State>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// The way up of a watch.
#[derive(Debug)]
pub(super) struct Requests {
    requests: mpsc::Sender<Request>,
    answers: mpsc::WeakSender<Answer>,
    state: Arc<State>,
}

/// What the task is to write, and where the answers go.
#[derive(Debug)]
struct Request {
    frame: Utf8Bytes,
    id: Option<Uuid>,
    purpose: Purpose,
    answers: mpsc::Sender<Answer>,
}

impl Socket {
    /// Upgrades a connection.
    pub(super) async fn open<S>(url: &Url, stream: S, tasks: &TaskTracker) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut request = url.as_str().into_client_request().map_err(|err| Error::unreachable(url, err))?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        let opened = client_async_with_config(request, stream, Some(config)).await;
        let (socket, _response) = opened.map_err(|err| match err {
            tungstenite::Error::Http(response) => dial::refused(url, response.status()),
            err => Error::unreachable(url, err),
        })?;
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let state = Arc::new(State {
            closed: watch::Sender::default(),
            closing: watch::Sender::default(),
            left: Notify::new(),
        });
        let driver =
            Driver { socket, inbox, routes: Routes::default(), state: Arc::clone(&state), heard: Instant::now() };
        tasks.spawn(driver.run());
        Ok(Self { requests, places: Arc::new(Semaphore::new(EXCHANGES_MAX)), state })
    }

    pub(super) async fn exchange(&self, frame: &[u8], asked: &Asked<'_>) -> Result<Answers, Error> {
        let id = asked.id.ok_or(Error::Protocol("an exchange over a WebSocket needs an id"))?;
        let place = timeout(OPEN_DEADLINE, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_elapsed| Error::Timeout("a place"))?;
        let place = place.map_err(|_never_closed| Error::Closed(self.state.end()))?;
        let (answers, frames) = mpsc::channel(QUEUE_FRAMES);
        let purpose = Purpose::of(asked);
        let watch = matches!(purpose, Purpose::Watch(_));
        let request = Request { frame: text(frame)?, id: Some(id), purpose, answers: answers.clone() };
        self.state.hand_over(&self.requests, request).await?;
        let (requests, state) = (self.requests.clone(), Arc::clone(&self.state));
        Ok(Answers { frames, requests, answers: watch.then(|| answers.downgrade()), state, over: false, _place: place })
    }

    pub(super) async fn closed(&self) -> Closed {
        let mut closed = self.state.closed.subscribe();
        // The sender is held by this very socket, so waiting ends with a value.
        let end = closed.wait_for(Option::is_some).await.map(|end| end.clone());
        end.ok().flatten().unwrap_or_else(|| self.state.end())
    }

    pub(super) fn close(&self, code: CloseCode) {
        self.state.closing.send_if_modified(|wish| wish.replace(code).is_none());
    }
}

impl State {
    /// How the socket ended.
    fn end(&self) -> Closed {
        self.closed.borrow().clone().unwrap_or_else(|| Closed::lost("the socket is gone"))
    }

    async fn hand_over(&self, requests: &mpsc::Sender<Request>, request: Request) -> Result<(), Error> {
        if self.closed.borrow().is_some() {
            return Err(Error::Closed(self.end()));
        }
        let sent = timeout(OPEN_DEADLINE, requests.send(request)).await;
        sent.map_err(|_elapsed| Error::Timeout("a frame"))?.map_err(|_gone| Error::Closed(self.end()))
    }
}

impl Answers {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.over {
            return Ok(None);
        }
        let Some(Answer { frame, last }) = self.frames.recv().await else {
            self.over = self.answers.is_some() && self.state.closed.borrow().is_none();
            return if self.over { Ok(None) } else { Err(Error::Closed(self.state.end())) };
        };
        self.over = last;
        Ok(Some(frame))
    }

    pub(super) async fn send(&self, frame: &[u8], asked: &Asked<'_>) -> Result<(), Error> {
        self.requests().ok_or(Error::Protocol("a request has one frame"))?.send(frame, asked).await
    }

    pub(super) fn requests(&self) -> Option<Requests> {
        let answers = self.answers.clone()?;
        Some(Requests { requests: self.requests.clone(), answers, state: Arc::clone(&self.state) })
    }
}

impl Requests {
    pub(super) async fn send(&self, frame: &[u8], asked: &Asked<'_>) -> Result<(), Error> {
        let answers = self.answers.upgrade().ok_or_else(|| Error::Closed(self.state.end()))?;
        let request = Request { frame: text(frame)?, id: asked.id, purpose: Purpose::Inline, answers };
        self.state.hand_over(&self.requests, request).await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.answers.is_some() && !self.over {
            // The queue must be closed by the time that the driver looks.
            self.frames.close();
            self.state.left.notify_one();
        }
    }
}

/// The code that the link is to be closed with, once there is one.
async fn wished(closing: &mut watch::Receiver<Option<CloseCode>>) -> CloseCode {
    closing.wait_for(Option::is_some).await.ok().and_then(|code| *code).unwrap_or(CloseCode::Done)
}

fn text(frame: &[u8]) -> Result<Utf8Bytes, Error> {
    Utf8Bytes::try_from(frame.to_vec()).map_err(|_not_utf8| Error::Protocol("what was to be sent is no frame"))
}

/// Drives one socket until it ends.
struct Driver<S> {
    socket: WebSocketStream<S>,
    inbox: mpsc::Receiver<Request>,
    routes: Routes,
    state: Arc<State>,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    async fn run(mut self) {
        let end = self.drive().await;
        self.state.closed.send_replace(Some(end));
        // The queues end with the routes, after the reason is known.
        drop(self.routes);
    }

    async fn drive(&mut self) -> Closed {
        let state = Arc::clone(&self.state);
        let mut closing = state.closing.subscribe();
        loop {
            tokio::select! {
                biased;
                code = wished(&mut closing) => return self.close(code).await,
                () = self.routes.room(), if self.routes.blocked() => {}
                () = state.left.notified() => {
                    if let Err(end) = self.detach().await {
                        return end;
                    }
                }
                Some(request) = self.inbox.recv() => {
                    if let Err(end) = self.write(request).await {
                        return end;
                    }
                }
                message = self.socket.next(), if !self.routes.blocked() => {
                    self.heard = Instant::now();
                    if let Some(end) = self.read(message) {
                        return end;
                    }
                }
                () = sleep_until(self.heard + IDLE_MAX), if !self.routes.blocked() => {
                    return Closed::lost("the server is silent");
                }
            }
        }
    }

    /// Ends the watches that are not read any more.
    async fn detach(&mut self) -> Result<(), Closed> {
        let Self { socket, routes, .. } = self;
        let written = async {
            for frame in routes.left() {
                socket.feed(Message::text(frame)).await?;
            }
            socket.flush().await
        };
        in_time(written).await
    }

    /// Writes what waits in one go.
    async fn write(&mut self, first: Request) -> Result<(), Closed> {
        let Self { socket, inbox, routes, .. } = self;
        let written = async {
            let mut next = Some(first);
            while let Some(Request { frame, id, purpose, answers }) = next {
                routes.expect(id, purpose, answers);
                socket.feed(Message::Text(frame)).await?;
                next = inbox.try_recv().ok();
            }
            socket.flush().await
        };
        in_time(written).await
    }

    /// Takes a message; `Some` ends the socket.
    fn read(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Option<Closed> {
        match message {
            Some(Ok(Message::Text(text))) => {
                self.routes.take(&text.into());
                if self.routes.forsaken() {
                    self.state.left.notify_one();
                }
                None
            }
            Some(Ok(Message::Close(frame))) => Some(frame.map_or_else(
                || Closed::lost("the socket is closed"),
                |CloseFrame { code, reason }| Closed {
                    code: CloseCode::from_websocket(code.into()),
                    reason: reason.to_string(),
                },
            )),
            Some(Ok(_control)) => None,
            Some(Err(err)) => Some(Closed::lost(err.to_string())),
            None => Some(Closed::lost("the socket is gone")),
        }
    }

    async fn close(&mut self, code: CloseCode) -> Closed {
        let frame = CloseFrame { code: code.websocket().into(), reason: Utf8Bytes::from_static(code.reason()) };
        let parting = async {
            self.socket.send(Message::Close(Some(frame))).await?;
            while self.socket.next().await.transpose()?.is_some() {}
            Ok::<_, tungstenite::Error>(())
        };
        // A peer that does not answer has nothing more to say.
        drop(timeout(CLOSE_DEADLINE, parting).await);
        Closed::by(code)
    }
}

/// Writes with a deadline.
async fn in_time(written: impl Future<Output = Result<(), tungstenite::Error>>) -> Result<(), Closed> {
    let written =
        timeout(WRITE_DEADLINE, written).await.map_err(|_elapsed| Closed::lost("the server reads nothing"))?;
    written.map_err(|err| Closed::lost(err.to_string()))
}
