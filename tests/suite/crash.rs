//! What a node's end does to its turns and entries, and what only looks like one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    ALONE, Client, Server, Via,
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
        config.sessions.turn_lease = Duration::from_millis(600);
    })
    .await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("loading").await["turn_id"].clone();
    assert!(exchange.silent(Duration::from_secs(2)).await, "it is still waited for, after three leases");
    watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
    assert_eq!(exchange.reply().await.1["state"], "stopped");
    assert_eq!(provider.requests(), 1, "the provider was asked once");
}

/// Answers that run, and users who send, when the process is killed.
const ANSWERS: usize = 100;
const SENDERS: usize = 100;

/// Pieces that every answer has shown by then, of those that come at the pace of a usual model.
const SHOWN_PIECES: usize = 60;
const PACE: Duration = Duration::from_millis(20);

/// The age of shown text at which it is written, and what one write of it may take on a busy machine.
const UNSAVED_AGE_MAX: Duration = Duration::from_millis(250);
const WRITE_MAX: Duration = Duration::from_millis(250);

/// What one answer had shown, and when.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    /// where each piece begins, and when it came
    pieces: Vec<(usize, Instant)>,
}

/// What the server had said it holds: ids with places and turns.
type Acknowledged = HashMap<String, (Value, Value)>;

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
    for number in 0..ANSWERS {
        let (server, killed, under_way) = (Arc::clone(&server), killed.clone(), Arc::clone(&under_way));
        answers.spawn(async move { (number, listen(&server, number, &killed, &under_way).await) });
    }
    for number in 0..SENDERS {
        let (server, killed) = (Arc::clone(&server), killed.clone());
        senders.spawn(async move { (number, say_on(&server, number, &killed).await) });
    }
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let all = async {
        while under_way.load(Ordering::Relaxed) < ANSWERS {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE * 3, all).await.expect("every answer is under way");
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
    let mut acknowledged = 0;
    for (number, sent) in &senders {
        acknowledged += sent.len();
        check_log(&server, *number, sent).await;
    }
    risks.sort();
    let (most, median) = (risks[ANSWERS - 1], risks[ANSWERS / 2]);
    println!(
        "killed: {acknowledged} acknowledged, none lost or doubled; text lost of {ANSWERS} answers: median {median:?}, most {most:?}"
    );
    assert!(acknowledged >= SENDERS, "everyone had something acknowledged, got {acknowledged}");
    assert!(most <= UNSAVED_AGE_MAX + WRITE_MAX, "text of {most:?} is lost");
}

fn script(request: &Request) -> Script {
    let pieces = (0..800).map(|number| format!("{number:7} ")).collect::<Vec<_>>();
    match request.messages().last() {
        Some((_, "long")) => Script::answer(pieces.iter().map(String::as_str)).paced(PACE),
        _ => Script::answer(["so ", "it is"]),
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

/// Follows one long answer to the server's end.
async fn listen(server: &Process, number: usize, killed: &CancellationToken, under_way: &AtomicUsize) -> Shown {
    let (mut client, _watch, _status) = Client::attached(server, via(number), &answerer(number), json!({})).await;
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
async fn say_on(server: &Process, number: usize, killed: &CancellationToken) -> Acknowledged {
    let (mut client, _watch, _status) = Client::attached(server, via(number), &sender(number), json!({})).await;
    let mut acknowledged = Acknowledged::new();
    while !killed.is_cancelled() {
        let message = json!({"type": "user_message", "id": id(), "content": "so?"});
        let Some(mut exchange) = client.try_exchange(message).await else { break };
        while let Some(frame) = next(&mut exchange, killed).await {
            match frame["type"].as_str() {
                Some("accepted") => {
                    let said = (frame["seq"].clone(), frame["turn_id"].clone());
                    acknowledged.insert(frame["re"].as_str().unwrap().to_owned(), said);
                }
                Some("ai_response") if frame["metadata"]["done"] == "true" => break,
                _ => {}
            }
        }
    }
    acknowledged
}

/// How long before the kill the first text had come that is lost.
fn at_risk(shown: &Shown, kept: usize) -> Duration {
    let lost = shown.pieces.iter().find(|(offset, _)| *offset >= kept);
    let last = shown.pieces.last().expect("every answer had shown something");
    // The first piece that is lost had been at risk since it came; the last one came when the server went.
    lost.map_or(Duration::ZERO, |(_, came)| last.1.duration_since(*came))
}

/// Every acknowledged message is there once, where it was said to be, and every entry is.
async fn check_log(server: &Process, number: usize, acknowledged: &Acknowledged) {
    let (_client, mut watch, status) = again(server, &sender(number), number).await;
    let last = status["last_seq"].as_u64().unwrap();
    let (mut places, mut ids) = (BTreeMap::new(), HashMap::new());
    while places.range(..=last).count() < usize::try_from(last).unwrap() {
        let frame = watch.next().await.expect("the log goes on");
        let Some(seq) = frame["seq"].as_u64().filter(|_| frame["type"] != "loading") else { continue };
        if let Some(id) = frame["id"].as_str() {
            let said = (frame["seq"].clone(), frame["turn_id"].clone());
            assert_eq!(ids.insert(id.to_owned(), said), None, "doubled: {frame}");
        }
        assert_eq!(places.insert(seq, frame["type"].clone()), None, "a place is taken twice: {frame}");
    }
    for (id, said) in acknowledged {
        assert_eq!(ids.get(id), Some(said), "an acknowledged message");
    }
}
