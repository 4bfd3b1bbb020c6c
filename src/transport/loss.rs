//! Whether a path loses packets, from the counts of its connection. Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

use super::datagrams::Packets;

/// How often the counts are looked at, at most: they are copied under the connection's lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The losses of the last one to two windows count. A window lasts at least so long and so many packets, so that it
/// holds a loss where every hundredth packet is lost, and few are sent.
const WINDOW: Duration = Duration::from_secs(15);
const WINDOW_PACKETS: u64 = 64;

/// After so long what was counted before says nothing about the path.
const STALE: Duration = Duration::from_secs(120);

/// The path is lossy from one lost packet in so many on, and no longer below one in so many: paths that are at the
/// limit do not change all the time.
const LOSSY_ONE_IN: u64 = 200;
const CLEAN_ONE_IN: u64 = 1000;

/// What is known of a path.
#[derive(Debug)]
pub(super) struct Loss {
    lossy: bool,
    looked: Option<Instant>,
    /// when the window began, and the counts then
    begun: Instant,
    start: Packets,
    /// what the window before counted
    before: Packets,
}

impl Loss {
    /// Knows of a connection that all its packets belong to the window that begins now: those of its handshake too.
    pub(super) fn new(now: Instant) -> Self {
        let (start, before) = (Packets::default(), Packets::default());
        Self { lossy: false, looked: None, begun: now, start, before }
    }

    /// Whether packets are being lost. Asks for the counts unless it has done so a moment ago.
    pub(super) fn seen(&mut self, now: Instant, counts: impl FnOnce() -> Packets) -> bool {
        if self.looked.is_some_and(|looked| now < looked + LOOK_INTERVAL) {
            return self.lossy;
        }
        self.looked = Some(now);
        let counts = counts();
        let since = |start: Packets| Packets {
            sent: counts.sent.saturating_sub(start.sent),
            lost: counts.lost.saturating_sub(start.lost),
        };
        let current = since(self.start);
        let recent = Packets { sent: current.sent + self.before.sent, lost: current.lost + self.before.lost };
        let one_in = if self.lossy { CLEAN_ONE_IN } else { LOSSY_ONE_IN };
        self.lossy = recent.lost > 0 && recent.lost.saturating_mul(one_in) >= recent.sent;
        let age = now.duration_since(self.begun);
        if age >= WINDOW && current.sent >= WINDOW_PACKETS || age >= STALE {
            (self.before, self.start, self.begun) = (current, counts, now);
        }
        self.lossy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that sends a packet every 10 ms, of which every so many is lost.
    struct Path {
        loss: Loss,
        now: Instant,
        packets: Packets,
    }

    impl Path {
        fn new() -> Self {
            let now = Instant::now();
            Self { loss: Loss::new(now), now, packets: Packets::default() }
        }

        /// How many of the looks saw loss.
        fn send(&mut self, packets: u64, lost_one_in: u64) -> u64 {
            let mut seen = 0;
            for _ in 0..packets {
                self.now += Duration::from_millis(10);
                self.packets.sent += 1;
                self.packets.lost += u64::from(self.packets.sent.is_multiple_of(lost_one_in));
                seen += u64::from(self.loss.seen(self.now, || self.packets));
            }
            seen
        }
    }

    #[test]
    fn clean_path_is_never_lossy() {
        assert_eq!(Path::new().send(100_000, u64::MAX), 0);
    }

    #[test]
    fn one_loss_in_a_hundred_is_seen_and_forgotten_after_two_windows() {
        let mut path = Path::new();
        assert!(path.send(1000, 100) >= 890, "from the first loss on");
        assert_eq!(path.send(3000, 100), 3000);
        assert_eq!(path.send(1400, u64::MAX), 1400, "the window before it still counts");
        path.send(1700, u64::MAX);
        assert_eq!(path.send(1000, u64::MAX), 0);
    }

    #[test]
    fn rare_loss_neither_begins_nor_between_the_limits_ends_it() {
        let mut path = Path::new();
        path.send(6000, u64::MAX);
        assert_eq!(path.send(20_000, 500), 0);
        assert!(path.send(4000, 50) > 0);
        path.send(6000, 500);
        assert_eq!(path.send(20_000, 500), 20_000);
        path.send(6000, 5000);
        assert_eq!(path.send(900, u64::MAX), 0);
    }

    #[test]
    fn counts_are_asked_for_ten_times_a_second_at_most() {
        let mut path = Path::new();
        let mut asked = 0;
        for _ in 0..1000 {
            path.now += Duration::from_millis(1);
            path.loss.seen(path.now, || {
                asked += 1;
                path.packets
            });
        }
        assert_eq!(asked, 10);
    }
}
