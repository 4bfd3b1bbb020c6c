//! The tables, their versions, and the one way to open a connection.
//!
//! Ids are 16-byte BLOBs, moments are milliseconds since 1970 UTC, and a column that holds people's words is a
//! BLOB that [`crate::store::seal`] closed. `PRAGMA user_version` counts the migrations that a file has had.
//!
//! What a commit costs is the pages that it changes. Parallel writes are in different sessions, so whatever is
//! sorted by session or by a random id is a page for each write. Hence ids begin with their moment, rows lie in the
//! order of their making, one small index alone is sorted by sessions, and pages are small.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{OpenError, migrations::MIGRATIONS};

/// How long a statement waits for a lock that another program holds, such as a backup tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Above the number of statements in `queries`, so that none is ever prepared twice.
const STATEMENTS_CACHED: usize = 128;

/// Size of a page in a new file.
pub(super) const PAGE_BYTES: u32 = 2048;

/// Opens the connection that writes, and brings the file to the newest version.
pub(super) fn writer(path: &Path) -> Result<Connection, OpenError> {
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    prepare(&connection)?;
    // Of no effect on a file that has pages already.
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Savepoint journals stay in memory, and a write-ahead log that a slow reader let grow shrinks again.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // Commits that reorder pages look through all of it, and a page that is not in it is in the system's cache.
    connection.pragma_update(None, "cache_size", -8_000)?;
    // What is deleted is overwritten too: people's words would stay in free pages.
    connection.pragma_update(None, "secure_delete", true)?;
    migrate(&mut connection, MIGRATIONS)?;
    Ok(connection)
}

/// Opens the connection that copies the log into the file.
pub(super) fn checkpointer(path: &Path) -> Result<Connection, OpenError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    prepare(&connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn reader(path: &Path) -> Result<Connection, OpenError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    prepare(&connection)?;
    Ok(connection)
}

fn prepare(connection: &Connection) -> Result<(), OpenError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(())
}

/// How many migrations the file has had.
///
/// # Errors
/// When it has had more than there are, or is another program's.
pub(super) fn version(connection: &Connection, migrations: &[&str]) -> Result<usize, OpenError> {
    let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > migrations.len() {
        return Err(OpenError::Newer { found: version, known: migrations.len() });
    }
    if version == 0 && connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))? {
        return Err(OpenError::Foreign);
    }
    Ok(version)
}

/// Applies what the file has not had yet, each migration in a transaction with its version number.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), OpenError> {
    let version = version(connection, migrations)?;
    if (1..migrations.len()).contains(&version) {
        tracing::info!(version, newest = migrations.len(), "database is brought to the newest version");
    }
    // A table that is made anew must not take along what refers to it.
    connection.pragma_update(None, "foreign_keys", false)?;
    for (migration, version) in migrations.iter().zip(1_usize..).skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::params;
    use uuid::Uuid;

    use super::{
        super::{
            Options, Sqlite,
            migrations::{FIFTH, FIRST, FOURTH, SECOND, THIRD},
        },
        *,
    };
    use crate::{
        chat::{Day, EntryId, NodeId, Rating, Session, SessionId, Timestamp, TurnId, TurnState, Usage, UserId},
        metrics::Metrics,
        store::{
            Change, EndTurn, Lease, ListSessions, Order, Place, Purpose, Range, Rate, Regenerate, Spend, Spent, Store,
            seal::Seal,
        },
    };

    const EXTRA: &str = "CREATE TABLE extra (id INTEGER PRIMARY KEY) STRICT;";

    fn counted(connection: &Connection) -> usize {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn file_of_an_older_version_gets_what_it_lacks_and_keeps_its_rows() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[FIRST]).unwrap();
        connection.execute("UPDATE probe SET checked_at = 77", []).unwrap();
        migrate(&mut connection, &[FIRST, EXTRA]).unwrap();
        migrate(&mut connection, &[FIRST, EXTRA]).unwrap();
        assert_eq!(counted(&connection), 2);
        let kept: i64 = connection.query_row("SELECT checked_at FROM probe", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 77);
        assert_eq!(connection.execute("INSERT INTO extra VALUES (1)", []).unwrap(), 1);
    }

    #[test]
    fn migration_that_fails_leaves_the_version_before_it() {
        let mut connection = Connection::open_in_memory().unwrap();
        let broken = "CREATE TABLE half (id INTEGER) STRICT; CREATE TABLE half (id INTEGER) STRICT;";
        assert!(matches!(migrate(&mut connection, &[FIRST, broken]), Err(OpenError::Database(_))));
        assert_eq!(counted(&connection), 1);
        migrate(&mut connection, &[FIRST, EXTRA]).unwrap();
        assert_eq!(counted(&connection), 2);
    }

    #[test]
    fn file_of_a_newer_version_or_another_program_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[FIRST, EXTRA]).unwrap();
        let error = migrate(&mut connection, &[FIRST]).unwrap_err();
        assert_eq!(error.to_string(), "the database has version 2, this chatbox knows versions up to 1");
        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch(EXTRA).unwrap();
        assert!(matches!(migrate(&mut foreign, &[FIRST]), Err(OpenError::Foreign)));
    }
    const HOUR_MS: i64 = 60 * 60 * 1000;

    fn session(n: u8) -> SessionId {
        SessionId(Uuid::from_bytes([n; 16]))
    }

    /// A file of the first version with sessions at some hours; the first one is active, with a reply.
    fn first_version(path: &Path) {
        let mut connection = Connection::open(path).unwrap();
        migrate(&mut connection, &[FIRST]).unwrap();
        for (n, hour, entries) in [(1, 5, 2), (2, 9, 1), (3, 1, 1), (4, 9, 1), (5, 7, 1), (6, 9, 0)] {
            let (slot, state) = if n == 1 { (Some(0), "active") } else { (None, "ended") };
            let sql = "INSERT INTO sessions (id, user_id, active_slot, name, state, rev, last_seq, created_at, \
                last_activity, entries) VALUES (?1, 'ada', ?2, x'000000006f6c64', ?3, 7, ?4, ?5, ?6, ?4)";
            let moment = hour * HOUR_MS + i64::from(n);
            connection.execute(sql, params![session(n), slot, state, entries, n, moment]).unwrap();
        }
        let sql = "INSERT INTO entries (session_id, seq, id, user_id, turn_id, reply_to, sender, kind, content, state, \
            created_at) VALUES (?1, ?2, ?3, 'ada', ?1, ?4, ?5, 'text', x'000000006869', ?6, 8)";
        let none: Option<&str> = None;
        connection.execute(sql, params![session(1), 1, [1_u8; 16], none, "user", none]).unwrap();
        connection.execute(sql, params![session(1), 2, [2_u8; 16], 1, "ai", "complete"]).unwrap();
        let sql = "INSERT INTO turns (id, session_id, message_seq, position, reply_seq, state, created_at, ended_at) \
            VALUES (?1, ?1, 1, 1, 2, 'complete', 8, 9)";
        connection.execute(sql, [session(1)]).unwrap();
    }

    #[tokio::test]
    async fn file_of_the_first_version_is_listed_rated_answered_again_and_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chatbox.db");
        first_version(&path);
        let store = Sqlite::open(&path, Seal::new(&[]).unwrap(), &Options::default(), Metrics::new()).unwrap();
        let ada = UserId::parse("ada").unwrap();
        for (order, want) in [(Order::Activity, [4, 2, 5, 1, 3]), (Order::Created, [5, 4, 3, 2, 1])] {
            let (mut seen, mut after) = (Vec::new(), None);
            for left in (0..5).rev() {
                let ask = ListSessions { user_id: ada.clone(), order, after, limit: 1 };
                let page = store.sessions(ask).await.unwrap();
                assert_eq!((page.sessions.len(), page.more, page.total), (1, left > 0, 5));
                let Session { id, last_activity, created_at, .. } = page.sessions[0];
                let at = if order == Order::Activity { last_activity } else { created_at };
                (seen, after) = ([seen, vec![id]].concat(), Some(Place { at, id }));
            }
            assert_eq!(seen, want.map(session), "{order:?}");
        }
        let idle = async |ms| store.idle_sessions(Timestamp(5 * HOUR_MS + ms), 9).await.unwrap();
        assert_eq!((idle(0).await, idle(1).await), (vec![], vec![session(1)]));

        let (owner, rating, why) = (ada.clone(), Rating::Up, Some("good".to_owned()));
        store.rate(Rate { session_id: session(1), seq: 2, owner, rating, why }).await.unwrap();
        let log = store.entries(session(1), Range::Last(9)).await.unwrap();
        assert_eq!((log[0].content.as_str(), log[0].rating, log[1].rating), ("hi", None, Some(Rating::Up)));
        let better = Change::BetterName("new".to_owned());
        let named = store.change_session(session(1), None, better).await.unwrap();
        assert_eq!((named.session.name.as_deref(), named.session.rev), (Some("new"), 8));
        let lease =
            Lease { node: NodeId::new(), ttl: BUSY_TIMEOUT, default_model: String::new(), reply_id: EntryId::new() };
        let (turn_id, new) = (TurnId(session(1).0), TurnId::new());
        let ask = Regenerate { turn_id, owner: ada.clone(), client_id: None, new, lease };
        assert_eq!(store.regenerate(ask).await.unwrap().reply_seq, 3);
        assert_eq!(
            store
                .sessions(ListSessions { user_id: ada.clone(), order: Order::Activity, after: None, limit: 1 })
                .await
                .unwrap()
                .sessions[0]
                .id,
            session(1),
            "the latest one now"
        );
        assert_eq!(store.delete_session(session(1), ada).await.unwrap().open_turns.len(), 1);
        assert_eq!(store.session(session(1)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn file_of_the_second_version_keeps_its_replies_and_counts_from_there_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chatbox.db");
        first_version(&path);
        migrate(&mut Connection::open(&path).unwrap(), &[FIRST, SECOND]).unwrap();
        let store = Sqlite::open(&path, Seal::new(&[]).unwrap(), &Options::default(), Metrics::new()).unwrap();
        let ada = UserId::parse("ada").unwrap();
        assert_eq!(store.spent(&ada, Day(0)).await.unwrap(), []);
        let reply = store.entries(session(1), Range::Last(1)).await.unwrap().remove(0);
        assert_eq!((reply.content.as_str(), reply.segments.len()), ("hi", 0));
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4, estimated: true };
        let spent = Spent { model_id: "small".to_owned(), purpose: Purpose::Name, usage, cost: None };
        let spend = Spend { id: Uuid::now_v7(), user_id: ada.clone(), session_id: session(1), spent };
        store.spend(spend).await.unwrap();
        let days = store.spent(&ada, Day(0)).await.unwrap();
        assert_eq!((days.len(), days[0].requests, days[0].estimated_tokens), (1, 1, 7));
        assert!(store.delete_session(session(1), ada.clone()).await.unwrap().changed);
        assert_eq!(store.spent(&ada, Day(0)).await.unwrap(), days);
    }

    #[tokio::test]
    async fn file_of_the_fourth_version_keeps_its_queues() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chatbox.db");
        first_version(&path);
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, &[FIRST, SECOND, THIRD, FOURTH]).unwrap();
        let sql = "INSERT INTO turns (id, session_id, message_seq, position, state, created_at) \
            VALUES (?1, ?2, 1, ?3, ?4, 8)";
        for (id, position, state) in [(7_u8, 3, "queued"), (8, 1, "running"), (9, 2, "queued")] {
            connection.execute(sql, params![[id; 16], session(1), position, state]).unwrap();
        }
        drop(connection);
        let store = Sqlite::open(&path, Seal::new(&[]).unwrap(), &Options::default(), Metrics::new()).unwrap();
        let open = store.open_turns(session(1)).await.unwrap();
        let open: Vec<u8> = open.iter().map(|turn| turn.id.0.as_bytes()[0]).collect();
        assert_eq!(open, [8, 9, 7], "the one that runs, and the queue in its order");
        assert_eq!(store.idle_sessions(Timestamp(i64::MAX), 9).await.unwrap(), []);
    }

    #[tokio::test]
    async fn file_of_the_fifth_version_keeps_what_its_turns_have_said_and_spent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chatbox.db");
        first_version(&path);
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, &[FIRST, SECOND, THIRD, FOURTH, FIFTH]).unwrap();
        let sql = "INSERT INTO usage VALUES (5, NULL, 'ada', ?1, ?1, 'small', 'reply', 3, 4, 0, NULL, 8); \
            UPDATE turns SET usage_place = 5, usage_rows = 1; \
            INSERT INTO turns (id, session_id, message_seq, position, state, length, node, created_at) \
            VALUES (?2, ?1, 1, 1, 'running', 2, ?2, 8); \
            INSERT INTO turn_chunks VALUES (?2, 0, x'000000006f68')";
        for sql in sql.split(';') {
            let mut statement = connection.prepare(sql).unwrap();
            let values = [session(1), session(7)];
            let values = values.iter().take(statement.parameter_count());
            statement.execute(rusqlite::params_from_iter(values)).unwrap();
        }
        drop(connection);
        let store = Sqlite::open(&path, Seal::new(&[]).unwrap(), &Options::default(), Metrics::new()).unwrap();
        let runs = TurnId(session(7).0);
        assert_eq!(store.turn_text(runs, 0).await.unwrap().text, "oh");
        let end = EndTurn { text: None, ..EndTurn::of(runs, TurnState::Interrupted) };
        let ended = store.end_turn(end).await.unwrap().unwrap();
        assert_eq!((ended.reply.content.as_str(), ended.reply.seq), ("oh", 3));
        assert!(store.delete_session(session(1), UserId::parse("ada").unwrap()).await.unwrap().changed);
        drop(store);
        let connection = Connection::open(&path).unwrap();
        let left = "SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM turn_chunks), session_id, turn_id, \
            prompt_tokens FROM usage";
        let none: Option<Vec<u8>> = None;
        let left =
            connection.query_row(left, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)));
        assert_eq!(left.unwrap(), (0, 0, none.clone(), none, 3), "a session takes its turns along, and unlinks usage");
    }

    // checklist 92
    #[test]
    fn columns_are_named_by_one_convention() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        let sql = "SELECT t.name || '.' || c.name, c.name, c.type FROM sqlite_schema AS t, pragma_table_info(t.name) AS c \
            WHERE t.type = 'table'";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        let rows: Vec<(String, String, String)> = rows.collect::<Result<_, _>>().unwrap();
        assert!(rows.len() > 50, "{} columns", rows.len());
        for (column, name, kind) in rows {
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'0'..=b'9')),
                "{column}"
            );
            let number = ["_at", "_seq", "_tokens", "_ms_sum", "_ms_max"].iter().any(|end| name.ends_with(end));
            assert!(!number || kind == "INTEGER", "{column} is {kind}");
        }
    }
}
