//! What the owner of a session changes of it beside its log: the model, the wish for a person, a rating. And typing.

use super::{Refusal, Router};
use crate::{
    auth::Principal,
    bus::{Published, Topic},
    chat::{ConnectionId, Event, Sender, Session, SessionId, ask::Feedback},
    store::{Change, Rate},
};

impl Router {
    /// Chooses the model that answers in a session from the next turn on.
    ///
    /// # Errors
    /// `INVALID_FORMAT` for a model that is not configured, `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`.
    pub async fn select_model(&self, principal: &Principal, id: SessionId, model_id: &str) -> Result<Session, Refusal> {
        let model = self.checked_model(model_id)?;
        Ok(self.change(principal, id, Change::Model(model)).await?.session)
    }

    /// Asks for a person in a session, or does no longer.
    ///
    /// # Errors
    /// `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`.
    pub async fn request_help(&self, principal: &Principal, id: SessionId, wanted: bool) -> Result<Session, Refusal> {
        Ok(self.change(principal, id, Change::Help(wanted)).await?.session)
    }

    /// Notes what the owner of a session thinks of a reply.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such settled reply, `DATABASE_ERROR`.
    pub async fn rate(&self, principal: &Principal, id: SessionId, feedback: Feedback) -> Result<(), Refusal> {
        let Feedback { seq, rating, content: why, .. } = feedback;
        let owner = principal.user_id.clone();
        Ok(self.0.parts.store.rate(Rate { session_id: id, seq, owner, rating, why }).await?)
    }

    /// Tells the other participants of a session that somebody types, or has stopped; `own`: its owner. Nothing is
    /// read or stored: that the caller may see the session is what its watch proves.
    pub async fn typing(&self, origin: ConnectionId, id: SessionId, own: bool, active: bool) {
        let sender = if own { Sender::User } else { Sender::Admin };
        let event = Event::Typing { origin, sender, active };
        self.0.parts.bus.publish(&Topic::Session(id), Published::new(event)).await;
    }
}
