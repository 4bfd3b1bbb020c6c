//! The one thread that writes.
//!
//! It takes a write, and whatever else is queued by then, into one transaction, and answers nobody before the
//! commit is durable. No timer: while the disk is busy with one commit, the next one fills by itself. A write that
//! fails rolls back alone; a commit that fails is the failure of all its writes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    super::{Error, Result},
    Lock, OpenError,
    checkpoint::Checkpointer,
    queries,
};
use crate::metrics::Metrics;

/// Writes that share one commit at most, so that the last of them does not wait for many others.
const COMMIT_WRITES_MAX: usize = 512;

/// Where writes wait for the thread. Full: a call waits for room until its deadline.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: CancellationToken,
}

enum Message {
    Write(Box<dyn Write>),
    Close,
}

impl Writer {
    /// Starts the thread with the connection that writes. `lock` is held until that is closed.
    pub(super) fn start(
        path: &Path,
        connection: Connection,
        lock: Lock,
        queue_max: usize,
        metrics: Arc<Metrics>,
    ) -> std::result::Result<Self, OpenError> {
        let checkpointer = Checkpointer::start(path)?;
        let (queue, messages) = mpsc::channel(queue_max.max(1));
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        // Fields drop in this order: the connection closes, then the lock goes, then `ended` is told.
        let worker = Worker { connection, messages, metrics, _lock: lock, _ended: guard };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(|| worker.run(checkpointer))
            .map_err(OpenError::Io)?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)), ended })
    }

    /// Queues a write and waits until it is durable. `work` may be done twice: what its first run has written is rolled
    /// back then.
    ///
    /// # Errors
    /// What `work` says; `Overloaded` at the deadline: a write that is still queued then is not done at all.
    pub(super) async fn write<T, F>(&self, deadline: Instant, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let pending = Pending { work, result: None, deadline, answer };
        let outcome = timeout_at(deadline, async {
            self.queue.send(Message::Write(Box::new(pending))).await.map_err(|_closed| closed())?;
            answered.await.map_err(|_closed| closed())?
        });
        outcome.await.unwrap_or(Err(Error::Overloaded))
    }

    /// Takes no more writes, and waits until those that are queued are durable and the database is closed.
    pub(super) async fn close(&self) {
        // A closed queue means that the thread ends already.
        drop(self.queue.send(Message::Close).await);
        self.ended.cancelled().await;
    }
}

impl Drop for Writer {
    /// Waits for what is queued, like [`Self::close`], so that the file may be opened again at once.
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.queue, closed));
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("store writer panicked");
        }
    }
}

fn closed() -> Error {
    Error::Database("the store is closed".into())
}

/// One write and its caller.
trait Write: Send {
    /// Does it, once more if it was done before. `true`: keep what it wrote.
    fn run(&mut self, connection: &Connection, metrics: &Metrics) -> bool;

    /// Tells the caller, after the commit, or why there was none.
    fn answer(self: Box<Self>, commit: std::result::Result<(), Arc<rusqlite::Error>>);
}

struct Pending<T, F> {
    work: F,
    result: Option<Result<T>>,
    deadline: Instant,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, F> Write for Pending<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T> + Send,
{
    fn run(&mut self, connection: &Connection, metrics: &Metrics) -> bool {
        if Instant::now() >= self.deadline {
            self.result = Some(Err(Error::Overloaded));
            return false;
        }
        // A panic leaves no half-written row: what it wrote is rolled back, and statements reset as they drop.
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(connection))).unwrap_or_else(|_panic| {
            metrics.panics_total.inc();
            Err(Error::Database("a write panicked".into()))
        });
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn answer(self: Box<Self>, commit: std::result::Result<(), Arc<rusqlite::Error>>) {
        let result = match (self.result, commit) {
            // Also what a refused write found may have been written by an earlier one of this commit.
            (_, Err(err)) => Err(Error::Database(Box::new(err))),
            (Some(result), Ok(())) => result,
            (None, Ok(())) => Err(Error::Database("a write was left out of its commit".into())),
        };
        // A caller that went away is not told; what it wrote stays.
        drop(self.answer.send(result));
    }
}

struct Worker {
    connection: Connection,
    messages: mpsc::Receiver<Message>,
    metrics: Arc<Metrics>,
    _lock: Lock,
    _ended: DropGuard,
}

impl Worker {
    fn run(mut self, mut checkpointer: Checkpointer) {
        Checkpointer::watch(&self.connection);
        let mut batch = Vec::new();
        while let Some(first) = self.messages.blocking_recv() {
            self.take(first, &mut batch);
            while batch.len() < COMMIT_WRITES_MAX
                && let Ok(next) = self.messages.try_recv()
            {
                self.take(next, &mut batch);
            }
            if !batch.is_empty() {
                self.commit(&mut batch);
                checkpointer.committed(&self.connection);
            }
        }
        checkpointer.finish(&self.connection);
    }

    fn take(&mut self, message: Message, batch: &mut Vec<Box<dyn Write>>) {
        match message {
            Message::Write(write) => batch.push(write),
            Message::Close => self.messages.close(),
        }
    }

    fn commit(&self, batch: &mut Vec<Box<dyn Write>>) {
        let outcome = self.transaction(batch).map_err(Arc::new);
        if let Err(err) = &outcome {
            let error: &dyn std::error::Error = err;
            tracing::error!(error, writes = batch.len(), "commit failed");
            self.roll_back();
        } else {
            self.metrics
                .store_commit_writes
                .observe(batch.len().try_into().map_or(f64::MAX, |writes: u32| writes.into()));
        }
        for write in batch.drain(..) {
            write.answer(outcome.clone());
        }
    }

    /// Does all of them. Nearly every batch goes through, so no page is kept aside for undoing one write alone: a batch
    /// in which that is needed is done once more.
    fn transaction(&self, batch: &mut [Box<dyn Write>]) -> rusqlite::Result<()> {
        self.execute(queries::BEGIN)?;
        let mut undo = false;
        for write in batch.iter_mut() {
            let before = self.connection.total_changes();
            undo = !write.run(&self.connection, &self.metrics) && self.connection.total_changes() != before;
            if undo || self.connection.is_autocommit() {
                break;
            }
        }
        if !undo {
            // Fails when the database itself has rolled everything back, as it does when the disk is full.
            return self.execute(queries::COMMIT);
        }
        self.roll_back();
        if batch.len() == 1 { Ok(()) } else { self.one_by_one(batch) }
    }

    /// Does all of them, so that each can be undone alone.
    fn one_by_one(&self, batch: &mut [Box<dyn Write>]) -> rusqlite::Result<()> {
        self.execute(queries::BEGIN)?;
        for write in batch {
            self.execute(queries::SAVEPOINT)?;
            if !write.run(&self.connection, &self.metrics) {
                // Fails when the database itself has rolled everything back, as it does when the disk is full.
                self.connection.execute_batch("ROLLBACK TO one")?;
            }
            self.execute(queries::RELEASE)?;
        }
        self.execute(queries::COMMIT)
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    fn roll_back(&self) {
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(err) = self.connection.execute_batch("ROLLBACK") {
            let error: &dyn std::error::Error = &err;
            tracing::error!(error, "roll back failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::schema, *};

    struct Bench {
        writer: Arc<Writer>,
        metrics: Arc<Metrics>,
        dir: tempfile::TempDir,
        path: std::path::PathBuf,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chatbox.db");
        let lock = Lock(std::fs::File::create(dir.path().join("lock")).unwrap());
        let metrics = Metrics::new();
        let connection = schema::writer(&path).unwrap();
        let writer = Arc::new(Writer::start(&path, connection, lock, 1024, Arc::clone(&metrics)).unwrap());
        Bench { writer, metrics, dir, path }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn set(value: i64) -> impl FnMut(&Connection) -> Result<i64> + Send + 'static {
        move |connection| {
            connection.execute(queries::PROBE_WRITE, [value])?;
            Ok(value)
        }
    }

    /// Does `writes` while the writer is busy with another one, so that they share the next commit.
    async fn sharing_a_commit<T>(writer: &Writer, writes: impl Future<Output = T>) -> T {
        let (began, busy) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut began = Some(began);
        let hold = writer.write(soon(), move |_connection| {
            assert_eq!(began.take().unwrap().send(()), Ok(()));
            assert_eq!(released.recv(), Err(std::sync::mpsc::RecvError));
            Ok(())
        });
        let (held, done) = tokio::join!(hold, async {
            busy.await.unwrap();
            tokio::join!(writes, async { drop(release) }).0
        });
        held.unwrap();
        done
    }

    fn probe(path: &Path) -> i64 {
        Connection::open(path).unwrap().query_row(queries::PROBE_READ, [], |row| row.get(0)).unwrap()
    }

    #[tokio::test]
    async fn write_that_fails_rolls_back_alone() {
        let Bench { writer, path, metrics, dir: _dir, .. } = bench();
        let fails = writer.write(soon(), |connection| -> Result<()> {
            connection.execute(queries::PROBE_WRITE, [99])?;
            Err(Error::NotFound)
        });
        let both = async { tokio::join!(writer.write(soon(), set(5)), fails) };
        let (kept, failed) = sharing_a_commit(&writer, both).await;
        assert_eq!(kept.unwrap(), 5);
        assert!(matches!(failed, Err(Error::NotFound)));
        assert_eq!(probe(&path), 5);
        assert_eq!(
            (metrics.store_commit_writes.get_sample_sum(), metrics.store_commit_writes.get_sample_count()),
            (3.0, 2)
        );
        let alone = writer.write(soon(), |connection| -> Result<()> {
            connection.execute(queries::PROBE_WRITE, [99])?;
            Err(Error::NotFound)
        });
        assert!(matches!(alone.await, Err(Error::NotFound)));
        assert_eq!((probe(&path), writer.write(soon(), set(6)).await.unwrap(), probe(&path)), (5, 6, 6));
    }

    #[tokio::test]
    async fn write_that_panics_is_answered_and_leaves_nothing() {
        let Bench { writer, path, metrics, dir: _dir, .. } = bench();
        assert_eq!(writer.write(soon(), set(5)).await.unwrap(), 5);
        let panics = writer.write(soon(), |connection| -> Result<()> {
            connection.execute(queries::PROBE_WRITE, [99])?;
            panic!("as this test wants it")
        });
        assert!(matches!(panics.await, Err(Error::Database(_))));
        assert_eq!(metrics.panics_total.get(), 1);
        assert_eq!(probe(&path), 5);
        assert_eq!(writer.write(soon(), set(6)).await.unwrap(), 6);
        assert_eq!(probe(&path), 6);
    }

    // checklist 69, 75
    #[tokio::test]
    async fn commit_that_fails_answers_all_its_writes_and_the_next_one_succeeds() {
        let Bench { writer, path, dir: _dir, .. } = bench();
        // Ends the transaction under the writer, as the database does when the disk is full.
        let breaks = writer.write(soon(), |connection| Ok(connection.execute_batch("ROLLBACK")?));
        let all = async { tokio::join!(writer.write(soon(), set(5)), breaks, writer.write(soon(), set(6))) };
        let (first, broken, last) = sharing_a_commit(&writer, all).await;
        assert!(matches!(first, Err(Error::Database(_))), "{first:?}");
        assert!(matches!(broken, Err(Error::Database(_))), "{broken:?}");
        assert!(matches!(last, Err(Error::Database(_))), "{last:?}");
        assert_eq!(probe(&path), 0);
        assert_eq!(writer.write(soon(), set(7)).await.unwrap(), 7);
        assert_eq!(probe(&path), 7);
    }

    #[tokio::test]
    async fn write_past_its_deadline_is_refused_and_never_done() {
        let Bench { writer, path, dir: _dir, .. } = bench();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let waits = writer.write(Instant::now() + Duration::from_millis(20), set(5)).await;
        assert!(matches!(waits, Err(Error::Overloaded)));
        other.execute_batch("COMMIT").unwrap();
        writer.close().await;
        assert_eq!(probe(&path), 0);
    }

    // checklist 66
    #[tokio::test]
    async fn close_waits_for_queued_writes_and_takes_no_more() {
        let Bench { writer, path, dir: _dir, .. } = bench();
        let writes = (1..=50).map(|value| writer.write(soon(), set(value)));
        let (results, ()) = tokio::join!(futures_util::future::join_all(writes), writer.close());
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 50);
        assert_eq!(probe(&path), 50);
        assert!(matches!(writer.write(soon(), set(51)).await, Err(Error::Database(_))));
        writer.close().await;
    }
}
