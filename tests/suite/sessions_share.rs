//! Links: what they show, for how long, and to whom.

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::Api,
    id, openai,
    provider::{Gate, Provider, Script},
};

/// A session of `ann` with one message and its reply; and its connection.
async fn talk(server: &Server) -> (Client, String) {
    let (mut client, _watch, status) = Client::attached(server, Via::WebSocket, "ann", json!({"new": true})).await;
    client.say("Where is <my> parcel?").await.reply().await;
    (client, status["session_id"].as_str().unwrap().to_owned())
}

async fn link(api: &Api, session: &str, body: Value) -> Value {
    let reply = api.post(&format!("/sessions/{session}/share"), body).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    reply.body
}

fn texts(shared: &Value) -> Vec<&str> {
    shared["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_link_shows_the_conversation_as_it_was_and_nothing_of_its_owner() {
    let server = Server::start().await;
    let (ann, nobody) = (Api::new(&server, "ann"), Api::with_token(&server, None));
    let (mut client, session) = talk(&server).await;
    let made = link(&ann, &session, json!({})).await;
    let token = made["share_token"].as_str().unwrap();
    assert_eq!(made["url"], format!("{}chatbox/chat.html#share={token}", server.url));
    assert_eq!(made.get("expires_at"), None);

    client.say("my address is secret").await.reply().await;
    ann.patch(&format!("/sessions/{session}"), json!({"name": "Renamed"})).await;
    let shared = nobody.get(&format!("/shared/{token}")).await;
    assert_eq!((shared.status, shared.header(header::CACHE_CONTROL)), (StatusCode::OK, "private, no-store"));
    assert_eq!(shared.body["name"], "Where is <my> parcel?", "its name at that time");
    assert_eq!(shared.body["shared_at"], made["created_at"]);
    assert_eq!((texts(&shared.body).len(), texts(&shared.body)[0]), (2, "Where is <my> parcel?"));
    let entries = shared.body["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[1]["type"], &entries[1]["seq"]), (2, &json!("ai_response"), &json!(2)));
    assert!(entries[1]["html"].as_str().unwrap().contains('<'));
    assert!(entries[0].get("id").is_none() && !shared.text.contains("ann"), "{}", shared.text);

    let listed = ann.get("/sessions").await.body["sessions"][0]["share_token"].clone();
    assert_eq!(listed, token, "its owner finds it again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_ran_when_it_was_shared_is_never_shown() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["unfinished"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("loading").await;
    let made = link(&ann, status["session_id"].as_str().unwrap(), json!({})).await;
    let path = format!("/shared/{}", made["share_token"].as_str().unwrap());
    assert_eq!(texts(&ann.get(&path).await.body), ["hello"]);
    gate.open();
    exchange.reply().await;
    let shared = ann.get(&path).await.body;
    assert_eq!((texts(&shared), shared["entries"].as_array().unwrap().len()), (vec!["hello"], 1));
}

#[tokio::test]
async fn a_regenerated_reply_is_not_part_of_what_was_shared() {
    let provider = Provider::start(Script::answer(["first"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, session) = talk(&server).await;
    let made = link(&ann, &session, json!({})).await;
    let page = ann.get(&format!("/sessions/{session}?after_seq=1")).await.body;
    provider.script(Script::answer(["second"]));
    let turn = page["entries"][0]["turn_id"].clone();
    client.exchange(json!({"type": "regenerate", "id": id(), "turn_id": turn})).await.reply().await;
    assert_eq!(
        texts(&ann.get(&format!("/sessions/{session}")).await.body),
        ["Where is <my> parcel?", "first", "second"]
    );
    let shared = ann.get(&format!("/shared/{}", made["share_token"].as_str().unwrap())).await.body;
    assert_eq!(texts(&shared), ["Where is <my> parcel?", "first"]);
}

#[tokio::test]
async fn links_are_revoked_together_and_their_number_is_limited() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let (_client, session) = talk(&server).await;
    let mut tokens = Vec::new();
    for _ in 0..21 {
        let made = link(&ann, &session, json!({"expires_in": 60})).await;
        assert!(made["expires_at"].as_str() > made["created_at"].as_str(), "{made}");
        tokens.push(made["share_token"].as_str().unwrap().to_owned());
    }
    let status = async |token: &String| ann.get(&format!("/shared/{token}")).await.status;
    assert_eq!(status(&tokens[0]).await, StatusCode::NOT_FOUND, "the oldest goes first");
    for token in &tokens[1..] {
        assert_eq!(status(token).await, StatusCode::OK);
    }
    for _ in 0..2 {
        let revoked = ann.send(Method::DELETE, &format!("/sessions/{session}/share"), None, &[]).await;
        assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    }
    for token in &tokens {
        assert_eq!(status(token).await, StatusCode::NOT_FOUND);
    }
    assert_eq!(ann.get("/sessions").await.body["sessions"][0].get("share_token"), None);
}

#[tokio::test]
async fn a_forged_token_is_refused_before_anything_is_looked_up() {
    let server = Server::start().await;
    let nobody = Api::with_token(&server, None);
    let (_client, session) = talk(&server).await;
    let made = link(&Api::new(&server, "ann"), &session, json!({})).await;
    let token = made["share_token"].as_str().unwrap();
    let reads = || server.metrics.store_duration_seconds.with_label_values(&["shared"]).get_sample_count();
    assert_eq!(nobody.get(&format!("/shared/{token}")).await.status, StatusCode::OK);
    let before = reads();
    let changed = format!("{}{}", &token[..42], if token.ends_with('A') { "E" } else { "A" });
    for forged in [changed.as_str(), &token[..22], "x", "%ff", &"A".repeat(43), &session] {
        let refused = nobody.get(&format!("/shared/{forged}")).await;
        refused.problem(
            StatusCode::NOT_FOUND,
            "NOT_FOUND",
            "there is no such link, or it was revoked, or it has ended",
        );
    }
    assert_eq!((before, reads()), (1, 1), "look-ups of shares");
}

#[tokio::test]
async fn a_link_outlives_a_restart_and_not_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::run(Server::config(dir.path())).await;
    let (_client, session) = talk(&server).await;
    let made = link(&Api::new(&server, "ann"), &session, json!({})).await;
    let path = format!("/shared/{}", made["share_token"].as_str().unwrap());
    server.drain();
    server.ended().await.expect("clean end");
    let server = Server::run(Server::config(dir.path())).await;
    assert_eq!(Api::with_token(&server, None).get(&path).await.status, StatusCode::OK);
    server.drain();
    server.ended().await.expect("clean end");
    std::fs::remove_file(dir.path().join("data/cluster_secret")).unwrap();
    let server = Server::run(Server::config(dir.path())).await;
    assert_eq!(Api::with_token(&server, None).get(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn public_reads_of_links_are_limited_by_address() {
    let server = Server::with(|config| config.limits.public_per_minute = 1).await;
    let (_client, session) = talk(&server).await;
    let made = link(&Api::new(&server, "ann"), &session, json!({})).await;
    let path = format!("/shared/{}", made["share_token"].as_str().unwrap());
    let nobody = Api::with_token(&server, None);
    assert_eq!(nobody.get(&path).await.status, StatusCode::OK);
    nobody.get(&path).await.problem(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", "");
}
