//! What a run says: percentiles, shares of late arrivals, ratios against TCP, as a table and as JSON.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{
    experiment::{Load, Outcome, Variant},
    router::Tallies,
    watch::Arrivals,
};

/// Longer on the way than the link alone takes, by so much, is late.
const LATE: Duration = Duration::from_millis(20);

/// What the lab is to show of messages, as a share of what a WebSocket with TCP BBR has on the same link.
const LATE_GOAL: f64 = 0.25;
const P99_GOAL: f64 = 0.65;
const P99_GOAL_COPIES: f64 = 0.25;

/// Latencies of one kind of text on one connection, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) n: usize,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) most: f64,
    /// the share that is late
    pub(crate) late: f64,
    #[serde(skip)]
    pub(crate) sorted: Vec<Duration>,
}

impl Latencies {
    /// Of a link on which everything takes at least `least`.
    pub(crate) fn of(arrivals: &[Duration], least: Duration) -> Self {
        let mut sorted = arrivals.to_vec();
        sorted.sort();
        let late = sorted.len() - sorted.partition_point(|latency| *latency <= least + LATE);
        let at = |share| milliseconds(percentile(&sorted, share));
        Self {
            n: sorted.len(),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            most: at(1.0),
            late: ratio(late, sorted.len()),
            sorted,
        }
    }
}

/// The least value that so large a share of all is not above (nearest rank).
pub(crate) fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let below = sorted.iter().zip(1..).find(|(_, rank)| ratio(*rank, sorted.len()) >= share);
    below.map(|(value, _)| *value).or_else(|| sorted.last().copied()).unwrap_or_default()
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What one connection got.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) variant: Variant,
    pub(crate) name: String,
    pub(crate) messages: Latencies,
    pub(crate) pieces: Latencies,
    /// frames of which a datagram's copy was first
    pub(crate) copies: usize,
    /// megabits of answers a second while the model spoke
    pub(crate) megabits: f64,
}

impl Row {
    fn of(variant: Variant, arrivals: &Arrivals, load: &Load, least: Duration) -> Self {
        Self {
            variant,
            name: variant.to_string(),
            messages: Latencies::of(&arrivals.messages, least),
            pieces: Latencies::of(&arrivals.pieces, least),
            copies: arrivals.copies,
            megabits: ratio(arrivals.bytes_in_time * 8, 1_000_000) / load.seconds.as_secs_f64(),
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// what the link was set to, for people
    pub(crate) link: String,
    /// the share of packets that the link was set to lose
    pub(crate) loss: f64,
    pub(crate) rows: Vec<Row>,
    /// from the server to the clients
    pub(crate) down: Tallies,
    /// from the clients to the server
    pub(crate) up: Tallies,
    /// of the server's TCP connections over the link, as the kernel tells
    pub(crate) congestion: Vec<String>,
}

impl Run {
    pub(crate) fn of(link: String, loss: f64, outcome: Outcome, load: &Load, least: Duration) -> Self {
        let Outcome { arrivals, tallies: [down, up], congestion } = outcome;
        let rows = arrivals.iter().map(|(variant, arrivals)| Row::of(*variant, arrivals, load, least)).collect();
        Self { link, loss, rows, down, up, congestion }
    }

    fn row(&self, variant: Variant) -> Option<&Row> {
        self.rows.iter().find(|row| row.variant == variant)
    }

    /// Late messages and p99 of a variant as a share of those of a WebSocket with TCP BBR.
    pub(crate) fn against_bbr(&self, variant: Variant) -> Option<Ratios> {
        let (row, bbr) = (self.row(variant)?, self.row(Variant::Bbr)?);
        let late = if bbr.messages.late > 0.0 { row.messages.late / bbr.messages.late } else { return None };
        Some(Ratios { late, p99: row.messages.p99 / bbr.messages.p99, piece_p99: row.pieces.p99 / bbr.pieces.p99 })
    }
}

/// Against a WebSocket with TCP BBR.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratios {
    pub(crate) late: f64,
    pub(crate) p99: f64,
    pub(crate) piece_p99: f64,
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, p50, p90, p95, p99, p999, late, .. } = self;
        write!(f, "{n:>6} {p50:>7.1} {p90:>7.1} {p95:>7.1} {p99:>7.1} {p999:>7.1} {:>7.2}", late * 100.0)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; TCP as the kernel tells: {}", self.link, self.congestion.join(", "))?;
        for (way, tallies) in [("server to client", &self.down), ("client to server", &self.up)] {
            writeln!(f, "  {way}: {tallies}")?;
        }
        let head = ["n", "p50", "p90", "p95", "p99", "p99.9", "late %"];
        let [n, rest @ ..] = head;
        let columns: String = rest.iter().map(|name| format!(" {name:>7}")).collect();
        writeln!(f, "  {:<22} {:<8} {n:>6}{columns}", "", "ms")?;
        for row in &self.rows {
            writeln!(f, "  {:<22} {:<8} {}", row.name, "messages", row.messages)?;
        }
        for row in &self.rows {
            let Row { name, pieces, copies, megabits, .. } = row;
            writeln!(f, "  {name:<22} {:<8} {pieces}  {megabits:.2} Mbit/s, {copies} copies first", "pieces")?;
        }
        for (variant, p99_goal) in [(Variant::Streams, P99_GOAL), (Variant::Copies, P99_GOAL_COPIES)] {
            if let Some(Ratios { late, p99, piece_p99 }) = self.against_bbr(variant) {
                write!(f, "  {variant} / {}: late {late:.3} (goal {LATE_GOAL}), p99 {p99:.2} ", Variant::Bbr)?;
                writeln!(f, "(goal {p99_goal} at 5 %), p99 of pieces {piece_p99:.2}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, tally) in [("TCP", &self.tcp), ("UDP", &self.udp)] {
            let lost = 100.0 * ratio(usize::try_from(tally.lost).unwrap_or_default(), carried(tally.carried()));
            write!(f, "{name} {} packets, {lost:.2} % lost, ", tally.carried())?;
            if tally.overflown + tally.cut > 0 {
                write!(f, "{} overflown, {} cut, ", tally.overflown, tally.cut)?;
            }
        }
        write!(f, "largest {} B, {} of them over 1 ms late", self.largest, self.tardy)
    }
}

fn carried(packets: u64) -> usize {
    usize::try_from(packets).unwrap_or(usize::MAX)
}

/// Everything, as JSON has it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// what made it
    pub(crate) command: String,
    pub(crate) kernel: String,
    pub(crate) load: Load,
    /// what the lab does not compare yet
    pub(crate) absent: &'static str,
    pub(crate) runs: Vec<Run>,
}
