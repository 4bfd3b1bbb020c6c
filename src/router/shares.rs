//! Links to sessions as they were when they were shared.

use std::time::Duration;

use uuid::Uuid;

use super::{Log, Refusal, Router, sessions::derived};
use crate::{
    auth::Principal,
    chat::{ErrorCode, SessionId, Timestamp},
    clock::now,
    store::{self, NewShare, Share},
};

/// Links of one session; the oldest goes first.
const SHARES_MAX: u32 = 20;

impl Router {
    /// Makes a link to a session as it is now; a repeated request finds the first one's.
    ///
    /// # Errors
    /// As [`Router::edit_session`].
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
    /// As [`Router::edit_session`].
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
}
