//! Several nodes over one store and one bus: any of them serves any client, whichever runs the turn.
//!
//! These are servers in this process that share an SQLite store and an in-process bus; a long lease keeps the sweeps of
//! one from the turns of another. What leases do among nodes is tested over MongoDB and NATS ([`owners`]).

mod limits; // limits, as clients of several nodes meet them
mod owners; // leases among nodes over MongoDB and NATS

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    bus::{Bus, Local},
    config::Config,
    metrics::Metrics,
    server::Shared,
    store,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::Api,
    client::Lines,
    eventually, id, openai, over_both,
    provider::{Gate, Provider, Request, Script},
    stopwatch::Stopwatch,
};

const MOMENT: Duration = Duration::from_millis(150);

/// What a node may take to end a turn before another one ends it, and what else a stop may take.
const OWNER_DEADLINE: Duration = Duration::from_millis(300);
const SLACK: Duration = Duration::from_secs(3);

over_both! {
    viewer_elsewhere_reads_on_from_the_middle_byte_by_byte,
    resume_elsewhere_goes_on_at_the_byte,
    many_viewers_elsewhere_read_the_log_together,
    stop_from_elsewhere_is_the_owners_end,
    stop_of_a_node_that_does_not_answer_ends_the_turn_without_it,
    session_that_ends_elsewhere_stops_its_turn,
    model_is_told_what_was_said_on_every_node,
    message_that_waits_on_one_node_is_answered_on_another,
}

/// Nodes over one store.
pub(crate) struct Nodes {
    pub(crate) servers: Vec<Server>,
    /// what the last of them hears
    pub(crate) bus: Arc<dyn Bus>,
    _dir: tempfile::TempDir,
}

impl Nodes {
    /// Starts so many that hear each other.
    pub(crate) async fn start(count: usize, change: impl Fn(&mut Config)) -> Self {
        let bus: Arc<dyn Bus> = Arc::new(Local::new(Metrics::new()));
        Self::over(count, change, || Arc::clone(&bus)).await
    }

    /// Starts so many that do not.
    async fn deaf(count: usize, change: impl Fn(&mut Config)) -> Self {
        Self::over(count, change, || Arc::new(Local::new(Metrics::new()))).await
    }

    async fn over(count: usize, change: impl Fn(&mut Config), bus: impl Fn() -> Arc<dyn Bus>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Server::config(dir.path());
        change(&mut config);
        let store = store::open(&config.store, &config.data_dir, Metrics::new()).await.expect("store");
        let (mut servers, mut last) = (Vec::new(), bus());
        for _ in 0..count {
            last = bus();
            let shared = Shared { store: Arc::clone(&store), bus: Arc::clone(&last) };
            servers.push(Server::run_over(config.clone(), shared).await);
        }
        Self { servers, bus: last, _dir: dir }
    }

    async fn hear_each_other(&self) {
        hear_each_other(&self.servers).await;
    }
}

/// Waits until each has heard of all others.
async fn hear_each_other<'a>(servers: impl IntoIterator<Item = &'a Server>) {
    let servers: Vec<_> = servers.into_iter().collect();
    let others = i64::try_from(servers.len() - 1).unwrap();
    let heard = async || servers.iter().all(|server| server.metrics.cluster_nodes.get() >= others);
    eventually("every node is heard", heard).await;
}

/// A reply in pieces whose characters take one to four bytes.
const PIECES: [&str; 6] = ["plain ", "ü", "日本", " 🦀🦀 ", "ende", " über"];

async fn running(via: Via, gate: &Gate, nodes: &Nodes, shown: usize) -> (Client, Lines, String) {
    let (mut client, _watch, _status) = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    gate.release(shown);
    let mut text = String::new();
    for _ in 0..shown {
        let piece = exchange.until("ai_response").await;
        assert_eq!(piece["offset"], text.len());
        text.push_str(piece["content"].as_str().unwrap());
    }
    (client, exchange, text)
}

async fn scripted(count: usize) -> (Gate, Provider, Nodes) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(PIECES).gated(&gate)).await;
    let nodes = Nodes::start(count, |config| openai(config, &provider)).await;
    (gate, provider, nodes)
}

/// Reads text on from what is held, until so much of it has come.
async fn text_of(lines: &mut Lines, held: &mut String, bytes: usize) {
    while held.len() < bytes {
        let piece = lines.until("ai_response").await;
        assert_eq!(piece["offset"], held.len(), "a hole or an overlap: {piece}");
        held.push_str(piece["content"].as_str().unwrap());
    }
}

/// The end of a reply, whatever comes before it.
async fn last_of(lines: &mut Lines) -> Value {
    loop {
        let frame = lines.until("ai_response").await;
        if frame["metadata"]["done"] == "true" {
            return frame;
        }
    }
}

/// checklist 67
async fn viewer_elsewhere_reads_on_from_the_middle_byte_by_byte(via: Via) {
    let (gate, _provider, nodes) = scripted(2).await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 3).await;
    let (_desk, mut watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({"after_seq": 0})).await;
    assert_eq!(watch.until("user_message").await["content"], "hello");
    assert_eq!(watch.until("loading").await["seq"], 2);
    // No piece follows that would show a hole: what the log lacks at first comes with its next write.
    let mut text = String::new();
    text_of(&mut watch, &mut text, shown.len()).await;
    assert_eq!(text, shown);
    gate.release(1);
    text_of(&mut watch, &mut text, PIECES[..4].concat().len()).await;
    gate.open();
    let (there, last) = watch.reply_from(text).await;
    let (here, end) = exchange.reply_from(shown).await;
    assert_eq!((there.as_str(), here.as_str()), (PIECES.concat().as_str(), PIECES.concat().as_str()));
    assert_eq!((&last["sha256"], &last["state"]), (&end["sha256"], &json!("complete")));
    assert_eq!(last["model_id"], "scripted");
    assert!(watch.silent(MOMENT).await, "nothing came twice");
}

/// checklist 67: also at an offset within a character, which is told from its beginning.
async fn resume_elsewhere_goes_on_at_the_byte(via: Via) {
    let (gate, _provider, nodes) = scripted(2).await;
    let (mut client, _watch, _status) = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(4);
    let mut shown = String::new();
    let whole = PIECES[..4].concat();
    text_of(&mut exchange, &mut shown, whole.len()).await;
    let resume = async |offset: usize| {
        let position = json!({"after_seq": 1, "turn_id": turn, "offset": offset});
        let (client, watch, status) = Client::attached(&nodes.servers[1], via, "ann", position).await;
        assert_eq!(status["recovered"], true, "at {offset}");
        let begin = (0..=offset).rev().find(|at| PIECES.concat().is_char_boundary(*at)).unwrap();
        (client, watch, PIECES.concat()[..begin].to_owned())
    };
    let mut resumed = Vec::new();
    for offset in [0, 6, 7, 8, 9, 14, 15, whole.len()] {
        let (client, mut watch, mut held) = resume(offset).await;
        text_of(&mut watch, &mut held, whole.len()).await;
        resumed.push((client, watch, held));
    }
    gate.open();
    for (_client, mut watch, held) in resumed {
        let (text, last) = watch.reply_from(held).await;
        assert_eq!((text, &last["state"]), (PIECES.concat(), &json!("complete")));
    }
    for offset in [0, 7, 9, PIECES.concat().len()] {
        let (_client, mut watch, held) = resume(offset).await;
        assert_eq!(watch.reply_from(held).await.0, PIECES.concat(), "the ended turn at {offset}");
    }
}

/// However many come at once, the log is read for all of them.
async fn many_viewers_elsewhere_read_the_log_together(via: Via) {
    const VIEWERS: usize = 40;
    let (gate, _provider, nodes) = scripted(2).await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 3).await;
    let attach = || async {
        let (client, mut watch, _status) =
            Client::attached(&nodes.servers[1], via, "ann", json!({"after_seq": 0})).await;
        let mut text = String::new();
        text_of(&mut watch, &mut text, shown.len()).await;
        (client, watch, text)
    };
    let viewers = futures_util::future::join_all((0..VIEWERS).map(|_| attach())).await;
    let reads = nodes.servers[1].metrics.turn_log_reads_total.get();
    gate.open();
    for (_client, mut watch, text) in viewers {
        assert_eq!(watch.reply_from(text).await.0, PIECES.concat());
    }
    assert_eq!(exchange.reply_from(shown).await.0, PIECES.concat());
    assert!((1..=20).contains(&reads), "{VIEWERS} viewers had the log read {reads} times");
    let later = nodes.servers[1].metrics.turn_log_reads_total.get();
    assert!(later <= reads + 2, "it is read no more once the text has come to what is told: {later}");
    assert_eq!(nodes.servers[0].metrics.turn_log_reads_total.get(), 0, "the owner needs none");
}

/// checklist 67
async fn stop_from_elsewhere_is_the_owners_end(via: Via) {
    let (gate, provider, nodes) = scripted(2).await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 3).await;
    let (mut desk, mut watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({"after_seq": 0})).await;
    let turn = watch.until("loading").await["turn_id"].clone();
    let (asked, worked) = (Instant::now(), Stopwatch::start());
    let accepted = desk.exchange(json!({"type": "stop", "id": id(), "turn_id": turn})).await.until("accepted").await;
    let (took, worked) = (asked.elapsed(), worked.elapsed());
    assert!(worked < OWNER_DEADLINE + SLACK, "took {took:?}: {accepted}");
    let by_its_owner = nodes.servers[1].metrics.turn_stops_unanswered_total.get() == 0;
    println!("stopped from elsewhere after {took:?}, by its owner: {by_its_owner}");
    assert!(by_its_owner || took >= OWNER_DEADLINE, "its owner had {took:?}");
    provider.hung_up(1).await;
    let (text, last) = watch.reply().await;
    let end = last_of(&mut exchange).await;
    assert_eq!(&last["state"], "stopped");
    assert!(text == shown || shown.starts_with(&text) && !by_its_owner, "{shown:?} was shown, and kept is {text:?}");
    assert_eq!((&end["sha256"], &end["state"]), (&last["sha256"], &json!("stopped")));
    let again = desk.exchange(json!({"type": "stop", "id": id(), "turn_id": turn})).await.until("error").await;
    assert_eq!(again["error"]["code"], "TURN_NOT_FOUND");
}

/// Nodes that do not hear each other: the store alone tells.
async fn stop_of_a_node_that_does_not_answer_ends_the_turn_without_it(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(PIECES).gated(&gate)).await;
    let nodes = Nodes::deaf(2, |config| {
        openai(config, &provider);
        config.sessions.compare_interval = Duration::from_millis(100);
    })
    .await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 3).await;
    let (mut desk, mut watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({"after_seq": 0})).await;
    let turn = watch.until("loading").await["turn_id"].clone();
    let mut text = String::new();
    text_of(&mut watch, &mut text, shown.len()).await;
    let (asked, worked) = (Instant::now(), Stopwatch::start());
    let accepted = desk.exchange(json!({"type": "stop", "id": id(), "turn_id": turn})).await.until("accepted").await;
    let (took, worked) = (asked.elapsed(), worked.elapsed());
    assert!(took >= OWNER_DEADLINE && worked < OWNER_DEADLINE + SLACK, "took {took:?}: {accepted}");
    assert_eq!(nodes.servers[1].metrics.turn_stops_unanswered_total.get(), 1);
    let (text, last) = watch.reply_from(text).await;
    assert_eq!((text, &last["state"]), (shown, &json!("stopped")));
    // Its owner learns it with the next write of the log, and its watchers from the store.
    gate.release(1);
    provider.hung_up(1).await;
    let end = last_of(&mut exchange).await;
    assert_eq!(
        (&end["length"], &end["sha256"]),
        (&last["length"], &last["sha256"]),
        "text beyond the end is taken back"
    );
}

/// checklist W10, 67
async fn session_that_ends_elsewhere_stops_its_turn(via: Via) {
    let (gate, provider, nodes) = scripted(2).await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 2).await;
    let (_desk, _watch, second) = Client::attached(&nodes.servers[1], via, "ann", json!({"new": true})).await;
    provider.hung_up(1).await;
    let (text, last) = exchange.reply_from(shown.clone()).await;
    assert_eq!((text, &last["state"]), (shown, &json!("stopped")));

    // And so does the deletion of one.
    let (mut client, mut watch, status) = Client::attached(&nodes.servers[0], via, "ann", json!({})).await;
    assert_eq!(status["session_id"], second["session_id"]);
    let mut exchange = client.say("again").await;
    gate.release(1);
    exchange.until("ai_response").await;
    let path = format!("/sessions/{}", second["session_id"].as_str().unwrap());
    let deleted = Api::new(&nodes.servers[1], "ann").send(Method::DELETE, &path, None, &[]).await;
    assert_eq!(deleted.status, 204, "{}", deleted.text);
    assert_eq!(exchange.reply_from(PIECES[0].to_owned()).await.1["state"], "stopped");
    provider.hung_up(2).await;
    let update = watch.update("deleted").await;
    assert_eq!(update["session_id"], second["session_id"]);
}

/// What a node keeps of a conversation between its turns is not all of it when another node has answered meanwhile.
///
/// checklist 67, 68
async fn model_is_told_what_was_said_on_every_node(via: Via) {
    let answer = |request: &Request| {
        let text = format!("re {}", request.messages().last().unwrap().1);
        Script::answer([text.as_str()])
    };
    let provider = Provider::start_by(answer).await;
    let nodes = Nodes::start(3, |config| openai(config, &provider)).await;
    let mut clients = Vec::new();
    for server in &nodes.servers {
        clients.push(Client::attached(server, via, "ann", json!({})).await);
    }
    let mut told = Vec::new();
    let mut turn = Value::Null;
    for (number, node) in [0, 0, 1, 0, 2, 2, 1, 0, 1, 2].into_iter().enumerate() {
        let message = format!("message {number}");
        told.push(("user".to_owned(), message.clone()));
        let (text, last) = clients[node].0.say(&message).await.reply().await;
        let request = provider.request(number).await;
        let heard: Vec<_> =
            request.messages().into_iter().map(|(role, text)| (role.to_owned(), text.to_owned())).collect();
        assert_eq!(heard, told, "on node {node}");
        told.push(("assistant".to_owned(), text));
        turn = last["turn_id"].clone();
    }
    // Another reply to the last message, written on one node, is the one that counts on every other.
    provider.script(Script::answer(["better"]));
    let again = json!({"type": "regenerate", "id": id(), "turn_id": turn});
    assert_eq!(clients[0].0.exchange(again).await.reply().await.0, "better");
    told.pop();
    told.push(("assistant".to_owned(), "better".to_owned()));
    told.push(("user".to_owned(), "and now?".to_owned()));
    clients[2].0.say("and now?").await.reply().await;
    let request = provider.request(11).await;
    let heard: Vec<_> = request.messages().into_iter().map(|(role, text)| (role.to_owned(), text.to_owned())).collect();
    assert_eq!(heard, told);
}

/// checklist W20
async fn message_that_waits_on_one_node_is_answered_on_another(via: Via) {
    let (gate, provider, nodes) = scripted(2).await;
    let (_client, mut exchange, shown) = running(via, &gate, &nodes, 1).await;
    let (mut desk, _watch, _status) = Client::attached(&nodes.servers[1], via, "ann", json!({})).await;
    let mut waiting = desk.say("second").await;
    assert_eq!(waiting.until("accepted").await["seq"], 3);
    assert!(waiting.silent(MOMENT).await, "the first one is being answered");
    gate.open();
    assert_eq!(exchange.reply_from(shown).await.0, PIECES.concat());
    let (text, last) = waiting.reply().await;
    assert_eq!((text, &last["reply_to"], &last["seq"]), (PIECES.concat(), &json!(3), &json!(4)));
    let request = provider.request(1).await;
    assert_eq!(request.messages(), [("user", "hello"), ("assistant", &*PIECES.concat()), ("user", "second")]);
}
