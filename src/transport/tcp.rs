//! TCP listeners: HTTP/1.1 and HTTP/2, plain or over TLS, with upgrades.
//!
//! It owns the sockets and their deadlines, and knows neither routes nor frames. A slow client is cut while it
//! speaks HTTP; a socket that was upgraded leaves these deadlines behind and has its own.

mod pace;
mod tls;

pub(crate) use pace::{Socket, Writes as Upgradable};

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use hyper::{body::Incoming, rt::Executor, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::ServiceExt;

use crate::{chat::ErrorCode, lifecycle::Lifecycle, metrics::Metrics};

/// How long a TLS handshake may take, and how long the first request after it.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection may take for a request's header, the time it is idle before that included.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// A connection on which no request began for so long is told to go; what runs on it finishes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long requests may still run on a connection that was told to go. Bounds a reader that only answers pings.
const LINGER_MAX: Duration = Duration::from_secs(3600);
/// Below the idle time-outs of usual middleboxes and phones' radios.
const PING_INTERVAL: Duration = Duration::from_secs(25);
const PONG_DEADLINE: Duration = Duration::from_secs(20);
/// The first wait after `accept` failed for want of a descriptor or memory; doubles up to a second.
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const HEADER_BYTES_MAX: u32 = 16 * 1024;
const BUFFER_BYTES_MAX: usize = 64 * 1024;
const HTTP2_STREAMS_MAX: u32 = 64;
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 512 * 1024;

/// What a listener serves, and how. Cheap to clone; several listeners may share one.
#[derive(Clone, Debug)]
pub struct Server {
    /// answers every request; finds the peer in `ConnectInfo<SocketAddr>`
    pub router: axum::Router,
    /// certificates, ALPN included; absent: plain
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// one permit for each open socket, WebSockets included; taken before `accept`, so that the backlog of the
    /// kernel is the queue
    pub permits: Arc<Semaphore>,
    /// where refusals and panics are counted
    pub metrics: Arc<Metrics>,
    /// owns every task; its drain closes the listener and idle connections, its stop drops the rest
    pub lifecycle: Lifecycle,
}

impl Server {
    /// Accepts until the drain begins, then closes the listener. Returns at once; must be called in a runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket, or the socket cannot be made non-blocking.
    pub fn serve(&self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let server = self.clone();
        self.lifecycle.spawn(async move { server.accept(listener).await });
        Ok(())
    }

    async fn accept(self, listener: TcpListener) {
        let mut backoff = BACKOFF;
        let next = async || {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        loop {
            let (permit, accepted) = tokio::select! {
                biased;
                () = self.lifecycle.draining() => return,
                accepted = next() => accepted,
            };
            // The semaphore closes only when its owner has no use for new connections.
            let Ok(permit) = permit else { return };
            match accepted {
                Ok((stream, peer)) => {
                    backoff = BACKOFF;
                    let server = self.clone();
                    self.spawn(async move { server.connection(stream, peer, permit).await });
                }
                // The client went away between its SYN and our accept.
                Err(err) if matches!(err.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                }
                Err(err) => {
                    self.metrics.refusals_total.with_label_values(&["accept"]).inc();
                    tracing::warn!(error = %err, "accept failed, waiting");
                    drop(permit);
                    tokio::select! {
                        biased;
                        () = self.lifecycle.draining() => return,
                        () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                    }
                }
            }
        }
    }

    /// Starts a task that the stop drops and whose panic is contained.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (lifecycle, metrics) = (self.lifecycle.clone(), Arc::clone(&self.metrics));
        self.lifecycle.spawn(async move {
            tokio::select! {
                biased;
                () = lifecycle.stopping() => {}
                _ended = contain(&metrics, task) => {}
            }
        });
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        if let Err(err) = stream.set_nodelay(true) {
            tracing::debug!(error = %err, "socket vanished");
            return;
        }
        let socket = match &self.tls {
            None => Socket::plain(stream, permit),
            Some(config) => {
                let handshake = tls::Stream::accept(stream, Arc::clone(config));
                let Ok(Ok(stream)) = timeout(HANDSHAKE_DEADLINE, handshake).await else {
                    self.metrics.refusals_total.with_label_values(&["tls"]).inc();
                    return;
                };
                Socket::tls(stream, permit)
            }
        };
        self.http(socket, peer).await;
    }

    async fn http(&self, socket: Socket, peer: SocketAddr) {
        let requests = Arc::new(AtomicU64::new(0));
        let service = service_fn(|request: hyper::Request<Incoming>| {
            requests.fetch_add(1, Ordering::Relaxed);
            let (router, metrics) = (self.router.clone(), Arc::clone(&self.metrics));
            async move { Ok::<_, Infallible>(answer(router, request, peer, &metrics).await) }
        });
        let builder = self.builder();
        let io = TokioIo::new(pace::Writes::new(socket));
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
        let mut seen = 0;
        let mut patience = HANDSHAKE_DEADLINE;
        loop {
            tokio::select! {
                biased;
                // A connection that ends for whatever its peer did is not our failure.
                ended = connection.as_mut() => return drop(ended),
                () = self.lifecycle.draining() => break,
                () = sleep(patience) => {
                    let now = requests.load(Ordering::Relaxed);
                    if now == 0 {
                        self.metrics.refusals_total.with_label_values(&["slow"]).inc();
                        return;
                    }
                    if now == seen {
                        break;
                    }
                    (seen, patience) = (now, IDLE_MAX);
                }
            }
        }
        connection.as_mut().graceful_shutdown();
        if timeout(LINGER_MAX, connection).await.is_err() {
            self.metrics.refusals_total.with_label_values(&["slow"]).inc();
        }
    }

    fn builder(&self) -> auto::Builder<Self> {
        let mut builder = auto::Builder::new(self.clone());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .max_buf_size(BUFFER_BYTES_MAX)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .max_send_buf_size(BUFFER_BYTES_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PONG_DEADLINE);
        builder
    }
}

/// Runs the tasks of HTTP/2 streams under the same owner as their connection.
impl<F> Executor<F> for Server
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

async fn answer(
    router: axum::Router,
    request: hyper::Request<Incoming>,
    peer: SocketAddr,
    metrics: &Metrics,
) -> Response {
    let mut request = request.map(|body| Body::new(pace::Reads::new(body)));
    request.extensions_mut().insert(ConnectInfo(peer));
    match contain(metrics, router.oneshot(request)).await {
        Some(Ok(response)) => response,
        None => problem(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::ServiceError, "the request failed"),
    }
}

/// Runs `task`; a panic in it is counted, and `None` comes back.
pub(crate) fn contain<T>(metrics: &Metrics, task: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    // No `async fn`: it would have room for the task twice. What the task held is dropped with it; nothing that
    // outlives it is reached without a lock that poisons.
    AssertUnwindSafe(task).catch_unwind().map(|ended| match ended {
        Ok(value) => Some(value),
        Err(_panic) => {
            metrics.panics_total.inc();
            None
        }
    })
}

/// An answer of the transport itself, before any route: RFC 9457, with the extensions of the contract.
pub(crate) fn problem(status: StatusCode, code: ErrorCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({
        "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail, "error": detail,
        "code": code, "retryable": matches!(status.as_u16(), 429 | 500 | 503),
    });
    let mut response = (status, body.to_string()).into_response();
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
