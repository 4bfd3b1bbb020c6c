//! The in-process bus.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Bus, Delivery, QUEUE_EVENTS, Subscription};
use crate::{
    chat::{Event, SessionId},
    metrics::Metrics,
};

/// Hands events to subscribers in the same process. A subscriber whose queue is full misses the event and is
/// told `Lagged`; the publisher never waits.
#[derive(Debug)]
pub struct Local(Arc<Topics>);

#[derive(Debug)]
struct Topics {
    shards: [Mutex<Shard>; SHARDS],
    metrics: Arc<Metrics>,
}

/// Publishers of different sessions rarely meet on one lock.
const SHARDS: usize = 64;

/// One list for each session that somebody watches; removed with its last subscriber.
type Shard = HashMap<SessionId, Vec<Arc<Subscriber>>>;

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Arc<Event>>,
    lagged: AtomicBool,
}

/// The receiving half of one subscription.
#[derive(Debug)]
pub(super) struct Receiver {
    session: SessionId,
    queue: mpsc::Receiver<Arc<Event>>,
    subscriber: Arc<Subscriber>,
    topics: Weak<Topics>,
}

impl Local {
    /// Makes a bus with no subscribers.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Topics { shards: std::array::from_fn(|_| Mutex::default()), metrics }))
    }
}

#[async_trait]
impl Bus for Local {
    async fn publish(&self, session: SessionId, event: Arc<Event>) {
        let shard = self.0.shard(session).lock().unwrap_or_else(PoisonError::into_inner);
        for subscriber in shard.get(&session).into_iter().flatten() {
            if subscriber.queue.try_send(Arc::clone(&event)).is_err() && !subscriber.lagged.swap(true, Ordering::AcqRel)
            {
                self.0.metrics.bus_lagged_total.inc();
            }
        }
    }

    async fn subscribe(&self, session: SessionId) -> Subscription {
        let (sender, queue) = mpsc::channel(QUEUE_EVENTS);
        let subscriber = Arc::new(Subscriber { queue: sender, lagged: AtomicBool::new(false) });
        let mut shard = self.0.shard(session).lock().unwrap_or_else(PoisonError::into_inner);
        shard.entry(session).or_default().push(Arc::clone(&subscriber));
        drop(shard);
        Subscription(Receiver { session, queue, subscriber, topics: Arc::downgrade(&self.0) })
    }
}

impl Topics {
    fn shard(&self, session: SessionId) -> &Mutex<Shard> {
        // The last bytes of a version 7 id are random.
        let [.., last] = session.0.into_bytes();
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(last) % SHARDS).unwrap_or(first)
    }
}

impl Receiver {
    pub(super) async fn next(&mut self) -> Delivery {
        // Events that queued up before the loss are dropped too: the store has all of them, in order.
        if self.subscriber.lagged.swap(false, Ordering::AcqRel) {
            while self.queue.try_recv().is_ok() {}
            return Delivery::Lagged;
        }
        match self.queue.recv().await {
            Some(event) => Delivery::Event(event),
            // Unreachable while `self.subscriber` holds a sender; waiting is the harmless answer.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(topics) = self.topics.upgrade() else { return };
        let mut shard = topics.shard(self.session).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(subscribers) = shard.get_mut(&self.session) {
            subscribers.retain(|other| !Arc::ptr_eq(other, &self.subscriber));
            if subscribers.is_empty() {
                shard.remove(&self.session);
            }
        }
    }
}
