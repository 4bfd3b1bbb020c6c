//! Search through names and texts, which are sealed: each is opened and read.

use rusqlite::{Connection, params};

use super::{
    super::{Found, Place, Result, Search, seal::Seal},
    lists, queries, values,
};
use crate::chat::{EntryId, Session};

/// Sessions that are read at a time.
const SESSIONS_READ: u32 = 50;

/// How long a snippet is, and how much of it stands before the hit, in characters.
const SNIPPET_CHARS: usize = 120;
const BEFORE_CHARS: usize = 40;

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

/// Letters without their case. A Greek word is written with another sigma at its end.
fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).map(|letter| if letter == 'ς' { 'σ' } else { letter }).collect()
}

/// The text around the first hit of a folded text.
fn snippet(text: &str, wanted: &str) -> Option<String> {
    let hit = folded(text).find(wanted)?;
    let mut end = 0;
    let until = |letter: &char| {
        end += letter.to_lowercase().map(char::len_utf8).sum::<usize>();
        end <= hit
    };
    let begin = text.chars().take_while(until).count().saturating_sub(BEFORE_CHARS);
    let mut rest = text.chars().skip(begin);
    let mut snippet: String = if begin > 0 { "…" } else { "" }.to_owned();
    snippet.extend(rest.by_ref().take(SNIPPET_CHARS));
    snippet.extend(rest.next().map(|_more| '…'));
    Some(snippet)
}

#[cfg(test)]
mod tests {
    use super::{folded, snippet};

    #[test]
    fn hit_is_found_whatever_the_case_of_its_letters() {
        let cases = [
            ("Große STRASSE", "strasse", true),
            ("ÄPFEL und Öl", "äpfel UND ö", true),
            ("ΟΔΟΣ", "οδος", true),
            ("οδος", "ΟΔΟΣ", true),
            ("ПРИВЕТ, мир", "привет, МИР", true),
            ("日本語", "本", true),
            ("one two", "two one", false),
            ("", "x", false),
        ];
        for (text, wanted, hit) in cases {
            assert_eq!(snippet(text, &folded(wanted)).is_some(), hit, "{wanted} in {text}");
        }
    }

    #[test]
    fn snippet_is_cut_at_characters_around_the_hit() {
        // The letter before the hit is longer in small letters than it is in capitals.
        let text = format!("{}İNeedle{}", "ä".repeat(99), "ö".repeat(200));
        let want = format!("…{}İNeedle{}…", "ä".repeat(39), "ö".repeat(74));
        assert_eq!(snippet(&text, "needle"), Some(want));
        assert_eq!(snippet("a Needle", "needle").as_deref(), Some("a Needle"));
        assert_eq!(snippet(&"n".repeat(120), "n").map(|snippet| snippet.chars().count()), Some(120));
        assert_eq!(snippet(&"n".repeat(121), "n").map(|snippet| snippet.chars().count()), Some(121));
    }
}
