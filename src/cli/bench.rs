//! `chatbox bench`: loads a server and reports what it costs.

mod progress;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{BadUsage, Global};
use crate::{
    bench::{
        self, Ran, Tell,
        plan::{CONNECTIONS_MAX, DURATION_MAX, RATE_MAX, ROUNDS_MAX, Scenario, Sizes, Via},
        process::{self, Cores},
        report::Report,
        scenario::{Bench, Place},
        target::{Beyond, Own, Remote, Target},
    },
    config::secret::Secret,
};
use progress::Progress;

/// After Ctrl-C, what is measured has so long to end; then the rest is dropped.
const END_DEADLINE: Duration = Duration::from_secs(15);

/// Files that are open beside connections: the server's own, and the load generator's.
const OTHER_FILES: u64 = 200;

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// What to measure; without any, a quick profile of everything
    #[arg(value_enum, value_name = "SCENARIO")]
    scenarios: Vec<Scenario>,
    /// Numbers to publish: medians of three rounds, more connections; about a quarter of an hour for everything
    #[arg(long)]
    full: bool,
    /// Load this server, such as http://localhost:8080/chatbox, instead of one of its own
    #[arg(long, requires = "token_secret_file")]
    url: Option<Url>,
    /// The secret that tokens of that server are signed with, such as data/jwt_secret
    #[arg(long, value_name = "FILE", requires = "url")]
    token_secret_file: Option<PathBuf>,
    /// A second node of that server's cluster, where those are who read; for `relay` only
    #[arg(long, requires = "url", value_name = "URL")]
    beside: Option<Url>,
    /// The process of that server, whose CPU time and memory are read; repeated, those of several together
    #[arg(long = "pid", requires = "url", value_name = "PID")]
    pids: Vec<u32>,
    /// Send load to a server that is not on this machine. Only to one that is yours to load
    #[arg(long, requires = "url")]
    allow_remote: bool,
    /// Over which transports; may be repeated [default: webtransport and websocket]
    #[arg(long = "transport", value_enum, value_name = "TRANSPORT")]
    transports: Vec<Via>,
    /// Connections, wherever a scenario counts some; at most 20000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: Option<u32>,
    /// Measured time of each load, such as 5s; at most 10m
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Requests in a second at a fixed rate, instead of pauses after each answer; at most 200000
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Rounds of which medians are taken, 1 to 9
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: Option<u32>,
    /// Let server and load share all cores, instead of one for the server and the others for the load
    #[arg(long)]
    share_cores: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the report as one HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: print the tables of a report that was written with --out
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenarios", "full", "url", "transports", "connections", "duration", "rate", "rounds", "out", "html"])]
    markdown: Option<PathBuf>,
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    if let Some(path) = &ask.markdown {
        return print_markdown(path);
    }
    for path in ask.out.iter().chain(&ask.html) {
        // Before anything is measured; what is there is kept until there is something new.
        let writable = File::options().create(true).append(true).open(path);
        writable.with_context(|| format!("write `{}`", path.display()))?;
    }
    let sizes = ask.sizes();
    let open_files = process::raise_open_files();
    let needed = u64::try_from(sizes.connections_max())? + OTHER_FILES;
    if open_files < needed {
        let message = format!("{needed} open files are needed and {open_files} allowed: raise `ulimit -n`");
        return Err(BadUsage(message).into());
    }
    // Before cores are given away: the machine is described as it is.
    let mut report = Report::new(ask.command());
    let cores = Cores::plan().filter(|_| !ask.share_cores && ask.url.is_none());
    if let Some(cores) = cores {
        cores.take_load().context("keep the load off the server's core")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    report.settings = settings(&sizes, cores, &global.overrides);
    let progress = Arc::new(Progress::new(global.json));
    let tell = {
        let progress = Arc::clone(&progress);
        Tell::new(move |step| progress.show(&step))
    };
    let broken = runtime.block_on(async {
        let place = ask.place(global, cores).await?;
        anyhow::Ok(measure(Bench { place, sizes, stop: CancellationToken::new(), tell }, ask, &mut report).await)
    });
    progress.finish();
    // Connections that are left have nobody to wait for.
    runtime.shutdown_background();
    let broken = broken?;
    // Neither a full disk nor a reader that went away takes the other one.
    let written = write(ask, &report);
    super::print(&if global.json { serde_json::to_string(&report)? } else { bench::terminal(&report) })?;
    written?;
    if ask.scenarios.is_empty() && !ask.full && !global.json {
        super::print("This was the quick profile. `chatbox bench --full` gives numbers to publish.")?;
    }
    match (broken.first(), report.failures()) {
        (Some(first), _) => bail!("{} of the scenarios could not be measured; {first}", broken.len()),
        (None, 0) => Ok(()),
        (None, failures) => bail!("{failures} requests failed"),
    }
}

/// Runs the scenarios, and gives those that could not be measured.
async fn measure(bench: Bench, ask: &Ask, report: &mut Report) -> Vec<String> {
    let scenarios = if ask.scenarios.is_empty() { Scenario::ALL.to_vec() } else { ask.scenarios.clone() };
    let mut ran = Ran::default();
    tokio::select! {
        biased;
        () = ended(&bench.stop) => {}
        () = bench.run_all(&scenarios, &mut ran) => {}
    }
    report.stopped = bench.stop.is_cancelled();
    report.rows = ran.rows;
    report.load_after = bench::report::load_average();
    // What a run that was ended did not measure is no fault of anybody.
    if report.stopped { Vec::new() } else { ran.broken }
}

/// Resolves when the run is to be dropped: some time after the first Ctrl-C or SIGTERM, which ends it, or at the
/// second. A bench that was killed without a word would leave its server behind.
async fn ended(stop: &CancellationToken) {
    signalled().await;
    stop.cancel();
    tokio::select! {
        () = signalled() => {}
        () = tokio::time::sleep(END_DEADLINE) => {}
    }
}

/// Resolves at the next Ctrl-C or SIGTERM. Where they cannot be caught they end the process as ever.
async fn signalled() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

impl Ask {
    fn sizes(&self) -> Sizes {
        let mut sizes = if self.full { Sizes::full() } else { Sizes::quick() };
        if let Some(connections) = self.connections {
            sizes = sizes.with_connections(usize::try_from(connections).unwrap_or(CONNECTIONS_MAX));
        }
        if !self.transports.is_empty() {
            sizes.vias.clone_from(&self.transports);
        }
        sizes.duration = self.duration.unwrap_or(sizes.duration);
        sizes.warm_up = sizes.warm_up.min(sizes.duration);
        sizes.rate = self.rate;
        sizes.rounds = self.rounds.unwrap_or(sizes.rounds);
        sizes
    }

    /// Where the server is; asks it, when it is given.
    async fn place(&self, global: &Global, cores: Option<Cores>) -> anyhow::Result<Place> {
        let (Some(url), Some(file)) = (&self.url, &self.token_secret_file) else {
            let binary = std::env::current_exe().context("find this program")?;
            return Ok(Place::Own(Own { binary, overrides: global.overrides.clone(), cores }));
        };
        let secret = std::fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
        let secret = Secret::new(secret.trim());
        let target = self.given(url, &secret).await?;
        let Some(beside) = &self.beside else { return Ok(Place::Given(target)) };
        if self.scenarios != [Scenario::Relay] {
            return Err(BadUsage("--beside is for `relay` alone".to_owned()).into());
        }
        Ok(Place::Nodes(target, self.given(beside, &secret).await?))
    }

    async fn given(&self, url: &Url, secret: &Secret) -> anyhow::Result<Arc<Target>> {
        let remote = if self.allow_remote { Remote::Allowed } else { Remote::Refused };
        let target = Target::given(url, secret, self.pids.clone(), remote).await;
        let target = target.map_err(|err| match err.downcast::<Beyond>() {
            Ok(beyond) => BadUsage(format!("{beyond}; --allow-remote says so")).into(),
            Err(err) => err,
        })?;
        Ok(Arc::new(target))
    }

    /// The command that measures the same again.
    fn command(&self) -> String {
        let mut command = "chatbox bench".to_owned();
        let mut add = |part: &str| {
            command.push(' ');
            command.push_str(part);
        };
        self.scenarios.iter().for_each(|scenario| add(scenario.name()));
        self.url.iter().for_each(|url| add(&format!("--url {url}")));
        self.token_secret_file.iter().for_each(|file| add(&format!("--token-secret-file {}", file.display())));
        self.beside.iter().for_each(|url| add(&format!("--beside {url}")));
        if self.allow_remote {
            add("--allow-remote");
        }
        self.transports.iter().for_each(|via| add(&format!("--transport {via}")));
        if self.full {
            add("--full");
        }
        if self.share_cores {
            add("--share-cores");
        }
        let numbers = [
            ("connections", self.connections.map(|number| number.to_string())),
            // One word, as the command line takes it.
            (
                "duration",
                self.duration.map(|duration| humantime::format_duration(duration).to_string().replace(' ', "")),
            ),
            ("rate", self.rate.map(|rate| rate.to_string())),
            ("rounds", self.rounds.map(|rounds| rounds.to_string())),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                add(&format!("--{name} {value}"));
            }
        }
        command
    }
}

fn settings(sizes: &Sizes, cores: Option<Cores>, overrides: &[(String, String)]) -> BTreeMap<String, String> {
    let cores = if cores.is_some() { "one for the server, the others for the load" } else { "shared" };
    let own = [
        ("cores".to_owned(), cores.to_owned()),
        ("measured time of a load".to_owned(), humantime::format_duration(sizes.duration).to_string()),
        ("rounds".to_owned(), sizes.rounds.to_string()),
    ];
    own.into_iter().chain(overrides.iter().cloned()).collect()
}

fn write(ask: &Ask, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &ask.out {
        let json = serde_json::to_string_pretty(report).context("write the report as JSON")?;
        std::fs::write(path, json + "\n").with_context(|| format!("write `{}`", path.display()))?;
    }
    if let Some(path) = &ask.html {
        std::fs::write(path, bench::html(report)?).with_context(|| format!("write `{}`", path.display()))?;
    }
    Ok(())
}

fn print_markdown(path: &Path) -> anyhow::Result<()> {
    let json = std::fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    super::print(bench::markdown(&Report::read(&json)?).trim_end())
}

fn duration(text: &str) -> Result<Duration, BadUsage> {
    let parsed = humantime::parse_duration(text).ok().filter(|time| !time.is_zero() && *time <= DURATION_MAX);
    parsed.ok_or_else(|| BadUsage(format!("`{text}` is not a duration such as `5s`, at most `10m`")))
}

fn rate(text: &str) -> Result<f64, BadUsage> {
    let parsed = text.parse::<f64>().ok().filter(|rate| (1.0..=RATE_MAX).contains(rate));
    parsed.ok_or_else(|| BadUsage(format!("`{text}` is not a rate from 1 to {RATE_MAX} in a second")))
}
