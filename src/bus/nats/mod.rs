//! The bus over NATS: what happens on one node is told to those that watch it on others.
//!
//! Subscribers on this node are served by [`Local`]; the network carries to other nodes only. Each topic with a
//! subscriber here is one NATS subscription, so a session that nobody watches elsewhere costs its node one write.
//! Core NATS delivers at most once, which is all that a bus promises: what it loses is found by comparing with the
//! store. While there is no connection nothing is kept for later.

mod interest;
mod link;
mod outbox;
mod tasks;
mod wire;

pub use link::Error;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::Serialize;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

use self::{
    interest::Interests,
    outbox::{Order, Outbox},
    wire::{Carried, Origin, Subjects},
};
use super::{Bus, Config, Delivery, Local, Published, Subscription, Topic};
use crate::{chat::word::Word, config::secret::random_bytes, metrics::Metrics};

/// How long what waits may take to leave when the bus is closed.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A node's end of the bus. Its tasks end with it.
#[derive(Debug)]
pub struct Nats {
    shared: Arc<Shared>,
    _ends: DropGuard,
}

/// What the tasks and the subscriptions of one bus share.
#[derive(Debug)]
pub(super) struct Shared {
    local: Local,
    interests: Interests,
    outbox: Outbox,
    subjects: Subjects,
    origin: Origin,
    connected: AtomicBool,
    /// the library has told that something about the connection changed
    changed: Notify,
    failed: AtomicBool,
    metrics: Arc<Metrics>,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl Nats {
    /// Begins to connect, and returns at once: a server that cannot be reached is tried again for ever.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub async fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let closed = CancellationToken::new();
        let shared = Arc::new(Shared {
            local: Local::new(Arc::clone(&metrics)),
            interests: Interests::default(),
            outbox: Outbox::default(),
            subjects: Subjects::new(&config.prefix),
            origin: random_bytes(),
            connected: AtomicBool::new(false),
            changed: Notify::new(),
            failed: AtomicBool::new(false),
            metrics,
            closed: closed.clone(),
            tasks: TaskTracker::new(),
        });
        let told = Arc::downgrade(&shared);
        let client = link::open(config, move |event| {
            if let Some(shared) = told.upgrade() {
                shared.told(&event);
            }
            std::future::ready(())
        })
        .await?;
        shared.tasks.spawn(tasks::watch(Arc::clone(&shared), client.clone(), config.clone()));
        shared.tasks.spawn(tasks::pump(Arc::clone(&shared), client));
        Ok(Self { shared, _ends: closed.drop_guard() })
    }

    /// Connects once and sends itself a message; how long that took.
    ///
    /// # Errors
    /// When the configuration cannot be used, no server lets the node in, or the message does not come back.
    pub async fn probe(config: &Config) -> Result<Duration, Error> {
        link::probe(config).await
    }
}

#[async_trait]
impl Bus for Nats {
    async fn publish(&self, topic: &Topic, event: Arc<Published>) {
        self.shared.local.publish(topic, Arc::clone(&event)).await;
        let told = event.rev().unwrap_or(u64::MAX);
        self.shared.send(topic, &Carried::<_, ()>::Event(&**event), Some(told));
    }

    fn tell(&self, topic: &Topic, word: Arc<Word>) {
        self.shared.send(topic, &Carried::<(), _>::Word(&*word), None);
        self.shared.local.tell(topic, word);
    }

    /// Does not wait until the server knows of it. What is committed after the subscriber has begun to read the store
    /// is published later still, and the subscription is under way by then; with several servers an answer of one
    /// would not speak for the others. If something falls between nevertheless, the next event shows that by its
    /// `rev` or offset, and the next comparison without one.
    async fn subscribe(&self, topic: Topic) -> Subscription {
        let first = self.shared.interests.hold(&topic);
        let receiver = self.shared.local.receiver(topic.clone());
        // Whoever finds the connection new listens to what is lacking, this included.
        if first && self.shared.connected() {
            self.shared.outbox.add(Order::Listen(topic));
        }
        Subscription { receiver, remote: Some(Arc::clone(&self.shared)) }
    }

    fn topics(&self) -> Vec<Topic> {
        self.shared.local.topics()
    }

    fn compare(&self, topic: &Topic, rev: u64) {
        self.shared.local.compare(topic, rev);
    }

    fn connected(&self) -> bool {
        self.shared.connected()
    }

    async fn close(&self) {
        let shared = &self.shared;
        if shared.connected() {
            let (left, leaving) = oneshot::channel();
            shared.outbox.add(Order::Leave(left));
            if timeout(CLOSE_DEADLINE, leaving).await.is_err() {
                warn!("bus did not take the last events in time");
            }
        }
        shared.closed.cancel();
        shared.tasks.close();
        if timeout(CLOSE_DEADLINE, shared.tasks.wait()).await.is_err() {
            warn!("a task of the bus outlived it");
        }
    }
}

impl Shared {
    /// Counts one subscriber less.
    pub(super) fn release(&self, topic: &Topic) {
        self.interests.release(topic);
    }

    fn connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    /// Sends to other nodes. What is too large to be carried is a hint to compare, if there is a `rev` to compare.
    fn send<E: Serialize, W: Serialize>(&self, topic: &Topic, carried: &Carried<E, W>, rev: Option<u64>) {
        if !self.connected() {
            return self.dropped("disconnected", 1);
        }
        let payload = carried.encode(self.origin).or_else(|| {
            self.dropped("large", 1);
            Carried::<(), ()>::Compare { rev: rev? }.encode(self.origin)
        });
        let Some(payload) = payload else { return };
        let (subject, rev) = (self.subjects.of(topic), rev.unwrap_or(u64::MAX));
        if !self.outbox.add(Order::Publish { subject, payload, rev }) {
            self.dropped("full", 1);
        }
    }

    /// Hands what came from another node to the subscribers here.
    fn receive(&self, topic: &Topic, payload: &[u8]) {
        self.metrics.bus_received_total.inc();
        self.metrics.bus_bytes_total.with_label_values(&["in"]).inc_by(payload.len().try_into().unwrap_or_default());
        match wire::decode(payload) {
            // A server that stood still hands out what an earlier connection of this node has sent.
            Some((origin, _)) if origin == self.origin => {}
            Some((_, Carried::Event(event))) => self.local.offer(topic, &Delivery::Event(Published::new(event))),
            Some((_, Carried::Word(word))) => self.local.offer(topic, &Delivery::Word(Arc::new(word))),
            Some((_, Carried::Compare { rev })) => self.local.compare(topic, rev),
            None => {
                self.dropped("unreadable", 1);
                self.local.lag(topic);
            }
        }
    }

    fn dropped(&self, reason: &str, count: usize) {
        let count = count.try_into().unwrap_or_default();
        self.metrics.bus_dropped_total.with_label_values(&[reason]).inc_by(count);
    }

    fn told(&self, event: &async_nats::Event) {
        match event {
            async_nats::Event::SlowConsumer(_) => self.dropped("slow", 1),
            // Rights of the node's user that are lacking; of the connection's end the others tell.
            async_nats::Event::ServerError(err) => warn!(reason = %err, "bus refuses something"),
            async_nats::Event::ClientError(_) => {
                self.failed.store(true, Ordering::SeqCst);
                self.changed.notify_one();
            }
            _ => self.changed.notify_one(),
        }
    }

    /// A connection is new: whatever was told in the meantime is lost.
    fn arrived(&self) {
        self.failed.store(false, Ordering::SeqCst);
        self.connected.store(true, Ordering::SeqCst);
        self.metrics.bus_connected.set(1);
        self.outbox.add(Order::ListenToAll);
        self.outbox.add(Order::Compare);
        info!("bus is connected");
    }

    fn left(&self) {
        self.connected.store(false, Ordering::SeqCst);
        self.metrics.bus_connected.set(0);
        self.dropped("disconnected", self.outbox.forget());
        warn!("bus is not connected: until it is, this node learns from the store what happens on others");
    }
}
