//! The keys that this database is sealed with: compared when it opens and now and then, and forgotten when nothing is
//! sealed with them.

use mongodb::bson::{RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    super::{
        Error, Result,
        rotation::SealedWith,
        seal::{Seal, check, check::Held},
    },
    OpenError,
    lane::Shared,
    link::{self, Find, Link, Table},
    values::{self, Sealed},
};

/// What is counted where it is asked how many rows there are.
const COUNTED: [Table; 3] = [Table::Sessions, Table::Entries, Table::TurnChunks];

/// Keys that may be added by others while one is added, before it is given up.
const ATTEMPTS: usize = 16;

#[derive(Deserialize)]
struct KeyRow {
    #[serde(rename = "_id")]
    id: u32,
    proof: Sealed,
}

/// Compares the database's keys with the configured ones, and adds the current one. What others added meanwhile is
/// compared too: of two nodes that start at once with different keys, the second one to look sees both.
///
/// # Errors
/// A key is missing or is another one; the database fails.
pub(super) async fn compare(link: &Link, seal: &Seal, deadline: Instant) -> std::result::Result<(), OpenError> {
    for _attempt in 0..ATTEMPTS {
        let Some(added) = check::examine(seal, &held(link, deadline).await?)? else { return Ok(()) };
        let rows = [row(&added)].into_iter().collect();
        link.write(link::insert(Table::SealKeys, rows), deadline).await?.unless_duplicate()?;
    }
    Err(Error::Database("the rows of the keys keep on going".into()).into())
}

/// Compares as long as the store is open. A node that seals with a key that was retired by another one has it remembered
/// again, so that no later start without that key takes its values for lost.
pub(super) async fn compare_again(shared: &Shared, deadline: Instant) -> Result<()> {
    match compare(&shared.link, &shared.seal, deadline).await {
        Ok(()) => Ok(()),
        Err(OpenError::Sealed(err)) => {
            let advice = "other nodes seal with keys that this one does not have, or do no more have its own";
            tracing::error!(error = &err as &dyn std::error::Error, "{advice}");
            remember_current(shared, deadline).await
        }
        Err(err) => Err(values::failed(err)),
    }
}

/// Adds the current key, whatever the others are.
async fn remember_current(shared: &Shared, deadline: Instant) -> Result<()> {
    let added = check::in_use(&shared.seal).map_err(values::failed)?;
    let rows = [row(&added)].into_iter().collect();
    shared.link.write(link::insert(Table::SealKeys, rows), deadline).await?.unless_duplicate()?;
    Ok(())
}

/// Compares, and adds nothing.
///
/// # Errors
/// Those of [`compare`].
pub(super) async fn inspect(link: &Link, seal: &Seal, deadline: Instant) -> std::result::Result<(), OpenError> {
    check::examine(seal, &held(link, deadline).await?)?;
    Ok(())
}

/// What the database says of its keys, in the order of their ids.
async fn held(link: &Link, deadline: Instant) -> Result<Vec<Held>> {
    let find = Find { sort: Some(doc! { "_id": 1 }), ..Find::default() };
    let rows = link.find(Table::SealKeys, &find, deadline).await?;
    let rows = rows.iter().map(values::row::<KeyRow>);
    rows.map(|row| row.map(|row| Held { id: row.id, proof: row.proof.bytes })).collect()
}

/// The ids of all keys that values may be sealed with.
pub(super) async fn ids(link: &Link, deadline: Instant) -> Result<Vec<u32>> {
    Ok(held(link, deadline).await?.into_iter().map(|held| held.id).collect())
}

fn row(held: &Held) -> RawDocumentBuf {
    rawdoc! { "_id": i64::from(held.id), "proof": values::binary(&held.proof) }
}

/// What [`super::Store::sealed_with`] answers.
pub(super) async fn sealed_with(shared: &Shared, deadline: Instant) -> Result<SealedWith> {
    let keys = ids(&shared.link, deadline).await?;
    let mut rows = 0;
    for table in COUNTED {
        // Without a query it is the count of the collection's statistics.
        let counted = shared.link.run(rawdoc! { "count": table.name() }, deadline).await?;
        let n = counted.get_i64("n").or_else(|_type| counted.get_i32("n").map(i64::from)).map_err(values::failed)?;
        rows += u64::try_from(n).unwrap_or_default();
    }
    Ok(SealedWith { current: shared.seal.current(), keys, rows })
}

/// Forgets those of the keys that are `over`, but for the current one.
pub(super) async fn retire(shared: &Shared, over: &[u32], deadline: Instant) -> Result<()> {
    let settled = check::settled(&shared.seal).map_err(values::failed)?;
    // First the row that says that no plain value is left, so that there is one that says so at any time.
    let put = rawdoc! { "q": { "_id": i64::from(settled.id) }, "u": row(&settled), "upsert": true };
    let put = link::update(Table::SealKeys, [put].into_iter().collect());
    shared.link.write(put, deadline).await?.unless_duplicate()?;
    let over: RawArrayBuf = over.iter().filter(|id| **id != settled.id).map(|id| i64::from(*id)).collect();
    let drop = rawdoc! { "q": { "_id": { "$in": over } }, "limit": 0 };
    let drop = link::delete(Table::SealKeys, [drop].into_iter().collect());
    shared.link.write(drop, deadline).await.map(std::mem::drop)
}
