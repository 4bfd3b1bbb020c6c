//! What has been done to files of older versions, and makes a new one.

/// Every migration, oldest first. One that was released never changes; a new one is added at the end.
pub(super) const MIGRATIONS: &[&str] = &[FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH];

pub(super) const FIRST: &str = r#"
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

pub(super) const SECOND: &str = r#"
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

pub(super) const THIRD: &str = r#"
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

pub(super) const FOURTH: &str = r#"
    -- One row for each key that values may be sealed with, 0 for plain ones, and what shows that it is the right key.
    -- Empty in a file that was made before: the next start finds out.
    CREATE TABLE seal_keys (id INTEGER NOT NULL PRIMARY KEY, proof BLOB NOT NULL) STRICT;
"#;

pub(super) const FIFTH: &str = r#"
    -- Turns that wait, and no longer the one that runs: it has an index of its own, and nearly every turn starts as it is
    -- made. An index is two pages more for each of them, one when it starts and one when it ends.
    DROP INDEX turns_open;
    CREATE INDEX turns_waiting ON turns (session_id, position) WHERE state = 'queued';
"#;

const SIXTH: &str = r#"
    -- Turns lie in the order of their making, by id, and have no index of sessions any more: it was a page more for each
    -- of them. The log knows the turns of a session; those that have no reply in it yet are in the indexes below.
    CREATE TABLE turns_by_id (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
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
        -- the first of its rows of usage, and how many they are
        usage_place INTEGER,
        usage_rows INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;
    INSERT INTO turns_by_id SELECT id, session_id, message_seq, position, reply_seq, state, length, node, lease_until,
        model_id, created_at, started_at, first_token_at, ended_at, prompt_tokens, completion_tokens, usage_estimated,
        failure, usage_place, usage_rows FROM turns ORDER BY id;
    DROP TABLE turns;
    ALTER TABLE turns_by_id RENAME TO turns;
    CREATE UNIQUE INDEX turns_running ON turns (session_id) WHERE state = 'running';
    CREATE INDEX turns_waiting ON turns (session_id, position) WHERE state = 'queued';

    -- Requests that clients name by the time are a page for many of them, and not one for each user.
    DROP INDEX entries_client;
    CREATE UNIQUE INDEX entries_client ON entries (client_id, user_id) WHERE client_id IS NOT NULL;
"#;
