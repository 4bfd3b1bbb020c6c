//! Texts that a hook of the operator's refuses: messages before they are stored, replies when they are whole.

use std::time::Duration;

use chatbox::{
    chat::{ErrorCode, TurnState},
    client::{self as native, Error, Event, Open, Options, Tokens, Transport},
    config::Config,
    llm::config::Verdict,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{
    Client, Server, Via,
    api::Api,
    client::{Lines, PATIENCE, sha256},
    id, openai, over_both,
    provider::{Gate, Provider, Request, Script},
};

over_both! {
    texts_that_are_allowed_go_their_way,
    message_that_is_refused_is_not_stored,
    message_that_was_allowed_once_stays_so,
    reply_that_is_refused_is_taken_back_everywhere,
    reply_that_is_refused_is_told_to_who_was_away,
    hook_that_cannot_be_asked_leaves_it_to_the_configuration,
    stop_spares_no_reply_the_question,
    native_client_takes_a_refused_reply_back,
}

fn verdict(allowed: bool) -> Script {
    Script::status(200, "application/json", &json!({ "allowed": allowed }).to_string())
}

/// Refuses what holds the word.
async fn hook(word: &'static str) -> Provider {
    Provider::start_by(move |request: &Request| verdict(!request.body["content"].as_str().unwrap().contains(word)))
        .await
}

fn moderated(config: &mut Config, provider: &Provider, before: Option<&Provider>, after: Option<&Provider>) {
    openai(config, provider);
    let url = |hook: &Provider| hook.endpoint().parse().expect("an endpoint");
    let moderation = &mut config.llm.moderation;
    (moderation.before, moderation.after) = (before.map(url), after.map(url));
    moderation.timeout = Duration::from_secs(30);
}

fn verdicts(server: &Server, kind: &str) -> [u64; 3] {
    ["allowed", "refused", "failed"]
        .map(|outcome| server.metrics.moderations_total.with_label_values(&[kind, outcome]).get())
}

async fn log(server: &Server, user: &str, status: &Value) -> Value {
    let path = format!("/sessions/{}?after_seq=0", status["session_id"].as_str().unwrap());
    Api::new(server, user).get(&path).await.body["entries"].clone()
}

/// The text that was shown of a reply, the error that came before its last frame, and that frame.
async fn shown(lines: &mut Lines) -> (String, Option<Value>, Value) {
    let (mut text, mut error) = (String::new(), None);
    loop {
        let frame = lines.next().await.expect("the reply goes on");
        match frame["type"].as_str().unwrap() {
            "error" => error = Some(frame),
            "ai_response" if frame["metadata"]["done"] == "true" => return (text, error, frame),
            "ai_response" => text.push_str(frame["content"].as_str().unwrap()),
            _ => {}
        }
    }
}

async fn texts_that_are_allowed_go_their_way(via: Via) {
    let (provider, hook) = (Provider::start(Script::answer(["it ", "is"])).await, hook("never").await);
    let server = Server::with(|config| moderated(config, &provider, Some(&hook), Some(&hook))).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("so?").await.reply().await;
    assert_eq!((text.as_str(), &last["state"]), ("it is", &json!("complete")));
    for (index, kind, content) in [(0, "message", "so?"), (1, "reply", "it is")] {
        let asked = json!({"kind": kind, "user_id": "ann", "session_id": status["session_id"], "content": content});
        assert_eq!(hook.request(index).await.body, asked);
    }
    assert_eq!((verdicts(&server, "message"), verdicts(&server, "reply")), ([1, 0, 0], [1, 0, 0]));
}

async fn message_that_is_refused_is_not_stored(via: Via) {
    let (provider, hook) = (Provider::start(Script::answer(["yes"])).await, hook("rude").await);
    let server = Server::with(|config| moderated(config, &provider, Some(&hook), None)).await;
    let (mut client, mut watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "something rude"});
    let error = client.exchange(message.clone()).await.next().await.unwrap();
    assert_eq!((&error["type"], &error["re"]), (&json!("error"), &message["id"]), "{error}");
    assert_eq!(error["error"]["code"], "CONTENT_REFUSED");
    assert_eq!(error["error"]["message"], "this content is not allowed here");
    assert_eq!((log(&server, "ann", &status).await, provider.requests()), (json!([]), 0));
    assert_eq!(client.say("something kind").await.reply().await.0, "yes");
    assert_eq!(watch.until("session_update").await["name"], "something kind", "what was refused names nothing");
    let seen = log(&server, "ann", &status).await;
    assert_eq!((seen.as_array().unwrap().len(), &seen[0]["content"]), (2, &json!("something kind")));
    assert_eq!((hook.requests(), verdicts(&server, "message")), (2, [1, 1, 0]), "nobody was asked about the reply");
}

async fn message_that_was_allowed_once_stays_so(via: Via) {
    let (provider, hook) = (Provider::start(Script::answer(["yes"])).await, Provider::start(verdict(true)).await);
    let server = Server::with(|config| moderated(config, &provider, Some(&hook), None)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "so?"});
    let turn = client.exchange(message.clone()).await.reply().await.1["turn_id"].clone();
    hook.script(verdict(false));
    let repeated = client.exchange(message).await.next().await.unwrap();
    assert_eq!((&repeated["duplicate"], &repeated["turn_id"]), (&json!(true), &turn), "{repeated}");
    assert_eq!(client.say("so?").await.next().await.unwrap()["error"]["code"], "CONTENT_REFUSED");
}

async fn reply_that_is_refused_is_taken_back_everywhere(via: Via) {
    let (provider, hook) = (Provider::start(Script::answer(["it is ", "rude"])).await, hook("rude").await);
    let server = Server::with(|config| moderated(config, &provider, None, Some(&hook))).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_device, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, error, last) = shown(&mut client.say("so?").await).await;
    let error = error.expect("the asker is told why");
    assert_eq!((text.as_str(), &error["error"]["code"]), ("it is rude", &json!("CONTENT_REFUSED")));
    assert_eq!((&error["turn_id"], &last["state"]), (&last["turn_id"], &json!("failed")));
    assert_eq!((&last["length"], &last["sha256"]), (&json!(0), &json!(sha256(""))), "{last}");
    let (_text, error, elsewhere) = shown(&mut watch).await;
    assert_eq!((error, &elsewhere["length"], &elsewhere["turn_id"]), (None, &json!(0), &last["turn_id"]));
    let entry = &log(&server, "ann", &status).await[1];
    assert_eq!((&entry["state"], &entry["content"]), (&json!("failed"), &json!("")), "{entry}");
    provider.script(Script::answer(["kind"]));
    assert_eq!(client.say("and?").await.reply().await.0, "kind");
    assert_eq!(provider.request(1).await.messages(), [("user", "so?"), ("user", "and?")], "no model hears of it");
    assert_eq!(verdicts(&server, "reply"), [1, 1, 0]);
}

async fn reply_that_is_refused_is_told_to_who_was_away(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["it is ", "rude"]).gated(&gate)).await;
    let hook = hook("rude").await;
    let server = Server::with(|config| moderated(config, &provider, None, Some(&hook))).await;
    let (_device, mut device, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("so?").await;
    gate.release(1);
    let piece = exchange.until("ai_response").await;
    client.vanish();
    gate.open();
    assert_eq!(shown(&mut device).await.2["length"], 0);
    let session = &status["session_id"];
    let held = json!({"session_id": session, "after_seq": 1, "turn_id": piece["turn_id"], "offset": 6});
    let (_again, mut again, _status) = Client::attached(&server, via, "ann", held).await;
    let last = again.until("ai_response").await;
    assert_eq!((&last["turn_id"], &last["length"], &last["state"]), (&piece["turn_id"], &json!(0), &json!("failed")));
    assert_eq!(last["metadata"]["done"], "true", "{last}");
}

async fn hook_that_cannot_be_asked_leaves_it_to_the_configuration(via: Via) {
    let large = format!("{{\"allowed\":true,\"why\":\"{}\"}}", "x".repeat(1 << 20));
    let answers = [
        ("silent", Script::silent()),
        ("wrong", Script::status(200, "application/json", "{\"allowed\":\"yes\"}")),
        ("no JSON", Script::status(200, "text/html", "<html>")),
        ("broken", Script::status(500, "application/json", "{\"allowed\":true}")),
        ("giant", Script::status(200, "application/json", &large)),
    ];
    for on_failure in [Verdict::Allow, Verdict::Refuse] {
        let (provider, hook) = (Provider::start(Script::answer(["yes"])).await, Provider::start(verdict(true)).await);
        let server = Server::with(|config| {
            moderated(config, &provider, Some(&hook), Some(&hook));
            (config.llm.moderation.on_failure, config.llm.moderation.timeout) =
                (on_failure, Duration::from_millis(400));
        })
        .await;
        let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
        for (case, answer) in &answers {
            hook.script(answer.clone());
            let mut exchange = client.say(case).await;
            if on_failure == Verdict::Allow {
                assert_eq!(exchange.reply().await.1["state"], "complete", "{case}");
            } else {
                assert_eq!(exchange.next().await.unwrap()["error"]["code"], "CONTENT_REFUSED", "{case}");
            }
        }
        let stored = log(&server, "ann", &status).await.as_array().unwrap().len();
        let both = if on_failure == Verdict::Allow { (10, [0, 0, 5], [0, 0, 5]) } else { (0, [0, 0, 5], [0, 0, 0]) };
        assert_eq!((stored, verdicts(&server, "message"), verdicts(&server, "reply")), both);
    }
}

async fn stop_spares_no_reply_the_question(via: Via) {
    let (provider, hook) =
        (Provider::start(Script::answer(["it is rude"])).await, Provider::start(verdict(true)).await);
    let gate = Gate::new();
    let server = Server::with(|config| moderated(config, &provider, None, Some(&hook))).await;
    hook.script(Script::events([b"{\"allowed\"".to_vec(), b":false}".to_vec()]).gated(&gate));
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("so?").await;
    let turn = exchange.until("loading").await["turn_id"].clone();
    hook.request(0).await;
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    assert_eq!(watch.until("accepted").await["turn_id"], turn);
    gate.open();
    let last = shown(&mut exchange).await.2;
    assert_eq!((&last["state"], &last["length"]), (&json!("failed"), &json!(0)), "the model had said everything");
}

async fn native_client_takes_a_refused_reply_back(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["it is ", "rude"]).gated(&gate)).await;
    let hook = hook("rude").await;
    let server = Server::with(|config| moderated(config, &provider, Some(&hook), Some(&hook))).await;
    let transport = Some(if via == Via::WebSocket { Transport::WebSocket } else { Transport::WebTransport });
    let base = server.url.join("/chatbox").unwrap();
    let options = Options { transport, ..Options::new(base, Tokens::fixed(server.token("ann"))) };
    let client = native::Client::new(options);
    let mut session = timeout(PATIENCE, client.open(Open::default())).await.unwrap().unwrap();
    let refused = |err: &Error| matches!(err, Error::Answered(body) if body.code == ErrorCode::ContentRefused);
    let err = session.send("a rude question").unwrap().stored().await.unwrap_err();
    assert!(refused(&err), "{err}");
    let (mut message, mut slow) = (session.send("so?").unwrap(), session.send("and?").unwrap());
    gate.release(1);
    assert_eq!(message.piece().await.unwrap().as_deref(), Some("it is "));
    gate.open();
    while message.piece().await.unwrap().is_some() {}
    let reply = message.reply().await.unwrap().expect("a model answers");
    assert_eq!((reply.text.as_str(), reply.state, reply.verified), ("", TurnState::Failed, true));
    assert_eq!(reply.error.as_ref().unwrap().code, ErrorCode::ContentRefused);
    let mut replies = 0;
    while replies < 2 {
        if let Event::Reply(reply) = timeout(PATIENCE, session.next()).await.unwrap().unwrap() {
            assert_eq!((reply.text.as_str(), reply.state), ("", TurnState::Failed));
            replies += 1;
        }
    }
    assert_eq!(slow.piece().await.unwrap(), None, "what was taken back is not given to a slow reader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_socket_keep_their_order_before_a_slow_hook() {
    let provider = Provider::start(Script::answer(["yes"])).await;
    let hook = Provider::start_by(|request: &Request| {
        let slow = request.body["content"] == "first";
        let halves = Script::events([b"{\"allowed\"".to_vec(), b":true}".to_vec()]);
        halves.paced(Duration::from_millis(if slow { 100 } else { 0 }))
    });
    let hook = hook.await;
    let server = Server::with(|config| moderated(config, &provider, Some(&hook), None)).await;
    let (mut client, mut watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let (_first, mut second) = (client.say("first").await, client.say("second").await);
    watch.send(json!({"type": "ping", "id": id()})).await;
    assert_eq!(watch.until("pong").await["type"], "pong", "reading waits for no hook");
    second.reply().await;
    let log = log(&server, "ann", &status).await;
    let said: Vec<_> = log.as_array().unwrap().iter().filter(|entry| entry["sender"] == "user").collect();
    assert_eq!(said.iter().map(|entry| &entry["content"]).collect::<Vec<_>>(), ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hook_that_nobody_listens_for_leaves_it_to_the_configuration() {
    let provider = Provider::start(Script::answer(["yes"])).await;
    let free = crate::harness::ports::reserve();
    for (on_failure, state) in [(Verdict::Allow, "complete"), (Verdict::Refuse, "failed")] {
        let server = Server::with(|config| {
            moderated(config, &provider, None, None);
            config.llm.moderation.after = Some(format!("http://{free}/").parse().unwrap());
            config.llm.moderation.on_failure = on_failure;
        })
        .await;
        let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
        assert_eq!(shown(&mut client.say("so?").await).await.2["state"], state);
        assert_eq!((verdicts(&server, "message"), verdicts(&server, "reply")), ([0, 0, 0], [0, 0, 1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_of_a_drain_waits_for_no_hook() {
    let (provider, hook) = (Provider::start(Script::answer(["yes"])).await, Provider::start(Script::silent()).await);
    let dir = tempfile::tempdir().unwrap();
    let mut config = Server::config(dir.path());
    moderated(&mut config, &provider, None, Some(&hook));
    let server = Server::run(config.clone()).await;
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    client.say("so?").await.until("loading").await;
    hook.request(0).await;
    server.drain();
    server.stop();
    server.ended().await.expect("clean end");
    config.llm.moderation.after = None;
    let server = Server::run(config).await;
    let entry = &log(&server, "ann", &status).await[1];
    assert_eq!((&entry["state"], &entry["content"]), (&json!("complete"), &json!("yes")), "as `on_failure` says");
    assert_eq!(Api::new(&server, "ann").get("/sessions").await.status, StatusCode::OK);
}
