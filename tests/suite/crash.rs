//! What a node's end does to its turns and entries, and what only looks like one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    ALONE, Client, Server, Via,
    api::Api,
    client::{Lines, PATIENCE},
    id, openai, over_both,
    process::Process,
    provider::{Provider, Request, Script},
};

over_both! {
    turn_of_a_silent_provider_keeps_its_lease,
}

/// Nothing is written to its log meanwhile, so that nothing but the renewal keeps the sweep away from it.
async fn turn_of_a_silent_provider_keeps_its_lease(via: Via) {
    let provider = Provider::start(Script::silent()).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.turn_lease = Duration::from_secs(3);
    })
    .await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("loading").await["turn_id"].clone();
    // After two leases it is still waited for, which is told every five seconds.
    let (began, two) = (Instant::now(), Duration::from_secs(7));
    while let Some(frame) = exchange.soon(two.saturating_sub(began.elapsed())).await {
        assert_eq!((&frame["type"], &frame["turn_id"]), (&json!("loading"), &turn), "after {:?}", began.elapsed());
    }
    assert!(began.elapsed() >= two, "the exchange ended after {:?}", began.elapsed());
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    assert_eq!(exchange.reply().await.1["state"], "stopped");
    assert_eq!(provider.requests(), 1, "the provider was asked once");
}

/// Answers that run, and users who send, when the process is killed.
const ANSWERS: usize = 100;
const SENDERS: usize = 100;

/// Users who attach at a time: the server closes who takes longer than five seconds to.
const AT_ONCE: usize = 10;

/// Pieces that every answer has shown by then.
const SHOWN_PIECES: usize = 60;
const PACE: Duration = Duration::from_millis(40);

/// The pause before each piece of a short answer.
const SHORT_PACE: Duration = Duration::from_millis(200);

/// The age of shown text at which it is written.
const UNSAVED_AGE_MAX: Duration = Duration::from_millis(250);

/// What one answer had shown, and when.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    /// where each piece begins, and when it came
    pieces: Vec<(usize, Instant)>,
}

/// What the server had said it holds: ids with places and turns; and how long it took to say so at most.
#[derive(Default)]
struct Said {
    acknowledged: HashMap<String, (Value, Value)>,
    slowest: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_process_loses_no_acknowledged_entry_and_a_quarter_of_a_second_of_text() {
    let _alone = ALONE.acquire().await.unwrap();
    let provider = Provider::start_by(script).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("CHATBOX_LIMITS__CONNECTIONS_PER_ADDRESS", "1000"),
        ("CHATBOX_LIMITS__MESSAGES_PER_MINUTE", "10000"),
        ("CHATBOX_SESSIONS__TURN_LEASE", "3s"),
        ("CHATBOX_LOG", "warn"),
    ];
    let server = Arc::new(Process::start_with(dir.path(), &provider, &settings).await);
    let (killed, under_way) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let (mut answers, mut senders) = (JoinSet::new(), JoinSet::new());
    for (number, attached) in attach(&server, SENDERS, sender).await {
        let killed = killed.clone();
        senders.spawn(async move { (number, say_on(attached, &killed).await) });
    }
    for (number, attached) in attach(&server, ANSWERS, answerer).await {
        let (killed, under_way) = (killed.clone(), Arc::clone(&under_way));
        answers.spawn(async move { (number, listen(attached, &killed, &under_way).await) });
    }
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let all = async {
        while under_way.load(Ordering::Relaxed) < ANSWERS {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE * 2, all).await.expect("every answer is under way");
    server.kill_now();
    killed.cancel();
    let (answers, senders) = (answers.join_all().await, senders.join_all().await);

    drop(server);
    let server = Process::start_with(dir.path(), &provider, &settings).await;
    let mut risks = Vec::new();
    for (number, shown) in &answers {
        let (_client, mut watch, _status) = again(&server, &answerer(*number), *number).await;
        assert_eq!(watch.until("user_message").await["seq"], 1);
        let (text, last) = watch.reply().await;
        assert_eq!(last["state"], "interrupted", "{last}");
        assert!(shown.text.starts_with(&text) || text.starts_with(&shown.text), "{text} was shown as {}", shown.text);
        risks.push(at_risk(shown, text.len()));
    }
    let (mut acknowledged, mut write) = (0, Duration::ZERO);
    for (number, said) in &senders {
        acknowledged += said.acknowledged.len();
        write = write.max(said.slowest);
        check_log(&server, *number, said).await;
    }
    risks.sort();
    let (most, median) = (risks[ANSWERS - 1], risks[ANSWERS / 2]);
    println!(
        "killed: {acknowledged} acknowledged, none lost or doubled; text lost of {ANSWERS} answers: median {median:?}, \
         most {most:?}, while a write took up to {write:?}"
    );
    assert!(acknowledged >= SENDERS, "everyone had something acknowledged, got {acknowledged}");
    // A batch is written as an entry is, by the same writer, in as much time; and a piece is whole or not there.
    let bound = UNSAVED_AGE_MAX + write + PACE;
    assert!(most <= bound, "text of {most:?} is lost, more than {bound:?}");
}

fn script(request: &Request) -> Script {
    let pieces = (0..400).map(|number| format!("{number:7} ")).collect::<Vec<_>>();
    match request.messages().last() {
        Some((_, "long")) => Script::answer(pieces.iter().map(String::as_str)).paced(PACE),
        _ => Script::answer(["so ", "it is"]).usage(3, 2).paced(SHORT_PACE),
    }
}

fn answerer(number: usize) -> String {
    format!("answered-{number}")
}

fn sender(number: usize) -> String {
    format!("sender-{number}")
}

const fn via(number: usize) -> Via {
    if number.is_multiple_of(2) { Via::WebTransport } else { Via::WebSocket }
}

async fn again(server: &Process, user: &str, number: usize) -> (Client, Lines, Value) {
    // On the other transport.
    Client::attached(server, via(number + 1), user, json!({"after_seq": 0})).await
}

/// The next frame, unless the server was killed and nothing more is on its way.
async fn next(lines: &mut Lines, killed: &CancellationToken) -> Option<Value> {
    let nothing_more = async {
        killed.cancelled().await;
        let mut moment = tokio::time::interval(Duration::from_millis(200));
        moment.tick().await;
        moment.tick().await;
    };
    tokio::select! {
        biased;
        frame = lines.next() => frame,
        () = nothing_more => None,
    }
}

type Attached = (Client, Lines, Value);

/// Attaches so many users, half over each transport.
async fn attach(server: &Process, count: usize, name: fn(usize) -> String) -> Vec<(usize, Attached)> {
    let attaching = (0..count)
        .map(|number| async move { (number, Client::attached(server, via(number), &name(number), json!({})).await) });
    stream::iter(attaching).buffer_unordered(AT_ONCE).collect().await
}

/// Follows one long answer to the server's end.
async fn listen((mut client, _watch, _status): Attached, killed: &CancellationToken, under_way: &AtomicUsize) -> Shown {
    let mut exchange = client.say("long").await;
    let mut shown = Shown::default();
    while let Some(frame) = next(&mut exchange, killed).await {
        if frame["type"] == "ai_response" {
            assert_eq!(frame["offset"], shown.text.len(), "a hole or an overlap: {frame}");
            shown.pieces.push((shown.text.len(), Instant::now()));
            shown.text.push_str(frame["content"].as_str().unwrap());
            if shown.pieces.len() == SHOWN_PIECES {
                under_way.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    shown
}

/// Says one thing after the other, to the server's end.
async fn say_on((mut client, _watch, _status): Attached, killed: &CancellationToken) -> Said {
    let mut said = Said::default();
    while !killed.is_cancelled() {
        let asked = Instant::now();
        let message = json!({"type": "user_message", "id": id(), "content": "so?"});
        let Some(mut exchange) = client.try_exchange(message).await else { break };
        while let Some(frame) = next(&mut exchange, killed).await {
            match frame["type"].as_str() {
                Some("accepted") => {
                    let place = (frame["seq"].clone(), frame["turn_id"].clone());
                    said.acknowledged.insert(frame["re"].as_str().unwrap().to_owned(), place);
                    said.slowest = said.slowest.max(asked.elapsed());
                }
                Some("ai_response") if frame["metadata"]["done"] == "true" => break,
                _ => {}
            }
        }
    }
    said
}

/// How long before the kill the first text had come that is lost.
fn at_risk(shown: &Shown, kept: usize) -> Duration {
    let lost = shown.pieces.iter().find(|(offset, _)| *offset >= kept);
    let last = shown.pieces.last().expect("every answer had shown something");
    // The first piece that is lost had been at risk since it came; the last one came when the server went.
    lost.map_or(Duration::ZERO, |(_, came)| last.1.duration_since(*came))
}

/// Every acknowledged message is there once, where it was said to be, and every entry is.
async fn check_log(server: &Process, number: usize, said: &Said) {
    let (_client, mut watch, status) = again(server, &sender(number), number).await;
    let last = status["last_seq"].as_u64().unwrap();
    let (mut places, mut ids) = (BTreeMap::new(), HashMap::new());
    while places.range(..=last).count() < usize::try_from(last).unwrap() {
        let frame = watch.next().await.expect("the log goes on");
        let Some(seq) = frame["seq"].as_u64().filter(|_| frame["type"] != "loading") else { continue };
        if let Some(id) = frame["id"].as_str() {
            let place = (frame["seq"].clone(), frame["turn_id"].clone());
            assert_eq!(ids.insert(id.to_owned(), place), None, "doubled: {frame}");
        }
        assert_eq!(places.insert(seq, frame["type"].clone()), None, "a place is taken twice: {frame}");
    }
    for (id, place) in &said.acknowledged {
        assert_eq!(ids.get(id), Some(place), "an acknowledged message");
    }
    check_account(server, number, status["session_id"].as_str().unwrap()).await;
}

/// A reply and what it took are one write: the log and the account of a user say the same.
async fn check_account(server: &Process, number: usize, session: &str) {
    let api = Api::new(server, &sender(number));
    let sum = |rows: &Value, at: fn(&Value) -> &Value| -> u64 {
        let tokens = |row: &Value| ["prompt_tokens", "completion_tokens"].map(|key| at(row)[key].as_u64().unwrap_or(0));
        rows.as_array().unwrap().iter().flat_map(tokens).sum()
    };
    let charged = async || sum(&api.get("/usage").await.body["days"], |row| row);
    // A turn that is asked again may end in between.
    let (told, charged) = loop {
        let before = charged().await;
        let log = api.get(&format!("/sessions/{session}?after_seq=0&limit=200")).await.body;
        if charged().await == before {
            break (sum(&log["entries"], |row| &row["usage"]), before);
        }
    };
    assert_eq!(charged, told, "of sender {number}");
    assert!(told >= 5, "sender {number} had an answer, got {told} tokens");
}
