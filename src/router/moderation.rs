//! Asking the operator's hooks: before a message is stored, and when a reply is whole.

use tracing::warn;

use super::{Refusal, Router};
use crate::{
    chat::{ErrorCode, SessionId, UserId},
    llm::{config::Verdict, moderation::Kind},
    store::StartedTurn,
};

impl Router {
    /// Whether a message may be stored.
    ///
    /// # Errors
    /// `CONTENT_REFUSED`.
    pub(super) async fn message_allowed(
        &self,
        user: &UserId,
        session: SessionId,
        content: &str,
    ) -> Result<(), Refusal> {
        match self.moderated(Kind::Message, user, session, content).await {
            Verdict::Allow => Ok(()),
            Verdict::Refuse => Err(Refusal::new(ErrorCode::ContentRefused)),
        }
    }

    /// Whether a whole reply may stay. At the end of a drain nobody is waited for.
    pub(super) async fn reply_allowed(&self, started: &StartedTurn, content: &str) -> bool {
        let asked = self.moderated(Kind::Reply, &started.user_id, started.turn.session_id, content);
        let verdict = tokio::select! {
            biased;
            () = self.0.cut.cancelled() => self.models().moderator().on_failure(),
            verdict = asked => verdict,
        };
        verdict == Verdict::Allow
    }

    async fn moderated(&self, kind: Kind, user: &UserId, session: SessionId, content: &str) -> Verdict {
        let moderator = self.models().moderator();
        if !moderator.asks(kind) {
            return Verdict::Allow;
        }
        let (verdict, outcome) = match moderator.verdict(kind, user, session, content).await {
            Ok(verdict @ Verdict::Allow) => (verdict, "allowed"),
            Ok(verdict @ Verdict::Refuse) => (verdict, "refused"),
            Err(err) => {
                let verdict = moderator.on_failure();
                warn!(error = &err as &dyn std::error::Error, ?verdict, "moderation failed");
                (verdict, "failed")
            }
        };
        let name = match kind {
            Kind::Message => "message",
            Kind::Reply => "reply",
        };
        self.0.parts.metrics.moderations_total.with_label_values(&[name, outcome]).inc();
        verdict
    }
}
