//! Answering the last message once more: the old reply stays, everybody sees the new one, the model sees the newest.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via, id, openai, over_both,
    provider::{Gate, Provider, Script},
};

const MOMENT: Duration = Duration::from_millis(150);

over_both! {
    last_reply_is_written_again_and_the_old_one_stays,
    repeated_regenerate_is_applied_once,
    id_of_another_request_is_told_as_one,
    other_device_sees_the_new_reply,
    only_the_last_turn_that_has_ended_is_written_again,
    model_sees_the_newest_reply,
    model_sees_the_same_whether_the_conversation_is_kept_or_read,
    rating_stays_with_its_reply,
}

fn regenerate(turn: &Value) -> Value {
    json!({"type": "regenerate", "id": id(), "turn_id": turn})
}

async fn model_sees_the_same_whether_the_conversation_is_kept_or_read(via: Via) {
    let mut seen = Vec::new();
    for history_bytes in [0, 1024 * 1024] {
        let provider = Provider::start(Script::answer(["r1"])).await;
        let server = Server::with(|config| {
            openai(config, &provider);
            config.sessions.history_bytes = history_bytes;
        })
        .await;
        let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
        let mut last = client.say("m1").await.reply().await.1;
        for number in 2..=4 {
            provider.script(Script::answer([format!("r{number}").as_str()]));
            client.exchange(regenerate(&last["turn_id"])).await.reply().await;
            last = client.say(&format!("m{number}")).await.reply().await.1;
        }
        let mut asked = Vec::new();
        for index in 0..provider.requests() {
            let request = provider.request(index).await;
            asked.push(request.messages().iter().map(|(_, said)| (*said).to_owned()).collect::<Vec<_>>());
        }
        seen.push(asked);
    }
    let expected = [
        vec!["m1"],
        vec!["m1"],
        vec!["m1", "r2", "m2"],
        vec!["m1", "r2", "m2"],
        vec!["m1", "r2", "m2", "r3", "m3"],
        vec!["m1", "r2", "m2", "r3", "m3"],
        vec!["m1", "r2", "m2", "r3", "m3", "r4", "m4"],
    ];
    assert_eq!(seen, [&expected, &expected]);
}

async fn last_reply_is_written_again_and_the_old_one_stays(via: Via) {
    let provider = Provider::start(Script::answer(["first"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = client.say("hello").await.reply().await.1;
    provider.script(Script::answer(["second"]));
    let ask = regenerate(&first["turn_id"]);
    let mut exchange = client.exchange(ask.clone()).await;
    let accepted = exchange.next().await.unwrap();
    assert_eq!((&accepted["type"], &accepted["re"]), (&json!("accepted"), &ask["id"]));
    assert_eq!((&accepted["seq"], &accepted["session_id"]), (&json!(3), &status["session_id"]));
    assert_ne!(accepted["turn_id"], first["turn_id"]);
    let loading = exchange.next().await.unwrap();
    assert_eq!((&loading["type"], &loading["turn_id"]), (&json!("loading"), &accepted["turn_id"]));
    let (text, last) = exchange.reply().await;
    assert_eq!(text, "second");
    assert_eq!((&last["reply_to"], &last["seq"], &last["re"]), (&json!(1), &json!(3), &ask["id"]));
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({"after_seq": 0})).await;
    assert_eq!(seen.next().await.unwrap()["content"], "hello");
    let kept = [seen.next().await.unwrap(), seen.next().await.unwrap()];
    assert_eq!(kept.each_ref().map(|reply| &reply["content"]), [&json!("first"), &json!("second")]);
    assert_eq!(kept.each_ref().map(|reply| &reply["reply_to"]), [&json!(1), &json!(1)]);
}

async fn repeated_regenerate_is_applied_once(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = client.say("count to 2").await.reply().await.1;
    let ask = regenerate(&first["turn_id"]);
    let mut exchange = client.exchange(ask.clone()).await;
    let accepted = exchange.until("accepted").await;
    exchange.reply().await;
    let (mut again, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let answer = again.exchange(ask).await.until("accepted").await;
    assert_eq!(answer["duplicate"], true);
    assert_eq!((&answer["seq"], &answer["turn_id"]), (&accepted["seq"], &accepted["turn_id"]));
    assert!(watch.silent(MOMENT).await, "nothing more was written");
}

// One id names one request: what the other kind of request made is no answer to this one.
async fn id_of_another_request_is_told_as_one(via: Via) {
    let server = Server::start().await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "count to 2"});
    let first = client.exchange(message.clone()).await.reply().await.1;
    let again = regenerate(&first["turn_id"]);
    let second = client.exchange(again.clone()).await.reply().await.1;
    watch.until("session_update").await;
    for frame in [
        json!({"type": "user_message", "id": again["id"], "content": "count to 3"}),
        json!({"type": "regenerate", "id": message["id"], "turn_id": second["turn_id"]}),
    ] {
        let error = client.exchange(frame.clone()).await.next().await.unwrap();
        assert_eq!((&error["re"], &error["error"]["code"]), (&frame["id"], &json!("INVALID_FORMAT")), "{frame}");
        let told = error["error"]["message"].as_str().unwrap();
        assert!(told.starts_with("field `id` named another request before"), "{told}");
    }
    assert!(watch.silent(MOMENT).await, "nothing was stored");
}

async fn other_device_sees_the_new_reply(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = client.say("count to 2").await.reply().await.1;
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.exchange(regenerate(&first["turn_id"])).await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    let loading = seen.next().await.unwrap();
    assert_eq!((&loading["type"], &loading["turn_id"], &loading["seq"]), (&json!("loading"), &turn, &json!(3)));
    assert_eq!(seen.reply().await.0, exchange.reply().await.0);
}

async fn only_the_last_turn_that_has_ended_is_written_again(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = client.say("a").await.reply().await.1;
    let second = client.say("b").await.reply().await.1;
    let refused = async |client: &mut Client, turn: &Value| {
        let error = client.exchange(regenerate(turn)).await.until("error").await["error"].clone();
        assert_eq!(error["message"], "only the last answer can be asked for again, and only once it has ended");
        error["code"].clone()
    };
    assert_eq!(refused(&mut client, &first["turn_id"]).await, "TURN_NOT_FOUND", "an earlier one");
    assert_eq!(refused(&mut client, &json!(id())).await, "TURN_NOT_FOUND", "none");
    provider.script(Script::answer(["slow"]).gated(&gate));
    let mut running = client.exchange(regenerate(&second["turn_id"])).await;
    let turn = running.until("accepted").await["turn_id"].clone();
    assert_eq!(refused(&mut client, &turn).await, "TURN_NOT_FOUND", "a running one");
    assert_eq!(refused(&mut client, &second["turn_id"]).await, "TURN_NOT_FOUND", "one that is being replaced");
    gate.open();
    running.reply().await;
    // checklist 1: nor one of somebody else
    let (mut eve, _watch, _status) = Client::attached(&server, via, "eve", json!({})).await;
    assert_eq!(refused(&mut eve, &turn).await, "TURN_NOT_FOUND", "a foreign one");
    let (_desk, _seen, now) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!((&now["last_seq"], &now["session_id"]), (&json!(5), &status["session_id"]));
}

async fn model_sees_the_newest_reply(via: Via) {
    let provider = Provider::start(Script::answer(["old"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = client.say("hello").await.reply().await.1;
    provider.script(Script::answer(["new"]));
    client.exchange(regenerate(&first["turn_id"])).await.reply().await;
    client.say("and then").await.reply().await;
    assert_eq!(provider.request(1).await.messages(), [("user", "hello")], "it is asked afresh");
    let told = provider.request(2).await;
    assert_eq!(told.messages(), [("user", "hello"), ("assistant", "new"), ("user", "and then")]);
}

async fn rating_stays_with_its_reply(via: Via) {
    let server = Server::start().await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    client.say("count to 2").await.reply().await;
    let rate = |seq: u64, rating: &str| {
        json!({"type": "feedback", "id": id(), "seq": seq, "metadata": {"rating": rating}, "content": "wrong",
            "session_id": status["session_id"]})
    };
    for rating in ["down", "up"] {
        let accepted = client.exchange(rate(2, rating)).await.until("accepted").await;
        assert_eq!(accepted["session_id"], status["session_id"]);
    }
    assert_eq!(client.exchange(rate(1, "up")).await.until("error").await["error"]["code"], "NOT_FOUND");
    let (mut eve, _watch, _status) = Client::attached(&server, via, "eve", json!({})).await;
    assert_eq!(eve.exchange(rate(2, "down")).await.until("error").await["error"]["code"], "NOT_FOUND");
    let (_desk, mut seen, _status) = Client::attached(&server, via, "ann", json!({"last": 1})).await;
    assert_eq!(seen.next().await.unwrap()["rating"], "up");
}
