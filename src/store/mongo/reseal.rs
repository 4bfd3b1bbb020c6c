//! Renews what is sealed. Documents of sessions go through their lanes, like any other write; rows beside them are
//! replaced where they are still as they were seen.

use futures_util::future::try_join_all;
use mongodb::bson::{
    Binary, RawArrayBuf, RawBsonRef, RawDocumentBuf, doc,
    raw::{CStr, cstr},
    rawdoc,
};
use tokio::time::Instant;

use super::{
    super::{
        Result,
        rotation::{Position, Resealed},
        seal::{self, PLAIN, Place, Seal},
    },
    Mongo,
    head::Head,
    keys,
    link::{self, Find, Table},
    rows::Row,
    values::{self, Sealed, failed},
    work::{Ask, Decided, Draft},
};

/// Bytes of changed values after which a batch is full, however few rows it has.
const BATCH_BYTES: usize = 1024 * 1024;

/// A collection with sealed fields.
struct Part {
    table: Table,
    /// of documents of sessions, which hold values at many places, none
    fields: &'static [&'static CStr],
}

/// In the order of a pass. Sessions come first: what their documents imply is written before the rest is looked at.
const PARTS: [Part; 3] = [
    Part { table: Table::Sessions, fields: &[] },
    Part {
        table: Table::Entries,
        fields: &[cstr!("content"), cstr!("files"), cstr!("metadata"), cstr!("sha256"), cstr!("rating_why")],
    },
    Part { table: Table::TurnChunks, fields: &[cstr!("text")] },
];

/// What [`super::Store::reseal`] does.
pub(super) async fn batch(store: &Mongo, after: Option<Position>, limit: u32, deadline: Instant) -> Result<Resealed> {
    let link = &store.shared.link;
    if after.is_none() {
        // What is added from now on may be in use when the pass is over.
        store.note_keys(keys::ids(link, deadline).await?);
    }
    let Position { part: at, key } = after.unwrap_or(Position { part: 0, key: Vec::new() });
    let Some(part) = PARTS.get(usize::from(at)) else { return Ok(Resealed::default()) };
    let limit = limit.max(1);
    let behind = if key.is_empty() {
        doc! {}
    } else {
        doc! { "_id": { "$gt": values::binary(&key) } }
    };
    let mut find = Find { limit: i64::from(limit), ..Find::of(behind) };
    find.sort = Some(doc! { "_id": 1 });
    find.projection = part.projection();
    let rows = link.find(part.table, &find, deadline).await?;
    let mut found = match part.table {
        Table::Sessions => sessions(store, &rows, deadline).await?,
        _ => beside(store, part, &rows, deadline).await?,
    };
    let all = usize::try_from(found.rows).ok() == Some(rows.len());
    let over = all && rows.len() < usize::try_from(limit).unwrap_or(usize::MAX);
    let last = usize::try_from(found.rows).ok().and_then(|seen| rows.get(seen.checked_sub(1)?));
    found.next = match last {
        Some(last) if !over => Some(Position { part: at, key: key_of(last)?.bytes }),
        _ => Some(Position { part: at + 1, key: Vec::new() }),
    };
    found.next = found.next.filter(|next| usize::from(next.part) < PARTS.len());
    Ok(found)
}

impl Part {
    fn projection(&self) -> Option<mongodb::bson::Document> {
        let fields = self.fields.iter().map(|field| (field.as_str().to_owned(), 1.into()));
        Some(fields.collect()).filter(|fields: &mongodb::bson::Document| !fields.is_empty())
    }
}

fn key_of(row: &RawDocumentBuf) -> Result<Binary> {
    let key = row.get_binary(cstr!("_id")).map_err(failed)?;
    Ok(Binary { subtype: key.subtype, bytes: key.bytes.to_vec() })
}

/// Counts a value, and gives what is to take its place.
fn renewed(seal: &Seal, place: Place<'_>, stored: &[u8], found: &mut Resealed) -> Option<Vec<u8>> {
    let renewed = seal.renew(place, stored).unwrap_or_else(|err| {
        tracing::error!(error = &err as &dyn std::error::Error, "value is not sealed with the current key");
        found.failed += 1;
        None
    });
    found.renewed += u64::from(renewed.is_some());
    let key = if renewed.is_some() { seal.current() } else { seal::key_of(stored).unwrap_or(PLAIN) };
    *found.values.entry(key).or_default() += 1;
    renewed
}

/// Renews what documents of sessions hold, and takes what they imply out of them once it is written.
async fn sessions(store: &Mongo, rows: &[RawDocumentBuf], deadline: Instant) -> Result<Resealed> {
    let mut found = Resealed { rows: u64::try_from(rows.len()).unwrap_or(u64::MAX), ..Resealed::default() };
    let current = store.shared.seal.current();
    let mut asked = Vec::new();
    for row in rows {
        let mut head = Head::read(row)?;
        let (mut ours, mut others) = (0, 0);
        each(&mut head, |_place, stored| {
            let other = seal::key_of(&stored.bytes) != Some(current);
            (ours, others) = if other { (ours, others + 1) } else { (ours + 1, others) };
        });
        let implied = implied(&head.redo, current);
        if others + implied > 0 {
            asked.push(session(store, head, implied, deadline));
        } else if ours > 0 {
            *found.values.entry(current).or_default() += ours;
        }
    }
    for Resealed { values, renewed, failed, .. } in try_join_all(asked).await? {
        found.renewed += renewed;
        found.failed += failed;
        values.into_iter().for_each(|(key, count)| *found.values.entry(key).or_default() += count);
    }
    Ok(found)
}

/// The number of values that are sealed with another key than the current one in rows that a document implies.
fn implied(rows: &[Row], current: u32) -> u64 {
    let fields = |row: &Row| PARTS.iter().find(|part| part.table == row.table).map_or(&[][..], |part| part.fields);
    let other = |row: &Row, field: &&CStr| {
        let stored = row.row.get_binary(field).ok().map(|stored| seal::key_of(stored.bytes));
        stored.is_some_and(|key| key != Some(current))
    };
    let others = rows.iter().map(|row| fields(row).iter().filter(|field| other(row, field)).count()).sum::<usize>();
    u64::try_from(others).unwrap_or(u64::MAX)
}

/// Renews a document of which something is to be renewed. Its lane writes what it implies, and a later commit takes that
/// out of it.
async fn session(store: &Mongo, head: Head, implied: u64, deadline: Instant) -> Result<Resealed> {
    let decide = move |mut draft: Box<Draft>, seal: &Seal| {
        let mut found = Resealed { renewed: implied, ..Resealed::default() };
        draft.settles = true;
        each(&mut draft.head, |place, stored| {
            if let Some(new) = renewed(seal, place, &stored.bytes, &mut found) {
                stored.bytes = new;
            }
        });
        Ok(if found.renewed > 0 { Decided::Keep(found, draft) } else { Decided::Same(found) })
    };
    store.submit(Ask::new(head.id, deadline, || Ok(Resealed::default()), decide)).await
}

/// Shows each sealed value of a document.
fn each(head: &mut Head, mut see: impl FnMut(Place<'_>, &mut Sealed)) {
    let id = head.id;
    if let Some(name) = &mut head.name {
        see(values::session_place(&id, "name"), name);
    }
    if let Some(name) = head.assist.as_mut().and_then(|assist| assist.name.as_mut()) {
        see(values::session_place(&id, "assist_name"), name);
    }
    for share in &mut head.shares {
        if let Some(name) = &mut share.name {
            see(values::share_place(&share.id), name);
        }
    }
    for thread in &mut head.threads {
        see(values::thread_place(&values::thread_row(id, &thread.model_id)), &mut thread.reference);
    }
}

/// Renews rows beside the documents, until the batch is full.
async fn beside(store: &Mongo, part: &Part, rows: &[RawDocumentBuf], deadline: Instant) -> Result<Resealed> {
    let mut found = Resealed::default();
    let (mut statements, mut bytes) = (RawArrayBuf::new(), 0);
    for row in rows {
        found.rows += 1;
        let id = key_of(row)?;
        for field in part.fields {
            let stored = match row.get(field).map_err(failed)? {
                Some(RawBsonRef::Binary(stored)) => stored,
                Some(_strange) => {
                    tracing::error!(table = part.table.name(), field = field.as_str(), "value is not a sealed one");
                    found.failed += 1;
                    continue;
                }
                None => continue,
            };
            let place = Place { table: part.table.name(), row: &id.bytes, field: field.as_str() };
            let Some(new) = renewed(&store.shared.seal, place, stored.bytes, &mut found) else { continue };
            bytes += new.len();
            let mut as_seen = rawdoc! { "_id": id.clone() };
            as_seen.append(*field, Binary { subtype: stored.subtype, bytes: stored.bytes.to_vec() });
            let mut set = RawDocumentBuf::new();
            set.append(*field, values::binary(&new));
            statements.push(rawdoc! { "q": as_seen, "u": { "$set": set } });
        }
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    if found.renewed > 0 {
        let written = store.shared.link.write(link::update(part.table, statements), deadline).await?;
        // What does not match was sealed meanwhile, or is gone; or an attempt whose answer was lost has done it.
        let n = written.unless_duplicate()?.n;
        found.missed = found.renewed.saturating_sub(n);
        found.renewed -= found.missed;
    }
    Ok(found)
}
