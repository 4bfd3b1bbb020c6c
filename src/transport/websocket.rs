//! WebSockets: the upgrade, and the checks before it. The socket's life is in `driver`.
//!
//! Whoever fails a check gets an HTTP answer and holds nothing afterwards: the connection is opened last, and
//! closes when it is dropped.

mod driver;
mod socket;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Version, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::FutureExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    rt::TokioIo,
    server::conn::auto::upgrade::{self, downcast},
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use self::{
    driver::{Driver, Limits},
    socket::Socket,
};
use super::tcp::{self, Upgradable, contain, problem};
use crate::{
    chat::ErrorCode,
    connection::{self, Connection, Gate, Transport},
    lifecycle::Lifecycle,
    metrics::Metrics,
    protocol::{ClientFrame, CloseCode, Request as Asked, SUBPROTOCOL},
};

/// How long the 101 may take to reach the client.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// What `GET {prefix}/ws` needs.
pub struct Endpoint {
    /// makes connections
    pub gate: Arc<Gate>,
    /// whether a page of this origin may connect; asked only where an `Origin` is present
    pub origin_allowed: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// whether the token may be in the query, as clients of the predecessor send it
    pub allow_query_token: bool,
    /// where refusals and frames are counted
    pub metrics: Arc<Metrics>,
    /// owns the task of each socket
    pub lifecycle: Lifecycle,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

impl Endpoint {
    /// The route at `path`, to be merged into the router that [`super::tcp::Server`] serves.
    pub fn route(self, path: &str) -> axum::Router {
        axum::Router::new().route(path, get(open)).with_state(Arc::new(self))
    }

    fn refuse(&self, reason: &'static str, status: StatusCode, code: ErrorCode, detail: &str) -> Response {
        self.metrics.refusals_total.with_label_values(&[reason]).inc();
        problem(status, code, detail)
    }
}

/// What a client asked for, once everything about it is in order.
struct Hello {
    accept: HeaderValue,
    upgrade: OnUpgrade,
    subprotocol: bool,
    token: Option<String>,
}

impl Hello {
    /// Whether a client of the predecessor says it: those know no subprotocol.
    const fn old(&self) -> bool {
        self.token.is_some() && !self.subprotocol
    }
}

async fn open(
    State(endpoint): State<Arc<Endpoint>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request<Body>,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let hello = match read_hello(&endpoint, &mut parts) {
        Ok(hello) => hello,
        Err(refusal) => return *refusal,
    };
    let known = connection::Hello { token: hello.token.clone(), old: hello.old() };
    let connection = match endpoint.gate.open(Transport::WebSocket, peer.ip(), known) {
        Ok(connection) => connection,
        Err(code) => return too_many(&endpoint, code),
    };
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, hello.accept.clone());
    if hello.subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    let (lifecycle, metrics) = (endpoint.lifecycle.clone(), Arc::clone(&endpoint.metrics));
    // Boxed, so that each wake-up finds what is around it in one place.
    let served = Box::pin(serve(endpoint, hello, connection));
    lifecycle.spawn(async move { contain(&metrics, served).await.unwrap_or_default() });
    response
}

fn too_many(endpoint: &Endpoint, code: CloseCode) -> Response {
    let (reason, status, code) = match code {
        CloseCode::GoingAway => ("draining", StatusCode::SERVICE_UNAVAILABLE, ErrorCode::GoingAway),
        _ => ("connections", StatusCode::TOO_MANY_REQUESTS, ErrorCode::ConnectionLimitExceeded),
    };
    let mut response = endpoint.refuse(reason, status, code, code.sentence());
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// RFC 6455, section 4.2.1. The error is boxed, being larger than what is usual.
fn read_hello(endpoint: &Endpoint, parts: &mut Parts) -> Result<Hello, Box<Response>> {
    let refuse = |reason, status, detail: &str| {
        let code =
            if status == StatusCode::FORBIDDEN { ErrorCode::InsufficientPermissions } else { ErrorCode::InvalidFormat };
        Box::new(endpoint.refuse(reason, status, code, detail))
    };
    let headers = &parts.headers;
    let allowed = |origin: &HeaderValue| origin.to_str().is_ok_and(|origin| (endpoint.origin_allowed)(origin));
    if !headers.get_all(header::ORIGIN).iter().all(allowed) {
        return Err(refuse("origin", StatusCode::FORBIDDEN, "this origin is not allowed"));
    }
    if parts.version != Version::HTTP_11 {
        let detail = "a WebSocket is opened over HTTP/1.1";
        return Err(refuse("handshake", StatusCode::UPGRADE_REQUIRED, detail));
    }
    if !lists(headers, &header::UPGRADE, "websocket") || !lists(headers, &header::CONNECTION, "upgrade") {
        let mut response = refuse("handshake", StatusCode::UPGRADE_REQUIRED, "this is a WebSocket endpoint");
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        return Err(response);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let detail = "the WebSocket version is not supported (have `13`)";
        let mut response = refuse("handshake", StatusCode::UPGRADE_REQUIRED, detail);
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    let accept = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| nonce(key)).and_then(|key| {
        let accept = derive_accept_key(key.as_bytes());
        HeaderValue::try_from(accept).ok()
    });
    let (Some(accept), Some(upgrade)) = (accept, parts.extensions.remove::<OnUpgrade>()) else {
        return Err(refuse("handshake", StatusCode::BAD_REQUEST, "`Sec-WebSocket-Key` is not 16 bytes in base64"));
    };
    let subprotocol = listed(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|name| name == SUBPROTOCOL);
    Ok(Hello { accept, upgrade, subprotocol, token: token(endpoint, parts) })
}

/// The items of a header that is a list, over all its lines.
fn listed<'a>(headers: &'a HeaderMap, name: &'a header::HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn lists(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
    listed(headers, name).any(|item| item.eq_ignore_ascii_case(wanted))
}

fn nonce(key: &HeaderValue) -> bool {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16)
}

/// The header first, then the subprotocols, then the query where that is allowed.
fn token(endpoint: &Endpoint, parts: &Parts) -> Option<String> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = header.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    let offered = || {
        let mut names = listed(&parts.headers, &header::SEC_WEBSOCKET_PROTOCOL);
        names.find_map(|name| name.strip_prefix("bearer.")).map(str::to_owned)
    };
    let query = || {
        let query = parts.uri.query().filter(|_| endpoint.allow_query_token)?;
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == "token").map(|(_, token)| token.into_owned())
    };
    bearer.or_else(offered).or_else(query).filter(|token| !token.is_empty())
}

async fn serve(endpoint: Arc<Endpoint>, hello: Hello, connection: Connection) {
    let old = hello.old();
    let frame_bytes_max = endpoint.gate.frame_bytes_max();
    // Each stage has memory of its own and gives it back: an idle socket pays for the last one alone.
    let Some(socket) = Box::pin(upgrade(hello, frame_bytes_max)).await else {
        endpoint.metrics.refusals_total.with_label_values(&["handshake"]).inc();
        return connection.closed(CloseCode::Done);
    };
    let handler = connection.clone();
    let handle = move |request| {
        let connection = handler.clone();
        async move { connection.handle_request(request).await }.boxed()
    };
    let limits = Limits { frame_bytes_max, write_timeout: endpoint.gate.write_timeout() };
    let mut driver = Box::new(Driver::new(socket, handle, Arc::clone(&endpoint.metrics), limits));
    // A client of the predecessor sends no `attach`.
    if old {
        driver.begin(Asked { id: None, frame: ClientFrame::Attach(Box::default()) });
    }
    let code = driver.run(connection.over(), endpoint.lifecycle.stopping(), || connection.too_large(true)).await;
    connection.closed(code);
}

/// Waits until the 101 is on its way, and takes the socket over.
async fn upgrade(hello: Hello, frame_bytes_max: usize) -> Option<Socket<tcp::Socket>> {
    let upgraded = timeout(UPGRADE_DEADLINE, hello.upgrade).await.ok()?.ok()?;
    let upgrade::Parts { io, read_buf, .. } = downcast::<TokioIo<Upgradable>>(upgraded).ok()?;
    let stream: tcp::Socket = io.into_inner().into_inner();
    // A copy, and none where nothing came early: the original would keep hyper's whole buffer alive.
    let early = read_buf.to_vec();
    drop(read_buf);
    Some(Socket::new(stream, early, frame_bytes_max))
}
