//! Watches of a connection: where they begin, what the client is told first, how they make room and end.

use std::sync::{Arc, atomic::Ordering};

use tokio_util::sync::CancellationToken;

use super::{Connection, Outcome, Target, Watching, answers};
use crate::{
    auth::{Principal, Role},
    chat::{
        ErrorCode, RequestId, Session, SessionId,
        ask::{Attach, Named, Scope},
    },
    protocol::{Accepted, CONTENT_CHARS_MAX, ConnectionStatus, Encoded, Limits, Model, ServerFrame},
    router::{Refusal, Start, WatchFrom},
};

impl Connection {
    pub(super) async fn attach(
        &self,
        principal: &Arc<Principal>,
        id: Option<RequestId>,
        attach: Attach,
    ) -> Result<Outcome, Refusal> {
        match attach.scope {
            Scope::Session => {
                let session = self.0.gate.router.resolve(principal, id, &attach).await?;
                self.watch_session(principal, id, session, attach).await
            }
            Scope::User => self.watch_list(principal, id).await,
            Scope::Desk => {
                let message = "only the scopes `session` and `user` are served by this version".into();
                Err(Refusal { message, ..Refusal::new(ErrorCode::InvalidFormat) })
            }
        }
    }

    /// Watches a session.
    pub(super) async fn watch_session(
        &self,
        principal: &Arc<Principal>,
        id: Option<RequestId>,
        session: Session,
        attach: Attach,
    ) -> Result<Outcome, Refusal> {
        if attach.datagrams {
            self.0.copies.store(true, Ordering::Relaxed);
        }
        let own = session.user_id == principal.user_id;
        let ended = self.begin_watch(Target::Session(session.id, own), self.streams(principal))?;
        let from = WatchFrom {
            origin: self.0.id,
            asked: Arc::clone(&self.0.asked),
            after_seq: attach.after_seq,
            last: attach.last,
            position: attach.position,
        };
        let start = self.0.gate.router.watch(session, from).await.inspect_err(|_refusal| ended.cancel())?;
        let Start { session, recovered, watch } = start;
        let mut status = self.session_status(principal, id, &session);
        (status.last_seq, status.recovered) = (Some(session.last_seq), Some(recovered));
        let first = Encoded::new(&ServerFrame::ConnectionStatus(Box::new(status)));
        let answers = answers::watch(self.clone(), Arc::clone(principal), first, watch, ended);
        Ok(Outcome::Watch { streams: self.streams(principal), answers })
    }

    async fn watch_list(&self, principal: &Arc<Principal>, id: Option<RequestId>) -> Result<Outcome, Refusal> {
        let ended = self.begin_watch(Target::List, self.streams(principal))?;
        let watch = self.0.gate.router.watch_list(principal.user_id.clone()).await;
        let watch = watch.inspect_err(|_refusal| ended.cancel())?;
        let first = Encoded::new(&ServerFrame::ConnectionStatus(Box::new(self.status(principal, id))));
        let answers = answers::list(self.clone(), first, watch, ended);
        Ok(Outcome::Watch { streams: self.streams(principal), answers })
    }

    /// Makes room for a watch: the newer of one session replaces the older; one exchange must still fit beside.
    fn begin_watch(&self, target: Target, streams: u32) -> Result<CancellationToken, Refusal> {
        let ended = CancellationToken::new();
        let mut state = self.state();
        state.watches.retain(|watch| !watch.ended.is_cancelled());
        // The one that began last is the one that requests without a session mean.
        if let Some(at) = state.watches.iter().position(|watch| watch.target == target) {
            state.watches.remove(at).ended.cancel();
        } else if state.watches.len() + 1 >= usize::try_from(streams).unwrap_or(usize::MAX) {
            let message = format!("{} watches are open, and at most {streams} streams are", state.watches.len()).into();
            return Err(Refusal { message, ..Refusal::new(ErrorCode::TooManyRequests) });
        }
        state.watches.push(Watching { target, ended: ended.clone() });
        Ok(ended)
    }

    /// The session whose watch began last.
    pub(super) fn watched(&self) -> Option<SessionId> {
        self.watched_as(None).map(|(id, _own)| id)
    }

    /// The session of that name, else the one whose watch began last, if it is watched; and whether it is the caller's
    /// own.
    pub(super) fn watched_as(&self, named: Option<&Named>) -> Option<(SessionId, bool)> {
        let state = self.state();
        let mut live = state.watches.iter().rev().filter(|watch| !watch.ended.is_cancelled());
        live.find_map(|watch| match watch.target {
            Target::Session(id, own) if named.is_none_or(|named| *named == Ok(id)) => Some((id, own)),
            _ => None,
        })
    }

    pub(super) fn detach(
        &self,
        id: Option<RequestId>,
        session_id: Option<&Named>,
        scope: Scope,
    ) -> Result<Outcome, Refusal> {
        let meant = |target: Target| match (scope, target) {
            (Scope::Session, Target::Session(id, _)) => session_id.is_none_or(|named| *named == Ok(id)),
            (Scope::User, Target::List) => true,
            _ => false,
        };
        let mut state = self.state();
        let at = state.watches.iter().position(|watch| !watch.ended.is_cancelled() && meant(watch.target));
        let watch = state.watches.remove(at.ok_or_else(|| Refusal::new(ErrorCode::NotFound))?);
        drop(state);
        watch.ended.cancel();
        Ok(self.accepted(id, watch.target.session_id()))
    }

    /// An `accepted` that tells of no entry.
    pub(super) fn accepted(&self, re: Option<RequestId>, session_id: Option<SessionId>) -> Outcome {
        self.answer(&ServerFrame::Accepted(Accepted { re, session_id, seq: None, turn_id: None, duplicate: false }))
    }

    pub(super) fn streams(&self, principal: &Principal) -> u32 {
        let limits = &self.0.gate.limits;
        match principal.role {
            Role::User => limits.streams,
            Role::Staff => limits.staff_streams,
        }
    }

    /// The status of a session's watch.
    pub(super) fn session_status(
        &self,
        principal: &Principal,
        re: Option<RequestId>,
        session: &Session,
    ) -> ConnectionStatus {
        let default = || self.0.gate.router.models().default_id().to_string();
        ConnectionStatus {
            session_id: Some(session.id),
            name: session.name.clone(),
            state: Some(session.state),
            help_requested: Some(session.help_requested),
            model_id: Some(session.model_id.clone().unwrap_or_else(default)),
            assisted_by: session.assist.clone(),
            ..self.status(principal, re)
        }
    }

    pub(super) fn status(&self, principal: &Principal, re: Option<RequestId>) -> ConnectionStatus {
        let models = self.0.gate.router.models().iter();
        ConnectionStatus {
            re,
            session_id: None,
            user_id: principal.user_id.clone(),
            connection_id: self.0.id,
            models: models
                .map(|model| Model { id: model.id.to_string(), name: model.label.to_string(), images: model.images })
                .collect(),
            name: None,
            state: None,
            help_requested: None,
            model_id: None,
            last_seq: None,
            recovered: None,
            assisted_by: None,
            limits: Limits {
                streams: self.streams(principal),
                frame_bytes: self.0.gate.frame_bytes_max(),
                content_chars: CONTENT_CHARS_MAX,
            },
            transport: self.0.transport.name().into(),
            status: "connected".into(),
        }
    }
}
