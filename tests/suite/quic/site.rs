//! A listener on a free port, its echo, and clients that do not share its code.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chatbox::{
    lifecycle::Lifecycle,
    metrics::Metrics,
    transport::{
        quic::{Listener, Parts},
        tls::{Config, Reload, Tls},
        webtransport::{Credit, End, Host, Incoming, RecvStream, SendStream, Session, StreamError},
    },
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use url::Url;

use crate::harness::client::PATIENCE;

/// How long something is awaited that must not come.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);

/// Pages of this origin may connect.
pub(crate) const ORIGIN: &str = "https://page.example";

/// The one token that the echo refuses.
pub(crate) const TOO_MANY: &str = "too-many";

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lifecycle: Lifecycle,
    tls: Tls,
    certificate: CertificateDer<'static>,
    told: mpsc::Receiver<String>,
    task: JoinHandle<()>,
    dir: Arc<TempDir>,
}

pub(crate) struct Start {
    pub(crate) dir: Arc<TempDir>,
    pub(crate) app: axum::Router,
    pub(crate) connections_max: u32,
}

impl Default for Start {
    fn default() -> Self {
        Self { dir: Arc::new(tempfile::tempdir().unwrap()), app: axum::Router::new(), connections_max: 100 }
    }
}

impl Start {
    pub(crate) fn site(self) -> Site {
        let metrics = Metrics::new();
        let lifecycle = Lifecycle::default();
        let config = Config { dir: self.dir.path().to_owned(), ..Config::default() };
        let tls = Tls::load(&config, true, Arc::clone(&metrics)).unwrap();
        let (tell, told) = mpsc::channel(64);
        let listener = Listener::new(Parts {
            sockets: vec![UdpSocket::bind("127.0.0.1:0").unwrap()],
            tls: &tls,
            cluster_secret: "the same on all nodes",
            gate: Echo { tell },
            app: self.app,
            prefix: "/chatbox",
            origin_allowed: Arc::new(|origin| origin == ORIGIN),
            lifecycle: lifecycle.clone(),
            metrics: Arc::clone(&metrics),
            connections_max: self.connections_max,
        })
        .unwrap();
        let address = listener.local_addrs().unwrap()[0];
        let certificate = CertificateDer::from_pem_file(self.dir.path().join("cert.pem")).unwrap();
        let task = tokio::spawn(listener.run());
        Site { address, metrics, lifecycle, tls, certificate, told, task, dir: self.dir }
    }
}

impl Site {
    pub(crate) fn start() -> Self {
        Start::default().site()
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("https://{}{path}", self.address).parse().unwrap()
    }

    /// A session of a client from the registry.
    pub(crate) async fn session(&self) -> web_transport_quinn::Session {
        self.session_at(self.address).await
    }

    pub(crate) async fn session_at(&self, address: SocketAddr) -> web_transport_quinn::Session {
        let hash = hex::decode(self.tls.certificate_sha256().unwrap()).unwrap();
        let client = web_transport_quinn::ClientBuilder::new().with_server_certificate_hashes(vec![hash]).unwrap();
        let url = format!("https://{address}/chatbox/wt").parse::<Url>().unwrap();
        timeout(PATIENCE, client.connect(url)).await.expect("session in time").expect("session")
    }

    /// A bare QUIC connection.
    pub(crate) async fn quic_conn(&self) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.quic_conn_at(self.address).await
    }

    pub(crate) async fn quic_conn_at(&self, address: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        let connecting = endpoint.connect(address, "localhost").unwrap();
        timeout(PATIENCE, connecting).await.expect("handshake in time")
    }

    /// An HTTP/3 client.
    pub(crate) async fn http3(&self) -> Http3Client {
        Http3Client::over(self.quic_conn().await.unwrap()).await
    }

    /// Where its certificate is.
    pub(crate) fn dir(&self) -> Arc<TempDir> {
        Arc::clone(&self.dir)
    }

    /// Has new handshakes get another certificate.
    pub(crate) fn replace_certificate(&self) {
        std::fs::remove_file(self.dir.path().join("cert.pem")).unwrap();
        assert_eq!(self.tls.reload().unwrap(), Reload::Replaced);
    }

    /// What the echo or a handler saw next.
    pub(crate) async fn told(&mut self) -> String {
        timeout(PATIENCE, self.told.recv()).await.expect("told in time").expect("the echo lives")
    }

    /// Waits until the listener has ended.
    pub(crate) async fn ended(&mut self) {
        timeout(PATIENCE, &mut self.task).await.expect("end in time").expect("no panic");
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.metrics.refusals_total.with_label_values(&[reason]).get()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

pub(crate) struct Http3Client {
    pub(crate) quic_conn: quinn::Connection,
    pub(crate) requests: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Http3Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(crate) type ClientStream = h3::client::RequestStream<h3_quinn::BidiStream<Bytes>, Bytes>;

impl Http3Client {
    /// Over a connection of the caller's.
    pub(crate) async fn over(quic_conn: quinn::Connection) -> Self {
        let (mut driver, requests) = h3::client::builder()
            .enable_extended_connect(true)
            .enable_datagram(true)
            .build(h3_quinn::Connection::new(quic_conn.clone()))
            .await
            .unwrap();
        let driver = tokio::spawn(async move { drop(std::future::poll_fn(|cx| driver.poll_close(cx)).await) });
        Self { quic_conn, requests, driver }
    }

    pub(crate) async fn send(&mut self, request: http::Request<()>) -> ClientStream {
        timeout(PATIENCE, self.requests.send_request(request)).await.expect("credit in time").expect("request")
    }

    /// Sends a request without a body and reads the response whole.
    pub(crate) async fn fetch(&mut self, request: http::Request<()>) -> (http::response::Parts, Bytes) {
        let mut stream = self.send(request).await;
        stream.finish().await.unwrap();
        let (parts, ()) = response(&mut stream).await.into_parts();
        (parts, read_body(&mut stream).await.unwrap())
    }
}

pub(crate) async fn response(stream: &mut ClientStream) -> http::Response<()> {
    timeout(PATIENCE, stream.recv_response()).await.expect("response in time").expect("response")
}

pub(crate) async fn read_body(stream: &mut ClientStream) -> Result<Bytes, h3::error::StreamError> {
    let mut body = bytes::BytesMut::new();
    while let Some(data) = timeout(PATIENCE, stream.recv_data()).await.expect("body in time")? {
        bytes::BufMut::put(&mut body, data);
    }
    Ok(body.freeze())
}

/// Says something on a new stream and reads all that comes back.
pub(crate) async fn ask(session: &web_transport_quinn::Session, what: &str) -> String {
    let asked = async {
        let (mut send, mut recv) = session.open_bi().await.unwrap();
        send.write_all(what.as_bytes()).await.unwrap();
        send.finish().unwrap();
        recv.read_to_end(4 << 20).await.unwrap()
    };
    String::from_utf8(timeout(PATIENCE, asked).await.expect("answer in time")).unwrap()
}

/// Serves sessions: each stream carries one order.
struct Echo {
    tell: mpsc::Sender<String>,
}

impl Host for Echo {
    type Connection = ();

    fn open(&self, address: IpAddr, token: Option<String>) -> Result<(), StatusCode> {
        assert!(address.is_loopback());
        if token.as_deref() == Some(TOO_MANY) { Err(StatusCode::TOO_MANY_REQUESTS) } else { Ok(()) }
    }

    async fn serve(&self, mut session: Session, (): ()) {
        let mut orders = FuturesUnordered::new();
        let credit = session.credit();
        loop {
            tokio::select! {
                incoming = session.next() => match incoming {
                    Incoming::Stream(send, receive) => orders.push(obey(send, receive, credit.clone(), &self.tell)),
                    Incoming::Ended(End::Closed(close)) => {
                        self.tell.send(format!("closed {} {}", close.code, close.reason)).await.unwrap();
                        return session.leave().await;
                    }
                    Incoming::Ended(End::Lost) => {
                        self.tell.send("lost".to_owned()).await.unwrap();
                        return;
                    }
                },
                Some(close) = orders.next(), if !orders.is_empty() => if let Some((code, reason)) = close {
                    return session.close(code, &reason).await;
                },
            }
        }
    }
}

/// Does what a stream says; `Some` closes the session.
async fn obey(
    mut send: SendStream,
    mut receive: RecvStream,
    credit: Credit,
    tell: &mpsc::Sender<String>,
) -> Option<(u32, String)> {
    let mut order = Vec::new();
    loop {
        match receive.read(1 << 16).await {
            Ok(Some(bytes)) => order.extend_from_slice(&bytes),
            Ok(None) => break,
            Err(error) => {
                tell.send(format!("read {error:?}")).await.unwrap();
                return None;
            }
        }
        if order.starts_with(b"stop ") {
            break;
        }
        if order.starts_with(b"unfinished") {
            tell.send("reading".to_owned()).await.unwrap();
        }
    }
    let order = String::from_utf8(order).unwrap();
    let mut words = order.splitn(3, ' ');
    let (verb, number) = (words.next().unwrap(), words.next().and_then(|word| word.parse().ok()).unwrap_or(0));
    match verb {
        "raise" => credit.raise(number),
        "close" => return Some((number, words.next().unwrap_or_default().to_owned())),
        "stop" => {
            receive.stop(number);
            return None;
        }
        "reset" => {
            write(&mut send, "partial").await.unwrap();
            send.reset(number);
            return None;
        }
        "hold" => {
            let why = send.stopped().await;
            tell.send(format!("stopped {why:?}")).await.unwrap();
            return None;
        }
        _ => {}
    }
    write(&mut send, &order).await.unwrap();
    credit.finish(&mut send);
    None
}

async fn write(send: &mut SendStream, text: &str) -> Result<(), StreamError> {
    let mut chunks = [Bytes::copy_from_slice(text.as_bytes())];
    while !chunks[0].is_empty() {
        if send.write(&mut chunks).await? == 1 {
            break;
        }
    }
    Ok(())
}
