//! Whoever is not the owner is refused alike for what exists and for what does not; nothing changes, nobody hears of
//! it.

use std::time::Duration;

use chatbox::auth::Role;
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    client::{Lines, http},
    id, openai, over_both,
    provider::{Gate, Provider, Script},
};

const MOMENT: Duration = Duration::from_millis(150);

over_both! {
    requests_of_another_user_are_refused_as_for_what_does_not_exist,
    staff_change_nothing_in_a_session_of_a_user,
    request_ids_of_another_user_mean_nothing,
    names_of_another_user_show_nothing_of_their_turns,
    a_watch_that_has_ended_proves_nothing,
}

/// What one knows of a conversation.
struct Named {
    session: Value,
    ended: Value,
    running: Value,
}

impl Named {
    fn unknown() -> Self {
        Self { session: json!(id()), ended: json!(id()), running: json!(id()) }
    }

    /// Every type of request that names something, with these names.
    fn requests(&self) -> Vec<Value> {
        let named = |kind: &str, fields: Value| {
            let mut frame = json!({"type": kind, "id": id(), "session_id": self.session});
            for (key, value) in fields.as_object().unwrap() {
                frame[key] = value.clone();
            }
            frame
        };
        let turn = |kind: &str, turn: &Value| json!({"type": kind, "id": id(), "turn_id": turn});
        vec![
            named("attach", json!({})),
            named("attach", json!({"after_seq": 0})),
            named("attach", json!({"last": 10})),
            named("attach", json!({"turn_id": self.running, "offset": 0})),
            named("attach", json!({"reopen": true})),
            named("detach", json!({})),
            named("user_message", json!({"content": "let me in"})),
            named("user_message", json!({"content": "let me in", "files": ["a"]})),
            named("model_select", json!({"model_id": "scripted"})),
            named("help_request", json!({})),
            named("help_cancel", json!({})),
            named("typing_indicator", json!({"metadata": {"state": "start"}})),
            named("feedback", json!({"seq": 2, "metadata": {"rating": "down"}})),
            named("voice_message", json!({"file_id": "a"})),
            named("file_upload", json!({"file_id": "a"})),
            named("admin_join", json!({})),
            named("admin_leave", json!({})),
            named("note", json!({"content": "a note"})),
            turn("stop", &self.running),
            turn("stop", &self.ended),
            turn("regenerate", &self.running),
            turn("regenerate", &self.ended),
        ]
    }
}

/// A conversation of ann's with an ended and, in another session, a running turn, and everyone who watches it.
struct Ann {
    client: Client,
    watches: Vec<Lines>,
    others: Vec<Client>,
    running: Lines,
    sessions: [Value; 2],
    named: [Named; 2],
}

impl Ann {
    async fn start(server: &Server, via: Via, gate: &Gate) -> Self {
        let (mut client, first, status) = Client::attached(server, via, "ann", json!({})).await;
        gate.release(3);
        let ended = client.say("hello").await.reply().await.1["turn_id"].clone();
        let mut second = client.exchange(json!({"type": "attach", "id": id(), "new": true})).await;
        let other = second.until("connection_status").await["session_id"].clone();
        let ask = json!({"type": "user_message", "id": id(), "session_id": other, "content": "go on"});
        let mut running = client.exchange(ask).await;
        gate.release(1);
        let turn = running.until("ai_response").await["turn_id"].clone();
        let sessions = [status["session_id"].clone(), other];
        // Each of her sessions beside each of her turns.
        let named = sessions.each_ref().map(|session| Named {
            session: session.clone(),
            ended: ended.clone(),
            running: turn.clone(),
        });
        let (mut watches, mut others) = (vec![first, second], Vec::new());
        for scope in [
            json!({"session_id": sessions[0]}),
            json!({"session_id": sessions[1], "turn_id": turn, "offset": 4}),
            json!({"scope": "user"}),
        ] {
            let (device, watch, _status) = Client::attached(server, via, "ann", scope).await;
            watches.push(watch);
            others.push(device);
        }
        for watch in &mut watches {
            while !watch.silent(MOMENT).await {}
        }
        Self { client, watches, others, running, sessions, named }
    }

    /// All that can be read of her sessions.
    async fn state(&self, server: &Server, via: Via) -> Vec<Value> {
        let mut state = vec![list(server, "ann").await];
        for session in &self.sessions {
            let ask = json!({"session_id": session, "after_seq": 0});
            let (_reader, mut log, mut status) = Client::attached(server, via, "ann", ask).await;
            status["connection_id"] = Value::Null;
            status["re"] = Value::Null;
            state.push(status);
            while let Some(frame) = log.soon(MOMENT).await {
                state.push(frame);
            }
        }
        state
    }

    async fn heard_nothing(&mut self) {
        for watch in &mut self.watches {
            assert!(watch.silent(MOMENT).await);
        }
    }
}

async fn list(server: &Server, user: &str) -> Value {
    let url = server.url.join("/chatbox/sessions?limit=100").unwrap();
    let answer = http().get(url).bearer_auth(server.token(user)).send().await.unwrap();
    let mut list: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    for session in list["sessions"].as_array_mut().unwrap() {
        session["duration"] = Value::Null; // goes on by itself
    }
    list
}

async fn scripted(gate: &Gate) -> (Provider, Server) {
    let provider = Provider::start(Script::answer(["one ", "two"]).gated(gate)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.active_per_user = 2;
        config.limits.streams = 8;
    })
    .await;
    (provider, server)
}

/// checklist 1, 2, 17
async fn requests_of_another_user_are_refused_as_for_what_does_not_exist(via: Via) {
    let gate = Gate::new();
    let (_provider, server) = scripted(&gate).await;
    let mut ann = Ann::start(&server, via, &gate).await;
    let before = ann.state(&server, via).await;
    let (mut eve, mut own, _status) = Client::attached(&server, via, "eve", json!({})).await;
    for named in &ann.named {
        for (hers, unknown) in named.requests().into_iter().zip(Named::unknown().requests()) {
            let mut told = Vec::new();
            for request in [&hers, &unknown] {
                let answer = eve.exchange(request.clone()).await.next().await.expect("an answer");
                assert_eq!((&answer["type"], &answer["re"]), (&json!("error"), &request["id"]), "{request}");
                told.push(answer["error"].clone());
            }
            assert_eq!(told[0], told[1], "{hers} tells that it exists");
        }
    }
    let token = json!({"type": "auth", "id": id(), "token": server.token("ann")});
    let refused = eve.exchange(token).await.next().await.unwrap();
    assert_eq!(refused["error"]["code"], "INSUFFICIENT_PERMISSIONS");
    assert!(own.silent(MOMENT).await, "each failure was told once, to its own exchange");
    ann.heard_nothing().await;
    assert_eq!(ann.state(&server, via).await, before);
    gate.open();
    let (text, last) = ann.running.reply_from("one ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("one two", &json!("complete")), "nobody stopped it");
    drop((ann.client, ann.others));
}

/// checklist 1: staff read every session; until they hold one they change nothing in it.
async fn staff_change_nothing_in_a_session_of_a_user(via: Via) {
    let gate = Gate::new();
    let (_provider, server) = scripted(&gate).await;
    let mut ann = Ann::start(&server, via, &gate).await;
    let before = ann.state(&server, via).await;
    let token = server.token_for("sue", Role::Staff, Duration::from_secs(60));
    let (mut sue, _own, _status) = Client::attached(&server, via, "sue", json!({"token": token})).await;
    let kinds = ["user_message", "model_select", "help_request", "help_cancel", "feedback", "regenerate", "note"];
    for named in &ann.named {
        for request in named.requests() {
            let changes = kinds.iter().any(|kind| request["type"] == *kind) || request["reopen"] == true;
            if changes {
                let answer = sue.exchange(request.clone()).await.next().await.expect("an answer");
                assert_eq!(answer["type"], "error", "{request} got {answer}");
            }
        }
    }
    ann.heard_nothing().await;
    assert_eq!(ann.state(&server, via).await, before);
}

/// checklist 1, 5: ids of requests are their author's alone.
async fn request_ids_of_another_user_mean_nothing(via: Via) {
    let server = Server::start().await;
    let (mut ann, _watch, hers) = Client::attached(&server, via, "ann", json!({})).await;
    let (mut eve, _watch, own) = Client::attached(&server, via, "eve", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "count to 2"});
    let first = ann.exchange(message.clone()).await.until("accepted").await;
    let second = eve.exchange(message).await.until("accepted").await;
    assert_eq!((&first["duplicate"], &second["duplicate"]), (&Value::Null, &Value::Null));
    assert_eq!((&first["session_id"], &second["session_id"]), (&hers["session_id"], &own["session_id"]));
    let new = json!({"type": "attach", "id": id(), "new": true, "session_id": hers["session_id"]});
    let first = ann.exchange(new.clone()).await.until("connection_status").await;
    let second = eve.exchange(new).await.until("connection_status").await;
    assert_ne!(first["session_id"], second["session_id"]);
    assert_ne!(second["session_id"], hers["session_id"], "an id that comes with `new` is not taken over");
    assert_eq!((&first["user_id"], &second["user_id"]), (&json!("ann"), &json!("eve")));
}

/// checklist 2: a turn that is named beside one's own session is unknown there.
async fn names_of_another_user_show_nothing_of_their_turns(via: Via) {
    let gate = Gate::new();
    let (_provider, server) = scripted(&gate).await;
    let ann = Ann::start(&server, via, &gate).await;
    for turn in [&ann.named[0].ended, &ann.named[0].running, &json!(id())] {
        let ask = json!({"turn_id": turn, "offset": 0});
        let (_eve, mut watch, status) = Client::attached(&server, via, "eve", ask).await;
        assert_eq!((&status["recovered"], &status["last_seq"]), (&json!(false), &json!(0)));
        assert!(watch.silent(MOMENT).await);
    }
    gate.open();
    drop(ann);
}

/// checklist 1: typing is passed on without a look into the store, so the watch that allows it must be a live one.
async fn a_watch_that_has_ended_proves_nothing(via: Via) {
    let server = Server::start().await;
    let (mut ann, mut list, _status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    let mut watch = ann.exchange(json!({"type": "attach", "id": id()})).await;
    let session = watch.until("connection_status").await["session_id"].clone();
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let typing = json!({"type": "typing_indicator", "session_id": session, "metadata": {"state": "start"}});
    list.send(typing.clone()).await;
    assert_eq!(seen.next().await.unwrap()["type"], "typing_indicator");
    match &mut watch {
        Lines::Stream { send, .. } => send.finish().unwrap(),
        Lines::Queue { .. } => {
            let detach = json!({"type": "detach", "id": id(), "session_id": session});
            ann.exchange(detach).await.until("accepted").await;
        }
    }
    if via == Via::WebTransport {
        assert_eq!(watch.next().await, None, "the watch has ended");
    }
    list.send(typing).await;
    assert_eq!(list.until("error").await["error"]["code"], "NOT_FOUND");
    assert!(seen.silent(MOMENT).await);
}
