//! The in-process bus.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;

use super::{Bus, Delivery, Published, QUEUE_EVENTS, Subscription, Topic};
use crate::{
    chat::{ConnectionId, Event, word::Word},
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

/// Publishers of different topics rarely meet on one lock.
const SHARDS: usize = 64;

/// One list for each topic that somebody watches; removed with its last subscriber.
type Shard = HashMap<Topic, Vec<Arc<Subscriber>>>;

#[derive(Debug, Default)]
struct Subscriber(Mutex<Queue>);

/// Takes no memory elsewhere while no more than one delivery waits, which is most of the time.
#[derive(Debug, Default)]
struct Queue {
    /// before all others
    first: Option<Delivery>,
    told: VecDeque<Delivery>,
    lagged: bool,
    /// the last `rev` of the session that the subscriber has read or is told of; 0 until it has read one
    rev: u64,
    own: Option<ConnectionId>,
    /// the one task that asked last, kept when it is woken: it nearly always asks again
    task: Option<Waker>,
    waits: bool,
}

/// The receiving half of one subscription.
#[derive(Debug)]
pub(super) struct Receiver {
    topic: Topic,
    subscriber: Arc<Subscriber>,
    topics: Weak<Topics>,
}

impl Local {
    /// Makes a bus with no subscribers.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Topics { shards: std::array::from_fn(|_| Mutex::default()), metrics }))
    }

    pub(super) fn receiver(&self, topic: Topic) -> Receiver {
        let subscriber = Arc::new(Subscriber::default());
        let mut shard = self.0.lock(&topic);
        shard.entry(topic.clone()).or_default().push(Arc::clone(&subscriber));
        drop(shard);
        Receiver { topic, subscriber, topics: Arc::downgrade(&self.0) }
    }

    /// Hands what was told to the subscribers of a topic.
    pub(super) fn offer(&self, topic: &Topic, told: &Delivery) {
        let rev = match (topic, told) {
            (Topic::Session(_), Delivery::Event(event)) => event.rev(),
            _ => None,
        };
        for subscriber in self.0.lock(topic).get(topic).into_iter().flatten() {
            if !subscriber.offer(told, rev) {
                self.0.metrics.bus_lagged_total.inc();
            }
        }
    }

    /// Tells the subscribers of a topic that something was lost.
    pub(super) fn lag(&self, topic: &Topic) {
        for subscriber in self.0.lock(topic).get(topic).into_iter().flatten() {
            self.0.metrics.bus_lagged_total.inc();
            subscriber.compare(None);
        }
    }

    /// The same for every topic.
    pub(super) fn lag_all(&self) {
        for shard in &self.0.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for subscriber in shard.values().flatten() {
                self.0.metrics.bus_lagged_total.inc();
                subscriber.compare(None);
            }
        }
    }
}

#[async_trait]
impl Bus for Local {
    async fn publish(&self, topic: &Topic, event: Arc<Published>) {
        self.offer(topic, &Delivery::Event(event));
    }

    fn tell(&self, topic: &Topic, word: Arc<Word>) {
        self.offer(topic, &Delivery::Word(word));
    }

    async fn subscribe(&self, topic: Topic) -> Subscription {
        Subscription { receiver: self.receiver(topic), remote: None }
    }

    fn topics(&self) -> Vec<Topic> {
        let shards = self.0.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner));
        shards.flat_map(|shard| shard.keys().cloned().collect::<Vec<_>>()).collect()
    }

    fn compare(&self, topic: &Topic, rev: u64) {
        for subscriber in self.0.lock(topic).get(topic).into_iter().flatten() {
            subscriber.compare(rev.checked_sub(1).filter(|_| matches!(topic, Topic::Session(_))));
        }
    }
}

impl Subscriber {
    /// Queues what was told; `false` when with this one the subscriber began to lag.
    fn offer(&self, told: &Delivery, rev: Option<u64>) -> bool {
        let mut queue = self.lock();
        if let Delivery::Event(event) = told
            && matches!(***event, Event::Typing { origin, .. } if queue.own == Some(origin))
        {
            return true;
        }
        let lags_already = queue.lagged;
        let lost_before = rev.is_some_and(|rev| queue.rev > 0 && rev > queue.rev + 1);
        if queue.length() >= QUEUE_EVENTS || lost_before {
            queue.lagged = true;
        } else {
            queue.push(told.clone());
        }
        if queue.rev > 0 {
            queue.rev = queue.rev.max(rev.unwrap_or_default());
        }
        queue.wake();
        lags_already || !queue.lagged
    }

    /// Makes the subscriber read the store, unless it is known to have been told of what comes after `before`.
    fn compare(&self, before: Option<u64>) {
        let mut queue = self.lock();
        let told = before.is_some_and(|before| queue.rev == 0 || queue.rev > before);
        queue.lagged |= !told;
        if !told {
            queue.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self) -> Option<Delivery> {
        // Events that queued up before the loss are dropped too: the store has all of them, in order.
        if self.lagged {
            self.lagged = false;
            (self.first, self.told) = (None, VecDeque::new());
            return Some(Delivery::Lagged);
        }
        self.first.take().or_else(|| self.told.pop_front())
    }

    fn length(&self) -> usize {
        usize::from(self.first.is_some()) + self.told.len()
    }

    fn push(&mut self, told: Delivery) {
        if self.first.is_none() && self.told.is_empty() {
            self.first = Some(told);
        } else {
            self.told.push_back(told);
        }
    }

    /// The next delivery, or a wake-up when there is one.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Delivery> {
        if let Some(told) = self.take() {
            return Poll::Ready(told);
        }
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        self.waits = true;
        Poll::Pending
    }

    fn wake(&mut self) {
        if std::mem::take(&mut self.waits)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }
}

impl Topics {
    fn lock(&self, topic: &Topic) -> MutexGuard<'_, Shard> {
        self.shard(topic).lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, topic: &Topic) -> &Mutex<Shard> {
        // The last bytes of a version 7 id are random.
        let bits = match topic {
            Topic::Session(id) => id.0.as_bytes().last().copied().unwrap_or_default(),
            Topic::User(id) => id.as_str().bytes().fold(0, u8::wrapping_add),
            Topic::Node(id) => id.0.as_bytes().last().copied().unwrap_or_default(),
            Topic::Cluster => 0,
        };
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(bits) % SHARDS).unwrap_or(first)
    }
}

impl Receiver {
    pub(super) const fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) fn own(&self, connection: ConnectionId) {
        self.subscriber.lock().own = Some(connection);
    }

    pub(super) fn saw(&self, rev: u64) {
        let mut queue = self.subscriber.lock();
        let revs = queue.first.iter().chain(&queue.told).filter_map(|told| match told {
            Delivery::Event(event) => event.rev(),
            Delivery::Word(_) | Delivery::Lagged => None,
        });
        let (told, lost) =
            revs.fold((queue.rev.max(rev), false), |(told, lost), rev| (told.max(rev), lost || rev > told + 1));
        queue.rev = told;
        queue.lagged |= lost;
    }

    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<Delivery> {
        self.subscriber.lock().poll(cx)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(topics) = self.topics.upgrade() else { return };
        let mut shard = topics.lock(&self.topic);
        if let Some(subscribers) = shard.get_mut(&self.topic) {
            subscribers.retain(|other| !Arc::ptr_eq(other, &self.subscriber));
            if subscribers.is_empty() {
                shard.remove(&self.topic);
            }
        }
    }
}
