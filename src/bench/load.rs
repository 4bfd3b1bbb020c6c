//! Load: pairs that ask and are answered, one after the other, at a pace; and how long the answers took.
//!
//! A fixed rate is measured without coordinated omission: a request's time runs from when it was due, so that a
//! server which stops for a second is charged for everything that was due in that second, not for one request.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::process::Meter;

/// Longest time that is told apart; longer ones count as this.
pub const LATENCY_MAX: Duration = Duration::from_secs(120);

/// What a timer of this process may be late by: the runtime's wheel turns once in a millisecond. A request that is
/// sent later than this after it was due waited for an answer, or for this process.
const TIMER: Duration = Duration::from_millis(2);

/// How many messages of failures are kept; all are counted.
const REASONS_MAX: usize = 5;

/// Somebody who asks, and whoever answers.
///
/// Each pair has one request on its way at a time. A pair whose round trip fails is not asked again: what it would
/// read next may belong to the failed one.
pub trait Pair: Send + 'static {
    /// Asks once, and returns when the answer is complete.
    ///
    /// # Errors
    /// When there is no answer, or not the right one. A deadline is kept by the caller.
    fn round_trip(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// When a pair asks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// at once after the answer: the closed loop that finds the most a server can do
    Saturated,
    /// so long after the answer: people who think
    Paced(Duration),
    /// so many requests of all pairs together in a second, whether or not earlier ones were answered in time
    Rate(f64),
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saturated => f.write_str("saturated"),
            Self::Paced(_) => f.write_str("paced"),
            Self::Rate(per_second) => write!(f, "{per_second:.0}/s"),
        }
    }
}

/// How long and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// when each pair asks
    pub pace: Pace,
    /// asked before anything counts
    pub warm_up: Duration,
    /// how long is measured
    pub duration: Duration,
    /// how long one round trip may take; more is a failure
    pub deadline: Duration,
    /// ends it early, with what there is
    pub stop: CancellationToken,
}

/// How long things took, and what went wrong.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// in nanoseconds, with three digits
    pub latencies: Histogram<u64>,
    /// round trips that failed
    pub failures: u64,
    /// what the first of them said
    pub reasons: Vec<String>,
}

impl Default for Recorded {
    fn default() -> Self {
        Self { latencies: histogram(), failures: 0, reasons: Vec::new() }
    }
}

/// An empty histogram from 1 ns to [`LATENCY_MAX`] with three digits.
#[must_use]
#[expect(clippy::expect_used, reason = "the bounds are constants that the histogram's rules allow")]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, nanoseconds(LATENCY_MAX), 3).expect("constant bounds are valid")
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Recorded {
    /// Counts one answer.
    pub fn answered(&mut self, took: Duration) {
        self.latencies.saturating_record(nanoseconds(took.min(LATENCY_MAX)).max(1));
    }

    /// Counts one failure, and keeps what it says if it is among the first.
    pub fn failed(&mut self, reason: &anyhow::Error) {
        self.failures += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(format!("{reason:#}"));
        }
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: Self) {
        self.latencies += other.latencies;
        self.failures += other.failures;
        let room = REASONS_MAX.saturating_sub(self.reasons.len());
        self.reasons.extend(other.reasons.into_iter().take(room));
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Outcome<P> {
    /// latencies and failures within the measured time
    pub recorded: Recorded,
    /// how long was measured; shorter than planned when it was stopped
    pub elapsed: Duration,
    /// CPU time of the server within the measured time
    pub cpu: Option<Duration>,
    /// the pairs that still work
    pub pairs: Vec<P>,
}

/// What all pairs write to. Their sections are short, and a histogram for each pair would take memory that is
/// measured.
struct Board {
    recorded: Mutex<Recorded>,
    begin: Instant,
    end: Instant,
}

impl Board {
    fn note(&self, due: Instant, result: Result<(), anyhow::Error>) {
        let now = Instant::now();
        // An answer counts when it came within the measured time and was asked for within it.
        if due < self.begin || now > self.end {
            let Err(failure) = &result else { return };
            // What fails early leaves a pair less, which nobody must overlook.
            return self.lock().failed(failure);
        }
        match result {
            Ok(()) => self.lock().answered(now.saturating_duration_since(due)),
            Err(failure) => self.lock().failed(&failure),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has all pairs ask at the plan's pace, and reads the server's CPU time around the measured time.
///
/// The pairs begin spread over one interval of their pace. Returns when the time is over and every pair has had its
/// last answer, or has missed the deadline.
pub async fn run<P: Pair>(pairs: Vec<P>, plan: &Plan, server: Option<&mut Meter>) -> Outcome<P> {
    let begin = Instant::now() + plan.warm_up;
    let board = Arc::new(Board { recorded: Mutex::default(), begin, end: begin + plan.duration });
    let count = u32::try_from(pairs.len()).unwrap_or(u32::MAX).max(1);
    let mut tasks = JoinSet::new();
    for (pair, place) in pairs.into_iter().zip(0_u32..) {
        let interval = interval(plan.pace, count);
        let start = begin - plan.warm_up + interval.mul_f64(f64::from(place) / f64::from(count));
        let schedule = Schedule { plan: plan.clone(), start, interval };
        tasks.spawn(ask(pair, schedule, Arc::clone(&board)));
    }
    let (elapsed, cpu) = window(plan, begin, server).await;
    let pairs = tasks.join_all().await.into_iter().flatten().collect();
    let recorded = std::mem::take(&mut *board.lock());
    Outcome { recorded, elapsed, cpu, pairs }
}

/// How far apart two requests of one pair are due.
fn interval(pace: Pace, pairs: u32) -> Duration {
    match pace {
        Pace::Saturated => Duration::ZERO,
        Pace::Paced(pause) => pause,
        Pace::Rate(per_second) => {
            Duration::try_from_secs_f64(f64::from(pairs) / per_second.max(0.001)).unwrap_or(LATENCY_MAX)
        }
    }
}

/// Waits for the measured time to pass, and returns its length and the server's CPU time in it.
async fn window(plan: &Plan, begin: Instant, server: Option<&mut Meter>) -> (Duration, Option<Duration>) {
    let stopped = |until| async move {
        tokio::select! {
            biased;
            () = plan.stop.cancelled() => true,
            () = sleep_until(until) => false,
        }
    };
    if stopped(begin).await {
        return (Duration::ZERO, None);
    }
    let Some(meter) = server else {
        stopped(begin + plan.duration).await;
        return (begin.elapsed().min(plan.duration), None);
    };
    let from = Instant::now();
    let before = meter.cpu().ok();
    stopped(begin + plan.duration).await;
    let after = meter.cpu().ok();
    let cpu = after.zip(before).map(|(after, before)| after.saturating_sub(before));
    (from.elapsed(), cpu)
}

/// When one pair asks: from `start`, and then, at a rate, every `interval`.
struct Schedule {
    plan: Plan,
    start: Instant,
    interval: Duration,
}

impl Schedule {
    /// When the request after so many is due, the last of them having just been answered.
    fn due(&self, asked: u32) -> Instant {
        match self.plan.pace {
            Pace::Saturated => Instant::now(),
            Pace::Paced(pause) => Instant::now() + pause,
            Pace::Rate(_) => self.start + self.interval.saturating_mul(asked),
        }
    }

    /// From when a request counts that is sent now.
    fn counts_from(&self, due: Instant) -> Instant {
        let now = Instant::now();
        match self.plan.pace {
            Pace::Rate(_) if now.saturating_duration_since(due) > TIMER => due,
            _ => now,
        }
    }
}

/// One pair until the end of the plan; it comes back if it still works.
async fn ask<P: Pair>(mut pair: P, schedule: Schedule, board: Arc<Board>) -> Option<P> {
    let plan = &schedule.plan;
    let mut due = schedule.start;
    let mut asked = 0_u32;
    loop {
        if due >= board.end || Instant::now() >= board.end {
            return Some(pair);
        }
        let wait = async {
            // A timer that has passed would still cost a turn of the runtime's wheel.
            if due > Instant::now() {
                sleep_until(due).await;
            }
        };
        tokio::select! {
            biased;
            () = plan.stop.cancelled() => return Some(pair),
            () = wait => {}
        }
        let from = schedule.counts_from(due);
        let answered = timeout(plan.deadline, pair.round_trip()).await;
        let answered = answered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {:?}", plan.deadline)));
        let works = answered.is_ok();
        board.note(from, answered);
        if !works {
            return None;
        }
        asked = asked.saturating_add(1);
        due = schedule.due(asked);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Answers after a time that depends on the number of the request. The clock is paused: time is exact.
    struct Scripted {
        asked: u32,
        takes: fn(u32) -> Duration,
        total: Arc<AtomicU32>,
    }

    impl Pair for Scripted {
        async fn round_trip(&mut self) -> anyhow::Result<()> {
            self.asked += 1;
            self.total.fetch_add(1, Ordering::Relaxed);
            let takes = (self.takes)(self.asked);
            anyhow::ensure!(takes < Duration::from_secs(100), "request {} is refused", self.asked);
            timeout(takes, std::future::pending::<()>()).await.unwrap_err();
            Ok(())
        }
    }

    fn pairs(count: usize, takes: fn(u32) -> Duration) -> (Vec<Scripted>, Arc<AtomicU32>) {
        let total = Arc::new(AtomicU32::new(0));
        let pair = || Scripted { asked: 0, takes, total: Arc::clone(&total) };
        ((0..count).map(|_| pair()).collect(), total)
    }

    fn plan(pace: Pace, seconds: u64) -> Plan {
        Plan {
            pace,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(seconds),
            deadline: Duration::from_secs(5),
            stop: CancellationToken::new(),
        }
    }

    fn milliseconds(histogram: &Histogram<u64>, quantile: f64) -> u64 {
        (histogram.value_at_quantile(quantile) + 500_000) / 1_000_000
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_charged_for_every_request_that_was_due_in_it() {
        let takes = |asked| Duration::from_millis(if asked == 50 { 1000 } else { 1 });
        let (one, _) = pairs(1, takes);
        let outcome = run(one, &plan(Pace::Rate(100.0), 10), None).await;
        let latencies = &outcome.recorded.latencies;
        // Due every 10 ms; 50 answers in time, one of 1,000 ms, and the queue behind it drains by 9 ms for each.
        assert_eq!(latencies.max() / 1_000_000, 1000);
        let late = latencies.count_between(2_000_000, 1_010_000_000);
        assert!((105..=115).contains(&late), "{late} late of {}", latencies.len());
        // The same server, asked in a closed loop: the stall is one sample.
        let (one, _) = pairs(1, takes);
        let closed = run(one, &plan(Pace::Paced(Duration::from_millis(9)), 10), None).await;
        assert_eq!(closed.recorded.latencies.count_between(5_000_000, 1_010_000_000), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn percentiles_are_those_of_the_schedule() {
        // 1, 2, .. 100 ms, and again.
        let (one, _) = pairs(1, |asked| Duration::from_millis(u64::from((asked - 1) % 100 + 1)));
        let outcome = run(one, &plan(Pace::Saturated, 505), None).await;
        let latencies = &outcome.recorded.latencies;
        assert!((9_990..=10_000).contains(&latencies.len()), "{}", latencies.len());
        assert!((50..=51).contains(&milliseconds(latencies, 0.5)), "{}", milliseconds(latencies, 0.5));
        assert!((99..=100).contains(&milliseconds(latencies, 0.99)));
        assert_eq!(outcome.elapsed, Duration::from_secs(505));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_shared_by_the_pairs_and_kept() {
        let (ten, total) = pairs(10, |_| Duration::from_millis(1));
        let outcome = run(ten, &plan(Pace::Rate(200.0), 10), None).await;
        assert_eq!(total.load(Ordering::Relaxed), 2000);
        assert!(outcome.recorded.latencies.len() >= 1990, "{}", outcome.recorded.latencies.len());
        assert_eq!((outcome.recorded.failures, outcome.pairs.len()), (0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_missed_deadlines_are_counted_and_end_their_pair() {
        let (mut mixed, _) = pairs(2, |_| Duration::from_millis(1));
        mixed.extend(pairs(1, |_| Duration::from_secs(200)).0);
        mixed.extend(pairs(1, |_| Duration::from_secs(50)).0);
        let outcome = run(mixed, &plan(Pace::Paced(Duration::from_millis(99)), 10), None).await;
        assert_eq!((outcome.recorded.failures, outcome.pairs.len()), (2, 2));
        assert_eq!(outcome.recorded.reasons, ["request 1 is refused", "no answer within 5s"]);
    }

    #[tokio::test(start_paused = true)]
    async fn warm_up_is_asked_and_not_counted() {
        let (one, total) = pairs(1, |_| Duration::from_millis(10));
        let warm = Plan { warm_up: Duration::from_secs(5), ..plan(Pace::Saturated, 5) };
        let outcome = run(one, &warm, None).await;
        let counted = outcome.recorded.latencies.len();
        let asked = u64::from(total.load(Ordering::Relaxed));
        assert!(counted < asked * 6 / 10 && counted > asked * 4 / 10, "{counted} of {asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_it_with_what_there_is() {
        let (one, _) = pairs(1, |_| Duration::from_millis(10));
        let plan = plan(Pace::Saturated, 100);
        let stop = plan.stop.clone();
        let stopping = async move {
            timeout(Duration::from_secs(1), std::future::pending::<()>()).await.unwrap_err();
            stop.cancel();
        };
        let (outcome, ()) = tokio::join!(run(one, &plan, None), stopping);
        assert_eq!(outcome.elapsed, Duration::from_secs(1));
        assert!(outcome.recorded.latencies.len() > 50);
    }
}
