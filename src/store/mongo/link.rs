//! The driver: how it connects, which failures are tried again, and until when.
//!
//! Commands are sent as they are, with read and write concerns of ours, and tried again by this file alone: the
//! driver's own retries are off, so that an outage is not multiplied.

use std::time::Duration;

use mongodb::{
    Client, Collection, Database,
    bson::{Document, RawArrayBuf, RawDocumentBuf, rawdoc},
    error::{Error as DriverError, ErrorKind},
    options::{ClientOptions, FindOptions, ReadConcern},
};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::super::{Error, OpenError, Result};

/// One attempt. A server that was stopped keeps its sockets open and says nothing: only this notices it.
pub(super) const ATTEMPT: Duration = Duration::from_secs(3);
/// Between two attempts; doubles, with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a connection may take to be made, and a primary to be found, in one attempt.
const CONNECT: Duration = Duration::from_secs(2);
/// How often servers are asked for their state, beside what they tell by themselves.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Connections to each server, unless the URL says otherwise (`maxPoolSize`).
const POOL_MAX: u32 = 32;
/// The database, unless the URL names one.
const DATABASE: &str = "chatbox";

/// Codes of failures that another attempt may not have: no primary, a server that ends or was asked to interrupt, the
/// network between servers, a write that met another one, a time limit, a write concern that was not reached in time
/// (MongoDB, `error_codes.yml`).
const TRANSIENT: [i32; 19] =
    [6, 7, 50, 64, 89, 91, 112, 134, 189, 262, 317, 9001, 10058, 10107, 11600, 11601, 11602, 13435, 13436];
const LABELS: [&str; 4] =
    ["RetryableWriteError", "TransientTransactionError", "RetryableError", "SystemOverloadedError"];

/// Where rows of one kind lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Table {
    Sessions,
    Entries,
    Turns,
    TurnChunks,
    Requests,
    Usage,
    UsageDaily,
    SealKeys,
    Meta,
}

impl Table {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Entries => "entries",
            Self::Turns => "turns",
            Self::TurnChunks => "turn_chunks",
            Self::Requests => "requests",
            Self::Usage => "usage",
            Self::UsageDaily => "usage_daily",
            Self::SealKeys => "seal_keys",
            Self::Meta => "meta",
        }
    }
}

/// A connection to one database.
#[derive(Clone, Debug)]
pub(super) struct Link {
    database: Database,
}

/// What a write command did.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// documents that its statements matched, or that it inserted or deleted
    pub(super) n: u64,
    /// the statements that failed, with the codes
    pub(super) failed: Vec<(usize, i32)>,
}

/// The code of a unique index that refuses a write.
pub(super) const DUPLICATE: i32 = 11000;

impl Written {
    /// Takes failures of unique indexes as answers.
    ///
    /// # Errors
    /// Another failure.
    pub(super) fn unless_duplicate(self) -> Result<Self> {
        match self.failed.iter().find(|(_statement, code)| *code != DUPLICATE) {
            Some((statement, code)) => Err(Error::Database(format!("statement {statement} failed: {code}").into())),
            None => Ok(self),
        }
    }
}

/// A query.
#[derive(Clone, Debug, Default)]
pub(super) struct Find {
    pub(super) filter: Document,
    pub(super) projection: Option<Document>,
    pub(super) sort: Option<Document>,
    pub(super) hint: Option<&'static str>,
    /// 0: all of them
    pub(super) limit: i64,
}

impl Find {
    pub(super) fn of(filter: Document) -> Self {
        Self { filter, ..Self::default() }
    }
}

impl Link {
    /// Reads the URL; connections are made when they are needed.
    pub(super) async fn new(url: &str) -> std::result::Result<Self, OpenError> {
        let mut options = ClientOptions::parse(url).await.map_err(|err| OpenError::Database(Box::new(err)))?;
        options.app_name.get_or_insert_with(|| "chatbox".to_owned());
        options.connect_timeout.get_or_insert(CONNECT);
        options.server_selection_timeout.get_or_insert(CONNECT);
        options.heartbeat_freq.get_or_insert(HEARTBEAT);
        options.max_pool_size.get_or_insert(POOL_MAX);
        options.retry_reads = Some(false);
        options.retry_writes = Some(false);
        let database = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
        let client = Client::with_options(options).map_err(|err| OpenError::Database(Box::new(err)))?;
        Ok(Self { database: client.database(&database) })
    }

    /// Runs a command once.
    pub(super) async fn once(&self, command: RawDocumentBuf, deadline: Instant) -> Attempt<Document> {
        let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
        match timeout(left, self.database.run_raw_command(command).into_future()).await {
            Ok(Ok(reply)) => Attempt::Done(reply),
            Ok(Err(err)) => Attempt::of(err),
            Err(_elapsed) => Attempt::Again,
        }
    }

    /// Runs a command until it succeeds. It must mean the same however often it is done.
    ///
    /// # Errors
    /// `Overloaded` at the deadline; `Database` when the server refuses it.
    pub(super) async fn run(&self, command: RawDocumentBuf, deadline: Instant) -> Result<Document> {
        let mut pause = Pause::new(deadline);
        loop {
            match self.once(command.clone(), deadline).await {
                Attempt::Done(reply) => return Ok(reply),
                Attempt::Failed(err) => return Err(err),
                Attempt::Again => pause.wait().await?,
            }
        }
    }

    /// Writes, once: `Again` says that it is not known whether it was done.
    pub(super) async fn write_once(&self, write: RawDocumentBuf, deadline: Instant) -> Attempt<Written> {
        match self.once(write, deadline).await {
            Attempt::Done(reply) => written(&reply),
            Attempt::Failed(err) => Attempt::Failed(err),
            Attempt::Again => Attempt::Again,
        }
    }

    /// Writes until it is known that it is done. The write must mean the same however often it is done.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub(super) async fn write(&self, write: RawDocumentBuf, deadline: Instant) -> Result<Written> {
        let mut pause = Pause::new(deadline);
        loop {
            match self.write_once(write.clone(), deadline).await {
                Attempt::Done(done) => return Ok(done),
                Attempt::Failed(err) => return Err(err),
                Attempt::Again => pause.wait().await?,
            }
        }
    }

    /// Reads what a majority of the servers has.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub(super) async fn find(&self, table: Table, find: &Find, deadline: Instant) -> Result<Vec<RawDocumentBuf>> {
        let mut pause = Pause::new(deadline);
        let rows: Collection<RawDocumentBuf> = self.database.collection(table.name());
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
            let attempt = match timeout(left, collect(&rows, find)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(err)) => Attempt::<()>::of(err),
                Err(_elapsed) => Attempt::Again,
            };
            match attempt {
                Attempt::Failed(err) => return Err(err),
                Attempt::Done(()) | Attempt::Again => pause.wait().await?,
            }
        }
    }

    /// Reads the first row of a query.
    ///
    /// # Errors
    /// Those of [`Self::run`].
    pub(super) async fn find_one(
        &self,
        table: Table,
        filter: Document,
        deadline: Instant,
    ) -> Result<Option<RawDocumentBuf>> {
        let find = Find { limit: 1, ..Find::of(filter) };
        Ok(self.find(table, &find, deadline).await?.pop())
    }
}

async fn collect(rows: &Collection<RawDocumentBuf>, find: &Find) -> mongodb::error::Result<Vec<RawDocumentBuf>> {
    let mut options = FindOptions::default();
    options.projection.clone_from(&find.projection);
    options.sort.clone_from(&find.sort);
    options.hint = find.hint.map(|name| mongodb::options::Hint::Name(name.to_owned()));
    options.limit = Some(find.limit).filter(|limit| *limit > 0);
    options.read_concern = Some(ReadConcern::majority());
    options.max_time = Some(ATTEMPT);
    let mut cursor = rows.find(find.filter.clone()).with_options(options).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        found.push(cursor.current().to_owned());
    }
    Ok(found)
}

/// What became of one attempt.
pub(super) enum Attempt<T> {
    Done(T),
    /// nothing is known of it, or it was refused for now
    Again,
    Failed(Error),
}

impl<T> Attempt<T> {
    fn of(err: DriverError) -> Self {
        let transient = match &*err.kind {
            ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::ServerSelection { .. } => true,
            ErrorKind::Command(command) => TRANSIENT.contains(&command.code),
            _ => false,
        };
        if transient || LABELS.iter().any(|label| err.contains_label(label)) {
            tracing::debug!(error = &err as &dyn std::error::Error, "database is asked again");
            return Self::Again;
        }
        Self::Failed(Error::Database(Box::new(err)))
    }
}

/// Reads what a write command answered. A write concern that was not reached leaves it open whether the write stays.
fn written(reply: &Document) -> Attempt<Written> {
    if reply.contains_key("writeConcernError") {
        return Attempt::Again;
    }
    let mut failed = Vec::new();
    for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(|error| error.as_document()) {
        let code = error.get_i32("code").unwrap_or_default();
        if TRANSIENT.contains(&code) {
            return Attempt::Again;
        }
        failed.push((error.get_i32("index").ok().and_then(|at| usize::try_from(at).ok()).unwrap_or_default(), code));
    }
    let n = reply.get_i32("n").ok().and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
    Attempt::Done(Written { n, failed })
}

/// Growing pauses with jitter, until a deadline.
pub(super) struct Pause {
    next: Duration,
    deadline: Instant,
}

impl Pause {
    pub(super) const fn new(deadline: Instant) -> Self {
        Self { next: PAUSE_MIN, deadline }
    }

    /// Waits; at the deadline it says that the store is overloaded.
    pub(super) async fn wait(&mut self) -> Result<()> {
        // Half of it is left to chance, so that those who failed together do not come back together.
        let [chance, ..] = *Uuid::new_v4().as_bytes();
        let pause = self.next.mul_f64(0.5 + f64::from(chance) / 512.0);
        self.next = (self.next * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= self.deadline {
            return Err(Error::Overloaded);
        }
        sleep(pause).await;
        Ok(())
    }
}

/// A command that updates, each statement for itself, durable on a majority of the servers.
pub(super) fn update(table: Table, statements: RawArrayBuf) -> RawDocumentBuf {
    concerned(rawdoc! { "update": table.name(), "updates": statements, "ordered": false })
}

/// A command that inserts likewise.
pub(super) fn insert(table: Table, documents: RawArrayBuf) -> RawDocumentBuf {
    concerned(rawdoc! { "insert": table.name(), "documents": documents, "ordered": false })
}

/// A command that deletes likewise.
pub(super) fn delete(table: Table, statements: RawArrayBuf) -> RawDocumentBuf {
    concerned(rawdoc! { "delete": table.name(), "deletes": statements, "ordered": false })
}

fn concerned(mut command: RawDocumentBuf) -> RawDocumentBuf {
    use mongodb::bson::raw::cstr;
    command.append(cstr!("writeConcern"), rawdoc! { "w": "majority", "j": true });
    command.append(cstr!("maxTimeMS"), i32::try_from(ATTEMPT.as_millis()).unwrap_or(i32::MAX));
    command
}
