//! The use cases of whole sessions: list, search, read, name, choose a model, end, delete, share.
//!
//! Every change is told to the watchers of the session and to its owner's lists.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Refusal, Router};
use crate::{
    auth::{Principal, Role},
    chat::{Entry, ErrorCode, Session, SessionId, SessionState, SessionUpdate, Timestamp, Turn},
    clock::now,
    store::{self, Change, Changed, ListSessions, NewShare, Open, OpenSession, Order, Place, Range, Search, Share},
};

/// Sessions in the list of old clients.
const NEWEST_SESSIONS: u32 = 100;

/// Longest name that an owner gives a session, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// Entries that one search opens and reads.
const SEARCH_ENTRIES_MAX: u32 = 5_000;

/// Links of one session; the oldest goes first.
const SHARES_MAX: u32 = 20;

/// Entries that are read at a time where a whole log is.
const PAGE_ENTRIES: u32 = 200;

/// How long a deleted session's running reply may take to store its end.
const TURN_END_DEADLINE: Duration = Duration::from_secs(5);

/// How often sessions are looked for that have been idle for too long, unless `sessions.idle_end` is shorter.
const IDLE_SWEEP: Duration = Duration::from_secs(60);

/// Idle sessions that are ended at a time, and how often in a row.
const IDLE_MAX: u32 = 100;
const IDLE_ROUNDS: u32 = 10;

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
    /// how many there are on all pages; a search does not know
    pub total: Option<u64>,
    /// asks for the next page; `None` on the last one
    pub next: Option<String>,
    /// a list goes on; a search has read as much as it may
    pub truncated: bool,
}

/// A session that is to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Create<'a> {
    /// the same user's second request with the same key finds what the first one made
    pub key: Option<&'a str>,
    /// its name
    pub name: Option<&'a str>,
    /// the model that answers
    pub model_id: Option<&'a str>,
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
    /// Makes a session, or finds the one that a repeated request has made.
    ///
    /// # Errors
    /// `INVALID_FORMAT` for a name or model that is not accepted, `GOING_AWAY`, `DATABASE_ERROR`.
    pub async fn create_session(&self, principal: &Principal, create: Create<'_>) -> Result<Listed, Refusal> {
        let parts = &self.0.parts;
        if parts.lifecycle.drains() {
            return Err(Refusal::new(ErrorCode::GoingAway));
        }
        let name = create.name.map(checked_name).transpose()?;
        let model = create.model_id.map(|id| self.checked_model(id)).transpose()?;
        let user_id = principal.user_id.clone();
        let id = SessionId(create.key.map_or_else(Uuid::now_v7, |key| derived("create", principal, &[key.as_bytes()])));
        let active_max = parts.config.active_per_user;
        let opened = parts.store.open_session(OpenSession { user_id, open: Open::New, id, active_max }).await?;
        for session in &opened.ended {
            self.after_end(session).await;
        }
        let mut session = opened.session;
        // A repeated request finishes what the first one did not, and takes nothing back that came after it.
        let takes = session.state == SessionState::Active;
        if let Some(name) = name.filter(|_| session.name.is_none()) {
            session = self.change(principal, id, Change::Name(name)).await?.session;
        }
        if let Some(model) = model.filter(|_| takes && session.model_id.is_none()) {
            session = self.change(principal, id, Change::Model(model)).await?.session;
        }
        self.listed(principal, session).await
    }

    /// Reads the newest sessions, as old clients ask for them.
    ///
    /// # Errors
    /// `DATABASE_ERROR`.
    pub async fn newest_sessions(&self, principal: &Principal) -> Result<Listing, Refusal> {
        self.list(principal, Order::Created, NEWEST_SESSIONS, None).await
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

    async fn listed(&self, principal: &Principal, session: Session) -> Result<Listed, Refusal> {
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

    async fn log(&self, session_id: SessionId, through: u64) -> Result<Log, Refusal> {
        let mut log = Log { router: self.clone(), session_id, after: 0, through, first: None };
        // Read before the answer begins, so that a store that fails is told as such.
        log.first = Some(log.read().await?);
        Ok(log)
    }

    /// Names a session, chooses its model, or both: nothing changes unless all of it is accepted.
    ///
    /// # Errors
    /// `INVALID_FORMAT`, `NOT_FOUND`, `SESSION_ENDED` for the model, `DATABASE_ERROR`, and to staff
    /// `INSUFFICIENT_PERMISSIONS`.
    pub async fn edit_session(
        &self,
        principal: &Principal,
        id: SessionId,
        name: Option<&str>,
        model_id: Option<&str>,
    ) -> Result<Listed, Refusal> {
        let name = name.map(checked_name).transpose()?.map(Change::Name);
        let model = model_id.map(|id| self.checked_model(id)).transpose()?.map(Change::Model);
        let mut session = self.readable(principal, id).await?;
        // Of the two only the model can be refused, by a session that has ended.
        for change in model.into_iter().chain(name) {
            session = self.change(principal, id, change).await?.session;
        }
        self.listed(principal, session).await
    }

    /// Ends a session and what runs in it; one that has ended stays so.
    ///
    /// # Errors
    /// As [`Self::edit_session`].
    pub async fn end_session(&self, principal: &Principal, id: SessionId) -> Result<Session, Refusal> {
        let changed = self.change(principal, id, Change::End).await?;
        self.end_turns(&changed.open_turns).await;
        Ok(changed.session)
    }

    /// Deletes a session with everything in it. What runs in it is stopped first, so that whoever asked is told.
    ///
    /// # Errors
    /// As [`Self::edit_session`].
    pub async fn delete_session(&self, principal: &Principal, id: SessionId) -> Result<(), Refusal> {
        let changed = self.change(principal, id, Change::End).await?;
        let running: Vec<_> = changed.open_turns.iter().filter_map(|turn| self.0.live.get(turn.id)).collect();
        self.end_turns(&changed.open_turns).await;
        for live in running {
            if tokio::time::timeout(TURN_END_DEADLINE, live.ended()).await.is_err() {
                warn!(session_id = %id, "session is deleted before the end of its reply is stored");
            }
        }
        let deleted = self.0.parts.store.delete_session(id, principal.user_id.clone()).await?;
        info!(session_id = %id, "session deleted");
        self.tell(&deleted.session, SessionUpdate { deleted: true, ..SessionUpdate::of(id) }).await;
        Ok(())
    }

    /// Ends what runs in a session that has ended to make room for another one, and tells its watchers.
    pub(super) async fn after_end(&self, session: &Session) {
        self.tell(session, SessionUpdate { state: Some(session.state), ..SessionUpdate::of(session.id) }).await;
        self.end_open_turns(session.id).await;
    }

    /// Ends what runs or waits in a session that has ended.
    pub(super) async fn end_open_turns(&self, id: SessionId) {
        match self.0.parts.store.open_turns(id).await {
            Ok(turns) => self.end_turns(&turns).await,
            // The sweep finds them again.
            Err(err) => error!(error = &err as &dyn std::error::Error, session_id = %id, "turns do not end"),
        }
    }

    /// Ends turns as `stopped`; each keeps its text. One whose end cannot be stored is found by the sweep.
    async fn end_turns(&self, turns: &[Turn]) {
        for turn in turns {
            match self.stop_turn(turn.id).await {
                Err(refusal) if refusal.code != ErrorCode::TurnNotFound => {
                    warn!(turn_id = %turn.id, code = refusal.code.name(), "turn of an ended session does not end");
                }
                _ => {}
            }
        }
    }

    /// Changes a session of the caller's and tells what changed.
    pub(super) async fn change(
        &self,
        principal: &Principal,
        id: SessionId,
        change: Change,
    ) -> Result<Changed, Refusal> {
        let update = self.update(id, &change);
        let changed = match self.0.parts.store.change_session(id, Some(principal.user_id.clone()), change).await {
            Err(store::Error::NotFound) => return Err(self.not_the_owner(principal, id).await),
            changed => changed?,
        };
        if changed.changed {
            self.tell(&changed.session, update).await;
        }
        Ok(changed)
    }

    /// What a change is told as.
    fn update(&self, id: SessionId, change: &Change) -> SessionUpdate {
        let update = SessionUpdate::of(id);
        match change {
            Change::Name(name) | Change::BetterName(name) => SessionUpdate { name: Some(name.clone()), ..update },
            Change::Model(model) => SessionUpdate { model_id: Some(model.clone()), ..update },
            Change::End | Change::EndIdle { .. } => SessionUpdate { state: Some(SessionState::Ended), ..update },
            Change::Help(requested) => SessionUpdate { help_requested: Some(*requested), ..update },
        }
    }

    /// Staff see the session, and only its owner changes it.
    async fn not_the_owner(&self, principal: &Principal, id: SessionId) -> Refusal {
        if principal.role == Role::User {
            return Refusal::new(ErrorCode::NotFound);
        }
        match self.readable(principal, id).await {
            Ok(_theirs) => Refusal::new(ErrorCode::InsufficientPermissions),
            Err(refusal) => refusal,
        }
    }

    /// Makes a link to a session as it is now; a repeated request finds the first one's.
    ///
    /// # Errors
    /// As [`Self::edit_session`].
    pub async fn share(
        &self,
        principal: &Principal,
        session_id: SessionId,
        key: Option<&str>,
        lifetime: Option<Duration>,
    ) -> Result<Share, Refusal> {
        let id = key
            .map_or_else(Uuid::new_v4, |key| derived("share", principal, &[session_id.0.as_bytes(), key.as_bytes()]));
        let lifetime = lifetime.map(|lifetime| i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX));
        let expires_at = lifetime.map(|ms| Timestamp(now().0.saturating_add(ms)));
        let owner = principal.user_id.clone();
        let new = NewShare { id, session_id, owner, expires_at, shares_max: SHARES_MAX };
        match self.0.parts.store.share(new).await {
            Err(store::Error::NotFound) => Err(self.not_the_owner(principal, session_id).await),
            share => Ok(share?),
        }
    }

    /// Revokes every link to a session.
    ///
    /// # Errors
    /// As [`Self::edit_session`].
    pub async fn unshare(&self, principal: &Principal, id: SessionId) -> Result<(), Refusal> {
        match self.0.parts.store.unshare(id, principal.user_id.clone()).await {
            Err(store::Error::NotFound) => Err(self.not_the_owner(principal, id).await),
            revoked => Ok(revoked.map(drop)?),
        }
    }

    /// Reads what a link shows.
    ///
    /// # Errors
    /// `NOT_FOUND` when it was revoked or has ended, `DATABASE_ERROR`.
    pub async fn shared(&self, id: Uuid) -> Result<(Share, Log), Refusal> {
        let share = self.0.parts.store.shared(id).await?.ok_or_else(|| Refusal::new(ErrorCode::NotFound))?;
        let log = self.log(share.session_id, share.last_seq).await?;
        Ok((share, log))
    }

    /// Ends sessions that nobody has written in for `sessions.idle_end`, until the server drains.
    pub async fn sweep_idle(&self) {
        let every = self.0.parts.config.idle_end.min(IDLE_SWEEP);
        loop {
            tokio::select! {
                biased;
                () = self.0.parts.lifecycle.draining() => return,
                () = tokio::time::sleep(every) => {}
            }
            if let Some(Err(err)) = self.contained(self.end_idle()).await {
                error!(error = &err as &dyn std::error::Error, "idle sessions do not end");
            }
        }
    }

    async fn end_idle(&self) -> store::Result<()> {
        let idle_end = i64::try_from(self.0.parts.config.idle_end.as_millis()).unwrap_or(i64::MAX);
        let since = Timestamp(now().0.saturating_sub(idle_end));
        let full = usize::try_from(IDLE_MAX).unwrap_or(usize::MAX);
        for _round in 0..IDLE_ROUNDS {
            let idle = self.0.parts.store.idle_sessions(since, IDLE_MAX).await?;
            let found = idle.len();
            for id in idle {
                let change = Change::EndIdle { since };
                let update = self.update(id, &change);
                match self.0.parts.store.change_session(id, None, change).await {
                    Ok(changed) if changed.changed => {
                        info!(session_id = %id, "idle session ended");
                        self.tell(&changed.session, update).await;
                    }
                    Ok(_) | Err(store::Error::NotFound) => {}
                    Err(err) => return Err(err),
                }
            }
            if found < full {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn checked_model(&self, id: &str) -> Result<String, Refusal> {
        if self.models().get(id).is_some() {
            return Ok(id.to_owned());
        }
        let have: Vec<String> = self.models().iter().map(|model| format!("`{}`", model.id)).collect();
        let shown: String = id.chars().take(NAME_CHARS_MAX).collect();
        Err(invalid(format!("model `{shown}` is not configured (have {})", have.join(", "))))
    }
}

fn invalid(message: String) -> Refusal {
    Refusal { message: message.into(), ..Refusal::new(ErrorCode::InvalidFormat) }
}

fn checked_name(name: &str) -> Result<String, Refusal> {
    let name = name.trim();
    let chars = name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&chars) {
        return Err(invalid(format!("`name` has {chars} characters, 1 to {NAME_CHARS_MAX} are accepted")));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid("`name` holds a control character, which is not accepted".to_owned()));
    }
    Ok(name.to_owned())
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

/// The id of what a request makes, the same for a repeated one.
fn derived(what: &str, principal: &Principal, key: &[&[u8]]) -> Uuid {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [what.as_bytes(), principal.user_id.as_str().as_bytes()].iter().chain(key) {
        // With its length, so that no two lists of parts are the same bytes.
        digest.update(&part.len().to_be_bytes());
        digest.update(part);
    }
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest.finish().as_ref()).for_each(|(to, from)| *to = *from);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_the_place_it_was_made_from() {
        let at = Place { at: Timestamp(1_700_000_000_123), id: SessionId::new() };
        assert_eq!(place(&cursor(at)).unwrap(), at);
        for text in ["", "x", "====", &cursor(at)[1..], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            let refusal = place(text).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::InvalidFormat, "{text}");
            assert!(refusal.message.contains("is not the `next_cursor` of a list"), "{}", refusal.message);
        }
    }

    #[test]
    fn names_are_trimmed_and_their_limits_told() {
        assert_eq!(checked_name("  Parcel 7 \n").unwrap(), "Parcel 7");
        assert_eq!(checked_name(&"é".repeat(NAME_CHARS_MAX)).unwrap().chars().count(), NAME_CHARS_MAX);
        for (name, told) in [(" \n", "0 characters"), ("a\nb", "control character"), (&"é".repeat(101), "101")] {
            let message = checked_name(name).unwrap_err().message;
            assert!(message.contains(told), "{message}");
        }
    }
}
