//! A panic is contained where it happens, counted, told to whoever asked, and nothing that was stored is lost.
//!
//! They come from a bus that an embedder brought and that panics once, in each of the places where the server calls it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chatbox::{
    bus::{Bus, Local, Published, Subscription, Topic},
    chat::{Event, word::Word},
    metrics::Metrics,
};
use serde_json::{Value, json};

use super::settles;
use crate::harness::{
    Client, Server, Via, id, openai, over_both,
    provider::{Provider, Script},
};

over_both! {
    panic_in_a_request_is_its_one_error,
    panic_behind_a_stored_message_loses_neither_it_nor_its_answer,
    panic_in_a_turn_ends_it_as_failed,
    panic_beside_a_turn_leaves_it_to_the_sweep,
    panic_when_a_watch_begins_is_its_one_error,
}

/// Panics the next time it is used in the way that is planted.
#[derive(Debug)]
struct Mined {
    inner: Local,
    mine: Arc<Mine>,
}

type Mine = Mutex<Option<&'static str>>;

impl Mined {
    fn step_on(&self, place: &str) {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        if mine.take_if(|planted| *planted == place).is_some() {
            panic!("planted at {place}");
        }
    }
}

#[async_trait]
impl Bus for Mined {
    async fn publish(&self, topic: &Topic, event: Arc<Published>) {
        self.step_on(match **event {
            Event::Appended { .. } => "appended",
            Event::Loading { .. } => "loading",
            Event::Piece { .. } => "piece",
            Event::Ended { .. } => "ended",
            Event::Typing { .. } => "typing",
            Event::Session { .. } => "session",
        });
        self.inner.publish(topic, event).await;
    }

    fn tell(&self, topic: &Topic, word: Arc<Word>) {
        self.inner.tell(topic, word);
    }

    async fn subscribe(&self, topic: Topic) -> Subscription {
        self.step_on("subscribe");
        self.inner.subscribe(topic).await
    }

    fn topics(&self) -> Vec<Topic> {
        self.step_on("topics");
        self.inner.topics()
    }

    fn compare(&self, topic: &Topic, rev: u64) {
        self.inner.compare(topic, rev);
    }
}

struct Rig {
    server: Server,
    mine: Arc<Mine>,
    _provider: Provider,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let provider = Provider::start(Script::answer(["one ", "two"])).await;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Server::config(dir.path());
        config.sessions.compare_interval = Duration::from_millis(50);
        // Short, as the sweep is waited for; and turns keep it on a machine that stands still for two seconds.
        config.sessions.turn_lease = Duration::from_secs(3);
        openai(&mut config, &provider);
        let mine = Arc::<Mine>::default();
        let planted = Arc::clone(&mine);
        let bus =
            |metrics: Arc<Metrics>| -> Arc<dyn Bus> { Arc::new(Mined { inner: Local::new(metrics), mine: planted }) };
        Self { server: Server::run_with_bus(config, bus).await, mine, _provider: provider, _dir: dir }
    }

    fn plant(&self, place: &'static str) {
        *self.mine.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    fn panics(&self) -> u64 {
        self.server.metrics.panics_total.get()
    }

    /// Waits until the mine has gone off and was counted.
    async fn gone_off(&self) {
        settles("panics", || self.panics(), |panics| *panics > 0).await;
    }

    /// The connection answers, and turns run to their end.
    async fn goes_on(&self, client: &mut Client) {
        let ping = json!({"type": "ping", "id": id()});
        assert_eq!(client.exchange(ping).await.until("pong").await["type"], "pong");
        assert_eq!(client.say("are you there").await.reply().await.1["state"], "complete");
        assert_eq!(self.panics(), 1);
        settles("turns", || self.server.metrics.turns_running.get(), |running| *running == 0).await;
    }
}

fn service_error(answer: &Value, request: &Value) {
    assert_eq!((&answer["type"], &answer["re"]), (&json!("error"), &request["id"]), "{answer}");
    let error = &answer["error"];
    assert_eq!((&error["code"], &error["recoverable"]), (&json!("SERVICE_ERROR"), &json!(true)));
    // checklist 34: nothing of the cause
    assert!(!error["message"].as_str().unwrap().contains("planted"), "{error}");
}

/// checklist 43, 45
async fn panic_in_a_request_is_its_one_error(via: Via) {
    let rig = Rig::start().await;
    let (mut client, mut watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let typing = json!({"type": "typing_indicator", "id": id(), "metadata": {"state": "start"}});
    rig.plant("typing");
    let mut exchange = client.exchange(typing.clone()).await;
    service_error(&exchange.next().await.unwrap(), &typing);
    if via == Via::WebTransport {
        assert_eq!(exchange.next().await, None, "exactly one");
    }
    rig.goes_on(&mut client).await;
    assert_eq!(watch.next().await.unwrap()["type"], "session_update", "and none on the watch");
}

/// checklist 43, 69: told as failed, it may be sent again with its id; meanwhile the sweep has it answered.
async fn panic_behind_a_stored_message_loses_neither_it_nor_its_answer(via: Via) {
    let rig = Rig::start().await;
    let (mut client, mut watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "hello"});
    rig.plant("appended");
    service_error(&client.exchange(message.clone()).await.next().await.unwrap(), &message);
    assert_eq!(rig.panics(), 1);
    let again = client.exchange(message).await.until("accepted").await;
    assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &json!(1)));
    let (_text, last) = loop {
        let reply = watch.reply().await;
        if reply.1["state"] == "complete" {
            break reply;
        }
    };
    assert_eq!(last["reply_to"], 1);
}

/// checklist 43, 69
async fn panic_in_a_turn_ends_it_as_failed(via: Via) {
    let rig = Rig::start().await;
    let (mut client, _watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    rig.plant("piece");
    let mut exchange = client.say("hello").await;
    assert_eq!(exchange.until("ai_response").await["content"], "one ", "what the model had said by then");
    let error = exchange.next().await.unwrap();
    assert_eq!(error["error"]["code"], "SERVICE_ERROR", "{error}");
    let (text, last) = exchange.reply_from("one ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("one ", &json!("failed")));
    rig.goes_on(&mut client).await;
}

/// checklist 43: the runner itself. Its lease runs out, and the message is asked again.
async fn panic_beside_a_turn_leaves_it_to_the_sweep(via: Via) {
    for place in ["loading", "ended", "topics"] {
        let rig = Rig::start().await;
        let (mut client, mut watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
        rig.plant(place);
        let mut exchange = client.say("hello").await;
        exchange.until("accepted").await;
        rig.gone_off().await;
        let (_text, mut last) = exchange.reply().await;
        if last["state"] == "interrupted" {
            last = watch.reply().await.1;
        }
        assert_eq!((&last["state"], &last["reply_to"]), (&json!("complete"), &json!(1)), "{place}");
        rig.goes_on(&mut client).await;
    }
}

/// checklist 43, 45
async fn panic_when_a_watch_begins_is_its_one_error(via: Via) {
    let rig = Rig::start().await;
    let (mut client, _watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let attach = json!({"type": "attach", "id": id(), "scope": "user"});
    rig.plant("subscribe");
    service_error(&client.exchange(attach.clone()).await.next().await.unwrap(), &attach);
    let again = json!({"type": "attach", "id": id(), "scope": "user"});
    assert_eq!(client.exchange(again).await.until("connection_status").await["user_id"], "ann");
    rig.goes_on(&mut client).await;
}
