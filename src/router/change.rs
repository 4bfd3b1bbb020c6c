//! What the owner of a session changes of it beside its log: the model, the wish for a person, a rating. And typing.

use std::sync::Arc;

use super::{Refusal, Router};
use crate::{
    auth::Principal,
    bus::Topic,
    chat::{ConnectionId, ErrorCode, Event, Sender, Session, SessionId, SessionUpdate, ask::Feedback},
    store::Change,
};

impl Router {
    /// Chooses the model that answers in a session from the next turn on.
    ///
    /// # Errors
    /// `INVALID_FORMAT` for a model that is not configured, `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`.
    pub async fn select_model(
        &self,
        principal: &Principal,
        id: SessionId,
        model_id: String,
    ) -> Result<Session, Refusal> {
        if self.models().get(&model_id).is_none() {
            let known = self.models().iter().map(|model| format!("`{}`", model.id)).collect::<Vec<_>>().join(", ");
            let message = format!("model `{model_id}` is not configured (have {known})").into();
            return Err(Refusal { message, ..Refusal::new(ErrorCode::InvalidFormat) });
        }
        let update = SessionUpdate { model_id: Some(model_id.clone()), ..SessionUpdate::of(id) };
        self.change(principal, Change::Model(model_id), update).await
    }

    /// Asks for a person in a session, or does no longer.
    ///
    /// # Errors
    /// `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`.
    pub async fn request_help(&self, principal: &Principal, id: SessionId, wanted: bool) -> Result<Session, Refusal> {
        let update = SessionUpdate { help_requested: Some(wanted), ..SessionUpdate::of(id) };
        self.change(principal, Change::Help(wanted), update).await
    }

    /// Changes a session of the caller and, if it is another one then, tells who watches it.
    pub(super) async fn change(
        &self,
        principal: &Principal,
        change: Change,
        update: SessionUpdate,
    ) -> Result<Session, Refusal> {
        let owner = Some(principal.user_id.clone());
        let changed = self.0.parts.store.change_session(update.session_id, owner, change).await?;
        if changed.changed {
            self.tell(&changed.session, update).await;
        }
        Ok(changed.session)
    }

    /// Notes what the owner of a session thinks of a reply.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such settled reply, `DATABASE_ERROR`.
    pub async fn rate(&self, principal: &Principal, id: SessionId, feedback: Feedback) -> Result<(), Refusal> {
        let Feedback { seq, rating, content, .. } = feedback;
        Ok(self.0.parts.store.rate(id, seq, principal.user_id.clone(), rating, content).await?)
    }

    /// Tells the other participants of a session that somebody types, or has stopped; `own`: its owner. Nothing is
    /// read or stored: that the caller may see the session is what its watch proves.
    pub async fn typing(&self, origin: ConnectionId, id: SessionId, own: bool, active: bool) {
        let sender = if own { Sender::User } else { Sender::Admin };
        let event = Event::Typing { origin, sender, active };
        self.0.parts.bus.publish(&Topic::Session(id), Arc::new(event)).await;
    }
}
