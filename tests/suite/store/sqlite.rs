//! The store in one file: who may open it, who may read it, what it says when it was changed.

use std::{
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatbox::{
    chat::{NodeId, Rating, RequestId, TurnState, Usage},
    config::secret::Secret,
    metrics::Metrics,
    store::{
        self, Change, EndTurn, Error, NewEntry, NewShare, Open, OpenError, OpenSession, Purpose, Range, Rate, Search,
        Spend, Spent, Store,
        seal::{Key, KeyError, Seal},
        sqlite::{Options, Sqlite},
    },
};
use rusqlite::Connection;

use super::{Room, Shelf, ending, open, user};

impl Shelf {
    fn dir(&self) -> &Path {
        match self {
            Self::File(dir) => dir.path(),
            Self::Mongo(url) => panic!("{url} is no directory"),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir().join("data/chatbox.db")
    }

    /// Changes the closed file with plain SQL.
    fn tamper(&self, sql: &str) {
        Connection::open(self.path()).unwrap().execute_batch(sql).unwrap();
    }
}

/// A key of 32 bytes from a letter whose place in the alphabet of base64 is a multiple of four.
fn key(id: u32, letter: &str) -> Key {
    Key { id, key: Secret::new(format!("{}=", letter.repeat(43))) }
}

#[tokio::test]
async fn second_opener_is_refused_until_the_first_one_closes() {
    let shelf = Shelf::file();
    let first = shelf.open().await;
    let error = shelf.try_open(&[]).await.unwrap_err();
    assert_eq!(error.to_string(), "it is open in another process");
    first.close().await;
    let second = shelf.try_open(&[]).await.unwrap();
    assert!(matches!(shelf.try_open(&[]).await, Err(OpenError::Locked)));
    drop(second);
    shelf.try_open(&[]).await.unwrap();
}

/// A process that is being started has all files of the one that starts it until it is another program, and looks for
/// that one along the whole `PATH`.
#[tokio::test]
async fn file_is_free_when_its_store_has_closed_whatever_processes_are_started_meanwhile() {
    let shelf = Shelf::file();
    let done = AtomicBool::new(false);
    let start = || {
        while !done.load(Ordering::Relaxed) {
            let started = Command::new("no-such-program").env("PATH", "/nowhere:".repeat(4000)).spawn();
            assert_eq!(started.map(drop).unwrap_err().kind(), ErrorKind::NotFound);
        }
    };
    let open = |_| Sqlite::open(&shelf.path(), Seal::new(&[]).unwrap(), &Options::default(), Metrics::new()).err();
    let refused: Vec<_> = std::thread::scope(|scope| {
        let _starts = [scope.spawn(start), scope.spawn(start)];
        let refused = (0..20).filter_map(open).collect();
        done.store(true, Ordering::Relaxed);
        refused
    });
    assert!(refused.is_empty(), "{} of 20: {:?}", refused.len(), refused[0]);
}

#[tokio::test]
async fn file_and_directory_are_for_their_owner_alone() {
    let shelf = Shelf::file();
    let room = Room::new(shelf.open().await).await;
    room.append(room.entry("hello")).await;
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    let data = shelf.dir().join("data");
    assert_eq!(mode(data.clone()), 0o700);
    let mut files: Vec<_> = data.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 4, "database, lock and two of the log: {files:?}");
    for file in files {
        assert_eq!(mode(file.clone()), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn file_of_a_newer_version_is_refused() {
    let shelf = Shelf::file();
    drop(shelf.open().await);
    shelf.tamper("PRAGMA user_version = 99");
    let error = shelf.try_open(&[]).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn file_of_another_program_is_refused_and_left_alone() {
    let shelf = Shelf::file();
    std::fs::create_dir(shelf.dir().join("data")).unwrap();
    shelf.tamper("CREATE TABLE theirs (id INTEGER)");
    assert!(matches!(shelf.try_open(&[]).await, Err(OpenError::Foreign)));
    std::fs::write(shelf.path(), "not a database, but long enough to have a header of its own".repeat(9)).unwrap();
    assert!(matches!(shelf.try_open(&[]).await, Err(OpenError::Database(_))));
}

#[tokio::test]
async fn url_says_where_the_file_is() {
    let shelf = Shelf::file();
    let open = async |url: &str| {
        let config = store::Config { url: url.to_owned(), ..store::Config::default() };
        store::open(&config, shelf.dir(), Metrics::new()).await
    };
    for url in ["", "mysql://localhost", "sqlite::memory:", "sqlite:data/"] {
        let error = open(url).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("store url `{url}` is not `sqlite:PATH`")), "{error}");
    }
    let store = open(&store::Config::default().url).await.unwrap();
    assert!(shelf.dir().join("chatbox.db").is_file(), "the default lies in the data directory");
    drop(store);
}

#[tokio::test]
async fn turn_of_another_node_is_lost_although_its_lease_lasts() {
    let room = Room::fresh(Shelf::file()).await;
    let turn = room.ask("go").await.turn.id;
    let lost = room.store.lost(NodeId::new(), 10).await.unwrap();
    assert_eq!(lost.turns.iter().map(|turn| turn.id).collect::<Vec<_>>(), [turn]);
    assert_eq!(room.store.lost(room.node, 10).await.unwrap().turns, []);
    let end = EndTurn { only_lost: Some(NodeId::new()), ..ending(turn, TurnState::Interrupted) };
    assert!(room.store.end_turn(end).await.unwrap().is_some());
}

// checklist 78, 79
#[tokio::test]
async fn keys_that_cannot_be_used_keep_the_store_closed() {
    let shelf = Shelf::file();
    let short = Key { id: 1, key: Secret::new("AAAA") };
    assert!(matches!(shelf.try_open(&[short]).await, Err(OpenError::Key(KeyError::Length(1)))));
    assert!(!shelf.path().exists());
}

// checklist 83
#[tokio::test]
async fn sealed_file_shows_nobody_what_was_said() {
    let shelf = Shelf::file();
    let room = Room::new(shelf.try_open(&[key(7, "A")]).await.unwrap()).await;
    let secret = "xyzzy-plugh";
    let question = NewEntry {
        session_name: Some(format!("{secret} name")),
        files: vec![format!("{secret} file")],
        metadata: [("k".to_owned(), chatbox::chat::Scalar::Text(format!("{secret} fact")))].into(),
        ..room.question(&format!("{secret} question"))
    };
    let turn = room.append(question).await.started.unwrap().turn.id;
    assert!(room.extend(turn, 0, &format!("{secret} answer")).await);
    let scan = || {
        let files = shelf.dir().join("data").read_dir().unwrap();
        let bytes: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(bytes.len() > 4096);
        bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
    };
    assert!(!scan(), "while the turn runs");
    let end = EndTurn { thread: Some(format!("{secret} thread")), ..ending(turn, TurnState::Complete) };
    let reply = room.store.end_turn(end).await.unwrap().unwrap().reply;
    assert_eq!(reply.content, format!("{secret} answer"));
    let why = Some(format!("{secret} why"));
    let (id, session_id, owner) = (RequestId::new_v4(), room.session, room.user.clone());
    let rate = Rate { session_id, seq: 2, owner: owner.clone(), rating: Rating::Down, why };
    room.store.rate(rate).await.unwrap();
    let new = NewShare { id, session_id, owner, expires_at: None, shares_max: 1 };
    assert_eq!(room.store.share(new).await.unwrap().name, Some(format!("{secret} name")));
    room.changes(Change::BetterName(format!("{secret} better")), true).await;
    room.changes(Change::Name(format!("{secret} best")), true).await;
    let log = room.log().await;
    let sha256 = reply.sha256.unwrap();
    room.store.close().await;
    assert!(!scan(), "after the end");
    let stored: Vec<u8> = Connection::open(shelf.path())
        .unwrap()
        .query_row("SELECT sha256 FROM entries WHERE seq = 2", [], |row| row.get(0))
        .unwrap();
    assert!(!stored.windows(16).any(|window| window == &sha256.as_bytes()[..16]), "a hash tells what was said");

    let rotated = shelf.try_open(&[key(8, "E"), key(7, "A")]).await.unwrap();
    assert_eq!(rotated.entries(room.session, Range::Last(9)).await.unwrap(), log, "the old key still opens");
    assert_eq!(rotated.shared(id).await.unwrap().unwrap().name, Some(format!("{secret} name")));
    let thread = rotated.thread(room.session, "small").await.unwrap().unwrap();
    assert_eq!((thread.reference, thread.reply_seq), (format!("{secret} thread"), 2));
    let (user_id, text) = (room.user, format!("{secret} QUESTION"));
    let ask = Search { user_id, text, after: None, limit: 9, entries_max: 9 };
    assert_eq!(rotated.search(ask).await.unwrap().sessions[0].1, format!("{secret} question"));
}

#[tokio::test]
async fn deleted_session_leaves_rows_that_say_no_more_than_what_was_spent() {
    let shelf = Shelf::file();
    let room = Room::new(shelf.open().await).await;
    let kept = open(&*room.store, &room.user, Open::New, 2).await.id;
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, estimated: false };
    for session in [room.session, kept] {
        let room = room.beside(session);
        let turn = room.ask("so?").await.turn.id;
        let spent = Spent { model_id: "small".to_owned(), purpose: Purpose::Reply, usage, cost: Some(9) };
        let name = Spent { purpose: Purpose::Name, ..spent.clone() };
        let end = EndTurn { spent: vec![spent], ..ending(turn, TurnState::Complete) };
        assert!(room.store.end_turn(end).await.unwrap().is_some());
        let spend = Spend { id: RequestId::new_v4(), user_id: room.user.clone(), session_id: session, spent: name };
        room.store.spend(spend).await.unwrap();
    }
    room.store.delete_session(room.session, room.user.clone()).await.unwrap();
    room.store.close().await;
    let rows = |links: &str| {
        let sql = format!(
            "SELECT count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost), group_concat(purpose) FROM \
             (SELECT * FROM usage WHERE {links} ORDER BY purpose)"
        );
        let connection = Connection::open(shelf.path()).unwrap();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        connection.query_row(&sql, [], read).unwrap()
    };
    let two: (u32, u32, u32, u32, String) = (2, 6, 8, 18, "name,reply".to_owned());
    assert_eq!(rows("session_id IS NULL AND turn_id IS NULL AND user_id IS NULL AND id IS NULL"), two);
    assert_eq!(rows(&format!("user_id = 'ada' AND session_id = x'{}'", kept.0.simple())), two);
}

#[tokio::test]
async fn changed_moved_or_foreign_ciphertext_is_an_error_and_never_shown() {
    let shelf = Shelf::file();
    let keys = [key(7, "A")];
    let room = Room::new(shelf.try_open(&keys).await.unwrap()).await;
    let first = room.append(room.entry("first")).await.entry;
    room.append(room.entry("second")).await;
    room.store.close().await;
    let cases = [
        ("another row's", "UPDATE entries SET content = (SELECT content FROM entries WHERE seq = 2) WHERE seq = 1"),
        ("cut", "UPDATE entries SET content = substr(content, 1, length(content) - 1) WHERE seq = 1"),
        ("unknown key", "UPDATE entries SET content = CAST(x'000000ff' || substr(content, 5) AS BLOB) WHERE seq = 1"),
        ("no key", "UPDATE entries SET content = x'41' WHERE seq = 1"),
    ];
    for (case, sql) in cases {
        let before: Vec<u8> = content(&shelf);
        shelf.tamper(sql);
        let store = shelf.try_open(&keys).await.unwrap();
        let error = store.entries(room.session, Range::Last(9)).await.unwrap_err();
        let what = format!("stored entries.content of row {} does not open: ", first.id.0.simple());
        assert!(error.to_string().starts_with(&what), "{case}: {error}");
        drop(store);
        Connection::open(shelf.path())
            .unwrap()
            .execute("UPDATE entries SET content = ?1 WHERE seq = 1", [before])
            .unwrap();
    }
    let store = shelf.try_open(&keys).await.unwrap();
    assert_eq!(store.entries(room.session, Range::After(0, 1)).await.unwrap(), [first]);
}

fn content(shelf: &Shelf) -> Vec<u8> {
    let connection = Connection::open(shelf.path()).unwrap();
    connection.query_row("SELECT content FROM entries WHERE seq = 1", [], |row| row.get(0)).unwrap()
}

// checklist 74, 75
#[tokio::test]
async fn store_that_another_program_locks_is_overloaded_and_counts_it() {
    let shelf = Shelf::file();
    drop(shelf.open().await);
    let metrics = Metrics::new();
    // Long enough for a read on any machine.
    let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
    let seal = Seal::new(&[]).unwrap();
    let store = Sqlite::open(&shelf.path(), seal, &options, Arc::clone(&metrics)).unwrap();
    let other = Connection::open(shelf.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ask = OpenSession { user_id: user("ada"), open: Open::New, id: chatbox::chat::SessionId::new(), active_max: 1 };
    assert!(matches!(store.open_session(ask.clone()).await, Err(Error::Overloaded)));
    assert_eq!(metrics.store_errors_total.with_label_values(&["open_session"]).get(), 1);
    assert_eq!(store.session(ask.id).await.unwrap(), None, "reads do not wait for the writer");
    other.execute_batch("COMMIT").unwrap();
    store.close().await;
    assert_eq!(store.session(ask.id).await.unwrap(), None, "a write past its deadline is not done");
}

// checklist 72, 89, W8
#[tokio::test]
async fn counters_of_a_session_move_once() {
    let shelf = Shelf::file();
    let room = Room::new(shelf.open().await).await;
    for (state, prompt_tokens) in [(TurnState::Complete, 10), (TurnState::Stopped, 5)] {
        let turn = room.ask("go").await.turn.id;
        let usage = Some(Usage { prompt_tokens, completion_tokens: 2, estimated: false });
        let end = EndTurn { usage, ..ending(turn, state) };
        assert!(room.store.end_turn(end.clone()).await.unwrap().is_some());
        assert_eq!(room.store.end_turn(end).await.unwrap(), None);
    }
    room.store.close().await;
    let counters: [i64; 4] = Connection::open(shelf.path())
        .unwrap()
        .query_row("SELECT entries, prompt_tokens, completion_tokens, responses FROM sessions", [], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
        })
        .unwrap();
    assert_eq!(counters, [4, 15, 4, 1]);
}

#[tokio::test]
async fn deleted_words_are_not_left_in_the_file() {
    let shelf = Shelf::file();
    let room = Room::new(shelf.open().await).await;
    let other = room.next(2).await;
    let secret = "xyzzy-plugh";
    for nth in 0..40_usize {
        // Short and long ones, side by side with another session's rows, with replies that grow where they lie.
        let text = format!("{secret} ").repeat(1 + nth * nth * 5);
        let turn = room.ask(&text).await.turn.id;
        let others = other.ask(&"y".repeat(nth * 50)).await.turn.id;
        assert!(room.extend(turn, 0, &text).await);
        assert!(other.extend(others, 0, "half").await);
        let cut = (nth % 2 == 1).then_some("cut");
        room.end(turn, TurnState::Complete, cut).await.unwrap();
        other.end(others, TurnState::Complete, Some(&"z".repeat(nth * 100))).await.unwrap();
    }
    room.changes(Change::Name(secret.to_owned()), true).await;
    let new = NewShare {
        id: RequestId::new_v4(),
        session_id: room.session,
        owner: room.user.clone(),
        expires_at: None,
        shares_max: 1,
    };
    room.store.share(new).await.unwrap();
    let kept = other.log().await;
    room.store.delete_session(room.session, room.user.clone()).await.unwrap();
    room.store.close().await;
    let bytes = std::fs::read(shelf.path()).unwrap();
    let left = bytes.windows(secret.len()).filter(|window| *window == secret.as_bytes()).count();
    assert_eq!(left, 0, "of {} bytes", bytes.len());
    let store = shelf.open().await;
    assert_eq!(store.entries(other.session, Range::After(0, 1000)).await.unwrap(), kept);
}
