//! TLS on TCP: clients that cut what they send in pieces, change keys, take their time, break it or go.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use chatbox::{lifecycle::Lifecycle, metrics::Metrics, transport::tcp::Server};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring::default_provider,
    pki_types::PrivateKeyDer,
    version::{TLS12, TLS13},
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::harness::client::PATIENCE;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
const PERMITS: u32 = 4;
/// More than all buffers between the two ends hold.
const LARGE: usize = 24 * 1024 * 1024;

/// Bytes in which each place is told from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

struct Site {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    lifecycle: Lifecycle,
    certificate: rcgen::Certificate,
}

impl Site {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let router = Router::new()
            .route("/echo", post(async |body: Bytes| body))
            .route("/large", get(async || pattern(LARGE)))
            .layer(DefaultBodyLimit::max(LARGE));
        let (metrics, lifecycle) = (Metrics::new(), Lifecycle::default());
        let permits = Arc::new(Semaphore::new(PERMITS as usize));
        let server = Server {
            router,
            tls: Some(Arc::new(config)),
            permits: Arc::clone(&permits),
            metrics: Arc::clone(&metrics),
            lifecycle: lifecycle.clone(),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        server.serve(listener).unwrap();
        Self { address, metrics, permits, lifecycle, certificate: made.cert }
    }

    fn config(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    fn peer(&self, config: ClientConfig) -> Peer {
        let socket = std::net::TcpStream::connect(self.address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        Peer { tls, socket, piece: usize::MAX }
    }

    /// Waits until the server has closed every socket; its listener holds a permit for the next one.
    async fn all_are_gone(&self) {
        drop(timeout(PATIENCE, self.permits.acquire_many(PERMITS - 1)).await.expect("in time").unwrap());
    }
}

/// A client that writes its records in pieces of its own choice.
struct Peer {
    tls: ClientConnection,
    socket: std::net::TcpStream,
    /// bytes that leave at a time
    piece: usize,
}

impl Peer {
    fn leave(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records)?;
        }
        records.chunks(self.piece.min(records.len().max(1))).try_for_each(|piece| self.socket.write_all(piece))
    }

    /// Reads what comes next; nothing of it may be plain text. Zero at the end.
    fn come(&mut self) -> io::Result<usize> {
        let count = self.tls.read_tls(&mut self.socket)?;
        self.tls.process_new_packets().map_err(io::Error::other)?;
        Ok(count)
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.tls.is_handshaking() {
            self.leave()?;
            if self.tls.is_handshaking() && self.come()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.leave()
    }

    fn send(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(16 * 1024) {
            self.tls.writer().write_all(part).unwrap();
            self.leave().unwrap();
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.tls.reader().read(&mut bytes[filled..]) {
                Ok(count) => {
                    assert!(count > 0, "the end came after {filled} bytes of {}", bytes.len());
                    filled += count;
                }
                Err(err) => {
                    assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
                    assert!(self.come().unwrap() > 0, "the socket ended after {filled} bytes of {}", bytes.len());
                }
            }
        }
    }

    fn request(&mut self, head: &str, body: &[u8]) {
        let length = body.len();
        let head = format!("{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        self.send(&[head.as_bytes(), body].concat());
    }

    fn answer(&mut self) -> Vec<u8> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.read_exact(&mut byte);
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "got {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.read_exact(&mut body);
        body
    }

    fn echoes(&mut self, body: &[u8]) {
        self.request("POST /echo", body);
        let answer = self.answer();
        assert!(answer == body, "got {} bytes, expected other {}", answer.len(), body.len());
    }

    /// What the server has said when it ended the connection, be it TLS' end or an alert.
    fn end(&mut self) -> Result<(), AlertDescription> {
        loop {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => panic!("the socket ended without a word"),
                Ok(_) => {}
                Err(err) => panic!("got {err}"),
            }
            match self.tls.process_new_packets() {
                Ok(state) if state.peer_has_closed() => return Ok(()),
                Ok(_) => {}
                Err(Error::AlertReceived(alert)) => return Err(alert),
                Err(err) => panic!("got {err}"),
            }
        }
    }
}

/// Has a client do so on a thread that may wait, and gives it back.
async fn talk(mut peer: Peer, say: impl FnOnce(&mut Peer) + Send + 'static) -> Peer {
    let said = spawn_blocking(move || {
        say(&mut peer);
        peer
    });
    said.await.unwrap()
}

#[tokio::test]
async fn records_and_handshakes_may_come_in_pieces_of_any_length() {
    let site = Site::start();
    for version in VERSIONS {
        for (piece, fragment) in [(1, None), (7, Some(64)), (1448, None), (usize::MAX, Some(64))] {
            // A hello that is longer than a fragment comes in several records.
            let mut config = site.config(version);
            config.max_fragment_size = fragment;
            let mut peer = site.peer(config);
            peer.piece = piece;
            talk(peer, move |peer| {
                peer.shake_hands().unwrap();
                assert_eq!(peer.tls.alpn_protocol(), Some(&b"http/1.1"[..]));
                for length in [0, 1, 3000, 20_000] {
                    peer.echoes(&pattern(length));
                }
            })
            .await;
        }
    }
    site.all_are_gone().await;
}

#[tokio::test]
async fn large_bodies_arrive_whole_with_readers_that_take_their_time() {
    let site = Site::start();
    for version in VERSIONS {
        let peer = site.peer(site.config(version));
        talk(peer, move |peer| {
            peer.shake_hands().unwrap();
            peer.echoes(&pattern(LARGE));
            // Two answers wait behind each other; the server stops writing until they are read.
            peer.request("GET /large", b"");
            peer.request("GET /large", b"");
            assert!(peer.answer() == pattern(LARGE) && peer.answer() == pattern(LARGE), "{version:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn http_2_moves_large_bodies_both_ways() {
    drop(default_provider().install_default());
    let site = Site::start();
    let trusted = reqwest::Certificate::from_der(site.certificate.der()).unwrap();
    let builder = reqwest::Client::builder().resolve("localhost", site.address).no_proxy();
    let client = builder.tls_certs_only([trusted]).build().unwrap();
    let url = format!("https://localhost:{}/echo", site.address.port());
    let answers = futures_util::future::join_all((1..5).map(|n| client.post(&url).body(pattern(n * 1_000_003)).send()));
    for (n, answer) in (1..5).zip(answers.await) {
        let answer = answer.unwrap();
        assert_eq!(answer.version(), reqwest::Version::HTTP_2);
        assert!(answer.bytes().await.unwrap() == pattern(n * 1_000_003), "body {n}");
    }
}

/// RFC 8446, section 4.6.3: whoever is asked for other keys says so before it goes on.
#[tokio::test]
async fn keys_change_as_often_as_the_peer_wants() {
    let site = Site::start();
    let mut peer = site.peer(site.config(&TLS13));
    peer.piece = 5;
    talk(peer, move |peer| {
        peer.shake_hands().unwrap();
        for length in 1..20 {
            peer.tls.refresh_traffic_keys().unwrap();
            peer.echoes(&pattern(length * 100));
        }
        peer.tls.send_close_notify();
        peer.leave().unwrap();
        assert_eq!(peer.end(), Ok(()));
    })
    .await;
    site.all_are_gone().await;
}

#[tokio::test]
async fn a_close_is_answered_and_a_cut_is_noticed() {
    let site = Site::start();
    for version in VERSIONS {
        for says_so in [true, false] {
            let peer = site.peer(site.config(version));
            talk(peer, move |peer| {
                peer.shake_hands().unwrap();
                peer.echoes(b"once");
                if says_so {
                    peer.tls.send_close_notify();
                    peer.leave().unwrap();
                    assert_eq!(peer.end(), Ok(()));
                } else {
                    peer.socket.shutdown(Shutdown::Write).unwrap();
                }
                let mut rest = Vec::new();
                peer.socket.read_to_end(&mut rest).unwrap();
            })
            .await;
            site.all_are_gone().await;
        }
    }
}

#[tokio::test]
async fn a_drain_says_that_nothing_follows() {
    let site = Site::start();
    let peer = site.peer(site.config(&TLS13));
    let peer = talk(peer, |peer| {
        peer.shake_hands().unwrap();
        peer.echoes(b"once");
    })
    .await;
    site.lifecycle.drain();
    talk(peer, |peer| assert_eq!(peer.end(), Ok(()))).await;
}

#[tokio::test]
async fn a_record_that_was_changed_ends_the_connection_with_an_alert() {
    let site = Site::start();
    for version in VERSIONS {
        let peer = site.peer(site.config(version));
        talk(peer, move |peer| {
            peer.shake_hands().unwrap();
            peer.echoes(b"once");
            peer.tls.writer().write_all(b"GET /large HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            let mut record = Vec::new();
            peer.tls.write_tls(&mut record).unwrap();
            *record.last_mut().unwrap() ^= 1;
            peer.socket.write_all(&record).unwrap();
            assert_eq!(peer.end(), Err(AlertDescription::BadRecordMac));
        })
        .await;
        site.all_are_gone().await;
    }
}

#[tokio::test]
async fn a_record_that_is_too_long_ends_the_connection_with_an_alert() {
    let site = Site::start();
    let peer = site.peer(site.config(&TLS13));
    talk(peer, move |peer| {
        peer.shake_hands().unwrap();
        // RFC 8446, section 5.2: 256 bytes more than its content at most, and rustls takes what version 1.2 may send.
        peer.socket.write_all(&[23, 3, 3, 0xff, 0xff]).unwrap();
        peer.socket.write_all(&[0; 1000]).unwrap();
        assert_eq!(peer.end(), Err(AlertDescription::DecodeError));
    })
    .await;
    site.all_are_gone().await;
}

#[tokio::test]
async fn a_client_that_speaks_another_protocol_is_told_and_counted() {
    let site = Site::start();
    let mut config = site.config(&TLS13);
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    let mut stranger = site.peer(config);
    let mut plain = site.peer(site.config(&TLS13)).socket;
    let mut silent = site.peer(site.config(&TLS13)).socket;
    spawn_blocking(move || {
        let refused = stranger.shake_hands().unwrap_err();
        let alert = Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(refused.downcast::<Error>().unwrap(), alert);
        plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 2];
        plain.read_exact(&mut answer).unwrap();
        // The type of an alert, and TLS' major version.
        assert_eq!(answer, [21, 3]);
        silent.write_all(&[22, 3, 1]).unwrap();
        silent.shutdown(Shutdown::Write).unwrap();
        assert_eq!(silent.read(&mut answer).unwrap(), 0);
    })
    .await
    .unwrap();
    site.all_are_gone().await;
    assert_eq!(site.metrics.refusals_total.with_label_values(&["tls"]).get(), 3);
}

/// rustls takes handshake messages of 64 KiB, which may come in any number of records.
#[tokio::test]
async fn a_hello_is_joined_up_to_its_limit_and_refused_beyond() {
    let site = Site::start();
    // Fatal (RFC 8446, section 6). Of what is too long, rustls says nothing.
    let alert = vec![21, 3, 3, 0, 2, 2, u8::from(AlertDescription::DecodeError)];
    for (length, sent, answer) in [(0xff_ffff_u32, 100, vec![]), (0xffff, 4 + 0xffff, alert)] {
        let mut socket = site.peer(site.config(&TLS13)).socket;
        spawn_blocking(move || {
            let mut message = vec![1];
            message.extend(&length.to_be_bytes()[1..]);
            message.resize(sent, 0);
            for part in message.chunks(0x4000) {
                let header = [22, 3, 1].into_iter().chain(u16::try_from(part.len()).unwrap().to_be_bytes());
                socket.write_all(&header.chain(part.iter().copied()).collect::<Vec<_>>()).unwrap();
            }
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            assert_eq!(all, answer, "to a hello of {length} bytes");
        })
        .await
        .unwrap();
        site.all_are_gone().await;
    }
    assert_eq!(site.metrics.refusals_total.with_label_values(&["tls"]).get(), 2);
}
