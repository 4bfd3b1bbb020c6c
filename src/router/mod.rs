//! The use cases: attach to a session, say something in it, stop a reply. The router owns turns; connections
//! only watch. It knows no transport and no frame's shape.

mod asked;
mod budget;
mod change;
mod compare;
mod cursor;
mod follow;
mod history;
mod lists;
mod live;
mod moderation;
mod naming;
mod reader;
mod reading;
mod recover;
mod remote;
mod rotation;
mod send;
mod sessions;
mod shares;
mod stop;
mod turn;
mod watch;

pub use crate::store::rotation::Progress;
pub use asked::Asked;
pub use budget::{Account, Budget};
pub use cursor::Shown;
pub use follow::Follow;
pub use lists::ListWatch;
pub use reading::{Listed, Listing, Log, LogPage, Side};
pub use send::{Regenerate, Send};
pub use sessions::{Create, NAME_CHARS_MAX};
pub use watch::{From as WatchFrom, Start, Watch};

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Principal, Role},
    bus::{Bus, Published, Topic},
    chat::{
        EntryId, ErrorCode, Event, NodeId, RequestId, Session, SessionId, SessionState, SessionUpdate,
        ask::{Attach, Named},
    },
    lifecycle::Lifecycle,
    limit::Limiter,
    llm::Models,
    metrics::Metrics,
    store::{self, Lease, Open, OpenSession, Store},
};

/// Pause before a store that failed is asked again for what a watcher missed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Sessions of a user, and their turns.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// active sessions of one user at a time
    pub active_per_user: u32,
    /// idle time after which a session ends
    #[serde(with = "crate::config::duration")]
    pub idle_end: Duration,
    /// how often watched sessions are compared with the store, which finds what the bus has lost
    #[serde(with = "crate::config::duration")]
    pub compare_interval: Duration,
    /// how long a turn's lease holds without a sign of life
    #[serde(with = "crate::config::duration")]
    pub turn_lease: Duration,
    /// the model that gave the first complete reply names the session, unless its owner does
    pub model_names: bool,
    /// texts of conversations that are kept in memory between their turns, in bytes
    pub history_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            active_per_user: 1,
            idle_end: Duration::from_secs(24 * 3600),
            compare_interval: Duration::from_secs(2),
            turn_lease: Duration::from_secs(10),
            model_names: true,
            history_bytes: 32 * 1024 * 1024,
        }
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
            store::Error::IdTaken => sessions::invalid(
                "field `id` named another request before; an id that was not used yet is accepted".to_owned(),
            ),
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
    /// how much of that one user gets
    pub budget: Budget,
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
    remotes: remote::Remotes,
    histories: history::Histories,
    rotation: rotation::Rotation,
    runners: TaskTracker,
    cut: CancellationToken,
}

impl Router {
    /// Makes the use cases over their parts. [`Self::recover`] is to be called once before the first request.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let histories = history::Histories::new(parts.config.history_bytes);
        Self(Arc::new(Inner {
            parts,
            node: NodeId::new(),
            live: live::Turns::default(),
            remotes: remote::Remotes::default(),
            histories,
            rotation: rotation::Rotation::default(),
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
        let opened = self.0.parts.store.open_session(OpenSession { user_id, open, id: session_id, active_max }).await?;
        for session in &opened.ended {
            self.after_end(session).await;
        }
        if opened.changed && matches!(open, Open::Reopen(_)) {
            let update = SessionUpdate { state: Some(SessionState::Active), ..SessionUpdate::of(opened.session.id) };
            self.tell(&opened.session, update).await;
        }
        Ok(opened.session)
    }

    async fn readable(&self, principal: &Principal, id: SessionId) -> Result<Session, Refusal> {
        let session = self.0.parts.store.session(id).await?;
        session
            .filter(|session| session.user_id == principal.user_id || principal.role == Role::Staff)
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound))
    }

    /// Tells the watchers of a session, and its owner's lists, what has changed of it.
    pub(super) async fn tell(&self, session: &Session, update: SessionUpdate) {
        let event = Published::new(Event::Session { rev: session.rev, update: Arc::new(update) });
        self.0.parts.bus.publish(&Topic::Session(session.id), Arc::clone(&event)).await;
        self.0.parts.bus.publish(&Topic::User(session.user_id.clone()), event).await;
    }

    /// Has limits hold for all nodes together, until the server stops.
    pub async fn share_limits(&self) {
        let parts = &self.0.parts;
        parts.limiter.share(&*parts.bus, self.0.node, &parts.lifecycle).await;
    }

    /// Contains and counts a panic; `None` then. The panic hook has logged its cause. Holds `work` once, as an `async fn`
    /// does not: futures of turns are large, and moved.
    fn contained<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
        AssertUnwindSafe(work)
            .catch_unwind()
            .map(|done| done.inspect_err(|_panic| self.0.parts.metrics.panics_total.inc()).ok())
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

    /// Closes the store once everything that was asked of it is durable, and waits for what the providers still do.
    pub async fn close(&self) {
        tokio::join!(self.0.parts.store.close(), self.0.parts.models.close(), self.0.parts.bus.close());
    }

    /// Whether what happens here is told to other nodes, and what happens there is told here.
    #[must_use]
    pub fn hears_others(&self) -> bool {
        self.0.parts.bus.connected()
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

/// A turn's text as a client may hold it: where a cut is allowed.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or_default()
}
