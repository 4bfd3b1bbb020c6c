//! What every bus keeps, within a process, on one node of a network, and between two.

use std::sync::Arc;

use chatbox::{
    bus::{Bus, Delivery, Local, Published, QUEUE_EVENTS, Topic},
    chat::{
        ConnectionId, Entry, EntryId, EntryKind, ErrorCode, Event, NodeId, Scalar, Segment, Sender, SessionId,
        SessionUpdate, Timestamp, TurnId, TurnState, Usage, UserId,
        word::{Action, Key, Tally, Word},
    },
    metrics::Metrics,
};
use uuid::Uuid;

use super::{Node, next, pair};
use crate::harness::nats::Nats;

/// Where one publishes, and where one subscribes.
struct Ends {
    publisher: Node,
    subscriber: Node,
    _server: Option<Nats>,
}

impl Ends {
    fn process() -> Self {
        let metrics = Metrics::new();
        let bus: Arc<dyn Bus> = Arc::new(Local::new(Arc::clone(&metrics)));
        let node = || Node { bus: Arc::clone(&bus), metrics: Arc::clone(&metrics) };
        Self { publisher: node(), subscriber: node(), _server: None }
    }

    async fn node() -> Option<Self> {
        let server = Nats::start().await?;
        let (here, _) = pair(&server).await;
        let again = Node { bus: Arc::clone(&here.bus), metrics: Arc::clone(&here.metrics) };
        Some(Self { publisher: here, subscriber: again, _server: Some(server) })
    }

    async fn nodes() -> Option<Self> {
        let server = Nats::start().await?;
        let (publisher, subscriber) = pair(&server).await;
        Some(Self { publisher, subscriber, _server: Some(server) })
    }

    /// Waits until the network has heard of every subscription.
    async fn settled(&self) {
        if !Arc::ptr_eq(&self.publisher.bus, &self.subscriber.bus) {
            self.publisher.reaches(&self.subscriber).await;
        }
    }

    async fn publish(&self, topic: &Topic, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.publisher.bus.publish(topic, Published::new(event)).await;
        }
    }
}

/// Runs each behaviour over every bus, and over the network from one node to another.
macro_rules! over_buses {
    ($($name:ident),+ $(,)?) => {
        mod process {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Ends::process()).await
            })+
        }
        mod node {
            $(#[tokio::test]
            async fn $name() {
                let Some(ends) = super::Ends::node().await else { return };
                super::$name(ends).await
            })+
        }
        mod nodes {
            $(#[tokio::test]
            async fn $name() {
                let Some(ends) = super::Ends::nodes().await else { return };
                super::$name(ends).await
            })+
        }
    };
}

over_buses! {
    events_reach_every_subscriber_of_their_topic_and_nobody_else,
    every_kind_of_event_arrives_as_it_was,
    the_order_of_one_publisher_is_kept,
    whoever_is_too_slow_is_told_once_and_goes_on,
    a_gap_in_the_revs_is_a_loss,
    typing_on_ones_own_connection_is_not_delivered,
    a_word_reaches_its_node_alone,
    what_is_said_to_all_reaches_all,
    a_topic_ends_with_its_last_subscriber,
    comparing_wakes_only_who_was_not_told,
}

fn piece(offset: u64) -> Event {
    let (turn_id, model_id) = (TurnId(Uuid::nil()), "demo".into());
    Event::Piece { turn_id, model_id, offset, content: "text ".into() }
}

fn named(session_id: SessionId, rev: u64) -> Event {
    let update = SessionUpdate { name: Some(format!("name {rev}")), ..SessionUpdate::of(session_id) };
    Event::Session { rev, update: Arc::new(update) }
}

fn delivered(event: Event) -> Delivery {
    Delivery::Event(Published::new(event))
}

async fn events_reach_every_subscriber_of_their_topic_and_nobody_else(ends: Ends) {
    let (session, other) = (SessionId::new(), SessionId::new());
    let user = Topic::User(UserId::parse("a user. with > any * text").unwrap());
    let bus = &ends.subscriber.bus;
    let mut first = bus.subscribe(Topic::Session(session)).await;
    let mut second = bus.subscribe(Topic::Session(session)).await;
    let mut elsewhere = bus.subscribe(Topic::Session(other)).await;
    let mut list = bus.subscribe(user.clone()).await;
    ends.settled().await;
    ends.publish(&Topic::Session(session), [piece(0)]).await;
    ends.publish(&Topic::Session(other), [piece(1)]).await;
    ends.publish(&user, [named(session, 7)]).await;
    assert_eq!(next(&mut first).await, delivered(piece(0)));
    assert_eq!(next(&mut second).await, delivered(piece(0)));
    assert_eq!(next(&mut elsewhere).await, delivered(piece(1)));
    assert_eq!(next(&mut list).await, delivered(named(session, 7)));
}

/// A reply with everything that an entry can have.
fn reply(session_id: SessionId, content: &str) -> Arc<Entry> {
    Arc::new(Entry {
        session_id,
        seq: 2,
        id: EntryId::new(),
        user_id: UserId::parse("alice").unwrap(),
        client_id: Some(Uuid::now_v7()),
        turn_id: Some(TurnId::new()),
        reply_to: Some(1),
        sender: Sender::Ai,
        kind: EntryKind::Text,
        content: content.to_owned(),
        files: vec!["file".to_owned()],
        metadata: [("key".to_owned(), Scalar::Bool(true))].into_iter().collect(),
        state: Some(TurnState::Interrupted),
        length: Some(content.len() as u64),
        sha256: Some("00ff".to_owned()),
        usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2, estimated: true }),
        model_id: Some("demo".to_owned()),
        segments: vec![Segment { offset: 0, model_id: "demo".to_owned() }],
        rating: None,
        created_at: Timestamp(1_700_000_000_123),
    })
}

async fn every_kind_of_event_arrives_as_it_was(ends: Ends) {
    let session = SessionId::new();
    let topic = Topic::Session(session);
    let mut watch = ends.subscriber.bus.subscribe(topic.clone()).await;
    ends.settled().await;
    let entry = reply(session, "\"quoted\"\n\u{0} größer \u{1F600}");
    let turn_id = TurnId::new();
    let events = [
        Event::Appended { rev: 1, origin: Some(ConnectionId::new()), entry: Arc::clone(&entry) },
        Event::Appended { rev: 2, origin: None, entry: Arc::clone(&entry) },
        Event::Loading { rev: 3, turn_id, seq: 2, model_id: "demo".into() },
        Event::Piece { turn_id, model_id: "demo".into(), offset: u64::MAX, content: "é\u{2028}".into() },
        Event::Ended { rev: 4, failure: Some(ErrorCode::LlmTimeout), entry: Arc::clone(&entry) },
        Event::Ended { rev: 5, failure: None, entry },
        named(session, 6),
        Event::Typing { origin: ConnectionId::new(), sender: Sender::Admin, active: true },
    ];
    ends.publish(&topic, events.clone()).await;
    for event in events {
        assert_eq!(next(&mut watch).await, delivered(event));
    }
}

async fn the_order_of_one_publisher_is_kept(ends: Ends) {
    let topic = Topic::Session(SessionId::new());
    let mut watch = ends.subscriber.bus.subscribe(topic.clone()).await;
    ends.settled().await;
    let most = QUEUE_EVENTS as u64;
    for round in 0..20 {
        ends.publish(&topic, (0..most).map(|number| piece(round * most + number))).await;
        for number in 0..most {
            assert_eq!(next(&mut watch).await, delivered(piece(round * most + number)));
        }
    }
    // Some come while others are taken.
    let mut takes = 0..most;
    for number in 0..most {
        ends.publish(&topic, [piece(number)]).await;
        for take in takes.by_ref().take(if number % 3 == 0 { 0 } else { 1 }) {
            assert_eq!(next(&mut watch).await, delivered(piece(take)));
        }
    }
    for take in takes {
        assert_eq!(next(&mut watch).await, delivered(piece(take)));
    }
}

async fn whoever_is_too_slow_is_told_once_and_goes_on(ends: Ends) {
    let topic = Topic::Session(SessionId::new());
    let mut slow = ends.subscriber.bus.subscribe(topic.clone()).await;
    let mut quick = ends.subscriber.bus.subscribe(topic.clone()).await;
    ends.settled().await;
    let lagged = ends.subscriber.metrics.bus_lagged_total.get();
    for number in 0..2 * QUEUE_EVENTS as u64 {
        ends.publish(&topic, [piece(number)]).await;
        assert_eq!(next(&mut quick).await, delivered(piece(number)));
    }
    assert_eq!(next(&mut slow).await, Delivery::Lagged);
    ends.publish(&topic, [piece(1_000)]).await;
    assert_eq!(next(&mut slow).await, delivered(piece(1_000)));
    assert_eq!(ends.subscriber.metrics.bus_lagged_total.get(), lagged + 1, "the quick one lagged too");
}

async fn a_gap_in_the_revs_is_a_loss(ends: Ends) {
    let session = SessionId::new();
    let topic = Topic::Session(session);
    let mut watch = ends.subscriber.bus.subscribe(topic.clone()).await;
    watch.saw(4);
    ends.settled().await;
    ends.publish(&topic, [named(session, 5), named(session, 7)]).await;
    // The first may have been taken before the second came.
    let told = next(&mut watch).await;
    if told != Delivery::Lagged {
        assert_eq!(told, delivered(named(session, 5)));
        assert_eq!(next(&mut watch).await, Delivery::Lagged);
    }
    watch.saw(7);
    ends.publish(&topic, [named(session, 8)]).await;
    assert_eq!(next(&mut watch).await, delivered(named(session, 8)));
}

async fn typing_on_ones_own_connection_is_not_delivered(ends: Ends) {
    let topic = Topic::Session(SessionId::new());
    let (mine, theirs) = (ConnectionId::new(), ConnectionId::new());
    let mut watch = ends.subscriber.bus.subscribe(topic.clone()).await;
    watch.own(mine);
    ends.settled().await;
    let typing = |origin| Event::Typing { origin, sender: Sender::User, active: true };
    ends.publish(&topic, [typing(mine), typing(theirs)]).await;
    assert_eq!(next(&mut watch).await, delivered(typing(theirs)));
}

fn stop() -> Arc<Word> {
    Arc::new(Word::Stop { turn_id: TurnId::new() })
}

fn tally(node: NodeId, count: u32) -> Arc<Word> {
    let user = Key::User(UserId::parse("alice").unwrap());
    let address = Key::Address([127, 0, 0, 1].into());
    Arc::new(Word::Tally(Tally {
        node,
        admitted: vec![(Action::Message, user.clone(), count), (Action::Public, address.clone(), 1)],
        connections: vec![(user, 2), (address, 0)],
        whole: false,
    }))
}

async fn a_word_reaches_its_node_alone(ends: Ends) {
    let (this, other) = (NodeId::new(), NodeId::new());
    let mut mine = ends.subscriber.bus.subscribe(Topic::Node(this)).await;
    let mut theirs = ends.subscriber.bus.subscribe(Topic::Node(other)).await;
    ends.settled().await;
    let (first, second) = (stop(), stop());
    ends.publisher.bus.tell(&Topic::Node(other), Arc::clone(&first));
    ends.publisher.bus.tell(&Topic::Node(this), Arc::clone(&second));
    assert_eq!(next(&mut theirs).await, Delivery::Word(first));
    assert_eq!(next(&mut mine).await, Delivery::Word(second));
}

async fn what_is_said_to_all_reaches_all(ends: Ends) {
    let [mut one, mut another] =
        [ends.subscriber.bus.subscribe(Topic::Cluster).await, ends.publisher.bus.subscribe(Topic::Cluster).await];
    ends.settled().await;
    let node = NodeId::new();
    ends.publisher.bus.tell(&Topic::Cluster, tally(node, 3));
    ends.publisher.bus.tell(&Topic::Cluster, tally(node, 4));
    for listener in [&mut one, &mut another] {
        assert_eq!(next(listener).await, Delivery::Word(tally(node, 3)));
        assert_eq!(next(listener).await, Delivery::Word(tally(node, 4)));
    }
}

async fn a_topic_ends_with_its_last_subscriber(ends: Ends) {
    let topic = Topic::Session(SessionId::new());
    let bus = &ends.subscriber.bus;
    let first = bus.subscribe(topic.clone()).await;
    let second = bus.subscribe(topic.clone()).await;
    drop(first);
    assert_eq!(bus.topics(), std::slice::from_ref(&topic));
    drop(second);
    assert_eq!(bus.topics(), []);
    // The same topic can be subscribed to at once, and nothing is delivered twice.
    let mut again = bus.subscribe(topic.clone()).await;
    ends.settled().await;
    ends.publish(&topic, [piece(1), piece(2)]).await;
    assert_eq!(next(&mut again).await, delivered(piece(1)));
    assert_eq!(next(&mut again).await, delivered(piece(2)));
}

async fn comparing_wakes_only_who_was_not_told(ends: Ends) {
    let session = SessionId::new();
    let topic = Topic::Session(session);
    let bus = &ends.subscriber.bus;
    let mut watch = bus.subscribe(topic.clone()).await;
    watch.saw(5);
    ends.settled().await;
    bus.compare(&topic, 5);
    ends.publish(&topic, [named(session, 6)]).await;
    assert_eq!(next(&mut watch).await, delivered(named(session, 6)));
    bus.compare(&topic, 7);
    assert_eq!(next(&mut watch).await, Delivery::Lagged);
    let mut list = bus.subscribe(Topic::Cluster).await;
    bus.compare(&Topic::Cluster, 0);
    assert_eq!(next(&mut list).await, Delivery::Lagged);
}
