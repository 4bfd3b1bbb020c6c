//! The predecessor's HTTP clients: the paths that they know, and every field that they read, by its type.

use reqwest::{Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::{Client, Server, Via, api::Api, id};

/// An object of the predecessor: it fails on a type that it does not expect, and passes over what it does not know.
#[derive(Deserialize)]
struct OldMeta {
    id: String,
    user_id: String,
    name: String,
    last_activity: String,
    message_count: i64,
    admin_assisted: bool,
    start_time: String,
    end_time: Option<String>,
    is_active: bool,
    duration: i64,
    total_tokens: i64,
    max_response_time: i64,
    avg_response_time: i64,
    assisting_admin_name: Option<String>,
    share_token: Option<String>,
}

#[derive(Deserialize)]
struct OldList {
    sessions: Vec<OldMeta>,
    user_id: String,
    count: i64,
    limit: i64,
    truncated: bool,
}

#[derive(Deserialize)]
struct OldMessage {
    content: String,
    timestamp: String,
    sender: String,
    file_id: Option<String>,
    file_url: Option<String>,
    metadata: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct OldSession {
    session_id: String,
    name: String,
    messages: Vec<OldMessage>,
}

fn read<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|err| panic!("an old client does not read it: {err}: {text}"))
}

async fn talk(server: &Server, content: &str) -> String {
    let (mut client, _watch, status) = Client::attached(server, Via::WebSocket, "ann", json!({"new": true})).await;
    let metadata = json!({"page": 7, "ok": true, "from": "shop"});
    let frame = json!({"type": "user_message", "id": id(), "content": content, "metadata": metadata});
    client.exchange(frame).await.reply().await;
    status["session_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn its_list_is_newest_start_first() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let first = talk(&server, "first").await;
    let second = talk(&server, "second").await;
    let listed = ann.get("/sessions").await;
    assert_eq!((listed.status, listed.header(header::CONTENT_TYPE)), (StatusCode::OK, "application/json"));
    let list: OldList = read(&listed.text);
    assert_eq!((list.user_id.as_str(), list.count, list.limit, list.truncated), ("ann", 2, 100, false));
    let [newest, oldest] = &list.sessions[..] else { panic!("two sessions: {}", listed.text) };
    assert_eq!((&newest.id, &oldest.id), (&second, &first));
    assert_eq!((newest.name.as_str(), newest.user_id.as_str(), newest.message_count), ("second", "ann", 2));
    assert!(newest.is_active && newest.end_time.is_none() && !newest.admin_assisted);
    assert!(!oldest.is_active && oldest.end_time.is_some(), "the second one took its place");
    assert!(newest.start_time > oldest.start_time && newest.last_activity >= newest.start_time);
    assert!(newest.duration >= 0 && newest.total_tokens >= 0);
    assert!(newest.max_response_time >= newest.avg_response_time);
    assert!(newest.assisting_admin_name.is_none() && newest.share_token.is_none());
}

#[tokio::test]
async fn its_session_has_the_whole_history() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let session = talk(&server, "Is <this> & that kept?").await;
    let answer = ann.get(&format!("/sessions/{session}")).await;
    let old: OldSession = read(&answer.text);
    assert_eq!((old.session_id.as_str(), old.name.as_str()), (session.as_str(), "Is <this> & that kept?"));
    assert_eq!(answer.body["model_id"], "demo");
    let [message, reply] = &old.messages[..] else { panic!("a message and its reply: {}", answer.text) };
    assert_eq!((message.content.as_str(), message.sender.as_str()), ("Is <this> & that kept?", "user"));
    assert_eq!((reply.sender.as_str(), reply.content.is_empty()), ("ai", false));
    assert!(message.timestamp.ends_with('Z') && message.timestamp <= reply.timestamp);
    let metadata = message.metadata.as_ref().unwrap();
    assert_eq!([&metadata["page"], &metadata["ok"], &metadata["from"]], ["7", "true", "shop"], "a map of texts");
    assert!(message.file_id.is_none() && message.file_url.is_none());
}

#[tokio::test]
async fn its_end_and_its_share_take_no_body() {
    let server = Server::start().await;
    let (ann, nobody) = (Api::new(&server, "ann"), Api::with_token(&server, None));
    let session = talk(&server, "hello").await;
    let shared = ann.send(Method::POST, &format!("/sessions/{session}/share"), None, &[]).await;
    assert_eq!(shared.status, StatusCode::OK);
    let token = shared.body["share_token"].as_str().unwrap();
    let old: OldSession = read(&nobody.get(&format!("/shared/{token}")).await.text);
    assert_eq!((old.session_id.as_str(), old.name.as_str(), old.messages.len()), (session.as_str(), "hello", 2));
    let list: OldList = read(&ann.get("/sessions").await.text);
    assert_eq!(list.sessions[0].share_token.as_deref(), Some(token));

    let end = format!("/sessions/{session}/end");
    let ended = ann.send(Method::POST, &end, None, &[]).await;
    assert_eq!((ended.status, ended.body), (StatusCode::OK, json!({"status": "ended"})));
    let first: OldList = read(&ann.get("/sessions").await.text);
    assert_eq!(ann.send(Method::POST, &end, None, &[]).await.status, StatusCode::OK);
    let second: OldList = read(&ann.get("/sessions").await.text);
    assert_eq!(first.sessions[0].end_time, second.sessions[0].end_time, "a second end does not move the first");
}

#[tokio::test]
async fn its_errors_have_a_text_and_a_code() {
    let server = Server::start().await;
    let (ann, bob, nobody) = (Api::new(&server, "ann"), Api::new(&server, "bob"), Api::with_token(&server, None));
    let session = talk(&server, "hello").await;
    let theirs = format!("/sessions/{session}");
    for (api, path, status) in [
        (&nobody, "/sessions", StatusCode::UNAUTHORIZED),
        (&bob, theirs.as_str(), StatusCode::NOT_FOUND),
        (&ann, "/sessions/unknown", StatusCode::NOT_FOUND),
        (&nobody, "/shared/unknown", StatusCode::NOT_FOUND),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body["error"].as_str().is_some_and(|text| !text.is_empty()), "{}", answer.text);
        assert!(answer.body["code"].is_string(), "{}", answer.text);
    }
    for rest in ["end", "share"] {
        let answer = bob.send(Method::POST, &format!("{theirs}/{rest}"), None, &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{rest}");
    }
}

#[tokio::test]
async fn its_probes_find_what_they_read() {
    let server = Server::start().await;
    let nobody = Api::with_token(&server, None);
    let health = nobody.get("/healthz").await;
    assert_eq!(health.status, StatusCode::OK);
    assert!(health.body["status"].is_string() && health.body["timestamp"].is_string(), "{}", health.text);
    let ready = nobody.get("/readyz").await;
    assert_eq!(ready.status, StatusCode::OK);
    let checks: &Value = &ready.body["checks"];
    assert_eq!((&checks["mongodb"]["status"], &checks["llm"]["status"]), (&json!("ok"), &json!("ok")));
    assert_eq!(checks["llm"]["providers_count"], 1);
    assert_eq!(checks["mongodb"], checks["store"]);
}
