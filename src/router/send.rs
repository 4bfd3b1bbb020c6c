//! Saying something, and having the last message answered once more.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{Follow, Refusal, Router, known, naming, turn::Taken};
use crate::{
    auth::{Principal, Role},
    bus::{Published, Topic},
    chat::{
        ConnectionId, Entry, EntryId, EntryKind, ErrorCode, Event, RequestId, Sender, SessionId, SessionUpdate, TurnId,
        UserId,
        ask::{Named, UserMessage},
    },
    store::{self, Appended, NewEntry, NewTurn, Regenerated},
};

/// Something to say, and who says it from where.
#[derive(Debug)]
pub struct Send {
    /// the request's id
    pub client_id: Option<RequestId>,
    /// the connection that it came over
    pub origin: ConnectionId,
    /// the session that the connection watches, for a message that names none
    pub watched: Option<SessionId>,
    /// the turn that is to answer, named by the caller so that it can listen first
    pub turn_id: TurnId,
    /// the message
    pub message: UserMessage,
}

/// A reply to be written once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regenerate {
    /// the request's id
    pub client_id: Option<RequestId>,
    /// the last turn of its session, ended
    pub turn_id: TurnId,
    /// the turn that is to answer, named by the caller so that it can listen first
    pub new: TurnId,
}

/// A turn that a message has started, and the message.
type Begun = (Taken, Arc<Entry>);

impl Router {
    /// Stores a message, tells the watchers, and has it answered. When it returns, the message is durable.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`, `QUOTA_EXCEEDED`, `CONTENT_REFUSED`, `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`,
    /// `GOING_AWAY`; `INVALID_FORMAT` when its id named another request; nothing is stored then.
    pub async fn send(&self, principal: &Principal, send: Send) -> Result<Appended, Refusal> {
        self.admit(principal)?;
        let session_id = self.meant(send.message.session_id.as_ref(), send.watched)?;
        if !send.message.files.is_empty() {
            return Err(Refusal::new(ErrorCode::NotFound));
        }
        let message = send.message;
        if let Err(refusal) = self.welcome(principal, session_id, &message.content).await {
            return self.sent_before(principal, send.client_id).await?.ok_or(refusal);
        }
        let named = self.0.histories.named(session_id);
        let entry = NewEntry {
            session_id,
            owner: principal.user_id.clone(),
            id: EntryId::new(),
            client_id: send.client_id,
            user_id: principal.user_id.clone(),
            sender: Sender::User,
            kind: EntryKind::Text,
            session_name: if named { None } else { naming::from_message(&message.content) },
            content: message.content,
            files: message.files,
            metadata: message.metadata,
            turn: Some(NewTurn { id: send.turn_id, lease: self.lease(), queued_max: self.0.parts.queued_turns }),
        };
        let appended = self.spawn_append(entry, send.origin).await.ok().flatten();
        match appended.ok_or_else(|| Refusal::new(ErrorCode::ServiceError))? {
            // Staff may read the session, and only its owner, or who holds it, may write in it.
            Err(store::Error::NotFound) if principal.role == Role::Staff => {
                self.readable(principal, session_id).await?;
                Err(Refusal::new(ErrorCode::InsufficientPermissions))
            }
            appended => Ok(appended?),
        }
    }

    /// Stores a message and has it answered, in a task of the router's: a client that leaves in the middle must not leave
    /// a stored message unanswered. One task does both: by the time its author is told that it is stored, what is told
    /// next is often there too, and goes out with it.
    fn spawn_append(
        &self,
        entry: NewEntry,
        origin: ConnectionId,
    ) -> oneshot::Receiver<Option<store::Result<Appended>>> {
        let (tell, told) = oneshot::channel();
        let router = self.clone();
        let append = async move {
            let appended = router.contained(router.append(entry, origin)).await;
            let (appended, turn) = match appended {
                Some(Ok((appended, turn))) => (Some(Ok(appended)), turn),
                Some(Err(err)) => (Some(Err(err)), None),
                None => (None, None),
            };
            // Its connection may be gone.
            drop(tell.send(appended));
            if let Some((taken, message)) = turn {
                // Boxed: only who runs a turn has room for it.
                Box::pin(router.run_all(taken, Some(message))).await;
            }
        };
        // Boxed: a task's future is moved several times on its way.
        drop(self.0.runners.spawn(Box::pin(append)));
        told
    }

    /// Stores a message and tells the watchers; with it comes the turn that it has started.
    async fn append(&self, entry: NewEntry, origin: ConnectionId) -> store::Result<(Appended, Option<Begun>)> {
        let parts = &self.0.parts;
        // Before the turn exists: from its first moment on, whoever stops it finds it.
        let early = entry.turn.as_ref().map(|turn| self.0.live.early(turn.id));
        let asked = Instant::now();
        let appended = parts.store.append(entry).await?;
        if appended.duplicate {
            parts.metrics.duplicates_total.inc();
            return Ok((appended, None));
        }
        parts.metrics.entries_stored_total.inc();
        let entry = Arc::new(appended.entry.clone());
        self.tell_appended(&appended, &entry, origin).await;
        let turn = appended.started.clone().map(|started| (Taken { started, asked }, Arc::clone(&entry)));
        match (&turn, early) {
            (Some(_turn), Some(early)) => early.runs(),
            (None, Some(early)) => {
                if early.waits()
                    && let Some(turn_id) = entry.turn_id
                {
                    // Somebody who took it for running was told that it ends; a failure is logged.
                    drop(self.stop_idle(turn_id).await);
                }
            }
            (_, None) => {}
        }
        Ok((appended, turn))
    }

    /// Tells the watchers of a session what has been said in it, and its owner's lists.
    async fn tell_appended(&self, appended: &Appended, entry: &Arc<Entry>, origin: ConnectionId) {
        let bus = &self.0.parts.bus;
        let (session_id, rev) = (entry.session_id, appended.rev);
        let event = Event::Appended { rev, origin: Some(origin), entry: Arc::clone(entry) };
        bus.publish(&Topic::Session(session_id), Published::new(event)).await;
        if appended.name.is_some() {
            let named = SessionUpdate { name: appended.name.clone(), ..SessionUpdate::of(session_id) };
            let event = Event::Session { rev, update: Arc::new(named) };
            bus.publish(&Topic::Session(session_id), Published::new(event)).await;
        }
        // One event for the message and the start of its turn, which is stored with it.
        let started = appended.started.as_ref();
        let (seq, rev) = started.map_or((entry.seq, rev), |started| (started.reply_seq, started.rev));
        let update = SessionUpdate {
            name: appended.name.clone(),
            last_activity: Some(entry.created_at),
            message_count: Some(seq),
            ..SessionUpdate::of(session_id)
        };
        self.tell_list(entry.user_id.clone(), rev, update).await;
    }

    /// Tells a user's lists what has changed of a session.
    pub(super) async fn tell_list(&self, user: UserId, rev: u64, update: SessionUpdate) {
        let event = Event::Session { rev, update: Arc::new(update) };
        self.0.parts.bus.publish(&Topic::User(user), Published::new(event)).await;
    }

    /// Has the last message of a session answered once more; the replies that it has stay. What follows is told to
    /// whoever asked, unless the same request was made before.
    ///
    /// # Errors
    /// `TURN_NOT_FOUND` when the turn is not the caller's, not the last one, or has not ended; `INVALID_FORMAT` when its id
    /// named another request; `SESSION_ENDED`, `TOO_MANY_REQUESTS`, `QUOTA_EXCEEDED`, `DATABASE_ERROR`, `GOING_AWAY`.
    pub async fn regenerate(
        &self,
        principal: &Principal,
        ask: Regenerate,
    ) -> Result<(Regenerated, Option<Follow>), Refusal> {
        self.admit(principal)?;
        if let Err(refusal) = self.within_budget(&principal.user_id).await {
            let before = self.made_before(principal, ask.client_id).await?;
            return before.as_ref().and_then(regenerated).map(|regenerated| (regenerated, None)).ok_or(refusal);
        }
        let gone = || Refusal {
            message: "only the last answer can be asked for again, and only once it has ended".into(),
            ..Refusal::new(ErrorCode::TurnNotFound)
        };
        let turn = self.0.parts.store.turn(ask.turn_id).await?.ok_or_else(gone)?;
        let follow = self.follow(turn.session_id, ask.new).await;
        let ask = store::Regenerate {
            turn_id: ask.turn_id,
            owner: principal.user_id.clone(),
            client_id: ask.client_id,
            new: ask.new,
            lease: self.lease(),
        };
        let router = self.clone();
        let regenerated = self.0.runners.spawn(async move { router.contained(router.begin_again(ask)).await });
        let regenerated = regenerated.await.ok().flatten().ok_or_else(|| Refusal::new(ErrorCode::ServiceError))?;
        let regenerated = regenerated.map_err(|err| match err {
            store::Error::NotFound => gone(),
            err => err.into(),
        })?;
        let follow = regenerated.started.as_ref().map(|started| {
            follow.saw(started.rev - 1);
            follow
        });
        Ok((regenerated, follow))
    }

    async fn begin_again(&self, ask: store::Regenerate) -> store::Result<Regenerated> {
        let asked = Instant::now();
        let regenerated = self.0.parts.store.regenerate(ask).await?;
        match regenerated.started.clone() {
            Some(started) => self.spawn_runner(Taken { started, asked }),
            None => self.0.parts.metrics.duplicates_total.inc(),
        }
        Ok(regenerated)
    }

    /// Whether one more request that models answer is welcome now.
    fn admit(&self, principal: &Principal) -> Result<(), Refusal> {
        let parts = &self.0.parts;
        if parts.lifecycle.drains() {
            return Err(Refusal::new(ErrorCode::GoingAway));
        }
        parts.limiter.message(&principal.user_id).map_err(|wait| Refusal {
            retry_after: Some(Duration::from_millis(wait.ms)),
            ..Refusal::new(ErrorCode::TooManyRequests)
        })
    }

    /// Whether a message may be stored, by its author's budget and by the operator's hook.
    async fn welcome(&self, principal: &Principal, session: SessionId, content: &str) -> Result<(), Refusal> {
        self.within_budget(&principal.user_id).await?;
        self.message_allowed(&principal.user_id, session, content).await
    }

    /// What a request that would be refused now has made before, when it was welcome.
    async fn made_before(&self, principal: &Principal, id: Option<RequestId>) -> Result<Option<Entry>, Refusal> {
        let Some(id) = id else { return Ok(None) };
        Ok(self.0.parts.store.entry_of(&principal.user_id, id).await?)
    }

    async fn sent_before(&self, principal: &Principal, id: Option<RequestId>) -> Result<Option<Appended>, Refusal> {
        let message = self.made_before(principal, id).await?.filter(|made| made.reply_to.is_none());
        let Some(entry) = message else { return Ok(None) };
        self.0.parts.metrics.duplicates_total.inc();
        let rev = self.0.parts.store.revs(&[entry.session_id]).await?.pop().map_or(0, |(_id, rev)| rev);
        Ok(Some(Appended { entry, rev, name: None, duplicate: true, started: None }))
    }

    /// The session that a request means: the one that it names, else the one that its connection watches.
    ///
    /// # Errors
    /// `NOT_FOUND` for a name that is none of ours, `MISSING_FIELD` when there is neither.
    pub(crate) fn meant(&self, named: Option<&Named>, watched: Option<SessionId>) -> Result<SessionId, Refusal> {
        match named {
            Some(named) => known(named),
            None => watched.ok_or_else(|| Refusal {
                message: "field `session_id` is missing, and this connection watches no session".into(),
                ..Refusal::new(ErrorCode::MissingField)
            }),
        }
    }
}

/// A reply that an earlier request has begun.
fn regenerated(reply: &Entry) -> Option<Regenerated> {
    reply.reply_to?;
    let (session_id, turn_id, reply_seq) = (reply.session_id, reply.turn_id?, reply.seq);
    Some(Regenerated { session_id, turn_id, reply_seq, started: None })
}
