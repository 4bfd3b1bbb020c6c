//! The tables, their versions, and the one way to open a connection.
//!
//! Ids are 16-byte BLOBs, moments are milliseconds since 1970 UTC, and a column that holds people's words is a
//! BLOB that [`crate::store::seal`] closed. `PRAGMA user_version` counts the migrations that a file has had.
//!
//! What a commit costs is the pages that it changes. Parallel writes are in different sessions, so whatever is
//! sorted by session or by a random id is a page for each write. Hence large rows lie in the order of their making,
//! only small index rows are sorted, and pages are small: a third of the bytes of clustered rows in default pages.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::OpenError;

/// How long a statement waits for a lock that another program holds, such as a backup tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Above the number of statements in `queries`, so that none is ever prepared twice.
const STATEMENTS_CACHED: usize = 128;

/// Size of a page in a new file.
pub(super) const PAGE_BYTES: u32 = 2048;

/// Every migration, oldest first. One that was released never changes; a new one is added at the end.
pub(super) const MIGRATIONS: &[&str] = &[FIRST, SECOND, THIRD, FOURTH, FIFTH];

const FIRST: &str = r#"
    CREATE TABLE sessions (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        user_id TEXT NOT NULL,
        -- taken while the session is active: the unique index below is what bounds active sessions
        active_slot INTEGER,
        name BLOB,
        model_id TEXT,
        state TEXT NOT NULL,
        rev INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        last_activity INTEGER NOT NULL,
        ended_at INTEGER,
        help_requested_at INTEGER,
        help_by TEXT,
        assist_admin_id TEXT,
        assist_name BLOB,
        assist_since INTEGER,
        admin_assisted INTEGER NOT NULL DEFAULT 0,
        -- counters: entries of the log; tokens of ended replies; number and time of complete ones
        entries INTEGER NOT NULL DEFAULT 0,
        prompt_tokens INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0,
        responses INTEGER NOT NULL DEFAULT 0,
        response_ms_sum INTEGER NOT NULL DEFAULT 0,
        response_ms_max INTEGER NOT NULL DEFAULT 0,
        CHECK ((state = 'active') = (active_slot IS NOT NULL))
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX sessions_active ON sessions (user_id, active_slot) WHERE active_slot IS NOT NULL;

    CREATE TABLE entries (
        session_id BLOB NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        user_id TEXT NOT NULL,
        client_id BLOB,
        turn_id BLOB,
        reply_to INTEGER,
        sender TEXT NOT NULL,
        author BLOB,
        kind TEXT NOT NULL,
        content BLOB,
        files BLOB,
        metadata BLOB,
        state TEXT,
        length INTEGER,
        sha256 BLOB,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        usage_estimated INTEGER,
        model_id TEXT,
        created_at INTEGER NOT NULL,
        PRIMARY KEY (session_id, seq)
    ) STRICT;
    CREATE UNIQUE INDEX entries_client ON entries (user_id, client_id) WHERE client_id IS NOT NULL;

    CREATE TABLE turns (
        id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        session_id BLOB NOT NULL,
        message_seq INTEGER NOT NULL,
        -- order of the session's queue, smallest first
        position INTEGER NOT NULL,
        reply_seq INTEGER,
        state TEXT NOT NULL,
        -- UTF-8 bytes of the text so far
        length INTEGER NOT NULL DEFAULT 0,
        node BLOB,
        lease_until INTEGER,
        model_id TEXT,
        created_at INTEGER NOT NULL,
        started_at INTEGER,
        first_token_at INTEGER,
        ended_at INTEGER,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        usage_estimated INTEGER,
        failure TEXT,
        PRIMARY KEY (session_id, message_seq, id),
        FOREIGN KEY (session_id, message_seq) REFERENCES entries (session_id, seq) ON DELETE CASCADE
    ) STRICT;
    CREATE UNIQUE INDEX turns_running ON turns (session_id) WHERE state = 'running';
    CREATE INDEX turns_open ON turns (session_id, position) WHERE ended_at IS NULL;

    CREATE TABLE turn_chunks (
        turn_id BLOB NOT NULL REFERENCES turns (id) ON DELETE CASCADE,
        "offset" INTEGER NOT NULL,
        text BLOB NOT NULL,
        PRIMARY KEY (turn_id, "offset")
    ) STRICT;

    -- one row, written by readiness checks: a disk that is full or read-only shows here first
    CREATE TABLE probe (id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), checked_at INTEGER NOT NULL) STRICT;
    INSERT INTO probe VALUES (1, 0);
"#;

const SECOND: &str = r#"
    ALTER TABLE entries ADD COLUMN rating TEXT;
    ALTER TABLE entries ADD COLUMN rating_why BLOB;

    -- 'user' or 'model'; nobody, or the first message, if NULL
    ALTER TABLE sessions ADD COLUMN name_by TEXT;
    -- the log has an entry
    ALTER TABLE sessions ADD COLUMN filled INTEGER NOT NULL DEFAULT 0;
    -- last_activity in whole quarters of an hour: an index of the moment itself would change with each message
    ALTER TABLE sessions ADD COLUMN quarter INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET filled = entries > 0, quarter = last_activity / 900000;
    CREATE INDEX sessions_by_activity ON sessions (user_id, quarter) WHERE filled = 1;
    CREATE INDEX sessions_by_start ON sessions (user_id, created_at) WHERE filled = 1;
    CREATE INDEX sessions_idle ON sessions (quarter) WHERE active_slot IS NOT NULL;

    CREATE TABLE shares (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        session_id BLOB NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        name BLOB,
        last_seq INTEGER NOT NULL,
        running_seq INTEGER,
        created_at INTEGER NOT NULL,
        expires_at INTEGER
    ) STRICT;
    CREATE INDEX shares_of_session ON shares (session_id);
"#;

const THIRD: &str = r#"
    -- who wrote which part of a reply, as JSON; NULL when one model wrote it all
    ALTER TABLE entries ADD COLUMN segments TEXT;

    -- One row for each request to a model, in the order of their making. Rows of a turn follow each other, and its row
    -- says where: an index of sessions or turns would be a page more for each of them. Rows outlive their session,
    -- and say then only what was spent on which model, and when.
    CREATE TABLE usage (
        place INTEGER NOT NULL PRIMARY KEY,
        -- of a request outside of turns
        id BLOB CHECK (length(id) = 16),
        user_id TEXT,
        session_id BLOB,
        turn_id BLOB,
        model_id TEXT NOT NULL,
        purpose TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        usage_estimated INTEGER NOT NULL,
        -- in millionths of the currency that was configured
        cost INTEGER,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX usage_outside ON usage (user_id, id) WHERE id IS NOT NULL;
    -- the first of the turn's rows, and how many they are
    ALTER TABLE turns ADD COLUMN usage_place INTEGER;
    ALTER TABLE turns ADD COLUMN usage_rows INTEGER NOT NULL DEFAULT 0;

    CREATE TABLE usage_daily (
        user_id TEXT NOT NULL,
        -- days of UTC since 1970
        day INTEGER NOT NULL,
        model_id TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        estimated_tokens INTEGER NOT NULL,
        cost INTEGER,
        PRIMARY KEY (user_id, day, model_id)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE threads (
        session_id BLOB NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        model_id TEXT NOT NULL,
        -- the provider's name for the conversation
        reference BLOB NOT NULL,
        reply_seq INTEGER NOT NULL,
        PRIMARY KEY (session_id, model_id)
    ) STRICT, WITHOUT ROWID;
"#;

const FOURTH: &str = r#"
    -- One row for each key that values may be sealed with, 0 for plain ones, and what shows that it is the right key.
    -- Empty in a file that was made before: the next start finds out.
    CREATE TABLE seal_keys (id INTEGER NOT NULL PRIMARY KEY, proof BLOB NOT NULL) STRICT;
"#;

const FIFTH: &str = r#"
    -- Turns that wait, and no longer the one that runs: it has an index of its own, and nearly every turn starts as it is
    -- made. An index is two pages more for each of them, one when it starts and one when it ends.
    DROP INDEX turns_open;
    CREATE INDEX turns_waiting ON turns (session_id, position) WHERE state = 'queued';
"#;

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
    for (migration, version) in migrations.iter().zip(1_usize..).skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::params;
    use uuid::Uuid;

    use super::{
        super::{Options, Sqlite},
        *,
    };
    use crate::{
        chat::{Day, EntryId, NodeId, Rating, Session, SessionId, Timestamp, TurnId, Usage, UserId},
        metrics::Metrics,
        store::{
            Change, Lease, ListSessions, Order, Place, Purpose, Range, Rate, Regenerate, Spend, Spent, Store,
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
