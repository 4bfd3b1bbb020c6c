//! The client: conversations with a server, over WebTransport or a WebSocket.
//!
//! [`Client`] connects, reconnects and resumes by itself: WebTransport first, a WebSocket 1.5 seconds later beside it,
//! and whichever attaches first is used and remembered. A message is sent, under one id, until it is stored. The text of
//! a reply goes on where it was, byte for byte, over whichever transport, and its length and SHA-256 are checked.
//!
//! ```
//! use chatbox::client::{Client, Event, Open, Options, Tokens, Transport};
//! # use chatbox::{auth::{self, Role, issuer::Issuer}, chat::UserId, config::{Address, Config}, server::Server};
//! # async fn run() -> anyhow::Result<()> {
//! # let dir = tempfile::tempdir()?;
//! # let mut config = Config::default();
//! # (config.listen.http, config.listen.quic) = (Address::Localhost(0), Address::Localhost(0));
//! # config.listen.ops = Address::Localhost(0);
//! # (config.data_dir, config.tls.dir) = (dir.path().join("data"), dir.path().join("certs"));
//! # config.store.url = format!("sqlite:{}", dir.path().join("data/chatbox.db").display());
//! # let server = Server::bind(config).await?;
//! # let base = server.addresses().http.join("/chatbox")?;
//! # let user = UserId::parse("ann").unwrap();
//! # let issuer = Issuer::new(&auth::Config::default(), &server.secrets().jwt);
//! # let token = issuer.issue(&user, Role::User, None, std::time::Duration::from_secs(60))?;
//! # let lifecycle = server.lifecycle().clone();
//! # lifecycle.spawn(async { server.run().await.unwrap() });
//! for transport in [Transport::WebTransport, Transport::WebSocket] {
//!     let mut options = Options::new(base.clone(), Tokens::fixed(token.as_str()));
//!     options.transport = Some(transport); // without it, whichever works
//!     let client = Client::new(options);
//!     let mut session = client.open(Open::default()).await?;
//!     let mut message = session.send("What is chatbox?")?;
//!     let mut shown = String::new();
//!     while let Some(piece) = message.piece().await? {
//!         shown.push_str(&piece);
//!     }
//!     let reply = message.reply().await?.expect("a model answers");
//!     assert!(reply.verified && reply.text == shown);
//!     let Some(Event::Session(status)) = session.next().await else { panic!("the session comes first") };
//!     assert_eq!(status.transport, transport.name());
//!     client.close().await;
//! }
//! # lifecycle.stop();
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap();
//! ```
//!
//! Below it, and of use alone for load and measurements: [`Site`] is where a server is, [`Dialer`] opens a [`Link`] to
//! it, and a link carries [`Exchange`]s: a request and its answers. A link knows frames as bytes, and has no policy:
//! nothing is repeated, resumed or remembered there.

mod api;
mod conversation;
mod dial;
mod engine;
mod error;
mod event;
mod http;
mod known;
mod lines;
mod link;
mod message;
mod outbox;
mod position;
mod race;
mod session;
mod site;
mod status;
mod token;
mod trust;
mod turns;
mod websocket;
mod webtransport;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

pub use self::{
    api::{Export, Meta, Page, SessionPage},
    dial::Dialer,
    error::{Closed, Error},
    event::{Event, Reply},
    link::{Exchange, Link, Requests, Stats},
    message::{Message, Stored},
    session::{Session, SessionList},
    site::Site,
    status::{State, Status},
    token::Tokens,
};
use self::{
    engine::{Begun, Command, Engine, Parts},
    http::Http,
    known::Known,
};
pub use crate::protocol::Transport;

use crate::chat::{SessionId, ask::Scope};

/// Messages that wait to be stored, of all sessions of a client.
pub const OUTBOX_MESSAGES_MAX: usize = 100;

/// Events of a watch that are not read yet; beyond it they are lost to the reader, who is told.
const EVENTS: usize = 1024;

/// Commands that wait for the client's task.
const COMMANDS: usize = 256;

/// From the last answer of the server to the decision that the path is dead, while something is unanswered.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How a client finds its server, and who it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// where the server's routes begin, such as `https://chat.example/chatbox`
    pub base: Url,
    /// who calls
    pub tokens: Tokens,
    /// the one transport that is used; `None`: whichever works
    pub transport: Option<Transport>,
    /// SHA-256 of the server's certificate, where no authority vouches for it; discovery over plain HTTP names it too
    pub certificate_sha256: Option<[u8; 32]>,
    /// from the last answer to the decision that the path is dead, while something is unanswered: the client then moves
    /// to the other transport
    pub heartbeat: Duration,
}

impl Options {
    /// The usual options: any transport, certificates as the operating system trusts them, a heartbeat of 5 seconds.
    #[must_use]
    pub const fn new(base: Url, tokens: Tokens) -> Self {
        Self { base, tokens, transport: None, certificate_sha256: None, heartbeat: HEARTBEAT }
    }
}

/// Which session is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Open {
    /// this one; `None`: the active one, else a new one
    pub session_id: Option<SessionId>,
    /// another one, begun for this
    pub new: bool,
    /// makes the named one active again
    pub reopen: bool,
    /// how many of the last entries come at first; `None`: all, at most 1,000
    pub history: Option<u32>,
}

/// A connection to a server that is kept. Cheap to clone.
///
/// It connects with the first watch, and ends when it is closed, or when it and all of its sessions are dropped.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    /// owns the client's one task
    tasks: TaskTracker,
    http: Http,
    known: Known,
}

impl Client {
    /// Makes a client; it connects when something is watched. To be called in a tokio runtime.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (teller, status) = watch::channel(Status::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (http, known) = (Http::default(), Known::default());
        let parts = Parts {
            options: options.clone(),
            commands: inbox,
            status: teller,
            stop: stop.clone(),
            http: http.clone(),
            known: known.clone(),
        };
        tasks.spawn(Engine::new(parts).run());
        let places = Arc::new(Semaphore::new(OUTBOX_MESSAGES_MAX));
        Self(Arc::new(Inner { options, commands, status, places, stop, tasks, http, known }))
    }

    /// What is to be shown of the connection, now and whenever it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.status.clone()
    }

    /// Watches a session. One that this client watches already is watched anew: the earlier watch is over, and what was
    /// said there goes on. Waits until the server has said which; without a connection, as long as it takes to get one.
    ///
    /// # Errors
    /// [`Error::Answered`] when it is refused, for example with `NOT_FOUND`; [`Error::Full`] beyond 64 watches; when the
    /// client is closed or there is no point in trying on, why.
    pub async fn open(&self, open: Open) -> Result<Session, Error> {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (key, status) = self.watch(Scope::Session, open, events).await?;
        Session::new(self.clone(), key, &status, inbox).ok_or(Error::Protocol("a session has no id"))
    }

    /// Watches the list of the caller's sessions; an earlier watch of it is over.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub async fn watch_user(&self) -> Result<SessionList, Error> {
        let (events, inbox) = mpsc::channel(EVENTS);
        self.watch(Scope::User, Open::default(), events).await?;
        Ok(SessionList::new(self.clone(), inbox))
    }

    /// Closes for good, and returns when the server has been told. Messages that are not stored fail.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn watch(&self, scope: Scope, open: Open, events: mpsc::Sender<Event>) -> Result<Begun, Error> {
        let (answer, begun) = oneshot::channel();
        let gone = || Error::Closed(Closed { code: None, reason: "the client is closed".to_owned() });
        let command = Command::Watch { scope, open, events, answer };
        self.0.commands.send(command).await.map_err(|_gone| gone())?;
        begun.await.map_err(|_gone| gone())?
    }
}
