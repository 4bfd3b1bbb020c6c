//! TCP listeners and the WebSocket upgrade over real sockets: what is refused, what is cut, what drains.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::ConnectInfo, routing::get};
use chatbox::{
    lifecycle::Lifecycle,
    metrics::Metrics,
    transport::{tcp::Server, websocket::Endpoint},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, Semaphore},
    time::Instant,
};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n";
const PERMITS: usize = 8;

struct Rig {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    permits: Arc<Semaphore>,
    /// tells that `/held` has begun
    begun: Arc<Notify>,
    /// lets `/held` answer
    go: Arc<Notify>,
    certificate: Option<String>,
}

impl Rig {
    fn start() -> Self {
        Self::with(None)
    }

    fn start_tls() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut rig = Self::with(Some(Arc::new(config)));
        rig.certificate = Some(made.cert.pem());
        rig
    }

    fn with(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let (metrics, lifecycle) = (Metrics::new(), Lifecycle::default());
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let endpoint = Endpoint {
            gate: crate::harness::gate(&metrics, &lifecycle),
            origin_allowed: Arc::new(|origin| origin == "https://ours.example"),
            allow_query_token: false,
            metrics: Arc::clone(&metrics),
            lifecycle: lifecycle.clone(),
        };
        let held = {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            get(async move || {
                begun.notify_one();
                go.notified().await;
                "held"
            })
        };
        let router = Router::new()
            .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string()))
            .route("/length", get(async |body: Bytes| body.len().to_string()))
            .route("/panic", get(async || -> &'static str { panic!("planted") }))
            .route("/large", get(async || vec![0_u8; 64 * 1024 * 1024]))
            .route("/held", held)
            .merge(endpoint.route("/ws"));
        let permits = Arc::new(Semaphore::new(PERMITS));
        let server = Server {
            router,
            tls,
            permits: Arc::clone(&permits),
            metrics: Arc::clone(&metrics),
            lifecycle: lifecycle.clone(),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        server.serve(listener).unwrap();
        Self { address, metrics, lifecycle, permits, begun, go, certificate: None }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request and reads the answer to the end of the connection.
    async fn ask(&self, headers: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut stream).await
    }

    fn refusals(&self, reason: &str) -> u64 {
        self.metrics.refusals_total.with_label_values(&[reason]).get()
    }

    /// Waits until no socket holds a permit; the listener holds one for the next client.
    async fn all_permits_are_back(&self) {
        let permits = u32::try_from(PERMITS - 1).unwrap();
        let all = tokio::time::timeout(Duration::from_secs(60), self.permits.acquire_many(permits));
        drop(all.await.expect("every socket gives its permit back").unwrap());
    }

    fn client(&self) -> reqwest::ClientBuilder {
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = reqwest::Client::builder().resolve("localhost", self.address).no_proxy();
        match &self.certificate {
            Some(pem) => builder.tls_certs_only([reqwest::Certificate::from_pem(pem.as_bytes()).unwrap()]),
            None => builder,
        }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}{path}", self.address.port())
    }
}

/// Reads an answer's header, and the body too where the server closes after it.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut byte = [0; 1];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "the connection ended within the header");
        text.extend(byte);
    }
    let head = String::from_utf8(text).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|n| n.parse().unwrap());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    head + std::str::from_utf8(&body).unwrap()
}

async fn read_to_end(stream: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest).await {
        Ok(_) => rest.len(),
        Err(err) => {
            assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset, "got {err}");
            rest.len()
        }
    }
}

#[tokio::test]
async fn an_upgrade_is_accepted_and_selects_the_subprotocol_alone() {
    let rig = Rig::start();
    let protocols = "Sec-WebSocket-Protocol: chatbox.v1, bearer.abc.def\r\n";
    let answer = rig.ask(&format!("{UPGRADE}{KEY}{protocols}Origin: https://ours.example\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "got {answer}");
    // The example of RFC 6455, section 1.3.
    assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "got {answer}");
    assert!(answer.contains("sec-websocket-protocol: chatbox.v1\r\n"), "got {answer}");
}

#[tokio::test]
async fn a_client_without_the_subprotocol_gets_none() {
    let rig = Rig::start();
    let answer = rig.ask(&format!("{UPGRADE}{KEY}")).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "got {answer}");
    assert!(!answer.contains("sec-websocket-protocol"), "got {answer}");
}

// checklist 10, W24
#[tokio::test]
async fn what_is_wrong_with_an_upgrade_is_said_and_leaks_nothing() {
    let rig = Rig::start();
    let old = UPGRADE.replace("13", "8");
    let cases = [
        (format!("{UPGRADE}{KEY}Origin: https://theirs.example\r\n"), "403", "INSUFFICIENT_PERMISSIONS"),
        (format!("{UPGRADE}{KEY}Origin: null\r\n"), "403", "INSUFFICIENT_PERMISSIONS"),
        (format!("{UPGRADE}{KEY}Origin: https://ours.example\r\nOrigin: https://theirs.example\r\n"), "403", "origin"),
        (UPGRADE.to_owned(), "400", "INVALID_FORMAT"),
        (format!("{UPGRADE}Sec-WebSocket-Key: dG9vIHNob3J0\r\n"), "400", "INVALID_FORMAT"),
        (format!("{old}{KEY}"), "426", "sec-websocket-version: 13"),
        (String::new(), "426", "upgrade: websocket"),
    ];
    // More often than there are permits, so that one that is not given back stops the test.
    for _ in 0..PERMITS {
        for (headers, status, word) in &cases {
            let answer = rig.ask(headers).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "asked {headers}, got {answer}");
            assert!(answer.contains("content-type: application/problem+json\r\n"), "got {answer}");
            assert!(answer.contains(word), "expected {word}, got {answer}");
        }
    }
    rig.all_permits_are_back().await;
    assert_eq!((rig.refusals("origin"), rig.refusals("handshake")), (3 * 8, 4 * 8));
}

#[tokio::test]
async fn tls_serves_http_1_and_http_2_with_the_address_of_the_peer() {
    let rig = Rig::start_tls();
    let clients = [
        (rig.client().http1_only().build().unwrap(), reqwest::Version::HTTP_11),
        (rig.client().build().unwrap(), reqwest::Version::HTTP_2),
    ];
    for (client, version) in clients {
        let answer = client.get(rig.url("/peer")).send().await.unwrap();
        assert_eq!(answer.version(), version);
        assert_eq!(answer.text().await.unwrap(), "127.0.0.1");
    }
}

#[tokio::test]
async fn plain_serves_http_2_with_prior_knowledge() {
    let rig = Rig::start();
    let client = rig.client().http2_prior_knowledge().build().unwrap();
    let answer = client.get(rig.url("/length")).body(vec![7; 1_000_000]).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert_eq!(answer.text().await.unwrap(), "1000000");
}

// checklist 13, 43
#[tokio::test]
async fn a_panic_in_a_route_is_a_500_and_the_connection_goes_on() {
    let rig = Rig::start();
    let client = rig.client().http2_prior_knowledge().build().unwrap();
    let answer = client.get(rig.url("/panic")).send().await.unwrap();
    assert_eq!(answer.status(), 500);
    assert!(answer.text().await.unwrap().contains("SERVICE_ERROR"));
    assert_eq!(client.get(rig.url("/peer")).send().await.unwrap().status(), 200);
    assert_eq!(rig.metrics.panics_total.get(), 1);
}

/// Time is paused: it moves on when nothing else does, to the server's next deadline.
// checklist 51
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_request_is_cut_after_ten_seconds() {
    for sent in ["", "GET /peer HTTP/1.1\r\nHost:", "PRI * HTT"] {
        let rig = Rig::start();
        let mut stream = rig.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let start = Instant::now();
        assert_eq!(read_to_end(&mut stream).await, 0, "after {sent:?}");
        assert!((9..=11).contains(&start.elapsed().as_secs()), "waited {:?} after {sent:?}", start.elapsed());
        assert_eq!(rig.refusals("slow"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_that_does_not_end_is_cut_after_ten_seconds() {
    let rig = Rig::start_tls();
    let mut stream = rig.connect().await;
    stream.write_all(b"\x16\x03\x01").await.unwrap();
    let start = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, 0);
    assert!((9..=11).contains(&start.elapsed().as_secs()), "waited {:?}", start.elapsed());
    assert_eq!(rig.refusals("tls"), 1);
}

// checklist 51
#[tokio::test(start_paused = true)]
async fn a_body_that_stands_still_is_cut() {
    let rig = Rig::start();
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
    let start = Instant::now();
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "got {answer}");
    assert!((29..=31).contains(&start.elapsed().as_secs()), "waited {:?}", start.elapsed());
}

// checklist 51
#[tokio::test(start_paused = true)]
async fn a_reader_that_stands_still_is_cut_and_gives_its_permit_back() {
    let rig = Rig::start();
    let mut stream = rig.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'H');
    let start = Instant::now();
    rig.all_permits_are_back().await;
    assert!((29..=40).contains(&start.elapsed().as_secs()), "waited {:?}", start.elapsed());
    drop(stream);
}

// checklist 51
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_an_upgraded_one_is_not_http_any_more() {
    let rig = Rig::start();
    let mut idle = rig.connect().await;
    idle.write_all(b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(read_head(&mut idle).await.ends_with("127.0.0.1"));
    let start = Instant::now();
    assert_eq!(read_to_end(&mut idle).await, 0);
    assert!((29..=31).contains(&start.elapsed().as_secs()), "waited {:?}", start.elapsed());
    let mut socket = rig.connect().await;
    let request = format!("GET /ws HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}{KEY}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 101 "));
    // Silence after the upgrade is the socket's own matter: code 4001 after its five seconds, not a cut.
    let mut close = [0; 4];
    socket.read_exact(&mut close).await.unwrap();
    assert_eq!(close[0], 0x88, "a close frame");
    assert_eq!(u16::from_be_bytes([close[2], close[3]]), 4001);
}

#[tokio::test]
async fn a_drain_closes_idle_connections_and_lets_requests_finish() {
    let rig = Rig::start();
    let mut idle = rig.connect().await;
    idle.write_all(b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(read_head(&mut idle).await.ends_with("127.0.0.1"));
    let mut busy = rig.connect().await;
    busy.write_all(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    rig.begun.notified().await;
    rig.lifecycle.drain();
    assert_eq!(read_to_end(&mut idle).await, 0, "the idle connection is closed");
    rig.go.notify_one();
    let answer = read_head(&mut busy).await;
    assert!(answer.ends_with("held"), "got {answer}");
    assert_eq!(read_to_end(&mut busy).await, 0);
    rig.lifecycle.join().await;
    crate::harness::ports::deserted(rig.address).await;
}

// checklist 41
#[tokio::test]
async fn a_stop_drops_what_runs_over_either_protocol() {
    for version in [1, 2] {
        let rig = Rig::start();
        let client = if version == 1 { rig.client() } else { rig.client().http2_prior_knowledge() };
        let request = client.build().unwrap().get(rig.url("/held")).send();
        let stop = async {
            rig.begun.notified().await;
            rig.lifecycle.stop();
            rig.lifecycle.join().await;
        };
        let (answer, ()) = tokio::join!(request, stop);
        assert!(answer.is_err(), "the answer never came, got {answer:?}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let rig = Rig::start();
    let mut open = Vec::new();
    for _ in 0..PERMITS {
        let mut stream = rig.connect().await;
        stream.write_all(b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert!(read_head(&mut stream).await.ends_with("127.0.0.1"));
        open.push(stream);
    }
    let mut late = rig.connect().await;
    late.write_all(b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(rig.permits.available_permits(), 0);
    open.pop();
    assert!(read_head(&mut late).await.ends_with("127.0.0.1"));
}
