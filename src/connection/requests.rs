//! Requests of an authenticated caller, apart from watches.

use std::sync::Arc;

use super::{Connection, Outcome, answers};
use crate::{
    auth::{Denied, Principal},
    chat::{
        ErrorCode, RequestId, SessionId, TurnId,
        ask::{Feedback, Named, UserMessage},
    },
    protocol::{Accepted, ServerFrame},
    router::{Refusal, Regenerate, Send},
};

impl Connection {
    pub(super) async fn user_message(
        &self,
        principal: &Arc<Principal>,
        id: Option<RequestId>,
        message: UserMessage,
    ) -> Result<Outcome, Refusal> {
        let router = &self.0.gate.router;
        let (watched, turn_id) = (self.watched(), TurnId::new());
        let session_id = message.session_id.as_ref().map_or(watched, |named| named.as_ref().ok().copied());
        let follow = match session_id {
            Some(session_id) => Some(router.follow(session_id, turn_id).await),
            None => None,
        };
        self.0.asked.add(turn_id);
        let send = Send { client_id: id, origin: self.0.id, watched, turn_id, message };
        let appended = router.send(principal, send).await.inspect_err(|_refusal| self.0.asked.remove(turn_id))?;
        let accepted = self.encode(ServerFrame::Accepted(Accepted {
            re: id,
            session_id: Some(appended.entry.session_id),
            seq: Some(appended.entry.seq),
            turn_id: appended.entry.turn_id,
            duplicate: appended.duplicate,
        }));
        if appended.duplicate {
            self.0.asked.remove(turn_id);
            return Ok(Outcome::Answers(answers::once(accepted)));
        }
        let follow = follow.inspect(|follow| follow.saw(appended.rev));
        Ok(Outcome::Answers(answers::exchange(self.clone(), Arc::clone(principal), id, accepted, follow)))
    }

    pub(super) async fn regenerate(
        &self,
        principal: &Arc<Principal>,
        id: Option<RequestId>,
        turn_id: TurnId,
    ) -> Result<Outcome, Refusal> {
        let new = TurnId::new();
        self.0.asked.add(new);
        let ask = Regenerate { client_id: id, turn_id, new };
        let regenerated = self.0.gate.router.regenerate(principal, ask).await;
        let (regenerated, follow) = regenerated.inspect_err(|_refusal| self.0.asked.remove(new))?;
        let accepted = self.encode(ServerFrame::Accepted(Accepted {
            re: id,
            session_id: Some(regenerated.session_id),
            seq: Some(regenerated.reply_seq),
            turn_id: Some(regenerated.turn_id),
            duplicate: follow.is_none(),
        }));
        if follow.is_none() {
            self.0.asked.remove(new);
        }
        Ok(Outcome::Answers(answers::exchange(self.clone(), Arc::clone(principal), id, accepted, follow)))
    }

    pub(super) fn renew(&self, principal: &Principal, id: Option<RequestId>, token: &str) -> Outcome {
        let code = match self.0.gate.verifier.verify(token) {
            Ok(renewed) if renewed.user_id == principal.user_id => {
                let renewed = Arc::new(renewed);
                if let Some(caller) = &mut self.state().caller {
                    caller.principal = Arc::clone(&renewed);
                }
                self.0.renewed.notify_one();
                return self.answer(&ServerFrame::ConnectionStatus(Box::new(self.status(&renewed, id))));
            }
            Ok(_other) => ErrorCode::InsufficientPermissions,
            Err(Denied::Expired) => ErrorCode::ExpiredToken,
            Err(Denied::Invalid) => ErrorCode::InvalidToken,
        };
        self.refuse(id, &Refusal::new(code))
    }

    pub(super) async fn stop(
        &self,
        principal: &Principal,
        id: Option<RequestId>,
        turn_id: TurnId,
    ) -> Result<Outcome, Refusal> {
        let session_id = Some(self.0.gate.router.stop(principal, turn_id).await?);
        let accepted = Accepted { re: id, session_id, seq: None, turn_id: Some(turn_id), duplicate: false };
        Ok(self.answer(&ServerFrame::Accepted(accepted)))
    }

    pub(super) async fn model_select(
        &self,
        principal: &Principal,
        id: Option<RequestId>,
        named: Option<&Named>,
        model_id: String,
    ) -> Result<Outcome, Refusal> {
        let session_id = self.meant(principal, named).await?;
        let session = self.0.gate.router.select_model(principal, session_id, &model_id).await?;
        let status = self.session_status(principal, id, &session);
        Ok(self.answer(&ServerFrame::ConnectionStatus(Box::new(status))))
    }

    pub(super) async fn help(
        &self,
        principal: &Principal,
        id: Option<RequestId>,
        named: Option<&Named>,
        wanted: bool,
    ) -> Result<Outcome, Refusal> {
        let session_id = self.meant(principal, named).await?;
        let session = self.0.gate.router.request_help(principal, session_id, wanted).await?;
        Ok(match self.0.old {
            true => self.old_help(principal, &session),
            false => self.accepted(id, Some(session.id)),
        })
    }

    pub(super) async fn feedback(
        &self,
        principal: &Principal,
        id: Option<RequestId>,
        feedback: Feedback,
    ) -> Result<Outcome, Refusal> {
        let session_id = self.meant(principal, feedback.session_id.as_ref()).await?;
        self.0.gate.router.rate(principal, session_id, feedback).await?;
        Ok(self.accepted(id, Some(session_id)))
    }

    /// Passes typing on. Nothing answers it, so nothing is asked of the store: the watch is proof enough.
    pub(super) async fn typing(&self, named: Option<&Named>, active: bool) -> Result<Outcome, Refusal> {
        let watched = self.watched_as(named);
        let (session_id, own) = watched.ok_or_else(|| Refusal::new(ErrorCode::NotFound))?;
        self.0.gate.router.typing(self.0.id, session_id, own, active).await;
        Ok(Outcome::Nothing)
    }

    /// The session that a request means.
    async fn meant(&self, principal: &Principal, named: Option<&Named>) -> Result<SessionId, Refusal> {
        match self.0.old {
            true => self.old_session(principal, named).await.map(|session| session.id),
            false => self.0.gate.router.meant(named, self.watched()),
        }
    }
}
