//! What owners do with whole sessions: make, name, choose a model, end, delete. And the end of those left idle.
//!
//! Every change is told to the watchers of the session and to its owner's lists.

use std::time::Duration;

use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Listed, Refusal, Router};
use crate::{
    auth::{Principal, Role},
    chat::{
        ErrorCode, Session, SessionId, SessionState, SessionUpdate, Timestamp, Turn,
        name::{legible, visible},
    },
    clock::now,
    store::{self, Change, Changed, Open, OpenSession},
};

/// Longest name that an owner gives a session, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// How long a deleted session's running reply may take to store its end.
const TURN_END_DEADLINE: Duration = Duration::from_secs(5);

/// How often sessions are looked for that have been idle for too long, unless `sessions.idle_end` is shorter.
const IDLE_SWEEP: Duration = Duration::from_secs(60);

/// Idle sessions that are ended at a time, and how often in a row.
const IDLE_MAX: u32 = 100;
const IDLE_ROUNDS: u32 = 10;

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
        self.0.histories.forget(id);
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
            match self.stop_turn(turn).await {
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
    pub(super) async fn not_the_owner(&self, principal: &Principal, id: SessionId) -> Refusal {
        if principal.role == Role::User {
            return Refusal::new(ErrorCode::NotFound);
        }
        match self.readable(principal, id).await {
            Ok(_theirs) => Refusal::new(ErrorCode::InsufficientPermissions),
            Err(refusal) => refusal,
        }
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

pub(super) fn invalid(message: String) -> Refusal {
    Refusal { message: message.into(), ..Refusal::new(ErrorCode::InvalidFormat) }
}

fn checked_name(name: &str) -> Result<String, Refusal> {
    if name.chars().any(char::is_control) {
        return Err(invalid("`name` holds a control character, which is not accepted".to_owned()));
    }
    let name = legible(name);
    let name = name.trim();
    let chars = if name.chars().any(visible) { name.chars().count() } else { 0 };
    if !(1..=NAME_CHARS_MAX).contains(&chars) {
        return Err(invalid(format!("`name` has {chars} characters, 1 to {NAME_CHARS_MAX} are accepted")));
    }
    Ok(name.to_owned())
}

/// The id of what a request makes, the same for a repeated one.
pub(super) fn derived(what: &str, principal: &Principal, key: &[&[u8]]) -> Uuid {
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
    fn names_are_trimmed_and_their_limits_told() {
        assert_eq!(checked_name("  Parcel 7 ").unwrap(), "Parcel 7");
        assert_eq!(checked_name(&"é".repeat(NAME_CHARS_MAX)).unwrap().chars().count(), NAME_CHARS_MAX);
        assert_eq!(checked_name("\u{202e}Parcel\u{200b} 👩‍👩‍👧\u{2069} \u{feff}").unwrap(), "Parcel 👩‍👩‍👧");
        for blank in ["\u{200b}\u{feff}", "\u{3164}", " \u{2800}\u{fe0f} ", "\u{202e}\u{202c}"] {
            let message = checked_name(blank).unwrap_err().message;
            assert_eq!(message, "`name` has 0 characters, 1 to 100 are accepted", "{blank:?}");
        }
        for (name, told) in [("  ", "0 characters"), ("a\nb", "control character"), (&"é".repeat(101), "101")] {
            let message = checked_name(name).unwrap_err().message;
            assert!(message.contains(told), "{message}");
        }
    }
}
