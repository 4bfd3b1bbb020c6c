//! Requests: each user's request makes one entry, in whichever of their sessions, on whichever node.
//!
//! The name of a request is taken before its entry is committed, by a row that says for which entry and session. A row
//! that is there already says where to look for what was made. If nothing is made for a while, whoever waits takes the
//! name over and then changes the document of the former holder's session, so that its commit, should it still be on
//! its way, finds another version, and this row, before it tries again.

use std::time::Duration;

use mongodb::bson::{Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{NewEntry, Result},
    head::Head,
    lane::Shared,
    link::{self, Attempt, Link, Pause, Table, Written},
    rows::{self, EntryRow},
    values,
};
use crate::chat::{Entry, EntryId, RequestId, SessionId, UserId};

/// A request, and the entry that it is to make.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// its name in the table
    pub(super) key: String,
    made: Made,
    /// who has the name, as far as is known, and since when that is known
    holder: Option<(EntryId, Instant)>,
    /// somebody has the name: it was asked for before
    pub(super) reserved: bool,
}

/// How long a holder has to commit before the name is taken over. One that lives takes milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where a request's entry is, or is going to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    session_id: SessionId,
    entry_id: EntryId,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RequestRow {
    #[serde(rename = "_id")]
    key: String,
    #[serde(flatten)]
    made: Made,
    /// former holders whose commits may still be on their way
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<Made>,
}

/// What a name that was taken before comes to.
pub(super) enum Standing {
    /// nothing was made, and nobody else will
    Held,
    /// somebody else is about to make it
    Waits,
    /// the entry, and its session's `rev`
    Made(Box<Entry>, u64),
}

/// The name of a client's request. User ids are not empty, and the end has a fixed length: no two have one name.
pub(super) fn key_of(user: &UserId, client_id: RequestId) -> String {
    format!("{}/{}", user.as_str(), client_id.simple())
}

/// The name that the row of an entry without a request goes by.
pub(super) fn key_of_entry(id: EntryId) -> String {
    format!("/{}", id.0.simple())
}

impl Request {
    /// Of an entry on its way in.
    pub(super) fn of(entry: &NewEntry) -> Self {
        let key = match entry.client_id {
            Some(client_id) => key_of(&entry.user_id, client_id),
            None => key_of_entry(entry.id),
        };
        Self { key, made: Made { session_id: entry.session_id, entry_id: entry.id }, holder: None, reserved: false }
    }

    /// Of another reply.
    pub(super) fn of_reply(user: &UserId, client_id: RequestId, session_id: SessionId, entry_id: EntryId) -> Self {
        Self { key: key_of(user, client_id), made: Made { session_id, entry_id }, holder: None, reserved: false }
    }

    /// The row that takes the name.
    pub(super) fn row(&self) -> RawDocumentBuf {
        let Made { session_id, entry_id } = self.made;
        let (session_id, entry_id) = (values::id(session_id.0), values::id(entry_id.0));
        rawdoc! { "_id": self.key.as_str(), "session_id": session_id, "entry_id": entry_id }
    }

    /// Whether the holder may still commit; notes who it is.
    fn waits_for(&mut self, holder: EntryId) -> bool {
        let known = self.holder.filter(|(known, _since)| *known == holder);
        let (_holder, since) = *self.holder.insert(known.unwrap_or((holder, Instant::now())));
        since.elapsed() < PATIENCE
    }

    fn held(&self) -> Document {
        doc! { "_id": &self.key, "entry_id": values::id(self.made.entry_id.0) }
    }
}

/// Takes names; tells which of them are taken already.
pub(super) async fn reserve(link: &Link, rows: RawArrayBuf, deadline: Instant) -> Result<Vec<usize>> {
    let written = link.write(link::insert(Table::Requests, rows), deadline).await?.unless_duplicate()?;
    let mut taken: Vec<_> = written.failed.into_iter().map(|(at, _duplicate)| at).collect();
    taken.sort_unstable();
    Ok(taken)
}

/// Gives a name back.
pub(super) async fn release(link: &Link, request: &Request, deadline: Instant) {
    let mut statements = RawArrayBuf::new();
    let Made { entry_id, .. } = request.made;
    let filter = rawdoc! { "_id": request.key.as_str(), "entry_id": values::id(entry_id.0) };
    statements.push(rawdoc! { "q": filter, "limit": 1 });
    if let Attempt::Failed(err) = link.write_once(link::delete(Table::Requests, statements), deadline).await {
        tracing::debug!(error = &err as &dyn std::error::Error, "name of a refused request stays");
    }
}

/// Finds out what a name stands for that was taken before, and takes it over if that is nothing.
pub(super) async fn settle(shared: &Shared, request: &mut Request, deadline: Instant) -> Result<Standing> {
    let mut pause = Pause::new(deadline);
    loop {
        let Some(row) = find(&shared.link, &request.key, deadline).await? else {
            let rows = [request.row()].into_iter().collect();
            if reserve(&shared.link, rows, deadline).await?.is_empty() {
                return Ok(Standing::Held);
            }
            continue;
        };
        for made in [row.made].iter().chain(&row.former) {
            if let Some((entry, rev)) = entry(shared, *made, deadline).await? {
                return restore(shared, &row, *made, (entry, rev), deadline).await;
            }
        }
        if row.made == request.made {
            for former in &row.former {
                if let Some(found) = fence(shared, *former, deadline).await? {
                    return restore(shared, &row, *former, found, deadline).await;
                }
            }
            if !row.former.is_empty() {
                set(&shared.link, request, &request.held(), doc! { "$unset": { "former": "" } }, deadline).await?;
            }
            return Ok(Standing::Held);
        }
        if request.waits_for(row.made.entry_id) {
            return Ok(Standing::Waits);
        }
        let former: Vec<_> = [row.made].iter().chain(&row.former).map(|made| document(*made)).collect();
        let taken = doc! { "_id": &row.key, "entry_id": values::id(row.made.entry_id.0) };
        let mut new = document(request.made);
        new.insert("former", former);
        if set(&shared.link, request, &taken, doc! { "$set": new }, deadline).await? == 0 {
            pause.wait().await?;
        }
    }
}

/// Where the entry of a user's request is, if it was made.
pub(super) async fn made(shared: &Shared, key: &str, deadline: Instant) -> Result<Option<(Entry, u64)>> {
    let Some(row) = find(&shared.link, key, deadline).await? else { return Ok(None) };
    for made in [row.made].iter().chain(&row.former) {
        if let Some(found) = entry(shared, *made, deadline).await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

async fn find(link: &Link, key: &str, deadline: Instant) -> Result<Option<RequestRow>> {
    let row = link.find_one(Table::Requests, doc! { "_id": key }, deadline).await?;
    row.map(|row| values::row(&row)).transpose()
}

fn document(made: Made) -> Document {
    doc! { "session_id": values::id(made.session_id.0), "entry_id": values::id(made.entry_id.0) }
}

async fn set(link: &Link, request: &Request, filter: &Document, update: Document, deadline: Instant) -> Result<u64> {
    let raw = |document: &Document| RawDocumentBuf::try_from(document).map_err(values::failed);
    let statements = [rawdoc! { "q": raw(filter)?, "u": raw(&update)? }].into_iter().collect();
    let written = link.write(link::update(Table::Requests, statements), deadline).await?.unless_duplicate()?;
    tracing::debug!(matched = written.n, name_bytes = request.key.len(), "request changes hands");
    Ok(written.n)
}

/// An entry, if it is committed, and its session's `rev`.
async fn entry(shared: &Shared, made: Made, deadline: Instant) -> Result<Option<(Entry, u64)>> {
    let Some(head) = head(&shared.link, made.session_id, deadline).await? else { return Ok(None) };
    committed(shared, &head, made, deadline).await
}

async fn head(link: &Link, id: SessionId, deadline: Instant) -> Result<Option<Head>> {
    let found = link.find_one(Table::Sessions, doc! { "_id": values::id(id.0) }, deadline).await?;
    let head = found.map(|found| Head::read(&found)).transpose()?;
    Ok(head.filter(|head| head.gone_at.is_none()))
}

async fn committed(shared: &Shared, head: &Head, made: Made, deadline: Instant) -> Result<Option<(Entry, u64)>> {
    let mut redo = rows::of_table::<EntryRow>(&head.redo, Table::Entries)?.into_iter();
    let row = match redo.find(|row| row.id == made.entry_id) {
        Some(row) => Some(row),
        None => {
            let filter = doc! { "_id": values::id(made.entry_id.0), "session_id": values::id(made.session_id.0) };
            let row = shared.link.find_one(Table::Entries, filter, deadline).await?;
            row.map(|row| values::row(&row)).transpose()?
        }
    };
    Ok(row.map(|row: EntryRow| row.open(&shared.seal)).transpose()?.map(|entry| (entry, head.rev)))
}

/// Lets no commit of a session arrive any more that is on its way. Gives the entry if it was first.
async fn fence(shared: &Shared, made: Made, deadline: Instant) -> Result<Option<(Entry, u64)>> {
    let mut pause = Pause::new(deadline);
    loop {
        let Some(head) = head(&shared.link, made.session_id, deadline).await? else { return Ok(None) };
        if let Some(found) = committed(shared, &head, made, deadline).await? {
            return Ok(Some(found));
        }
        let v = i64::try_from(head.v).unwrap_or(i64::MAX);
        let filter = rawdoc! { "_id": values::id(head.id.0), "v": v };
        let statements = [rawdoc! { "q": filter, "u": { "$inc": { "v": 1_i64 } } }].into_iter().collect();
        let written = shared.link.write_once(link::update(Table::Sessions, statements), deadline).await;
        match written {
            Attempt::Done(Written { n: 1, .. }) => return Ok(None),
            Attempt::Failed(err) => return Err(err),
            Attempt::Done(_) | Attempt::Again => pause.wait().await?,
        }
    }
}

/// Points a row back at what was made after all.
async fn restore(
    shared: &Shared,
    row: &RequestRow,
    made: Made,
    found: (Entry, u64),
    deadline: Instant,
) -> Result<Standing> {
    if row.made != made || !row.former.is_empty() {
        let request = Request { key: row.key.clone(), made, holder: None, reserved: true };
        let taken = doc! { "_id": &row.key, "entry_id": values::id(row.made.entry_id.0) };
        let update = doc! { "$set": document(made), "$unset": { "former": "" } };
        set(&shared.link, &request, &taken, update, deadline).await?;
    }
    let (entry, rev) = found;
    Ok(Standing::Made(Box::new(entry), rev))
}
