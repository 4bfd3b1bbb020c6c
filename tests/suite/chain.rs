//! What becomes of an answer when models fail: asked again, replaced, gone on with, or honestly broken off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatbox::{
    config::Config,
    llm::{Kind, ProviderConfig},
};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via, id, over_both,
    provider::{Provider, Request, Script},
};

mod asked;
mod continued;
mod operated;
mod threads;

over_both! {
    busy_provider_is_asked_again_and_bills_once,
    slow_first_token_is_not_asked_again,
    connection_cut_before_an_answer_is_not_asked_again,
    unreachable_provider_is_replaced,
    refusals_are_not_repeated_and_replaced,
    whoever_withholds_is_not_replaced,
    turn_fails_when_nobody_answers,
    provider_that_keeps_failing_is_left_alone_and_tried_again,
    stop_ends_the_wait_for_a_repetition,
    drain_deadline_ends_the_wait_for_a_repetition,
    deadline_of_the_turn_ends_the_wait_for_a_repetition,
}

/// Has scripted models answer: the first one by default, the others in its place. None is asked for names.
fn chain(config: &mut Config, models: &[(&str, &str)]) {
    config.sessions.model_names = false;
    config.llm.retry_pause = Duration::from_millis(2);
    config.llm.providers.clear();
    for (name, endpoint) in models {
        let mut model = ProviderConfig::new(Kind::Openai);
        model.endpoint = Some(endpoint.parse().expect("endpoint"));
        model.model = Some(format!("vendor-{name}"));
        config.llm.providers.insert((*name).to_owned(), model);
    }
    config.llm.providers[0].fallback = models[1..].iter().map(|(name, _)| (*name).to_owned()).collect();
}

async fn server(models: &[(&str, &Provider)], change: impl FnOnce(&mut Config)) -> Server {
    let endpoints: Vec<_> = models.iter().map(|(name, provider)| (*name, provider.endpoint())).collect();
    Server::with(|config| {
        chain(config, &endpoints.iter().map(|(name, endpoint)| (*name, &**endpoint)).collect::<Vec<_>>());
        change(config);
    })
    .await
}

/// A script for each request in turn; the last one for all that follow.
fn in_turn(scripts: impl Into<Vec<Script>>) -> impl Fn(&Request) -> Script + Send + Sync {
    let (scripts, asked) = (scripts.into(), AtomicUsize::new(0));
    move |_request| scripts[asked.fetch_add(1, Ordering::Relaxed).min(scripts.len() - 1)].clone()
}

fn busy() -> Script {
    Script::status(429, "application/json", r#"{"error":{"type":"requests"}}"#)
}

/// How many requests of a model came to that.
fn came(server: &Server, model: &str, outcome: &str) -> u64 {
    server.metrics.model_requests_total.with_label_values(&[model, outcome]).get()
}

/// The end of a turn that failed: its error, its text and its last frame.
async fn broken(exchange: &mut crate::harness::client::Lines) -> (Value, String, Value) {
    let mut text = String::new();
    loop {
        let frame = exchange.next().await.expect("the turn ends");
        match frame["type"].as_str().unwrap() {
            "ai_response" => text.push_str(frame["content"].as_str().unwrap()),
            "error" => {
                let (text, last) = exchange.reply_from(text).await;
                return (frame["error"]["code"].clone(), text, last);
            }
            _ => {}
        }
    }
}

// checklist W35
async fn busy_provider_is_asked_again_and_bills_once(via: Via) {
    let provider = Provider::start_by(in_turn([busy(), Script::answer(["fine"]).usage(5, 2)])).await;
    let server = server(&[("a", &provider)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("hello").await.reply().await;
    assert_eq!((text.as_str(), &last["state"], provider.requests()), ("fine", &json!("complete"), 2));
    assert_eq!(last["usage"], json!({"prompt_tokens": 5, "completion_tokens": 2, "estimated": false}));
    assert_eq!(provider.request(0).await.body, provider.request(1).await.body);
    assert_eq!((came(&server, "a", "busy"), came(&server, "a", "complete")), (1, 1));
    assert_eq!(server.metrics.model_retries_total.with_label_values(&["a"]).get(), 1);
}

// checklist 101, W35
async fn slow_first_token_is_not_asked_again(via: Via) {
    let (slow, other) = (Provider::start(Script::silent()).await, Provider::start(Script::answer(["fine"])).await);
    let server = server(&[("a", &slow), ("b", &other)], |config| {
        // Within it the request arrives, on any machine.
        config.llm.providers.get_mut("a").unwrap().first_byte_timeout = Some(Duration::from_secs(2));
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("hello").await.reply().await;
    assert_eq!((text.as_str(), &last["model_id"], &last["state"]), ("fine", &json!("b"), &json!("complete")));
    assert_eq!((slow.requests(), other.requests()), (1, 1), "it may be working on it, and bill it");
    assert_eq!((came(&server, "a", "late"), came(&server, "b", "complete")), (1, 1));
    slow.hung_up(1).await;
}

// checklist W35
async fn connection_cut_before_an_answer_is_not_asked_again(via: Via) {
    let (cut, other) = (Provider::start(Script::gone()).await, Provider::start(Script::answer(["fine"])).await);
    let server = server(&[("a", &cut), ("b", &other)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(client.say("hello").await.reply().await.0, "fine");
    assert_eq!((cut.requests(), other.requests(), came(&server, "a", "broken")), (1, 1, 1));
}

async fn unreachable_provider_is_replaced(via: Via) {
    let closed = crate::harness::ports::reserve();
    let other = Provider::start(Script::answer(["fine"])).await;
    let server = Server::with(|config| {
        chain(config, &[("a", &format!("http://{closed}/v1")), ("b", &other.endpoint())]);
        config.llm.retries = 2;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("hello").await.reply().await;
    assert_eq!((text.as_str(), &last["model_id"]), ("fine", &json!("b")));
    assert_eq!((came(&server, "a", "unreachable"), other.requests()), (3, 1), "nothing was sent: asked again twice");
    assert_eq!(server.metrics.model_fallbacks_total.with_label_values(&["a"]).get(), 1);
}

async fn refusals_are_not_repeated_and_replaced(via: Via) {
    for (status, outcome) in [(400, "refused"), (401, "denied"), (403, "denied"), (504, "late")] {
        let refusing = Provider::start(Script::status(status, "application/json", "{}")).await;
        let other = Provider::start(Script::answer(["fine"])).await;
        let server = server(&[("a", &refusing), ("b", &other)], |_config| {}).await;
        let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
        assert_eq!(client.say("hello").await.reply().await.0, "fine");
        assert_eq!((refusing.requests(), came(&server, "a", outcome)), (1, 1), "{status}");
    }
}

async fn whoever_withholds_is_not_replaced(via: Via) {
    for (said, text) in [(vec![], ""), (vec!["half"], "half")] {
        let withholding = Provider::start(Script::answer(said).finish("content_filter")).await;
        let other = Provider::start(Script::answer(["fine"])).await;
        let server = server(&[("a", &withholding), ("b", &other)], |_config| {}).await;
        let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
        let (code, shown, last) = broken(&mut client.say("hello").await).await;
        assert_eq!((&code, &last["state"], shown.as_str()), (&json!("CONTENT_REFUSED"), &json!("failed"), text));
        assert_eq!((withholding.requests(), other.requests()), (1, 0), "another one would be asked until one says it");
    }
}

// checklist 99, W33
async fn turn_fails_when_nobody_answers(via: Via) {
    let (one, two) = (Provider::start(busy()).await, Provider::start(Script::gone()).await);
    let server = server(&[("a", &one), ("b", &two)], |config| config.llm.retries = 1).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (code, text, last) = broken(&mut client.say("hello").await).await;
    assert_eq!((&code, text.as_str(), &last["state"]), (&json!("LLM_UNAVAILABLE"), "", &json!("failed")));
    assert_eq!((one.requests(), two.requests(), &last["usage"]), (2, 1, &Value::Null));
}

/// How long a provider is left alone.
const PAUSE: Duration = Duration::from_secs(2);

// checklist 105
async fn provider_that_keeps_failing_is_left_alone_and_tried_again(via: Via) {
    let down = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&down);
    let provider = Provider::start_by(move |_request| match state.load(Ordering::Relaxed) {
        1 => Script::status(500, "text/plain", "down"),
        _ => Script::answer(["fine"]),
    });
    let (provider, other) = (provider.await, Provider::start(Script::answer(["instead"])).await);
    let server = server(&[("a", &provider), ("b", &other)], |config| {
        config.llm.retries = 0;
        config.llm.breaker_failures = 3;
        config.llm.breaker_pause = PAUSE;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    for _ in 0..2 {
        assert_eq!(client.say("hello").await.reply().await.0, "instead");
    }
    // It opens after this moment.
    let opened = std::time::Instant::now();
    assert_eq!(client.say("hello").await.reply().await.0, "instead");
    assert_eq!(provider.requests(), 3);
    assert_eq!(client.say("hello").await.reply().await.0, "instead");
    let asked = provider.requests();
    if opened.elapsed() < PAUSE {
        assert_eq!((asked, came(&server, "a", "left_alone")), (3, 1), "nobody waits for it");
    }
    down.store(0, Ordering::Relaxed);
    let returns = async { while client.say("hello").await.reply().await.0 != "fine" {} };
    tokio::time::timeout(crate::harness::client::PATIENCE, returns).await.expect("it is tried again");
    assert!(opened.elapsed() >= PAUSE, "not before its pause is over");
    assert_eq!(provider.requests(), asked + 1, "by the first request after the pause");
    assert_eq!(came(&server, "a", "complete"), 1);
    assert_eq!(client.say("hello").await.reply().await.0, "fine");
}

/// A server whose one model is busy, and asked again in an hour.
async fn waiting(change: impl FnOnce(&mut Config)) -> (Provider, Server) {
    let provider = Provider::start(busy()).await;
    let server = server(&[("a", &provider)], |config| {
        config.llm.timeout = Duration::from_secs(7200);
        config.llm.retry_pause = Duration::from_secs(3600);
        config.llm.retry_pause_max = Duration::from_secs(3600);
        change(config);
    })
    .await;
    (provider, server)
}

// checklist 42
async fn stop_ends_the_wait_for_a_repetition(via: Via) {
    let (provider, server) = waiting(|_config| {}).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    provider.request(0).await;
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    let (text, last) = exchange.reply().await;
    assert_eq!((text.as_str(), &last["state"], provider.requests()), ("", &json!("stopped"), 1));
}

async fn drain_deadline_ends_the_wait_for_a_repetition(via: Via) {
    let (provider, server) = waiting(|config| config.drain.timeout = Duration::from_millis(100)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("accepted").await;
    provider.request(0).await;
    server.drain();
    let (text, last) = exchange.reply().await;
    assert_eq!((text.as_str(), &last["state"], provider.requests()), ("", &json!("interrupted"), 1));
    server.ended().await.expect("clean end");
}

/// A repetition that would come too late is not waited for.
async fn deadline_of_the_turn_ends_the_wait_for_a_repetition(via: Via) {
    let (provider, server) = waiting(|config| config.llm.timeout = Duration::from_secs(1800)).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (code, _text, last) = broken(&mut client.say("hello").await).await;
    assert_eq!((&code, &last["state"], provider.requests()), (&json!("LLM_UNAVAILABLE"), &json!("failed"), 1));
}
