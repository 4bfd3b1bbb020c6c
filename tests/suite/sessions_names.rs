//! Names that a model gives.

use chatbox::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::Api,
    client::Lines,
    eventually, openai,
    provider::{Gate, Provider, Script},
};

fn naming(config: &mut Config, provider: &Provider) {
    openai(config, provider);
    config.sessions.model_names = true;
}

/// The next update of a name.
async fn name(watch: &mut Lines) -> Value {
    loop {
        let update = watch.until("session_update").await;
        if update.get("name").is_some() {
            return update["name"].clone();
        }
    }
}

/// Waits until that many requests for names have come to their end.
async fn named(server: &Server, outcome: &str, times: u64) {
    let counted = server.metrics.session_names_total.with_label_values(&[outcome]);
    eventually("an outcome is counted", async || counted.get() >= times).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_names_a_session_once_after_its_first_complete_reply() {
    let provider = Provider::start(Script::answer(["\"Late parcel.\"\n", "and more"])).await;
    let server = Server::with(|config| naming(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    client.say("Where is it? I have waited for it since Monday").await.reply().await;
    assert_eq!(name(&mut watch).await, "Where is it? I have waited for it since Monday");
    assert_eq!(name(&mut watch).await, "Late parcel");
    let request = provider.request(1).await;
    let messages = request.messages();
    assert_eq!(messages[0], ("user", "Where is it? I have waited for it since Monday"));
    assert_eq!((messages[1].0, messages[2].0), ("assistant", "user"));
    assert!(messages[2].1.contains("at most six words"), "{messages:?}");
    client.say("And now?").await.reply().await;
    assert_eq!(Api::new(&server, "ann").get("/sessions").await.body["sessions"][0]["name"], "Late parcel");
    assert_eq!(provider.requests(), 3, "two messages and one name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_name_stays() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["Model's name"]).gated(&gate)).await;
    let server = Server::with(|config| naming(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    gate.release(2);
    exchange.reply().await;
    provider.request(1).await;
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    assert_eq!(ann.patch(&path, json!({"name": "Mine"})).await.status, StatusCode::OK);
    gate.open();
    named(&server, "unchanged", 1).await;
    assert_eq!(ann.get(&path).await.body["name"], "Mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_to_name_is_asked_once() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["hi"]).gated(&gate)).await;
    let server = Server::with(|config| naming(config, &provider)).await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("loading").await;
    provider.request(0).await;
    provider.script(Script::status(500, "application/json", "{}"));
    gate.open();
    exchange.reply().await;
    named(&server, "failed", 1).await;
    assert_eq!(Api::new(&server, "ann").get("/sessions").await.body["sessions"][0]["name"], "hello");
    assert_eq!(provider.requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_a_name() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["hi"]).gated(&gate)).await;
    let server = Server::with(|config| naming(config, &provider)).await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("loading").await;
    provider.request(0).await;
    provider.script(Script::silent());
    gate.open();
    exchange.reply().await;
    provider.request(1).await;
    server.drain();
    provider.hung_up(1).await;
    server.ended().await.expect("clean end");
    assert_eq!(provider.requests(), 2);
}
