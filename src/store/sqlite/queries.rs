//! Every statement that runs after start-up, in one place, so that one test can read the plan of each.

macro_rules! queries {
    ($($(#[doc = $help:literal])+ $name:ident = $($sql:expr),+;)+) => {
        $($(#[doc = $help])+ pub(super) const $name: &str = concat!($($sql),+);)+

        #[cfg(test)]
        const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}

macro_rules! session_columns {
    () => {
        "id, user_id, name, model_id, state, rev, last_seq, created_at, last_activity, ended_at, \
         help_requested_at IS NOT NULL AS help_requested, assist_admin_id, assist_name, admin_assisted, entries, \
         prompt_tokens, completion_tokens, responses, response_ms_sum, response_ms_max"
    };
}

macro_rules! entry_columns {
    () => {
        "session_id, seq, id, user_id, client_id, turn_id, reply_to, sender, kind, content, files, metadata, state, \
         length, sha256, prompt_tokens, completion_tokens, usage_estimated, model_id, segments, rating, created_at"
    };
}

macro_rules! turn_columns {
    () => {
        "id, session_id, message_seq, reply_seq, state, node, model_id"
    };
}

/// Whether a turn of session ?1 runs.
macro_rules! runs {
    () => {
        "EXISTS (SELECT 1 FROM turns INDEXED BY turns_running WHERE session_id = ?1 AND state = 'running')"
    };
}

/// From where and which turns of session ?1 wait.
macro_rules! waiting {
    () => {
        "FROM turns INDEXED BY turns_waiting WHERE session_id = ?1 AND state = 'queued'"
    };
}

macro_rules! share_columns {
    () => {
        "id, session_id, name, last_seq, running_seq, created_at, expires_at"
    };
}

queries! {
    /// Begins a commit's transaction, with the write lock.
    BEGIN = "BEGIN IMMEDIATE";
    /// Makes it durable.
    COMMIT = "COMMIT";
    /// Begins a read's snapshot.
    READ_BEGIN = "BEGIN";
    /// Ends it.
    READ_END = "ROLLBACK";
    /// Begins one write of a commit.
    SAVEPOINT = "SAVEPOINT one";
    /// Keeps it.
    RELEASE = "RELEASE one";

    /// One session.
    SESSION = "SELECT ", session_columns!(), " FROM sessions WHERE id = ?1";
    /// Whether there is such a session.
    SESSION_KNOWN = "SELECT id FROM sessions WHERE id = ?1";
    /// One session's `rev`.
    SESSION_REV = "SELECT rev FROM sessions WHERE id = ?1";
    /// What a write needs to know of its session.
    SESSION_HEAD = "SELECT user_id, state, rev, last_seq, model_id, quarter, name IS NOT NULL, ", runs!(), ", \
        (SELECT count(*) ", waiting!(), ") FROM sessions WHERE id = ?1";
    /// The active sessions of a user, the one with the oldest activity first.
    SESSIONS_ACTIVE = "SELECT id, active_slot FROM sessions WHERE user_id = ?1 AND active_slot IS NOT NULL \
        ORDER BY last_activity, created_at, id";
    /// A new session, active.
    SESSION_INSERT = "INSERT INTO sessions \
        (id, user_id, active_slot, state, rev, last_seq, created_at, last_activity, quarter) \
        VALUES (?1, ?2, ?3, 'active', 1, 0, ?4, ?4, ?5)";
    /// An active session ends.
    SESSION_END = "UPDATE sessions SET state = 'ended', active_slot = NULL, ended_at = ?2, rev = rev + 1 WHERE id = ?1";
    /// An ended session is active again, and that counts as activity.
    SESSION_REOPEN = "UPDATE sessions SET state = 'active', active_slot = ?2, ended_at = NULL, rev = rev + 1, \
        last_activity = max(last_activity, ?3), quarter = max(quarter, ?4) WHERE id = ?1";
    /// The log has grown by ?4 entries.
    SESSION_GROWN = "UPDATE sessions SET rev = ?2, last_seq = ?3, entries = entries + ?4, \
        last_activity = max(last_activity, ?5), name = coalesce(name, ?6) WHERE id = ?1";
    /// The log has grown for the first time, or in another quarter of an hour than before.
    SESSION_LISTED = "UPDATE sessions SET filled = 1, quarter = max(quarter, ?2) WHERE id = ?1";
    /// Somebody names it.
    SESSION_NAME = "UPDATE sessions SET name = ?2, name_by = ?3, rev = rev + 1 WHERE id = ?1";
    /// Who named it.
    SESSION_NAME_BY = "SELECT name_by FROM sessions WHERE id = ?1";
    /// Somebody gives it the name that it has.
    SESSION_KEEP_NAME = "UPDATE sessions SET name_by = ?2 WHERE id = ?1";
    /// Another model answers.
    SESSION_MODEL = "UPDATE sessions SET model_id = ?2, rev = rev + 1 WHERE id = ?1";
    /// Somebody asks for a person, or no longer does.
    SESSION_HELP = "UPDATE sessions SET help_requested_at = ?2, help_by = ?3, rev = rev + 1 WHERE id = ?1";
    /// A reply is settled.
    SESSION_SETTLED = "UPDATE sessions SET rev = rev + 1, prompt_tokens = prompt_tokens + ?2, \
        completion_tokens = completion_tokens + ?3, responses = responses + ?4, \
        response_ms_sum = response_ms_sum + ?5, response_ms_max = max(response_ms_max, ?5) WHERE id = ?1";
    /// A session goes, and takes its log, threads and shares along.
    SESSION_DELETE = "DELETE FROM sessions WHERE id = ?1";
    /// Sessions of a user behind a place, latest activity first. The index has them by quarters, which are sorted
    /// one at a time.
    SESSIONS_BY_ACTIVITY = "SELECT ", session_columns!(), " FROM sessions INDEXED BY sessions_by_activity \
        WHERE user_id = ?1 AND filled = 1 AND quarter <= ?2 AND (last_activity, id) < (?3, ?4) \
        ORDER BY quarter DESC, last_activity DESC, id DESC LIMIT ?5";
    /// Sessions of a user behind a place, newest first.
    SESSIONS_BY_START = "SELECT ", session_columns!(), " FROM sessions INDEXED BY sessions_by_start \
        WHERE user_id = ?1 AND filled = 1 AND (created_at, id) < (?2, ?3) ORDER BY created_at DESC, id DESC LIMIT ?4";
    /// How many sessions of a user have an entry.
    SESSIONS_COUNT = "SELECT count(*) FROM sessions INDEXED BY sessions_by_start WHERE user_id = ?1 AND filled = 1";
    /// The `rev` of a user's sessions, latest activity first.
    SESSIONS_REVS = "SELECT id, rev FROM sessions INDEXED BY sessions_by_activity WHERE user_id = ?1 AND filled = 1 \
        ORDER BY quarter DESC, last_activity DESC, id DESC LIMIT ?2";
    /// Active sessions that nothing happens in and that wait for nothing.
    SESSIONS_IDLE = "SELECT id FROM sessions INDEXED BY sessions_idle WHERE active_slot IS NOT NULL \
        AND quarter <= ?1 AND last_activity <= ?2 AND NOT EXISTS (SELECT 1 FROM turns INDEXED BY turns_running \
        WHERE session_id = sessions.id AND state = 'running') AND NOT EXISTS (SELECT 1 FROM turns \
        INDEXED BY turns_waiting WHERE session_id = sessions.id AND state = 'queued') ORDER BY quarter LIMIT ?3";

    /// The entry that a client's request made before.
    ENTRY_OF_CLIENT = "SELECT ", entry_columns!(), " FROM entries WHERE user_id = ?1 AND client_id = ?2";
    /// The entry with this id.
    ENTRY_OF_ID = "SELECT ", entry_columns!(), " FROM entries WHERE id = ?1";
    /// The entry at a place.
    ENTRY_AT = "SELECT ", entry_columns!(), " FROM entries WHERE session_id = ?1 AND seq = ?2";
    /// Entries after a place.
    ENTRIES_AFTER = "SELECT ", entry_columns!(), " FROM entries WHERE session_id = ?1 AND seq > ?2 \
        ORDER BY seq LIMIT ?3";
    /// The last entries before a place, newest first.
    ENTRIES_BEFORE = "SELECT ", entry_columns!(), " FROM entries WHERE session_id = ?1 AND seq < ?2 \
        ORDER BY seq DESC LIMIT ?3";
    /// The texts of a log that are not empty.
    ENTRIES_TEXT = "SELECT id, content FROM entries WHERE session_id = ?1 AND content IS NOT NULL \
        ORDER BY seq LIMIT ?2";
    /// A new entry that nobody changes later, unless its request or id is there.
    ENTRY_INSERT = "INSERT INTO entries (session_id, seq, id, user_id, client_id, turn_id, sender, kind, content, \
        files, metadata, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
        ON CONFLICT DO NOTHING";
    /// The place of a reply.
    REPLY_INSERT = "INSERT INTO entries (session_id, seq, id, user_id, turn_id, reply_to, sender, kind, state, \
        model_id, created_at, client_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'ai', 'text', ?7, ?8, ?9, ?10)";
    /// A reply gets its text.
    REPLY_SETTLE = "UPDATE entries SET content = ?3, state = ?4, length = ?5, sha256 = ?6, prompt_tokens = ?7, \
        completion_tokens = ?8, usage_estimated = ?9, model_id = ?10, segments = ?11 \
        WHERE session_id = ?1 AND seq = ?2";
    /// What somebody thinks of a settled reply.
    REPLY_RATE = "UPDATE entries SET rating = ?3, rating_why = ?4 WHERE session_id = ?1 AND seq = ?2 \
        AND sender = 'ai' AND state NOT IN ('queued', 'running')";

    /// One turn.
    TURN = "SELECT ", turn_columns!(), " FROM turns WHERE id = ?1";
    /// What the end of a turn needs to know of it, of its reply, if that has a place, and of its session: the `rev`, and
    /// whether another turn waits.
    TURN_ENDING = "SELECT turns.id, turns.session_id, message_seq, reply_seq, turns.state, node, turns.model_id, \
        lease_until, started_at, turns.length, rev, EXISTS (SELECT 1 FROM turns AS others INDEXED BY turns_waiting \
        WHERE others.session_id = turns.session_id AND others.state = 'queued' AND others.id <> turns.id), \
        entries.id, entries.user_id, client_id, entries.model_id, entries.created_at FROM turns \
        JOIN sessions ON sessions.id = turns.session_id LEFT JOIN entries \
        ON entries.session_id = turns.session_id AND entries.seq = turns.reply_seq WHERE turns.id = ?1";
    /// What readers of a turn's log need to know of it.
    TURN_LENGTH = "SELECT state = 'running', length FROM turns WHERE id = ?1";
    /// The turn that a session is busy with.
    TURN_RUNNING = "SELECT ", turn_columns!(), " FROM turns INDEXED BY turns_running \
        WHERE session_id = ?1 AND state = 'running'";
    /// The turn that is next.
    TURN_NEXT = "SELECT ", turn_columns!(), " ", waiting!(), " ORDER BY position LIMIT 1";
    /// All turns of a session that wait, in the order of its queue.
    TURNS_WAITING = "SELECT ", turn_columns!(), " ", waiting!(), " ORDER BY position";
    /// The newest turn of the last message that has one, in a session whose turns have all ended.
    TURN_LAST = "SELECT ", turn_columns!(), " FROM turns WHERE id = (SELECT reply.turn_id FROM entries AS asked \
        JOIN entries AS reply ON reply.session_id = ?1 AND reply.seq > asked.seq AND reply.reply_to = asked.seq \
        WHERE asked.session_id = ?1 AND asked.seq = (SELECT seq FROM entries WHERE session_id = ?1 \
        AND turn_id IS NOT NULL AND reply_to IS NULL ORDER BY seq DESC LIMIT 1) ORDER BY reply.seq DESC LIMIT 1)";
    /// A turn at the end of the queue.
    TURN_QUEUE = "INSERT INTO turns (id, session_id, message_seq, position, state, created_at) \
        VALUES (?1, ?2, ?3, ?3, 'queued', ?4)";
    /// A turn in front of the queue, unless its session has ended.
    TURN_QUEUE_FRONT = "INSERT INTO turns (id, session_id, message_seq, position, state, created_at) \
        SELECT ?2, id, ?3, coalesce((SELECT min(position) ", waiting!(), ") - 1, ?3), 'queued', ?4 \
        FROM sessions WHERE id = ?1 AND state = 'active'";
    /// A turn that starts as it is made.
    TURN_BEGIN = "INSERT INTO turns (id, session_id, message_seq, position, state, reply_seq, node, lease_until, \
        model_id, created_at, started_at) VALUES (?1, ?2, ?3, ?3, 'running', ?4, ?5, ?6, ?7, ?8, ?8)";
    /// A queued turn starts.
    TURN_START = "UPDATE turns SET state = 'running', reply_seq = ?2, node = ?3, lease_until = ?4, model_id = ?5, \
        started_at = ?6 WHERE id = ?1";
    /// The lease of a running turn, if it is the node's and its log has this length.
    TURN_EXTEND = "UPDATE turns SET length = length + ?4, lease_until = ?5, \
        first_token_at = CASE WHEN ?4 > 0 THEN coalesce(first_token_at, ?6) ELSE first_token_at END \
        WHERE id = ?1 AND node = ?2 AND state = 'running' AND length = ?3";
    /// The lease of a running turn, if it is the node's.
    TURN_RENEW = "UPDATE turns SET lease_until = ?3 WHERE id = ?1 AND node = ?2 AND state = 'running'";
    /// A turn ends.
    TURN_END = "UPDATE turns SET state = ?2, length = ?3, reply_seq = ?4, ended_at = ?5, prompt_tokens = ?6, \
        completion_tokens = ?7, usage_estimated = ?8, failure = ?9, usage_place = ?10, usage_rows = ?11, \
        lease_until = NULL, \
        first_token_at = CASE WHEN ?3 > 0 THEN coalesce(first_token_at, ?5) END WHERE id = ?1";
    /// Turns that nobody runs. Reads the index of running turns, which holds no other.
    TURNS_LOST = "SELECT ", turn_columns!(), " FROM turns INDEXED BY turns_running \
        WHERE state = 'running' AND (lease_until <= ?1 OR node <> ?2) LIMIT ?3";
    /// Sessions whose queue stands still. Reads the index of turns that wait.
    SESSIONS_LOST = "SELECT DISTINCT session_id FROM turns AS waits INDEXED BY turns_waiting \
        WHERE state = 'queued' AND NOT EXISTS (SELECT 1 FROM turns AS runs INDEXED BY turns_running \
        WHERE runs.session_id = waits.session_id AND runs.state = 'running') LIMIT ?1";

    /// The turns of a session go, and take their logs along: those that the log knows, and those of its queue.
    TURNS_DELETE = "DELETE FROM turns WHERE id IN (SELECT turn_id FROM entries WHERE session_id = ?1 \
        UNION ALL SELECT id ", waiting!(), ")";

    /// A piece of a turn's log.
    CHUNK_INSERT = "INSERT INTO turn_chunks (turn_id, \"offset\", text) VALUES (?1, ?2, ?3)";
    /// The piece at an offset.
    CHUNK_AT = "SELECT text FROM turn_chunks WHERE turn_id = ?1 AND \"offset\" = ?2";
    /// The pieces from the one on that an offset lies in.
    CHUNKS_FROM = "SELECT \"offset\", text FROM turn_chunks WHERE turn_id = ?1 AND \"offset\" >= coalesce(\
        (SELECT max(\"offset\") FROM turn_chunks WHERE turn_id = ?1 AND \"offset\" <= ?2), 0) ORDER BY \"offset\"";
    /// The log of an ended turn goes: its text is the reply's content.
    CHUNKS_DELETE = "DELETE FROM turn_chunks WHERE turn_id = ?1";

    /// What a request to a model took, unless its row is there.
    USAGE_INSERT = "INSERT INTO usage (id, user_id, session_id, turn_id, model_id, purpose, prompt_tokens, \
        completion_tokens, usage_estimated, cost, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
        ON CONFLICT DO NOTHING";
    /// It adds to its user's day.
    USAGE_DAILY_ADD = "INSERT INTO usage_daily (user_id, day, model_id, requests, prompt_tokens, completion_tokens, \
        estimated_tokens, cost) VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET \
        requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens, \
        completion_tokens = completion_tokens + excluded.completion_tokens, \
        estimated_tokens = estimated_tokens + excluded.estimated_tokens, \
        cost = coalesce(cost + excluded.cost, cost, excluded.cost)";
    /// What a user's requests took from a day on.
    USAGE_DAILY = "SELECT day, model_id, requests, prompt_tokens, completion_tokens, estimated_tokens, cost \
        FROM usage_daily WHERE user_id = ?1 AND day >= ?2 ORDER BY day, model_id";
    /// A session goes, and what the requests of its turns took stays without it.
    USAGE_UNLINK = "UPDATE usage SET user_id = NULL, session_id = NULL, turn_id = NULL WHERE place IN \
        (SELECT made.place FROM entries CROSS JOIN turns ON turns.id = entries.turn_id CROSS JOIN usage AS made \
        WHERE entries.session_id = ?1 AND reply_to IS NOT NULL \
        AND made.place BETWEEN turns.usage_place AND turns.usage_place + turns.usage_rows - 1)";
    /// The same of what was asked outside of turns, which are few for each user.
    USAGE_UNLINK_OUTSIDE = "UPDATE usage SET user_id = NULL, session_id = NULL, id = NULL \
        WHERE place IN (SELECT place FROM usage INDEXED BY usage_outside WHERE user_id = ?1 AND id IS NOT NULL \
        AND session_id = ?2)";

    /// What a provider calls a conversation.
    THREAD_KEEP = "INSERT INTO threads (session_id, model_id, reference, reply_seq) VALUES (?1, ?2, ?3, ?4) \
        ON CONFLICT DO UPDATE SET reference = excluded.reference, reply_seq = excluded.reply_seq";
    /// The same, read.
    THREAD = "SELECT reference, reply_seq FROM threads WHERE session_id = ?1 AND model_id = ?2";

    /// A share.
    SHARE_INSERT = "INSERT INTO shares (id, session_id, name, last_seq, running_seq, created_at, expires_at) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    /// One share, ended or not.
    SHARE = "SELECT ", share_columns!(), " FROM shares WHERE id = ?1";
    /// The newest share of a session that has not ended.
    SHARE_OF_SESSION = "SELECT ", share_columns!(), " FROM shares WHERE session_id = ?1 \
        AND (expires_at IS NULL OR expires_at > ?2) ORDER BY rowid DESC LIMIT 1";
    /// Shares of a session that have ended, and those before the newest ?3.
    SHARES_TRIM = "DELETE FROM shares WHERE session_id = ?1 AND (expires_at <= ?2 OR rowid NOT IN \
        (SELECT rowid FROM shares WHERE session_id = ?1 AND (expires_at IS NULL OR expires_at > ?2) \
        ORDER BY rowid DESC LIMIT ?3))";
    /// All shares of a session.
    SHARES_DELETE = "DELETE FROM shares WHERE session_id = ?1";

    /// The keys that values may be sealed with.
    SEAL_KEYS = "SELECT id, proof FROM seal_keys WHERE id >= 0 ORDER BY id";
    /// One more.
    SEAL_KEY_ADD = "INSERT INTO seal_keys (id, proof) VALUES (?1, ?2)";
    /// None of them any more.
    SEAL_KEYS_FORGET = "DELETE FROM seal_keys WHERE id >= 0";
    /// Rows of entries, for whoever renews what is sealed in them.
    SEALED_ENTRIES = "SELECT rowid, id, content, files, metadata, sha256, rating_why FROM entries \
        WHERE rowid > ?1 ORDER BY rowid LIMIT ?2";
    /// Rows of sessions.
    SEALED_SESSIONS = "SELECT id, id, name, assist_name FROM sessions WHERE id > ?1 ORDER BY id LIMIT ?2";
    /// Rows of turns' logs.
    SEALED_CHUNKS = "SELECT rowid, turn_id, text, \"offset\" FROM turn_chunks WHERE rowid > ?1 ORDER BY rowid LIMIT ?2";
    /// Rows of shares.
    SEALED_SHARES = "SELECT rowid, id, name FROM shares WHERE rowid > ?1 ORDER BY rowid LIMIT ?2";
    /// Rows of threads.
    SEALED_THREADS = "SELECT model_id, session_id, reference FROM threads WHERE (session_id, model_id) > (?1, ?2) \
        ORDER BY session_id, model_id LIMIT ?3";
    /// A value is sealed with another key, unless it is another value by now.
    RESEAL_CONTENT = "UPDATE entries SET content = ?3 WHERE rowid = ?1 AND content = ?2";
    /// The same of the files of an entry.
    RESEAL_FILES = "UPDATE entries SET files = ?3 WHERE rowid = ?1 AND files = ?2";
    /// The same of its facts.
    RESEAL_METADATA = "UPDATE entries SET metadata = ?3 WHERE rowid = ?1 AND metadata = ?2";
    /// The same of the hash of a reply.
    RESEAL_SHA256 = "UPDATE entries SET sha256 = ?3 WHERE rowid = ?1 AND sha256 = ?2";
    /// The same of what somebody thinks of it.
    RESEAL_RATING_WHY = "UPDATE entries SET rating_why = ?3 WHERE rowid = ?1 AND rating_why = ?2";
    /// The same of a session's name.
    RESEAL_NAME = "UPDATE sessions SET name = ?3 WHERE id = ?1 AND name = ?2";
    /// The same of the name of who assists.
    RESEAL_ASSIST_NAME = "UPDATE sessions SET assist_name = ?3 WHERE id = ?1 AND assist_name = ?2";
    /// The same of a piece of a turn's log.
    RESEAL_CHUNK = "UPDATE turn_chunks SET text = ?3 WHERE rowid = ?1 AND text = ?2";
    /// The same of a share's name.
    RESEAL_SHARE = "UPDATE shares SET name = ?3 WHERE rowid = ?1 AND name = ?2";
    /// The same of what a provider calls a conversation.
    RESEAL_THREAD = "UPDATE threads SET reference = ?3 WHERE session_id = ?1 AND model_id = ?4 AND reference = ?2";
    /// About how many rows hold the most of what is sealed.
    SEALED_ABOUT = "SELECT max(rowid) FROM entries";

    /// Something small to write.
    PROBE_WRITE = "UPDATE probe SET checked_at = ?1 WHERE id = 1";
    /// Something small to read.
    PROBE_READ = "SELECT checked_at FROM probe WHERE id = 1";
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::{super::migrations::MIGRATIONS, ALL};

    /// Indexes that hold only turns that have not ended: reading all of one is reading what is asked for.
    const WHOLE: [&str; 2] = ["INDEX turns_running", "INDEX turns_waiting"];

    // checklist 90
    #[test]
    fn no_query_reads_a_whole_table() {
        let connection = Connection::open_in_memory().unwrap();
        MIGRATIONS.iter().for_each(|migration| connection.execute_batch(migration).unwrap());
        for (name, sql) in ALL {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let unbound = vec![None::<i64>; plan.parameter_count()];
            let steps: Vec<String> = plan
                .query_map(rusqlite::params_from_iter(unbound), |row| row.get("detail"))
                .unwrap()
                .collect::<Result<_, _>>()
                .unwrap();
            for step in steps.iter().filter(|step| step.starts_with("SCAN")) {
                let whole = WHOLE.iter().any(|index| step.contains(index));
                assert!(whole && name.ends_with("_LOST"), "{name}: {step}");
            }
        }
    }
}
