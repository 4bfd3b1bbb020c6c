//! What watchers are told beside the log: changes of a session, of a list, and typing; and how watches share a
//! connection.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    client::http,
    id, openai, over_both,
    provider::{Gate, Provider, Script},
};

const MOMENT: Duration = Duration::from_millis(150);

over_both! {
    list_hears_of_new_sessions_and_of_what_changes_in_them,
    list_of_another_user_hears_nothing,
    name_that_the_owner_gave_before_the_first_message_stays,
    list_and_session_are_watched_side_by_side,
    model_is_chosen_for_the_session_and_told,
    help_is_asked_for_and_taken_back,
    typing_reaches_the_others_and_is_not_stored,
    last_entries_are_shown_on_request,
    session_that_ends_to_make_room_is_told,
    detached_list_is_silent,
    what_all_watchers_see_is_encoded_once,
}

async fn list_hears_of_new_sessions_and_of_what_changes_in_them(via: Via) {
    let server = Server::start().await;
    let (_desk, mut list, status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    assert_eq!((&status["session_id"], &status["last_seq"]), (&Value::Null, &Value::Null));
    assert_eq!(status["user_id"], "ann");
    let (mut phone, _watch, session) = Client::attached(&server, via, "ann", json!({})).await;
    assert!(list.silent(MOMENT).await, "a session without an entry is in no list");
    phone.say("count to 3").await.reply().await;
    let first = list.next().await.unwrap();
    assert_eq!(first["session_id"], session["session_id"]);
    assert_eq!((&first["name"], &first["message_count"]), (&json!("count to 3"), &json!(2)), "with its reply");
    assert!(first["last_activity"].as_str().unwrap().ends_with('Z'), "{first}");
    phone.say("count to 4").await.reply().await;
    let second = list.next().await.unwrap();
    assert_eq!((&second["name"], &second["message_count"]), (&Value::Null, &json!(4)));
    phone.exchange(json!({"type": "help_request", "id": id()})).await.until("accepted").await;
    assert_eq!(list.update("help_requested").await["session_id"], session["session_id"]);
}

/// Watchers were told the message's name, which the session never got.
async fn name_that_the_owner_gave_before_the_first_message_stays(via: Via) {
    let server = Server::start().await;
    let url = server.url.join("/chatbox/sessions").unwrap();
    let token = server.token("ann");
    let made = http().post(url.clone()).bearer_auth(&token).json(&json!({"name": "Parcel"})).send().await.unwrap();
    assert_eq!(made.status(), 201);
    let (_desk, mut list, _status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    let (mut phone, mut watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(status["name"], "Parcel");
    phone.say("count to 3").await.reply().await;
    let told = list.next().await.unwrap();
    assert_eq!((&told["message_count"], &told["name"]), (&json!(2), &Value::Null));
    assert!(watch.silent(MOMENT).await, "nothing is told of a name that it did not get");
    let listed: Value = http().get(url).bearer_auth(&token).send().await.unwrap().json().await.unwrap();
    assert_eq!(listed["sessions"][0]["name"], "Parcel");
}

/// Checklist 61. An author's own devices and the others share no frame, hence the second one of the message.
async fn what_all_watchers_see_is_encoded_once(via: Via) {
    const WATCHERS: usize = 8;
    const PIECES: u64 = 20;
    let server = Server::start().await;
    let (mut phone, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut watching = Vec::new();
    for _ in 0..WATCHERS {
        let fields = json!({"session_id": status["session_id"]});
        watching.push(Client::attached(&server, via, "ann", fields).await);
    }
    let before = server.metrics.frames_encoded_total.get();
    let (text, _end) = phone.say("count to 20").await.reply().await;
    for (_connection, watch, _status) in &mut watching {
        assert_eq!(watch.until("user_message").await["content"], "count to 20");
        assert_eq!(watch.reply().await.0, text);
    }
    let encoded = server.metrics.frames_encoded_total.get() - before;
    // Two words a line; the message, its name, `loading` and the end beside them; once for the asker's own exchange.
    let frames = 2 * PIECES + 4;
    assert!((frames..=2 * frames).contains(&encoded), "{encoded} frames were encoded for {WATCHERS} watchers");
}

async fn list_of_another_user_hears_nothing(via: Via) {
    let server = Server::start().await;
    let (_bob, mut list, _status) = Client::attached(&server, via, "bob", json!({"scope": "user"})).await;
    let (mut ann, _watch, _session) = Client::attached(&server, via, "ann", json!({})).await;
    ann.say("count to 3").await.reply().await;
    assert!(list.silent(MOMENT).await);
}

async fn list_and_session_are_watched_side_by_side(via: Via) {
    let server = Server::start().await;
    let (mut client, mut list, _status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    let mut watch = client.exchange(json!({"type": "attach", "id": id()})).await;
    let session = watch.until("connection_status").await["session_id"].clone();
    let (mut phone, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    phone.say("count to 3").await.reply().await;
    assert_eq!(watch.until("user_message").await["session_id"], session);
    assert_eq!(watch.reply().await.1["state"], "complete");
    if via == Via::WebTransport {
        assert_eq!(list.next().await.unwrap()["message_count"], 2, "each watch has its own stream");
    }
    // A message that names no session is meant for the one that is watched, whatever else is.
    let accepted = client.say("count to 2").await.until("accepted").await;
    assert_eq!(accepted["session_id"], session);
}

async fn model_is_chosen_for_the_session_and_told(via: Via) {
    let server = Server::with(|config| {
        let demo = config.llm.providers["demo"].clone();
        config.llm.providers.insert("second".to_owned(), demo);
    })
    .await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let names: Vec<_> = status["models"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!((names, &status["model_id"]), (vec![json!("demo"), json!("second")], &json!("demo")));
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let request = id();
    let select = json!({"type": "model_select", "id": request, "model_id": "second"});
    let chosen = client.exchange(select).await.until("connection_status").await;
    assert_eq!((&chosen["re"], &chosen["model_id"]), (&json!(request), &json!("second")));
    assert_eq!(chosen["session_id"], status["session_id"]);
    assert_eq!(seen.update("model_id").await["model_id"], "second");
    // checklist 24: an unknown model changes nothing
    let error = client.exchange(json!({"type": "model_select", "id": id(), "model_id": "gpt-9"})).await;
    let error = { error }.until("error").await;
    assert_eq!(error["error"]["code"], "INVALID_FORMAT");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("`gpt-9`") && message.contains("`demo`, `second`"), "{message}");
    assert_eq!(client.say("count to 2").await.reply().await.1["model_id"], "second");
}

async fn help_is_asked_for_and_taken_back(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    for (kind, wanted) in [("help_request", true), ("help_cancel", false)] {
        let request = id();
        let accepted = client.exchange(json!({"type": kind, "id": request})).await.until("accepted").await;
        assert_eq!((&accepted["re"], &accepted["session_id"]), (&json!(request), &status["session_id"]));
        assert_eq!(seen.update("help_requested").await["help_requested"], wanted);
    }
    // checklist 1: nobody asks for help in somebody else's session, and nobody there hears of it
    let (mut eve, _watch, _status) = Client::attached(&server, via, "eve", json!({})).await;
    let ask = json!({"type": "help_request", "id": id(), "session_id": status["session_id"]});
    assert_eq!(eve.exchange(ask).await.until("error").await["error"]["code"], "NOT_FOUND");
    assert!(seen.silent(MOMENT).await);
}

async fn typing_reaches_the_others_and_is_not_stored(via: Via) {
    let server = Server::start().await;
    let (_phone, mut typist, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    for state in ["start", "stop"] {
        typist.send(json!({"type": "typing_indicator", "metadata": {"state": state}})).await;
        let told = json!({"type": "typing_indicator", "session_id": status["session_id"], "sender": "user",
            "metadata": {"state": state}});
        assert_eq!(seen.next().await.unwrap(), told);
    }
    assert!(typist.silent(MOMENT).await, "the typist knows");
    let foreign = json!({"type": "typing_indicator", "session_id": id(), "metadata": {"state": "start"}});
    typist.send(foreign).await;
    assert_eq!(typist.next().await.unwrap()["error"]["code"], "NOT_FOUND");
    assert!(seen.silent(MOMENT).await);
}

async fn last_entries_are_shown_on_request(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    for count in 1..=3 {
        client.say(&format!("count to {count}")).await.reply().await;
    }
    let (_desk, mut seen, status) = Client::attached(&server, via, "ann", json!({"last": 3})).await;
    assert_eq!((&status["recovered"], &status["last_seq"]), (&json!(true), &json!(6)));
    let shown = [seen.next().await.unwrap(), seen.next().await.unwrap(), seen.next().await.unwrap()];
    assert_eq!(shown.each_ref().map(|entry| entry["seq"].as_u64().unwrap()), [4, 5, 6]);
    assert!(seen.silent(MOMENT).await);
}

// checklist W10
async fn session_that_ends_to_make_room_is_told(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one", " two"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_desk, mut list, _status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    let (_new, _watch, second) = Client::attached(&server, via, "ann", json!({"new": true})).await;
    assert_eq!(watch.update("state").await["state"], "ended");
    assert_eq!(list.update("state").await["state"], "ended");
    let last = loop {
        let frame = exchange.until("ai_response").await;
        if frame["metadata"]["done"] == "true" {
            break frame;
        }
    };
    assert_eq!(last["state"], "stopped", "what ran in it is stopped");
    assert_eq!(client.say("more").await.until("error").await["error"]["code"], "SESSION_ENDED");
    assert_eq!(second["last_seq"], 0);
}

async fn detached_list_is_silent(via: Via) {
    if via == Via::WebTransport {
        return; // its watches end with their streams
    }
    let server = Server::start().await;
    let (mut client, mut list, _status) = Client::attached(&server, via, "ann", json!({"scope": "user"})).await;
    let mut watch = client.exchange(json!({"type": "attach", "id": id()})).await;
    watch.until("connection_status").await;
    let detach = json!({"type": "detach", "id": id(), "scope": "user"});
    let accepted = client.exchange(detach.clone()).await.until("accepted").await;
    assert_eq!(accepted["session_id"], Value::Null);
    assert_eq!(client.exchange(detach).await.until("error").await["error"]["code"], "NOT_FOUND");
    client.say("count to 2").await.reply().await;
    watch.until("session_update").await;
    assert!(list.silent(MOMENT).await);
}
