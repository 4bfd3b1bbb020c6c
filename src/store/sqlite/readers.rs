//! A few connections that read beside the writer. Each read sees one snapshot, and never waits for a write.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rusqlite::Connection;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    super::{Error, Result},
    OpenError, queries, schema,
};

/// The pool. A read waits for a free connection until its deadline.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    /// Opens `count` connections.
    pub(super) fn open(path: &Path, count: usize) -> std::result::Result<Self, OpenError> {
        let idle: Vec<_> = (0..count.max(1)).map(|_| schema::reader(path)).collect::<std::result::Result<_, _>>()?;
        let permits = Arc::new(Semaphore::new(idle.len()));
        Ok(Self { idle: Arc::new(Mutex::new(idle)), permits })
    }

    /// Runs a read on a thread that may block, on one snapshot.
    ///
    /// # Errors
    /// What `work` says; `Overloaded` at the deadline.
    pub(super) async fn read<T, F>(&self, deadline: Instant, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let idle = Arc::clone(&self.idle);
        let permits = Arc::clone(&self.permits);
        let outcome = timeout_at(deadline, async {
            let permit = permits.acquire_owned().await.map_err(|err| Error::Database(Box::new(err)))?;
            // The permit goes with the connection, so that a caller that gives up does not free it too early.
            let read = tokio::task::spawn_blocking(move || {
                let lent = Lent::take(&idle)?;
                let result = lent.snapshot(work);
                drop(lent);
                drop(permit);
                result
            });
            read.await.map_err(|err| Error::Database(Box::new(err)))?
        });
        outcome.await.unwrap_or(Err(Error::Overloaded))
    }
}

/// A connection that goes back to the pool, also when the read panics.
struct Lent<'a> {
    idle: &'a Mutex<Vec<Connection>>,
    connection: Option<Connection>,
}

impl<'a> Lent<'a> {
    fn take(idle: &'a Mutex<Vec<Connection>>) -> Result<Self> {
        let connection = lock(idle).pop();
        if connection.is_none() {
            return Err(Error::Overloaded);
        }
        Ok(Self { idle, connection })
    }

    fn snapshot<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let Some(connection) = &self.connection else { return Err(Error::Overloaded) };
        connection.prepare_cached(queries::READ_BEGIN)?.execute([])?;
        let _snapshot = Snapshot(connection);
        work(connection)
    }
}

/// Ends when it is dropped, also when the read panics; there is nothing to commit. rusqlite's own transaction would
/// have both statements parsed for every read.
struct Snapshot<'a>(&'a Connection);

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        let ended = self.0.prepare_cached(queries::READ_END).and_then(|mut end| end.execute([]));
        if let Err(err) = ended {
            tracing::warn!(error = &err as &dyn std::error::Error, "a read's snapshot does not end");
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        lock(self.idle).extend(self.connection.take());
    }
}

fn lock(idle: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
