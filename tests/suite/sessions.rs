//! Conversations over HTTP: lists, search, pages of a log, names, models, their end.

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::{Api, Reply},
    client::Lines,
    id, openai,
    provider::{Gate, Provider, Script},
};

/// Says something and reads the whole reply.
async fn talk(client: &mut Client, content: &str) -> Value {
    let mut exchange = client.say(content).await;
    let accepted = exchange.until("accepted").await;
    exchange.reply().await;
    accepted
}

/// The next update that says something of `field`.
async fn update(watch: &mut Lines, field: &str) -> Value {
    loop {
        let update = watch.until("session_update").await;
        if update.get(field).is_some() {
            return update;
        }
    }
}

/// A session of `user` with one message and its reply.
async fn session(server: &Server, user: &str, content: &str) -> String {
    let (mut client, _watch, status) = Client::attached(server, Via::WebSocket, user, json!({"new": true})).await;
    talk(&mut client, content).await;
    status["session_id"].as_str().unwrap().to_owned()
}

/// checklist 70
#[tokio::test]
async fn a_session_is_made_named_listed_and_read() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let made = ann.post("/sessions", json!({"name": " Parcel 7 ", "model_id": "demo"})).await;
    assert_eq!(made.status, StatusCode::CREATED);
    assert_eq!((&made.body["name"], &made.body["state"]), (&json!("Parcel 7"), &json!("active")));
    assert_eq!(ann.get("/sessions").await.body["count"], 0, "a session without an entry is never listed");

    let session_id = made.body["id"].as_str().unwrap();
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    assert_eq!(status["session_id"], session_id, "it is the active one");
    talk(&mut client, "Where is my parcel?").await;
    let list = ann.get("/sessions?limit=10").await;
    assert_eq!((&list.body["total"], &list.body["count"], &list.body["limit"]), (&json!(1), &json!(1), &json!(10)));
    let meta = &list.body["sessions"][0];
    assert_eq!((&meta["id"], &meta["name"]), (&json!(session_id), &json!("Parcel 7")), "its owner's name stays");
    assert_eq!((&meta["message_count"], &meta["model_id"]), (&json!(2), &json!("demo")));

    let named = session(&server, "ann", "\n\n  What does it cost to send one to 日本?\nThanks").await;
    let meta = ann.get("/sessions?limit=1").await.body["sessions"][0].clone();
    assert_eq!((&meta["id"], &meta["name"]), (&json!(named), &json!("What does it cost to send one to 日本?")));
}

#[tokio::test]
async fn the_same_key_makes_one_session_and_one_link() {
    let server = Server::start().await;
    let (ann, bob) = (Api::new(&server, "ann"), Api::new(&server, "bob"));
    let key = [("idempotency-key", "order 66")];
    let first = ann.send(Method::POST, "/sessions", Some(json!({"name": "First"})), &key).await;
    let again = ann.send(Method::POST, "/sessions", Some(json!({"name": "Second"})), &key).await;
    assert_eq!((first.status, again.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_eq!((&again.body["id"], &again.body["name"]), (&first.body["id"], &json!("First")));
    let other = bob.send(Method::POST, "/sessions", None, &key).await;
    assert_ne!(other.body["id"], first.body["id"], "a key is one user's");

    let session_id = session(&server, "ann", "hello").await;
    let share = format!("/sessions/{session_id}/share");
    let first = ann.send(Method::POST, &share, None, &key).await;
    let again = ann.send(Method::POST, &share, None, &key).await;
    assert_eq!(first.body["share_token"], again.body["share_token"]);
    let another = ann.post(&share, json!({})).await;
    assert_ne!(first.body["share_token"], another.body["share_token"]);
    for key in ["", "ü", &"x".repeat(256)] {
        let refused = ann.send(Method::POST, "/sessions", None, &[("idempotency-key", key)]).await;
        refused.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", "`Idempotency-Key`");
    }
}

#[tokio::test]
async fn lists_are_paged_by_cursor_without_gap_or_repeat() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let mut made = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        made.push(json!(session(&server, "ann", name).await));
    }
    session(&server, "bob", "somebody else's").await;
    made.reverse();
    let mut seen = Vec::new();
    let mut path = "/sessions?limit=2".to_owned();
    loop {
        let page = ann.get(&path).await;
        assert_eq!(page.body["total"], 5);
        seen.extend(page.body["sessions"].as_array().unwrap().iter().map(|meta| meta["id"].clone()));
        let Some(next) = page.body["next_cursor"].as_str() else { break };
        assert_eq!(page.body["count"], 2);
        path = format!("/sessions?limit=2&cursor={next}");
    }
    assert_eq!(seen, made, "latest activity first");
    let old = ann.get("/sessions").await.body;
    assert_eq!((&old["limit"], &old["truncated"], &old["user_id"]), (&json!(100), &json!(false), &json!("ann")));
    assert_eq!(old["sessions"].as_array().unwrap().len(), 5);
    assert_eq!((old.get("total"), old.get("next_cursor")), (None, None), "exactly the answer that old clients know");
}

#[tokio::test]
async fn a_search_finds_words_in_names_and_texts_of_the_caller_alone() {
    let server = Server::start().await;
    let (ann, bob) = (Api::new(&server, "ann"), Api::new(&server, "bob"));
    let parcel = session(&server, "ann", "Where is my PARCEL <b>7</b>?").await;
    session(&server, "ann", "something else").await;
    let found = ann.get("/sessions?q=parcel%20%3Cb%3E").await.body;
    assert_eq!((&found["count"], &found["sessions"][0]["id"]), (&json!(1), &json!(parcel)));
    let snippet = found["sessions"][0]["match"].as_str().unwrap();
    assert!(snippet.contains("PARCEL <b>7"), "checklist 27: text comes as it was typed, got {snippet}");
    assert_eq!(found.get("total"), None);
    assert_eq!(bob.get("/sessions?q=parcel").await.body["count"], 0);
    assert_eq!(ann.get("/sessions?q=%20").await.body["count"], 2, "a blank search lists everything");
}

#[tokio::test]
async fn a_log_is_read_in_pages_from_both_sides() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let texts = ["<a&b> \"c\"\u{0}".trim_end_matches('\0'), "second", "third"];
    for text in texts {
        talk(&mut client, text).await;
    }
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    let whole = ann.get(&format!("{path}?after_seq=0")).await.body;
    assert_eq!((&whole["last_seq"], &whole["more"], &whole["state"]), (&json!(6), &json!(false), &json!("active")));
    assert_eq!(seqs(&whole), [1, 2, 3, 4, 5, 6]);
    assert_eq!(whole["entries"][0]["content"], "<a&b> \"c\"", "checklist 27: stored as typed");
    let reply = &whole["entries"][1];
    assert_eq!((&reply["type"], &reply["metadata"]["streaming"]), (&json!("ai_response"), &json!("false")));
    assert!(reply["html"].as_str().unwrap().starts_with('<'));
    for (query, expected, more) in [
        ("after_seq=2&limit=2", &[3, 4][..], true),
        ("after_seq=4&limit=2", &[5, 6], false),
        ("before_seq=5&limit=2", &[3, 4], true),
        ("before_seq=3", &[1, 2], false),
        ("before_seq=0", &[], false),
        ("limit=1", &[1], true),
        ("after_seq=6&unknown=x", &[], false),
    ] {
        let page = ann.get(&format!("{path}?{query}")).await.body;
        assert_eq!((seqs(&page), &page["more"]), (expected.to_vec(), &json!(more)), "{query}");
    }
}

fn seqs(page: &Value) -> Vec<u64> {
    page["entries"].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_leaves_the_running_reply_out_and_counts_its_place() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["some", " text"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("loading").await;
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    let page = ann.get(&format!("{path}?after_seq=0")).await.body;
    assert_eq!((seqs(&page), &page["last_seq"]), (vec![1], &json!(2)));
    assert_eq!(ann.get(&path).await.body["messages"].as_array().unwrap().len(), 1);
    gate.open();
    exchange.reply().await;
    assert_eq!(seqs(&ann.get(&format!("{path}?after_seq=0")).await.body), [1, 2]);
}

/// checklist 24
#[tokio::test]
async fn a_name_and_a_model_change_together_or_not_at_all_and_every_device_hears_of_it() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let (_client, mut watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let (_list, mut list, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({"scope": "user"})).await;
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    let changed = ann.patch(&path, json!({"name": "Ünïcode 👩‍👩‍👧", "model_id": "demo"})).await;
    assert_eq!((changed.status, &changed.body["name"]), (StatusCode::OK, &json!("Ünïcode 👩‍👩‍👧")));
    let disguised = json!({"name": "Ünïcode\u{200b} \u{202e}👩‍👩‍👧\u{2069}"});
    let disguised = ann.patch(&path, disguised).await;
    assert_eq!((disguised.status, &disguised.body["name"]), (StatusCode::OK, &json!("Ünïcode 👩‍👩‍👧")));
    for watch in [&mut watch, &mut list] {
        assert_eq!(update(watch, "model_id").await["model_id"], "demo");
        assert_eq!(update(watch, "name").await["name"], "Ünïcode 👩‍👩‍👧");
    }
    let refused = ann.patch(&path, json!({"name": "Other", "model_id": "gpt-9"})).await;
    refused.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", "model `gpt-9` is not configured (have `demo`)");
    for (body, told) in [
        (json!({}), "neither is there"),
        (json!({"name": "  "}), "`name` has 0 characters, 1 to 100"),
        (json!({"name": "\u{200b}\u{3164}\u{202e}"}), "`name` has 0 characters, 1 to 100"),
        (json!({"name": "x".repeat(101)}), "`name` has 101 characters"),
        (json!({"name": 7}), "field `name` is the number `7`, a string is accepted"),
        (json!([null, "demo"]), "the body is a list, an object is accepted"),
        (json!({"name": "a\u{7}"}), "`name` holds a control character"),
    ] {
        ann.patch(&path, body).await.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", told);
    }
    assert_eq!(ann.get(&path).await.body["name"], "Ünïcode 👩‍👩‍👧");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_stops_what_runs_and_waits_and_is_told_once() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["kept", " lost"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, mut watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut running = client.say("first").await;
    running.until("loading").await;
    gate.release(1);
    assert_eq!(running.until("ai_response").await["content"], "kept");
    let mut queued = client.say("second").await;
    queued.until("accepted").await;

    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    for _ in 0..2 {
        let ended = ann.post(&format!("{path}/end"), json!({})).await;
        assert_eq!((ended.status, &ended.body), (StatusCode::OK, &json!({"status": "ended"})));
    }
    let (text, last) = running.reply_from("kept".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("kept", &json!("stopped")));
    let (text, last) = queued.reply().await;
    assert_eq!((text.as_str(), &last["state"]), ("", &json!("stopped")));
    provider.hung_up(1).await;
    assert_eq!(update(&mut watch, "state").await["state"], "ended");
    let mut refused = client.say("third").await;
    assert_eq!(refused.until("error").await["error"]["code"], "SESSION_ENDED");
    ann.patch(&path, json!({"model_id": "scripted"})).await.problem(StatusCode::CONFLICT, "SESSION_ENDED", "ended");
    assert_eq!(ann.patch(&path, json!({"name": "Over"})).await.status, StatusCode::OK, "its name may still change");
    let list = ann.get("/sessions").await.body["sessions"][0].clone();
    assert_eq!((&list["is_active"], list["end_time"].is_string()), (&json!(false), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_makes_room_ends_as_if_it_were_ended() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["kept", " lost"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    for way in ["post", "attach"] {
        let (mut client, mut watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
        let mut running = client.say("first").await;
        running.until("loading").await;
        match way {
            "post" => assert_eq!(ann.post("/sessions", json!({})).await.status, StatusCode::CREATED),
            _ => drop(Client::attached(&server, Via::WebSocket, "ann", json!({"new": true})).await),
        }
        assert_eq!(running.reply().await.1["state"], "stopped", "{way}");
        assert_eq!(update(&mut watch, "state").await["state"], "ended", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_stops_what_runs_and_leaves_nothing() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["kept", " lost"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, mut watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut running = client.say("first").await;
    running.until("loading").await;
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    let link = ann.post(&format!("{path}/share"), json!({})).await.body["share_token"].clone();
    let deleted = ann.send(Method::DELETE, &path, None, &[]).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::NO_CONTENT, ""));
    assert_eq!(running.reply().await.1["state"], "stopped", "whoever asked is told");
    provider.hung_up(1).await;
    assert_eq!(update(&mut watch, "deleted").await["deleted"], true);
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::GET, format!("{path}?after_seq=0")),
        (Method::DELETE, path.clone()),
        (Method::GET, format!("/shared/{}", link.as_str().unwrap())),
    ] {
        ann.send(method, &path, None, &[]).await.problem(StatusCode::NOT_FOUND, "NOT_FOUND", "there is no such");
    }
    assert_eq!(ann.get("/sessions").await.body["count"], 0);
}

#[tokio::test]
async fn an_idle_session_ends_by_itself() {
    let server = Server::with(|config| config.sessions.idle_end = std::time::Duration::from_secs(2)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, mut watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    talk(&mut client, "hello").await;
    let update = update(&mut watch, "state").await;
    assert_eq!((&update["state"], &update["session_id"]), (&json!("ended"), &status["session_id"]));
    assert_eq!(ann.get("/sessions").await.body["sessions"][0]["state"], "ended");
}

/// checklist 1, 5, 62
#[tokio::test]
async fn a_foreign_session_looks_like_one_that_does_not_exist() {
    let server = Server::start().await;
    let (ann, bob) = (Api::new(&server, "ann"), Api::new(&server, "bob"));
    let theirs = session(&server, "ann", "secret").await;
    let (_client, mut watch, _status) =
        Client::attached(&server, Via::WebSocket, "ann", json!({"session_id": theirs})).await;
    let unknown = id();
    let long = "x".repeat(129);
    for (method, rest, body) in [
        (Method::GET, "", None),
        (Method::GET, "?after_seq=0", None),
        (Method::PATCH, "", Some(json!({"name": "mine"}))),
        (Method::DELETE, "", None),
        (Method::POST, "/end", None),
        (Method::GET, "/export", None),
        (Method::POST, "/share", None),
        (Method::DELETE, "/share", None),
    ] {
        let mut answers = Vec::new();
        for name in [&theirs, &unknown, &long, "%ff"] {
            let reply = bob.send(method.clone(), &format!("/sessions/{name}{rest}"), body.clone(), &[]).await;
            reply.problem(StatusCode::NOT_FOUND, "NOT_FOUND", "there is no such thing for this user");
            answers.push(without_request(reply));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{method} {rest}: {answers:?}");
    }
    assert!(watch.silent(std::time::Duration::from_millis(100)).await, "its owner sees nothing");
    let mine = ann.get(&format!("/sessions/{theirs}")).await.body;
    assert_eq!((&mine["name"], mine["messages"].as_array().unwrap().len()), (&json!("secret"), 2));
}

fn without_request(reply: Reply) -> Value {
    let mut body = reply.body;
    body["request_id"].take();
    body["instance"].take();
    body
}

#[tokio::test]
async fn staff_read_any_session_and_change_none() {
    let server = Server::start().await;
    let theirs = format!("/sessions/{}", session(&server, "ann", "help").await);
    let staff = Api::staff(&server, "eve");
    let link = Api::new(&server, "ann").post(&format!("{theirs}/share"), json!({})).await;
    assert_eq!(link.status, StatusCode::OK);
    for rest in ["", "?after_seq=0", "/export", "/export?format=md"] {
        let read = staff.get(&format!("{theirs}{rest}")).await;
        assert_eq!(read.status, StatusCode::OK, "{rest}");
        assert!(!read.text.contains(link.body["share_token"].as_str().unwrap()), "a link is its owner's");
    }
    for (method, rest, body) in [
        (Method::PATCH, "", Some(json!({"name": "mine"}))),
        (Method::DELETE, "", None),
        (Method::POST, "/end", None),
        (Method::POST, "/share", None),
        (Method::DELETE, "/share", None),
    ] {
        let reply = staff.send(method.clone(), &format!("{theirs}{rest}"), body, &[]).await;
        reply.problem(StatusCode::FORBIDDEN, "INSUFFICIENT_PERMISSIONS", "right");
    }
    staff.post(&format!("/sessions/{}/end", id()), json!({})).await.problem(StatusCode::NOT_FOUND, "NOT_FOUND", "");
}

#[tokio::test]
async fn the_list_says_what_a_reply_took() {
    let provider = Provider::start(Script::answer(["four"]).usage(30, 12)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    session(&server, "ann", "two and two").await;
    let meta = Api::new(&server, "ann").get("/sessions").await.body["sessions"][0].clone();
    assert_eq!(meta["total_tokens"], 42);
    assert_eq!(meta["avg_response_time"], meta["max_response_time"], "there is one reply: {meta}");
    let (end, last) = (&meta["end_time"], &meta["last_activity"]);
    assert!(end.is_null() && last.as_str() >= meta["start_time"].as_str(), "{meta}");
    let private = Api::new(&server, "ann").get("/sessions").await;
    assert_eq!(private.header(header::CACHE_CONTROL), "private, no-store");
}
