//! Durable messages per second through the store on MongoDB, beside one `insertOne` after the other on the same server.
//!
//! `cargo bench --bench mongo` starts a replica set of one and prints a table: contenders run in turn, in rounds, so
//! that all see the same machine; a row is the median of its rounds. Rows of bare entries are the ceiling: what the server
//! makes of the same bytes with the same indexes when nothing is decided about them. With `-- --sessions N --entries M` it
//! then fills the database with so many rows, most of them in sessions of one user, and reads lists and logs: p50 and p95.
//!
//! The server is the one of the tests (`CHATBOX_TEST_MONGOD`, `target/tests-servers/mongod`, or the `PATH`).
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it shares the tests' harness, prints, and fails loudly"
)]

#[path = "../suite/harness/mod.rs"]
mod harness;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    chat::{
        EntryId, EntryKind, Metadata, NodeId, RequestId, Sender, Session, SessionId, TurnId, TurnState, Usage, UserId,
    },
    metrics::Metrics,
    store::{
        self, EndTurn, Lease, ListSessions, NewEntry, NewTurn, Open, OpenSession, Order, Purpose, Range, Spent, Store,
        mongo::{self, Options},
        seal::Seal,
    },
};
use harness::mongo::Mongo;
use mongodb::{
    Client, Collection, IndexModel,
    bson::{Binary, Document, doc, spec::BinarySubtype},
    options::{Acknowledgment, ClientOptions, IndexOptions, WriteConcern},
};
use tokio::task::JoinSet;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(2);
const BODY_BYTES: usize = 200;
/// Reads of each kind.
const READS: usize = 300;
const FILLED_AT_ONCE: u64 = 10_000;

/// What is stored in each step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Each {
    Message,
    /// a message, its turn, the turn's end, and what its request took
    Charged,
}

/// Who stores messages, and how.
#[derive(Clone, Copy)]
enum Contender {
    /// one row after the other, each durable before the next one is sent
    Single { majority: bool },
    /// through the store: each writer one message after the other, in so many sessions together
    Store { writers: usize, sessions: usize, each: Each },
    /// so many bare entries with each command
    Bare { writers: usize, rows: usize },
}

const CONTENDERS: [(&str, Contender); 9] = [
    ("insertOne, w 1, j true", Contender::Single { majority: false }),
    ("insertOne, w majority, j true", Contender::Single { majority: true }),
    ("1 writer", Contender::Store { writers: 1, sessions: 1, each: Each::Message }),
    ("64 writers", Contender::Store { writers: 64, sessions: 64, each: Each::Message }),
    ("512 writers", Contender::Store { writers: 512, sessions: 512, each: Each::Message }),
    ("512 writers, 8 in a session", Contender::Store { writers: 512, sessions: 64, each: Each::Message }),
    ("64 writers, message + turn + end + usage", Contender::Store { writers: 64, sessions: 64, each: Each::Charged }),
    ("64 writers, 100 bare entries a command", Contender::Bare { writers: 64, rows: 100 }),
    ("512 writers, 100 bare entries a command", Contender::Bare { writers: 512, rows: 100 }),
];

/// One round: how long each acknowledgement took.
struct Round {
    took: Vec<Duration>,
    /// messages that each acknowledges
    each: usize,
    whole: Duration,
    /// seconds of processor time of the server and of this process
    server: f64,
    ours: f64,
}

impl Round {
    fn messages(&self) -> f64 {
        f64::from(u32::try_from(self.took.len() * self.each).unwrap())
    }

    fn per_second(&self) -> f64 {
        self.messages() / self.whole.as_secs_f64()
    }

    fn percentile_ms(&mut self, percent: usize) -> f64 {
        percentile_ms(&mut self.took, percent)
    }
}

fn percentile_ms(took: &mut [Duration], percent: usize) -> f64 {
    took.sort_unstable();
    took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1000.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(name: &str) -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1).map(|number| number.parse().expect("a number"))
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(server) = Mongo::replica_set_on_disk(1).await else { return };
        let url = server.url("bench");
        let metrics = Metrics::new();
        let lanes = number("--lanes").map(|lanes| usize::try_from(lanes).unwrap());
        let options = Options { lanes: lanes.unwrap_or(Options::default().lanes), ..Options::default() };
        let seal = Seal::new(&[]).unwrap();
        let store = mongo::Mongo::open(&url, seal, &options, Arc::clone(&metrics)).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        table(&store, &url, &server.pid(0).to_string()).await;
        let commits = &metrics.store_commit_writes;
        let writes = commits.get_sample_sum();
        println!("{writes:.0} writes in {} commands", commits.get_sample_count());
        println!(
            "processor seconds: {:.1} of the server, {:.1} of this process",
            processor(&server.pid(0).to_string()),
            processor("self")
        );
        if let (Some(sessions), Some(entries)) = (number("--sessions"), number("--entries")) {
            fill(&url, sessions, entries).await;
            reads(&*store, sessions, entries).await;
        }
        store.close().await;
    });
}

/// Seconds of processor time of a process so far (proc(5), `/proc/PID/stat`, in hundredths).
fn processor(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_name, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum::<u32>();
    f64::from(ticks) / 100.0
}

async fn table(store: &Arc<dyn Store>, url: &str, server: &str) {
    let mut rounds: [Vec<Round>; CONTENDERS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (rounds, (name, contender)) in rounds.iter_mut().zip(CONTENDERS) {
            let before = (processor(server), processor("self"));
            let mut round = match contender {
                Contender::Single { majority } => inserts(url, majority).await,
                Contender::Store { writers, sessions, each } => appends(store, writers, sessions, each).await,
                Contender::Bare { writers, rows } => bare(url, writers, rows).await,
            };
            (round.server, round.ours) = (processor(server) - before.0, processor("self") - before.1);
            eprintln!("{name}: {:.0} messages/s in {:.1} s", round.per_second(), round.whole.as_secs_f64());
            rounds.push(round);
        }
    }
    println!("{:42} {:>10} {:>6} {:>8} {:>8}  processor us a message", "", "messages/s", "ratio", "p50 ms", "p99 ms");
    println!("{:42} {:>10} {:>6} {:>8} {:>8} {:>8} {:>8}", "", "", "", "", "", "server", "bench");
    let of = |rounds: &[Round], value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let base = of(&rounds[1], Round::per_second);
    for ((name, _contender), rounds) in CONTENDERS.iter().zip(&mut rounds) {
        let rate = of(rounds, Round::per_second);
        let p50 = median(rounds.iter_mut().map(|round| round.percentile_ms(50)));
        let p99 = median(rounds.iter_mut().map(|round| round.percentile_ms(99)));
        let server = of(rounds, |round| round.server * 1e6 / round.messages());
        let ours = of(rounds, |round| round.ours * 1e6 / round.messages());
        let ratio = rate / base;
        println!("{name:42} {rate:>10.0} {ratio:>5.1}x {p50:>8.2} {p99:>8.2} {server:>8.0} {ours:>8.0}");
    }
}

fn round(took: Vec<Duration>, each: usize, begun: Instant) -> Round {
    Round { took, each, whole: begun.elapsed(), server: 0.0, ours: 0.0 }
}

/// The floor.
async fn inserts(url: &str, majority: bool) -> Round {
    let client = Client::with_uri_str(url).await.unwrap();
    let rows: Collection<Document> = client.default_database().unwrap().collection("plain");
    let acknowledgment = if majority { Acknowledgment::Majority } else { Acknowledgment::Nodes(1) };
    let concern = WriteConcern::builder().w(acknowledgment).journal(true).build();
    let content = "x".repeat(BODY_BYTES);
    let mut took = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < ROUND {
        let began = Instant::now();
        let row = doc! { "_id": RequestId::new_v4().to_string(), "content": &content };
        rows.insert_one(row).write_concern(concern.clone()).await.unwrap();
        took.push(began.elapsed());
    }
    round(took, 1, begun)
}

/// The ceiling: entries as the store writes them, with their indexes, and nothing else.
async fn bare(url: &str, writers: usize, count: usize) -> Round {
    let mut options = ClientOptions::parse(url).await.unwrap();
    // As many connections as the store has.
    options.max_pool_size = Some(32);
    let client = Client::with_options(options).unwrap();
    let database = client.default_database().unwrap();
    let rows: Collection<Document> = database.collection("bare");
    let unique = IndexOptions::builder().unique(true).build();
    let places = IndexModel::builder().keys(doc! { "session_id": 1, "seq": 1 }).options(unique).build();
    rows.create_index(places).await.unwrap();
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for writer in 0..writers {
        let rows = rows.clone();
        tasks.spawn(async move {
            let concern = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
            let (session, user, mut seq, mut took) = (id(SessionId::new().0), format!("user {writer}"), 0, Vec::new());
            while begun.elapsed() < ROUND {
                let some = (0..count).map(|_nth| {
                    seq += 1;
                    bare_entry(&session, seq, &user)
                });
                let some: Vec<_> = some.collect();
                let began = Instant::now();
                rows.insert_many(some).ordered(false).write_concern(concern.clone()).await.unwrap();
                took.push(began.elapsed());
            }
            took
        });
    }
    let took = tasks.join_all().await.into_iter().flatten().collect();
    let round = round(took, count, begun);
    rows.drop().await.unwrap();
    round
}

fn bare_entry(session: &Binary, seq: i64, user: &str) -> Document {
    let content = Binary { subtype: BinarySubtype::Generic, bytes: [vec![0; 4], vec![b'x'; BODY_BYTES]].concat() };
    doc! {
        "_id": id(EntryId::new().0), "v": seq, "session_id": session.clone(), "seq": seq, "user_id": user,
        "client_id": id(RequestId::new_v4()), "sender": "user", "kind": "text", "content": content,
        "created_at": 1_700_000_000_000_i64,
    }
}

async fn appends(store: &Arc<dyn Store>, writers: usize, count: usize, each: Each) -> Round {
    let mut sessions = Vec::new();
    for owner in 0..count {
        sessions.push(session(&**store, &format!("user {owner}")).await);
    }
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for session in sessions.into_iter().cycle().take(writers) {
        let store = Arc::clone(store);
        tasks.spawn(async move { write(&*store, &session, begun, each).await });
    }
    let took = tasks.join_all().await.into_iter().flatten().collect();
    round(took, 1, begun)
}

/// Appends one message after the other to a session.
async fn write(store: &dyn Store, session: &Session, begun: Instant, each: Each) -> Vec<Duration> {
    let mut took = Vec::new();
    while begun.elapsed() < ROUND {
        let began = Instant::now();
        let turn = (each == Each::Charged).then(turn);
        let asked = turn.as_ref().map(|turn| turn.id);
        store.append(message(session, turn)).await.unwrap();
        took.push(began.elapsed());
        if let Some(turn_id) = asked {
            let usage = Usage { prompt_tokens: 500, completion_tokens: 50, estimated: false };
            let spent = Spent { model_id: "demo".to_owned(), purpose: Purpose::Reply, usage, cost: Some(700) };
            let text = Some("y".repeat(BODY_BYTES));
            let end = EndTurn { text, spent: vec![spent], ..EndTurn::of(turn_id, TurnState::Complete) };
            assert!(store.end_turn(end).await.unwrap().is_some());
        }
    }
    took
}

async fn session(store: &dyn Store, name: &str) -> Session {
    let user_id = UserId::parse(name).unwrap();
    let ask = OpenSession { user_id, open: Open::Current, id: SessionId::new(), active_max: 1 };
    store.open_session(ask).await.unwrap().session
}

fn turn() -> NewTurn {
    let (node, reply_id) = (NodeId::new(), EntryId::new());
    let lease = Lease { node, ttl: Duration::from_secs(10), default_model: "demo".to_owned(), reply_id };
    NewTurn { id: TurnId::new(), lease, queued_max: 16 }
}

fn message(session: &Session, turn: Option<NewTurn>) -> NewEntry {
    NewEntry {
        session_id: session.id,
        owner: session.user_id.clone(),
        id: EntryId::new(),
        client_id: Some(RequestId::new_v4()),
        user_id: session.user_id.clone(),
        sender: Sender::User,
        kind: EntryKind::Text,
        content: "x".repeat(BODY_BYTES),
        files: Vec::new(),
        metadata: Metadata::new(),
        turn,
        session_name: None,
    }
}

fn id(id: uuid::Uuid) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: id.as_bytes().to_vec() }
}

/// Puts rows of the store's shape into its tables: half of the sessions are one user's.
async fn fill(url: &str, sessions: u64, entries: u64) {
    let begun = Instant::now();
    let client = Client::with_uri_str(url).await.unwrap();
    let database = client.default_database().unwrap();
    let (heads, rows) = (database.collection::<Document>("sessions"), database.collection::<Document>("entries"));
    let each = i64::try_from(entries / sessions.max(1)).unwrap();
    let (mut many_heads, mut many_rows) = (Vec::new(), Vec::new());
    for nth in 0..i64::try_from(sessions).unwrap() {
        let (session, at) = (id(SessionId::new().0), 1_700_000_000_000_i64 + nth * 1000);
        let user = if nth % 2 == 0 { "heavy".to_owned() } else { format!("filler {nth}") };
        let counters = doc! {
            "entries": each, "prompt_tokens": 0_i64, "completion_tokens": 0_i64, "responses": 0_i64,
            "response_ms_sum": 0_i64, "response_ms_max": 0_i64,
        };
        many_heads.push(doc! {
            "_id": session.clone(), "v": each, "user_id": &user, "state": "ended", "rev": each, "last_seq": each,
            "created_at": at, "last_activity": at, "quarter": at / 900_000, "filled": true, "counters": counters,
        });
        many_rows.extend((1..=each).map(|seq| bare_entry(&session, seq, &user)));
        if u64::try_from(many_rows.len()).unwrap() >= FILLED_AT_ONCE {
            rows.insert_many(many_rows.drain(..)).ordered(false).await.unwrap();
            heads.insert_many(many_heads.drain(..)).ordered(false).await.unwrap();
        }
    }
    if !many_rows.is_empty() {
        rows.insert_many(many_rows).ordered(false).await.unwrap();
        heads.insert_many(many_heads).ordered(false).await.unwrap();
    }
    println!("{sessions} sessions and {entries} entries in {:.0} s", begun.elapsed().as_secs_f64());
}

/// Reads what pages ask for.
async fn reads(store: &dyn Store, sessions: u64, entries: u64) {
    let user_id = UserId::parse("heavy").unwrap();
    let (mut by_activity, mut by_start, mut logs, mut revs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut after = None;
    for _ in 0..READS {
        let began = Instant::now();
        let ask = ListSessions { user_id: user_id.clone(), order: Order::Activity, after, limit: 50 };
        let page = store.sessions(ask).await.unwrap();
        by_activity.push(began.elapsed());
        assert_eq!(page.total, sessions.div_ceil(2));
        let last = page.sessions.last().expect("a session");
        after = page.more.then_some(store::Place { at: last.last_activity, id: last.id });
        let began = Instant::now();
        let ask = ListSessions { user_id: user_id.clone(), order: Order::Created, after: None, limit: 50 };
        store.sessions(ask).await.unwrap();
        by_start.push(began.elapsed());
        let began = Instant::now();
        let log = store.entries(last.id, Range::Last(50)).await.unwrap();
        logs.push(began.elapsed());
        assert_eq!(u64::try_from(log.len()).unwrap(), 50.min(entries / sessions));
        let began = Instant::now();
        store.user_revs(std::slice::from_ref(&user_id), 100).await.unwrap();
        revs.push(began.elapsed());
    }
    println!("{:42} {:>8} {:>8}", "", "p50 ms", "p95 ms");
    let kinds = [("50 sessions by activity", by_activity), ("50 sessions by start", by_start)];
    for (name, mut took) in kinds.into_iter().chain([("last 50 entries", logs), ("revs of 100 sessions", revs)]) {
        println!("{name:42} {:>8.2} {:>8.2}", percentile_ms(&mut took, 50), percentile_ms(&mut took, 95));
    }
}
