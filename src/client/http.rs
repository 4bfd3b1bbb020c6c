//! The routes beside the connection: HTTP/3 where the site has QUIC, else HTTP/2 or 1.1 over TCP.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use url::Url;

use super::{Dialer, Error, event::Reply, site, turns};
use crate::{
    chat::SessionId,
    protocol::{ErrorBody, ServerFrame},
};

const DEADLINE: Duration = Duration::from_secs(15);

/// Longest answer that is read. An export of a very long session is longer, and an error.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An HTTP/3 connection, which is there or on its way. Calls that come meanwhile wait for the same one.
type Connecting = Shared<BoxFuture<'static, Result<Connection, Error>>>;

/// How long an HTTP/3 connection may take; then TCP carries the call.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Sends requests of one client. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Http(Arc<Kept>);

#[derive(Default)]
struct Kept {
    /// the HTTP/3 connection of the moment
    http3: Mutex<Option<Connecting>>,
    /// drive HTTP/3 connections, each until it is over
    drivers: TaskTracker,
}

#[derive(Clone)]
struct Connection {
    quic_conn: quinn::Connection,
    requests: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
}

/// A request to a route.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// below the base, each part encoded
    pub(super) path: String,
    pub(super) body: Option<Value>,
}

impl Call {
    pub(super) const fn get(path: String) -> Self {
        Self { method: Method::GET, path, body: None }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

impl Http {
    /// Sends a request and reads the answer as JSON.
    pub(super) async fn json<T: DeserializeOwned>(&self, dialer: &Dialer, token: &str, call: Call) -> Result<T, Error> {
        let body = self.bytes(dialer, token, call).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_not_json| Error::Protocol("an answer is not what the route gives"))
    }

    /// Sends a request and reads the answer whole.
    pub(super) async fn bytes(&self, dialer: &Dialer, token: &str, call: Call) -> Result<Bytes, Error> {
        let answered = timeout(DEADLINE, self.send(dialer, token, &call)).await;
        let (status, body) = answered.map_err(|_elapsed| {
            // The path of the connection may be dead, which it would notice much later.
            self.forget(|_any| true);
            Error::Timeout("the answer")
        })??;
        if status.is_success() {
            return Ok(body);
        }
        #[derive(serde::Deserialize)]
        struct Problem {
            code: crate::chat::ErrorCode,
            detail: String,
            retryable: bool,
            retry_after_ms: Option<u64>,
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(Problem { code, detail, retryable, retry_after_ms }) => Err(Error::Answered(ErrorBody {
                code,
                message: detail,
                recoverable: retryable,
                retry_after: retry_after_ms,
            })),
            Err(_no_problem) => Err(Error::Refused { what: call.path, status }),
        }
    }

    async fn send(&self, dialer: &Dialer, token: &str, call: &Call) -> Result<(StatusCode, Bytes), Error> {
        if let Some(url) = dialer.site().webtransport.as_ref().filter(|_| dialer.quic_works())
            && let Ok(Connection { quic_conn, requests }) = self.http3(dialer, url).await
        {
            let answered = over_quic(requests, url, dialer.site(), token, call).await;
            if answered.is_err() {
                self.forget(|kept| kept.quic_conn.stable_id() == quic_conn.stable_id());
            }
            // What is harmless to repeat goes another way.
            if !matches!(answered, Err(Error::Unreachable { .. })) || call.method == Method::POST {
                return answered;
            }
        }
        over_tcp(dialer.site(), token, call).await
    }

    /// The connection that is kept, if it has not ended; else another one.
    fn http3(&self, dialer: &Dialer, url: &Url) -> Connecting {
        let lives = |kept: &&Connecting| match kept.peek() {
            Some(Ok(connection)) => connection.quic_conn.close_reason().is_none(),
            Some(Err(_)) => false,
            None => true,
        };
        let mut http3 = self.0.http3.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = http3.as_ref().filter(lives) {
            return kept.clone();
        }
        let connecting = connect(dialer.clone(), url.clone(), self.0.drivers.clone()).boxed().shared();
        http3.insert(connecting).clone()
    }

    /// Keeps the connection no longer, if it is the one that is meant.
    fn forget(&self, meant: impl Fn(&Connection) -> bool) {
        let mut http3 = self.0.http3.lock().unwrap_or_else(PoisonError::into_inner);
        http3.take_if(|kept| kept.peek().is_some_and(|kept| kept.as_ref().is_ok_and(&meant)));
    }

    /// Reads a reply again, whose text was not the one that was announced. What cannot be read is left as it is.
    pub(super) async fn proved(&self, dialer: Option<Dialer>, token: Option<String>, mut reply: Reply) -> Reply {
        #[derive(serde::Deserialize)]
        struct Page {
            entries: Vec<ServerFrame>,
        }
        let (Some(dialer), Some(token)) = (dialer, token) else { return reply };
        let call = Call::get(log_path(reply.session_id, &format!("after_seq={}&limit=1", reply.seq.saturating_sub(1))));
        let Ok(page) = self.json::<Page>(&dialer, &token, call).await else { return reply };
        let found = page.entries.into_iter().find_map(|entry| match entry {
            ServerFrame::AiResponse(frame) if frame.turn_id == reply.turn_id => Some(frame),
            _ => None,
        });
        if let Some((frame, last)) = found.as_ref().and_then(|frame| Some((frame, frame.reply.as_ref()?))) {
            reply.text = frame.content.as_ref().to_owned();
            reply.sha256.clone_from(&last.sha256);
            reply.verified = turns::matches(&reply.text, last.length, &last.sha256);
        }
        reply
    }
}

/// The log of a session.
pub(super) fn log_path(session_id: SessionId, query: &str) -> String {
    format!("/sessions/{session_id}?{query}")
}

async fn connect(dialer: Dialer, url: Url, drivers: TaskTracker) -> Result<Connection, Error> {
    let connected = async {
        let quic_conn = dialer.quic(&url).await?;
        let built = h3::client::new(h3_quinn::Connection::new(quic_conn.clone())).await;
        let (mut driver, requests) = built.map_err(|err| Error::unreachable(&url, err))?;
        drivers.spawn(async move {
            let _over = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        Ok(Connection { quic_conn, requests })
    };
    timeout(CONNECT_DEADLINE, connected).await.map_err(|_elapsed| Error::Timeout("HTTP/3"))?
}

async fn over_quic(
    mut requests: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    url: &Url,
    at: &site::Site,
    token: &str,
    call: &Call,
) -> Result<(StatusCode, Bytes), Error> {
    let lost = |err: h3::error::StreamError| Error::unreachable(url, err);
    let authority = url.authority();
    let prefix = at.http.path().trim_end_matches('/');
    let request = http::Request::builder()
        .method(call.method.clone())
        .uri(format!("https://{authority}{prefix}{}", call.path))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("user-agent", concat!("chatbox/", env!("CARGO_PKG_VERSION")))
        .body(())
        .map_err(|err| Error::unreachable(url, err))?;
    let mut stream = requests.send_request(request).await.map_err(lost)?;
    let rest = async {
        if let Some(body) = &call.body {
            stream.send_data(body.to_string().into()).await?;
        }
        stream.finish().await
    };
    // A server may stop a request that it has answered, and the answer counts (RFC 9114, section 4.1).
    drop(rest.await);
    let status = stream.recv_response().await.map_err(lost)?.status();
    let mut body = Vec::new();
    while let Some(mut data) = stream.recv_data().await.map_err(lost)? {
        if body.len() + data.remaining() > BODY_BYTES_MAX {
            return Err(Error::Protocol("an answer has no end"));
        }
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    Ok((status, body.into()))
}

async fn over_tcp(at: &site::Site, token: &str, call: &Call) -> Result<(StatusCode, Bytes), Error> {
    let url = format!("{}{}", at.http.as_str().trim_end_matches('/'), call.path);
    let mut request =
        site::http_client(&at.http, at.certificate_sha256)?.request(call.method.clone(), url).bearer_auth(token);
    if let Some(body) = &call.body {
        request = request.json(body);
    }
    let mut response = request.send().await.map_err(|err| site::sorted(&at.http, err))?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(data) = response.chunk().await.map_err(|err| site::sorted(&at.http, err))? {
        if body.len() + data.len() > BODY_BYTES_MAX {
            return Err(Error::Protocol("an answer has no end"));
        }
        body.extend_from_slice(&data);
    }
    Ok((status, body.into()))
}
