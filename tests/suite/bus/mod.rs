//! Every bus's contract, and what the network does to one: outages, floods, logins, strangers.

mod contract;
mod login; // tokens, passwords, certificates, and what the log says of wrong ones
mod network; // outages, slow listeners, foreign payloads, large events, many topics

use std::{sync::Arc, time::Duration};

use chatbox::{
    bus::{Bus, Config, Delivery, Subscription, Topic, nats},
    chat::{NodeId, TurnId, word::Word},
    metrics::Metrics,
};
use tokio::time::{interval, timeout};

use crate::harness::{client::PATIENCE, eventually, nats::Nats};

/// One node's end of a bus.
struct Node {
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
}

impl Node {
    /// A node that is configured so, connected or not.
    async fn of(config: &Config) -> Self {
        let metrics = Metrics::new();
        let bus = nats::Nats::open(config, Arc::clone(&metrics)).await.expect("a bus");
        Self { bus: Arc::new(bus), metrics }
    }

    /// A node on a server that lets everybody in, once it is connected.
    async fn on(server: &Nats) -> Self {
        Self::of(&Config { url: server.url(), ..Config::default() }).await.connected().await
    }

    async fn connected(self) -> Self {
        self.becomes(true).await;
        self
    }

    /// Waits until it is connected, or is not.
    async fn becomes(&self, connected: bool) {
        eventually("the connection changes", async || self.bus.connected() == connected).await;
    }

    /// Waits until what this node publishes reaches the other: everything that it subscribed to before, too.
    async fn reaches(&self, other: &Self) {
        let topic = Topic::Node(NodeId::new());
        let mut heard = other.bus.subscribe(topic.clone()).await;
        let word = Arc::new(Word::Stop { turn_id: TurnId::new() });
        let mut again = interval(Duration::from_millis(10));
        let reached = async {
            loop {
                tokio::select! {
                    _ = again.tick() => self.bus.tell(&topic, Arc::clone(&word)),
                    told = heard.next() => if told == Delivery::Word(Arc::clone(&word)) { return },
                }
            }
        };
        timeout(PATIENCE, reached).await.expect("a word arrives");
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.metrics.bus_dropped_total.with_label_values(&[reason]).get()
    }
}

/// Two nodes that hear each other.
async fn pair(server: &Nats) -> (Node, Node) {
    let (here, there) = tokio::join!(Node::on(server), Node::on(server));
    here.reaches(&there).await;
    there.reaches(&here).await;
    (here, there)
}

async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.next()).await.expect("a delivery in time")
}
