//! Asks every configured endpoint whether it can be used, without a token: for operators, before anybody waits for it.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use tokio::time::timeout;

use super::{Error, Failure, Models, Usable, moderation};

/// How long one endpoint may take.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Endpoints that are asked at the same time.
const PARALLEL_MAX: usize = 8;

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// a model, by its name in the configuration
    Model(Arc<str>),
    /// what makes text of recordings
    Transcription,
    /// who is asked whether a text is allowed
    Moderation(moderation::Kind),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(id) => write!(f, "model {id}"),
            Self::Transcription => f.write_str("transcription"),
            Self::Moderation(moderation::Kind::Message) => f.write_str("moderation before"),
            Self::Moderation(moderation::Kind::Reply) => f.write_str("moderation after"),
        }
    }
}

/// What one endpoint answered.
#[derive(Debug)]
pub struct Finding {
    /// what was asked
    pub subject: Subject,
    /// whether it can be used
    pub result: Result<Usable, Error>,
}

impl Finding {
    /// What it is: `usable`, or why it is not, with what the system or the other side did.
    #[must_use]
    pub fn said(&self) -> String {
        let Err(err) = &self.result else { return "usable".to_owned() };
        let mut cause = err.source.as_deref().map(|source| source as &dyn std::error::Error);
        while let Some(inner) = cause.and_then(std::error::Error::source) {
            cause = Some(inner);
        }
        cause.map_or_else(|| err.reason.clone(), |cause| format!("{}: {cause}", err.reason))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.said())
    }
}

impl Models {
    /// Asks every endpoint, models in configured order first; each at most for [`DEADLINE`].
    pub async fn probe(&self) -> Vec<Finding> {
        let mut asked: Vec<(Subject, BoxFuture<'_, Result<Usable, Error>>)> = Vec::new();
        for model in self.iter() {
            asked.push((Subject::Model(Arc::clone(&model.id)), model.provider.probe()));
        }
        if let Some(transcriber) = self.transcriber() {
            asked.push((Subject::Transcription, transcriber.probe().boxed()));
        }
        for kind in [moderation::Kind::Message, moderation::Kind::Reply] {
            if let Some(probe) = self.moderator().probe(kind) {
                asked.push((Subject::Moderation(kind), probe.boxed()));
            }
        }
        let findings = asked.into_iter().map(async |(subject, probe)| {
            let late = |_elapsed| {
                let (provider, reason) = (Arc::from(subject.to_string()), "sent no answer in time".to_owned());
                Err(Error { provider, failure: Failure::Late, reason, source: None })
            };
            let result = timeout(DEADLINE, probe).await.unwrap_or_else(late);
            Finding { subject, result }
        });
        stream::iter(findings).buffered(PARALLEL_MAX).collect().await
    }
}
