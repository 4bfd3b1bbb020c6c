//! What was measured, on which machine, with which settings: one type, written as JSON.
//!
//! Durations are in milliseconds, CPU time in microseconds, memory in bytes. Absolute numbers do not transfer to
//! another machine; [`Comparison`]s are ratios within one run.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::load::Recorded;

/// The version of this layout.
pub const LAYOUT: u32 = 1;

/// Everything that one run gave.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`LAYOUT`]
    pub layout: u32,
    /// the command that reproduces it
    pub command: String,
    /// version of chatbox
    pub version: String,
    /// `release` or `debug`: how the load generator, and a server of its own, were built
    pub build: String,
    /// where it ran
    pub machine: Machine,
    /// load average of the last minute before the first scenario
    pub load_before: f64,
    /// the same after the last one
    pub load_after: f64,
    /// whether it was ended before its time
    pub stopped: bool,
    /// what was set for all scenarios
    pub settings: BTreeMap<String, String>,
    /// one row for each scenario, variant, server and transport
    pub rows: Vec<Row>,
    /// ratios between rows, with the bars that they are held to
    pub comparisons: Vec<Comparison>,
}

/// The machine, as far as it explains numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// operating system and kernel release
    pub kernel: String,
    /// model name of the first core
    pub cpu: String,
    /// cores that this process may use
    pub cores: usize,
    /// memory in bytes
    pub memory_bytes: u64,
    /// the default TCP congestion control
    pub tcp_congestion_control: String,
}

/// One measurement.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// which scenario, such as `relay`
    pub scenario: String,
    /// which of its variants, such as `paced`; may be empty
    pub variant: String,
    /// what answered: `chatbox`, or a peer
    pub server: String,
    /// `webtransport`, `websocket`, …; empty where there is none
    pub transport: String,
    /// what is counted
    pub unit: Unit,
    /// how many were measured
    pub n: u64,
    /// how many of them failed; `n` does not hold them
    pub failures: u64,
    /// what the first failures said
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// of how many rounds this is the median, by CPU time or else by the median latency
    pub rounds: u32,
    /// how long each took
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// the server's CPU time for each, in microseconds
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<f64>,
    /// the server's memory for each, in bytes
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<f64>,
    /// how many in a second
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// how long all of it took, in milliseconds
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    /// what was set for this row, such as `connections`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// a frame or message, and its answer
    #[default]
    Message,
    /// a frame that one watcher got
    Delivery,
    /// a connection
    Connection,
    /// an answer of a model
    Answer,
    /// a piece of one, as the model sends it
    Piece,
    /// a start of the process
    Start,
    /// a request over HTTP or a watch
    Request,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Message => "message",
            Self::Delivery => "delivery",
            Self::Connection => "connection",
            Self::Answer => "answer",
            Self::Piece => "piece",
            Self::Start => "start",
            Self::Request => "request",
        })
    }
}

/// How long things took, in milliseconds.
#[derive(Clone, PartialEq, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// the shortest
    pub min: f64,
    /// the middle one
    pub p50: f64,
    /// nine of ten took at most this
    pub p90: f64,
    /// 99 of 100
    pub p99: f64,
    /// 999 of 1,000
    pub p999: f64,
    /// the longest
    pub max: f64,
    /// the arithmetic mean
    pub mean: f64,
    /// the distribution: quantile from 0 to 1, and milliseconds; at most some 60 points, denser towards the end
    pub curve: Vec<(f64, f64)>,
}

/// Steps of the curve until half of what remains is covered.
const CURVE_STEPS: u32 = 4;

impl Latency {
    /// What a histogram of nanoseconds holds; `None` if it is empty.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| milliseconds(histogram.value_at_quantile(quantile));
        let curve = histogram
            .iter_quantiles(CURVE_STEPS)
            .map(|step| (step.quantile_iterated_to(), milliseconds(step.value_iterated_to())));
        (!histogram.is_empty()).then(|| Self {
            min: milliseconds(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: milliseconds(histogram.max()),
            mean: histogram.mean() / 1e6,
            curve: curve.collect(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "two minutes in nanoseconds fit into the 53 bits of a float")]
fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

impl Row {
    /// A row of what was recorded; the caller adds what else it has measured.
    #[must_use]
    pub fn of(scenario: &str, variant: impl Into<String>, recorded: &Recorded) -> Self {
        Self {
            scenario: scenario.to_owned(),
            variant: variant.into(),
            server: "chatbox".to_owned(),
            n: recorded.latencies.len(),
            failures: recorded.failures,
            reasons: recorded.reasons.clone(),
            rounds: 1,
            latency: Latency::of(&recorded.latencies),
            ..Self::default()
        }
    }

    /// The one of several rounds of the same row that is in the middle, by CPU time, else by memory, else by the
    /// median latency; failures are those of all rounds. `None` of none.
    #[must_use]
    pub fn median(mut rounds: Vec<Self>) -> Option<Self> {
        let key = |row: &Self| row.cpu_us.or(row.bytes).or_else(|| row.latency.as_ref().map(|latency| latency.p50));
        rounds.sort_by(|one, other| key(one).unwrap_or(f64::MAX).total_cmp(&key(other).unwrap_or(f64::MAX)));
        let failures = rounds.iter().map(|row| row.failures).sum();
        let reasons = rounds.iter().flat_map(|row| row.reasons.clone()).take(5).collect();
        let count = rounds.iter().map(|row| row.rounds).sum();
        let middle = rounds.len().saturating_sub(1) / 2;
        let row = (!rounds.is_empty()).then(|| rounds.swap_remove(middle))?;
        Some(Self { failures, reasons, rounds: count, ..row })
    }
}

/// A ratio between two rows, with the bars that it is held to.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// what is compared, such as `relay, WebSocket, CPU`
    pub name: String,
    /// what it is compared with, such as `fastwebsockets`
    pub peer: String,
    /// chatbox divided by the peer
    pub ratio: f64,
    /// what the ratio must not exceed
    pub must: Option<f64>,
    /// what it should not exceed one day
    pub moonshot: Option<f64>,
}

impl Comparison {
    /// Whether the ratio is within `must`.
    #[must_use]
    pub fn met(&self) -> bool {
        self.must.is_none_or(|must| self.ratio <= must)
    }
}

impl Report {
    /// A report of this machine and this program, with the present load average and nothing measured yet.
    #[must_use]
    pub fn new(command: String) -> Self {
        Self {
            layout: LAYOUT,
            command,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: build().to_owned(),
            machine: Machine::here(),
            load_before: load_average(),
            load_after: 0.0,
            stopped: false,
            settings: BTreeMap::new(),
            rows: Vec::new(),
            comparisons: Vec::new(),
        }
    }

    /// Reads a report that was written as JSON.
    ///
    /// # Errors
    /// When it is not one, or of another layout than [`LAYOUT`].
    pub fn read(json: &str) -> anyhow::Result<Self> {
        let report: Self = serde_json::from_str(json).context("the file is no report of a bench")?;
        ensure!(report.layout == LAYOUT, "the report is of layout {}, not {LAYOUT}", report.layout);
        Ok(report)
    }

    /// What failed in all rows together.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.rows.iter().map(|row| row.failures).sum()
    }
}

impl Machine {
    /// This machine. What cannot be read is empty.
    #[must_use]
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':'));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kilobytes = memory.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default();
        Self {
            kernel: format!("{} {}", read("/proc/sys/kernel/ostype"), read("/proc/sys/kernel/osrelease")),
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kilobytes * 1024,
            tcp_congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }
}

/// The load average of the last minute; 0 where there is none.
#[must_use]
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// How this program was built.
#[must_use]
pub const fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// A report with one row, for tests of what is made of reports.
#[cfg(test)]
pub(super) fn sample() -> Report {
    let row = Row {
        scenario: "relay".to_owned(),
        variant: "paced".to_owned(),
        server: "chatbox".to_owned(),
        transport: "websocket".to_owned(),
        n: 100,
        rounds: 1,
        cpu_us: Some(12.5),
        ..Row::default()
    };
    Report { rows: vec![row], ..Report::new("chatbox bench relay".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load;

    #[test]
    fn percentiles_of_known_times() {
        let mut histogram = load::histogram();
        for ms in 1..=1000_u64 {
            histogram.record(ms * 1_000_000).unwrap();
        }
        let latency = Latency::of(&histogram).unwrap();
        for (got, expected) in [
            (latency.min, 1.0),
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p999, 999.0),
            (latency.max, 1000.0),
            (latency.mean, 500.5),
        ] {
            assert!((got / expected - 1.0).abs() < 0.002, "got {got}, expected {expected}");
        }
        assert!(latency.curve.len() <= 60 && latency.curve.is_sorted_by(|a, b| a.1 <= b.1), "{:?}", latency.curve);
        assert_eq!(Latency::of(&load::histogram()), None);
    }

    #[test]
    fn the_median_round_is_kept_whole_and_hides_no_failure() {
        let round = |cpu, failures| Row { cpu_us: Some(cpu), failures, rounds: 1, n: failures, ..Row::default() };
        let median = Row::median(vec![round(3.0, 1), round(1.0, 0), round(2.0, 4)]).unwrap();
        assert_eq!((median.cpu_us, median.n, median.failures, median.rounds), (Some(2.0), 4, 5, 3));
        assert_eq!(Row::median(Vec::new()), None);
    }

    #[test]
    fn a_report_is_the_same_after_json() {
        let mut report = sample();
        report.comparisons.push(Comparison {
            name: "relay".to_owned(),
            peer: "echo".to_owned(),
            ratio: 1.5,
            must: Some(1.5),
            moonshot: None,
        });
        assert!(report.comparisons[0].met());
        assert!(report.machine.cores > 0 && report.machine.kernel.len() > 3, "{:?}", report.machine);
        let json = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(Report::read(&json).unwrap(), report);
        report.layout += 1;
        let err = Report::read(&serde_json::to_string(&report).unwrap()).unwrap_err();
        assert!(err.to_string().contains("layout 2"), "{err}");
    }
}
