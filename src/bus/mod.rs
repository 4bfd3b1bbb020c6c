//! The bus: tells whoever watches that something happened, at most once. It may drop; the store is the truth.

mod config;
mod local;
pub mod nats;

pub use config::Config;
pub use local::Local;

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    chat::{ConnectionId, Event, NodeId, SessionId, UserId, word::Word},
    metrics::Metrics,
};

/// What a subscription yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// something happened
    Event(Arc<Published>),
    /// a node said something; on [`Topic::Node`] and [`Topic::Cluster`] only
    Word(Arc<Word>),
    /// events were lost for this subscriber, or may have been: compare with the store
    Lagged,
}

/// An event on its way to its subscribers on this node, and the bytes that those who show it alike share: the first one
/// encodes it, the others send the same memory.
#[derive(Debug)]
pub struct Published {
    event: Event,
    frames: [OnceLock<Bytes>; 2],
}

impl Published {
    /// Wraps an event that nobody has encoded yet.
    #[must_use]
    pub fn new(event: Event) -> Arc<Self> {
        Arc::new(Self { event, frames: Default::default() })
    }

    /// Where the frame for this reader is kept. The author of a message sees more of it than all others do.
    #[must_use]
    pub fn frame(&self, reader: &UserId) -> &OnceLock<Bytes> {
        let [others, author] = &self.frames;
        match &self.event {
            Event::Appended { entry, .. } if entry.user_id == *reader => author,
            _ => others,
        }
    }
}

impl Deref for Published {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

/// Events are alike, whoever has encoded them.
impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

/// What one subscribes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Topic {
    /// everything that happens in a session
    Session(SessionId),
    /// what changes in a user's list of sessions
    User(UserId),
    /// what is said to one node
    Node(NodeId),
    /// what is said to all nodes
    Cluster,
}

/// Carries events of a topic to everyone who subscribed to it, in the order of one publisher's calls.
#[async_trait]
pub trait Bus: Send + Sync + std::fmt::Debug + 'static {
    /// Hands an event to the subscribers. Never waits for one of them.
    async fn publish(&self, topic: &Topic, event: Arc<Published>);

    /// Says something to the subscribers of [`Topic::Node`] or [`Topic::Cluster`], on this node too. Never waits.
    fn tell(&self, topic: &Topic, word: Arc<Word>);

    /// Subscribes. Every event that is published after this returns is delivered, or reported as `Lagged`, unless the
    /// bus has lost it.
    async fn subscribe(&self, topic: Topic) -> Subscription;

    /// What this node subscribes to.
    fn topics(&self) -> Vec<Topic>;

    /// Has the subscribers of a topic on this node compare with the store: those of a session that were not told of
    /// this `rev`, and all of another topic.
    fn compare(&self, topic: &Topic, rev: u64);

    /// Whether other nodes are reached. Without them, what happens there is seen when the store is compared.
    fn connected(&self) -> bool {
        true
    }

    /// Lets what was published leave, and ends. Takes some seconds at most.
    async fn close(&self) {}
}

/// Opens the configured bus. It need not be reached for that.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Arc<dyn Bus>, nats::Error> {
    if config.local() {
        return Ok(Arc::new(Local::new(metrics)));
    }
    Ok(Arc::new(nats::Nats::open(config, metrics).await?))
}

/// Tries the configured bus once, by a message to itself: how long it took. `None` when it has no network.
///
/// # Errors
/// When the configuration cannot be used, no server lets the node in, or the message does not come back.
pub async fn probe(config: &Config) -> Option<Result<Duration, nats::Error>> {
    if config.local() { None } else { Some(nats::Nats::probe(config).await) }
}

/// One subscriber's end: a queue of at most [`QUEUE_EVENTS`] events. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    receiver: local::Receiver,
    /// the network that the topic is listened to on
    remote: Option<Arc<nats::Shared>>,
}

impl Subscription {
    /// Notes what the subscriber has read from the store: from here on, an event whose `rev` is not the next one tells
    /// that one before it was lost.
    pub fn saw(&self, rev: u64) {
        self.receiver.saw(rev);
    }

    /// Says who subscribes: typing on that connection is not delivered.
    pub fn own(&self, connection: ConnectionId) {
        self.receiver.own(connection);
    }

    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> Delivery {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next event, or a wake-up of this task when there is one.
    pub fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Delivery> {
        self.receiver.poll_next(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(remote) = &self.remote {
            remote.release(self.receiver.topic());
        }
    }
}

/// Events that wait for one subscriber before it counts as lagging.
pub const QUEUE_EVENTS: usize = 64;
