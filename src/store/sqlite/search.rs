//! Search through names and texts, which are sealed: each is opened and read.

use rusqlite::{Connection, params};

use super::{
    super::{
        Found, Place, Result, Search,
        seal::Seal,
        snippet::{folded, snippet},
    },
    lists, queries, values,
};
use crate::chat::{EntryId, Session};

/// Sessions that are read at a time.
const SESSIONS_READ: u32 = 50;

/// Searches a user's sessions, latest activity first.
pub(super) fn search(connection: &Connection, ask: &Search, seal: &Seal) -> Result<Found> {
    let wanted = folded(&ask.text);
    let (sessions_max, entries_max) = (ask.limit.max(1), ask.entries_max.max(1));
    let mut found = Found { sessions: Vec::new(), next: None, truncated: false };
    let mut place = ask.after;
    let mut entries_left = entries_max;
    loop {
        let page = lists::by_activity(connection, &ask.user_id, place, SESSIONS_READ, seal)?;
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
                None => in_log(connection, &session, &wanted, &mut entries_left, seal)?,
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
fn in_log(
    connection: &Connection,
    session: &Session,
    wanted: &str,
    entries_left: &mut u32,
    seal: &Seal,
) -> Result<Option<String>> {
    let mut statement = connection.prepare_cached(queries::ENTRIES_TEXT)?;
    let mut rows = statement.query(params![session.id, *entries_left])?;
    while let Some(row) = rows.next()? {
        *entries_left = entries_left.saturating_sub(1);
        let id: EntryId = row.get(0)?;
        let sealed: Vec<u8> = row.get(1)?;
        let text = seal.open_text(values::entry_place(&id, "content"), &sealed)?;
        if let Some(hit) = snippet(&text, wanted) {
            return Ok(Some(hit));
        }
    }
    Ok(None)
}
