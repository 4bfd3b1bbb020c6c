//! What is to be measured: scenarios, transports, sizes; each with a limit.

use std::{fmt, time::Duration};

use clap::ValueEnum;

/// Most connections that one run opens.
pub const CONNECTIONS_MAX: usize = 20_000;

/// Longest measured time of one measurement.
pub const DURATION_MAX: Duration = Duration::from_secs(600);

/// Most requests in a second that one measurement sends.
pub const RATE_MAX: f64 = 200_000.0;

/// Most rounds of which a median is taken.
pub const ROUNDS_MAX: u32 = 9;

/// One question to a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, ValueEnum)]
pub enum Scenario {
    /// Memory of each attached connection that says nothing
    Idle,
    /// `typing_indicator` from one device to another: CPU time and latency of a frame that is not stored
    Relay,
    /// A stored message and its answer of one piece: CPU time and latency
    Stored,
    /// One answer to many devices of one session: CPU time of each delivery, latency to the last one
    Fanout,
    /// What the server adds to the time to first token, while many answers stream
    Ttft,
    /// Many connections at once: CPU time of each, in full and with session tickets
    Storm,
    /// Stored messages in a second, acknowledged after their commit
    Durable,
    /// SIGTERM under connections: until all were told and closed
    Drain,
    /// Start of the process to its first accept, with an empty store and a full one
    Start,
    /// Attach and list, with few entries in a session and with many
    Flat,
}

impl Scenario {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Idle,
        Self::Relay,
        Self::Stored,
        Self::Fanout,
        Self::Ttft,
        Self::Storm,
        Self::Durable,
        Self::Flat,
        Self::Drain,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Relay => "relay",
            Self::Stored => "stored",
            Self::Fanout => "fanout",
            Self::Ttft => "ttft",
            Self::Storm => "storm",
            Self::Durable => "durable",
            Self::Drain => "drain",
            Self::Start => "start",
            Self::Flat => "flat",
        }
    }

    /// Whether it needs a server of its own: one whose models, data or life it decides about.
    #[must_use]
    pub const fn needs_own_server(self) -> bool {
        matches!(self, Self::Fanout | Self::Ttft | Self::Drain | Self::Start | Self::Flat)
    }
}

/// How frames travel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, ValueEnum)]
pub enum Via {
    /// HTTP/3 over QUIC
    Webtransport,
    /// a WebSocket over plain TCP
    Websocket,
    /// a WebSocket over TLS
    Wss,
}

impl Via {
    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webtransport => "webtransport",
            Self::Websocket => "websocket",
            Self::Wss => "wss",
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much is measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Sizes {
    /// transports, which take turns
    pub vias: Vec<Via>,
    /// `idle`: readings at these numbers of connections, rising
    pub idle: Vec<usize>,
    /// how long the memory settles before a reading
    pub settle: Duration,
    /// `relay` and `stored`: pairs that ask at the same time
    pub pairs: usize,
    /// the pause of a pair between an answer and its next request
    pub pause: Duration,
    /// measured time of each load
    pub duration: Duration,
    /// asked before anything counts
    pub warm_up: Duration,
    /// instead of the pause: requests in a second, of all pairs together
    pub rate: Option<f64>,
    /// `fanout`: numbers of watchers
    pub watchers: Vec<usize>,
    /// `ttft`: answers at a time
    pub answers: usize,
    /// `storm`: connections
    pub storm: usize,
    /// `storm` and whenever connections are opened: how many at a time
    pub at_once: usize,
    /// `durable`: people who write at the same time
    pub writers: usize,
    /// `drain`: connections
    pub drain: usize,
    /// `start`: messages in the full store
    pub messages: usize,
    /// `flat`: entries in a session
    pub entries: Vec<usize>,
    /// of how many rounds each number is the median
    pub rounds: u32,
}

impl Sizes {
    /// Enough to see what a change does: about a minute and a half for everything.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            vias: vec![Via::Webtransport, Via::Websocket],
            idle: vec![1000],
            settle: Duration::from_secs(1),
            pairs: 200,
            pause: Duration::from_millis(50),
            duration: Duration::from_secs(3),
            warm_up: Duration::from_millis(500),
            rate: None,
            watchers: vec![10, 100],
            answers: 50,
            storm: 300,
            at_once: 8,
            writers: 64,
            drain: 500,
            messages: 10_000,
            entries: vec![10, 100, 1000],
            rounds: 1,
        }
    }

    /// What numbers are published of: medians of three rounds, about a quarter of an hour.
    #[must_use]
    pub fn full() -> Self {
        Self {
            idle: vec![100, 1000, 5000],
            settle: Duration::from_secs(2),
            duration: Duration::from_secs(5),
            warm_up: Duration::from_secs(1),
            watchers: vec![10, 100, 1000],
            storm: 1500,
            drain: 5000,
            messages: 100_000,
            entries: vec![10, 100, 1000, 10_000],
            rounds: 3,
            ..Self::quick()
        }
    }

    /// The same with another number wherever connections are counted, at most [`CONNECTIONS_MAX`].
    #[must_use]
    pub fn with_connections(self, connections: usize) -> Self {
        let connections = connections.clamp(1, CONNECTIONS_MAX);
        Self {
            idle: vec![connections],
            pairs: (connections / 2).max(1),
            watchers: vec![connections],
            answers: connections,
            storm: connections,
            writers: connections,
            drain: connections,
            ..self
        }
    }

    /// The most connections that are open at a time.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        let many = [self.pairs * 2, self.answers, self.storm, self.writers, self.drain];
        many.into_iter().chain(self.idle.iter().copied()).chain(self.watchers.iter().copied()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_one_name_everywhere() {
        for scenario in Scenario::ALL {
            let shown = scenario.to_possible_value().unwrap();
            assert_eq!(shown.get_name(), scenario.name());
        }
        assert_eq!(Scenario::ALL.len(), Scenario::value_variants().len());
        for via in Via::value_variants() {
            assert_eq!(via.to_possible_value().unwrap().get_name(), via.name());
        }
    }

    #[test]
    fn a_number_of_connections_is_one_for_all_and_bounded() {
        let sizes = Sizes::quick().with_connections(10);
        assert_eq!((sizes.pairs, sizes.storm, sizes.connections_max()), (5, 10, 10));
        assert_eq!(Sizes::full().with_connections(1_000_000).connections_max(), CONNECTIONS_MAX);
        assert_eq!(Sizes::full().connections_max(), 5000);
    }
}
