//! One message of this client, from the outbox to the end of its reply.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Closed, Error, event::Reply};
use crate::{
    chat::{RequestId, SessionId, TurnId},
    protocol::CloseCode,
};

/// A message is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// the session
    pub session_id: Option<SessionId>,
    /// its place in the log; of a regeneration, the place of the new reply
    pub seq: Option<u64>,
    /// the turn that answers; `None` where no model does
    pub turn_id: Option<TurnId>,
    /// the server had it already, from a try whose answer was lost
    pub duplicate: bool,
}

/// What is known of a message.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) stored: Option<Stored>,
    pub(super) text: String,
    pub(super) end: Option<Result<Option<Arc<Reply>>, Error>>,
}

/// Tells whoever holds the message.
pub(super) type Teller = watch::Sender<Progress>;

/// A message on its way: stored first, then answered. Dropping it changes nothing: it is sent all the same.
#[derive(Debug)]
pub struct Message {
    id: RequestId,
    progress: watch::Receiver<Progress>,
    /// bytes of the text that were given out
    given: usize,
}

impl Message {
    pub(super) fn new(id: RequestId) -> (Self, Teller) {
        let (teller, progress) = watch::channel(Progress::default());
        (Self { id, progress, given: 0 }, teller)
    }

    /// The id that makes it known to the server, however often it is sent.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// Waits until it is stored. Has no deadline: without a connection it waits for one.
    ///
    /// # Errors
    /// [`Error::Answered`] when it is refused, [`Error::Closed`] and others when the client closes before.
    pub async fn stored(&mut self) -> Result<Stored, Error> {
        let progress = self.progress.wait_for(|progress| progress.stored.is_some() || progress.end.is_some()).await;
        let progress = progress.map_err(|_gone| closed())?;
        match (&progress.stored, &progress.end) {
            (Some(stored), _) => Ok(*stored),
            (None, Some(Err(err))) => Err(err.clone()),
            (None, _) => Err(closed()),
        }
    }

    /// The reply's text as it grows; `None` once it is complete. A slow reader gets larger pieces.
    ///
    /// # Errors
    /// Those of [`Self::stored`].
    pub async fn piece(&mut self) -> Result<Option<String>, Error> {
        let given = self.given;
        let more = self.progress.wait_for(|progress| progress.text.len() > given || progress.end.is_some()).await;
        let progress = more.map_err(|_gone| closed())?;
        // Text that had to be read again may be another: then it is `reply` that has it.
        if let Some(piece) = progress.text.get(given..).filter(|piece| !piece.is_empty()) {
            self.given += piece.len();
            return Ok(Some(piece.to_owned()));
        }
        match &progress.end {
            Some(Err(err)) => Err(err.clone()),
            _ => Ok(None),
        }
    }

    /// Waits for the finished reply; `None` where no model answers.
    ///
    /// # Errors
    /// Those of [`Self::stored`].
    pub async fn reply(mut self) -> Result<Option<Arc<Reply>>, Error> {
        let progress = self.progress.wait_for(|progress| progress.end.is_some()).await.map_err(|_gone| closed())?;
        progress.end.clone().unwrap_or_else(|| Err(closed()))
    }
}

fn closed() -> Error {
    Error::Closed(Closed::by(CloseCode::Done))
}
