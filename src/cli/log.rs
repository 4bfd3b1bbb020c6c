//! The log of this process, on standard error.
//!
//! A thread of its own writes it: whoever reads slowly, or not at all, makes nobody else wait.

use std::{
    io::{self, IsTerminal, Write, stderr},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::Duration,
};

use anyhow::Context;
use prometheus::IntCounter;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::{BadUsage, Global, variables};
use crate::config::environment;

/// Lines that wait to be written. More are dropped, and counted.
const LINES_MAX: usize = 4096;
/// How long a line waits for others: each write wakes this thread once.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end of the process waits until the last ones are written.
const END_DEADLINE: Duration = Duration::from_secs(1);

/// The log while it is written. Dropped, it waits for what was said last.
pub(super) struct Log {
    lines: Lines,
    ended: Receiver<()>,
}

/// Where lines wait; `None` is the last one.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Option<Vec<u8>>>,
    dropped: IntCounter,
}

impl Write for Lines {
    /// Takes a whole line, which the subscriber hands over at once, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Some(line.to_vec())).is_err() {
            self.dropped.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Starts it with the filter that is configured, or else with the usual one.
    pub(super) fn start(global: &Global, usual: &str) -> anyhow::Result<Self> {
        let configured = variables().find(|(name, _)| name == environment::LOG).map(|(_, filter)| filter);
        let filter = global.log.clone().or(configured).unwrap_or_else(|| usual.to_owned());
        let filter = EnvFilter::try_new(&filter).map_err(|err| {
            BadUsage(format!("log filter `{filter}` is not one such as `info` or `chatbox=debug`: {err}"))
        })?;
        let (queue, waiting) = sync_channel::<Option<Vec<u8>>>(LINES_MAX);
        let (end, ended) = sync_channel(1);
        let write = move || {
            write(&waiting);
            end.send(())
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(write).context("start the log")?;
        let help = "Lines of the log that were dropped, as nobody read those before them.";
        let dropped = IntCounter::new("chatbox_log_lines_dropped_total", help)?;
        let lines = Lines { queue, dropped };
        let (registry, writer) = (tracing_subscriber::registry().with(filter), lines.clone());
        let writer = move || writer.clone();
        let started = if global.json {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(writer)).try_init()
        } else {
            registry.with(fmt::layer().with_ansi(stderr().is_terminal()).with_writer(writer)).try_init()
        };
        started.context("start the log")?;
        Ok(Self { lines, ended })
    }

    /// How many lines were dropped.
    pub(super) const fn dropped(&self) -> &IntCounter {
        &self.lines.dropped
    }
}

/// Writes lines until the last one.
#[expect(clippy::disallowed_methods, reason = "nothing tells that no other line follows")]
fn write(waiting: &Receiver<Option<Vec<u8>>>) {
    let mut ended = false;
    while !ended && let Ok(Some(mut lines)) = waiting.recv() {
        std::thread::sleep(GATHER);
        for line in waiting.try_iter().take(LINES_MAX) {
            let Some(line) = line else {
                ended = true;
                break;
            };
            lines.extend(line);
        }
        // What cannot be written is lost, as it would be without this thread.
        drop(stderr().write_all(&lines));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Full: nobody reads it.
        if self.lines.queue.try_send(None).is_ok() {
            let _late = self.ended.recv_timeout(END_DEADLINE);
        }
    }
}
