//! The end of a server, wanted or not: running turns finish, or end honestly; nothing acknowledged is lost.

use std::time::Duration;

use chatbox::{
    config::secret::Secret,
    llm::{Kind, ProviderConfig},
};
use serde_json::json;

use crate::harness::{
    Client, Server, Via,
    client::http,
    id, openai, over_both, ports, process,
    provider::{Gate, Provider, Script, dify},
};

over_both! {
    drain_lets_the_running_answer_finish,
    drain_deadline_interrupts_and_keeps_the_text,
    killed_server_keeps_what_it_acknowledged,
    drain_tells_dify_to_stop_before_the_server_is_gone,
    node_that_is_to_end_serves_until_load_balancers_have_noticed,
    clients_are_sent_back_at_moments_of_their_own,
}

// checklist 41
async fn drain_lets_the_running_answer_finish(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["to ", "the end"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    server.drain();
    let going = watch.until("going_away").await;
    assert!(going["retry_after"].as_u64().unwrap() < 5_000, "{going}");
    let mut refused = client.say("too late").await;
    assert_eq!(refused.next().await.unwrap()["error"]["code"], "GOING_AWAY");
    gate.open();
    let (text, last) = exchange.reply_from("to ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("to the end", &json!("complete")));
    assert_eq!(client.closed().await, 3);
    server.ended().await.expect("clean end");
}

async fn drain_deadline_interrupts_and_keeps_the_text(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["half ", "of it"]).gated(&gate)).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = Server::config(dir.path());
    config.drain.timeout = Duration::from_millis(100);
    openai(&mut config, &provider);
    let server = Server::run(config.clone()).await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    server.drain();
    let (text, last) = exchange.reply_from("half ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("half ", &json!("interrupted")));
    assert_eq!(client.closed().await, 3);
    server.ended().await.expect("clean end");

    let again = Server::run(config).await;
    let (_client, mut watch, _status) = Client::attached(&again, via, "ann", json!({"after_seq": 0})).await;
    assert_eq!(watch.next().await.unwrap()["content"], "hello");
    let reply = watch.next().await.unwrap();
    assert_eq!((&reply["content"], &reply["state"]), (&json!("half "), &json!("interrupted")));
}

// checklist 68, 69, W5
async fn killed_server_keeps_what_it_acknowledged(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["written ", "and ", "lost"]).gated(&gate)).await;
    let dir = tempfile::tempdir().unwrap();
    let server = process::Process::start(dir.path(), &provider).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut running = client.say("first").await;
    let turn = running.until("accepted").await["turn_id"].clone();
    gate.release(2);
    running.until("ai_response").await;
    running.until("ai_response").await;
    server.written(&turn, 12).await;
    let mut queued = client.say("second").await;
    assert_eq!(queued.until("accepted").await["seq"], 3);
    server.kill().await;
    drop((running, queued, client));

    gate.open();
    provider.script(Script::answer(["answered"]));
    let server = process::Process::start(dir.path(), &provider).await;
    let attach = json!({"session_id": status["session_id"], "after_seq": 0});
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", attach).await;
    let first = watch.until("user_message").await;
    assert_eq!((&first["seq"], &first["content"]), (&json!(1), &json!("first")));
    let (text, broken) = watch.reply().await;
    assert_eq!((text.as_str(), &broken["state"]), ("written and ", &json!("interrupted")));
    let second = watch.until("user_message").await;
    assert_eq!((&second["seq"], &second["content"]), (&json!(3), &json!("second")));
    let (text, last) = watch.reply().await;
    assert_eq!((text.as_str(), &last["reply_to"]), ("answered", &json!(3)), "queued turns go on");
    let mut again = client.exchange(json!({"type": "user_message", "id": id(), "content": "third"})).await;
    assert_eq!(again.until("accepted").await["seq"], 5, "every entry is there once");
}

async fn drain_tells_dify_to_stop_before_the_server_is_gone(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start_by(dify::stoppable(dify::answer(["half ", "of it"]).gated(&gate))).await;
    let server = Server::with(|config| {
        config.drain.timeout = Duration::from_millis(100);
        let mut application = ProviderConfig::new(Kind::Dify);
        application.endpoint = Some(provider.endpoint().parse().unwrap());
        application.api_key = Some(Secret::new("app-key"));
        config.llm.providers = [("scripted".to_owned(), application)].into_iter().collect();
        config.sessions.model_names = false;
    })
    .await;
    let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    server.drain();
    let (text, last) = exchange.reply_from("half ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("half ", &json!("interrupted")));
    server.ended().await.expect("clean end");
    assert_eq!(provider.requests(), 2, "the end waits for what Dify is told");
    let stop = provider.request(1).await;
    assert_eq!(stop.target, format!("POST /v1/chat-messages/{}/stop", dify::TASK));
    assert_eq!(stop.body, json!({ "user": "ann" }));
}

// checklist 113, 118
async fn node_that_is_to_end_serves_until_load_balancers_have_noticed(via: Via) {
    let server = Server::with(|config| config.drain.delay = Duration::from_secs(3600)).await;
    let url = format!("http://{}/readyz", server.ops);
    let ready = async || http().get(&url).send().await.expect("an answer").status().as_u16();
    assert_eq!(ready().await, 200);
    server.leave();
    assert_eq!(ready().await, 503, "nobody new is to be sent here");
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_text, last) = client.say("count to 3").await.reply().await;
    assert_eq!(last["state"], "complete", "whoever comes is served");
    server.drain();
    watch.until("going_away").await;
    assert_eq!(client.closed().await, 3);
    let target = server.target();
    server.ended().await.expect("clean end");
    ports::deserted(target.url.socket_addrs(|| None).unwrap()[0]).await;
}

async fn clients_are_sent_back_at_moments_of_their_own(via: Via) {
    let server = Server::with(|config| config.drain.spread = Duration::from_secs(2)).await;
    let mut clients = Vec::new();
    for nth in 0..24 {
        clients.push(Client::attached(&server, via, &format!("user-{nth}"), json!({})).await);
    }
    server.drain();
    let mut moments = std::collections::BTreeSet::new();
    for (_client, watch, _status) in &mut clients {
        let moment = watch.until("going_away").await["retry_after"].as_u64().unwrap();
        assert!(moment < 2_000, "{moment}");
        moments.insert(moment);
    }
    assert!(moments.len() > 18, "of 24 clients: {moments:?}");
    assert!(moments.first() < Some(&1_000) && moments.last() > Some(&1_000), "{moments:?}");
}
