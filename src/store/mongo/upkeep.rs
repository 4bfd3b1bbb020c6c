//! What a node does by itself: it compares clocks and keys, writes what a crash left unwritten, and forgets what was deleted.

use mongodb::bson::{RawDocumentBuf, doc, rawdoc};
use tokio::time::Instant;

use super::{
    super::Result,
    beside::{self, Turnout},
    erase,
    head::Head,
    keys,
    lane::Shared,
    link::{self, Find, Table},
    rows::DropSession,
    values,
};

/// A commit whose rows are not known to be written after this time was left by a crash. It knows its minute.
const LEFT_MS: i64 = 90_000;
/// What is left of a deleted session keeps late writers out, and none is later than this.
const GONE_MS: i64 = 300_000;
/// Sessions that are looked at in one round.
const ROUND_MAX: i64 = 100;

/// One round.
pub(super) async fn round(shared: &Shared, deadline: Instant) -> Result<()> {
    shared.clock.compare(&shared.link, deadline).await?;
    keys::compare_again(shared, deadline).await?;
    for head in stale(shared, "redo_at", LEFT_MS, deadline).await? {
        beside::apply(&shared.link, &head.redo, Turnout::Again, deadline).await?;
        let unset = rawdoc! { "$unset": { "redo": "", "redo_at": "" } };
        let statement = rawdoc! { "q": version(&head), "u": unset };
        shared.link.write(link::update(Table::Sessions, [statement].into_iter().collect()), deadline).await?;
        tracing::info!(session_id = %head.id, rows = head.redo.len(), "rows of a former commit are written");
    }
    for head in stale(shared, "gone_at", GONE_MS, deadline).await? {
        let gone = DropSession { session: head.id, turns: Vec::new() };
        erase::session(&shared.link, &gone, deadline).await?;
        let statement = rawdoc! { "q": version(&head), "limit": 1 };
        shared.link.write(link::delete(Table::Sessions, [statement].into_iter().collect()), deadline).await?;
    }
    Ok(())
}

async fn stale(shared: &Shared, field: &str, age_ms: i64, deadline: Instant) -> Result<Vec<Head>> {
    let before = shared.clock.now().saturating_sub(age_ms);
    let find = Find { limit: ROUND_MAX, ..Find::of(doc! { field: { "$lte": before } }) };
    let found = shared.link.find(Table::Sessions, &find, deadline).await?;
    found.iter().map(Head::read).collect()
}

fn version(head: &Head) -> RawDocumentBuf {
    rawdoc! { "_id": values::id(head.id.0), "v": i64::try_from(head.v).unwrap_or(i64::MAX) }
}
