//! Clients of the predecessor: no `attach`, no `id`, and ids of sessions that they made up.
//!
//! Such a client is told all of a session by its one watch, which moves to whatever session it writes in; a request
//! has no answers of its own beyond `accepted`.

use std::sync::Arc;

use super::{Connection, Outcome, answers};
use crate::{
    auth::Principal,
    chat::{
        RequestId, Session, TurnId,
        ask::{Attach, Named, UserMessage},
    },
    protocol::{Accepted, Encoded, ServerFrame},
    router::{Refusal, Send},
};

impl Connection {
    /// Stores a message where its author means it: in an own session, which is active again with it, else in the one
    /// that is watched. The watch shows the answer.
    pub(super) async fn old_message(
        &self,
        principal: &Arc<Principal>,
        id: Option<RequestId>,
        message: UserMessage,
    ) -> Result<Outcome, Refusal> {
        let session = self.old_session(principal, message.session_id.as_ref()).await?;
        let session_id = session.id;
        let moved = match self.watched() {
            Some(watched) if watched == session_id => None,
            _ => {
                self.state().watches.drain(..).for_each(|watch| watch.ended.cancel());
                Some(self.watch_session(principal, None, session, Attach::default()).await?)
            }
        };
        let message = UserMessage { session_id: Some(Ok(session_id)), ..message };
        let send = Send { client_id: id, origin: self.0.id, watched: None, turn_id: TurnId::new(), message };
        let answer = match self.0.gate.router.send(principal, send).await {
            Ok(appended) => Encoded::new(&ServerFrame::Accepted(Accepted {
                re: id,
                session_id: Some(session_id),
                seq: Some(appended.entry.seq),
                turn_id: appended.entry.turn_id,
                duplicate: appended.duplicate,
            })),
            Err(refusal) => self.0.gate.error(id, &refusal, true),
        };
        Ok(match moved {
            Some(Outcome::Watch { streams, answers }) => {
                Outcome::Watch { streams, answers: answers::after_first(answers, answer) }
            }
            _ => Outcome::Answers(answers::once(answer)),
        })
    }

    /// The session that an old client means: its own one of that name, else the one that it watches, else its active
    /// one. An ended one is active again.
    pub(super) async fn old_session(&self, principal: &Principal, named: Option<&Named>) -> Result<Session, Refusal> {
        let router = &self.0.gate.router;
        let own = named.and_then(|named| named.as_ref().ok().copied());
        for id in own.into_iter().chain(self.watched()) {
            let ask = Attach { session_id: Some(Ok(id)), reopen: true, ..Attach::default() };
            match router.resolve(principal, None, &ask).await {
                Err(refusal) if refusal.code == crate::chat::ErrorCode::NotFound => {}
                found => return found,
            }
        }
        router.resolve(principal, None, &Attach::default()).await
    }

    /// What the predecessor answered to `help_request`.
    pub(super) fn old_help(&self, principal: &Principal, session: &Session) -> Outcome {
        let mut status = self.session_status(principal, None, session);
        status.status = "your request for help was received".into();
        self.answer(&ServerFrame::ConnectionStatus(Box::new(status)))
    }
}
