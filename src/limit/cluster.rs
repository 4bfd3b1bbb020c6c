//! Limits that hold for all nodes together: each tells the others what it has let pass.
//!
//! Every [`TICK`] a node tells what it admitted and whose connections came or went; with nothing to tell, it says every
//! [`BEAT`] that it is there. What others admitted is owed here as if it had been admitted here, so over time all nodes
//! together admit what one would. What is not yet told is the tolerance: **one limit can be exceeded by what each other
//! node admits to the same key within one tick and the way over the bus**, at most the limit itself, which a key that has
//! rested may use up at once on each node. Rates make up for it: later is admitted less. Connections stay.
//!
//! A node that is silent for [`SILENCE`], as one that has died, counts no longer; one that stops says so. Without the bus
//! every node's limits are its own. `limits.connections` protects a node's memory and is always its own.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Limiter;
use crate::{
    bus::{Bus, Delivery, Topic},
    chat::{
        NodeId,
        word::{Action, Key, Tally, Word},
    },
    lifecycle::Lifecycle,
};

/// How often a node tells what has changed.
pub const TICK: Duration = Duration::from_millis(250);

/// How often a node with nothing to tell says that it is there.
pub const BEAT: Duration = Duration::from_millis(1500);

/// How long a node counts after its last word.
pub const SILENCE: Duration = Duration::from_secs(5);

/// How often a node tells all of its connections, which makes up for what the bus has lost.
const WHOLE: Duration = Duration::from_secs(30);

/// Keys that one word carries, so that it stays below the bus's largest message whatever the ids are.
const KEYS_MAX: usize = 2000;

/// Keys that are noted between two ticks; those beyond are not told.
const NOTED_MAX: usize = 50_000;

/// Nodes that are listened to, and keys of each.
const NODES_MAX: usize = 256;
const NODE_KEYS_MAX: usize = 200_000;

/// What this node is to tell. Nothing is noted while it is alone.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Option<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    admitted: HashMap<(Action, Key), u32>,
    /// whose connections came or went
    changed: HashSet<Key>,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Option<Noted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an action that was admitted.
    pub(super) fn admitted(&self, action: Action, key: impl FnOnce() -> Key) {
        if let Some(noted) = &mut *self.lock()
            && noted.admitted.len() < NOTED_MAX
        {
            *noted.admitted.entry((action, key())).or_default() += 1;
        }
    }

    /// Notes that a connection came or went.
    pub(super) fn changed(&self, key: impl FnOnce() -> Key) {
        if let Some(noted) = &mut *self.lock()
            && noted.changed.len() < NOTED_MAX
        {
            noted.changed.insert(key());
        }
    }
}

/// Another node, as far as it was heard of.
#[derive(Debug)]
struct Peer {
    heard: Instant,
    connections: HashMap<Key, u32>,
}

impl Limiter {
    /// Tells the other nodes what this one lets pass, and listens to them, until the server stops.
    pub async fn share(&self, bus: &dyn Bus, node: NodeId, lifecycle: &Lifecycle) {
        let mut words = bus.subscribe(Topic::Cluster).await;
        let mut share = Share { limiter: self, bus, node, peers: HashMap::new(), told: Instant::now(), whole: None };
        // Whoever hears of a node for the first time tells it all.
        share.tell(Tally { node, admitted: Vec::new(), connections: Vec::new(), whole: true });
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = lifecycle.closing() => break,
                told = words.next() => if let Delivery::Word(word) = told
                    && let Word::Tally(tally) = &*word
                    && tally.node != node
                {
                    share.hear(tally);
                },
                _ = tick.tick() => share.tick(),
            }
        }
        share.tell(Tally { node, admitted: Vec::new(), connections: Vec::new(), whole: true });
        share.forget(|_peer| true);
    }
}

struct Share<'a> {
    limiter: &'a Limiter,
    bus: &'a dyn Bus,
    node: NodeId,
    peers: HashMap<NodeId, Peer>,
    told: Instant,
    /// when all connections are to be told next; while nobody listens, never
    whole: Option<Instant>,
}

impl Share<'_> {
    fn hear(&mut self, tally: &Tally) {
        let (known, full) = (self.peers.contains_key(&tally.node), self.peers.len() >= NODES_MAX);
        if !known && full {
            warn!(node = %tally.node, "more nodes than are listened to");
            return;
        }
        let now = Instant::now();
        let peer = self.peers.entry(tally.node).or_insert_with(|| Peer { heard: now, connections: HashMap::new() });
        peer.heard = now;
        for (action, key, count) in &tally.admitted {
            self.limiter.owe(*action, key, *count);
        }
        let mut connections = self.limiter.connections();
        if tally.whole {
            peer.connections.drain().for_each(|(key, count)| connections.elsewhere(key, count, 0));
        }
        for (key, count) in &tally.connections {
            if peer.connections.len() < NODE_KEYS_MAX || peer.connections.contains_key(key) {
                let before = match count {
                    0 => peer.connections.remove(key),
                    count => peer.connections.insert(key.clone(), *count),
                };
                connections.elsewhere(key.clone(), before.unwrap_or_default(), *count);
            }
        }
        drop(connections);
        if !known {
            info!(node = %tally.node, "another node was heard");
            self.limiter.notes.lock().get_or_insert_default();
            self.whole = Some(now);
            self.counted();
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.forget(|peer| now.duration_since(peer.heard) >= SILENCE);
        let noted = self.limiter.notes.lock().as_mut().map(std::mem::take).unwrap_or_default();
        let whole = self.whole.is_some_and(|due| due <= now);
        let connections = if whole {
            self.whole = Some(now + WHOLE);
            self.limiter.connections().all()
        } else {
            let connections = self.limiter.connections();
            noted.changed.into_iter().map(|key| (connections.of(&key), key)).map(|(count, key)| (key, count)).collect()
        };
        let admitted: Vec<_> = noted.admitted.into_iter().map(|((action, key), count)| (action, key, count)).collect();
        if whole || !admitted.is_empty() || !connections.is_empty() || now.duration_since(self.told) >= BEAT {
            self.told = now;
            self.tell(Tally { node: self.node, admitted, connections, whole });
        }
    }

    /// Says it in as many words as it takes.
    fn tell(&self, tally: Tally) {
        let Tally { node, mut admitted, mut connections, mut whole } = tally;
        loop {
            let later = admitted.split_off(admitted.len().min(KEYS_MAX));
            let room = KEYS_MAX - admitted.len();
            let others = connections.split_off(connections.len().min(room));
            let over = later.is_empty() && others.is_empty();
            self.bus.tell(&Topic::Cluster, Arc::new(Word::Tally(Tally { node, admitted, connections, whole })));
            if over {
                return;
            }
            (admitted, connections, whole) = (later, others, false);
        }
    }

    /// Counts some of the others no longer.
    fn forget(&mut self, gone: impl Fn(&Peer) -> bool) {
        let before = self.peers.len();
        let mut connections = self.limiter.connections();
        self.peers.retain(|node, peer| {
            let gone = gone(peer);
            if gone {
                info!(%node, "another node is not heard any more");
                peer.connections.drain().for_each(|(key, count)| connections.elsewhere(key, count, 0));
            }
            !gone
        });
        drop(connections);
        if self.peers.len() < before {
            self.counted();
        }
        if self.peers.is_empty() && before > 0 {
            *self.limiter.notes.lock() = None;
            self.whole = None;
        }
    }

    fn counted(&self) {
        self.limiter.metrics.cluster_nodes.set(i64::try_from(self.peers.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::task::{JoinSet, yield_now};

    use super::*;
    use crate::{
        bus::Local,
        chat::UserId,
        limit::{Config, RetryAfter, TooMany},
        metrics::Metrics,
    };

    struct Node {
        limiter: Arc<Limiter>,
        lifecycle: Lifecycle,
        task: tokio::task::AbortHandle,
    }

    /// Nodes on one bus, which need no network for what they say to each other.
    struct Nodes {
        bus: Arc<Local>,
        config: Config,
        nodes: Vec<Node>,
        tasks: JoinSet<()>,
    }

    impl Nodes {
        async fn start(count: usize, config: Config) -> Self {
            let bus = Arc::new(Local::new(Metrics::new()));
            let mut nodes = Self { bus, config, nodes: Vec::new(), tasks: JoinSet::new() };
            (0..count).for_each(|_| nodes.join());
            nodes.settle().await;
            nodes
        }

        fn join(&mut self) {
            let limiter = Arc::new(Limiter::new(&self.config, Metrics::new()));
            let lifecycle = Lifecycle::default();
            let (shared, bus, ends) = (Arc::clone(&limiter), Arc::clone(&self.bus), lifecycle.clone());
            let task = self.tasks.spawn(async move { shared.share(&*bus, NodeId::new(), &ends).await });
            self.nodes.push(Node { limiter, lifecycle, task });
        }

        fn of(&self, node: usize) -> &Limiter {
            &self.nodes[node].limiter
        }

        /// Lets two ticks pass: one to tell, one to be sure.
        async fn settle(&self) {
            self.pass(TICK * 2).await;
        }

        async fn pass(&self, time: Duration) {
            let ticks = time.as_millis().div_ceil(TICK.as_millis());
            for _ in 0..ticks {
                tokio::time::advance(TICK).await;
                for _ in 0..50 {
                    yield_now().await;
                }
            }
        }
    }

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn config(messages: u32, connections: u32) -> Config {
        Config {
            messages_per_minute: messages,
            connections_per_user: connections,
            connections_per_address: connections,
            ..Config::default()
        }
    }

    /// checklist 67
    #[tokio::test(start_paused = true)]
    async fn what_one_node_admits_the_others_do_not_admit_again() {
        let nodes = Nodes::start(3, config(6, 10)).await;
        for node in 0..3 {
            assert_eq!([(); 2].map(|()| nodes.of(node).message(&user("ada"))), [Ok(()); 2]);
        }
        nodes.settle().await;
        for node in 0..3 {
            let RetryAfter { ms } = nodes.of(node).message(&user("ada")).unwrap_err();
            assert!((9_000..=10_000).contains(&ms), "six in a minute are one in ten seconds, got {ms} ms");
            assert_eq!(nodes.of(node).message(&user("bob")), Ok(()), "others are not concerned");
        }
    }

    /// The tolerance: within a tick each node admits what a key that has rested may use, and all of it is made up for.
    #[tokio::test(start_paused = true)]
    async fn what_was_admitted_before_it_was_told_is_owed() {
        let nodes = Nodes::start(3, config(6, 10)).await;
        let flood = |node| (0..100).filter(|_| nodes.of(node).message(&user("ada")).is_ok()).count();
        assert_eq!([flood(0), flood(1), flood(2)], [6, 6, 6]);
        nodes.settle().await;
        for node in 0..3 {
            let RetryAfter { ms } = nodes.of(node).message(&user("ada")).unwrap_err();
            // Twelve more than one node would have admitted, at ten seconds each.
            assert!((129_000..=130_000).contains(&ms), "got {ms} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_count_wherever_they_are() {
        let nodes = Nodes::start(2, config(6, 2)).await;
        let held = nodes.of(0).user_connection(&user("ada")).unwrap();
        let other = nodes.of(1).user_connection(&user("ada")).unwrap();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let permits = [(); 2].map(|()| nodes.of(0).connection(address).unwrap());
        nodes.settle().await;
        for node in 0..2 {
            assert_eq!(nodes.of(node).user_connection(&user("ada")).unwrap_err(), TooMany::User);
            assert_eq!(nodes.of(node).connection(address).unwrap_err(), TooMany::Address);
        }
        drop((held, permits));
        nodes.settle().await;
        let again = nodes.of(1).user_connection(&user("ada")).unwrap();
        drop(nodes.of(1).connection(address).unwrap());
        drop((again, other));
        nodes.settle().await;
        for node in 0..2 {
            let left = nodes.of(node).connections();
            assert_eq!((left.all(), left.told()), (Vec::new(), 0), "nothing is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn node_that_joins_is_told_all_and_one_that_leaves_counts_no_longer() {
        let mut nodes = Nodes::start(2, config(6, 1)).await;
        let _first = nodes.of(0).user_connection(&user("ada")).unwrap();
        let _second = nodes.of(1).user_connection(&user("bob")).unwrap();
        nodes.settle().await;
        nodes.join();
        nodes.settle().await;
        for name in ["ada", "bob"] {
            assert_eq!(nodes.of(2).user_connection(&user(name)).unwrap_err(), TooMany::User, "{name}");
        }
        assert_eq!(nodes.of(2).metrics.cluster_nodes.get(), 2);
        // One says that it stops, the other one dies.
        nodes.nodes[0].lifecycle.close();
        nodes.settle().await;
        drop(nodes.of(2).user_connection(&user("ada")).unwrap());
        nodes.nodes[1].task.abort();
        nodes.pass(SILENCE - TICK * 4).await;
        assert_eq!(nodes.of(2).user_connection(&user("bob")).unwrap_err(), TooMany::User, "it may still be there");
        nodes.pass(TICK * 12).await;
        drop(nodes.of(2).user_connection(&user("bob")).unwrap());
        assert_eq!(nodes.of(2).metrics.cluster_nodes.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_bus_has_lost_is_told_again() {
        let nodes = Nodes::start(2, config(6, 1)).await;
        let held = nodes.of(0).user_connection(&user("ada")).unwrap();
        // As if the word of it had been lost.
        drop(nodes.of(0).notes.lock().as_mut().map(std::mem::take));
        nodes.settle().await;
        drop(nodes.of(1).user_connection(&user("ada")).unwrap());
        nodes.pass(WHOLE).await;
        assert_eq!(nodes.of(1).user_connection(&user("ada")).unwrap_err(), TooMany::User);
        drop(held);
        drop(nodes.of(0).notes.lock().as_mut().map(std::mem::take));
        nodes.pass(WHOLE).await;
        drop(nodes.of(1).user_connection(&user("ada")).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_alone_notes_nothing_and_an_idle_one_says_little() {
        let mut nodes = Nodes::start(1, config(6, 1)).await;
        assert_eq!(nodes.of(0).message(&user("ada")), Ok(()));
        assert!(nodes.of(0).notes.lock().is_none());
        nodes.join();
        nodes.settle().await;
        let mut words = nodes.bus.subscribe(Topic::Cluster).await;
        nodes.pass(Duration::from_secs(15)).await;
        let said = std::iter::from_fn(|| futures_util::FutureExt::now_or_never(words.next())).count();
        assert!((2 * 9..=2 * 11).contains(&said), "two nodes said {said} words in ten beats");
    }

    /// Users come and go by the ten thousand; each word stays below the bus's largest message.
    #[tokio::test(start_paused = true)]
    async fn fifty_thousand_users_are_told_in_small_words() {
        let nodes = Nodes::start(2, Config { connections: 100_000, ..config(6, 1) }).await;
        let mut words = nodes.bus.subscribe(Topic::Cluster).await;
        let name = |number: usize| user(&format!("{number:0>255}"));
        let permits: Vec<_> = (0..50_000).map(|number| nodes.of(0).user_connection(&name(number)).unwrap()).collect();
        nodes.settle().await;
        let (mut largest, mut count) = (0, 0);
        while let Some(Delivery::Word(word)) = futures_util::FutureExt::now_or_never(words.next()) {
            largest = largest.max(serde_json::to_vec(&*word).unwrap().len());
            count += 1;
        }
        assert!((25..QUEUE_EVENTS).contains(&count) && largest < 900_000, "{count} words of up to {largest} bytes");
        assert_eq!(nodes.of(1).user_connection(&name(49_999)).unwrap_err(), TooMany::User);
        drop(permits);
        nodes.settle().await;
        assert_eq!(nodes.of(1).connections().told(), 0);
    }

    use crate::bus::QUEUE_EVENTS;
}
