//! Time without what the machine took away: a bound on it says something of the program, and not of its neighbours.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a thread sleeps that does nothing else. What it sleeps longer, it stood still.
const BEAT: Duration = Duration::from_millis(10);

/// Begins when it is made.
pub(crate) struct Stopwatch {
    began: Instant,
    lost: Duration,
}

struct Meter {
    began: Instant,
    /// microseconds since then, at the last beat
    beat: AtomicU64,
    /// microseconds in all
    lost: AtomicU64,
}

static METER: LazyLock<Meter> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::park_timeout(BEAT);
            METER.beat();
        }
    });
    Meter { began: Instant::now(), beat: AtomicU64::new(0), lost: AtomicU64::new(0) }
});

impl Meter {
    fn now(&self) -> u64 {
        self.began.elapsed().as_micros().try_into().expect("a run ends")
    }

    fn late(&self, now: u64) -> u64 {
        let beat = u64::try_from(BEAT.as_micros()).expect("milliseconds");
        now.saturating_sub(self.beat.load(Ordering::Acquire)).saturating_sub(beat)
    }

    fn beat(&self) {
        let now = self.now();
        self.lost.fetch_add(self.late(now), Ordering::Relaxed);
        self.beat.store(now, Ordering::Release);
    }

    /// What was lost since the first one began, and what is being lost.
    fn lost(&self) -> Duration {
        Duration::from_micros(self.lost.load(Ordering::Relaxed) + self.late(self.now()))
    }
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { lost: METER.lost(), began: Instant::now() }
    }

    /// How long the machine has worked since it began, whoever for.
    pub(crate) fn elapsed(&self) -> Duration {
        let (elapsed, lost) = (self.began.elapsed(), METER.lost());
        elapsed.saturating_sub(lost.saturating_sub(self.lost))
    }
}
