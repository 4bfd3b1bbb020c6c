//! What every bus keeps.

use std::sync::Arc;

use chatbox::{
    bus::{Bus, Delivery, Local, Topic},
    chat::{
        NodeId, TurnId, UserId,
        word::{Action, Key, Tally, Word},
    },
    metrics::Metrics,
};

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

#[tokio::test]
async fn a_word_reaches_its_node_alone() {
    let bus = Local::new(Metrics::new());
    let (this, other) = (NodeId::new(), NodeId::new());
    let mut mine = bus.subscribe(Topic::Node(this)).await;
    let mut theirs = bus.subscribe(Topic::Node(other)).await;
    let (first, second) = (stop(), stop());
    bus.tell(&Topic::Node(other), Arc::clone(&first));
    bus.tell(&Topic::Node(this), Arc::clone(&second));
    assert_eq!(theirs.next().await, Delivery::Word(first));
    assert_eq!(mine.next().await, Delivery::Word(second));
}

#[tokio::test]
async fn what_is_said_to_all_reaches_all() {
    let bus = Local::new(Metrics::new());
    let mut listeners = [bus.subscribe(Topic::Cluster).await, bus.subscribe(Topic::Cluster).await];
    let node = NodeId::new();
    bus.tell(&Topic::Cluster, tally(node, 3));
    bus.tell(&Topic::Cluster, tally(node, 4));
    for listener in &mut listeners {
        assert_eq!(listener.next().await, Delivery::Word(tally(node, 3)));
        assert_eq!(listener.next().await, Delivery::Word(tally(node, 4)));
    }
}
