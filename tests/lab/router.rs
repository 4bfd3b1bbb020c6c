//! The router between two TUN devices: reads each packet, asks the [`Link`] of its direction, writes it out when it is
//! due. TCP and UDP are treated alike and counted apart.
//!
//! Each direction has two threads of its own: runtime timers have steps of a millisecond, a condition variable wakes
//! within a tenth of one.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::Serialize;
use tun_rs::{InterruptEvent, SyncDevice};

use super::link::{Fate, Link, Settings};

/// Packets on their way in one direction; beyond it the router counts as overflown. Far above what the lab sends.
const ON_THE_WAY_MAX: usize = 65_536;

/// Largest packet that a device hands out.
const PACKET_MAX: usize = 65_536;

/// What happened to the packets of one protocol.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Tally {
    /// written out at the other end
    pub(crate) forwarded: u64,
    /// lost on the link
    pub(crate) lost: u64,
    /// dropped before the bottleneck
    pub(crate) overflown: u64,
    /// dropped by the cut
    pub(crate) cut: u64,
    /// bytes written out
    pub(crate) bytes: u64,
}

impl Tally {
    fn count(&mut self, fate: Fate, bytes: usize) {
        match fate {
            Fate::Arrives(_) => {
                self.forwarded += 1;
                self.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
            }
            Fate::Lost => self.lost += 1,
            Fate::Overflown => self.overflown += 1,
            Fate::Cut => self.cut += 1,
        }
    }

    /// Packets that the link was asked to carry.
    pub(crate) const fn carried(&self) -> u64 {
        self.forwarded + self.lost
    }
}

/// What happened to the packets of one direction.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Tallies {
    pub(crate) tcp: Tally,
    pub(crate) udp: Tally,
    pub(crate) other: Tally,
    /// bytes of the largest packet: more than the MTU would mean that the kernel did not cut segments
    pub(crate) largest: usize,
    /// how much later than due a packet left, in microseconds, at most
    pub(crate) latest_us: u64,
    /// packets that left more than a millisecond late: the machine was busy
    pub(crate) tardy: u64,
}

impl Tallies {
    fn of(&mut self, packet: &[u8]) -> &mut Tally {
        match protocol(packet) {
            Some(6) => &mut self.tcp,
            Some(17) => &mut self.udp,
            _ => &mut self.other,
        }
    }
}

/// The protocol that an IP packet carries (RFC 791, section 3.1; RFC 8200, section 3).
fn protocol(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => packet.get(9).copied(),
        6 => packet.get(6).copied(),
        _ => None,
    }
}

/// One direction: what is on its way, and what happened.
struct Way {
    began: Instant,
    flights: Mutex<Flights>,
    due: Condvar,
    tallies: Mutex<Tallies>,
}

#[derive(Default)]
struct Flights {
    /// by time of arrival, then by number
    packets: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    number: u64,
    over: bool,
}

impl Way {
    fn tally(&self, count: impl FnOnce(&mut Tallies)) {
        count(&mut self.tallies.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes packets from a device until it is interrupted.
    fn depart(&self, from: &SyncDevice, end: &InterruptEvent, mut link: Link) {
        let mut buffer = vec![0; PACKET_MAX];
        // The error is the interruption, or a device that is gone: there is nothing more to carry either way.
        while let Ok(length) = from.recv_intr(&mut buffer, end) {
            let packet = buffer.get(..length).unwrap_or_default();
            let mut fate = link.offer(self.began.elapsed(), length);
            if let Fate::Arrives(due) = fate
                && !self.send_off(due, packet)
            {
                fate = Fate::Overflown;
            }
            self.tally(|tallies| {
                tallies.of(packet).count(fate, length);
                tallies.largest = tallies.largest.max(length);
            });
        }
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.due.notify_one();
    }

    fn send_off(&self, due: Duration, packet: &[u8]) -> bool {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.packets.len() >= ON_THE_WAY_MAX {
            return false;
        }
        let first = flights.packets.peek().is_none_or(|Reverse((next, ..))| due < *next);
        flights.number += 1;
        let number = flights.number;
        flights.packets.push(Reverse((due, number, packet.to_vec())));
        drop(flights);
        if first {
            self.due.notify_one();
        }
        true
    }

    /// Writes packets to a device as they become due.
    fn arrive(&self, to: &SyncDevice) {
        while let Some((due, packet)) = self.next_due() {
            let late = self.began.elapsed().saturating_sub(due);
            self.tally(|tallies| {
                tallies.latest_us = tallies.latest_us.max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
                tallies.tardy += u64::from(late > Duration::from_millis(1));
            });
            // An interface that is down loses packets, as in life.
            drop(to.send(&packet));
        }
    }

    fn next_due(&self) -> Option<(Duration, Vec<u8>)> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if flights.over {
                return None;
            }
            let next = flights.packets.peek().map(|Reverse((due, ..))| due.saturating_sub(self.began.elapsed()));
            flights = match next {
                Some(Duration::ZERO) => return flights.packets.pop().map(|Reverse((due, _, packet))| (due, packet)),
                Some(pause) => self.due.wait_timeout(flights, pause).unwrap_or_else(PoisonError::into_inner).0,
                None => self.due.wait(flights).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// A running router. Dropping it ends its threads and what is on its way.
pub(crate) struct Router {
    ways: [Arc<Way>; 2],
    ends: [Arc<InterruptEvent>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("tallies", &self.tallies()).finish_non_exhaustive()
    }
}

impl Router {
    /// Joins two devices. `settings` are those of the way from the first to the second, and of the way back.
    pub(crate) fn start(devices: [SyncDevice; 2], settings: [Settings; 2], seed: u64) -> anyhow::Result<Self> {
        let began = Instant::now();
        let [first, second] = devices.map(Arc::new);
        let [forth, back] = settings;
        let way = || {
            let (flights, due, tallies) = (Mutex::default(), Condvar::new(), Mutex::default());
            Arc::new(Way { began, flights, due, tallies })
        };
        let mut router = Self {
            ways: [way(), way()],
            ends: [Arc::new(InterruptEvent::new()?), Arc::new(InterruptEvent::new()?)],
            threads: Vec::new(),
        };
        let [forth_way, back_way] = router.ways.clone();
        let [forth_end, back_end] = router.ends.clone();
        let directions = [
            (forth_way, forth_end, Arc::clone(&first), Arc::clone(&second), Link::new(forth, seed)),
            (back_way, back_end, second, first, Link::new(back, !seed)),
        ];
        for (way, end, from, to, link) in directions {
            let other = Arc::clone(&way);
            router.spawn("departures", move || way.depart(&from, &end, link))?;
            router.spawn("arrivals", move || other.arrive(&to))?;
        }
        Ok(router)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work).context("start a thread")?;
        self.threads.push(thread);
        Ok(())
    }

    /// What happened so far on the way from the first device to the second, and on the way back.
    pub(crate) fn tallies(&self) -> [Tallies; 2] {
        let [forth, back] = &self.ways;
        [forth, back].map(|way| *way.tallies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for end in &self.ends {
            drop(end.trigger());
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}
