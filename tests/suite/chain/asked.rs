//! What models are sent of a conversation, and which one is asked.

use chatbox::config::Config;
use serde_json::{Value, json};

use super::{chain, server};
use crate::harness::{
    Client, Server, Via, id, over_both,
    provider::{Provider, Request, Script},
};

over_both! {
    thirty_turns_are_told_whole_across_a_restart_and_another_model,
    long_conversation_loses_whole_oldest_exchanges,
    each_model_has_its_system_prompt,
    models_are_listed_in_order_with_what_they_can,
}

/// Says which turn it is, and answers so that each reply is another one.
fn numbered(request: &Request) -> Script {
    let asked = request.messages().iter().filter(|(role, _)| *role == "user").count();
    Script::answer([&*format!("answer {asked} "), "<b>&\"\n"])
}

// checklist W31
async fn thirty_turns_are_told_whole_across_a_restart_and_another_model(via: Via) {
    let (one, two) = (Provider::start_by(numbered).await, Provider::start_by(numbered).await);
    let dir = tempfile::tempdir().unwrap();
    let configured = || -> Config {
        let mut config = Server::config(dir.path());
        chain(&mut config, &[("a", &one.endpoint()), ("b", &two.endpoint())]);
        config
    };
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut server = Server::run(configured()).await;
    let (mut client, mut _watch, mut status) = Client::attached(&server, via, "ann", json!({})).await;
    let session = status["session_id"].clone();
    let mut seen = (0, 0);
    for turn in 1..=30 {
        if turn == 11 {
            drop((client, _watch));
            server.stop();
            server.ended().await.expect("clean end");
            server = Server::run(configured()).await;
            (client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
            assert_eq!(status["session_id"], session);
        }
        if turn == 21 {
            let select = json!({"type": "model_select", "id": id(), "model_id": "b"});
            assert_eq!(client.exchange(select).await.until("connection_status").await["model_id"], "b");
        }
        let message = format!("message {turn} ü\n");
        expected.push(("user".to_owned(), message.clone()));
        let (text, last) = client.say(&message).await.reply().await;
        let (provider, nth, model) = if turn <= 20 { (&one, &mut seen.0, "a") } else { (&two, &mut seen.1, "b") };
        let request = provider.request(*nth).await;
        *nth += 1;
        let told: Vec<_> = expected.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect();
        assert_eq!(request.messages(), told, "turn {turn}");
        assert_eq!((text.as_str(), &last["model_id"]), (&*format!("answer {turn} <b>&\"\n"), &json!(model)));
        expected.push(("assistant".to_owned(), text));
    }
    assert_eq!((one.requests(), two.requests()), (20, 10));
}

async fn long_conversation_loses_whole_oldest_exchanges(via: Via) {
    let provider = Provider::start(Script::answer(["x".repeat(400).as_str()])).await;
    let server = server(&[("a", &provider)], |config| {
        config.llm.providers["a"].context_tokens = Some(800);
        config.llm.system_prompt = Some("Be brief.".to_owned());
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    for turn in 0..5 {
        client.say(&format!("{turn}").repeat(400)).await.reply().await;
    }
    let request = provider.request(4).await;
    let told: Vec<_> = request.messages().iter().map(|(role, text)| format!("{role} {}", &text[..1])).collect();
    // 600 tokens are the prompt's; an exchange takes 208, the last message 104, the system prompt 3.
    assert_eq!(told, ["system B", "user 2", "assistant x", "user 3", "assistant x", "user 4"]);
}

async fn each_model_has_its_system_prompt(via: Via) {
    let refusing = Provider::start(Script::status(400, "application/json", "{}")).await;
    let other = Provider::start(Script::answer(["ok"])).await;
    let server = server(&[("a", &refusing), ("b", &other)], |config| {
        config.llm.system_prompt = Some("You are everybody.".to_owned());
        config.llm.providers["b"].system_prompt = Some("You are b.".to_owned());
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    client.say("Who are you?").await.reply().await;
    assert_eq!(refusing.request(0).await.messages()[0], ("system", "You are everybody."));
    assert_eq!(other.request(0).await.messages(), [("system", "You are b."), ("user", "Who are you?")]);
}

// checklist W34
async fn models_are_listed_in_order_with_what_they_can(via: Via) {
    let provider = Provider::start(Script::answer(["ok"])).await;
    let server = server(&[("z", &provider), ("a", &provider), ("m", &provider)], |config| {
        config.llm.default = Some("m".to_owned());
        config.llm.providers["a"].label = Some("Model A".to_owned());
        config.llm.providers["a"].images = true;
    })
    .await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let listed =
        json!([{"id": "z", "name": "z"}, {"id": "a", "name": "Model A", "images": true}, {"id": "m", "name": "m"}]);
    assert_eq!((&status["models"], &status["model_id"]), (&listed, &json!("m")));
    let refused = client.exchange(json!({"type": "model_select", "id": id(), "model_id": "gpt-4"})).await.next().await;
    let refused: Value = refused.unwrap();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("`gpt-4`") && message.contains("`z`, `a`, `m`"), "{message}");
    assert_eq!(client.say("hello").await.reply().await.1["model_id"], "m");
    let (mut other, _watch, theirs) = Client::attached(&server, via, "bob", json!({})).await;
    let select = json!({"type": "model_select", "id": id(), "model_id": "z"});
    assert_eq!(client.exchange(select).await.until("connection_status").await["model_id"], "z");
    assert_eq!(
        (&theirs["model_id"], &client.say("hello").await.reply().await.1["model_id"]),
        (&json!("m"), &json!("z"))
    );
    assert_eq!(other.say("hello").await.reply().await.1["model_id"], "m", "the choice is its session's");
}
