//! What one direction of a link does to packets: loses, delays, overtakes, queues, cuts. No clock and no I/O: time is
//! what the caller says it is, so that a seed gives the same fates again.

use std::{ops::Range, time::Duration};

/// How packets are lost.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Loss {
    /// each by itself, with this probability
    Independent(f64),
    /// in bursts (Gilbert's model: everything is lost while the link is bad)
    Bursts {
        /// the share of all packets that is lost
        share: f64,
        /// packets of a burst on average, at least 1
        length: f64,
    },
}

/// What a direction does.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Settings {
    /// which packets never arrive
    pub(crate) loss: Loss,
    /// how long a packet is on its way
    pub(crate) delay: Duration,
    /// up to so much longer, evenly distributed; packets do not overtake by it
    pub(crate) jitter: Duration,
    /// the share of packets that is held back by [`HELD_BACK`] while others pass
    pub(crate) reorder: f64,
    /// bytes a second, if there is a bottleneck
    pub(crate) rate: Option<f64>,
    /// bytes that wait for the bottleneck; what does not fit is dropped
    pub(crate) queue: usize,
    /// nothing arrives from then until then, counted from the start
    pub(crate) cut: Option<Range<Duration>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            loss: Loss::Independent(0.0),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: 0.0,
            rate: None,
            queue: 64 * 1024,
            cut: None,
        }
    }
}

/// How long a packet that is overtaken is held back: longer than the pause between two packets of this lab's streams.
pub(crate) const HELD_BACK: Duration = Duration::from_millis(10);

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// it arrives at that time
    Arrives(Duration),
    /// lost on its way
    Lost,
    /// it found no room before the bottleneck
    Overflown,
    /// the link was cut
    Cut,
}

/// One direction with its state.
#[derive(Debug)]
pub(crate) struct Link {
    settings: Settings,
    dice: Dice,
    bad: bool,
    /// when the bottleneck has sent everything that it holds
    free: Duration,
    latest: Duration,
}

impl Link {
    pub(crate) const fn new(settings: Settings, seed: u64) -> Self {
        Self { settings, dice: Dice(seed), bad: false, free: Duration::ZERO, latest: Duration::ZERO }
    }

    /// Decides about a packet of so many bytes that is sent `now`; calls come in the order of time.
    pub(crate) fn offer(&mut self, now: Duration, bytes: usize) -> Fate {
        let Some(sent) = self.through_bottleneck(now, bytes) else { return Fate::Overflown };
        // Thrown for each packet that the link carries, whatever else happens to it: the sequence is the seed's.
        let lost = self.loses();
        if self.settings.cut.as_ref().is_some_and(|cut| cut.contains(&now)) {
            return Fate::Cut;
        }
        if lost {
            return Fate::Lost;
        }
        let arrives = sent + self.settings.delay + self.settings.jitter.mul_f64(self.dice.throw());
        if self.dice.throw() < self.settings.reorder {
            return Fate::Arrives(arrives + HELD_BACK);
        }
        self.latest = self.latest.max(arrives);
        Fate::Arrives(self.latest)
    }

    /// When the last bit of the packet has left, unless the queue is full.
    fn through_bottleneck(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let Some(rate) = self.settings.rate else { return Some(now) };
        let took = |bytes: usize| Duration::from_secs_f64(f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / rate);
        let begins = self.free.max(now);
        if begins - now > took(self.settings.queue.saturating_sub(bytes)) {
            return None;
        }
        self.free = begins + took(bytes);
        Some(self.free)
    }

    fn loses(&mut self) -> bool {
        let throw = self.dice.throw();
        match self.settings.loss {
            Loss::Independent(share) => throw < share,
            Loss::Bursts { share, length } => {
                let ends = 1.0 / length.max(1.0);
                let begins = ends * share / (1.0 - share);
                self.bad = throw < if self.bad { 1.0 - ends } else { begins };
                self.bad
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// At least 0, below 1.
    fn throw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap_or_default();
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}
