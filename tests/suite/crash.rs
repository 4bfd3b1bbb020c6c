//! What a node's end does to its turns, and what only looks like one.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Client, Server, Via, id, openai, over_both,
    provider::{Provider, Script},
};

over_both! {
    turn_of_a_silent_provider_keeps_its_lease,
}

/// Nothing is written to its log meanwhile, so that nothing but the renewal keeps the sweep away from it.
async fn turn_of_a_silent_provider_keeps_its_lease(via: Via) {
    let provider = Provider::start(Script::silent()).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.turn_lease = Duration::from_millis(600);
    })
    .await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("loading").await["turn_id"].clone();
    assert!(exchange.silent(Duration::from_secs(2)).await, "it is still waited for, after three leases");
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    assert_eq!(exchange.reply().await.1["state"], "stopped");
    assert_eq!(provider.requests(), 1, "the provider was asked once");
}
