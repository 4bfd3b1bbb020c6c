//! Answers that break off after text, and what the next model makes of them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{broken, came, server};
use crate::harness::{
    Client, Via,
    api::Api,
    over_both,
    provider::{Gate, Provider, Script},
};

over_both! {
    next_model_goes_on_below_a_mark,
    broken_answer_is_resumed_in_its_second_part,
    open_code_block_is_closed_before_the_mark,
    third_model_goes_on_when_the_second_breaks_off_too,
    answer_is_interrupted_where_nobody_goes_on,
    answer_is_interrupted_when_nobody_is_left,
    stalled_answer_ends_at_its_deadline,
    truncated_answer_is_never_complete,
}

fn segments(parts: &[(usize, &str)]) -> Value {
    parts.iter().map(|(offset, model)| json!({"offset": offset, "model_id": model})).collect()
}

// checklist 99, W33
async fn next_model_goes_on_below_a_mark(via: Via) {
    let breaking = Provider::start(Script::answer(["First ", "half"]).cut_after(2)).await;
    let other = Provider::start(Script::answer([", second ", "half."]).usage(40, 3)).await;
    let server = server(&[("a", &breaking), ("b", &other)], |_config| {}).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_device, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("Tell me.").await;
    let (mut writers, mut text) = (Vec::new(), String::new());
    let last = loop {
        let frame = exchange.until("ai_response").await;
        if frame["metadata"]["done"] == "true" {
            break frame;
        }
        assert_eq!(frame["offset"], text.len());
        text.push_str(frame["content"].as_str().unwrap());
        writers.push((frame["content"].as_str().unwrap().to_owned(), frame["model_id"].as_str().unwrap().to_owned()));
    };
    assert_eq!(text, "First half\n\n---\n\n, second half.");
    let wrote = |text: &str, model: &str| (text.to_owned(), model.to_owned());
    let expected = [
        wrote("First ", "a"),
        wrote("half", "a"),
        wrote("\n\n---\n\n", "a"),
        wrote(", second ", "b"),
        wrote("half.", "b"),
    ];
    assert_eq!(writers, expected);
    assert_eq!((&last["state"], &last["model_id"]), (&json!("complete"), &json!("b")));
    assert_eq!(last["sha256"], crate::harness::client::sha256(&text));
    assert_eq!(last["segments"], segments(&[(0, "a"), (17, "b")]));
    let (there, end) = seen.reply().await;
    assert_eq!((&there, &end["segments"], &end["sha256"]), (&text, &last["segments"], &last["sha256"]));

    assert_eq!((breaking.requests(), other.requests()), (1, 1), "what may be billed is not asked again");
    let request = other.request(0).await;
    let told = request.messages();
    assert_eq!(told[..2], [("user", "Tell me."), ("assistant", "First half")]);
    assert!(told[2].0 == "user" && told[2].1.contains("exactly where it stopped"), "{told:?}");
    assert_eq!((came(&server, "a", "broken"), came(&server, "b", "complete")), (1, 1));

    other.script(Script::answer(["ok"]));
    breaking.script(Script::answer(["ok"]));
    client.say("Go on.").await.reply().await;
    let request = breaking.request(1).await;
    assert_eq!(request.messages()[..2], [("user", "Tell me."), ("assistant", &*text)]);
    let session = status["session_id"].as_str().unwrap();
    let log = Api::new(&server, "ann").get(&format!("/sessions/{session}?after_seq=1")).await.body;
    assert_eq!(log["entries"][0]["segments"], last["segments"], "{log}");
    assert_eq!(log["entries"][2].get("segments"), None, "one model alone wrote it: {log}");
}

async fn broken_answer_is_resumed_in_its_second_part(via: Via) {
    let gate = Gate::new();
    let breaking = Provider::start(Script::answer(["one"]).cut_after(1)).await;
    let other = Provider::start(Script::answer(["zwei ü", "drei"]).gated(&gate)).await;
    let server = server(&[("a", &breaking), ("b", &other)], |_config| {}).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(1);
    while exchange.until("ai_response").await["content"] != "zwei ü" {}
    let whole = "one\n\n---\n\nzwei üdrei";
    let (_second, mut seen, _status) = Client::attached(&server, via, "ann", json!({"after_seq": 0})).await;
    let mut pieces = Vec::new();
    for _ in 0..2 {
        let piece = seen.until("ai_response").await;
        pieces.push((piece["offset"].clone(), piece["content"].clone(), piece["model_id"].clone()));
    }
    let expected = [(json!(0), json!("one\n\n---\n\n"), json!("a")), (json!(10), json!("zwei ü"), json!("b"))];
    assert_eq!(pieces, expected, "who comes in the middle gets the parts with their writers");
    let held = whole.find("ei ü").unwrap();
    let attach = json!({"session_id": status["session_id"], "turn_id": turn, "offset": held});
    let (_third, mut resumed, _status) = Client::attached(&server, via, "ann", attach).await;
    gate.open();
    for (lines, held) in [(&mut resumed, held), (&mut seen, 17)] {
        let (text, last) = lines.reply_from(whole[..held].to_owned()).await;
        assert_eq!((text.as_str(), &last["segments"]), (whole, &segments(&[(0, "a"), (10, "b")])));
    }
    assert_eq!(exchange.reply_from(whole[..17].to_owned()).await.0, whole);
}

async fn open_code_block_is_closed_before_the_mark(via: Via) {
    let breaking = Provider::start(Script::answer(["Code:\n```rust\nfn main() {"]).cut_after(1)).await;
    let other = Provider::start(Script::answer(["```rust\n}\n```"])).await;
    let server = server(&[("a", &breaking), ("b", &other)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("hello").await.reply().await;
    assert_eq!(text, "Code:\n```rust\nfn main() {\n```\n\n---\n\n```rust\n}\n```");
    assert_eq!(last["html"].as_str().unwrap().matches("<hr>").count(), 1, "{last}");
    let request = other.request(0).await;
    let told = request.messages();
    assert_eq!(told[1], ("assistant", "Code:\n```rust\nfn main() {\n```"));
    assert!(told[2].1.contains("open it again"), "{told:?}");
}

async fn third_model_goes_on_when_the_second_breaks_off_too(via: Via) {
    let first = Provider::start(Script::answer(["one "]).cut_after(1)).await;
    let second = Provider::start(Script::answer(["two "]).end_after(1)).await;
    let third = Provider::start(Script::answer(["three"]).usage(9, 1)).await;
    let server = server(&[("a", &first), ("b", &second), ("c", &third)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("hello").await.reply().await;
    assert_eq!(text, "one \n\n---\n\ntwo \n\n---\n\nthree");
    assert_eq!(last["segments"], segments(&[(0, "a"), (11, "b"), (22, "c")]));
    assert_eq!(third.request(0).await.messages()[1], ("assistant", "one two "), "without the marks");
    assert_eq!(last["usage"]["estimated"], true, "two of the three reported nothing");
    assert!(
        last["usage"]["prompt_tokens"].as_u64().unwrap() > 9
            && last["usage"]["completion_tokens"].as_u64().unwrap() >= 3
    );
}

// checklist 99, W33
async fn answer_is_interrupted_where_nobody_goes_on(via: Via) {
    let breaking = Provider::start(Script::answer(["half ", "of it"]).end_after(1)).await;
    let other = Provider::start(Script::answer(["never"])).await;
    let server = server(&[("a", &breaking), ("b", &other)], |config| {
        config.llm.after_text = chatbox::llm::config::AfterText::Interrupt;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_device, mut seen, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (code, text, last) = broken(&mut client.say("hello").await).await;
    assert_eq!((&code, text.as_str(), &last["state"]), (&json!("LLM_UNAVAILABLE"), "half ", &json!("interrupted")));
    assert_eq!((other.requests(), last.get("segments")), (0, None));
    let (text, end) = seen.reply().await;
    assert_eq!((text.as_str(), &end["state"]), ("half ", &json!("interrupted")));
}

async fn answer_is_interrupted_when_nobody_is_left(via: Via) {
    let breaking = Provider::start(Script::answer(["half ", "of it"]).cut_after(1)).await;
    let other = Provider::start(Script::gone()).await;
    let server = server(&[("a", &breaking), ("b", &other)], |_config| {}).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (code, text, last) = broken(&mut client.say("hello").await).await;
    assert_eq!((&code, text.as_str()), (&json!("LLM_UNAVAILABLE"), "half "), "no mark without what goes on");
    assert_eq!((&last["state"], &last["model_id"], other.requests()), (&json!("interrupted"), &json!("a"), 1));
    assert_eq!(last["usage"]["estimated"], true, "what failed after text was asked for, too");
}

/// Within it a text comes, on any machine.
const TIMEOUT: Duration = Duration::from_secs(2);

// checklist 100, 101
async fn stalled_answer_ends_at_its_deadline(via: Via) {
    let provider = Provider::start(Script::answer(["half ", "of it"]).stall_after(1)).await;
    let server = server(&[("a", &provider)], |config| config.llm.timeout = TIMEOUT).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let asked = std::time::Instant::now();
    let (code, text, last) = broken(&mut client.say("hello").await).await;
    assert_eq!((&code, text.as_str(), &last["state"]), (&json!("LLM_TIMEOUT"), "half ", &json!("interrupted")));
    assert!(asked.elapsed() >= TIMEOUT, "{:?}", asked.elapsed());
    provider.hung_up(1).await;
}

// checklist 99, W33
async fn truncated_answer_is_never_complete(via: Via) {
    let whole = Script::answer(["one ", "two"]);
    let length = whole.bytes().len();
    let provider = Provider::start(whole.clone()).await;
    let server = server(&[("a", &provider)], |config| config.llm.breaker_failures = u32::MAX).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    // Behind the last text the finish reason begins, and only its whole event makes the answer complete.
    for count in (0..length).step_by(97) {
        provider.script(whole.first_bytes(count, count % 2 == 0));
        let mut exchange = client.say("hello").await;
        let last = loop {
            let frame = exchange.until("ai_response").await;
            if frame["metadata"]["done"] == "true" {
                break frame;
            }
        };
        let finished = whole.bytes()[..count].windows(9).any(|word| word == b"\"stop\"}],")
            && whole.bytes()[..count].ends_with(b"\n\n");
        assert_eq!(last["state"] == "complete", finished, "cut behind byte {count} of {length}: {last}");
    }
}
