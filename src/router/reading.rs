//! Reading sessions over HTTP: lists, searches, parts of a log and whole ones.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{
    Refusal, Router,
    sessions::{NAME_CHARS_MAX, invalid},
};
use crate::{
    auth::Principal,
    chat::{Entry, ErrorCode, Session, SessionId, Timestamp},
    store::{self, ListSessions, Order, Place, Range, Search},
};

/// Sessions in the list of old clients.
const NEWEST_SESSIONS: u32 = 100;

/// Entries that one search opens and reads.
const SEARCH_ENTRIES_MAX: u32 = 5_000;

/// Entries that are read at a time where a whole log is.
const PAGE_ENTRIES: u32 = 200;

/// A session as its reader's list shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Listed {
    /// the session
    pub session: Session,
    /// its newest link, for its owner
    pub share: Option<Uuid>,
    /// the text around what was searched for
    pub snippet: Option<String>,
}

/// A page of a list.
#[derive(Clone, PartialEq, Debug)]
pub struct Listing {
    /// the sessions
    pub sessions: Vec<Listed>,
    /// how many there are on all pages, where that was counted
    pub total: Option<u64>,
    /// asks for the next page; `None` on the last one
    pub next: Option<String>,
    /// a list goes on; a search has read as much as it may
    pub truncated: bool,
}

/// Which side of a place in a log is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// the entries that follow it
    After(u64),
    /// the entries just before it
    Before(u64),
}

/// A part of a log.
#[derive(Clone, PartialEq, Debug)]
pub struct LogPage {
    /// the session
    pub session: Session,
    /// its entries, in order; a running reply is among them, with empty content
    pub entries: Vec<Entry>,
    /// whether there are more on that side
    pub more: bool,
}

/// A whole log, read page by page up to the place where it ended at first.
#[derive(Debug)]
pub struct Log {
    router: Router,
    session_id: SessionId,
    after: u64,
    through: u64,
    first: Option<Vec<Entry>>,
}

impl Log {
    /// The next entries; `None` after the last ones. Running replies are left out.
    pub async fn next(&mut self) -> Option<store::Result<Vec<Entry>>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.after >= self.through {
            return None;
        }
        match self.read().await {
            Ok(entries) if entries.is_empty() => None,
            entries => Some(entries),
        }
    }

    async fn read(&mut self) -> store::Result<Vec<Entry>> {
        let range = Range::After(self.after, PAGE_ENTRIES);
        let mut entries = self.router.0.parts.store.entries(self.session_id, range).await?;
        self.after = entries.last().map_or(self.through, |entry| entry.seq);
        entries.retain(|entry| entry.seq <= self.through && entry.settled());
        Ok(entries)
    }

    /// The same log from its beginning.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { router: self.router.clone(), after: 0, first: None, ..*self }
    }
}

impl Router {
    /// Reads the newest sessions, as old clients ask for them.
    ///
    /// # Errors
    /// `DATABASE_ERROR`.
    pub async fn newest_sessions(&self, principal: &Principal) -> Result<Listing, Refusal> {
        let listing = self.list(principal, Order::Created, NEWEST_SESSIONS, None).await?;
        Ok(Listing { total: None, ..listing })
    }

    /// Reads a page of the caller's sessions, latest activity first.
    ///
    /// # Errors
    /// `INVALID_FORMAT` for a cursor that no list gave, `DATABASE_ERROR`.
    pub async fn list_sessions(
        &self,
        principal: &Principal,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<Listing, Refusal> {
        self.list(principal, Order::Activity, limit, cursor.map(place).transpose()?).await
    }

    async fn list(
        &self,
        principal: &Principal,
        order: Order,
        limit: u32,
        after: Option<Place>,
    ) -> Result<Listing, Refusal> {
        let user_id = principal.user_id.clone();
        let page = self.0.parts.store.sessions(ListSessions { user_id, order, after, limit }).await?;
        let last = page.sessions.last().filter(|_| page.more && order == Order::Activity);
        let next = last.map(|session| cursor(Place { at: session.last_activity, id: session.id }));
        let found = page.sessions.into_iter().map(|session| (session, None)).collect();
        let sessions = self.with_shares(principal, found).await?;
        Ok(Listing { sessions, total: Some(page.total), next, truncated: page.more })
    }

    /// Searches the names and texts of the caller's sessions, latest activity first.
    ///
    /// # Errors
    /// `INVALID_FORMAT` for a cursor that no list gave, `DATABASE_ERROR`.
    pub async fn search_sessions(
        &self,
        principal: &Principal,
        words: &str,
        limit: u32,
        cursor_text: Option<&str>,
    ) -> Result<Listing, Refusal> {
        let ask = Search {
            user_id: principal.user_id.clone(),
            text: words.to_owned(),
            after: cursor_text.map(place).transpose()?,
            limit,
            entries_max: SEARCH_ENTRIES_MAX,
        };
        let found = self.0.parts.store.search(ask).await?;
        let (next, truncated) = (found.next.map(cursor), found.truncated);
        let sessions = found.sessions.into_iter().map(|(session, snippet)| (session, Some(snippet))).collect();
        let sessions = self.with_shares(principal, sessions).await?;
        Ok(Listing { sessions, total: None, next, truncated })
    }

    pub(super) async fn listed(&self, principal: &Principal, session: Session) -> Result<Listed, Refusal> {
        let mut listed = self.with_shares(principal, vec![(session, None)]).await?;
        listed.pop().ok_or_else(|| Refusal::new(ErrorCode::ServiceError))
    }

    async fn with_shares(
        &self,
        principal: &Principal,
        found: Vec<(Session, Option<String>)>,
    ) -> Result<Vec<Listed>, Refusal> {
        let ids: Vec<SessionId> = found.iter().map(|(session, _)| session.id).collect();
        let shares = if ids.is_empty() { Vec::new() } else { self.0.parts.store.shares_of(&ids).await? };
        let listed = found.into_iter().map(|(session, snippet)| {
            let own = session.user_id == principal.user_id;
            let share = shares.iter().find(|share| own && share.session_id == session.id).map(|share| share.id);
            Listed { session, share, snippet }
        });
        Ok(listed.collect())
    }

    /// Reads a part of a session's log.
    ///
    /// # Errors
    /// `NOT_FOUND`, `DATABASE_ERROR`.
    pub async fn read_page(
        &self,
        principal: &Principal,
        id: SessionId,
        side: Side,
        limit: u32,
    ) -> Result<LogPage, Refusal> {
        let session = self.readable(principal, id).await?;
        let wanted = limit.saturating_add(1);
        let range = match side {
            Side::After(seq) => Range::After(seq, wanted),
            Side::Before(seq) => Range::Before(seq, wanted),
        };
        let mut entries = self.0.parts.store.entries(id, range).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let surplus = entries.len().saturating_sub(limit);
        match side {
            Side::After(_) => entries.truncate(limit),
            Side::Before(_) => drop(entries.drain(..surplus)),
        }
        Ok(LogPage { session, entries, more: surplus > 0 })
    }

    /// Reads a session and begins to read the whole of its log.
    ///
    /// # Errors
    /// `NOT_FOUND`, `DATABASE_ERROR`.
    pub async fn read_log(&self, principal: &Principal, id: SessionId) -> Result<(Session, Log), Refusal> {
        let session = self.readable(principal, id).await?;
        let log = self.log(id, session.last_seq).await?;
        Ok((session, log))
    }

    pub(super) async fn log(&self, session_id: SessionId, through: u64) -> Result<Log, Refusal> {
        let mut log = Log { router: self.clone(), session_id, after: 0, through, first: None };
        // Read before the answer begins, so that a store that fails is told as such.
        log.first = Some(log.read().await?);
        Ok(log)
    }
}

/// A place in a list as it goes through a client.
fn cursor(place: Place) -> String {
    let mut bytes = place.at.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(place.id.0.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn place(cursor: &str) -> Result<Place, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    let place = bytes.as_deref().and_then(|bytes| {
        let (at, id) = bytes.split_first_chunk()?;
        Some(Place { at: Timestamp(i64::from_be_bytes(*at)), id: SessionId(Uuid::from_slice(id).ok()?) })
    });
    place.ok_or_else(|| {
        let shown: String = cursor.chars().take(NAME_CHARS_MAX).collect();
        invalid(format!("`cursor`: `{shown}` is not the `next_cursor` of a list"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_the_place_it_was_made_from() {
        let at = Place { at: Timestamp(1_700_000_000_123), id: SessionId::new() };
        assert_eq!(place(&cursor(at)).unwrap(), at);
        for text in ["", "x", "====", &cursor(at).repeat(2), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            let refusal = place(text).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::InvalidFormat, "{text}");
            assert!(refusal.message.contains("is not the `next_cursor` of a list"), "{}", refusal.message);
        }
    }
}
