//! The shared database: any number of nodes, a replica set or one server, no transactions.
//!
//! The document of a session is the head of its log and the only commit point (`head`): a write reads it, decides
//! about it in memory, and compares and sets its version. What the commit implies, entries above all, lies in the
//! document until it is written beside it (`beside`), by whoever comes first, at once or some commits later. So a crash
//! between the two leaves nothing half done, readers see the whole of each commit, and nothing is done twice.
//!
//! What a call returned is on a majority of the servers and in their journals. Nothing outside this directory names a
//! type of the driver.

mod again;
mod append;
mod beside;
mod changes;
mod clock;
mod commit;
mod erase;
mod group;
mod head;
mod keys;
mod lane;
mod link;
mod lists;
mod log;
mod reads;
mod requests;
mod reseal;
mod rows;
mod schema;
mod sessions;
mod turns;
mod upkeep;
mod usage;
mod values;
mod work;
mod writes;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use lru::LruCache;
use mongodb::{
    bson::{doc, rawdoc},
    error::ErrorKind,
    options::ConnectionString,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use uuid::Uuid;

use self::{
    clock::Clock,
    lane::{Lane, Shared},
    link::{Link, Table},
    turns::Extend,
    work::{Ask, Decided, Draft, Work},
};
use super::{
    Appended, Change, Changed, DaySpent, EndTurn, EndedTurn, Error, Found, Inspected, Lease, ListSessions, Lost,
    NewEntry, NewShare, OpenSession, Opened, Page, Position, Range, Rate, Regenerate, Regenerated, Resealed, Result,
    Revs, SealedWith, Search, Share, Spend, StartedTurn, Store, Thread, TurnText, open::OpenError, seal::Seal,
};
use crate::{
    chat::{Day, Entry, NodeId, RequestId, Session, SessionId, Timestamp, Turn, TurnId, UserId},
    metrics::Metrics,
};

/// Turns whose sessions a node remembers.
const TURNS_KEPT: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// How long servers may take to answer before the store does not open.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// How much a store may hold back before it says that it is overloaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// how long any one call may take
    pub deadline: Duration,
    /// writes that wait in each lane; further calls wait for room
    pub queue_max: usize,
    /// lanes: commands that commit at the same time. The fewer there are, the more writes share one
    pub lanes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), queue_max: 1024, lanes: 2 }
    }
}

type Lanes = Arc<[mpsc::Sender<Box<dyn Work>>]>;

/// The store in a MongoDB database that nodes share. Dropping it lets the writes that are queued be done.
#[derive(Debug)]
pub struct Mongo {
    shared: Arc<Shared>,
    lanes: Mutex<Option<Lanes>>,
    tasks: TaskTracker,
    closed: CancellationToken,
    _closed: DropGuard,
    /// which session a turn belongs to
    turns: Mutex<LruCache<TurnId, SessionId>>,
    /// the keys that there were when the last pass over all rows began
    keys: Mutex<Vec<u32>>,
    deadline: Duration,
}

impl Mongo {
    /// Connects, and makes what is missing of collections and indexes.
    ///
    /// # Errors
    /// The URL is wrong, the database is not to be reached or refuses, it is from a newer version, or it is sealed with
    /// other keys.
    pub async fn open(
        url: &str,
        seal: Seal,
        options: &Options,
        metrics: Arc<Metrics>,
    ) -> std::result::Result<Self, OpenError> {
        let link = Link::new(url).await?;
        let deadline = Instant::now() + OPEN_DEADLINE;
        schema::prepare(&link, deadline).await?;
        keys::compare(&link, &seal, deadline).await?;
        let clock = Clock::new(&link, deadline).await?;
        let shared = Arc::new(Shared { link, seal, clock, metrics });
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        let lanes = (0..options.lanes.max(1)).map(|_nth| {
            let (lane, queue) = mpsc::channel(options.queue_max.max(1));
            tasks.spawn(Lane::run(Arc::clone(&shared), queue));
            lane
        });
        let lanes: Lanes = lanes.collect();
        tasks.spawn(keep_up(Arc::clone(&shared), closed.clone(), options.deadline));
        Ok(Self {
            shared,
            lanes: Mutex::new(Some(lanes)),
            tasks,
            _closed: closed.clone().drop_guard(),
            closed,
            turns: Mutex::new(LruCache::new(TURNS_KEPT)),
            keys: Mutex::default(),
            deadline: options.deadline,
        })
    }

    /// Queues a write and waits until it is durable.
    async fn submit<T, D>(&self, mut ask: Ask<T, D>) -> Result<T>
    where
        T: Send + Sync + 'static,
        D: Fn(Box<Draft>, &Seal) -> Result<Decided<T>> + Send + Sync + 'static,
    {
        let lanes = self.lanes()?;
        // Chance made the last byte of an id.
        let [.., last] = *ask.session.0.as_bytes();
        let lane = usize::from(last) % lanes.len();
        let (deadline, answered) = (ask.deadline, ask.answered());
        let outcome = timeout_at(deadline, async {
            let lane = lanes.get(lane).ok_or_else(closed)?;
            lane.send(Box::new(ask)).await.map_err(|_closed| closed())?;
            answered.await.map_err(|_closed| closed())?
        });
        outcome.await.unwrap_or(Err(Error::Overloaded))
    }

    fn lanes(&self) -> Result<Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    /// Counts a call, and how long it took.
    async fn observe<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let began = Instant::now();
        let outcome = timeout_at(began + self.deadline, call).await.unwrap_or(Err(Error::Overloaded));
        let metrics = &self.shared.metrics;
        metrics.store_duration_seconds.with_label_values(&[operation]).observe(began.elapsed().as_secs_f64());
        // The others are answers, not faults.
        if let Err(Error::Overloaded | Error::Sealed { .. } | Error::Database(_)) = &outcome {
            metrics.store_errors_total.with_label_values(&[operation]).inc();
        }
        outcome
    }

    fn until(&self) -> Instant {
        Instant::now() + self.deadline
    }

    fn remember(&self, turn: TurnId, session: SessionId) {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).put(turn, session);
    }

    fn note_keys(&self, keys: Vec<u32>) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The session of a turn that may not have ended.
    async fn session_of(&self, turn: TurnId, deadline: Instant) -> Result<Option<SessionId>> {
        let known = self.turns.lock().unwrap_or_else(PoisonError::into_inner).get(&turn).copied();
        if known.is_some() {
            return Ok(known);
        }
        let head = reads::head_of_turn(&self.shared, turn, deadline).await?;
        if let Some(head) = &head {
            self.remember(turn, head.id);
        }
        Ok(head.map(|head| head.id))
    }

    async fn probe(&self, deadline: Instant) -> Result<()> {
        self.lanes()?;
        let now = self.shared.clock.now();
        let statement = rawdoc! {
            "q": { "_id": "probe" }, "u": { "$set": { "checked_at": now } }, "upsert": true,
        };
        let link = &self.shared.link;
        link.write(link::update(Table::Meta, [statement].into_iter().collect()), deadline).await?;
        link.find_one(Table::Meta, doc! { "_id": "probe" }, deadline).await.map(drop)
    }
}

/// Reads a URL, and connects to nothing.
///
/// # Errors
/// What is wrong with it, as the driver says it.
pub(in crate::store) fn check(url: &str) -> std::result::Result<(), String> {
    ConnectionString::parse(url).map(drop).map_err(|err| match *err.kind {
        ErrorKind::InvalidArgument { message, .. } => message,
        kind => kind.to_string(),
    })
}

/// Looks at the database, and changes nothing.
///
/// # Errors
/// The URL is wrong, no server answers, the database is from a newer version, or it is sealed with other keys.
pub(in crate::store) async fn inspect(url: &str, seal: &Seal) -> std::result::Result<Inspected, OpenError> {
    let (link, deadline) = (Link::new(url).await?, Instant::now() + OPEN_DEADLINE);
    let version = schema::version(&link, deadline).await?;
    keys::inspect(&link, seal, deadline).await?;
    Ok(version.map_or(Inspected::Absent, |version| Inspected::Present { version, newest: schema::VERSION }))
}

fn closed() -> Error {
    Error::Database("the store is closed".into())
}

/// Does a node's own work now and then, until the store is closed.
async fn keep_up(shared: Arc<Shared>, closed: CancellationToken, patience: Duration) {
    let mut rounds = tokio::time::interval(clock::COMPARE_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    rounds.tick().await;
    while closed.run_until_cancelled(rounds.tick()).await.is_some() {
        let round = upkeep::round(&shared, Instant::now() + patience);
        if let Some(Err(err)) = closed.run_until_cancelled(round).await {
            tracing::warn!(error = &err as &dyn std::error::Error, "database is not kept up");
        }
    }
}

#[async_trait]
impl Store for Mongo {
    async fn open_session(&self, ask: OpenSession) -> Result<Opened> {
        self.observe("open_session", async {
            self.lanes()?;
            sessions::open(self, &ask, self.until()).await
        })
        .await
    }

    async fn change_session(&self, id: SessionId, owner: Option<UserId>, change: Change) -> Result<Changed> {
        self.observe("change_session", self.change(id, owner, change, self.until())).await
    }

    async fn delete_session(&self, id: SessionId, owner: UserId) -> Result<Changed> {
        let decide = move |draft: Box<Draft>, seal: &Seal| changes::delete(draft, &owner, seal);
        let write = Ask::new(id, self.until(), || Err(Error::NotFound), decide);
        self.observe("delete_session", self.submit(write)).await
    }

    async fn sessions(&self, ask: ListSessions) -> Result<Page> {
        self.observe("sessions", lists::page(&self.shared, &ask, self.until())).await
    }

    async fn search(&self, ask: Search) -> Result<Found> {
        self.observe("search", lists::search(&self.shared, &ask, self.until())).await
    }

    async fn idle_sessions(&self, since: Timestamp, limit: u32) -> Result<Vec<SessionId>> {
        self.observe("idle_sessions", lists::idle(&self.shared, since, limit, self.until())).await
    }

    async fn user_revs(&self, users: &[UserId], limit: u32) -> Result<Vec<(UserId, Revs)>> {
        self.observe("user_revs", lists::user_revs(&self.shared, users, limit, self.until())).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.observe("session", async {
            let head = reads::head(&self.shared, id, self.until()).await?;
            head.map(|head| head.session(&self.shared.seal)).transpose()
        })
        .await
    }

    async fn revs(&self, ids: &[SessionId]) -> Result<Revs> {
        self.observe("revs", reads::revs(&self.shared, ids, self.until())).await
    }

    async fn append(&self, entry: NewEntry) -> Result<Appended> {
        self.observe("append", self.add(entry, self.until())).await
    }

    async fn entries(&self, session: SessionId, range: Range) -> Result<Vec<Entry>> {
        self.observe("entries", reads::entries(&self.shared, session, range, self.until())).await
    }

    async fn entry_of(&self, user: &UserId, client_id: RequestId) -> Result<Option<Entry>> {
        self.observe("entry_of", async {
            let key = requests::key_of(user, client_id);
            Ok(requests::made(&self.shared, &key, self.until()).await?.map(|(entry, _rev)| entry))
        })
        .await
    }

    async fn start_turn(&self, session: SessionId, lease: Lease) -> Result<Option<StartedTurn>> {
        let decide = move |draft: Box<Draft>, _seal: &Seal| turns::start(draft, &lease);
        let write = Ask::new(session, self.until(), || Ok(None), decide);
        self.observe("start_turn", async {
            let started = self.submit(write).await?;
            if let Some(started) = &started {
                self.remember(started.turn.id, session);
            }
            Ok(started)
        })
        .await
    }

    async fn extend_turn(&self, turn: TurnId, node: NodeId, piece: TurnText, ttl: Duration) -> Result<bool> {
        self.observe("extend_turn", async {
            let deadline = self.until();
            let Some(session) = self.session_of(turn, deadline).await? else { return Ok(false) };
            let extend = Extend { turn, node, piece, ttl };
            let decide = move |draft: Box<Draft>, seal: &Seal| extend.decide(draft, seal);
            self.submit(Ask::new(session, deadline, || Ok(false), decide)).await
        })
        .await
    }

    async fn running_turn(&self, session: SessionId) -> Result<Option<Turn>> {
        self.observe("running_turn", async {
            let head = reads::head(&self.shared, session, self.until()).await?;
            Ok(head.and_then(|head| head.running().map(|(open, _running)| open.turn(session))))
        })
        .await
    }

    async fn turn(&self, id: TurnId) -> Result<Option<Turn>> {
        self.observe("turn", reads::turn(&self.shared, id, self.until())).await
    }

    async fn turn_text(&self, id: TurnId, offset: u64) -> Result<TurnText> {
        self.observe("turn_text", reads::turn_text(&self.shared, id, offset, self.until())).await
    }

    async fn end_turn(&self, end: EndTurn) -> Result<Option<EndedTurn>> {
        self.observe("end_turn", async {
            if !end.state.ended() {
                return Err(Error::Database(format!("{:?} is not a state that a turn ends in", end.state).into()));
            }
            let deadline = self.until();
            let Some(session) = self.session_of(end.turn_id, deadline).await? else { return Ok(None) };
            let decide = move |draft: Box<Draft>, seal: &Seal| turns::end(draft, &end, seal);
            self.submit(Ask::new(session, deadline, || Ok(None), decide)).await
        })
        .await
    }

    async fn spend(&self, spend: Spend) -> Result<()> {
        self.observe("spend", async {
            self.lanes()?;
            usage::spend(&self.shared, &spend, self.until()).await
        })
        .await
    }

    async fn spent(&self, user: &UserId, since: Day) -> Result<Vec<DaySpent>> {
        self.observe("spent", usage::spent(&self.shared, user, since, self.until())).await
    }

    async fn thread(&self, session: SessionId, model_id: &str) -> Result<Option<Thread>> {
        self.observe("thread", async {
            let Some(head) = reads::head(&self.shared, session, self.until()).await? else { return Ok(None) };
            let Some(thread) = head.threads.iter().find(|thread| thread.model_id == model_id) else { return Ok(None) };
            let row = values::thread_row(session, model_id);
            let reference = self.shared.seal.open_text(values::thread_place(&row), &thread.reference.bytes)?;
            Ok(Some(Thread { reference, reply_seq: thread.reply_seq }))
        })
        .await
    }

    async fn open_turns(&self, session: SessionId) -> Result<Vec<Turn>> {
        self.observe("open_turns", async {
            let head = reads::head(&self.shared, session, self.until()).await?;
            Ok(head.map(|head| head.open_turns()).unwrap_or_default())
        })
        .await
    }

    async fn regenerate(&self, ask: Regenerate) -> Result<Regenerated> {
        self.observe("regenerate", self.again(ask, self.until())).await
    }

    async fn rate(&self, rate: Rate) -> Result<()> {
        self.observe("rate", async {
            self.lanes()?;
            self.note_rating(rate, self.until()).await
        })
        .await
    }

    async fn share(&self, new: NewShare) -> Result<Share> {
        self.observe("share", async {
            let deadline = self.until();
            let taken = reads::head_by(&self.shared, share_filter(new.id), deadline).await?;
            if taken.is_some_and(|taken| taken.id != new.session_id) {
                return Err(Error::NotFound);
            }
            let session = new.session_id;
            let decide = move |draft: Box<Draft>, seal: &Seal| changes::share(draft, &new, seal);
            self.submit(Ask::new(session, deadline, || Err(Error::NotFound), decide)).await
        })
        .await
    }

    async fn shared(&self, id: Uuid) -> Result<Option<Share>> {
        self.observe("shared", async {
            let Some(head) = reads::head_by(&self.shared, share_filter(id), self.until()).await? else {
                return Ok(None);
            };
            let share = changes::share_of(&head, id, self.shared.clock.now());
            share.map(|share| share.open(head.id, &self.shared.seal)).transpose()
        })
        .await
    }

    async fn shares_of(&self, sessions: &[SessionId]) -> Result<Vec<Share>> {
        self.observe("shares_of", lists::shares(&self.shared, sessions, self.until())).await
    }

    async fn unshare(&self, session: SessionId, owner: UserId) -> Result<u64> {
        let decide = move |draft: Box<Draft>, _seal: &Seal| changes::unshare(draft, &owner);
        let write = Ask::new(session, self.until(), || Err(Error::NotFound), decide);
        self.observe("unshare", self.submit(write)).await
    }

    async fn lost(&self, _node: NodeId, limit: u32) -> Result<Lost> {
        self.observe("lost", lists::lost(&self.shared, limit, self.until())).await
    }

    async fn sealed_with(&self) -> Result<SealedWith> {
        self.observe("sealed_with", keys::sealed_with(&self.shared, self.until())).await
    }

    async fn reseal(&self, after: Option<Position>, limit: u32) -> Result<Resealed> {
        self.observe("reseal", reseal::batch(self, after, limit, self.until())).await
    }

    async fn retire_keys(&self) -> Result<()> {
        let over = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.observe("retire_keys", keys::retire(&self.shared, &over, self.until())).await
    }

    async fn ready(&self) -> Result<()> {
        self.observe("ready", self.probe(self.until())).await
    }

    async fn close(&self) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.closed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn share_filter(id: Uuid) -> mongodb::bson::Document {
    doc! { "shares.id": values::id(id) }
}
