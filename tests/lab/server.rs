//! The real server as a process in the calling thread's namespace.

use std::{net::Ipv4Addr, path::Path, process::Stdio, time::Duration};

use anyhow::Context as _;
use chatbox::{
    auth::{self, Role, issuer::Issuer},
    chat::UserId,
    client::{Dialer, Site},
    config::secret::Secret,
    protocol::Limits,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};
use url::Url;

use super::source::PATIENCE;

/// QUIC and TLS, on every address of the namespace.
const PORT: u16 = 8443;

const SECRET: &str = "the lab's secret, as good as any other, for it leaves no namespace";

/// Five watches and what a device asks beside them.
const STREAMS: &str = "12";

/// What differs from the defaults: one person has several sessions, and many connections that say much.
const SETTINGS: [(&str, &str); 18] = [
    ("CHATBOX_LISTEN__HTTP", "127.0.0.1:8080"),
    ("CHATBOX_LISTEN__QUIC", "0.0.0.0:8443"),
    ("CHATBOX_LISTEN__OPS", "127.0.0.1:8081"),
    ("CHATBOX_AUTH__JWT_SECRET", SECRET),
    ("CHATBOX_CLUSTER_SECRET", SECRET),
    ("CHATBOX_LOG", "warn"),
    ("CHATBOX_STORE__ALLOW_PLAIN_TEXT", "true"),
    ("CHATBOX_SESSIONS__ACTIVE_PER_USER", "6"),
    ("CHATBOX_SESSIONS__MODEL_NAMES", "false"),
    ("CHATBOX_LIMITS__STREAMS", STREAMS),
    ("CHATBOX_LIMITS__MESSAGES_PER_MINUTE", "100000"),
    ("CHATBOX_LIMITS__REQUESTS_PER_MINUTE", "100000"),
    ("CHATBOX_LIMITS__QUEUED_TURNS", "100000"),
    ("CHATBOX_LLM__TIMEOUT", "1h"),
    ("CHATBOX_LLM__IDLE_TIMEOUT", "1h"),
    // The silent turn holds the queue for as long as the experiment lasts.
    ("CHATBOX_LLM__FIRST_BYTE_TIMEOUT", "1h"),
    ("CHATBOX_LLM__PROVIDERS__LAB__TYPE", "openai"),
    ("CHATBOX_LLM__PROVIDERS__LAB__MODEL", "lab"),
];

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    _child: Child,
    certificate_sha256: [u8; 32],
}

impl Server {
    /// Starts `binary` with its state in `folder`, answered by the model at `endpoint`.
    pub(crate) async fn start(binary: &Path, folder: &Path, endpoint: &str) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]).context("a certificate")?;
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, made.cert.der());
        let log = folder.join("log");
        let mut child = Command::new(binary)
            .current_dir(folder)
            // Every CHATBOX_ variable is a setting to the server, and this one is none.
            .env_remove("CHATBOX_TEST_STRICT")
            .envs(SETTINGS)
            .env("CHATBOX_TLS__CERT_FILE", certificate)
            .env("CHATBOX_TLS__KEY_FILE", key)
            .env("CHATBOX_LLM__PROVIDERS__LAB__ENDPOINT", endpoint)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        // It is the URL; the end of the output is the end of the server.
        timeout(PATIENCE, output.read_line(&mut line)).await.context("the server says nothing")??;
        if line.is_empty() {
            anyhow::bail!("the server does not start: {}", std::fs::read_to_string(log)?);
        }
        Ok(Self { _child: child, certificate_sha256: digest.as_ref().try_into()? })
    }

    /// How it is reached at an address: WebTransport and WebSocket over TLS on the same port.
    pub(crate) fn dialer(&self, address: impl std::fmt::Display) -> anyhow::Result<Dialer> {
        let url = |scheme, path| Url::parse(&format!("{scheme}://{address}:{PORT}/chatbox{path}"));
        Ok(Dialer::new(Site {
            base: url("https", "")?,
            webtransport: Some(url("https", "/wt")?),
            websocket: url("wss", "/ws")?,
            http: url("https", "/")?,
            certificate_sha256: Some(self.certificate_sha256),
            limits: Limits { streams: STREAMS.parse()?, frame_bytes: 1024 * 1024, content_chars: 10_000 },
        }))
    }
}

/// The token of the one person of the lab.
pub(crate) fn token() -> anyhow::Result<String> {
    let user = UserId::parse("lab").context("a user's name")?;
    let issuer = Issuer::new(&auth::Config::default(), &Secret::new(SECRET));
    issuer.issue(&user, Role::User, None, Duration::from_secs(3600))
}
