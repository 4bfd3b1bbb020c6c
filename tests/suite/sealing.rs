//! Encryption at rest, from outside: which keys a store opens with, how they are changed, and what is told of a value
//! that somebody else has changed.

mod commands; // `rotate-keys`, and what other commands say of keys
mod shared; // a database that nodes share
mod told; // what clients and the log are told of a value that does not open

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    slice,
    sync::Arc,
};

use chatbox::{
    chat::{
        Entry, EntryId, EntryKind, Metadata, NodeId, Rating, RequestId, Scalar, Sender, SessionId, TurnId, TurnState,
        UserId,
    },
    config::secret::Secret,
    metrics::Metrics,
    store::{
        self, EndTurn, Lease, NewEntry, NewShare, NewTurn, Open, OpenError, OpenSession, Range, Rate, Store, TurnText,
        rotation::{self, Progress, State},
        seal::{Key, PLAIN},
    },
};
use rusqlite::{Connection, types::Value};

use crate::harness::stopwatch::Stopwatch;

/// Every sealed column, with the column that names its row.
const COLUMNS: [(&str, &str); 10] = [
    ("sessions", "name"),
    ("sessions", "assist_name"),
    ("entries", "content"),
    ("entries", "files"),
    ("entries", "metadata"),
    ("entries", "sha256"),
    ("entries", "rating_why"),
    ("turn_chunks", "text"),
    ("shares", "name"),
    ("threads", "reference"),
];

/// A key of 32 bytes from a letter whose place in the alphabet of base64 is a multiple of four.
fn key(id: u32, letter: &str) -> Key {
    Key { id, key: Secret::new(format!("{}=", letter.repeat(43))) }
}

/// A file that is opened with one list of keys after another.
struct Safe {
    dir: PathBuf,
    _home: Option<tempfile::TempDir>,
}

/// One in a directory of somebody else's.
fn safe_at(dir: &Path) -> Safe {
    Safe { dir: dir.to_owned(), _home: None }
}

impl Safe {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { dir: home.path().to_owned(), _home: Some(home) }
    }

    async fn try_open(&self, keys: &[Key]) -> Result<Arc<dyn Store>, OpenError> {
        let config = store::Config { encryption_keys: keys.to_vec(), ..store::Config::default() };
        store::open(&config, &self.dir, Metrics::new()).await
    }

    async fn open(&self, keys: &[Key]) -> Arc<dyn Store> {
        self.try_open(keys).await.unwrap()
    }

    async fn refused(&self, keys: &[Key]) -> String {
        self.try_open(keys).await.unwrap_err().to_string()
    }

    fn sql(&self) -> Connection {
        Connection::open(self.dir.join("chatbox.db")).unwrap()
    }

    /// Values by the key that their first bytes name.
    fn values(&self) -> BTreeMap<u32, u64> {
        let mut values = BTreeMap::new();
        for (table, column) in COLUMNS {
            let sql = format!("SELECT substr({column}, 1, 4) FROM {table} WHERE {column} IS NOT NULL");
            let connection = self.sql();
            let mut statement = connection.prepare(&sql).unwrap();
            for id in statement.query_map([], |row| row.get::<_, [u8; 4]>(0)).unwrap() {
                *values.entry(u32::from_be_bytes(id.unwrap())).or_default() += 1;
            }
        }
        values
    }
}

/// What somebody says and gets answered, with a value in every sealed column but that of assistance.
struct Talk {
    session: SessionId,
    log: Vec<Entry>,
}

const MODEL: &str = "small";

async fn talk(store: &dyn Store, user: &str, text: &str) -> Talk {
    let user_id = UserId::parse(user).unwrap();
    let ask = OpenSession { user_id: user_id.clone(), open: Open::Current, id: SessionId::new(), active_max: 1 };
    let session = store.open_session(ask).await.unwrap().session.id;
    let node = NodeId::new();
    let ttl = std::time::Duration::from_secs(600);
    let lease = Lease { node, ttl, default_model: MODEL.to_owned(), reply_id: EntryId::new() };
    let turn = NewTurn { id: TurnId::new(), lease, queued_max: 16 };
    let entry = NewEntry {
        files: vec![format!("{text} file")],
        metadata: [("k".to_owned(), Scalar::Text(format!("{text} fact")))].into(),
        turn: Some(turn),
        session_name: Some(format!("{text} name")),
        ..message(session, &user_id, text)
    };
    let started = store.append(entry).await.unwrap().started.unwrap();
    let turn_id = started.turn.id;
    let thread = Some(format!("{text} thread"));
    let end = EndTurn { text: Some(format!("{text} answer")), thread, ..EndTurn::of(turn_id, TurnState::Complete) };
    store.end_turn(end).await.unwrap().unwrap();
    let (seq, owner) = (started.reply_seq, user_id.clone());
    let rate = Rate { session_id: session, seq, owner, rating: Rating::Up, why: Some(format!("{text} why")) };
    store.rate(rate).await.unwrap();
    let id = RequestId::new_v4();
    let new = NewShare { id, session_id: session, owner: user_id, expires_at: None, shares_max: 9 };
    store.share(new).await.unwrap();
    Talk { session, log: log(store, session).await }
}

fn message(session_id: SessionId, user_id: &UserId, content: &str) -> NewEntry {
    NewEntry {
        session_id,
        owner: user_id.clone(),
        id: EntryId::new(),
        client_id: Some(RequestId::new_v4()),
        user_id: user_id.clone(),
        sender: Sender::User,
        kind: EntryKind::Text,
        content: content.to_owned(),
        files: Vec::new(),
        metadata: Metadata::new(),
        turn: None,
        session_name: None,
    }
}

/// A reply that is being written.
async fn running(store: &dyn Store, session: SessionId, user: &str) -> TurnId {
    let (node, user_id) = (NodeId::new(), UserId::parse(user).unwrap());
    let ttl = std::time::Duration::from_secs(600);
    let lease = Lease { node, ttl, default_model: MODEL.to_owned(), reply_id: EntryId::new() };
    let turn = Some(NewTurn { id: TurnId::new(), lease, queued_max: 16 });
    let entry = NewEntry { turn, ..message(session, &user_id, "go on") };
    let turn = store.append(entry).await.unwrap().started.unwrap().turn.id;
    for (offset, text) in [(0, "half "), (5, "of it")] {
        let piece = TurnText { offset, text: text.to_owned() };
        assert!(store.extend_turn(turn, node, piece, ttl).await.unwrap());
    }
    turn
}

async fn log(store: &dyn Store, session: SessionId) -> Vec<Entry> {
    store.entries(session, Range::After(0, 10_000)).await.unwrap()
}

async fn rotate(store: &dyn Store) -> Progress {
    rotation::rotate(store, &Metrics::new(), |_progress| {}).await.unwrap()
}

// checklist 78, 83
#[tokio::test]
async fn rotated_store_opens_with_the_new_key_alone_and_not_with_the_old_one() {
    let safe = Safe::new();
    let (old, new) = (key(1, "A"), key(2, "E"));
    let store = safe.open(&[]).await;
    let plain = talk(&*store, "ada", "plain").await;
    store.close().await;
    let store = safe.open(slice::from_ref(&old)).await;
    let sealed = talk(&*store, "bob", "sealed").await;
    let turn = running(&*store, sealed.session, "bob").await;
    store.close().await;
    assert_eq!(safe.values(), [(PLAIN, 9), (1, 12)].into());
    let told = "the store holds values of encryption key 1, and `store.encryption_keys` has 2: add what is missing";
    assert_eq!(safe.refused(slice::from_ref(&new)).await, told);
    let told = "the store holds values of encryption key 1, and `store.encryption_keys` has none: add what is missing";
    assert_eq!(safe.refused(&[]).await, told);
    let told = "encryption key 1 is not the one that the store's values were sealed with: the id is, its bytes are not";
    assert_eq!(safe.refused(&[new.clone(), key(1, "I")]).await, told);

    let store = safe.open(&[new.clone(), old.clone()]).await;
    let progress = rotate(&*store).await;
    assert_eq!((progress.state, progress.key, progress.renewed, progress.failed), (State::Done, 2, 21, 0));
    assert_eq!((progress.pass, progress.values), (2, [(2, 21)].into()), "the second pass finds nothing");
    assert_eq!(rotate(&*store).await.pass, 0, "once more costs no look");
    assert_eq!(store.turn_text(turn, 0).await.unwrap().text, "half of it");
    store.close().await;
    assert_eq!(safe.values(), [(2, 21)].into());
    let told = "the store holds values of encryption key 2, and `store.encryption_keys` has 1: add what is missing";
    assert_eq!(safe.refused(&[old]).await, told);

    let store = safe.open(&[new]).await;
    assert_eq!(log(&*store, plain.session).await, plain.log);
    assert_eq!(log(&*store, sealed.session).await[..2], sealed.log);
    let session = store.session(plain.session).await.unwrap().unwrap();
    assert_eq!(session.name.as_deref(), Some("plain name"));
    let thread = store.thread(sealed.session, MODEL).await.unwrap().unwrap();
    assert_eq!(thread.reference, "sealed thread");
    let share = store.shares_of(&[sealed.session]).await.unwrap().remove(0);
    assert_eq!(share.name.as_deref(), Some("sealed name"));
}

#[tokio::test]
async fn rotation_that_is_cut_goes_on_with_what_is_left() {
    let safe = Safe::new();
    let (old, new) = (key(1, "A"), key(2, "E"));
    let store = safe.open(slice::from_ref(&old)).await;
    let Talk { session, .. } = talk(&*store, "ada", "first").await;
    let user = UserId::parse("ada").unwrap();
    for nth in 0..300 {
        store.append(message(session, &user, &format!("message {nth}"))).await.unwrap();
    }
    let before = log(&*store, session).await;
    store.close().await;
    let keys = [new.clone(), old];
    let store = safe.open(&keys).await;
    let mut place = None;
    for _batch in 0..4 {
        place = store.reseal(place, 50).await.unwrap().next;
        assert!(place.is_some());
    }
    drop(store);
    let done = safe.values()[&2];
    assert!((100..250).contains(&done), "{done}");
    let store = safe.open(&keys).await;
    let progress = rotate(&*store).await;
    assert_eq!((progress.state, progress.renewed), (State::Done, 309 - done));
    assert_eq!(log(&*store, session).await, before);
    drop(store);
    assert_eq!(log(&*safe.open(&[new]).await, session).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_go_on_during_a_rotation_and_nothing_of_theirs_is_lost() {
    let safe = Safe::new();
    let (old, new) = (key(1, "A"), key(2, "E"));
    let store = safe.open(slice::from_ref(&old)).await;
    let session = talk(&*store, "ada", "first").await.session;
    let user = UserId::parse("ada").unwrap();
    let append = async |store: &dyn Store, text: String| {
        store.append(message(session, &user, &text)).await.unwrap();
    };
    futures_util::future::join_all((0..2000).map(|nth| append(&*store, format!("old {nth}")))).await;
    store.close().await;
    let store = safe.open(&[new.clone(), old]).await;
    let writes = async {
        let mut longest = std::time::Duration::ZERO;
        for nth in 0..400 {
            let began = Stopwatch::start();
            append(&*store, format!("new {nth}")).await;
            let rate = Rate { session_id: session, seq: 2, owner: user.clone(), rating: Rating::Down, why: None };
            store.rate(Rate { why: Some(format!("why {nth}")), ..rate }).await.unwrap();
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (progress, longest) = tokio::join!(rotate(&*store), writes);
    assert_eq!((progress.state, progress.failed), (State::Done, 0));
    println!("the longest of 400 pairs of writes took {longest:?} while {} values were renewed", progress.renewed);
    assert!(longest.as_secs() < 5, "{longest:?}");
    let texts = log(&*store, session).await;
    assert_eq!(texts.len(), 2402);
    assert_eq!(texts.iter().filter(|entry| entry.content.starts_with("new ")).count(), 400);
    store.close().await;
    assert_eq!(safe.values().into_keys().collect::<Vec<_>>(), [2]);
    assert_eq!(log(&*safe.open(&[new]).await, session).await, texts);
}

#[tokio::test]
async fn value_that_does_not_open_is_left_and_keeps_its_key_needed() {
    let safe = Safe::new();
    let keys = [key(2, "E"), key(1, "A")];
    let store = safe.open(&keys[1..]).await;
    let session = talk(&*store, "ada", "first").await.session;
    store.close().await;
    let broken = "UPDATE entries SET content = substr(content, 1, length(content) - 1) WHERE seq = 1";
    safe.sql().execute(broken, []).unwrap();
    let store = safe.open(&keys).await;
    let progress = rotate(&*store).await;
    assert_eq!((progress.state, progress.renewed, progress.failed), (State::Incomplete, 8, 1));
    assert_eq!(progress.values, [(1, 1), (2, 8)].into());
    let error = store.entries(session, Range::Last(9)).await.unwrap_err().to_string();
    let why = "does not open: it is not what encryption key 1, which is configured, sealed there";
    assert!(error.starts_with("stored entries.content of row ") && error.ends_with(why), "{error}");
    store.close().await;
    assert!(safe.refused(&keys[..1]).await.contains("values of encryption key 1,"), "it must be kept");
    assert_eq!(safe.values(), [(1, 1), (2, 8)].into());
}

/// Whoever can write the file cannot make it take plain text again.
#[tokio::test]
async fn plain_text_in_a_sealed_store_is_an_error_whatever_the_file_says_of_it() {
    let safe = Safe::new();
    let keys = [key(1, "A")];
    let store = safe.open(&[]).await;
    let session = talk(&*store, "ada", "first").await.session;
    store.close().await;
    let content = |value: Value| {
        safe.sql().execute("UPDATE entries SET content = ?1 WHERE seq = 1", [value]).unwrap();
    };
    let forged = Value::Blob(b"\0\0\0\0forged".to_vec());
    content(forged.clone());
    let store = safe.open(&keys).await;
    assert_eq!(log(&*store, session).await[0].content, "forged", "it is not sealed yet");
    assert_eq!(rotate(&*store).await.state, State::Done);
    store.close().await;
    let sealed = safe.sql().query_row("SELECT content FROM entries WHERE seq = 1", [], |row| row.get(0)).unwrap();
    content(forged);
    safe.sql().execute("INSERT INTO seal_keys (id, proof) VALUES (0, x'')", []).unwrap();
    let store = safe.open(&keys).await;
    let error = store.entries(session, Range::Last(9)).await.unwrap_err().to_string();
    assert!(error.ends_with("does not open: it is plain text, which this store holds no more"), "{error}");
    drop(store);
    content(sealed);
    assert_eq!(log(&*safe.open(&keys).await, session).await[0].content, "forged");
}

/// The file of a version that did not say what it is sealed with.
#[tokio::test]
async fn file_of_an_older_version_tells_its_keys_by_its_values() {
    let safe = Safe::new();
    let keys = [key(1, "A"), key(7, "I")];
    let store = safe.open(&keys).await;
    let kept = talk(&*store, "ada", "first").await;
    store.close().await;
    let back = "DROP TABLE seal_keys; DROP INDEX turns_waiting; \
        CREATE INDEX turns_open ON turns (session_id, ended_at); PRAGMA user_version = 3";
    safe.sql().execute_batch(back).unwrap();
    let told = "the store holds values of encryption key 1, and `store.encryption_keys` has 7: add what is missing";
    assert_eq!(safe.refused(&keys[1..]).await, told);
    let told = "encryption key 1 is not the one that the store's values were sealed with: the id is, its bytes are not";
    assert_eq!(safe.refused(&[key(1, "E")]).await, told);
    let store = safe.open(&keys).await;
    assert_eq!(log(&*store, kept.session).await, kept.log);
    store.close().await;
    let held: Vec<u32> = {
        let connection = safe.sql();
        let mut statement = connection.prepare("SELECT id FROM seal_keys ORDER BY id").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(held, [1], "a key that nothing is sealed with is not needed");
}
