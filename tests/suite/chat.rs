//! One message, end to end, over both transports: stored, answered piece by piece, seen by every watcher.

use std::time::Duration;

use chatbox::auth::Role;
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via, id, openai, over_both,
    provider::{Gate, Provider, Script},
    stopwatch::Stopwatch,
};

const MOMENT: Duration = Duration::from_millis(150);

over_both! {
    message_is_answered_piece_by_piece,
    repeated_id_is_applied_once,
    other_device_sees_message_and_reply_once,
    viewer_joins_in_the_middle_of_an_answer,
    resume_goes_on_at_the_byte,
    exchange_that_is_not_read_is_shown_again_by_attach,
    ended_turn_is_replayed_from_the_offset,
    messages_of_one_session_are_answered_in_order,
    three_sessions_stream_side_by_side,
    exchange_beyond_the_cap_waits,
    watch_that_leaves_no_room_is_refused,
    history_goes_to_the_model,
    messages_that_wait_behind_hundreds_are_answered,
    failure_of_the_provider_is_told_once,
    stop_keeps_the_text_and_cuts_the_request,
    stop_works_from_another_device_on_either_transport,
    fifty_first_messages_at_once_make_one_session,
    foreign_session_looks_unknown,
    new_session_is_made_once_for_a_repeated_attach,
    staff_watch_a_session_and_do_not_write_in_it,
    a_client_that_reads_nothing_costs_nobody_else,
}

// checklist 75
async fn message_is_answered_piece_by_piece(via: Via) {
    let server = Server::start().await;
    let (mut client, mut watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(status["user_id"], "ann");
    assert_eq!(status["transport"], if via == Via::WebTransport { "webtransport" } else { "websocket" });
    assert_eq!(status["limits"], json!({"streams": 4, "frame_bytes": 1_048_576, "content_chars": 10_000}));
    assert_eq!(status["models"][0]["id"], "demo");
    assert_eq!(status["last_seq"], 0);

    let request = id();
    let message = json!({"type": "user_message", "id": request, "session_id": status["session_id"], "content": "What is chatbox?"});
    let mut exchange = client.exchange(message).await;
    let accepted = exchange.next().await.expect("accepted");
    assert_eq!(
        (&accepted["type"], &accepted["seq"], &accepted["re"]),
        (&json!("accepted"), &json!(1), &json!(request))
    );
    let loading = exchange.next().await.expect("loading");
    assert_eq!((&loading["type"], &loading["seq"]), (&json!("loading"), &json!(2)));
    assert_eq!(loading["turn_id"], accepted["turn_id"]);
    let (text, last) = exchange.reply().await;
    assert!(text.contains("chatbox") && text.contains("demo"), "{text}");
    assert_eq!((&last["seq"], &last["reply_to"], &last["state"]), (&json!(2), &json!(1), &json!("complete")));
    assert_eq!((&last["re"], &last["model_id"], &last["sender"]), (&json!(request), &json!("demo"), &json!("ai")));
    assert!(last["html"].as_str().unwrap().contains("<p>"), "{last}");
    assert_eq!(last["usage"]["estimated"], true);
    if via == Via::WebTransport {
        assert_eq!(exchange.next().await, None, "the exchange finishes");
    }
    assert_eq!(watch.next().await.unwrap()["name"], "What is chatbox?", "the first message names the session");
    assert!(watch.silent(MOMENT).await, "the exchange showed it already");
}

// checklist W6
async fn repeated_id_is_applied_once(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "count to 3"});
    let mut first = client.exchange(message.clone()).await;
    let accepted = first.next().await.unwrap();
    first.reply().await;
    let (mut elsewhere, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut message = message;
    message["session_id"] = status["session_id"].clone();
    let mut second = elsewhere.exchange(message).await;
    let again = second.next().await.unwrap();
    assert_eq!(again["duplicate"], true);
    assert_eq!((&again["seq"], &again["turn_id"]), (&accepted["seq"], &accepted["turn_id"]));
    if via == Via::WebTransport {
        assert_eq!(second.next().await, None, "nothing follows");
    }
    assert!(watch.silent(MOMENT).await, "nothing was stored");
}

// checklist 50
async fn other_device_sees_message_and_reply_once(via: Via) {
    let server = Server::start().await;
    let (mut phone, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_desk, mut seen, other) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(status["session_id"], other["session_id"], "one active session");
    let request = id();
    let mut exchange = phone.exchange(json!({"type": "user_message", "id": request, "content": "count to 20"})).await;
    let message = seen.next().await.unwrap();
    assert_eq!((&message["type"], &message["content"]), (&json!("user_message"), &json!("count to 20")));
    assert_eq!((&message["id"], &message["seq"], &message["sender"]), (&json!(request), &json!(1), &json!("user")));
    assert_eq!(seen.next().await.unwrap()["name"], "count to 20");
    assert_eq!(seen.next().await.unwrap()["type"], "loading");
    let (there, last) = seen.reply().await;
    let (here, _last) = exchange.reply().await;
    assert_eq!(there, here);
    assert_eq!(last["re"], Value::Null);
    assert!(seen.silent(MOMENT).await);
}

async fn viewer_joins_in_the_middle_of_an_answer(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one ", "two ", "drei ü", " four"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut phone, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = phone.say("hello").await;
    gate.release(2);
    exchange.until("ai_response").await;
    let second = exchange.until("ai_response").await;
    assert_eq!((&second["offset"], &second["content"]), (&json!(4), &json!("two ")));

    let (_desk, mut seen, status) = Client::attached(&server, via, "ann", json!({"after_seq": 0})).await;
    assert_eq!((&status["recovered"], &status["last_seq"]), (&json!(true), &json!(2)));
    assert_eq!(seen.next().await.unwrap()["content"], "hello");
    assert_eq!(seen.next().await.unwrap()["type"], "loading");
    let so_far = seen.next().await.unwrap();
    assert_eq!((&so_far["offset"], &so_far["content"]), (&json!(0), &json!("one two ")));
    gate.open();
    let (text, last) = seen.reply_from("one two ".to_owned()).await;
    assert_eq!(text, "one two drei ü four");
    assert_eq!(last["state"], "complete");
}

// checklist W21
async fn resume_goes_on_at_the_byte(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["abc", "déf", "ghi"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut phone, watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = phone.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(2);
    exchange.until("ai_response").await;
    exchange.until("ai_response").await;
    drop((exchange, watch));
    phone.vanish();
    let position = json!({"after_seq": 1, "turn_id": turn, "offset": 7});
    let (_again, mut seen, status) = Client::attached(&server, via, "ann", position).await;
    assert_eq!(status["recovered"], true);
    gate.open();
    let (text, _last) = seen.reply_from("abcdéf".to_owned()).await;
    assert_eq!(text, "abcdéfghi");
}

async fn exchange_that_is_not_read_is_shown_again_by_attach(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["seen ", "unseen ", "later"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(1);
    exchange.until("ai_response").await;
    drop(exchange);
    watch.until("session_update").await;
    gate.release(1);
    assert!(watch.silent(MOMENT).await, "its pieces are not moved elsewhere");
    let attach = json!({"type": "attach", "id": id(), "turn_id": turn, "offset": 5});
    let mut again = client.exchange(attach).await;
    assert_eq!(again.next().await.unwrap()["recovered"], true);
    gate.open();
    assert_eq!(again.reply_from("seen ".to_owned()).await.0, "seen unseen later");
}

async fn ended_turn_is_replayed_from_the_offset(via: Via) {
    let provider = Provider::start(Script::answer(["abc", "def"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut phone, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = phone.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    exchange.reply().await;
    let position = json!({"after_seq": 0, "turn_id": turn, "offset": 4});
    let (_again, mut seen, status) = Client::attached(&server, via, "ann", position).await;
    assert_eq!(status["recovered"], true);
    assert_eq!(seen.next().await.unwrap()["type"], "user_message");
    let (text, last) = seen.reply_from("abcd".to_owned()).await;
    assert_eq!((text.as_str(), &last["seq"]), ("abcdef", &json!(2)));
    assert!(seen.silent(MOMENT).await, "the reply is not repeated as an entry");

    let beyond = json!({"turn_id": turn, "offset": 400});
    let (_third, mut seen, status) = Client::attached(&server, via, "ann", beyond).await;
    assert_eq!(status["recovered"], false);
    assert_eq!(seen.next().await.unwrap()["type"], "user_message");
    let whole = seen.next().await.unwrap();
    assert_eq!((&whole["content"], &whole["metadata"]["streaming"]), (&json!("abcdef"), &json!("false")));
}

// checklist W20
async fn messages_of_one_session_are_answered_in_order(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["yes"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchanges = Vec::new();
    for content in ["first", "second", "third"] {
        let mut exchange = client.say(content).await;
        assert_eq!(exchange.next().await.unwrap()["type"], "accepted", "accepted at once");
        exchanges.push(exchange);
    }
    assert_eq!(exchanges[0].next().await.unwrap()["type"], "loading");
    assert!(exchanges[1].silent(MOMENT).await, "the second waits for the first");
    gate.open();
    let mut places = Vec::new();
    for exchange in &mut exchanges {
        let (_text, last) = exchange.reply().await;
        places.push((last["reply_to"].as_u64().unwrap(), last["seq"].as_u64().unwrap()));
    }
    assert_eq!(places, [(1, 2), (3, 5), (4, 6)]);
    let told = provider.request(2).await;
    let asked = [("user", "first"), ("assistant", "yes"), ("user", "second"), ("assistant", "yes"), ("user", "third")];
    assert_eq!(told.messages(), asked, "every message is followed by its own reply");
}

async fn three_sessions_stream_side_by_side(via: Via) {
    let provider = Provider::start(Script::answer(["a", "b"]).stall_after(1)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.active_per_user = 3;
        config.limits.streams = 6;
    })
    .await;
    let (mut client, first, status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut watches = vec![(first, status["session_id"].clone())];
    for _ in 0..2 {
        let mut watch = client.exchange(json!({"type": "attach", "id": id(), "new": true})).await;
        let status = watch.next().await.unwrap();
        watches.push((watch, status["session_id"].clone()));
    }
    let mut exchanges = Vec::new();
    for (_watch, session) in &watches {
        let message = json!({"type": "user_message", "id": id(), "session_id": session, "content": "hello"});
        exchanges.push(client.exchange(message).await);
    }
    let mut turns = Vec::new();
    for exchange in &mut exchanges {
        let piece = exchange.until("ai_response").await;
        assert_eq!(piece["content"], "a", "all three are under way");
        turns.push(piece["turn_id"].clone());
    }
    for turn in turns {
        watches[0].0.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    }
    for exchange in &mut exchanges {
        assert_eq!(exchange.reply_from("a".to_owned()).await.1["state"], "stopped");
    }
}

// checklist 44, W19
async fn exchange_beyond_the_cap_waits(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["a"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let mut exchange = client.say("hello").await;
        exchange.until("accepted").await;
        running.push(exchange);
    }
    let message = json!({"type": "user_message", "id": id(), "content": "one more"});
    let opens = async {
        let mut exchange = client.exchange(message).await;
        let accepted = exchange.until("accepted").await;
        (exchange, accepted)
    };
    let mut opens = std::pin::pin!(opens);
    assert!(tokio::time::timeout(MOMENT, &mut opens).await.is_err(), "three exchanges and the watch are the cap");
    gate.open();
    let (mut exchange, accepted) = opens.await;
    assert_eq!(accepted["re"], exchange.reply().await.1["re"]);
    for exchange in &mut running {
        assert_eq!(exchange.reply().await.0, "a", "nothing is dropped");
    }
}

async fn watch_that_leaves_no_room_is_refused(via: Via) {
    let server = Server::with(|config| config.sessions.active_per_user = 10).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut watch = client.exchange(json!({"type": "attach", "id": id(), "new": true})).await;
        assert_eq!(watch.next().await.unwrap()["type"], "connection_status");
        watches.push(watch);
    }
    let mut refused = client.exchange(json!({"type": "attach", "id": id(), "new": true})).await;
    assert_eq!(refused.next().await.unwrap()["error"]["code"], "TOO_MANY_REQUESTS");
    drop(refused);
    let mut exchange = client.say("count to 2").await;
    assert_eq!(exchange.reply().await.1["state"], "complete", "there is room for an exchange");
}

// checklist 27
async fn history_goes_to_the_model(via: Via) {
    let provider = Provider::start(Script::answer(["It ", "is."]).usage(7, 2)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.llm.system_prompt = Some("Be brief.".to_owned());
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("Is <a&b> \"safe\"?\n").await.reply().await;
    assert_eq!(text, "It is.");
    assert_eq!(last["usage"], json!({"prompt_tokens": 7, "completion_tokens": 2, "estimated": false}));
    client.say("Sure?").await.reply().await;
    let told = provider.request(1).await;
    let expected =
        [("system", "Be brief."), ("user", "Is <a&b> \"safe\"?\n"), ("assistant", "It is."), ("user", "Sure?")];
    assert_eq!(told.messages(), expected);
    let read = server.metrics.store_duration_seconds.with_label_values(&["entries"]).get_sample_count();
    assert_eq!(read, 0, "what has just been said is not read");
}

async fn messages_that_wait_behind_hundreds_are_answered(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["yes"]).gated(&gate)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        (config.limits.queued_turns, config.limits.streams) = (500, 500);
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchanges = Vec::new();
    for nth in 1..=450 {
        exchanges.push(client.say(&format!("message {nth}")).await);
        exchanges.last_mut().unwrap().until("accepted").await;
    }
    gate.open();
    for (exchange, nth) in exchanges.iter_mut().zip(1..) {
        assert_eq!(exchange.reply().await.0, "yes", "message {nth}");
    }
    assert_eq!(provider.request(1).await.messages().last(), Some(&("user", "message 2")));
}

// checklist 45, 69
async fn failure_of_the_provider_is_told_once(via: Via) {
    let provider = Provider::start(Script::answer(["half ", "of it"]).cut_after(1)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    assert_eq!(exchange.until("ai_response").await["content"], "half ");
    let error = exchange.next().await.unwrap();
    assert_eq!((&error["type"], &error["turn_id"]), (&json!("error"), &turn));
    assert_eq!((&error["error"]["code"], &error["error"]["recoverable"]), (&json!("LLM_UNAVAILABLE"), &json!(true)));
    let (text, last) = exchange.reply_from("half ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("half ", &json!("interrupted")), "the text that was shown stays");
    let (text, last) = seen.reply().await;
    assert_eq!((text.as_str(), &last["state"]), ("half ", &json!("interrupted")));
    watch.until("session_update").await;
    assert!(watch.silent(MOMENT).await);
    provider.script(Script::answer(["fine"]));
    assert_eq!(client.say("again").await.reply().await.0, "fine", "the session goes on");
}

// checklist 42
async fn stop_keeps_the_text_and_cuts_the_request(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["kept ", "never said"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(1);
    exchange.until("ai_response").await;
    let asked = Stopwatch::start();
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    provider.hung_up(1).await;
    let cut = asked.elapsed();
    println!("the provider's request was cut after {cut:?}");
    assert!(cut < Duration::from_secs(1), "the provider's request was cut after {cut:?}");
    let (text, last) = exchange.reply_from("kept ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"], &last["length"]), ("kept ", &json!("stopped"), &json!(5)));
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    assert_eq!(watch.until("error").await["error"]["code"], "TURN_NOT_FOUND");
}

async fn stop_works_from_another_device_on_either_transport(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["kept ", "never said"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut phone, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = phone.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(1);
    exchange.until("ai_response").await;
    let other = if via == Via::WebTransport { Via::WebSocket } else { Via::WebTransport };
    let (mut desk, mut seen, _status) = Client::attached(&server, other, "ann", json!({})).await;
    let asked = Stopwatch::start();
    let stop = json!({"type": "stop", "id": id(), "turn_id": turn});
    assert_eq!(desk.exchange(stop.clone()).await.until("accepted").await["turn_id"], turn);
    provider.hung_up(1).await;
    let cut = asked.elapsed();
    println!("the provider's request was cut after {cut:?}");
    assert!(cut < Duration::from_secs(1), "the provider's request was cut after {cut:?}");
    for (text, last) in [exchange.reply_from("kept ".to_owned()).await, seen.reply().await] {
        assert_eq!((text.as_str(), &last["state"]), ("kept ", &json!("stopped")));
    }
    let error = desk.exchange(stop).await.until("error").await;
    assert_eq!(error["error"]["code"], "TURN_NOT_FOUND", "it has ended");
}

async fn fifty_first_messages_at_once_make_one_session(via: Via) {
    // checklist 4: on one node here
    let server = Server::with(|config| config.limits.queued_turns = 50).await;
    let devices = (0..50).map(|nth| {
        let server = &server;
        async move {
            let (mut device, _watch, status) = Client::attached(server, via, "ann", json!({})).await;
            let accepted = device.say(&format!("message {nth}")).await.until("accepted").await;
            assert_eq!(accepted["session_id"], status["session_id"]);
            (accepted["session_id"].to_string(), accepted["turn_id"].to_string())
        }
    });
    let told = futures_util::future::join_all(devices).await;
    let sessions: std::collections::HashSet<_> = told.iter().map(|(session, _)| session).collect();
    let turns: std::collections::HashSet<_> = told.iter().map(|(_, turn)| turn).collect();
    assert_eq!((sessions.len(), turns.len()), (1, 50));
}

// checklist 1, 2
async fn foreign_session_looks_unknown(via: Via) {
    let server = Server::start().await;
    let (_ann, mut hers, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (mut bob, _watch, _status) = Client::attached(&server, via, "bob", json!({})).await;
    for session in [status["session_id"].clone(), json!(id()), json!("made up")] {
        for frame in [
            json!({"type": "user_message", "id": id(), "session_id": session, "content": "hello"}),
            json!({"type": "attach", "id": id(), "session_id": session}),
            json!({"type": "attach", "id": id(), "session_id": session, "reopen": true}),
        ] {
            let answer = bob.exchange(frame.clone()).await.next().await.unwrap();
            assert_eq!(answer["error"]["code"], "NOT_FOUND", "{frame}");
        }
    }
    assert!(hers.silent(MOMENT).await, "she sees nothing of it");
}

async fn new_session_is_made_once_for_a_repeated_attach(via: Via) {
    let server = Server::with(|config| config.sessions.active_per_user = 3).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let attach = json!({"type": "attach", "id": id(), "new": true});
    let first = client.exchange(attach.clone()).await.next().await.unwrap();
    let (mut elsewhere, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let again = elsewhere.exchange(attach).await.next().await.unwrap();
    assert_ne!(first["session_id"], status["session_id"]);
    assert_eq!(first["session_id"], again["session_id"]);
}

async fn staff_watch_a_session_and_do_not_write_in_it(via: Via) {
    let server = Server::start().await;
    let (mut ann, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let token = server.token_for("sue", Role::Staff, Duration::from_secs(60));
    let attach = json!({"token": token, "session_id": status["session_id"]});
    let (mut sue, mut seen, hers) = Client::attached(&server, via, "sue", attach).await;
    assert_eq!((&hers["session_id"], &hers["limits"]["streams"]), (&status["session_id"], &json!(64)));
    ann.say("count to 2").await.reply().await;
    let message = seen.next().await.unwrap();
    assert_eq!((&message["content"], &message["id"]), (&json!("count to 2"), &Value::Null), "the id is its author's");
    seen.reply().await;
    let said = json!({"type": "user_message", "id": id(), "session_id": status["session_id"], "content": "hi"});
    let refused = sue.exchange(said).await.next().await.unwrap();
    assert_eq!(refused["error"]["code"], "INSUFFICIENT_PERMISSIONS");
}

/// A watcher lags behind a queue of 64 pieces, and then reads all of them at once, later, from the one text.
// checklist W19, W23
async fn a_client_that_reads_nothing_costs_nobody_else(via: Via) {
    let server = Server::with(|config| config.limits.streams = 6).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_idle, mut unread, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, _last) = client.say("count to 1000").await.reply().await;
    assert_eq!(text.lines().count(), 1000);
    let (later, last) = unread.reply().await;
    assert_eq!((later == text, &last["state"]), (true, &json!("complete")));
    let attach = json!({"session_id": status["session_id"], "after_seq": 0});
    let (_third, mut replay, _status) = Client::attached(&server, via, "ann", attach).await;
    replay.until("user_message").await;
    let (again, _last) = replay.reply().await;
    assert!(again == text, "the replay is the same text");
}
