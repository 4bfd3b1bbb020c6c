//! Durable messages per second, through the store and with one commit for each message, on the same disk.
//!
//! `cargo bench --bench append` prints a table: each contender runs in turn, in rounds, so that all see the same
//! machine; a row is the median of its rounds. Then it reads what
//! a user's day took, opens what it has stored once more, and deletes a long session.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails loudly")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    chat::{
        Day, EntryId, EntryKind, Metadata, NodeId, RequestId, Sender, Session, SessionId, TurnId, TurnState, Usage,
        UserId,
    },
    metrics::Metrics,
    store::{
        EndTurn, Lease, NewEntry, NewTurn, Open, OpenSession, Purpose, Range, Spent, Store,
        seal::Seal,
        sqlite::{Options, Sqlite},
    },
};
use rusqlite::{Connection, params};
use tokio::task::JoinSet;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const BODY_BYTES: usize = 200;
/// Enough rows that a scan at start would show.
const STORED: u64 = 100_000;

/// Reads of a user's day.
const READS: u32 = 10_000;

/// What is stored in each step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Each {
    Message,
    /// a message, its turn, and the turn's end
    Answered,
    /// the same, and what its request took
    Charged,
}

/// One round: how long each acknowledgement took.
struct Round {
    took: Vec<Duration>,
    whole: Duration,
    /// commits that they shared
    commits: u64,
    /// bytes that this process has written, to the log and from there into the file
    written: u64,
}

impl Round {
    fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.took.len()).unwrap()) / self.whole.as_secs_f64()
    }

    fn commits_per_second(&self) -> f64 {
        f64::from(u32::try_from(self.commits).unwrap()) / self.whole.as_secs_f64()
    }

    fn written_per_message(&self) -> f64 {
        let kib = f64::from(u32::try_from(self.written >> 10).unwrap());
        kib / f64::from(u32::try_from(self.took.len()).unwrap())
    }

    fn percentile_ms(&mut self, percent: usize) -> f64 {
        self.took.sort_unstable();
        let at = (self.took.len() * percent / 100).min(self.took.len().saturating_sub(1));
        self.took.get(at).unwrap().as_secs_f64() * 1000.0
    }
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let path = dir.path().join("chatbox.db");
    let metrics = Metrics::new();
    let store = open(&path, &metrics);
    let names = [
        "one commit per message",
        "1 writer",
        "64 writers",
        "64 writers, message + turn + end",
        "64 writers, the same + usage",
    ];
    let mut rounds: [Vec<Round>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let [plain, one, many, turns, charged] = &mut rounds;
        plain.push(one_commit_per_message(&dir.path().join("plain.db")));
        one.push(runtime.block_on(appends(&store, &metrics, 1, Each::Message)));
        many.push(runtime.block_on(appends(&store, &metrics, 64, Each::Message)));
        turns.push(runtime.block_on(appends(&store, &metrics, 64, Each::Answered)));
        charged.push(runtime.block_on(appends(&store, &metrics, 64, Each::Charged)));
    }
    let head = ["messages/s", "ratio", "p50 ms", "p99 ms", "commits/s", "KiB each"];
    let [messages, ratio, p50, p99, commits, written] = head;
    println!("{:32} {messages:>10} {ratio:>6} {p50:>8} {p99:>8} {commits:>9} {written:>9}", "");
    let base = median(rounds[0].iter().map(Round::per_second));
    for (name, rounds) in names.iter().zip(&mut rounds) {
        let rate = median(rounds.iter().map(Round::per_second));
        let p50 = median(rounds.iter_mut().map(|round| round.percentile_ms(50)));
        let p99 = median(rounds.iter_mut().map(|round| round.percentile_ms(99)));
        let commits = median(rounds.iter().map(Round::commits_per_second));
        let written = median(rounds.iter().map(Round::written_per_message));
        let ratio = rate / base;
        println!("{name:32} {rate:>10.0} {ratio:>5.1}x {p50:>8.2} {p99:>8.2} {commits:>9.0} {written:>9.1}");
    }
    runtime.block_on(read_day(&store));
    let filled = runtime.block_on(fill(&store));
    runtime.block_on(store.close());
    drop(store);
    let begun = Instant::now();
    let store = open(&path, &metrics);
    let opened = begun.elapsed();
    let read = runtime.block_on(store.entries(filled, Range::Last(50))).unwrap().len();
    println!(
        "open at {} MiB, {STORED} messages or more: {:.2} ms, first {read} entries read at {:.2} ms",
        path.metadata().unwrap().len() >> 20,
        opened.as_secs_f64() * 1000.0,
        begun.elapsed().as_secs_f64() * 1000.0
    );
    let begun = Instant::now();
    let deleted = runtime.block_on(store.delete_session(filled, UserId::parse("filler").unwrap())).unwrap();
    println!(
        "delete a session of {} messages: {:.0} ms",
        deleted.session.counters.entries,
        begun.elapsed().as_secs_f64() * 1000.0
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap()
}

fn open(path: &Path, metrics: &Arc<Metrics>) -> Arc<dyn Store> {
    let seal = Seal::new(&[]).unwrap();
    Arc::new(Sqlite::open(path, seal, &Options::default(), Arc::clone(metrics)).unwrap())
}

/// The floor: a table with one unique index, a prepared statement, a durable commit for each row.
fn one_commit_per_message(path: &Path) -> Round {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE IF NOT EXISTS messages \
             (id BLOB PRIMARY KEY, session_id BLOB, seq INTEGER, content TEXT, UNIQUE (session_id, seq)) STRICT;",
        )
        .unwrap();
    let session = SessionId::new();
    let mut insert = connection.prepare("INSERT INTO messages VALUES (?1, ?2, ?3, ?4)").unwrap();
    let content = "x".repeat(BODY_BYTES);
    let (mut took, before) = (Vec::new(), written());
    let begun = Instant::now();
    while begun.elapsed() < ROUND {
        let began = Instant::now();
        insert.execute(params![EntryId::new().0.as_bytes(), session.0.as_bytes(), took.len(), content]).unwrap();
        took.push(began.elapsed());
    }
    let commits = took.len().try_into().unwrap();
    Round { commits, took, whole: begun.elapsed(), written: written() - before }
}

/// Bytes that this process has handed to the kernel so far.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

async fn appends(store: &Arc<dyn Store>, metrics: &Metrics, writers: usize, each: Each) -> Round {
    let (before, bytes) = (metrics.store_commit_writes.get_sample_count(), written());
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for writer in 0..writers {
        let store = Arc::clone(store);
        tasks.spawn(async move { write(&*store, &format!("user {writer}"), begun, each).await });
    }
    let took = tasks.join_all().await.into_iter().flatten().collect();
    let commits = metrics.store_commit_writes.get_sample_count() - before;
    Round { took, whole: begun.elapsed(), commits, written: written() - bytes }
}

/// Appends one message after the other to a session of its own.
async fn write(store: &dyn Store, name: &str, begun: Instant, each: Each) -> Vec<Duration> {
    let session = session(store, name).await;
    let mut took = Vec::new();
    while begun.elapsed() < ROUND {
        let began = Instant::now();
        let turn = (each != Each::Message).then(turn);
        let asked = turn.as_ref().map(|turn| turn.id);
        store.append(message(&session, turn)).await.unwrap();
        took.push(began.elapsed());
        if let Some(turn_id) = asked {
            let text = Some("y".repeat(BODY_BYTES));
            let spent = if each == Each::Charged { vec![spent()] } else { Vec::new() };
            let end = EndTurn { text, spent, ..EndTurn::of(turn_id, TurnState::Complete) };
            assert!(store.end_turn(end).await.unwrap().is_some());
        }
    }
    took
}

/// Reads what the day of one user took, as each message does where budgets are configured.
async fn read_day(store: &Arc<dyn Store>) {
    let user = UserId::parse("user 7").unwrap();
    let begun = Instant::now();
    for _ in 0..READS {
        assert!(!store.spent(&user, Day(0)).await.unwrap().is_empty());
    }
    println!("read what a user's day took: {:.1} µs", begun.elapsed().as_secs_f64() * 1e6 / f64::from(READS));
}

/// Brings the file to its size, in one session that is read back.
async fn fill(store: &Arc<dyn Store>) -> SessionId {
    let session = session(&**store, "filler").await;
    for _ in 0..STORED / 500 {
        let mut tasks = JoinSet::new();
        for _ in 0..500 {
            let store = Arc::clone(store);
            let message = message(&session, None);
            tasks.spawn(async move { store.append(message).await.unwrap().entry.seq });
        }
        tasks.join_all().await;
    }
    session.id
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

fn spent() -> Spent {
    let usage = Usage { prompt_tokens: 500, completion_tokens: 50, estimated: false };
    Spent { model_id: "demo".to_owned(), purpose: Purpose::Reply, usage, cost: Some(700) }
}

fn message(session: &Session, turn: Option<NewTurn>) -> NewEntry {
    NewEntry {
        session_id: session.id,
        owner: session.user_id.clone(),
        id: EntryId::new(),
        client_id: Some(RequestId::now_v7()),
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
