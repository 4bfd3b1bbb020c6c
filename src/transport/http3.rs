//! One HTTP/3 connection: ordinary requests go to the `axum::Router`, the rest to whoever drives it.
//!
//! The first request decides what a connection is for: a CONNECT makes it a chat connection, on which the stream
//! credit stays as it is; any other makes it an HTTP connection, with more credit, on which a CONNECT is answered
//! with 421. It does not know what a WebTransport session is.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::ConnectInfo};
use bytes::{Buf as _, Bytes};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use h3::{
    error::{Code, ConnectionError, StreamError},
    frame::FrameStream,
    server::RequestStream,
    stream::BufRecvStream,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tower::ServiceExt as _;

use super::demux::{self, Bidi, Demux, Peeled, Receive, varint};
use crate::metrics::Metrics;

/// Advertised; a larger header section is answered with 431.
const HEADER_BYTES_MAX: u64 = 16 * 1024;

/// Requests at a time on an HTTP connection (RFC 9114, section 6.1, asks for at least 100).
const HTTP_STREAMS: u32 = 100;

/// How long SETTINGS may take to leave, and a request's header section to arrive.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a new connection may take to make its first request.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// How long an HTTP connection is kept with no request running; the keep-alive would hold it for ever.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a handler may take to answer after the last piece of the request that it took.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a client may leave a body unsent, or [`PIECE_BYTES`] of one unread.
const STALL_DEADLINE: Duration = Duration::from_secs(30);

/// Bodies are written in pieces, so that a slow client is told from one that has stopped reading.
const PIECE_BYTES: usize = 64 * 1024;

/// How long GOAWAY may take to leave.
const GOAWAY_DEADLINE: Duration = Duration::from_secs(1);

/// What a connection turned out to be for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    Undecided,
    Http,
    Chat,
}

/// The driver of one connection.
pub(crate) struct Http3 {
    server: h3::server::Connection<Demux, Bytes>,
    quic_conn: quinn::Connection,
    app: axum::Router,
    metrics: Arc<Metrics>,
    purpose: Purpose,
    served: bool,
    draining: bool,
    resolving: FuturesUnordered<BoxFuture<'static, Option<Resolved>>>,
    requests: JoinSet<()>,
    idle: Option<Pin<Box<Sleep>>>,
}

/// What the owner of the connection has to decide.
pub(crate) enum Event {
    /// The first request is a CONNECT: answer it, and call [`Http3::chat`] if it is accepted.
    Connect(Box<Connect>),
    /// A WebTransport stream of a chat connection.
    Stream(Peeled),
    /// The connection is lost, or not needed any longer.
    Over,
}

/// A CONNECT request that has not been answered.
pub(crate) struct Connect {
    pub(crate) request: Request<()>,
    pub(crate) stream: RequestStream<Bidi, Bytes>,
}

struct Resolved {
    connect: Connect,
    stopped: BoxFuture<'static, ()>,
}

impl Http3 {
    /// Sends SETTINGS.
    ///
    /// # Errors
    /// When the connection is lost, or the client permits too few streams for too long.
    pub(crate) async fn start(
        quic_conn: quinn::Connection,
        app: axum::Router,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ConnectionError> {
        let demux = Demux::new(quic_conn.clone(), Arc::clone(&metrics));
        let mut builder = h3::server::builder();
        builder
            .max_field_section_size(HEADER_BYTES_MAX)
            .enable_extended_connect(true)
            .enable_webtransport(true)
            .enable_datagram(true)
            .max_webtransport_sessions(1)
            // Random settings and frames would make the bytes untestable.
            .send_grease(false);
        let server = timeout(HEADER_DEADLINE, builder.build(demux)).await;
        Ok(Self {
            server: server.unwrap_or(Err(ConnectionError::Timeout))?,
            quic_conn,
            app,
            metrics,
            purpose: Purpose::Undecided,
            served: false,
            draining: false,
            resolving: FuturesUnordered::new(),
            requests: JoinSet::new(),
            idle: None,
        })
    }

    /// The QUIC connection underneath.
    pub(crate) const fn quic_conn(&self) -> &quinn::Connection {
        &self.quic_conn
    }

    /// The CONNECT was accepted.
    pub(crate) fn chat(&mut self) {
        self.purpose = Purpose::Chat;
        self.idle = None;
    }

    /// Tells the client to open no more requests; those that run go on. [`Event::Over`] comes after the last.
    pub(crate) async fn drain(&mut self) {
        self.draining = true;
        // Without an answer the client learns it when the connection closes.
        drop(timeout(GOAWAY_DEADLINE, self.server.shutdown(0)).await);
    }

    /// Serves requests until there is something to decide. Cancel safe.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let busy = !self.requests.is_empty() || !self.resolving.is_empty();
            if self.draining && !busy && self.purpose != Purpose::Chat {
                return Event::Over;
            }
            self.arm_idle(busy);
            let purpose = self.purpose;
            tokio::select! {
                biased;
                Some(done) = self.requests.join_next(), if !self.requests.is_empty() => {
                    if done.is_err_and(|error| error.is_panic()) {
                        self.metrics.panics_total.inc();
                    }
                }
                Some(resolved) = self.resolving.next(), if !self.resolving.is_empty() => {
                    if let Some(event) = resolved.and_then(|resolved| self.begin(resolved)) {
                        return event;
                    }
                }
                incoming = poll_fn(|cx| poll_server(&mut self.server, purpose, cx)) => match incoming {
                    Incoming::Request(stream) => self.resolve(*stream),
                    Incoming::Stream(stream) if purpose == Purpose::Chat => return Event::Stream(stream),
                    Incoming::Stream(stream) => stream.reject(),
                    Incoming::Over => return Event::Over,
                },
                () = idle(&mut self.idle), if self.idle.is_some() => {
                    let reason = if self.served { "idle" } else { "no_request" };
                    tracing::debug!(reason, "HTTP/3 connection closed");
                    return Event::Over;
                }
            }
        }
    }

    /// Where the streams of a chat connection come from. What else comes is only seen by [`Self::next`].
    pub(crate) const fn streams(&mut self) -> &mut Demux {
        &mut self.server.inner.conn
    }

    fn arm_idle(&mut self, busy: bool) {
        if busy || self.purpose == Purpose::Chat {
            self.idle = None;
        } else if self.idle.is_none() {
            let deadline = if self.served { IDLE_DEADLINE } else { FIRST_REQUEST_DEADLINE };
            self.idle = Some(Box::pin(sleep(deadline)));
        }
    }

    /// Reads a request's header section beside everything else.
    fn resolve(&mut self, stream: Bidi) {
        let stopped = Box::pin(stream.stopped());
        let serving = stream.serving();
        let resolver = self.server.create_resolver(FrameStream::new(BufRecvStream::new(stream)));
        let metrics = Arc::clone(&self.metrics);
        self.resolving.push(Box::pin(async move {
            match timeout(HEADER_DEADLINE, resolver.resolve_request()).await {
                Ok(Ok((request, stream))) => {
                    serving.store(true, Ordering::Relaxed);
                    Some(Resolved { connect: Connect { request, stream }, stopped })
                }
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "request refused");
                    metrics.streams_broken_total.with_label_values(&["request_header"]).inc();
                    None
                }
                Err(_) => {
                    metrics.streams_broken_total.with_label_values(&["header_deadline"]).inc();
                    None
                }
            }
        }));
    }

    /// Starts an ordinary request, or hands out the CONNECT that decides.
    fn begin(&mut self, resolved: Resolved) -> Option<Event> {
        self.served = true;
        let Resolved { connect, stopped } = resolved;
        if connect.request.method() == Method::CONNECT {
            if self.purpose == Purpose::Undecided {
                return Some(Event::Connect(Box::new(connect)));
            }
            self.metrics.refusals_total.with_label_values(&["connect_misdirected"]).inc();
            self.requests.spawn(refuse(connect, StatusCode::MISDIRECTED_REQUEST));
            return None;
        }
        if self.purpose == Purpose::Undecided {
            self.purpose = Purpose::Http;
            self.quic_conn.set_max_concurrent_bi_streams(HTTP_STREAMS.into());
        }
        let peer = self.quic_conn.remote_address();
        let (app, metrics) = (self.app.clone(), Arc::clone(&self.metrics));
        self.requests.spawn(async move {
            tokio::select! {
                biased;
                // Also when the client has the whole response; by then there is nothing left to do.
                () = stopped => {}
                served = serve(app, connect, peer) => if let Err(failure) = served {
                    tracing::debug!(error = &failure as &dyn std::error::Error, "request failed");
                    metrics.streams_broken_total.with_label_values(&[failure.reason()]).inc();
                }
            }
        });
        None
    }

    /// Answers a CONNECT that is not accepted.
    pub(crate) fn refuse(&mut self, connect: Connect, status: StatusCode) {
        self.requests.spawn(refuse(connect, status));
    }

    /// Closes the connection; the client is told that nothing is wrong.
    pub(crate) fn close(&self, reason: &str) {
        self.quic_conn.close(varint(Code::H3_NO_ERROR.value()), reason.as_bytes());
    }
}

enum Incoming {
    Request(Box<Bidi>),
    Stream(Peeled),
    Over,
}

/// Polling h3 is what drives the demultiplexer; only then is it known which streams are not for h3. Before the
/// first request they wait; there are at most as many as the first credit permits.
fn poll_server(
    server: &mut h3::server::Connection<Demux, Bytes>,
    purpose: Purpose,
    cx: &mut Context<'_>,
) -> Poll<Incoming> {
    match server.poll_accept_request_stream(cx) {
        Poll::Ready(Ok(Some(stream))) => return Poll::Ready(Incoming::Request(Box::new(stream))),
        Poll::Ready(Ok(None)) => return Poll::Ready(Incoming::Over),
        Poll::Ready(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "HTTP/3 connection over");
            return Poll::Ready(Incoming::Over);
        }
        Poll::Pending if purpose == Purpose::Undecided => return Poll::Pending,
        Poll::Pending => {}
    }
    demux::next(&mut server.inner.conn.peeled).map_or(Poll::Pending, |stream| Poll::Ready(Incoming::Stream(stream)))
}

async fn idle(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => std::future::pending().await,
    }
}

async fn refuse(mut connect: Connect, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let refused = async {
        connect.stream.send_response(response).await?;
        connect.stream.finish().await
    };
    // A client that does not wait for its refusal needs none.
    drop(timeout(STALL_DEADLINE, refused).await);
}

/// Why a request was not served to its end.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("stream failed")]
    Stream(#[from] StreamError),
    #[error("client has stopped reading")]
    Stalled(#[from] tokio::time::error::Elapsed),
    #[error("response body failed")]
    Body(#[source] axum::Error),
}

impl Failure {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Stream(_) => "request",
            Self::Stalled(_) => "response_stalled",
            Self::Body(_) => "response_body",
        }
    }
}

async fn serve(app: axum::Router, connect: Connect, peer: SocketAddr) -> Result<(), Failure> {
    let Connect { request, stream } = connect;
    let (mut send, receive) = stream.split();
    let progress = Arc::new(Notify::new());
    let body = RequestBody { receive, part: Part::Data, stalled: None, progress: Arc::clone(&progress) };
    let mut request = request.map(|()| Body::new(body));
    complete(&mut request);
    request.extensions_mut().insert(ConnectInfo(peer));
    let head = request.method() == Method::HEAD;
    let response = answer(app, request, &progress).await;
    let (mut parts, mut body) = response.into_parts();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    let empty = head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    timeout(STALL_DEADLINE, send.send_response(Response::from_parts(parts, ()))).await??;
    while !empty && let Some(frame) = body.frame().await {
        match frame.map_err(Failure::Body)?.into_data() {
            Ok(mut data) => {
                while data.has_remaining() {
                    let piece = data.split_to(data.len().min(PIECE_BYTES));
                    timeout(STALL_DEADLINE, send.send_data(piece)).await??;
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    timeout(STALL_DEADLINE, send.send_trailers(trailers)).await??;
                }
            }
        }
    }
    Ok(send.finish().await?)
}

/// Forbidden in HTTP/3 (RFC 9114, section 4.2).
const HOP_BY_HOP: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Calls the handler. Its deadline starts anew with every piece of the request that it takes.
async fn answer(app: axum::Router, request: Request<Body>, progress: &Notify) -> Response<Body> {
    let mut call = pin!(app.oneshot(request));
    loop {
        tokio::select! {
            biased;
            Ok(response) = &mut call => return response,
            () = progress.notified() => {}
            () = sleep(RESPONSE_DEADLINE) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                return response;
            }
        }
    }
}

/// Makes a request look as it would over HTTP/1.1: with a `Host`, and with one `Cookie`
/// (RFC 9114, sections 4.3.1 and 4.2.1).
fn complete<B>(request: &mut Request<B>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().entry(header::HOST).or_insert(authority);
    }
    if let Some(cookie) = join_cookies(request.headers()) {
        request.headers_mut().insert(header::COOKIE, cookie);
    }
}

fn join_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() < 2 {
        return None;
    }
    HeaderValue::from_bytes(&cookies.join(&b"; "[..])).ok()
}

/// The body of a request as it comes in.
struct RequestBody {
    receive: RequestStream<Receive, Bytes>,
    part: Part,
    stalled: Option<Pin<Box<Sleep>>>,
    progress: Arc<Notify>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Trailers,
    End,
}

/// Why a request's body broke off.
#[derive(Debug, thiserror::Error)]
enum BrokenBody {
    #[error("stream failed")]
    Stream(#[from] StreamError),
    #[error("client has stopped sending")]
    Stalled,
}

type Frame = http_body::Frame<Bytes>;

impl RequestBody {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        if self.part == Part::Data {
            if let Some(mut data) = ready!(self.receive.poll_recv_data(cx))? {
                return Poll::Ready(Ok(Some(Frame::data(data.copy_to_bytes(data.remaining())))));
            }
            self.part = Part::Trailers;
        }
        if self.part == Part::Trailers {
            let trailers = ready!(self.receive.poll_recv_trailers(cx))?;
            self.part = Part::End;
            return Poll::Ready(Ok(trailers.map(Frame::trailers)));
        }
        Poll::Ready(Ok(None))
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BrokenBody>>> {
        let this = &mut *self;
        if let Poll::Ready(part) = this.poll_part(cx) {
            this.stalled = None;
            this.progress.notify_one();
            if part.is_err() {
                this.part = Part::End;
            }
            return Poll::Ready(part.map_err(BrokenBody::from).transpose());
        }
        let timer = this.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_DEADLINE)));
        ready!(timer.as_mut().poll(cx));
        this.part = Part::End;
        Poll::Ready(Some(Err(BrokenBody::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.part == Part::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_gets_its_host_and_one_cookie() {
        let mut request = Request::get("https://example.com:8443/a").body(()).unwrap();
        for cookie in ["a=1", "b=2"] {
            request.headers_mut().append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        complete(&mut request);
        assert_eq!(request.headers().get(header::HOST).unwrap(), "example.com:8443");
        let cookies: Vec<_> = request.headers().get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
    }
}
