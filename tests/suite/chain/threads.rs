//! Providers that keep conversations themselves: when they are given their name for one, and when they begin anew.

use chatbox::{
    config::secret::Secret,
    llm::{Kind, ProviderConfig},
};
use serde_json::json;

use super::chain;
use crate::harness::{
    Client, Server, Via, id, over_both,
    provider::{
        Provider, Script,
        dify::{self, CONVERSATION},
    },
};

over_both!(
    thread_is_given_back_where_it_holds_what_came_before,
    thread_of_a_broken_answer_is_not_given_back,
    users_are_told_apart
);

/// A question in the conversation that the provider holds.
fn kept(query: &str) -> (String, String) {
    (query.to_owned(), CONVERSATION.to_owned())
}

/// `d` keeps conversations, `o` does not and answers in its place.
async fn server(keeps: &Provider, other: &Provider) -> Server {
    Server::with(|config| {
        chain(config, &[("o", &other.endpoint())]);
        let mut model = ProviderConfig::new(Kind::Dify);
        model.endpoint = Some(keeps.endpoint().parse().expect("endpoint"));
        model.api_key = Some(Secret::new("app-secret"));
        model.fallback = vec!["o".to_owned()];
        config.llm.providers.insert("d".to_owned(), model);
        config.llm.default = Some("d".to_owned());
    })
    .await
}

/// What it was asked, and with which conversation.
async fn asked(provider: &Provider, nth: usize) -> (String, String) {
    let body = provider.request(nth).await.body;
    let text = |key: &str| body[key].as_str().expect("a text").to_owned();
    (text("query"), text("conversation_id"))
}

async fn thread_is_given_back_where_it_holds_what_came_before(via: Via) {
    let keeps = Provider::start(dify::answer(["yes"])).await;
    let other = Provider::start(Script::answer(["no"])).await;
    let server = server(&keeps, &other).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let select = |model: &str| json!({"type": "model_select", "id": id(), "model_id": model});
    client.say("one").await.reply().await;
    client.say("two").await.reply().await;
    assert_eq!(asked(&keeps, 0).await, ("one".to_owned(), String::new()));
    assert_eq!(asked(&keeps, 1).await, kept("two"));

    client.exchange(select("o")).await.until("connection_status").await;
    client.say("three").await.reply().await;
    client.exchange(select("d")).await.until("connection_status").await;
    client.say("four").await.reply().await;
    let (query, thread) = asked(&keeps, 2).await;
    assert_eq!(thread, "", "it has not heard the third one");
    assert!(query.contains("three") && query.contains("Assistant: no") && query.ends_with("four"), "{query}");
    let (_text, last) = client.say("five").await.reply().await;
    assert_eq!(asked(&keeps, 3).await, kept("five"));

    let again = json!({"type": "regenerate", "id": id(), "turn_id": last["turn_id"]});
    client.exchange(again).await.reply().await;
    let (query, thread) = asked(&keeps, 4).await;
    assert_eq!(thread, "", "it holds an answer already");
    assert!(query.ends_with("five"), "{query}");
    client.say("six").await.reply().await;
    assert_eq!(asked(&keeps, 5).await, kept("six"), "the newest reply is the one that it knows");
}

async fn thread_of_a_broken_answer_is_not_given_back(via: Via) {
    let keeps = Provider::start_by(dify::stoppable(dify::answer(["half", "never"]).cut_after(1))).await;
    let other = Provider::start(Script::answer(["rest"])).await;
    let server = server(&keeps, &other).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (text, last) = client.say("one").await.reply().await;
    assert_eq!((text.as_str(), &last["model_id"]), ("half\n\n---\n\nrest", &json!("o")));
    // The second request stops the first one's answer.
    keeps.request(1).await;
    keeps.script(dify::answer(["whole"]));
    client.say("two").await.reply().await;
    let (query, thread) = asked(&keeps, 2).await;
    assert_eq!(thread, "", "it knows half of the answer");
    assert!(query.contains("half") && query.contains("rest") && query.ends_with("two"), "{query}");
}

// checklist W37
async fn users_are_told_apart(via: Via) {
    let keeps = Provider::start(dify::answer(["yes"])).await;
    let other = Provider::start(Script::answer(["no"])).await;
    let server = server(&keeps, &other).await;
    for (nth, user) in ["ann", "bob"].into_iter().enumerate() {
        let (mut client, _watch, _status) = Client::attached(&server, via, user, json!({})).await;
        client.say("hello").await.reply().await;
        assert_eq!(keeps.request(nth).await.body["user"], user);
        assert_eq!(asked(&keeps, nth).await.1, "", "each has a conversation of their own");
    }
}
