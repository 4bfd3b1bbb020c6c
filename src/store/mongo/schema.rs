//! The collections' indexes, and the version of all of it.

use mongodb::bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use tokio::time::Instant;

use super::{
    super::{Error, OpenError, Result},
    link::{self, Link, Table},
    values,
};

/// The version that this chatbox writes.
pub(super) const VERSION: usize = 1;

/// Chunks of turns that have ended go with them; one that a late writer left goes by its age.
const CHUNK_SECONDS: i64 = 7 * 24 * 60 * 60;

/// Names of indexes that queries ask for.
pub(super) const ACTIVE: &str = "active";
pub(super) const BY_ACTIVITY: &str = "by_activity";
pub(super) const BY_START: &str = "by_start";
pub(super) const IDLE: &str = "idle";

/// Every index of a table: its name, its fields, and what else is said of it.
fn indexes(table: Table) -> Vec<(&'static str, Document, Document)> {
    let sparse = doc! { "sparse": true };
    let listed = doc! { "partialFilterExpression": { "filled": true } };
    let active = doc! { "active_slot": { "$exists": true } };
    match table {
        Table::Sessions => vec![
            // What bounds the active sessions of a user.
            (
                ACTIVE,
                doc! { "user_id": 1, "active_slot": 1 },
                doc! { "unique": true, "partialFilterExpression": active.clone() },
            ),
            (BY_ACTIVITY, doc! { "user_id": 1, "last_activity": -1, "_id": -1 }, listed.clone()),
            // With the filter's field among its own, sessions are counted without being read.
            (BY_START, doc! { "user_id": 1, "filled": 1, "created_at": -1, "_id": -1 }, listed),
            (IDLE, doc! { "quarter": 1 }, doc! { "partialFilterExpression": active }),
            ("of_turn", doc! { "turns": 1 }, sparse.clone()),
            ("of_share", doc! { "shares.id": 1 }, sparse.clone()),
            ("leases", doc! { "lease_until": 1 }, sparse.clone()),
            ("waiting", doc! { "waits_since": 1 }, sparse.clone()),
            ("unwritten", doc! { "redo_at": 1 }, sparse.clone()),
            ("gone", doc! { "gone_at": 1 }, sparse),
        ],
        Table::Entries => vec![("places", doc! { "session_id": 1, "seq": 1 }, doc! { "unique": true })],
        Table::Turns => vec![("of_session", doc! { "session_id": 1 }, doc! {})],
        Table::TurnChunks => vec![("age", doc! { "at": 1 }, doc! { "expireAfterSeconds": CHUNK_SECONDS })],
        Table::Usage => vec![("of_session", doc! { "session_id": 1 }, sparse)],
        Table::UsageDaily => {
            vec![("days", doc! { "user_id": 1, "day": 1, "model_id": 1 }, doc! { "unique": true })]
        }
        Table::Requests | Table::SealKeys | Table::Meta => vec![],
    }
}

const INDEXED: [Table; 6] =
    [Table::Sessions, Table::Entries, Table::Turns, Table::TurnChunks, Table::Usage, Table::UsageDaily];

/// The version that the database has; `None` when it has none yet.
///
/// # Errors
/// When it is newer than ours, or holds another program's sessions.
pub(super) async fn version(link: &Link, deadline: Instant) -> std::result::Result<Option<usize>, OpenError> {
    // Read first: whoever makes the database writes its version before any session.
    let session = link.find_one(Table::Sessions, doc! {}, deadline).await?;
    let found = link.find_one(Table::Meta, doc! { "_id": "schema" }, deadline).await?;
    let Some(found) = found else {
        // The predecessor has a table of this name too, whose rows are none of ours.
        return if session.is_none() { Ok(None) } else { Err(OpenError::Foreign) };
    };
    let found = found.get_i64(mongodb::bson::raw::cstr!("version")).map_err(values::failed)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > VERSION {
        return Err(OpenError::Newer { found, known: VERSION });
    }
    Ok(Some(found))
}

/// Brings the database to our version. Several nodes may do so at once.
///
/// # Errors
/// When it is newer than ours, another program's, or refuses.
pub(super) async fn prepare(link: &Link, deadline: Instant) -> std::result::Result<(), OpenError> {
    version(link, deadline).await?;
    for table in INDEXED {
        let indexes: Result<RawArrayBuf> = indexes(table).into_iter().map(index).collect();
        let mut command = rawdoc! { "createIndexes": table.name(), "indexes": indexes? };
        command.append(mongodb::bson::raw::cstr!("writeConcern"), rawdoc! { "w": "majority" });
        link.run(command, deadline).await?;
    }
    let version = i64::try_from(VERSION).unwrap_or(i64::MAX);
    let statement = rawdoc! {
        "q": { "_id": "schema" }, "u": { "$max": { "version": version } }, "upsert": true,
    };
    let written = link.write(link::update(Table::Meta, [statement].into_iter().collect()), deadline).await?;
    written.unless_duplicate()?;
    Ok(())
}

fn index((name, key, mut rest): (&'static str, Document, Document)) -> Result<RawDocumentBuf> {
    rest.insert("name", name);
    rest.insert("key", key);
    RawDocumentBuf::try_from(&rest).map_err(values::failed)
}

impl From<Error> for OpenError {
    fn from(err: Error) -> Self {
        match err {
            Error::Overloaded => Self::Silent(super::OPEN_DEADLINE),
            err => Self::Database(Box::new(err)),
        }
    }
}
