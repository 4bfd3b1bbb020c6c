//! Compares WebTransport with a WebSocket over TLS on a bad network: the real server in one network namespace, its
//! clients in another, and a router between them that loses, delays, reorders and throttles packets, TCP and UDP alike.
//!
//! ```text
//! cargo bench --bench lab                               # 0, 1, 2 and 5 % loss at 80 ms, 40 s each
//! cargo bench --bench lab -- --loss 2 --burst 4         # bursts of 4 packets
//! cargo bench --bench lab -- --json lab.json --html lab.html
//! ```
//!
//! All variants run at the same time on the same link: each is one connection of the same person that watches the same
//! five sessions, of which four have a running answer and one gets messages from another device. Every piece and every
//! message says when it was sent; what arrives is compared byte by byte. Needs Linux, `ip`, and the right to make
//! namespaces and TUN devices: without it, it prints one line and ends.
#![expect(clippy::print_stdout, reason = "a bench prints")]

mod experiment;
mod link;
mod network;
mod plot;
mod report;
mod router;
mod server;
mod source;
mod text;
mod watch;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use tokio_util::sync::CancellationToken;

use experiment::{Load, Plan, Variant};
use link::{Loss, Settings};
use report::{Report, Run};

/// Sessions with a running answer.
const ANSWERS: usize = 4;

/// Uploads do not exist in the server; they belong beside the messages here once they do.
const ABSENT: &str = "No upload runs beside the messages: this server takes none.";

/// Compares WebTransport with a WebSocket over TLS on a bad network.
#[derive(Debug, Parser)]
struct Options {
    /// Shares of packets that are lost, in percent: a run for each.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0, 2.0, 5.0])]
    loss: Vec<f64>,
    /// Packets that are lost in a row, on average; 1: each is lost by itself.
    #[arg(long, default_value_t = 1.0)]
    burst: f64,
    /// How long a packet is on its way, each way.
    #[arg(long, default_value = "40ms", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// Up to so much longer.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    jitter: Duration,
    /// The share of packets that others overtake, in percent.
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// Megabits a second from the server to the clients; absent: no bottleneck.
    #[arg(long)]
    rate: Option<f64>,
    /// Bytes that wait for the bottleneck.
    #[arg(long, default_value_t = 64 * 1024)]
    queue: usize,
    /// Nothing arrives from the server after so long …
    #[arg(long, value_parser = humantime::parse_duration, requires = "cut_for")]
    cut_after: Option<Duration>,
    /// … for so long.
    #[arg(long, value_parser = humantime::parse_duration)]
    cut_for: Option<Duration>,
    /// How long each run is.
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// Bytes of a piece of an answer; 50 pieces a second in each of four answers.
    #[arg(long, default_value_t = 100)]
    piece: usize,
    /// What is compared.
    #[arg(long, value_delimiter = ',', default_values_t = [Variant::Bbr, Variant::Cubic, Variant::Streams, Variant::Copies],
        value_enum)]
    variants: Vec<Variant>,
    /// The same seed loses the same packets of the link's sequence.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_chatbox"))]
    binary: PathBuf,
    /// Writes everything there.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes a page with plots there.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn load(&self) -> Load {
        Load {
            seconds: Duration::from_secs(self.seconds),
            answers: ANSWERS,
            piece_rate: 50,
            piece_bytes: self.piece,
            message_rate: 20,
            message_bytes: 200,
        }
    }

    fn plan(&self, loss: f64) -> Plan {
        let share = loss / 100.0;
        let loss = if self.burst > 1.0 { Loss::Bursts { share, length: self.burst } } else { Loss::Independent(share) };
        let (delay, jitter, reorder) = (self.delay, self.jitter, self.reorder / 100.0);
        let cut = self.cut_after.zip(self.cut_for).map(|(after, long)| after..after + long);
        let rate = self.rate.map(|megabits| megabits * 1e6 / 8.0);
        let up = Settings { loss, delay, jitter, reorder, ..Settings::default() };
        let down = Settings { loss, delay, jitter, reorder, rate, queue: self.queue, cut };
        Plan {
            ways: [down, up],
            seed: self.seed,
            load: self.load(),
            variants: self.variants.clone(),
            binary: self.binary.clone(),
        }
    }

    fn link(&self, loss: f64) -> String {
        let round_trip = self.delay * 2;
        let mut link = format!("{loss} % loss, {} ms round trip", round_trip.as_millis());
        if self.burst > 1.0 {
            link += &format!(", bursts of {}", self.burst);
        }
        if !self.jitter.is_zero() {
            link += &format!(", up to {} ms jitter", self.jitter.as_millis());
        }
        if self.reorder > 0.0 {
            link += &format!(", {} % overtaken", self.reorder);
        }
        if let Some(rate) = self.rate {
            link += &format!(", {rate} Mbit/s with a queue of {} B", self.queue);
        }
        if let Some((after, long)) = self.cut_after.zip(self.cut_for) {
            link += &format!(", cut after {} ms for {} ms", after.as_millis(), long.as_millis());
        }
        link
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report {
        command: std::env::args()
            .skip(1)
            .filter(|argument| argument != "--bench")
            .fold("cargo bench --bench lab --".to_owned(), |command, argument| command + " " + &argument),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        load: options.load(),
        absent: ABSENT,
        runs: Vec::new(),
    };
    println!("{ABSENT}");
    // Ctrl-C ends a run as a failure does: everything that was made is dropped, and so removed.
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    let signals = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _signals = signals.spawn(async move {
        drop(tokio::signal::ctrl_c().await);
        interrupted.cancel();
    });
    for loss in options.loss.iter().copied() {
        let plan = options.plan(loss);
        let network = match experiment::network(&plan) {
            Ok(network) => network,
            Err(err) => {
                println!("skipped: this machine does not allow it here: {err:#}");
                return Ok(());
            }
        };
        let outcome = experiment::run(&plan, &network, &stop)?;
        let run = Run::of(options.link(loss), loss / 100.0, outcome, &plan.load, options.delay);
        println!("\n{run}");
        report.runs.push(run);
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(file) = &options.html {
        std::fs::write(file, plot::page(&report)?)?;
    }
    Ok(())
}
