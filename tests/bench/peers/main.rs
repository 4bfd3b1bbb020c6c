//! chatbox beside named servers, in one interleaved run: CPU time of each server for a message, a delivery, a new
//! connection, and its memory for an idle one. No number transfers to another machine; the ratios are the result.
//!
//! Run: `tests/bench/peers/install`, then `cargo bench --bench peers -- [--quick] [--json FILE] [SCENARIO...]` with
//! the scenarios `relay`, `streams`, `fanout`, `connections`. Linux only: it reads `/proc`. Each sample has a fresh
//! server on one core, and the load on the others; the servers take turns, and the median of the rounds counts.
//! The echo of fastwebsockets is measured first and last: when the two differ by more than 25 %, the machine was not
//! quiet, and the run fails. So it does when anything went unanswered. A missed bar is printed and fails nothing.
#![expect(clippy::print_stdout, reason = "a bench prints")]

mod bars;
mod contest;
mod fanout;
mod frames;
mod measure;
mod pairs;
mod quic;
mod serve;
mod server;
mod socket;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use chatbox::bench::{
    process::{self, Cores},
    report::{self, LAYOUT, Machine, Report, Row},
};
use clap::{Parser, ValueEnum};

use crate::{
    contest::Task,
    measure::{Kind, Profile, Subject},
    server::{Peer, Programs},
};

/// How far the first and the last sample of the gauge may be apart, as a part of the first.
const NOISE_MAX: f64 = 0.25;

/// chatbox beside named servers.
#[derive(Parser)]
struct Arguments {
    /// what to measure; all of it when nothing is named
    scenarios: Vec<Scenario>,
    /// fewer connections, one round: whether it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// measure only these servers, such as `chatbox`, to look at one of them with other tools
    #[arg(long = "peer")]
    peers: Vec<String>,
    /// measure this binary of chatbox in place of that of this build
    #[arg(long)]
    binary: Option<PathBuf>,
    /// write the report there
    #[arg(long)]
    json: Option<PathBuf>,
    /// what `cargo bench` says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Scenario {
    /// a frame relayed, a message stored, over WebSocket
    Relay,
    /// the same over WebTransport
    Streams,
    /// one message to many
    Fanout,
    /// memory of idle connections, CPU time of new ones
    Connections,
}

const FULL: Profile = Profile {
    pairs: 200,
    subscribers: 1000,
    connections: 1000,
    rounds: 3,
    warm_up: Duration::from_secs(1),
    duration: Duration::from_secs(2),
};

const QUICK: Profile = Profile {
    pairs: 50,
    subscribers: 200,
    connections: 200,
    rounds: 1,
    warm_up: Duration::from_secs(1),
    duration: Duration::from_secs(1),
};

impl Scenario {
    /// Who takes part, and in what. Each comes once a round, in this order.
    fn entries(self) -> Vec<(Peer, Subject)> {
        use Peer::{Axum, Chatbox, Fastwebsockets, Nats, SocketIo, Sqlite, TungsteniteTls, Uws, WebTransportQuinn, Ws};
        let (fanout, quic) = (Subject::Fanout { quic: false }, Subject::Fanout { quic: true });
        match self {
            Self::Relay => {
                let mut entries: Vec<_> = [Fastwebsockets, Chatbox, Uws, Axum, Nats, SocketIo]
                    .map(|peer| (peer, Subject::Pairs(Task::Relay)))
                    .into();
                entries.extend([Fastwebsockets, Nats].map(|peer| (peer, Subject::Pairs(Task::Between))));
                entries.extend([Chatbox, Sqlite].map(|peer| (peer, Subject::Pairs(Task::Stored))));
                entries
            }
            Self::Streams => [
                (WebTransportQuinn, Task::Streams),
                (Chatbox, Task::RelayQuic),
                (WebTransportQuinn, Task::RelayQuic),
                (Chatbox, Task::Streams),
                (Chatbox, Task::StoredQuic),
            ]
            .map(|(peer, task)| (peer, Subject::Pairs(task)))
            .into(),
            Self::Fanout => {
                let mut entries: Vec<_> = [Uws, Chatbox, Axum, Ws, Nats, SocketIo].map(|peer| (peer, fanout)).into();
                entries.extend([(WebTransportQuinn, quic), (Chatbox, quic)]);
                entries
            }
            Self::Connections => [
                (Axum, Kind::Plain),
                (Chatbox, Kind::Plain),
                (Ws, Kind::Plain),
                (Uws, Kind::Plain),
                (TungsteniteTls, Kind::Tls),
                (Chatbox, Kind::Tls),
                (WebTransportQuinn, Kind::Quic),
                (Chatbox, Kind::Quic),
            ]
            .map(|(peer, kind)| (peer, Subject::Connections(kind)))
            .into(),
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("serve") {
        serve::run(&words.next().unwrap_or_default())?;
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse();
    let files = process::raise_open_files();
    let needed = if arguments.quick { QUICK } else { FULL }.files();
    anyhow::ensure!(files >= needed, "{needed} open files are needed, and {files} allowed (ulimit -n)");
    let cores = Cores::plan();
    let binary = arguments.binary.as_deref().unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_chatbox")));
    let programs = Programs::find(cores, binary)?;
    if let Some(cores) = cores {
        cores.take_load()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (report, quiet) = runtime.block_on(run(&arguments, &programs))?;
    table::print(&report);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
        println!("\nwritten to {}", path.display());
    }
    let failures: u64 = report.rows.iter().map(|row| row.failures).sum();
    Ok(if quiet && failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures everything; whether the machine was quiet is the second.
async fn run(arguments: &Arguments, programs: &Programs) -> anyhow::Result<(Report, bool)> {
    let profile = if arguments.quick { QUICK } else { FULL };
    let load_before = report::load_average();
    let first = gauge(programs, &profile).await?;
    let mut rows = Vec::new();
    for scenario in Scenario::value_variants() {
        if arguments.scenarios.is_empty() || arguments.scenarios.contains(scenario) {
            let mut entries = scenario.entries();
            entries.retain(|(peer, _)| arguments.peers.is_empty() || arguments.peers.contains(&peer.to_string()));
            rows.extend(rounds(entries, programs, &profile).await?);
        }
    }
    let last = gauge(programs, &profile).await?;
    let moved = (last / first - 1.0).abs();
    let quiet = moved <= NOISE_MAX;
    println!("gauge: {first:.1} us at first, {last:.1} us at last, {:.0} % apart", moved * 100.0);
    if !quiet {
        println!("not quiet: the gauge may move by {:.0} %; these numbers count for nothing", NOISE_MAX * 100.0);
    }
    let comparisons = bars::compare(&rows);
    let mut settings = profile.settings();
    settings
        .extend([("gauge_first_us", first), ("gauge_last_us", last)].map(|(key, us)| (key.into(), format!("{us:.2}"))));
    let report = Report {
        layout: LAYOUT,
        command: command(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: report::build().to_owned(),
        machine: Machine::here(),
        load_before,
        load_after: report::load_average(),
        stopped: false,
        settings,
        rows,
        comparisons,
    };
    Ok((report, quiet))
}

/// CPU time that fastwebsockets needs to send a message back, in microseconds.
async fn gauge(programs: &Programs, profile: &Profile) -> anyhow::Result<f64> {
    let row = measure::sample(programs, Peer::Fastwebsockets, Subject::Pairs(Task::Relay), profile).await?;
    row.cpu_us.ok_or_else(|| anyhow::anyhow!("the gauge has no CPU time"))
}

/// All entries, one after the other, as often as there are rounds; the median of each.
async fn rounds(entries: Vec<(Peer, Subject)>, programs: &Programs, profile: &Profile) -> anyhow::Result<Vec<Row>> {
    let mut taking_part: Vec<_> = Vec::new();
    for (peer, subject) in entries {
        match programs.lacks(peer) {
            Some(reason) => println!("{peer} does not take part: {reason}"),
            None => taking_part.push((peer, subject, Vec::new())),
        }
    }
    for round in 1..=profile.rounds {
        for (peer, subject, rows) in &mut taking_part {
            let row = measure::sample(programs, *peer, *subject, profile).await?;
            println!("{}", table::line(&row, round));
            rows.push(row);
        }
    }
    Ok(taking_part.into_iter().filter_map(|(_, _, rows)| Row::median(rows)).collect())
}

fn command() -> String {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    format!("cargo bench --bench peers -- {}", words.join(" ")).trim_end().to_owned()
}
