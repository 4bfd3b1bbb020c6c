//! One sample: a fresh server, its load, its row.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use chatbox::bench::{
    load::{self, Pace, Pair, Plan},
    process::Meter,
    report::{Row, Unit},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use web_transport_quinn::Session;

use crate::{
    contest::{self, Pairs, Task},
    fanout::Fanout,
    quic::{Attached, Dialer},
    server::{Peer, Programs, Running},
    socket::{self, Dialect, Socket},
};

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between an answer and the next request of the same pair.
const PAUSE: Duration = Duration::from_millis(50);
/// Messages of fan-out in a second.
const PER_SECOND: f64 = 20.0;
/// Connections that are there before memory is read: what the first ones allocate is shared.
const FIRST: usize = 50;
/// Connections that are opened before they attach: chatbox closes one that has not after 5 s.
const BATCH: usize = 250;
/// What follows a connection has settled by then: session tickets, acknowledgements.
const SETTLE: Duration = Duration::from_secs(2);

/// How much, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    pub(crate) pairs: usize,
    pub(crate) subscribers: usize,
    pub(crate) connections: usize,
    pub(crate) rounds: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

impl Profile {
    /// What the report says about it.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        let settings = [
            ("pairs", self.pairs.to_string()),
            ("pause_ms", PAUSE.as_millis().to_string()),
            ("payload_bytes", crate::frames::PAYLOAD_BYTES.to_string()),
            ("subscribers", self.subscribers.to_string()),
            ("fanout_per_second", PER_SECOND.to_string()),
            ("connections", self.connections.to_string()),
            ("rounds", self.rounds.to_string()),
            ("duration_s", self.duration.as_secs_f64().to_string()),
        ];
        settings.map(|(key, value)| (key.to_owned(), value)).into()
    }

    /// Files that this process, or a server, has open at a time.
    pub(crate) fn files(&self) -> u64 {
        // A pair of devices has two, and everything else that is open is little.
        let connections = self.connections.max(self.subscribers).max(2 * self.pairs);
        u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(256)
    }

    fn plan(&self, pace: Pace) -> Plan {
        let stop = CancellationToken::new();
        Plan { pace, warm_up: self.warm_up, duration: self.duration, deadline: DEADLINE, stop }
    }
}

/// What of a server is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Pairs(Task),
    Fanout { quic: bool },
    Connections(Kind),
}

/// A kind of connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// a WebSocket
    Plain,
    /// a WebSocket over TLS
    Tls,
    /// a session of WebTransport
    Quic,
}

impl Subject {
    /// The scenario and the transport of its row.
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Pairs(Task::Relay) => ("relay", "websocket"),
            Self::Pairs(Task::Between) => ("between", "websocket"),
            Self::Pairs(Task::Stored) => ("stored", "websocket"),
            Self::Pairs(Task::RelayQuic) => ("relay", "webtransport"),
            Self::Pairs(Task::Streams) => ("streams", "webtransport"),
            Self::Pairs(Task::StoredQuic) => ("stored", "webtransport"),
            Self::Fanout { quic: false } => ("fanout", "websocket"),
            Self::Fanout { quic: true } => ("fanout", "webtransport"),
            Self::Connections(Kind::Plain) => ("connections", "websocket"),
            Self::Connections(Kind::Tls) => ("connections", "websocket tls"),
            Self::Connections(Kind::Quic) => ("connections", "webtransport"),
        }
    }
}

/// Starts the server, measures it, and ends it.
pub(crate) async fn sample(
    programs: &Programs,
    peer: Peer,
    subject: Subject,
    profile: &Profile,
) -> anyhow::Result<Row> {
    let server = programs.start(peer)?;
    let row = match subject {
        Subject::Pairs(task) => exchanges(&server, peer, task, profile).await,
        Subject::Fanout { quic } => fanout(&server, peer, quic, profile).await,
        Subject::Connections(kind) => connections(&server, peer, kind, profile).await,
    };
    let (scenario, transport) = subject.place();
    let row = row.with_context(|| format!("{scenario} of {peer} over {transport}"))?;
    Ok(Row { scenario: scenario.to_owned(), transport: transport.to_owned(), server: peer.to_string(), ..row })
}

async fn exchanges(server: &Running, peer: Peer, task: Task, profile: &Profile) -> anyhow::Result<Row> {
    let pairs = contest::pairs(server, peer, task, profile.pairs).await?;
    let stored = matches!(task, Task::Stored | Task::StoredQuic);
    let plan = profile.plan(Pace::Paced(PAUSE));
    let mut row = match pairs {
        Pairs::Echo(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::Relay(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::Stored(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::EchoOne(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::EchoEach(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::RelayQuic(pairs) => run(server, pairs, &plan, 1).await,
        Pairs::Asks(pairs) => run(server, pairs, &plan, 1).await,
    }?;
    if stored {
        // Of each conversation at the end: a message and its answer for each turn, those of the warm-up included.
        let time = (profile.warm_up + profile.duration).as_secs_f64() / profile.duration.as_secs_f64();
        let entries = 2.0 * per(row.n, time) / per(u64::try_from(profile.pairs)?, 1.0);
        row.settings.insert("entries".to_owned(), format!("{entries:.0}"));
    }
    Ok(row)
}

async fn fanout(server: &Running, peer: Peer, quic: bool, profile: &Profile) -> anyhow::Result<Row> {
    let fanout = Fanout::open(server, peer, quic, profile.subscribers).await?;
    let plan = profile.plan(Pace::Rate(PER_SECOND));
    let row = run(server, vec![fanout], &plan, u64::try_from(profile.subscribers)?).await?;
    Ok(Row { unit: Unit::Delivery, ..row })
}

/// Loads the server; each round trip counts for so many.
async fn run<P: Pair>(server: &Running, pairs: Vec<P>, plan: &Plan, each: u64) -> anyhow::Result<Row> {
    let mut meter = Meter::of(server.pid())?;
    let outcome = load::run(pairs, plan, Some(&mut meter)).await;
    let row = Row::of("", plan.pace.to_string(), &outcome.recorded);
    let n = row.n * each;
    ensure!(n > 0, "nothing was answered: {:?}", row.reasons);
    let cpu = outcome.cpu.context("the server has ended")?;
    let per_second = per(n, 1.0 / outcome.elapsed.as_secs_f64());
    Ok(Row { n, cpu_us: Some(micros(cpu, n)), per_second: Some(per_second), ..row })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^53")]
fn per(n: u64, of: f64) -> f64 {
    n as f64 * of
}

fn micros(cpu: Duration, n: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / per(n, 1.0)
}

/// Connections of a kind: CPU time to open each, and its memory once it is idle. Those of chatbox are attached to a
/// session of a user of their own before memory is read; what attaching costs is a setting of the row.
async fn connections(server: &Running, peer: Peer, kind: Kind, profile: &Profile) -> anyhow::Result<Row> {
    let door = Door::new(server, peer, kind)?;
    let mut meter = Meter::of(server.pid())?;
    let mut held = door.open(&mut meter, FIRST).await?.held;
    settle().await;
    let before = meter.resident_bytes()?;
    let (mut opening, mut attaching) = (Duration::ZERO, Duration::ZERO);
    while held.len() < FIRST + profile.connections {
        let opened = door.open(&mut meter, BATCH.min(FIRST + profile.connections - held.len())).await?;
        held.extend(opened.held);
        opening += opened.opening;
        attaching += opened.attaching;
    }
    settle().await;
    let grown = meter.resident_bytes()?.saturating_sub(before);
    let n = u64::try_from(profile.connections)?;
    let mut row = Row { unit: Unit::Connection, n, rounds: 1, ..Row::default() };
    row.cpu_us = Some(micros(opening, n));
    row.bytes = Some(per(grown, 1.0) / per(n, 1.0));
    if peer == Peer::Chatbox {
        row.settings.insert("attach_cpu_us".to_owned(), format!("{:.1}", micros(attaching, n)));
    }
    Ok(row)
}

async fn settle() {
    tokio::time::sleep_until(Instant::now() + SETTLE).await;
}

/// Where connections of one kind are opened.
struct Door<'a> {
    server: &'a Running,
    peer: Peer,
    kind: Kind,
    dialer: Option<Dialer>,
    tls: Option<Arc<rustls::ClientConfig>>,
}

/// What stays open.
#[expect(dead_code, reason = "held, not used")]
enum Held {
    Socket(Socket),
    Session(Session),
    Attached(Attached),
}

struct Opened {
    held: Vec<Held>,
    opening: Duration,
    attaching: Duration,
}

impl<'a> Door<'a> {
    fn new(server: &'a Running, peer: Peer, kind: Kind) -> anyhow::Result<Self> {
        let dialer = if kind == Kind::Quic { Some(Dialer::new(server)?) } else { None };
        let tls = if kind == Kind::Tls { Some(Arc::new(socket::tls(server)?)) } else { None };
        Ok(Self { server, peer, kind, dialer, tls })
    }

    /// Opens so many, then attaches them.
    async fn open(&self, meter: &mut Meter, count: usize) -> anyhow::Result<Opened> {
        let begin = meter.cpu()?;
        let open = contest::each(count, async |_| self.connect().await).await?;
        let opened = meter.cpu()?;
        let mut held = Vec::with_capacity(open.len());
        for connection in open {
            held.push(if self.peer == Peer::Chatbox { self.attach(connection).await? } else { connection });
        }
        let attached = meter.cpu()?;
        Ok(Opened { held, opening: opened.saturating_sub(begin), attaching: attached.saturating_sub(opened) })
    }

    async fn connect(&self) -> anyhow::Result<Held> {
        let path = match (self.peer, self.kind) {
            (Peer::Chatbox, Kind::Quic) => "/chatbox/wt",
            (Peer::Chatbox, _) => "/chatbox/ws",
            (_, Kind::Quic) => "/each",
            _ => "/echo",
        };
        Ok(match (&self.dialer, &self.tls) {
            (Some(dialer), _) => Held::Session(dialer.open(path).await?),
            (None, Some(tls)) => {
                let address = self.server.site.as_ref().map_or(self.server.address, |site| site.quic);
                Held::Socket(Socket::open_tls(address, tls, path).await?)
            }
            (None, _) => Held::Socket(Socket::open(self.server, path, Dialect::Plain).await?),
        })
    }

    async fn attach(&self, connection: Held) -> anyhow::Result<Held> {
        let user = uuid::Uuid::new_v4().to_string();
        Ok(match connection {
            Held::Socket(mut socket) => {
                socket.attach(self.server, &user).await?;
                Held::Socket(socket)
            }
            Held::Session(session) => Held::Attached(Attached::attach(session, self.server, &user).await?.0),
            attached @ Held::Attached(_) => attached,
        })
    }
}
