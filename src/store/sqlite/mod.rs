//! The embedded database: one file, one process, one writer thread, a few readers.
//!
//! Write-ahead logging with `synchronous=FULL`: what a call returned survives a power cut. Nothing outside this
//! directory names a type of the driver.

mod again;
mod append;
mod checkpoint;
pub mod inspect;
mod keys;
mod lists;
mod migrations;
mod queries;
mod ratings;
mod readers;
mod reads;
mod reseal;
mod schema;
mod search;
mod sessions;
mod shares;
mod turns;
mod usage;
mod values;
mod writer;

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::time::Instant;
use uuid::Uuid;

use self::{append::Append, readers::Readers, turns::Extend, writer::Writer};
use super::{
    Appended, Change, Changed, DaySpent, EndTurn, EndedTurn, Error, Found, Lease, ListSessions, Lost, NewEntry,
    NewShare, OpenSession, Opened, Page, Position, Range, Rate, Regenerate, Regenerated, Resealed, Result, Revs,
    SealedWith, Search, Share, Spend, StartedTurn, Store, Thread, TurnText, now, open::OpenError, seal::Seal,
};
use crate::{
    chat::{Day, Entry, NodeId, RequestId, Session, SessionId, Timestamp, Turn, TurnId, UserId},
    metrics::Metrics,
};

impl From<rusqlite::Error> for OpenError {
    fn from(err: rusqlite::Error) -> Self {
        Self::Database(Box::new(err))
    }
}

/// How much a store may hold back before it says that it is overloaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// how long any one call may take
    pub deadline: Duration,
    /// writes that wait for the writer; further calls wait for room
    pub queue_max: usize,
    /// connections that read at the same time
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), queue_max: 4096, readers: 4 }
    }
}

/// The store in one file. Dropping it waits for the writes that are queued; [`Store::close`] does so without
/// blocking its thread.
#[derive(Debug)]
pub struct Sqlite {
    writer: Writer,
    readers: Readers,
    seal: Arc<Seal>,
    deadline: Duration,
    metrics: Arc<Metrics>,
}

impl Sqlite {
    /// Opens a file, or makes it, with its directory, for this user alone. Reads no row: the time does not depend
    /// on how much is stored.
    ///
    /// # Errors
    /// Another process has it, it is from a newer version or another program, the keys are not those that it is sealed
    /// with, or the file system refuses.
    pub fn open(
        path: &Path,
        seal: Seal,
        options: &Options,
        metrics: Arc<Metrics>,
    ) -> std::result::Result<Self, OpenError> {
        let lock = lock(path)?;
        create(path).map_err(OpenError::Io)?;
        let mut connection = schema::writer(path)?;
        keys::compare(&mut connection, &seal)?;
        let writer = Writer::start(path, connection, lock, options.queue_max, Arc::clone(&metrics))?;
        let readers = Readers::open(path, options.readers)?;
        Ok(Self { writer, readers, seal: Arc::new(seal), deadline: options.deadline, metrics })
    }

    async fn write<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Connection, &Seal) -> Result<T> + Send + 'static,
    {
        let began = Instant::now();
        let seal = Arc::clone(&self.seal);
        let outcome = self.writer.write(began + self.deadline, move |connection| work(connection, &seal)).await;
        self.observe(operation, began, outcome)
    }

    async fn read<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &Seal) -> Result<T> + Send + 'static,
    {
        let began = Instant::now();
        let seal = Arc::clone(&self.seal);
        let outcome = self.readers.read(began + self.deadline, move |connection| work(connection, &seal)).await;
        self.observe(operation, began, outcome)
    }

    fn observe<T>(&self, operation: &'static str, began: Instant, outcome: Result<T>) -> Result<T> {
        self.metrics.store_duration_seconds.with_label_values(&[operation]).observe(began.elapsed().as_secs_f64());
        // The others are answers, not faults.
        if let Err(Error::Overloaded | Error::Sealed { .. } | Error::Database(_)) = &outcome {
            self.metrics.store_errors_total.with_label_values(&[operation]).inc();
        }
        outcome
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn open_session(&self, ask: OpenSession) -> Result<Opened> {
        self.write("open_session", move |connection, seal| sessions::open(connection, &ask, seal)).await
    }

    async fn change_session(&self, id: SessionId, owner: Option<UserId>, change: Change) -> Result<Changed> {
        let work =
            move |connection: &Connection, seal: &Seal| sessions::change(connection, id, owner.as_ref(), &change, seal);
        self.write("change_session", work).await
    }

    async fn delete_session(&self, id: SessionId, owner: UserId) -> Result<Changed> {
        self.write("delete_session", move |connection, seal| sessions::delete(connection, id, &owner, seal)).await
    }

    async fn sessions(&self, ask: ListSessions) -> Result<Page> {
        self.read("sessions", move |connection, seal| lists::page(connection, &ask, seal)).await
    }

    async fn search(&self, ask: Search) -> Result<Found> {
        self.read("search", move |connection, seal| search::search(connection, &ask, seal)).await
    }

    async fn idle_sessions(&self, since: Timestamp, limit: u32) -> Result<Vec<SessionId>> {
        self.read("idle_sessions", move |connection, _seal| lists::idle(connection, since, limit)).await
    }

    async fn user_revs(&self, users: &[UserId], limit: u32) -> Result<Vec<(UserId, Revs)>> {
        let users = users.to_vec();
        self.read("user_revs", move |connection, _seal| lists::user_revs(connection, users, limit)).await
    }

    async fn open_turns(&self, session: SessionId) -> Result<Vec<Turn>> {
        self.read("open_turns", move |connection, _seal| reads::open_turns(connection, session)).await
    }

    async fn regenerate(&self, ask: Regenerate) -> Result<Regenerated> {
        self.write("regenerate", move |connection, seal| again::regenerate(connection, &ask, seal)).await
    }

    async fn rate(&self, rate: Rate) -> Result<()> {
        self.write("rate", move |connection, seal| ratings::rate(connection, &rate, seal)).await
    }

    async fn share(&self, new: NewShare) -> Result<Share> {
        self.write("share", move |connection, seal| shares::share(connection, &new, seal)).await
    }

    async fn shared(&self, id: Uuid) -> Result<Option<Share>> {
        self.read("shared", move |connection, seal| shares::shared(connection, id, seal)).await
    }

    async fn shares_of(&self, sessions: &[SessionId]) -> Result<Vec<Share>> {
        let sessions = sessions.to_vec();
        self.read("shares_of", move |connection, seal| shares::of_sessions(connection, &sessions, seal)).await
    }

    async fn unshare(&self, session: SessionId, owner: UserId) -> Result<u64> {
        self.write("unshare", move |connection, seal| shares::unshare(connection, session, &owner, seal)).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.read("session", move |connection, seal| sessions::read(connection, id, seal)).await
    }

    async fn revs(&self, ids: &[SessionId]) -> Result<Revs> {
        let ids = ids.to_vec();
        self.read("revs", move |connection, _seal| reads::revs(connection, &ids)).await
    }

    async fn append(&self, entry: NewEntry) -> Result<Appended> {
        let append = Append::prepare(entry, &self.seal)?;
        self.write("append", move |connection, seal| append.run(connection, seal)).await
    }

    async fn entries(&self, session: SessionId, range: Range) -> Result<Vec<Entry>> {
        self.read("entries", move |connection, seal| reads::entries(connection, session, range, seal)).await
    }

    async fn entry_of(&self, user: &UserId, client_id: RequestId) -> Result<Option<Entry>> {
        let user = user.clone();
        self.read("entry_of", move |connection, seal| reads::entry_of(connection, &user, client_id, seal)).await
    }

    async fn start_turn(&self, session: SessionId, lease: Lease) -> Result<Option<StartedTurn>> {
        self.write("start_turn", move |connection, seal| turns::start(connection, session, &lease, seal)).await
    }

    async fn extend_turn(&self, turn: TurnId, node: NodeId, piece: TurnText, ttl: Duration) -> Result<bool> {
        let extend = Extend::prepare(turn, node, piece, ttl, &self.seal)?;
        self.write("extend_turn", move |connection, seal| extend.run(connection, seal)).await
    }

    async fn running_turn(&self, session: SessionId) -> Result<Option<Turn>> {
        self.read("running_turn", move |connection, _seal| reads::turn(connection, queries::TURN_RUNNING, session))
            .await
    }

    async fn turn(&self, id: TurnId) -> Result<Option<Turn>> {
        self.read("turn", move |connection, _seal| reads::turn(connection, queries::TURN, id)).await
    }

    async fn turn_text(&self, id: TurnId, offset: u64) -> Result<TurnText> {
        self.read("turn_text", move |connection, seal| reads::turn_text(connection, id, offset, seal)).await
    }

    async fn end_turn(&self, end: EndTurn) -> Result<Option<EndedTurn>> {
        self.write("end_turn", move |connection, seal| turns::end(connection, &end, seal)).await
    }

    async fn spend(&self, spend: Spend) -> Result<()> {
        self.write("spend", move |connection, _seal| usage::spend(connection, &spend)).await
    }

    async fn spent(&self, user: &UserId, since: Day) -> Result<Vec<DaySpent>> {
        let user = user.clone();
        self.read("spent", move |connection, _seal| usage::spent(connection, &user, since)).await
    }

    async fn thread(&self, session: SessionId, model_id: &str) -> Result<Option<Thread>> {
        let model_id = model_id.to_owned();
        self.read("thread", move |connection, seal| usage::thread(connection, session, &model_id, seal)).await
    }

    async fn lost(&self, node: NodeId, limit: u32) -> Result<Lost> {
        self.read("lost", move |connection, _seal| reads::lost(connection, node, limit)).await
    }

    async fn sealed_with(&self) -> Result<SealedWith> {
        let current = self.seal.current();
        self.read("sealed_with", move |connection, _seal| keys::sealed_with(connection, current)).await
    }

    async fn reseal(&self, after: Option<Position>, limit: u32) -> Result<Resealed> {
        let (found, changes) =
            self.read("reseal", move |connection, seal| reseal::look(connection, after, limit, seal)).await?;
        if changes.is_empty() {
            return Ok(found);
        }
        self.write("reseal", move |connection, _seal| reseal::replace(connection, &found, &changes)).await
    }

    async fn retire_keys(&self) -> Result<()> {
        self.write("retire_keys", keys::retire).await
    }

    async fn ready(&self) -> Result<()> {
        self.write("ready", |connection, _seal| {
            connection.prepare_cached(queries::PROBE_WRITE)?.execute([now()])?;
            Ok(())
        })
        .await?;
        self.read("ready", |connection, _seal| {
            Ok(connection.prepare_cached(queries::PROBE_READ)?.query_row([], |row| row.get::<_, i64>(0)).map(drop)?)
        })
        .await
    }

    async fn close(&self) {
        self.writer.close().await;
    }
}

/// Makes the directory and holds the lock file, beside the database: the database's own locks must be left to the
/// database, because a process loses all its locks on a file when it closes any handle of it.
fn lock(path: &Path) -> std::result::Result<Lock, OpenError> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(OpenError::Io)?;
    }
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(lock_name(path)).map_err(OpenError::Io)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked),
        Err(TryLockError::Error(err)) => Err(OpenError::Io(err)),
    }
}

/// A locked file. It is unlocked, and not merely closed: a process that is about to be started has every file of this
/// one until it is another program, and would hold the lock for as long (flock(2)).
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(err) = self.0.unlock() {
            tracing::warn!(error = &err as &dyn std::error::Error, "database is not unlocked");
        }
    }
}

fn lock_name(path: &Path) -> OsString {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name
}

/// Makes the file before the database does, because it decides who may read the log files beside it too.
fn create(path: &Path) -> io::Result<()> {
    if path.try_exists()? {
        return std::fs::set_permissions(path, Permissions::from_mode(0o600));
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.sync_all()?;
    // The name must survive a power cut like the rows.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
