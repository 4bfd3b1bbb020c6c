//! Copying the write-ahead log into the file, beside the writer.
//!
//! Left to itself the database does this inside a commit, and everyone who waits for that commit waits for it too.
//! Here a second thread copies most of it while commits go on. The log can begin again only when all of it is
//! copied, which a busy writer never sees by itself: when the log has become long, the writer copies the little
//! that is left, after it has answered its callers.

use std::{
    cell::Cell,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use rusqlite::Connection;

use super::{OpenError, schema};

/// Growth of the log, in pages, after which the thread copies: 16 MiB.
const COPY_PAGES: i32 = (16 << 20) / PAGE_BYTES;

/// Length of the log, in pages, at which the writer makes it begin again: 64 MiB.
const RESTART_PAGES: i32 = (64 << 20) / PAGE_BYTES;

const PAGE_BYTES: i32 = schema::PAGE_BYTES.cast_signed();

thread_local! {
    /// Pages in the log after this thread's last commit: the database tells it to a bare function only.
    static LOG_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// The thread, and how far the log had come when it was last woken. Belongs to the writer's thread.
pub(super) struct Checkpointer {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    copied: i32,
}

impl Checkpointer {
    /// Starts the thread.
    pub(super) fn start(path: &Path) -> Result<Self, OpenError> {
        let connection = schema::checkpointer(path)?;
        // Room for one: a thread that is busy copies what comes meanwhile in its next round.
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || copy_when_woken(&connection, &woken))
            .map_err(OpenError::Io)?;
        Ok(Self { wake: Some(wake), thread: Some(thread), copied: 0 })
    }

    /// Takes the commits of the writer's connection over. Must be called on the writer's thread.
    pub(super) fn watch(writer: &Connection) {
        writer.wal_hook(Some(|_log, pages| {
            LOG_PAGES.set(pages);
            Ok(())
        }));
    }

    /// Looks at the log after a commit whose callers have their answers.
    pub(super) fn committed(&mut self, writer: &Connection) {
        let pages = LOG_PAGES.get();
        if pages < self.copied {
            self.copied = 0;
        }
        if pages >= RESTART_PAGES {
            copy(writer, "RESTART");
        } else if pages - self.copied >= COPY_PAGES {
            self.copied = pages;
            // Full: it is awake already.
            let _full = self.wake.as_ref().map(|wake| wake.try_send(()));
        }
    }

    /// Ends the thread and empties the log, so that the next start has nothing to recover.
    pub(super) fn finish(mut self, writer: &Connection) {
        drop(self.wake.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("store checkpoint panicked");
        }
        copy(writer, "TRUNCATE");
    }
}

fn copy_when_woken(connection: &Connection, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        copy(connection, "PASSIVE");
    }
}

fn copy(connection: &Connection, mode: &str) {
    // The answer says whether readers kept it from finishing; the next round goes on from there.
    let outcome = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_row| Ok(()));
    if let Err(err) = outcome {
        let error: &dyn std::error::Error = &err;
        tracing::error!(error, mode, "log is not copied into the database");
    }
}
