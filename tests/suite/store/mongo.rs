//! The store that nodes share: several of them on one database, answers that are lost, crashes between a commit and
//! its rows, and what the database shows to a reader of it.

use std::{collections::BTreeSet, sync::Arc};

use chatbox::{
    chat::{NodeId, SessionId, SessionState, TurnId, TurnState, Usage},
    config::secret::Secret,
    store::{
        Change, EndTurn, NewEntry, NewShare, Open, OpenError, OpenSession, Purpose, Range, Search, Spend, Spent,
        seal::Key,
    },
};
use mongodb::{
    Client, Collection, Database,
    bson::{Bson, Document, doc},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Room, Shelf, ending, open, places, user};
use crate::harness::fault::Fault;

impl Shelf {
    fn url(&self) -> &str {
        match self {
            Self::Mongo(url) => url,
            Self::File(dir) => panic!("{} is no server", dir.path().display()),
        }
    }

    /// The database, seen by another program.
    async fn database(&self) -> Database {
        let client = Client::with_uri_str(self.url()).await.unwrap();
        client.default_database().unwrap()
    }

    async fn rows(&self, table: &str) -> Collection<Document> {
        self.database().await.collection(table)
    }

    /// The database is its stores' name too ([`Shelf::mongo`]).
    async fn fault(&self, data: Document, mode: impl Into<Bson>) -> Fault {
        let database = self.database().await;
        Fault::set(database.client(), database.name(), data, mode).await
    }
}

/// A write that is done, and whose answer says that nobody knows whether it stays (MongoDB 91, ShutdownInProgress).
fn lost_answer() -> Document {
    let error = doc! { "code": 91, "errmsg": "as this test wants it" };
    doc! { "failCommands": ["insert", "update", "delete"], "writeConcernError": error }
}

/// A command that is never done, on a connection that ends.
fn lost_question() -> Document {
    doc! { "failCommands": ["insert", "update", "delete", "find"], "closeConnection": true }
}

/// A server that is not the primary any more (MongoDB 10107, NotWritablePrimary).
fn lost_primary() -> Document {
    let labels = ["RetryableWriteError"].to_vec();
    doc! { "failCommands": ["insert", "update", "delete", "find"], "errorCode": 10107, "errorLabels": labels }
}

/// A key of 32 bytes from a letter whose place in the alphabet of base64 is a multiple of four.
fn key(id: u32, letter: &str) -> Key {
    Key { id, key: Secret::new(format!("{}=", letter.repeat(43))) }
}

fn spent(tokens: u64) -> Spent {
    let usage = Usage { prompt_tokens: tokens, completion_tokens: 1, estimated: false };
    Spent { model_id: "small".to_owned(), purpose: Purpose::Reply, usage, cost: Some(2) }
}

/// Every write once, each after `before`. Asserts that each was done once.
async fn every_write(room: &Room, before: impl AsyncFn()) {
    let (store, owner) = (&room.store, room.user.clone());
    before().await;
    let started = room.ask("question").await;
    before().await;
    assert!(room.extend(started.turn.id, 0, "half ").await);
    before().await;
    assert!(room.extend(started.turn.id, 5, "an answer").await);
    before().await;
    let waits = room.queue("waits").await;
    before().await;
    let end = EndTurn { spent: vec![spent(7)], ..ending(started.turn.id, TurnState::Complete) };
    let reply = store.end_turn(end).await.unwrap().expect("it is this call that ends it").reply;
    assert_eq!(reply.content, "half an answer");
    before().await;
    assert_eq!(room.start().await.expect("it is this call that starts it").turn.id, waits);
    let again = TurnId::new();
    before().await;
    assert!(room.give_up(waits, again).await.expect("it is this call that ends it").asked_again);
    assert_eq!(room.open_turns().await, [again]);
    before().await;
    assert!(room.end(again, TurnState::Stopped, None).await.is_some());
    before().await;
    let made = room.regenerate(again).await.unwrap();
    assert!(made.started.is_some(), "it is this call that starts it");
    before().await;
    assert!(room.end(made.turn_id, TurnState::Complete, Some("another")).await.is_some());
    before().await;
    room.rate(2, "good", chatbox::chat::Rating::Up).await.unwrap();
    before().await;
    assert!(room.change(Change::Name("named".to_owned())).await.unwrap().changed);
    let (id, session_id) = (Uuid::new_v4(), room.session);
    before().await;
    let share = NewShare { id, session_id, owner: owner.clone(), expires_at: None, shares_max: 3 };
    assert_eq!(store.share(share).await.unwrap().last_seq, 6);
    before().await;
    let spend = Spend { id: Uuid::now_v7(), user_id: owner.clone(), session_id, spent: spent(5) };
    store.spend(spend).await.unwrap();
    before().await;
    assert_eq!(store.unshare(session_id, owner.clone()).await.unwrap(), 1);
    let log = room.log().await;
    assert_eq!(places(&log), [1, 2, 3, 4, 5, 6]);
    let replies: Vec<_> = log.iter().filter_map(|entry| Some((entry.seq, entry.reply_to?))).collect();
    assert_eq!(replies, [(2, 1), (4, 3), (5, 3), (6, 3)]);
    let row = room.row().await;
    assert_eq!((row.rev, row.last_seq, row.counters.responses, row.name.as_deref()), (11, 6, 2, Some("named")));
    let days = store.spent(&owner, chatbox::chat::Day(0)).await.unwrap();
    let sum = |of: fn(&chatbox::store::DaySpent) -> u64| days.iter().map(of).sum::<u64>();
    assert_eq!((sum(|day| day.requests), sum(|day| day.tokens()), sum(|day| day.cost.unwrap())), (2, 14, 4));
    before().await;
    let ask = OpenSession { user_id: owner.clone(), open: Open::New, id: SessionId::new(), active_max: 1 };
    let opened = store.open_session(ask.clone()).await.unwrap();
    assert_eq!((opened.changed, opened.session.id), (true, ask.id));
    assert_eq!(opened.ended.iter().map(|ended| ended.id).collect::<Vec<_>>(), [room.session]);
    before().await;
    let reopened = store.open_session(OpenSession { open: Open::Reopen(room.session), ..ask.clone() }).await.unwrap();
    assert_eq!((reopened.changed, reopened.session.state), (true, SessionState::Active));
    before().await;
    assert!(store.delete_session(room.session, owner).await.unwrap().changed);
    assert_eq!(room.log().await, []);
}

// checklist 67, 68, 75, W6, W7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_whose_answer_or_question_is_lost_is_done_once() {
    for fault in [lost_answer, lost_question, lost_primary] {
        let Some(shelf) = Shelf::mongo().await else { return };
        let room = Room::new(shelf.open().await).await;
        let fault = shelf.fault(fault(), doc! { "times": 2 }).await;
        every_write(&room, async || fault.twice().await).await;
        fault.end().await;
        check_rows(&shelf).await;
    }
}

/// What is left of the only session that is left: nothing of the other one's rows.
async fn check_rows(shelf: &Shelf) {
    for table in ["entries", "turns", "turn_chunks", "requests"] {
        assert_eq!(shelf.rows(table).await.count_documents(doc! {}).await.unwrap(), 0, "{table}");
    }
    let usage: Vec<Document> =
        futures_util::TryStreamExt::try_collect(shelf.rows("usage").await.find(doc! {}).await.unwrap()).await.unwrap();
    assert_eq!(usage.len(), 2);
    for row in usage {
        assert!(
            !row.contains_key("user_id") && !row.contains_key("session_id") && !row.contains_key("turn_id"),
            "{row}"
        );
    }
}

// checklist 65, W1, W2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_write_one_log_without_gaps() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let stores = [shelf.open().await, shelf.open().await];
    let room = Room::new(Arc::clone(&stores[0])).await;
    let mut calls = JoinSet::new();
    for nth in 0..64 {
        let store = Arc::clone(&stores[nth % 2]);
        let entry = room.entry(&nth.to_string());
        calls.spawn(async move { store.append(entry).await.unwrap().entry.seq });
    }
    let seen: BTreeSet<u64> = calls.join_all().await.into_iter().collect();
    assert_eq!(seen, (1..=64).collect());
    for store in &stores {
        let log = store.entries(room.session, Range::Last(100)).await.unwrap();
        assert_eq!(places(&log), (1..=64).collect::<Vec<_>>());
        assert_eq!(log.iter().map(|entry| &entry.content).collect::<BTreeSet<_>>().len(), 64);
    }
    assert_eq!(room.row().await.rev, 65);
}

// checklist 68, 76, W6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_over_two_nodes_and_two_sessions_makes_one_entry() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let stores = [shelf.open().await, shelf.open().await];
    let room = Room::new(Arc::clone(&stores[0])).await;
    let other = room.next(2).await;
    for _round in 0..20 {
        let client_id = Some(Uuid::new_v4());
        let mut calls = JoinSet::new();
        for nth in 0..8 {
            let store = Arc::clone(&stores[nth % 2]);
            let room = if nth % 4 < 2 { &room } else { &other };
            let entry = NewEntry { client_id, ..room.entry("once") };
            calls.spawn(async move { store.append(entry).await.unwrap() });
        }
        let answers = calls.join_all().await;
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
        let made: BTreeSet<_> = answers.iter().map(|answer| answer.entry.id).collect();
        assert_eq!(made.len(), 1, "all are told of the same one");
    }
    let all = room.log().await.len() + other.log().await.len();
    assert_eq!(all, 20);
}

// checklist 3, 4, W4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_messages_over_three_nodes_make_one_session() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let stores = [shelf.open().await, shelf.open().await, shelf.open().await];
    let mut calls = JoinSet::new();
    for nth in 0..50 {
        let store = Arc::clone(&stores[nth % 3]);
        calls.spawn(async move { open(&*store, &user("ada"), Open::Current, 1).await.id });
    }
    let sessions: BTreeSet<SessionId> = calls.join_all().await.into_iter().collect();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(shelf.rows("sessions").await.count_documents(doc! {}).await.unwrap(), 1);
}

// checklist 77
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_one_ends_the_turn_and_the_other_one_goes_silent() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let room = Room::new(shelf.open().await).await;
    let other = Room { store: shelf.open().await, node: NodeId::new(), ..room.beside(room.session) };
    for round in 0..10 {
        let turn = room.ask("go").await.turn.id;
        assert!(room.extend(turn, 0, "text").await);
        let (mine, theirs) = tokio::join!(
            room.end(turn, TurnState::Complete, Some("text, all of it")),
            other.end(turn, TurnState::Stopped, None)
        );
        let reply = mine.xor(theirs).expect("one of them").reply;
        assert_eq!(room.log().await.pop().unwrap(), reply, "round {round}");
        assert!(!room.extend(turn, 4, "late").await, "whoever still writes is told");
    }
}

// checklist 68
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_that_find_an_abandoned_turn_one_asks_its_message_again() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let room = Room::new(shelf.open().await).await;
    let other = Room { store: shelf.open().await, node: NodeId::new(), ..room.beside(room.session) };
    let mut turn = room.ask("go").await.turn.id;
    for round in 0..10 {
        let again = [TurnId::new(), TurnId::new()];
        let (mine, theirs) = tokio::join!(room.give_up(turn, again[0]), other.give_up(turn, again[1]));
        turn = if mine.is_some() { again[0] } else { again[1] };
        assert!(mine.xor(theirs).expect("one of them").asked_again, "round {round}");
        assert_eq!(room.open_turns().await, [turn], "round {round}");
        assert_eq!(other.start().await.unwrap().turn.id, turn);
    }
    assert_eq!(room.log().await.iter().filter_map(|entry| entry.reply_to).collect::<Vec<_>>(), [1; 11]);
}

// checklist 69, W5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_ends_between_a_commit_and_its_rows_leaves_nothing_half_done() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let room = Room::new(shelf.open().await).await;
    let name = shelf.database().await.name().to_owned();
    let data = doc! { "failCommands": ["insert"], "namespace": format!("{name}.entries"), "closeConnection": true };
    let fault = shelf.fault(data, "alwaysOn").await;
    // A node with a runtime of its own, which goes and takes along what it was about to do.
    let (question, config) = (room.question("asked before the end"), shelf.config());
    let started = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let appended = runtime.block_on(async {
            let store = chatbox::store::open(&config, "data".as_ref(), chatbox::metrics::Metrics::new()).await.unwrap();
            store.append(question).await.unwrap()
        });
        runtime.shutdown_background();
        appended
    });
    let appended = tokio::task::spawn_blocking(|| started.join().unwrap()).await.unwrap();
    assert_eq!(shelf.rows("entries").await.count_documents(doc! {}).await.unwrap(), 0);
    fault.end().await;
    let log = room.log().await;
    assert_eq!((places(&log), &log[0]), (vec![1, 2], &appended.entry));
    assert_eq!(room.store.entry_of(&room.user, appended.entry.client_id.unwrap()).await.unwrap(), Some(log[0].clone()));
    let turn = appended.started.unwrap().turn;
    assert_eq!(room.store.turn(turn.id).await.unwrap(), Some(turn.clone()));
    assert!(room.end(turn.id, TurnState::Complete, Some("done")).await.is_some());
    assert_eq!(room.append(room.entry("next")).await.entry.seq, 3);
    assert_eq!(places(&room.log().await), [1, 2, 3]);
    assert_eq!(room.log().await[0], log[0]);
    room.store.close().await;
    assert_eq!(shelf.rows("entries").await.count_documents(doc! {}).await.unwrap(), 3);
}

// checklist 83, W41
#[tokio::test]
async fn changed_moved_or_foreign_ciphertext_is_an_error_and_never_shown() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let keys = [key(7, "A")];
    let room = Room::new(shelf.try_open(&keys).await.unwrap()).await;
    let secret = "xyzzy-plugh";
    let first = room.append(room.entry(secret)).await.entry;
    room.append(room.entry("second")).await;
    room.change(Change::Name(secret.to_owned())).await.unwrap();
    room.store.close().await;
    let rows = shelf.rows("entries").await;
    let row = async |seq: i64| rows.find_one(doc! { "seq": seq }).await.unwrap().unwrap();
    let (sealed, other) = (row(1).await, row(2).await);
    let bytes = |row: &Document| row.get_binary_generic("content").unwrap().clone();
    let cut = bytes(&sealed)[..bytes(&sealed).len() - 1].to_vec();
    let unknown = [vec![0, 0, 0, 255], bytes(&sealed)[4..].to_vec()].concat();
    for (case, content) in [("another row's", bytes(&other)), ("cut", cut), ("unknown key", unknown)] {
        let subtype = mongodb::bson::spec::BinarySubtype::Generic;
        let content = mongodb::bson::Binary { subtype, bytes: content };
        rows.update_one(doc! { "seq": 1_i64 }, doc! { "$set": { "content": content } }).await.unwrap();
        let store = shelf.try_open(&keys).await.unwrap();
        let error = store.entries(room.session, Range::Last(9)).await.unwrap_err();
        let what = format!("stored entries.content of row {} does not open", first.id.0.simple());
        assert!(error.to_string().starts_with(&what), "{case}: {error}");
    }
    rows.replace_one(doc! { "seq": 1_i64 }, &sealed).await.unwrap();
    assert!(matches!(shelf.try_open(&[key(9, "I")]).await, Err(OpenError::Sealed(_))));
    let rotated = shelf.try_open(&[key(9, "I"), key(7, "A")]).await.unwrap();
    assert_eq!(rotated.entries(room.session, Range::After(0, 1)).await.unwrap(), [first]);
    for table in ["entries", "sessions"] {
        let found: Vec<Document> =
            futures_util::TryStreamExt::try_collect(shelf.rows(table).await.find(doc! {}).await.unwrap())
                .await
                .unwrap();
        let shown = found.iter().any(|row| {
            let bytes = mongodb::bson::serialize_to_vec(row).unwrap();
            bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
        });
        assert!(!found.is_empty() && !shown, "{table}");
    }
}

#[tokio::test]
async fn database_of_a_newer_version_is_refused() {
    let Some(shelf) = Shelf::mongo().await else { return };
    drop(shelf.open().await);
    let set = doc! { "$set": { "version": 99_i64 } };
    shelf.rows("meta").await.update_one(doc! { "_id": "schema" }, set).await.unwrap();
    let error = shelf.try_open(&[]).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, known: 1 }), "{error}");
}

#[tokio::test]
async fn database_of_another_program_is_left_alone() {
    let Some(shelf) = Shelf::mongo().await else { return };
    shelf.rows("sessions").await.insert_one(doc! { "_id": "one", "user_id": "ann" }).await.unwrap();
    let error = shelf.try_open(&[]).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign), "{error}");
    let tables = shelf.database().await.list_collection_names().await.unwrap();
    assert_eq!(tables, ["sessions"], "nothing was made beside it");
}

// checklist 90
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_query_reads_a_whole_table() {
    let Some(shelf) = Shelf::mongo().await else { return };
    let room = Room::new(shelf.open().await).await;
    let database = shelf.database().await;
    let rows = database.collection::<Document>("entries");
    for thousand in 0..50_i64 {
        let filler = Uuid::new_v4().as_bytes().to_vec();
        let subtype = mongodb::bson::spec::BinarySubtype::Generic;
        let session = mongodb::bson::Binary { subtype, bytes: filler };
        let many = (1..=1000_i64).map(|nth| doc! { "session_id": session.clone(), "seq": thousand * 1000 + nth });
        rows.insert_many(many).await.unwrap();
    }
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let eve = user("eve");
    let session = open(&*room.store, &eve, Open::Current, 1).await.id;
    every_write(&Room { user: eve, ..room.beside(session) }, async || {}).await;
    let (store, now) = (&room.store, room.row().await.last_activity);
    room.append(room.entry("words")).await;
    let ask = Search { user_id: room.user.clone(), text: "nowhere".to_owned(), after: None, limit: 9, entries_max: 99 };
    store.search(ask).await.unwrap();
    for order in [chatbox::store::Order::Activity, chatbox::store::Order::Created] {
        let after = Some(chatbox::store::Place { at: now, id: room.session });
        let ask = chatbox::store::ListSessions { user_id: room.user.clone(), order, after, limit: 9 };
        store.sessions(ask).await.unwrap();
    }
    store.idle_sessions(now, 9).await.unwrap();
    store.user_revs(std::slice::from_ref(&room.user), 9).await.unwrap();
    store.revs(&[room.session]).await.unwrap();
    store.entry_of(&room.user, Uuid::new_v4()).await.unwrap();
    store.shared(Uuid::new_v4()).await.unwrap();
    store.shares_of(&[room.session]).await.unwrap();
    store.lost(room.node, 9).await.unwrap();
    store.turn_text(room.ask("one more").await.turn.id, 0).await.unwrap();
    store.ready().await.unwrap();
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let seen: Vec<Document> =
        futures_util::TryStreamExt::try_collect(profile.find(doc! {}).await.unwrap()).await.unwrap();
    let plans: BTreeSet<_> = seen.iter().filter_map(|seen| seen.get_str("planSummary").ok()).collect();
    assert!(seen.len() > 50 && plans.iter().any(|plan| plan.contains("lease_until")), "{plans:?}");
    let whole: Vec<_> = seen
        .iter()
        .filter(|seen| {
            let plan = seen.get_str("planSummary").unwrap_or_default();
            plan.contains("COLLSCAN") || seen.get_i32("docsExamined").is_ok_and(|examined| examined > 100)
        })
        .collect();
    assert!(whole.is_empty(), "{whole:?}");
}
