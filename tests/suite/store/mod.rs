//! What every store must do, and what each of them must do beyond it.
//!
//! The contract knows only `dyn Store` and a [`Shelf`] that opens it again. Each of its behaviours runs over every
//! store.

/// Runs each behaviour over every store.
macro_rules! over_stores {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::store::Shelf::file()).await
            })+
        }
        mod mongo {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(shelf) = crate::store::Shelf::mongo().await {
                    super::$name(shelf).await
                }
            })+
        }
    };
}

mod again; // second answers, and ratings
mod changes; // changes of whole sessions
mod contract; // sessions and entries
mod lists; // lists and search
mod model; // random schedules against a model in memory
mod mongo; // the database that nodes share: several nodes, lost answers, crashes, plans, ciphertexts
mod mongo_failover; // the same when its primary ends or stops
mod shares; // shares
mod sqlite; // the file: locks, modes, versions, what it shows to a reader of the disk
mod turns; // turns
mod usage; // what requests to models took, who wrote what, threads

use std::{path::Path, sync::Arc, time::Duration};

use chatbox::{
    chat::{
        Entry, EntryId, EntryKind, Metadata, NodeId, RequestId, Sender, Session, SessionId, TurnId, TurnState, UserId,
    },
    metrics::Metrics,
    store::{
        self, Appended, EndTurn, EndedTurn, Lease, NewEntry, NewTurn, Open, OpenError, OpenSession, Range, StartedTurn,
        Store, TurnText, seal::Key,
    },
};

use crate::harness::mongo::Mongo;

/// Longer than any test runs.
const LONG: Duration = Duration::from_secs(600);

/// Where a store lies while it is closed.
enum Shelf {
    /// a directory
    File(tempfile::TempDir),
    /// the URL of a database of its own
    Mongo(String),
}

impl Shelf {
    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    /// `None` where no server is installed.
    async fn mongo() -> Option<Self> {
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        // By this name the server tells the connections of one test from others.
        Some(Self::Mongo(format!("{}&appName={name}", Mongo::shared().await?.url(&name))))
    }

    fn config(&self) -> store::Config {
        let url = match self {
            Self::File(dir) => format!("sqlite:{}", dir.path().join("data/chatbox.db").display()),
            Self::Mongo(url) => url.clone(),
        };
        store::Config { url, ..store::Config::default() }
    }

    async fn open(&self) -> Arc<dyn Store> {
        self.try_open(&[]).await.unwrap()
    }

    async fn try_open(&self, keys: &[Key]) -> Result<Arc<dyn Store>, OpenError> {
        let config = store::Config { encryption_keys: keys.to_vec(), ..self.config() };
        store::open(&config, Path::new("data"), Metrics::new()).await
    }
}

/// One user with one session, on one node.
struct Room {
    store: Arc<dyn Store>,
    node: NodeId,
    user: UserId,
    session: SessionId,
    /// keeps the directory of a store that is never opened again
    _shelf: Option<Shelf>,
}

impl Room {
    /// A room in a store of its own.
    async fn fresh(shelf: Shelf) -> Self {
        let room = Self::new(shelf.open().await).await;
        Self { _shelf: Some(shelf), ..room }
    }

    /// A room in a store that others use too.
    async fn new(store: Arc<dyn Store>) -> Self {
        let user = user("ada");
        let session = open(&*store, &user, Open::Current, 1).await.id;
        Self { store, node: NodeId::new(), user, session, _shelf: None }
    }

    /// A message that asks for no answer.
    fn entry(&self, content: &str) -> NewEntry {
        NewEntry {
            session_id: self.session,
            owner: self.user.clone(),
            id: EntryId::new(),
            client_id: Some(RequestId::new_v4()),
            user_id: self.user.clone(),
            sender: Sender::User,
            kind: EntryKind::Text,
            content: content.to_owned(),
            files: Vec::new(),
            metadata: Metadata::new(),
            turn: None,
            session_name: None,
        }
    }

    fn lease(&self, ttl: Duration) -> Lease {
        Lease { node: self.node, ttl, default_model: "small".to_owned(), reply_id: EntryId::new() }
    }

    /// A message that asks for one.
    fn question(&self, content: &str) -> NewEntry {
        let turn = NewTurn { id: TurnId::new(), lease: self.lease(LONG), queued_max: 16 };
        NewEntry { turn: Some(turn), ..self.entry(content) }
    }

    async fn append(&self, entry: NewEntry) -> Appended {
        self.store.append(entry).await.unwrap()
    }

    /// A question whose turn starts at once.
    async fn ask(&self, content: &str) -> StartedTurn {
        self.append(self.question(content)).await.started.expect("no other turn is open")
    }

    /// A question whose turn waits.
    async fn queue(&self, content: &str) -> TurnId {
        let appended = self.append(self.question(content)).await;
        assert_eq!(appended.started, None);
        appended.entry.turn_id.expect("a question has a turn")
    }

    async fn start(&self) -> Option<StartedTurn> {
        self.store.start_turn(self.session, self.lease(LONG)).await.unwrap()
    }

    async fn extend(&self, turn: TurnId, offset: u64, text: &str) -> bool {
        self.store.extend_turn(turn, self.node, piece(offset, text), LONG).await.unwrap()
    }

    async fn end(&self, turn: TurnId, state: TurnState, text: Option<&str>) -> Option<EndedTurn> {
        let end = EndTurn { text: text.map(ToOwned::to_owned), ..ending(turn, state) };
        self.store.end_turn(end).await.unwrap()
    }

    /// Ends a turn with what its log holds; if that is nothing, its message is asked again by a new one.
    async fn give_up(&self, turn: TurnId, again: TurnId) -> Option<EndedTurn> {
        let end = EndTurn { again: Some(again), ..ending(turn, TurnState::Interrupted) };
        self.store.end_turn(end).await.unwrap()
    }

    /// The turns that have not ended, in the order of the queue.
    async fn open_turns(&self) -> Vec<TurnId> {
        let open = self.store.open_turns(self.session).await.unwrap();
        open.iter().map(|turn| turn.id).collect()
    }

    async fn log(&self) -> Vec<Entry> {
        self.store.entries(self.session, Range::After(0, 1000)).await.unwrap()
    }

    async fn row(&self) -> Session {
        self.store.session(self.session).await.unwrap().expect("the session is there")
    }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a short name")
}

async fn open(store: &dyn Store, user: &UserId, open: Open, active_max: u32) -> Session {
    let ask = OpenSession { user_id: user.clone(), open, id: SessionId::new(), active_max };
    store.open_session(ask).await.unwrap().session
}

fn piece(offset: u64, text: &str) -> TurnText {
    TurnText { offset, text: text.to_owned() }
}

fn ending(turn_id: TurnId, state: TurnState) -> EndTurn {
    EndTurn::of(turn_id, state)
}

fn places(log: &[Entry]) -> Vec<u64> {
    log.iter().map(|entry| entry.seq).collect()
}
