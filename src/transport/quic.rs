//! The QUIC listener: endpoint, admission, one task for each connection, drain.
//!
//! Sized for chat: many connections that are mostly idle, few streams, small windows. It decides who may have a
//! QUIC connection; who may have a WebTransport session is the [`Host`]'s business.

use std::{
    fmt,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use futures_util::future::join_all;
use http::StatusCode;
use prometheus::IntGauge;
use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::{hkdf, hmac};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::{Instant, timeout, timeout_at},
};

use super::{
    congestion::ChatConfig,
    http3::{Connect, Event, Http3},
    tls::Tls,
    webtransport::{Host, Rules, Session},
};
use crate::{connection::Gate, lifecycle::Lifecycle, metrics::Metrics};

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long clients may take to acknowledge that their connections are closed.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// A connection without a sign of life is dropped; phones' radios sleep for about half a minute.
const IDLE_TIMEOUT_MS: u32 = 60_000;

/// More than one keep-alive fits into the idle timeout, so that a single loss does not end the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// The CONNECT and one more stream, to attach with.
const FIRST_STREAMS: u32 = 2;

/// Control, QPACK encoder and decoder, and a few of the reserved kinds that clients send to exercise servers.
const UNIDIRECTIONAL_STREAMS: u32 = 6;

/// Credit moves on as data is read: a larger frame only takes more round trips.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// What may be on its way to one client; beyond it, writers wait.
const SEND_WINDOW: u64 = 256 * 1024;

/// Copies of frames leave as datagrams, about a kilobyte each; nobody reads those of clients.
const DATAGRAM_BYTES: usize = 16 * 1024;

/// Handshakes at a time with clients whose address is not proven, and at most a quarter of all connections;
/// beyond it, clients prove it first, at the price of a round trip.
const UNPROVEN_HANDSHAKES_MAX: usize = 256;

/// Handshakes that wait for the accept loop, and what they may have sent meanwhile.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES: u64 = 64 * 1024;

/// What a listener is made of.
pub struct Parts<'a, H = Arc<Gate>> {
    /// bound, one endpoint for each: `localhost` is `[::1]` and `127.0.0.1`
    pub sockets: Vec<UdpSocket>,
    /// certificates
    pub tls: &'a Tls,
    /// the same on all nodes and after a restart: reset, connection-id and token keys come from it
    pub cluster_secret: &'a str,
    /// takes the WebTransport sessions
    pub gate: H,
    /// serves all other requests
    pub app: axum::Router,
    /// sessions are at `{prefix}/wt`
    pub prefix: &'a str,
    /// whether pages of this origin may open a session; asked only where an `Origin` is present
    pub origin_allowed: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// when to end
    pub lifecycle: Lifecycle,
    /// what is counted
    pub metrics: Arc<Metrics>,
    /// QUIC connections at a time; beyond it they are refused
    pub connections_max: u32,
}

/// A bound QUIC listener.
pub struct Listener<H = Arc<Gate>> {
    endpoints: Vec<Endpoint>,
    shared: Arc<Shared<H>>,
}

impl<H> fmt::Debug for Listener<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

struct Shared<H> {
    gate: H,
    app: axum::Router,
    rules: Rules,
    permits: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
}

impl<H: Host> Listener<H> {
    /// Starts the endpoints; clients can connect once [`Self::run`] is polled. Must be called within a runtime.
    ///
    /// # Errors
    /// When a socket cannot be used.
    pub fn new(parts: Parts<'_, H>) -> anyhow::Result<Self> {
        let keys = Keys::derive(parts.cluster_secret);
        let mut server = quinn::ServerConfig::new(parts.tls.quic(parts.cluster_secret)?, Arc::new(keys.token));
        server
            .transport_config(Arc::new(transport()))
            .migration(true)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES * 64);
        let mut endpoint = EndpointConfig::new(Arc::new(keys.reset));
        let connection_id = keys.connection_id;
        endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_id)));
        let connections_max = usize::try_from(parts.connections_max).unwrap_or(Semaphore::MAX_PERMITS);
        let endpoints = parts.sockets.into_iter().map(|socket| {
            Endpoint::new(endpoint.clone(), Some(server.clone()), socket, Arc::new(TokioRuntime))
                .context("use a UDP socket for QUIC")
        });
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            shared: Arc::new(Shared {
                gate: parts.gate,
                app: parts.app,
                rules: Rules { path: format!("{}/wt", parts.prefix), origin_allowed: parts.origin_allowed },
                permits: Arc::new(Semaphore::new(connections_max)),
                handshakes: Arc::new(Semaphore::new((connections_max / 4).min(UNPROVEN_HANDSHAKES_MAX))),
                lifecycle: parts.lifecycle,
                metrics: parts.metrics,
            }),
        })
    }

    /// Where the endpoints are bound.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addrs(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.endpoints.iter().map(Endpoint::local_addr).collect()
    }

    /// Serves connections until the server drains and the last connection has ended, or until it stops.
    pub async fn run(self) {
        join_all(self.endpoints.iter().map(|endpoint| run_endpoint(endpoint, &self.shared))).await;
    }
}

/// Serves one socket.
async fn run_endpoint<H: Host>(endpoint: &Endpoint, shared: &Arc<Shared<H>>) {
    let mut connections = JoinSet::new();
    loop {
        let drains = shared.lifecycle.drains();
        if drains && connections.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = shared.lifecycle.draining(), if !drains => {}
            Some(ended) = connections.join_next(), if !connections.is_empty() => shared.ended(ended),
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some(admitted) = shared.admit(incoming) {
                        connections.spawn(serve(admitted, Arc::clone(shared)));
                    }
                }
                None => break,
            },
        }
    }
    endpoint.close(VarInt::from_u32(0), b"");
    // Whoever has not acknowledged by then is gone.
    drop(timeout(FAREWELL_DEADLINE, endpoint.wait_idle()).await);
}

/// A client that may shake hands.
struct Admitted {
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
    unproven: Option<OwnedSemaphorePermit>,
}

impl<H: Host> Shared<H> {
    /// Finds room for a client, or sends it away.
    fn admit(&self, incoming: Incoming) -> Option<Admitted> {
        if self.lifecycle.drains() {
            // Told at once, the client tries another node.
            self.metrics.refusals_total.with_label_values(&["draining"]).inc();
            incoming.refuse();
            return None;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.metrics.refusals_total.with_label_values(&["quic_connections"]).inc();
            incoming.refuse();
            return None;
        };
        if incoming.remote_address_validated() {
            return Some(Admitted { incoming, permit, unproven: None });
        }
        match Arc::clone(&self.handshakes).try_acquire_owned() {
            Ok(unproven) => Some(Admitted { incoming, permit, unproven: Some(unproven) }),
            Err(_) => {
                self.metrics.refusals_total.with_label_values(&["address_unproven"]).inc();
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
                None
            }
        }
    }

    /// Counts a handshake that failed, or was not over in time.
    fn not_shaken(&self, error: Option<&quinn::ConnectionError>) -> Option<Box<Http3>> {
        let reason = if error.is_some() { "handshake" } else { "handshake_deadline" };
        self.metrics.refusals_total.with_label_values(&[reason]).inc();
        if let Some(error) = error {
            tracing::debug!(error = error as &dyn std::error::Error, "handshake failed");
        }
        None
    }

    fn ended(&self, ended: Result<(), JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            self.metrics.panics_total.inc();
            tracing::error!("QUIC connection ended by a panic");
        }
    }
}

/// Counts a connection while it is open.
struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Serves one connection.
async fn serve<H: Host>(admitted: Admitted, shared: Arc<Shared<H>>) {
    let Admitted { incoming, permit, unproven } = admitted;
    let Some(http3) = Box::pin(shake_hands(incoming, &shared)).await else { return };
    drop(unproven);
    shared.metrics.quic_connections_open.inc();
    let open = Open(shared.metrics.quic_connections_open.clone());
    // Each stage has memory of its own and gives it back: an idle session pays for its own stage alone.
    if let Some((session, connection)) = Box::pin(serve_http(http3, &shared)).await {
        Box::pin(shared.gate.serve(session, connection)).await;
    }
    drop((open, permit));
}

/// Shakes hands, and sends SETTINGS with the server's first flight, so that a CONNECT can come with the client's next
/// one. It is the same for everyone, and all that leaves before the client has proved its address and keys; nothing
/// that the client sends is read before.
async fn shake_hands<H: Host>(incoming: Incoming, shared: &Shared<H>) -> Option<Box<Http3>> {
    let mut connecting = incoming.accept().ok()?;
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    // Browsers' first flights take two packets. Before it is whole no stream can be opened, and who waits to open one
    // is woken only when the handshake is over.
    let heard = timeout_at(deadline, connecting.handshake_data()).await;
    if let Err(error) = heard.map_err(|_late| None).and_then(|heard| heard.map_err(Some)) {
        return shared.not_shaken(error.as_ref());
    }
    // A server's connection is there at once.
    let (quic_conn, proved) = connecting.into_0rtt().ok()?;
    let (proved, started) = tokio::join!(
        timeout_at(deadline, proved),
        Http3::start(quic_conn.clone(), shared.app.clone(), Arc::clone(&shared.metrics)),
    );
    let lost = quic_conn.close_reason();
    if proved.is_err() || lost.is_some() {
        return shared.not_shaken(lost.as_ref());
    }
    let started = started.inspect_err(|error| {
        tracing::debug!(error = error as &dyn std::error::Error, "HTTP/3 not started");
    });
    started.ok().map(Box::new)
}

/// Serves requests until the connection is over or becomes a chat connection.
async fn serve_http<H: Host>(mut http3: Box<Http3>, shared: &Shared<H>) -> Option<(Session, H::Connection)> {
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = shared.lifecycle.stopping() => {
                http3.close("server stops");
                return None;
            }
            () = shared.lifecycle.draining(), if !draining => {
                draining = true;
                http3.drain().await;
            }
            event = http3.next() => match event {
                Event::Connect(connect) => match welcome(&connect, &http3, shared) {
                    Ok(connection) => {
                        let session = Box::pin(Session::accept(http3, *connect)).await?;
                        return Some((session, connection));
                    }
                    Err(status) => http3.refuse(*connect, status),
                },
                // Http3 hands out streams of chat connections only.
                Event::Stream(stream) => stream.reject(),
                Event::Over => {
                    http3.close("no request");
                    return None;
                }
            },
        }
    }
}

/// Whether a CONNECT is accepted; the gate counts its own refusals.
fn welcome<H: Host>(connect: &Connect, http3: &Http3, shared: &Shared<H>) -> Result<H::Connection, StatusCode> {
    let token = shared.rules.check(&connect.request).inspect_err(|status| {
        let reason = match *status {
            StatusCode::FORBIDDEN => "origin",
            StatusCode::NOT_FOUND => "connect_path",
            _ => "connect_protocol",
        };
        shared.metrics.refusals_total.with_label_values(&[reason]).inc();
    })?;
    shared.gate.open(http3.quic_conn().remote_address().ip(), token)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(FIRST_STREAMS.into())
        .max_concurrent_uni_streams(UNIDIRECTIONAL_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        .congestion_controller_factory(Arc::new(ChatConfig::default()));
    transport
}

/// Keys that every node with the same secret has, before and after a restart: a client whose connection a killed
/// server no longer knows gets a reset that it believes (RFC 9000, section 10.3).
struct Keys {
    reset: hmac::Key,
    connection_id: u64,
    token: hkdf::Prk,
}

impl Keys {
    fn derive(secret: &str) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"chatbox quic");
        let root = salt.extract(secret.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = expand(&root, b"connection id");
        Self {
            reset: hmac::Key::new(hmac::HMAC_SHA256, &expand(&root, b"stateless reset")),
            connection_id: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            token: hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &expand(&root, b"address validation")),
        }
    }
}

#[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 8160 bytes")]
fn expand(root: &hkdf::Prk, label: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let info = [label];
    let material = root.expand(&info, hkdf::HKDF_SHA256).expect("32 bytes are within the limit");
    material.fill(&mut key).expect("the lengths are equal");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_the_secret_alone_and_differ_by_purpose() {
        let root = |secret: &str| hkdf::Salt::new(hkdf::HKDF_SHA256, b"chatbox quic").extract(secret.as_bytes());
        let reset = |secret| expand(&root(secret), b"stateless reset");
        assert_eq!(reset("secret"), reset("secret"));
        assert_ne!(reset("secret"), reset("secret2"));
        assert_ne!(reset("secret"), expand(&root("secret"), b"address validation"));
        assert_eq!(Keys::derive("secret").connection_id, Keys::derive("secret").connection_id);
        assert_ne!(Keys::derive("secret").connection_id, Keys::derive("other").connection_id);
    }
}
