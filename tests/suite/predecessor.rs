//! The predecessor's clients over their WebSocket, with their exact frames: no subprotocol, no `attach`, no `id`,
//! ids of sessions that they make up, the claims and numbers that they send along.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::harness::{
    Client, Server, Via,
    client::PATIENCE,
    id, openai,
    provider::{Gate, Provider, Request, Script},
};

const MOMENT: Duration = Duration::from_millis(150);

struct Old(WebSocketStream<TcpStream>);

impl Old {
    /// Connects as the predecessor's page did: the token in the query.
    async fn open(server: &Server, user: &str) -> Self {
        Self::with_query(server, &format!("token={}", server.token(user))).await.expect("socket")
    }

    async fn with_query(server: &Server, query: &str) -> Result<Self, Error> {
        let mut url = server.websocket_url();
        url.set_query(Some(query));
        let request = url.as_str().into_client_request().unwrap();
        let stream = TcpStream::connect(server.url.socket_addrs(|| None).unwrap().as_slice()).await.expect("connect");
        Ok(Self(tokio_tungstenite::client_async(request, stream).await?.0))
    }

    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.expect("socket open");
    }

    async fn read(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.0.next().await.expect("socket open").expect("frame") {
                return serde_json::from_str(&text).expect("a message is one JSON object");
            }
        }
    }

    async fn next(&mut self) -> Value {
        timeout(PATIENCE, self.read()).await.expect("a frame in time")
    }

    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// Reads pieces as the old page did: it adds up `content` until `metadata.done` is the text `true`.
    async fn answer(&mut self) -> (String, Value) {
        let mut text = String::new();
        loop {
            let piece = self.until("ai_response").await;
            assert_eq!(piece["metadata"]["streaming"], "true", "{piece}");
            text.push_str(piece["content"].as_str().unwrap());
            if piece["metadata"]["done"] == "true" {
                return (text, piece);
            }
        }
    }

    async fn silent(&mut self) -> bool {
        timeout(MOMENT, self.read()).await.is_err()
    }
}

/// What the old page sends for a line of text.
fn said(session: &str, content: &str) -> Value {
    json!({"type": "user_message", "session_id": session, "content": content, "sender": "user",
        "timestamp": "2026-02-23T10:00:00Z", "metadata": {"client": "web", "size": 12345}})
}

async fn server() -> Server {
    Server::with(|config| config.auth.allow_query_token = true).await
}

// checklist W27
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_message_under_a_made_up_id_is_answered_under_the_real_one() {
    let server = server().await;
    let mut old = Old::open(&server, "ann").await;
    let hello = old.next().await;
    assert_eq!(hello["type"], "connection_status");
    assert_eq!(hello["models"], json!([{"id": "demo", "name": "demo"}]), "{hello}");
    // checklist 5: the client proposes an id, the server issues one and uses it everywhere
    let made_up = id();
    old.send(said(&made_up, "count to 3")).await;
    let loading = old.until("loading").await;
    let real = loading["session_id"].as_str().unwrap().to_owned();
    assert_ne!(real, made_up);
    assert_eq!(hello["session_id"], real);
    let (text, last) = old.answer().await;
    assert!(text.contains('3'), "{text}");
    assert_eq!((&last["session_id"], &last["content"]), (&json!(real), &json!("")));
    old.send(said(&real, "count to 2")).await;
    assert_eq!(old.until("loading").await["session_id"], real);
    assert_eq!(old.answer().await.1["seq"], 4, "the same session");
    assert!(old.silent().await, "nothing is told twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_in_the_query_is_taken_only_where_it_is_allowed() {
    // checklist 7: refused with the switch off, which it is unless configured
    let strict = Server::start().await;
    let token = strict.token("ann");
    let mut old = Old::with_query(&strict, &format!("token={token}")).await.expect("the upgrade itself");
    old.send(said("x", "hello")).await;
    let error = old.next().await;
    assert_eq!((&error["error"]["code"], &error["error"]["recoverable"]), (&json!("UNAUTHORIZED"), &json!(false)));
    let server = server().await;
    let mut forged = Old::with_query(&server, "token=abc.def.ghi").await.expect("the upgrade itself");
    assert_eq!(forged.next().await["error"]["code"], "INVALID_TOKEN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_conversation_goes_on_where_its_author_opened_it() {
    let server = server().await;
    let mut old = Old::open(&server, "ann").await;
    let first = old.next().await["session_id"].as_str().unwrap().to_owned();
    old.send(said("one", "count to 2")).await;
    old.answer().await;
    let (_new, _watch, second) = Client::attached(&server, Via::WebSocket, "ann", json!({"new": true})).await;
    let second = second["session_id"].as_str().unwrap();
    // W11: an old conversation that is opened again is written in, not another one.
    old.send(said(&first, "count to 4")).await;
    assert_eq!(old.until("loading").await["session_id"], first);
    assert_eq!(old.answer().await.1["seq"], 4);
    old.send(said(second, "count to 5")).await;
    assert_eq!(old.until("connection_status").await["session_id"], second, "the socket is bound to the other one");
    assert_eq!(old.answer().await.1["seq"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_session_is_neither_written_in_nor_told_of() {
    // checklist 2, W17: naming somebody else's session binds nothing to it
    let server = server().await;
    let (_ann, mut seen, victim) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut eve = Old::open(&server, "eve").await;
    let own = eve.next().await["session_id"].clone();
    eve.send(said(victim["session_id"].as_str().unwrap(), "count to 2")).await;
    assert_eq!(eve.until("loading").await["session_id"], own);
    eve.answer().await;
    drop(eve);
    assert!(seen.silent(MOMENT).await, "its owner hears nothing of it, not even an error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_old_devices_see_each_other_and_closing_one_leaves_the_other() {
    // checklist 50, W15, W16
    let server = server().await;
    let mut phone = Old::open(&server, "ann").await;
    let mut desk = Old::open(&server, "ann").await;
    assert_eq!(phone.next().await["session_id"], desk.next().await["session_id"]);
    phone.send(said("x", "count to 3")).await;
    assert_eq!(desk.until("user_message").await["content"], "count to 3");
    assert_eq!(desk.answer().await.0, phone.answer().await.0);
    drop(desk);
    phone.send(said("x", "count to 2")).await;
    assert_eq!(phone.answer().await.1["state"], "complete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_and_models_are_answered_with_a_status() {
    let server = server().await;
    let mut old = Old::open(&server, "ann").await;
    let session = old.next().await["session_id"].as_str().unwrap().to_owned();
    old.send(json!({"type": "help_request", "session_id": session, "sender": "user"})).await;
    let status = old.until("connection_status").await;
    assert_eq!(status["session_id"], session);
    assert!(status["status"].as_str().unwrap().contains("help"), "{status}");
    old.send(json!({"type": "model_select", "session_id": id(), "model_id": "demo"})).await;
    assert_eq!(old.until("connection_status").await["model_id"], "demo");
    old.send(json!({"type": "model_select", "session_id": session, "model_id": "gpt-4"})).await;
    assert_eq!(old.until("error").await["error"]["code"], "INVALID_FORMAT");
    // W26: what a client claims about itself is ignored; W18: its error reaches it, without any id
    old.send(json!({"type": "file_upload", "session_id": session, "sender": "admin", "file_id": "f"})).await;
    assert_eq!(old.until("error").await["error"]["recoverable"], true);
    let mut shout = said(&session, "count to 2");
    shout["sender"] = json!("admin");
    old.send(shout).await;
    old.answer().await;
    let (_desk, mut seen, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({"after_seq": 0})).await;
    assert_eq!(seen.until("user_message").await["sender"], "user");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_an_old_client_are_answered_in_order() {
    // W20: two answers never run into each other; W19: the fourth frame is not dropped
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one ", "two"]).gated(&gate)).await;
    let server = Server::with(|config| {
        config.auth.allow_query_token = true;
        openai(config, &provider);
    })
    .await;
    let mut old = Old::open(&server, "ann").await;
    for count in 1..=5 {
        old.send(said("x", &format!("message {count}"))).await;
    }
    gate.open();
    let mut answered = Vec::new();
    for _ in 0..5 {
        let (text, last) = old.answer().await;
        assert_eq!(text, "one two");
        answered.push(last["reply_to"].as_u64().unwrap());
    }
    let mut in_order = answered.clone();
    in_order.sort_unstable();
    assert_eq!(answered, in_order);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_a_hook_refuses_is_told_and_taken_back() {
    let provider = Provider::start(Script::answer(["it is ", "rude"]).usage(60, 41)).await;
    let verdict = |request: &Request| !request.body["content"].as_str().unwrap().contains("rude");
    let hook = Provider::start_by(move |request| {
        Script::status(200, "application/json", &json!({"allowed": verdict(request)}).to_string())
    })
    .await;
    let server = Server::with(|config| {
        config.auth.allow_query_token = true;
        openai(config, &provider);
        let url = Some(hook.endpoint().parse().unwrap());
        (config.llm.moderation.before, config.llm.moderation.after) = (url.clone(), url);
        config.llm.moderation.timeout = Duration::from_secs(30);
        config.llm.tokens_per_user_day = Some(100);
    })
    .await;
    let mut old = Old::open(&server, "ann").await;
    let session = old.next().await["session_id"].as_str().unwrap().to_owned();
    old.send(said(&session, "a rude question")).await;
    assert_eq!(old.until("error").await["error"]["code"], "CONTENT_REFUSED");
    old.send(said(&session, "so?")).await;
    let (text, last) = old.answer().await;
    assert_eq!((text.as_str(), &last["state"], &last["length"]), ("it is rude", &json!("failed"), &json!(0)));
    old.send(said(&session, "and?")).await;
    let error = old.until("error").await;
    assert_eq!(error["error"]["code"], "QUOTA_EXCEEDED", "{error}");
}
