//! One run: a network, a server in it, and every variant at the same time on the same link.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use chatbox::client::Dialer;
use serde::Serialize;
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    link::Settings,
    network::{Namespace, Network, Route},
    router::Tallies,
    server::{self, Server},
    source::{self, Device},
    watch::{Arrivals, Watcher},
};

/// What is sent to each connection.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Load {
    /// how long it is sent for
    pub(crate) seconds: Duration,
    /// sessions with a running answer; one more has independent messages
    pub(crate) answers: usize,
    /// pieces of one answer in a second
    pub(crate) piece_rate: u32,
    /// bytes of a piece
    pub(crate) piece_bytes: usize,
    /// messages in a second
    pub(crate) message_rate: u32,
    /// bytes of a message
    pub(crate) message_bytes: usize,
}

impl Load {
    /// Pieces of one answer.
    pub(crate) fn pieces(&self) -> usize {
        self.times(self.piece_rate)
    }

    pub(crate) fn messages(&self) -> usize {
        self.times(self.message_rate)
    }

    fn times(&self, rate: u32) -> usize {
        usize::try_from(self.seconds.as_secs() * u64::from(rate)).unwrap_or(usize::MAX)
    }

    pub(crate) fn piece_pause(&self) -> Duration {
        Duration::from_secs(1) / self.piece_rate
    }

    pub(crate) fn message_pause(&self) -> Duration {
        Duration::from_secs(1) / self.message_rate
    }
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Variant {
    /// WebSocket over TLS, TCP with BBR
    Bbr,
    /// WebSocket over TLS, TCP with CUBIC
    Cubic,
    /// WebTransport
    Streams,
    /// WebTransport with copies of small frames as datagrams
    Copies,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bbr => "WSS, TCP bbr",
            Self::Cubic => "WSS, TCP cubic",
            Self::Streams => "WebTransport",
            Self::Copies => "WebTransport + copies",
        })
    }
}

/// TCP's congestion controls, one for each route of the network.
const CONGESTION: [&str; 2] = ["bbr", "cubic"];

impl Variant {
    fn route(self, routes: &[Route]) -> Option<Route> {
        routes.get(usize::from(self == Self::Cubic)).copied()
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// the way from the server to the clients, and back
    pub(crate) ways: [Settings; 2],
    pub(crate) seed: u64,
    pub(crate) load: Load,
    pub(crate) variants: Vec<Variant>,
    /// the server
    pub(crate) binary: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) arrivals: Vec<(Variant, Arrivals)>,
    /// from the server to the clients, and back
    pub(crate) tallies: [Tallies; 2],
    /// the congestion control of each of the server's TCP connections over the link, as the kernel tells
    pub(crate) congestion: Vec<String>,
}

/// Makes the network, or says why this machine does not allow one.
pub(crate) fn network(plan: &Plan) -> anyhow::Result<Network> {
    Network::new(&CONGESTION, plan.ways.clone(), plan.seed)
}

/// Runs a plan on its network.
///
/// # Errors
/// When the server or a connection fails, when anything that was sent did not arrive as it was sent, and when `stop`
/// says so.
pub(crate) fn run(plan: &Plan, network: &Network, stop: &CancellationToken) -> anyhow::Result<Outcome> {
    let (ready, opened) = oneshot::channel();
    let (attached, begin) = oneshot::channel();
    let (arrived, end) = oneshot::channel();
    let (congestion, arrivals) = std::thread::scope(|threads| {
        let routes = &network.routes;
        let source = threads.spawn(move || inside(&network.server, stop, send(plan, routes, ready, begin, end)));
        let watchers = threads.spawn(move || inside(&network.client, stop, receive(plan, opened, attached, arrived)));
        let arrivals = watchers.join().unwrap_or_else(|_panic| Err(anyhow::anyhow!("they panicked")));
        (source.join().unwrap_or_else(|_panic| Err(anyhow::anyhow!("it panicked"))), arrivals)
    });
    match (congestion, arrivals) {
        (Ok(congestion), Ok(arrivals)) => Ok(Outcome { arrivals, congestion, tallies: network.tallies() }),
        // One of them may have failed because the other did.
        (congestion, arrivals) => {
            let told = |err: Option<anyhow::Error>| err.map_or_else(|| "well".to_owned(), |err| format!("{err:#}"));
            anyhow::bail!("server's side: {}\nclients' side: {}", told(congestion.err()), told(arrivals.err()));
        }
    }
}

/// Runs on the calling thread, which moves into the namespace.
fn inside<T>(
    namespace: &Namespace,
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    namespace.enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(stop.run_until_cancelled(work)).context("interrupted")?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// What watchers connect to: a dialer for each variant, and the sessions.
struct Open {
    dialers: Vec<Dialer>,
    sessions: Vec<String>,
}

async fn send(
    plan: &Plan,
    routes: &[Route],
    ready: oneshot::Sender<Open>,
    begin: oneshot::Receiver<()>,
    end: oneshot::Receiver<()>,
) -> anyhow::Result<Vec<String>> {
    let mut tasks = JoinSet::new();
    let endpoint = source::model(plan.load, &mut tasks).await?;
    // In memory where there is such a folder: the network is compared, not the disk.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let server = Server::start(&plan.binary, folder.path(), &endpoint).await?;
    let token = server::token()?;
    let device = Device::open(&server.dialer("127.0.0.1")?, &token).await?;
    let mut sessions = Vec::new();
    for _ in 0..=plan.load.answers {
        sessions.push(device.session().await?);
    }
    let dialers = plan.variants.iter().map(|variant| server.dialer(variant.route(routes).context("a route")?.server));
    let open = Open { dialers: dialers.collect::<Result<_, _>>()?, sessions: sessions.clone() };
    ensure!(ready.send(open).is_ok(), "the clients are gone");
    begin.await.context("the clients are not attached")?;
    let congestion = congestion_controls()?;
    device.talk(&sessions, plan.load).await?;
    end.await.context("the clients did not get everything")?;
    Ok(congestion)
}

/// What the kernel uses for this namespace's connections that do not stay within it.
fn congestion_controls() -> anyhow::Result<Vec<String>> {
    let output = Command::new("ss").args(["-Htin", "state", "established"]).output().context("run `ss`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    let link = lines.chunks(2).filter(|pair| pair.first().is_some_and(|ends| !ends.contains("127.0.0.1")));
    let names = link.filter_map(|pair| pair.get(1)?.split_whitespace().next());
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

async fn receive(
    plan: &Plan,
    opened: oneshot::Receiver<Open>,
    attached: oneshot::Sender<()>,
    arrived: oneshot::Sender<()>,
) -> anyhow::Result<Vec<(Variant, Arrivals)>> {
    let Open { dialers, sessions } = opened.await.context("the server is not there")?;
    let token = server::token()?;
    let mut watchers = Vec::new();
    for (variant, dialer) in plan.variants.iter().zip(&dialers) {
        watchers.push(Watcher::open(dialer, *variant, &token, &sessions, plan.load).await?);
    }
    ensure!(attached.send(()).is_ok(), "the source is gone");
    let read = watchers.into_iter().map(|watcher| watcher.read(&sessions, plan.load));
    let read = futures_util::future::try_join_all(read).await?;
    ensure!(arrived.send(()).is_ok(), "the source is gone");
    Ok(plan.variants.iter().copied().zip(read).collect())
}
