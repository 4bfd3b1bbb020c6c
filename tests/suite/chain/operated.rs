//! What operators see and configure of models that fail: pauses that vendors ask for, readiness, metrics, accounts.

use std::time::{Duration, Instant};

use chatbox::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{broken, busy, came, in_turn, server};
use crate::harness::{
    Client, Server, Via,
    api::Api,
    client::http,
    over_both,
    provider::{Gate, Provider, Script},
};

over_both! {
    pause_that_a_vendor_asks_for_is_kept,
    vendor_that_asks_for_a_long_pause_is_not_waited_for,
    readiness_tells_of_a_model_that_is_down_and_stays,
    requests_are_counted_and_priced,
    what_was_stopped_is_charged_by_our_own_count,
}

async fn pause_that_a_vendor_asks_for_is_kept(via: Via) {
    let script = busy().header("retry-after-ms", "400");
    let provider = Provider::start_by(in_turn([script, Script::answer(["fine"])])).await;
    let server = server(&[("a", &provider)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let asked = Instant::now();
    assert_eq!(client.say("hello").await.reply().await.0, "fine");
    assert!(asked.elapsed() >= Duration::from_millis(400), "{:?}", asked.elapsed());
    assert_eq!(provider.requests(), 2);
}

async fn vendor_that_asks_for_a_long_pause_is_not_waited_for(via: Via) {
    let provider = Provider::start(busy().header("Retry-After", "11")).await;
    let other = Provider::start(Script::answer(["instead"])).await;
    let server = server(&[("a", &provider), ("b", &other)], |config| {
        config.llm.retry_pause_max = Duration::from_secs(10);
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(client.say("hello").await.reply().await.0, "instead");
    assert_eq!((provider.requests(), other.requests()), (1, 1));
}

async fn ready(server: &Server) -> (StatusCode, Value) {
    let answer = http().get(format!("http://{}/readyz", server.ops)).send().await.expect("an answer");
    (answer.status(), answer.json::<Value>().await.expect("JSON")["checks"]["llm"].clone())
}

async fn gauge(server: &Server, model: &str) -> String {
    let text = http().get(format!("http://{}/metrics", server.ops)).send().await.unwrap().text().await.unwrap();
    let name = format!("chatbox_model_breaker_state{{model=\"{model}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).expect("the gauge").to_owned()
}

// checklist 105
async fn readiness_tells_of_a_model_that_is_down_and_stays(via: Via) {
    let down = Provider::start(Script::status(401, "application/json", "{}")).await;
    let other = Provider::start(Script::status(503, "text/plain", "")).await;
    let server = server(&[("a", &down), ("b", &other)], |config| {
        (config.llm.retries, config.llm.breaker_failures) = (0, 2);
    })
    .await;
    let models = |a: &str, b: &str| json!([{"id": "a", "state": a}, {"id": "b", "state": b}]);
    let (code, llm) = ready(&server).await;
    assert_eq!((code, &llm["status"], &llm["providers_count"]), (StatusCode::OK, &json!("ok"), &json!(2)));
    assert_eq!((&llm["models"], gauge(&server, "a").await.as_str()), (&models("usable", "usable"), "0"));
    assert_eq!((down.requests(), other.requests()), (0, 0), "nobody is asked for it");

    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    broken(&mut client.say("hello").await).await;
    other.script(Script::answer(["fine"]));
    assert_eq!(client.say("hello").await.reply().await.0, "fine");
    let (code, llm) = ready(&server).await;
    assert_eq!((code, &llm["status"]), (StatusCode::OK, &json!("degraded")), "other nodes are no better off");
    assert_eq!((&llm["models"], gauge(&server, "a").await.as_str()), (&models("left_alone", "usable"), "1"));
    assert_eq!(llm["reason"], "a model keeps failing");
    assert_eq!(server.metrics.model_fallbacks_total.with_label_values(&["a"]).get(), 2);
}

fn priced(config: &mut Config) {
    for model in config.llm.providers.values_mut() {
        (model.price_prompt, model.price_completion) = (Some(0.15), Some(0.6));
    }
}

async fn requests_are_counted_and_priced(via: Via) {
    let breaking = Provider::start(Script::answer(["half"]).cut_after(1)).await;
    let other = Provider::start(Script::answer(["rest"]).usage(1000, 100)).await;
    let server = server(&[("a", &breaking), ("b", &other)], priced).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_text, last) = client.say("12345678").await.reply().await;
    // Of the first: 8 and 4 bytes at four bytes a token, and four tokens around the message.
    assert_eq!(last["usage"], json!({"prompt_tokens": 1006, "completion_tokens": 101, "estimated": true}));
    let cost = |model: &str| server.metrics.model_cost_millionths_total.with_label_values(&[model]).get();
    assert_eq!((cost("a"), cost("b")), (2, 210), "1000 × 0.15 + 100 × 0.6");
    let days = Api::new(&server, "ann").get("/usage").await.body["days"].clone();
    let row = |nth: usize| {
        let row = &days[nth];
        let tokens = (row["prompt_tokens"].clone(), row["completion_tokens"].clone(), row["estimated_tokens"].clone());
        (row["model_id"].clone(), row["requests"].clone(), tokens, row["cost_millionths"].clone())
    };
    assert_eq!(row(0), (json!("a"), json!(1), (json!(6), json!(1), json!(7)), json!(2)), "{days}");
    assert_eq!(row(1), (json!("b"), json!(1), (json!(1000), json!(100), json!(0)), json!(210)), "{days}");
    let times = |model: &str| {
        let first = server.metrics.model_first_text_seconds.with_label_values(&[model]).get_sample_count();
        (first, server.metrics.model_request_duration_seconds.with_label_values(&[model]).get_sample_count())
    };
    assert_eq!((times("a"), times("b")), ((1, 1), (1, 1)));
}

async fn what_was_stopped_is_charged_by_our_own_count(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["12345678", "never"]).gated(&gate)).await;
    let server = server(&[("a", &provider)], priced).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(1);
    exchange.until("ai_response").await;
    watch.send(json!({"type": "stop", "id": crate::harness::id(), "turn_id": turn})).await;
    let (_text, last) = exchange.reply_from("12345678".to_owned()).await;
    assert_eq!(last["usage"], json!({"prompt_tokens": 6, "completion_tokens": 2, "estimated": true}));
    assert_eq!((&last["state"], came(&server, "a", "dropped")), (&json!("stopped"), 1));
}
