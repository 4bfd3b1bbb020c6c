//! The servers that are compared: how each is started, and where it is.
//!
//! A program that is not there is left out by whoever asks; it is never replaced by another one.

use std::{
    fmt,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use chatbox::{
    bench::process::{Cores, Owned},
    config::secret::Secret,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::frames;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Peer {
    Chatbox,
    Fastwebsockets,
    /// the same, and what it is told is stored
    Sqlite,
    Axum,
    TungsteniteTls,
    WebTransportQuinn,
    Uws,
    Ws,
    SocketIo,
    Nats,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Chatbox => "chatbox",
            Self::Fastwebsockets => "fastwebsockets",
            Self::Sqlite => "SQLite",
            Self::Axum => "axum",
            Self::TungsteniteTls => "tungstenite-tls",
            Self::WebTransportQuinn => "web-transport-quinn",
            Self::Uws => "uWebSockets.js",
            Self::Ws => "Node ws",
            Self::SocketIo => "Socket.IO",
            Self::Nats => "NATS",
        })
    }
}

impl Peer {
    /// The name that the script for Node knows it by.
    fn script(self) -> Option<&'static str> {
        match self {
            Self::Uws => Some("uws"),
            Self::Ws => Some("ws"),
            Self::SocketIo => Some("socketio"),
            _ => None,
        }
    }
}

/// Where the programs of others are, and which of them there are.
pub(crate) struct Programs {
    folder: PathBuf,
    binary: PathBuf,
    cores: Option<Cores>,
}

/// A server that runs. It ends when this is dropped.
pub(crate) struct Running {
    process: Owned,
    pub(crate) address: SocketAddr,
    /// what its TLS listener shows
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// what only chatbox has
    pub(crate) site: Option<Site>,
    _home: tempfile::TempDir,
}

/// Where clients of chatbox find it, and what its tokens are signed with.
pub(crate) struct Site {
    pub(crate) quic: SocketAddr,
    pub(crate) secret: Secret,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub(crate) fn site(&self) -> anyhow::Result<&Site> {
        self.site.as_ref().context("this server is not chatbox")
    }

    pub(crate) fn certificate(&self) -> anyhow::Result<&CertificateDer<'static>> {
        self.certificate.as_ref().context("this server has no certificate")
    }
}

impl Programs {
    /// Looks into the folder that `tests/bench/peers/install` fills. `binary` is chatbox.
    pub(crate) fn find(cores: Option<Cores>, binary: &Path) -> anyhow::Result<Self> {
        let executable = std::env::current_exe()?;
        // This binary is target/PROFILE/deps/peers-HASH.
        let target = executable.ancestors().nth(3).context("this binary is in no target folder")?;
        Ok(Self { folder: target.join("bench-peers"), binary: binary.canonicalize()?, cores })
    }

    /// Why a peer cannot take part, or nothing.
    pub(crate) fn lacks(&self, peer: Peer) -> Option<String> {
        let node = || Command::new("node").args(["-p", "process.versions.modules"]).output().ok();
        let missing = |path: &Path| (!path.exists()).then(|| format!("{} is missing", path.display()));
        match peer {
            Peer::Chatbox
            | Peer::Fastwebsockets
            | Peer::Sqlite
            | Peer::Axum
            | Peer::TungsteniteTls
            | Peer::WebTransportQuinn => None,
            Peer::Nats => missing(&self.folder.join("nats-server")),
            Peer::Ws => missing(&self.folder.join("node_modules/ws")),
            Peer::SocketIo => missing(&self.folder.join("node_modules/socket.io")),
            Peer::Uws => {
                let Some(output) = node() else { return Some("node is missing".to_owned()) };
                let abi = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                let file = format!("uws_linux_x64_{abi}.node");
                missing(&self.folder.join("node_modules/@trufflesuite/uws-js-unofficial/dist").join(file))
            }
        }
    }

    /// Starts it on free ports of loopback, with data of its own, on the server's core.
    pub(crate) fn start(&self, peer: Peer) -> anyhow::Result<Running> {
        let home = tempfile::tempdir()?;
        match peer {
            Peer::Chatbox => self.chatbox(home),
            Peer::Nats => self.nats(home),
            Peer::Uws | Peer::Ws | Peer::SocketIo => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers/server.js");
                let mut command = Command::new("node");
                command.arg(script).args(peer.script()).current_dir(&self.folder);
                self.announced(command, home)
            }
            Peer::Fastwebsockets | Peer::Sqlite | Peer::Axum | Peer::TungsteniteTls | Peer::WebTransportQuinn => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("serve").arg(peer.to_string()).current_dir(home.path());
                self.announced(command, home)
            }
        }
        .with_context(|| format!("start {peer}"))
    }

    fn spawn(&self, command: &mut Command) -> anyhow::Result<Owned> {
        let child = match self.cores {
            Some(cores) => cores.start_server(command)?,
            None => command.spawn()?,
        };
        Ok(Owned(child))
    }

    /// A server whose first line is its port and, maybe, its certificate; it ends with its input.
    fn announced(&self, mut command: Command, home: tempfile::TempDir) -> anyhow::Result<Running> {
        let mut process = self.spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        let line = first_line(&mut process)?;
        let (port, certificate) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let certificate = match certificate {
            "" => None,
            shown => Some(CertificateDer::from(hex::decode(shown)?)),
        };
        let address = ([127, 0, 0, 1], port.parse()?).into();
        Ok(Running { process, address, certificate, site: None, _home: home })
    }

    fn nats(&self, home: tempfile::TempDir) -> anyhow::Result<Running> {
        let (port, websocket) = (free_port()?, free_port()?);
        let settings = home.path().join("nats.conf");
        std::fs::write(
            &settings,
            format!(
                "listen: 127.0.0.1:{port}\nwebsocket {{ listen: \"127.0.0.1:{websocket}\", no_tls: true, compression: \
                 false }}\n"
            ),
        )?;
        let mut command = Command::new(self.folder.join("nats-server"));
        command.arg("-c").arg(settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = self.spawn(&mut command)?;
        let address = ([127, 0, 0, 1], websocket).into();
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < PATIENCE, "nothing listens on {address}");
            std::thread::yield_now();
        }
        Ok(Running { process, address, certificate: None, site: None, _home: home })
    }

    /// chatbox, with limits that no load of one address reaches, and the model that answers at once, in one piece.
    fn chatbox(&self, home: tempfile::TempDir) -> anyhow::Result<Running> {
        let quic = free_port()?;
        let mut command = Command::new(&self.binary);
        command.current_dir(home.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let many = "1000000";
        let settings = [
            ("LISTEN__HTTP", "127.0.0.1:0"),
            ("LISTEN__QUIC", &format!("127.0.0.1:{quic}")),
            ("LISTEN__OPS", "127.0.0.1:0"),
            ("LIMITS__CONNECTIONS", many),
            ("LIMITS__CONNECTIONS_PER_ADDRESS", many),
            ("LIMITS__CONNECTIONS_PER_USER", many),
            ("LIMITS__MESSAGES_PER_MINUTE", many),
            ("LIMITS__REQUESTS_PER_MINUTE", many),
            ("LLM__PROVIDERS__DEMO__TYPE", "demo"),
            ("LLM__PROVIDERS__DEMO__PACE", "0s"),
            ("LLM__PROVIDERS__DEMO__ANSWER", frames::ANSWER),
            ("SESSIONS__MODEL_NAMES", "false"),
        ];
        for (key, value) in settings {
            command.env(format!("CHATBOX_{key}"), value);
        }
        let mut process = self.spawn(&mut command)?;
        let line = first_line(&mut process)?;
        let url: url::Url = line.trim().parse().context("the first line is a URL")?;
        let address = *url.socket_addrs(|| None)?.first().context("the URL has an address")?;
        let secret = Secret::new(std::fs::read_to_string(home.path().join("data/jwt_secret"))?.trim());
        let pem = std::fs::read(home.path().join("certs/cert.pem"))?;
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(&pem)?;
        let site = Site { quic: ([127, 0, 0, 1], quic).into(), secret };
        Ok(Running { process, address, certificate: Some(certificate), site: Some(site), _home: home })
    }
}

fn first_line(process: &mut Owned) -> anyhow::Result<String> {
    let output = process.0.stdout.take().context("no standard output")?;
    let (sender, receiver) = std::sync::mpsc::channel();
    // It goes on reading, so that a server which says more than a line is not stopped by a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                continue;
            }
        }
    });
    receiver.recv_timeout(PATIENCE).context("it has not said where it is")
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
