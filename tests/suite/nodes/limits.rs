//! Limits over several servers, as clients meet them. What nodes tell each other, and what they may admit before they
//! have, is tested beside it.

use std::collections::HashMap;

use chatbox::{
    bus::{Delivery, Subscription, Topic},
    chat::word::{Action, Word},
};
use serde_json::json;
use tokio::time::timeout;

use super::Nodes;
use crate::harness::{Client, Via, client::PATIENCE, over_both};

over_both! {
    messages_are_counted_for_all_nodes_together,
    connections_of_a_user_are_counted_for_all_nodes_together,
}

const LIMIT: u32 = 4;

/// checklist 67
async fn messages_are_counted_for_all_nodes_together(via: Via) {
    let nodes = Nodes::start(2, |config| config.limits.messages_per_minute = LIMIT).await;
    nodes.hear_each_other().await;
    let (mut here, _watch, _status) = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    let (mut there, _watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({})).await;
    let mut words = nodes.bus.subscribe(Topic::Cluster).await;
    for client in [&mut here, &mut there] {
        for _ in 0..LIMIT / 2 {
            client.say("count to 1").await.reply().await;
        }
    }
    let messages = |tally: &chatbox::chat::word::Tally| {
        tally.admitted.iter().filter(|(action, _, _)| *action == Action::Message).map(|(_, _, count)| count).sum()
    };
    heard(&mut words, 2, messages, LIMIT).await;
    for client in [&mut here, &mut there] {
        let refused = client.say("one more").await.until("error").await;
        assert_eq!(refused["error"]["code"], "TOO_MANY_REQUESTS");
        let wait = refused["error"]["retry_after"].as_u64().unwrap();
        assert!((5_000..=15_000).contains(&wait), "four in a minute are one in 15 s, got {wait} ms");
    }
    let (mut eve, _watch, _status) = Client::attached(&nodes.servers[1], via, "eve", json!({})).await;
    assert_eq!(eve.say("count to 1").await.next().await.unwrap()["type"], "accepted", "others are not concerned");
}

/// checklist 67
async fn connections_of_a_user_are_counted_for_all_nodes_together(via: Via) {
    let nodes = Nodes::start(2, |config| config.limits.connections_per_user = 2).await;
    nodes.hear_each_other().await;
    let mut words = nodes.bus.subscribe(Topic::Cluster).await;
    let _here = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    let (there, _watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({})).await;
    let connections = |tally: &chatbox::chat::word::Tally| tally.connections.iter().map(|(_, count)| count).sum();
    // Each is counted for its user and for its address.
    heard(&mut words, 2, connections, 4).await;
    for server in &nodes.servers {
        let mut third = Client::open(server, via).await;
        let attach = json!({"type": "attach", "id": crate::harness::id(), "token": server.token("ann")});
        let refused = third.exchange(attach).await.until("error").await;
        assert_eq!(refused["error"]["code"], "CONNECTION_LIMIT_EXCEEDED");
        assert_eq!(third.closed().await, 6);
    }
    there.leave(&nodes.servers[1]).await;
    let gone = |tally: &chatbox::chat::word::Tally| u32::from(tally.connections.iter().any(|(_, count)| *count == 0));
    heard(&mut words, 2, gone, 1).await;
    let (_again, _watch, status) = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    assert_eq!(status["user_id"], "ann");
}

/// Waits until every node has heard that so many were told in all: of `count`, by each node. A node says nothing more
/// before it has heard what came before.
async fn heard(words: &mut Subscription, nodes: usize, count: fn(&chatbox::chat::word::Tally) -> u32, all: u32) {
    let mut told: HashMap<_, u32> = HashMap::new();
    let mut next = async || loop {
        match timeout(PATIENCE, words.next()).await.expect("a word in time") {
            Delivery::Word(word) => {
                let Word::Tally(tally) = &*word else { continue };
                return tally.clone();
            }
            other => panic!("not a word: {other:?}"),
        }
    };
    while told.values().sum::<u32>() < all {
        let tally = next().await;
        *told.entry(tally.node).or_default() += count(&tally);
    }
    let mut spoken = std::collections::HashSet::new();
    while spoken.len() < nodes {
        spoken.insert(next().await.node);
    }
}
