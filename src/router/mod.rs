//! The use cases: attach to a session, say something in it, stop a reply. The router owns turns; connections
//! only watch. It knows no transport and no frame's shape.

mod cursor;
mod follow;
mod live;
mod recover;
mod turn;
mod watch;

pub use cursor::Shown;
pub use follow::Follow;
pub use watch::{Asked, From as WatchFrom, Start, Watch};

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Principal, Role},
    bus::Bus,
    chat::{
        ConnectionId, EntryId, EntryKind, ErrorCode, Event, NodeId, RequestId, Sender, Session, SessionId, TurnId,
        ask::{Attach, Named, UserMessage},
    },
    lifecycle::Lifecycle,
    limit::Limiter,
    llm::Models,
    metrics::Metrics,
    store::{self, Appended, Lease, NewEntry, NewTurn, Open, OpenSession, Store},
};

/// Sessions of a user, and their turns.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// active sessions of one user at a time
    pub active_per_user: u32,
    /// idle time after which a session ends
    #[serde(with = "crate::config::duration")]
    pub idle_end: Duration,
    /// how long a turn's lease holds without a sign of life
    #[serde(with = "crate::config::duration")]
    pub turn_lease: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { active_per_user: 1, idle_end: Duration::from_secs(24 * 3600), turn_lease: Duration::from_secs(10) }
    }
}

/// Why a request was not carried out, as its client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// for programs
    pub code: ErrorCode,
    /// for people
    pub message: Cow<'static, str>,
    /// when it may be tried again
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal with the sentence that the catalogue has for its code.
    #[must_use]
    pub const fn new(code: ErrorCode) -> Self {
        Self { code, message: Cow::Borrowed(code.sentence()), retry_after: None }
    }
}

impl From<store::Error> for Refusal {
    fn from(err: store::Error) -> Self {
        match err {
            store::Error::NotFound => Self::new(ErrorCode::NotFound),
            store::Error::Ended => Self::new(ErrorCode::SessionEnded),
            store::Error::QueueFull => Self {
                message: "too many messages wait for an answer in this session; wait for one".into(),
                retry_after: Some(Duration::from_secs(2)),
                ..Self::new(ErrorCode::TooManyRequests)
            },
            err => {
                tracing::error!(error = &err as &dyn std::error::Error, "store call failed");
                Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(ErrorCode::DatabaseError) }
            }
        }
    }
}

/// What the router is made of.
#[derive(Debug)]
pub struct Parts {
    /// where sessions are kept
    pub store: Arc<dyn Store>,
    /// who is told
    pub bus: Arc<dyn Bus>,
    /// who answers
    pub models: Models,
    /// how much anyone may use
    pub limiter: Arc<Limiter>,
    /// when it ends
    pub lifecycle: Lifecycle,
    /// what is counted
    pub metrics: Arc<Metrics>,
    /// sessions of a user
    pub config: Config,
    /// turns that wait behind the running one of their session
    pub queued_turns: u32,
}

/// The use cases. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    parts: Parts,
    node: NodeId,
    live: live::Turns,
    runners: TaskTracker,
    cut: CancellationToken,
}

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

impl Router {
    /// Makes the use cases over their parts. [`Self::recover`] is to be called once before the first request.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            node: NodeId::new(),
            live: live::Turns::default(),
            runners: TaskTracker::new(),
            cut: CancellationToken::new(),
        }))
    }

    /// The configured models.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.0.parts.models
    }

    /// Finds the session that an `attach` means, and makes it where the contract says so.
    ///
    /// # Errors
    /// `NOT_FOUND` for a session that is not the caller's to see, exactly as for one that does not exist.
    pub async fn resolve(
        &self,
        principal: &Principal,
        id: Option<RequestId>,
        ask: &Attach,
    ) -> Result<Session, Refusal> {
        let open = match &ask.session_id {
            Some(named) if ask.reopen => Open::Reopen(known(named)?),
            Some(named) if !ask.new => return self.readable(principal, known(named)?).await,
            _ if ask.new => Open::New,
            _ => Open::Current,
        };
        if self.0.parts.lifecycle.drains() && open != Open::Current {
            return Err(Refusal::new(ErrorCode::GoingAway));
        }
        let user_id = principal.user_id.clone();
        let session_id = match id {
            Some(id) if open == Open::New => derived(principal, id),
            _ => SessionId::new(),
        };
        let active_max = self.0.parts.config.active_per_user;
        Ok(self.0.parts.store.open_session(OpenSession { user_id, open, id: session_id, active_max }).await?)
    }

    async fn readable(&self, principal: &Principal, id: SessionId) -> Result<Session, Refusal> {
        let session = self.0.parts.store.session(id).await?;
        session
            .filter(|session| session.user_id == principal.user_id || principal.role == Role::Staff)
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound))
    }

    /// Stores a message, tells the watchers, and has it answered. When it returns, the message is durable.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`, `NOT_FOUND`, `SESSION_ENDED`, `DATABASE_ERROR`, `GOING_AWAY`; nothing is stored then.
    pub async fn send(&self, principal: &Principal, send: Send) -> Result<Appended, Refusal> {
        let parts = &self.0.parts;
        if parts.lifecycle.drains() {
            return Err(Refusal::new(ErrorCode::GoingAway));
        }
        parts.limiter.message(&principal.user_id).map_err(|wait| Refusal {
            retry_after: Some(Duration::from_millis(wait.ms)),
            ..Refusal::new(ErrorCode::TooManyRequests)
        })?;
        let session_id = match &send.message.session_id {
            Some(named) => known(named)?,
            None => send.watched.ok_or_else(|| Refusal {
                message: "field `session_id` is missing, and this connection watches no session".into(),
                ..Refusal::new(ErrorCode::MissingField)
            })?,
        };
        if !send.message.files.is_empty() {
            return Err(Refusal::new(ErrorCode::NotFound));
        }
        let message = send.message;
        let entry = NewEntry {
            session_id,
            owner: principal.user_id.clone(),
            id: EntryId::new(),
            client_id: send.client_id,
            user_id: principal.user_id.clone(),
            sender: Sender::User,
            kind: EntryKind::Text,
            session_name: Some(name_from(&message.content)),
            content: message.content,
            files: message.files,
            metadata: message.metadata,
            turn: Some(NewTurn { id: send.turn_id, lease: self.lease(), queued_max: parts.queued_turns }),
        };
        let appended = match parts.store.append(entry).await {
            // Staff may read the session, and only its owner, or who holds it, may write in it.
            Err(store::Error::NotFound) if principal.role == Role::Staff => {
                self.readable(principal, session_id).await?;
                return Err(Refusal::new(ErrorCode::InsufficientPermissions));
            }
            appended => appended?,
        };
        if appended.duplicate {
            parts.metrics.duplicates_total.inc();
            return Ok(appended);
        }
        parts.metrics.entries_stored_total.inc();
        let entry = Arc::new(appended.entry.clone());
        let event = Event::Appended { rev: appended.rev, origin: Some(send.origin), entry };
        parts.bus.publish(session_id, Arc::new(event)).await;
        if let Some(started) = appended.started.clone() {
            self.spawn_runner(started);
        }
        Ok(appended)
    }

    /// Ends a turn that is queued or running: the provider's request is cut, the text so far is kept.
    ///
    /// # Errors
    /// `TURN_NOT_FOUND` when it is unknown, ended, or not the caller's.
    pub async fn stop(&self, principal: &Principal, turn_id: TurnId) -> Result<SessionId, Refusal> {
        let gone = || Refusal::new(ErrorCode::TurnNotFound);
        let turn = self.0.parts.store.turn(turn_id).await?.filter(|turn| !turn.state.ended()).ok_or_else(gone)?;
        let session = self.readable(principal, turn.session_id).await.map_err(|refusal| match refusal.code {
            ErrorCode::NotFound => gone(),
            _ => refusal,
        })?;
        if !self.0.live.stop(turn_id) {
            let ended = self.stop_idle(turn_id).await;
            self.0.live.end(turn_id);
            ended?;
        }
        Ok(session.id)
    }

    /// Names this node's lease on a turn that is about to start.
    fn lease(&self) -> Lease {
        Lease {
            node: self.0.node,
            ttl: self.0.parts.config.turn_lease,
            default_model: self.models().default_id().to_string(),
            reply_id: EntryId::new(),
        }
    }

    /// Ends every turn of this node as `interrupted`; each keeps its text.
    pub fn interrupt_all(&self) {
        self.0.cut.cancel();
    }

    /// Waits until no turn runs on this node any more.
    pub async fn turns_ended(&self) {
        self.0.runners.close();
        self.0.runners.wait().await;
    }

    /// Closes the store once everything that was asked of it is durable.
    pub async fn close(&self) {
        self.0.parts.store.close().await;
    }

    /// Answers whether messages can be stored.
    ///
    /// # Errors
    /// What the store says.
    pub async fn ready(&self) -> store::Result<()> {
        self.0.parts.store.ready().await
    }
}

fn known(named: &Named) -> Result<SessionId, Refusal> {
    named.clone().map_err(|_unknown| Refusal::new(ErrorCode::NotFound))
}

/// The session of a repeated `attach` with `new` is the one that its first try made.
fn derived(principal: &Principal, id: RequestId) -> SessionId {
    let mut input = principal.user_id.as_str().as_bytes().to_vec();
    input.extend_from_slice(id.as_bytes());
    let digest = ring::digest::digest(&ring::digest::SHA256, &input);
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    SessionId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// Characters of a session's name that is taken from its first message.
const NAME_CHARS_MAX: usize = 50;

/// Takes a name from a message: its first line, cut between words where that is possible.
fn name_from(content: &str) -> String {
    let line = content.trim().lines().next().unwrap_or_default().trim();
    if line.chars().count() <= NAME_CHARS_MAX {
        return line.to_owned();
    }
    let cut: String = line.chars().take(NAME_CHARS_MAX - 1).collect();
    let kept = cut.rsplit_once(char::is_whitespace).map_or(cut.as_str(), |(words, _)| words).trim_end();
    format!("{kept}…")
}

/// A turn's text as a client may hold it: where a cut is allowed.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or_default()
}
