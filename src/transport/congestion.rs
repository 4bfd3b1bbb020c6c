//! Congestion control for chat: CUBIC with a floor.
//!
//! A chat connection sends some hundred small packets a second and never tests the window that it has, so CUBIC, which
//! shrinks with every loss and grows only while the window is used up (RFC 9002, section 7.8), ends at two packets on a
//! link that loses at random. From then on each packet waits for an acknowledgement of one before it, a round trip of
//! waiting in text that the link would have carried at once.
//!
//! So the window does not fall below the initial one, which is what the same client would get by connecting again
//! (RFC 9002, section 7.2), and everything above it is CUBIC's. Persistent congestion, several time-outs' worth of
//! packets of which none arrived (section 7.6), takes the floor away too: then the window is CUBIC's minimum, two packets,
//! and the floor comes back by slow start, byte by byte as packets sent since then are acknowledged; a loss halves what
//! has come back.

use std::{any::Any, sync::Arc, time::Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes the controller of each path.
#[derive(Clone, Debug, Default)]
pub(super) struct ChatConfig {
    cubic: Arc<CubicConfig>,
}

impl ControllerFactory for ChatConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(Arc::clone(&self.cubic), now, current_mtu);
        Box::new(Chat { cubic, floor: Floor::new(current_mtu) })
    }
}

/// CUBIC, and what its window does not fall below.
#[derive(Clone, Debug)]
struct Chat {
    cubic: Cubic,
    floor: Floor,
}

impl Controller for Chat {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.floor.acked(sent, bytes);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        if is_persistent_congestion {
            self.floor.collapse(now);
        } else {
            self.floor.lost(now, sent);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
        self.floor.full = initial_window(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.floor.bytes())
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Ten packets, in bytes (RFC 9002, section 7.2).
fn initial_window(mtu: u16) -> u64 {
    let mtu = u64::from(mtu);
    (10 * mtu).min(14_720.max(2 * mtu))
}

/// The floor of a window, whole or on its way back.
#[derive(Clone, Debug)]
struct Floor {
    /// bytes of the whole floor
    full: u64,
    /// since the last persistent congestion, until the floor is whole again
    regrowth: Option<Regrowth>,
}

#[derive(Clone, Debug)]
struct Regrowth {
    /// bytes that have come back
    bytes: u64,
    /// acknowledgements and losses of packets sent before tell of what is over
    since: Instant,
}

impl Floor {
    fn new(mtu: u16) -> Self {
        Self { full: initial_window(mtu), regrowth: None }
    }

    fn bytes(&self) -> u64 {
        self.regrowth.as_ref().map_or(self.full, |regrowth| regrowth.bytes.min(self.full))
    }

    fn acked(&mut self, sent: Instant, bytes: u64) {
        let Some(regrowth) = self.regrowth.as_mut().filter(|regrowth| sent > regrowth.since) else { return };
        regrowth.bytes += bytes;
        if regrowth.bytes >= self.full {
            self.regrowth = None;
        }
    }

    fn lost(&mut self, now: Instant, sent: Instant) {
        if let Some(regrowth) = self.regrowth.as_mut().filter(|regrowth| sent > regrowth.since) {
            *regrowth = Regrowth { bytes: regrowth.bytes / 2, since: now };
        }
    }

    fn collapse(&mut self, now: Instant) {
        self.regrowth = Some(Regrowth { bytes: 0, since: now });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MTU: u16 = 1200;
    const MILLISECOND: Duration = Duration::from_millis(1);

    fn controller(now: Instant) -> Box<dyn Controller> {
        Arc::new(ChatConfig::default()).build(now, MTU)
    }

    /// Loses a packet of each of so many round trips.
    fn lose(controller: &mut dyn Controller, from: Instant, times: u32) {
        for time in 1..=times {
            let now = from + MILLISECOND * 80 * time;
            controller.on_congestion_event(now, now - MILLISECOND, false, 1200);
        }
    }

    #[test]
    fn losses_do_not_take_the_window_below_ten_packets_where_cubic_ends_at_two() {
        let now = Instant::now();
        let (mut chat, mut cubic) = (controller(now), Arc::new(CubicConfig::default()).build(now, MTU));
        lose(&mut *chat, now, 20);
        lose(&mut *cubic, now, 20);
        assert_eq!((chat.window(), cubic.window()), (12_000, 2_400));
    }

    #[test]
    fn the_floor_follows_the_mtu_and_stays_within_the_initial_window() {
        let now = Instant::now();
        let mut chat = controller(now);
        lose(&mut *chat, now, 20);
        for (mtu, floor) in [(1200, 12_000), (1452, 14_520), (1500, 14_720), (9000, 18_000)] {
            chat.on_mtu_update(mtu);
            assert_eq!(chat.window(), floor, "at {mtu}");
        }
    }

    #[test]
    fn persistent_congestion_leaves_two_packets() {
        let now = Instant::now();
        let mut chat = controller(now);
        chat.on_congestion_event(now + MILLISECOND, now, true, 12_000);
        assert_eq!(chat.window(), 2_400);
    }

    #[test]
    fn the_floor_comes_back_with_what_is_acknowledged_and_not_with_older_packets() {
        let now = Instant::now();
        let mut floor = Floor::new(MTU);
        floor.collapse(now);
        floor.acked(now, 12_000);
        assert_eq!(floor.bytes(), 0, "sent before the collapse");
        floor.acked(now + MILLISECOND, 6_000);
        assert_eq!(floor.bytes(), 6_000);
        floor.acked(now + MILLISECOND, 6_000);
        assert_eq!((floor.bytes(), floor.regrowth.is_none()), (12_000, true));
    }

    #[test]
    fn a_loss_halves_what_has_come_back_once_in_a_round_trip() {
        let now = Instant::now();
        let mut floor = Floor::new(MTU);
        floor.collapse(now);
        floor.acked(now + MILLISECOND, 8_000);
        floor.lost(now + MILLISECOND * 3, now + MILLISECOND);
        assert_eq!(floor.bytes(), 4_000);
        floor.lost(now + MILLISECOND * 4, now + MILLISECOND * 2);
        assert_eq!(floor.bytes(), 4_000, "of the same round trip");
        floor.collapse(now + MILLISECOND * 5);
        assert_eq!(floor.bytes(), 0, "congested again");
    }

    #[test]
    fn a_copy_for_another_path_has_the_same_window() {
        let now = Instant::now();
        let mut chat = controller(now);
        chat.on_congestion_event(now + MILLISECOND, now, true, 12_000);
        assert_eq!(chat.clone_box().window(), 2_400);
        assert_eq!(chat.initial_window(), controller(now).initial_window());
    }
}
