//! What models took for a user: counted, shown to them, and bounded by the day.

use std::time::Duration;

use chatbox::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::harness::{
    Client, Server, Via,
    api::Api,
    client::PATIENCE,
    id, openai, over_both,
    provider::{Gate, Provider, Script},
};

over_both! {
    request_beyond_the_budget_is_refused_until_the_next_day,
    request_that_was_welcome_is_answered_alike_when_the_budget_is_used_up,
    answers_that_run_are_not_cut_by_the_budget,
}

const DAY_MS: u64 = 24 * 3600 * 1000;

fn budget(config: &mut Config, provider: &Provider, tokens: u64) {
    openai(config, provider);
    config.llm.tokens_per_user_day = Some(tokens);
}

fn message(content: &str) -> Value {
    json!({"type": "user_message", "id": id(), "content": content})
}

/// Asserts that a refusal says what the budget is, what of it is used, and when it comes back.
fn refused(frame: &Value, told: &str) {
    let error = &frame["error"];
    assert_eq!((&frame["type"], &error["code"]), (&json!("error"), &json!("QUOTA_EXCEEDED")), "{frame}");
    let text = error["message"].as_str().unwrap();
    let (said, resets_at) = text.split_once("; it resets at ").unwrap_or_else(|| panic!("{text}"));
    assert_eq!(said, told);
    let resets_at = OffsetDateTime::parse(resets_at, &Rfc3339).expect("an RFC 3339 time");
    assert_eq!(resets_at.time(), time::Time::MIDNIGHT, "a day of UTC ends at midnight");
    let until = (resets_at - OffsetDateTime::now_utc()).whole_milliseconds();
    let wait = error["retry_after"].as_u64().unwrap();
    assert!(wait <= DAY_MS && i128::from(wait).abs_diff(until) < 60_000, "{wait} ms, and it is {until}");
}

async fn request_beyond_the_budget_is_refused_until_the_next_day(via: Via) {
    let provider = Provider::start(Script::answer(["yes"]).usage(60, 41)).await;
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = Server::config(dir.path());
        budget(&mut config, &provider, 100);
        config
    };
    let server = Server::run(config()).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let last = client.say("so?").await.reply().await.1;
    assert_eq!(last["usage"], json!({"prompt_tokens": 60, "completion_tokens": 41, "estimated": false}));
    let told = "the budget of 100 tokens a day is used up (101 so far)";
    refused(&client.say("and?").await.until("error").await, told);
    let again = json!({"type": "regenerate", "id": id(), "turn_id": last["turn_id"]});
    refused(&client.exchange(again).await.until("error").await, told);
    let log = Api::new(&server, "ann").get(&format!("/sessions/{}", status["session_id"].as_str().unwrap())).await;
    assert_eq!(log.body["messages"].as_array().unwrap().len(), 2, "nothing was stored: {}", log.text);
    let rate = json!({"type": "feedback", "id": id(), "seq": 2, "metadata": {"rating": "up"}});
    assert_eq!(client.exchange(rate).await.next().await.unwrap()["type"], "accepted", "what asks no model goes on");
    let (mut other, _watch, _status) = Client::attached(&server, via, "bob", json!({})).await;
    assert_eq!(other.say("so?").await.reply().await.0, "yes", "a budget is one user's");
    server.drain();
    server.ended().await.expect("clean end");
    let server = Server::run(config()).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    refused(&client.say("now?").await.until("error").await, told);
    assert_eq!(server.metrics.errors_total.with_label_values(&["QUOTA_EXCEEDED"]).get(), 1);
    assert_eq!(provider.requests(), 2, "one for each user");
}

async fn request_that_was_welcome_is_answered_alike_when_the_budget_is_used_up(via: Via) {
    let provider = Provider::start(Script::answer(["yes"]).usage(30, 20)).await;
    let server = Server::with(|config| budget(config, &provider, 100)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let first = message("so?");
    let mut exchange = client.exchange(first.clone()).await;
    let accepted = exchange.until("accepted").await;
    let turn = exchange.reply().await.1["turn_id"].clone();
    let again = json!({"type": "regenerate", "id": id(), "turn_id": turn});
    let mut exchange = client.exchange(again.clone()).await;
    let anew = exchange.until("accepted").await;
    exchange.reply().await;
    client.say("now?").await.until("error").await;
    for (request, made) in [(&first, &accepted), (&again, &anew)] {
        let repeated = client.exchange(request.clone()).await.next().await.unwrap();
        assert_eq!((&repeated["type"], &repeated["duplicate"]), (&json!("accepted"), &json!(true)), "{repeated}");
        assert_eq!((&repeated["seq"], &repeated["turn_id"]), (&made["seq"], &made["turn_id"]));
    }
    let other = json!({"type": "user_message", "id": again["id"], "content": "so?"});
    let frame = client.exchange(other).await.next().await.unwrap();
    assert_eq!(frame["error"]["code"], "QUOTA_EXCEEDED", "the id of a regenerate makes no message: {frame}");
}

async fn answers_that_run_are_not_cut_by_the_budget(via: Via) {
    let gate = Gate::new();
    let held = Script::answer(["long ", "answer"]).usage(60, 41).gated(&gate);
    let provider = Provider::start(held).await;
    let server = Server::with(|config| {
        budget(config, &provider, 100);
        config.sessions.active_per_user = 2;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut running = client.say("so?").await;
    running.until("accepted").await;
    provider.request(0).await;
    gate.release(1);
    let mut waiting = client.say("and?").await;
    waiting.until("accepted").await;
    provider.script(Script::answer(["quick"]).usage(60, 41));
    let (mut other, _watch, _status) = Client::attached(&server, via, "ann", json!({"new": true})).await;
    other.say("so?").await.reply().await;
    refused(&other.say("and?").await.until("error").await, "the budget of 100 tokens a day is used up (101 so far)");
    gate.open();
    let (text, last) = running.reply().await;
    assert_eq!((text.as_str(), &last["state"]), ("long answer", &json!("complete")));
    assert_eq!(waiting.reply().await.0, "quick", "it was admitted in time");
    let told = "the budget of 100 tokens a day is used up (303 so far)";
    refused(&other.say("and?").await.until("error").await, told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_reads_what_their_own_requests_took() {
    let provider = Provider::start(Script::answer(["yes"]).usage(60, 41)).await;
    let server = Server::with(|config| {
        budget(config, &provider, 1000);
        config.llm.currency = "EUR".to_owned();
    })
    .await;
    let ann = Api::new(&server, "ann");
    let before = ann.get("/usage").await;
    assert_eq!((before.status, &before.body["days"]), (StatusCode::OK, &json!([])), "{}", before.text);
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    client.say("so?").await.reply().await;
    client.say("and?").await.reply().await;
    let usage = ann.get("/usage?days=2").await.body;
    let today = usage["today"]["day"].as_str().unwrap();
    let days = usage["days"].as_array().unwrap();
    // Two days, when midnight has just passed.
    let sum = |field: &str| days.iter().map(|day| day[field].as_u64().unwrap()).sum::<u64>();
    let fields = ["requests", "prompt_tokens", "completion_tokens", "estimated_tokens"];
    assert_eq!(fields.map(sum), [2, 120, 82, 0], "{usage}");
    assert!(days.iter().all(|day| day["model_id"] == "scripted" && day["day"].as_str() <= Some(today)), "{usage}");
    assert_eq!((&usage["currency"], &usage["today"]["tokens_max"]), (&json!("EUR"), &json!(1000)));
    assert_eq!(days.iter().any(|day| day["day"] == today), usage["today"]["tokens"] != 0);
    let resets_at = OffsetDateTime::parse(usage["today"]["resets_at"].as_str().unwrap(), &Rfc3339).unwrap();
    assert_eq!((resets_at - Duration::from_secs(1)).date().to_string(), today);
    assert_eq!(Api::new(&server, "bob").get("/usage").await.body["days"], json!([]), "theirs are nobody else's");
    for (query, told) in [("0", "`0` is not a whole number from 1 to 366"), ("367", "`367`"), ("ten", "`ten`")] {
        let reply = ann.get(&format!("/usage?days={query}")).await;
        reply.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", told);
    }
    let unbounded = Server::start().await;
    let usage = Api::new(&unbounded, "ann").get("/usage").await.body;
    assert_eq!((&usage["today"]["tokens_max"], &usage["today"]["tokens"]), (&Value::Null, &json!(0)), "{usage}");
}

/// The requests and tokens of a user, once there are so many requests.
async fn counted(api: &Api, requests: u64) -> (u64, u64, u64) {
    let counted = async {
        loop {
            let usage = api.get("/usage").await.body;
            let days = usage["days"].as_array().unwrap();
            let sum = |field: &str| days.iter().map(|day| day[field].as_u64().unwrap()).sum::<u64>();
            if sum("requests") >= requests {
                return (sum("prompt_tokens"), sum("completion_tokens"), sum("estimated_tokens"));
            }
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("so many requests are counted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_count_too() {
    let provider = Provider::start(Script::answer(["yes"]).usage(60, 41)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.model_names = true;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let ann = Api::new(&server, "ann");
    client.say("so?").await.reply().await;
    assert_eq!(counted(&ann, 2).await, (120, 82, 0));
}

/// What it was sent, and what came of it, is guessed at four bytes a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_breaks_off_is_counted_by_a_guess() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["yes"]).usage(60, 41).gated(&gate)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.model_names = true;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("four").await;
    exchange.until("loading").await;
    provider.request(0).await;
    provider.script(Script::answer(["eight by", "never"]).cut_after(1));
    gate.open();
    exchange.reply().await;
    let question = provider.request(1).await.messages()[2].1.len().div_ceil(4);
    let guessed = u64::try_from(question).unwrap() + 1 + 1;
    assert_eq!(counted(&Api::new(&server, "ann"), 2).await, (60 + guessed, 41 + 2, guessed + 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_not_asked_for_when_the_budget_is_used_up() {
    let provider = Provider::start(Script::answer(["yes"]).usage(60, 41)).await;
    let server = Server::with(|config| {
        budget(config, &provider, 100);
        config.sessions.model_names = true;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    client.say("so?").await.reply().await;
    server.drain();
    server.ended().await.expect("clean end");
    assert_eq!(provider.requests(), 1);
}
