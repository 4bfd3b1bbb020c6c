//! One session, and the list of sessions, as whoever watches them holds them.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{
    Client, Error, Event, Message, OUTBOX_MESSAGES_MAX, Page,
    engine::{Command, Key},
    outbox::{Pending, What},
};
use crate::{
    chat::{Rating, RequestId, SessionId, SessionUpdate, TurnId, ask::Feedback},
    protocol::{ClientFrame, ConnectionStatus},
};

/// A watched session. Dropping it ends the watch, once its messages are answered.
#[derive(Debug)]
pub struct Session {
    client: Client,
    key: Key,
    id: SessionId,
    events: mpsc::Receiver<Event>,
}

impl Session {
    pub(super) fn new(
        client: Client,
        key: Key,
        status: &ConnectionStatus,
        events: mpsc::Receiver<Event>,
    ) -> Option<Self> {
        Some(Self { client, key, id: status.session_id?, events })
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// What happens next; `None` once the watch is over. 1,024 events wait to be read; beyond it they are lost, and
    /// [`Event::Missed`] says so in their place. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Says something: 1 to 10,000 characters, exactly as they are to be stored. Returns at once; without a connection
    /// the message waits for one.
    ///
    /// # Errors
    /// [`Error::Full`] when 100 messages wait already.
    pub fn send(&self, content: impl Into<String>) -> Result<Message, Error> {
        self.put(What::Say(content.into()))
    }

    /// Asks for another reply to the last message. The old one is kept in the log; both have the same `reply_to`.
    ///
    /// # Errors
    /// [`Error::Full`] when 100 messages wait already. A turn that is not the last one is refused with
    /// `TURN_NOT_FOUND`, by the message.
    pub fn regenerate(&self, turn_id: TurnId) -> Result<Message, Error> {
        self.put(What::Regenerate(turn_id))
    }

    fn put(&self, what: What) -> Result<Message, Error> {
        let full = || Error::Full(OUTBOX_MESSAGES_MAX);
        let place = Arc::clone(&self.client.0.places).try_acquire_owned().map_err(|_full| full())?;
        let id = RequestId::now_v7();
        let (message, teller) = Message::new(id);
        let pending = Pending { id, key: self.key, what, teller, sent: false, _place: place };
        self.client.0.commands.try_send(Command::Send(pending)).map_err(|_full| full())?;
        Ok(message)
    }

    /// Ends a running turn; the text so far is kept, and its reply has the state `stopped`.
    ///
    /// # Errors
    /// [`Error::Answered`] with `TURN_NOT_FOUND` when it has ended already; [`Error::Timeout`] after 15 seconds.
    pub fn stop(&self, turn_id: TurnId) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.ask(ClientFrame::Stop { turn_id })
    }

    /// Chooses the model that answers from now on.
    ///
    /// # Errors
    /// [`Error::Answered`] when there is no such model; [`Error::Timeout`] after 15 seconds.
    pub fn select_model(&self, model_id: String) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.ask(ClientFrame::ModelSelect { session_id: Some(Ok(self.id)), model_id })
    }

    /// Says what the reply at `seq` was worth.
    ///
    /// # Errors
    /// [`Error::Answered`] when there is no such reply; [`Error::Timeout`] after 15 seconds.
    pub fn rate(
        &self,
        seq: u64,
        rating: Rating,
        comment: Option<String>,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let feedback = Feedback { session_id: Some(Ok(self.id)), seq, rating, content: comment };
        self.ask(ClientFrame::Feedback(Box::new(feedback)))
    }

    /// Asks for a person, or does so no longer.
    ///
    /// # Errors
    /// [`Error::Answered`] when it is refused; [`Error::Timeout`] after 15 seconds.
    pub fn ask_for_help(&self, wanted: bool) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.ask(ClientFrame::Help { session_id: Some(Ok(self.id)), wanted })
    }

    /// Tells the other participants that somebody types, or has stopped. Lost without a connection.
    pub async fn typing(&self, active: bool) {
        let frame = ClientFrame::Typing { session_id: Some(Ok(self.id)), active };
        // A client that is closed tells nobody anything.
        drop(self.client.0.commands.send(Command::Tell { key: self.key, frame }).await);
    }

    /// Reads up to `limit` (1 to 200) entries before `before_seq`, in the log's order.
    ///
    /// # Errors
    /// Those of [`Client::history`].
    pub fn older(&self, before_seq: u64, limit: u32) -> impl Future<Output = Result<Page, Error>> + Send + use<> {
        let (client, id) = (self.client.clone(), self.id);
        async move { client.history(id, before_seq, limit).await }
    }

    /// The future holds the client, and not this.
    fn ask(&self, frame: ClientFrame) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let (client, command) = (self.client.clone(), Command::Ask { key: self.key, frame, answer });
        async move {
            let gone = Error::Protocol("the client is closed");
            client.0.commands.send(command).await.map_err(|_gone| gone.clone())?;
            answered.await.map_err(|_gone| gone)?.map(drop)
        }
    }
}

/// The watched list of the caller's sessions. Dropping it ends the watch.
#[derive(Debug)]
pub struct SessionList {
    /// keeps the connection
    _client: Client,
    events: mpsc::Receiver<Event>,
}

impl SessionList {
    pub(super) const fn new(client: Client, events: mpsc::Receiver<Event>) -> Self {
        Self { _client: client, events }
    }

    /// What changed next of a session, on any device; `None` once the watch is over. What changes while there is no
    /// connection is not told: [`Client::sessions`] reads the list. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<SessionUpdate>> {
        loop {
            if let Event::Update(update) = self.events.recv().await? {
                return Some(update);
            }
        }
    }
}
