//! Reads of many sessions, and the search through them.

use futures_util::{StreamExt, TryStreamExt, stream};
use mongodb::bson::{Document, RawDocumentBuf, doc, rawdoc};
use tokio::time::Instant;

use super::{
    super::{
        Found, ListSessions, Order, Page, Place, Result, Revs, Search, Share,
        snippet::{folded, snippet},
    },
    head::{self, Head},
    lane::Shared,
    link::{Find, Table},
    reads, schema, values,
};
use crate::chat::{Session, SessionId, Timestamp, UserId};

/// Users whose lists are read at the same time.
const USERS_AT_ONCE: usize = 16;
/// Sessions that a search reads at a time.
const SESSIONS_READ: u32 = 50;

/// What lists need not know of a session.
fn shown() -> Document {
    doc! { "redo": 0, "open": 0, "commits": 0, "threads": 0, "shares": 0 }
}

/// Sessions of a user that have an entry, behind a place.
fn of_user(user: &UserId, order: Order, after: Option<Place>, limit: u32) -> Find {
    let (field, index) = match order {
        Order::Activity => ("last_activity", schema::BY_ACTIVITY),
        Order::Created => ("created_at", schema::BY_START),
    };
    let mut filter = doc! { "user_id": user.as_str(), "filled": true };
    if let Some(Place { at, id }) = after {
        filter.insert(field, doc! { "$lte": at.0 });
        filter.insert("$or", [doc! { field: { "$lt": at.0 } }, doc! { "_id": { "$lt": values::id(id.0) } }].to_vec());
    }
    let sort = Some(doc! { field: -1, "_id": -1 });
    Find { filter, projection: Some(shown()), sort, hint: Some(index), limit: i64::from(limit) }
}

/// One page of a user's sessions.
pub(super) async fn page(shared: &Shared, ask: &ListSessions, deadline: Instant) -> Result<Page> {
    // One more than asked for tells whether more follow.
    let find = of_user(&ask.user_id, ask.order, ask.after, ask.limit.saturating_add(1));
    let found = shared.link.find(Table::Sessions, &find, deadline);
    let (found, total) = futures_util::try_join!(found, count(shared, &ask.user_id, deadline))?;
    let mut sessions = sessions(shared, &found)?;
    let limit = usize::try_from(ask.limit).unwrap_or(usize::MAX);
    let more = sessions.len() > limit;
    sessions.truncate(limit);
    Ok(Page { sessions, more, total })
}

fn sessions(shared: &Shared, found: &[RawDocumentBuf]) -> Result<Vec<Session>> {
    found.iter().map(|found| Head::read(found)?.session(&shared.seal)).collect()
}

async fn count(shared: &Shared, user: &UserId, deadline: Instant) -> Result<u64> {
    let command = rawdoc! {
        "count": Table::Sessions.name(), "query": { "user_id": user.as_str(), "filled": true },
        "hint": schema::BY_START, "readConcern": { "level": "majority" },
    };
    let reply = shared.link.run(command, deadline).await?;
    let n = reply.get_i32("n").map(i64::from).or_else(|_wide| reply.get_i64("n")).map_err(values::failed)?;
    u64::try_from(n).map_err(values::failed)
}

/// Active sessions in which nothing has happened since a moment, and that wait for nothing.
pub(super) async fn idle(shared: &Shared, since: Timestamp, limit: u32, deadline: Instant) -> Result<Vec<SessionId>> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let find = Find {
        filter: doc! {
            "active_slot": { "$exists": true }, "quarter": { "$lte": head::quarter(since.0) },
            "last_activity": { "$lte": since.0 }, "open.0": { "$exists": false },
        },
        projection: Some(doc! { "rev": 1 }),
        sort: Some(doc! { "quarter": 1 }),
        hint: Some(schema::IDLE),
        limit: i64::from(limit),
    };
    let found = shared.link.find(Table::Sessions, &find, deadline).await?;
    found.iter().map(|found| reads::rev(found).map(|(id, _rev)| id)).collect()
}

/// The `rev` of each user's sessions with the latest activity.
pub(super) async fn user_revs(
    shared: &Shared,
    users: &[UserId],
    limit: u32,
    deadline: Instant,
) -> Result<Vec<(UserId, Revs)>> {
    let each: Vec<_> = users.iter().map(|user| revs_of(shared, user, limit, deadline)).collect();
    stream::iter(each).buffered(USERS_AT_ONCE).try_collect().await
}

async fn revs_of(shared: &Shared, user: &UserId, limit: u32, deadline: Instant) -> Result<(UserId, Revs)> {
    if limit == 0 {
        return Ok((user.clone(), Vec::new()));
    }
    let find = Find { projection: Some(doc! { "rev": 1 }), ..of_user(user, Order::Activity, None, limit) };
    let found = shared.link.find(Table::Sessions, &find, deadline).await?;
    Ok((user.clone(), found.iter().map(reads::rev).collect::<Result<_>>()?))
}

/// Searches a user's sessions, latest activity first.
pub(super) async fn search(shared: &Shared, ask: &Search, deadline: Instant) -> Result<Found> {
    let wanted = folded(&ask.text);
    let (sessions_max, entries_max) = (ask.limit.max(1), ask.entries_max.max(1));
    let mut found = Found { sessions: Vec::new(), next: None, truncated: false };
    let mut place = ask.after;
    let mut entries_left = entries_max;
    loop {
        let find = of_user(&ask.user_id, Order::Activity, place, SESSIONS_READ);
        let page = sessions(shared, &shared.link.find(Table::Sessions, &find, deadline).await?)?;
        let last = page.len() < usize::try_from(SESSIONS_READ).unwrap_or(usize::MAX);
        for session in page {
            let full = found.sessions.len() >= usize::try_from(sessions_max).unwrap_or(usize::MAX);
            let whole = session.counters.entries <= u64::from(entries_left);
            // A log that does not fit any more is left to the next search, and read in part only if it never fits.
            if full || (!whole && entries_left < entries_max) {
                return Ok(Found { next: place, truncated: !full, ..found });
            }
            place = Some(Place { at: session.last_activity, id: session.id });
            let hit = match snippet(session.name.as_deref().unwrap_or_default(), &wanted) {
                Some(hit) => Some(hit),
                None => in_log(shared, &session, &wanted, &mut entries_left, deadline).await?,
            };
            found.truncated |= !whole && hit.is_none();
            found.sessions.extend(hit.map(|hit| (session, hit)));
        }
        if last {
            return Ok(found);
        }
    }
}

/// The text around the first hit in a log, whose entries are taken from `entries_left`.
async fn in_log(
    shared: &Shared,
    session: &Session,
    wanted: &str,
    entries_left: &mut u32,
    deadline: Instant,
) -> Result<Option<String>> {
    let range = super::super::Range::After(0, *entries_left);
    for entry in reads::entries(shared, session.id, range, deadline).await? {
        if entry.content.is_empty() {
            continue;
        }
        *entries_left = entries_left.saturating_sub(1);
        if let Some(hit) = snippet(&entry.content, wanted) {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}

/// What nobody takes care of: turns whose leases have run out, and sessions whose queue stands still.
pub(super) async fn lost(shared: &Shared, limit: u32, deadline: Instant) -> Result<super::super::Lost> {
    let now = shared.clock.now();
    if limit == 0 {
        return Ok(super::super::Lost::default());
    }
    let of = |field: &str| Find {
        sort: Some(doc! { field: 1 }),
        limit: i64::from(limit),
        projection: Some(doc! { "redo": 0 }),
        ..Find::of(doc! { field: { "$lte": now } })
    };
    let (leases, waiting) = (of("lease_until"), of("waits_since"));
    let leases = shared.link.find(Table::Sessions, &leases, deadline);
    let waiting = shared.link.find(Table::Sessions, &waiting, deadline);
    let (leases, waiting) = futures_util::try_join!(leases, waiting)?;
    let mut lost = super::super::Lost::default();
    for head in leases.iter().map(Head::read) {
        let head = head?;
        let running = head.running().filter(|(_open, running)| running.lease_until <= now);
        lost.turns.extend(running.map(|(open, _running)| open.turn(head.id)));
    }
    for head in waiting.iter().map(Head::read) {
        lost.sessions.push(head?.id);
    }
    Ok(lost)
}

/// The newest share of each session that has one that has not ended.
pub(super) async fn shares(shared: &Shared, ids: &[SessionId], deadline: Instant) -> Result<Vec<Share>> {
    let now = shared.clock.now();
    let known: Vec<_> = ids.iter().map(|id| values::id(id.0)).collect();
    let find = Find::of(doc! { "_id": { "$in": known }, "gone_at": null });
    let found = shared.link.find(Table::Sessions, &find, deadline).await?;
    let heads = found.iter().map(Head::read).collect::<Result<Vec<_>>>()?;
    let of = |id: &SessionId| {
        let head = heads.iter().find(|head| head.id == *id)?;
        Some((head.id, head.shares.iter().rev().find(|share| share.lasts(now))?))
    };
    ids.iter().filter_map(of).map(|(id, share)| share.open(id, &shared.seal)).collect()
}
