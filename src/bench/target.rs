//! The server that is measured: a child process of the same binary, or one that is given.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use url::Url;

use super::{
    plan::Via,
    process::{Cores, Meter, Owned},
};
use crate::{
    auth::{Config, Role, issuer::Issuer},
    chat::UserId,
    client::{Dialer, Site, Transport},
    config::secret::Secret,
};

/// From the start of a server of our own to its first line.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// How much of a failed server's log is told.
const LOG_LINES: usize = 5;

/// How servers of our own are started.
#[derive(Clone, Debug)]
pub struct Own {
    /// this program
    pub binary: PathBuf,
    /// `KEY=VALUE` for `--set`, over what the scenarios set
    pub overrides: Vec<(String, String)>,
    /// which cores it gets; `None`: all
    pub cores: Option<Cores>,
}

/// Why a server that is not ours is not loaded.
#[derive(Debug, thiserror::Error)]
#[error("`{url}` is not on this machine ({address}): load is sent beyond loopback only when told to")]
pub struct Beyond {
    url: String,
    address: SocketAddr,
}

/// A server that runs, and how to become somebody on it.
#[derive(Debug)]
pub struct Target {
    /// where it is
    pub site: Site,
    issuer: Issuer,
    /// what it consists of; none: not known
    pids: Vec<u32>,
    child: Option<Child>,
}

#[derive(Debug)]
struct Child {
    process: Owned,
    dir: TempDir,
}

impl Target {
    /// A server that runs already. `pids` names its processes, when they are on this machine and its cost is to be
    /// read.
    ///
    /// # Errors
    /// [`Beyond`] when an address of it is not loopback, unless `remote` allows that; and when it does not answer.
    pub async fn given(base: &Url, secret: &Secret, pids: Vec<u32>, remote: Remote) -> anyhow::Result<Self> {
        remote.check(base)?;
        let site = Site::discover(base).await.with_context(|| format!("ask `{base}` where it is"))?;
        // What discovery names may be elsewhere.
        for url in site.webtransport.iter().chain([&site.websocket, &site.http]) {
            remote.check(url)?;
        }
        Ok(Self { site, issuer: Issuer::new(&Config::default(), secret), pids, child: None })
    }

    /// Starts a server on free loopback ports with data of its own, limits that nobody reaches, and `settings` as its
    /// environment. It is killed when this is dropped.
    ///
    /// # Errors
    /// When it does not come up within 30 seconds; with the end of its log.
    pub async fn start(own: &Own, dir: TempDir, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let log = dir.path().join("log");
        let started = Self::spawn(own, &dir, settings).await;
        let (process, base) = started.map_err(|err| err.context(last_lines(&log)))?;
        let secret = std::fs::read_to_string(dir.path().join("data/jwt_secret")).context("read the server's secret")?;
        let site = Site::discover(&base).await.context("ask the server where it is")?;
        let issuer = Issuer::new(&Config::default(), &Secret::new(secret.trim()));
        let pids = vec![process.0.id()];
        Ok(Self { site, issuer, pids, child: Some(Child { process, dir }) })
    }

    async fn spawn(own: &Own, dir: &TempDir, settings: &[(&str, String)]) -> anyhow::Result<(Owned, Url)> {
        let mut command = command(own, dir.path(), settings)?;
        let child = match own.cores {
            Some(cores) => cores.start_server(&mut command),
            None => command.spawn(),
        };
        let mut process = Owned(child.with_context(|| format!("start `{}`", own.binary.display()))?);
        let output = process.0.stdout.take().context("the server has no output")?;
        // Ends with the process, which is killed when nothing came in time.
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(START_DEADLINE, line).await.context("the server says nothing")???;
        let mut base: Url = line.trim().parse().with_context(|| format!("the server's first line was `{line}`"))?;
        base.set_fragment(None);
        Ok((process, base))
    }

    /// A token for one of the people of the bench, valid for a day.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str) -> anyhow::Result<String> {
        let user = UserId::parse(user).context("a user's name has 1 to 255 bytes")?;
        self.issuer.issue(&user, Role::User, None, TOKEN_TTL)
    }

    /// What opens connections over a transport, with no session ticket yet.
    ///
    /// # Errors
    /// When the server does not offer it.
    pub fn dialer(&self, via: Via) -> anyhow::Result<(Dialer, Transport)> {
        let mut site = self.site.clone();
        let transport = match via {
            Via::Webtransport => Transport::WebTransport,
            Via::Websocket => Transport::WebSocket,
            Via::Wss => {
                site.websocket = tls_websocket(&site)?;
                Transport::WebSocket
            }
        };
        Ok((Dialer::new(site), transport))
    }

    /// Reads what the server costs; `None` when its process is not known.
    ///
    /// # Errors
    /// When the process cannot be read.
    pub fn meter(&self) -> anyhow::Result<Option<Meter>> {
        (!self.pids.is_empty()).then(|| Meter::of_all(&self.pids)).transpose()
    }

    /// The process, if it is a child of this one.
    #[must_use]
    pub fn child(&mut self) -> Option<&mut std::process::Child> {
        self.child.as_mut().map(|child| &mut child.process.0)
    }

    /// Kills a server of our own, and gives its directory for the next one; `None` for one that was given.
    #[must_use]
    pub fn kill(self) -> Option<TempDir> {
        let Child { process, dir } = self.child?;
        drop(process);
        Some(dir)
    }

    /// The last lines of the log of a server of our own, in which it says what went wrong; empty when nothing did.
    #[must_use]
    pub fn log(&self) -> String {
        self.child.as_ref().map(|child| last_lines(&child.dir.path().join("log"))).unwrap_or_default()
    }
}

/// A directory for a server of our own.
///
/// # Errors
/// When none can be made where temporary files go.
pub fn home() -> anyhow::Result<TempDir> {
    tempfile::Builder::new().prefix("chatbox-bench-").tempdir().context("make a directory for the server's data")
}

/// Where the address of a target may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remote {
    /// only on this machine
    Refused,
    /// anywhere: whoever said so may send load there
    Allowed,
}

impl Remote {
    fn check(self, url: &Url) -> anyhow::Result<()> {
        let host = url.host_str().with_context(|| format!("`{url}` has no host"))?;
        let port = url.port_or_known_default().with_context(|| format!("`{url}` has no port"))?;
        let host = host.trim_matches(['[', ']']);
        let addresses = (host, port).to_socket_addrs().with_context(|| format!("look up `{host}`"))?;
        let beyond = addresses.into_iter().find(|address| !address.ip().to_canonical().is_loopback());
        match beyond {
            Some(address) if self == Self::Refused => Err(Beyond { url: url.to_string(), address }.into()),
            _ => Ok(()),
        }
    }
}

/// The WebSocket beside WebTransport: `listen.quic` has TCP with TLS on the same port.
fn tls_websocket(site: &Site) -> anyhow::Result<Url> {
    let quic = site.webtransport.as_ref().context("the server offers no TLS")?;
    let Some(path) = quic.path().strip_suffix("/wt") else { bail!("`{quic}` does not end with /wt") };
    let mut url = quic.clone();
    url.set_path(&format!("{path}/ws"));
    ensure!(url.set_scheme("wss").is_ok(), "`{url}` cannot be a WebSocket");
    Ok(url)
}

/// The command line of a server of our own. Nothing of this process's settings reaches it.
fn command(own: &Own, dir: &Path, settings: &[(&str, String)]) -> anyhow::Result<Command> {
    use std::os::unix::process::CommandExt;
    let log = File::create(dir.join("log")).context("make the server's log")?;
    let mut command = Command::new(&own.binary);
    command.env_clear();
    for address in ["HTTP", "QUIC", "OPS"] {
        command.env(format!("CHATBOX_LISTEN__{address}"), "localhost:0");
    }
    for limit in ["CONNECTIONS", "CONNECTIONS_PER_USER", "CONNECTIONS_PER_ADDRESS"] {
        command.env(format!("CHATBOX_LIMITS__{limit}"), "100000");
    }
    for limit in ["MESSAGES", "REQUESTS", "PUBLIC"] {
        command.env(format!("CHATBOX_LIMITS__{limit}_PER_MINUTE"), "100000000");
    }
    command.env("CHATBOX_SESSIONS__MODEL_NAMES", "false");
    command.envs(settings.iter().map(|(name, value)| (format!("CHATBOX_{name}"), value)));
    command.arg("--log").arg("warn");
    for (key, value) in &own.overrides {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    // Its input ends when this process does, however that ends.
    command.args(["serve", "--until-input-ends"]).current_dir(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    // A Ctrl-C in the terminal is for the bench, which then ends its server.
    command.process_group(0);
    Ok(command)
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join(" / ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loaded_unless_told() {
        for near in ["http://127.0.0.1:8080/chatbox", "http://[::1]:8080/", "http://[::ffff:127.0.0.1]/"] {
            Remote::Refused.check(&near.parse().unwrap()).unwrap();
        }
        for far in ["http://192.0.2.7:8080/chatbox", "https://[2001:db8::1]/", "http://0.0.0.0:8080/"] {
            let url: Url = far.parse().unwrap();
            let err = Remote::Refused.check(&url).unwrap_err();
            assert!(err.is::<Beyond>() && err.to_string().contains("is not on this machine"), "{err:#}");
            Remote::Allowed.check(&url).unwrap();
        }
    }
}
