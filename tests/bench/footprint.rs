//! What a server weighs: start to first accept, bytes for each idle attached connection, size of the binary.
//! Run: `cargo bench --bench footprint`. Linux only: it reads `/proc`.
#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::{
    io::{BufRead, BufReader},
    net::TcpStream as StdTcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use chatbox::{
    auth::{Config, Role, issuer::Issuer},
    chat::UserId,
    config::secret::Secret,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// Connections that are there before the first reading: what the first ones allocate is shared.
const WARM_UP: usize = 50;
const CONNECTIONS: usize = 1000;
const STARTS: usize = 5;
/// Connections that are opened at a time.
const AT_ONCE: usize = 16;
/// What follows an attach has settled by then: session tickets, acknowledgements, keep-alive timers.
const SETTLE: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    let binary = Path::new(env!("CARGO_BIN_EXE_chatbox"));
    let size = std::fs::metadata(binary)?.len();
    println!("binary                         {:>10.1} MB", megabytes(size));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut starts = (0..STARTS).map(|_| start_time(binary)).collect::<anyhow::Result<Vec<_>>>()?;
    starts.sort();
    let median = starts.get(STARTS / 2).context("a start")?;
    println!("start to first accept, median  {:>10.1} ms", median.as_secs_f64() * 1000.0);
    let server = Server::start(binary, 0)?;
    println!("RSS at start                   {:>10.1} MB", megabytes(server.rss()?));
    drop(server);
    for transport in ["websocket", "webtransport"] {
        let bytes = runtime.block_on(idle(binary, transport))?;
        println!("idle {transport:<12} n={CONNECTIONS}     {bytes:>10} bytes each");
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A running server with a data directory of its own.
struct Server {
    process: Child,
    url: url::Url,
    secret: Secret,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Server {
    fn start(binary: &Path, http_port: u16) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut process = Command::new(binary)
            .current_dir(dir.path())
            .env("CHATBOX_LISTEN__HTTP", format!("localhost:{http_port}"))
            .env("CHATBOX_LISTEN__QUIC", "localhost:0")
            .env("CHATBOX_LISTEN__OPS", "localhost:0")
            .env("CHATBOX_LIMITS__CONNECTIONS_PER_ADDRESS", "100000")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("output")?).read_line(&mut line)?;
        let url = line.trim().parse().context("the first line is a URL")?;
        let secret = Secret::new(std::fs::read_to_string(dir.path().join("data/jwt_secret"))?.trim());
        Ok(Self { process, url, secret, _dir: dir })
    }

    /// Resident memory in bytes.
    fn rss(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kilobytes: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kilobytes * 1024)
    }

    fn attach(&self, user: usize) -> anyhow::Result<String> {
        let user = UserId::parse(&format!("user-{user}")).context("user id")?;
        let issuer = Issuer::new(&Config::default(), &self.secret);
        let token = issuer.issue(&user, Role::User, None, Duration::from_secs(3600))?;
        Ok(json!({"type": "attach", "token": token}).to_string())
    }
}

/// From the start of the process until its HTTP port accepts, on a fresh data directory.
fn start_time(binary: &Path) -> anyhow::Result<Duration> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let began = Instant::now();
    let waiting = std::thread::spawn(move || {
        while StdTcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        began.elapsed()
    });
    let server = Server::start(binary, port)?;
    let elapsed = waiting.join().ok().context("the port accepts")?;
    drop(server);
    Ok(elapsed)
}

/// Resident bytes of the server for each attached connection that says nothing.
async fn idle(binary: &Path, transport: &str) -> anyhow::Result<u64> {
    let server = Server::start(binary, 0)?;
    let mut held: Vec<Box<dyn std::any::Any + Send>> = Vec::new();
    let discovery = discover(&server).await?;
    let mut readings = Vec::new();
    for count in [WARM_UP, CONNECTIONS] {
        let users: Vec<usize> = (held.len()..held.len() + count).collect();
        for users in users.chunks(AT_ONCE) {
            let opened = users.iter().map(|user| open(&server, &discovery, transport, *user));
            for connection in futures_util::future::join_all(opened).await {
                held.push(connection?);
            }
        }
        tokio::time::timeout(SETTLE, std::future::pending::<()>()).await.unwrap_or_default();
        readings.push(server.rss()?);
    }
    ensure!(held.len() == WARM_UP + CONNECTIONS, "every connection is held");
    let (Some(before), Some(after)) = (readings.first(), readings.last()) else { anyhow::bail!("two readings") };
    Ok(after.saturating_sub(*before) / u64::try_from(CONNECTIONS)?)
}

struct Discovery {
    webtransport: url::Url,
    websocket: url::Url,
    client: web_transport_quinn::Client,
}

async fn discover(server: &Server) -> anyhow::Result<Discovery> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let answer = client.get(server.url.join(".well-known/chatbox")?).send().await?.bytes().await?;
    let known: serde_json::Value = serde_json::from_slice(&answer)?;
    let text = |key: &str| known.get(key).and_then(serde_json::Value::as_str).context("discovery");
    let hash = hex::decode(text("certificate_sha256")?)?;
    Ok(Discovery {
        webtransport: text("webtransport")?.parse()?,
        websocket: text("websocket")?.parse()?,
        client: web_transport_quinn::ClientBuilder::new().with_server_certificate_hashes(vec![hash])?,
    })
}

/// Opens a connection and attaches; what it returns keeps it open.
async fn open(
    server: &Server,
    discovery: &Discovery,
    transport: &str,
    user: usize,
) -> anyhow::Result<Box<dyn std::any::Any + Send>> {
    let attach = server.attach(user)?;
    if transport == "websocket" {
        let addresses = discovery.websocket.socket_addrs(|| None)?;
        let stream = TcpStream::connect(addresses.as_slice()).await?;
        let (mut socket, _) = tokio_tungstenite::client_async(discovery.websocket.as_str(), stream).await?;
        socket.send(Message::text(attach)).await?;
        let status = socket.next().await.context("a status")??;
        ensure!(status.to_text()?.contains("connection_status"), "got {status}");
        return Ok(Box::new(socket));
    }
    let session = discovery.client.connect(discovery.webtransport.clone()).await?;
    let (mut send, mut receive) = session.open_bi().await?;
    send.write_all(format!("{attach}\n").as_bytes()).await?;
    let status = receive.read_chunk(usize::MAX, true).await?.context("a status")?;
    ensure!(String::from_utf8_lossy(&status.bytes).contains("connection_status"), "got {status:?}");
    Ok(Box::new((session, send, receive)))
}
