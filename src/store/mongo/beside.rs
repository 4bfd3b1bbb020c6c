//! How a commit's rows are written beside the session documents: any number of times, by anyone.
//!
//! A row never takes the place of a newer one. A lane has its rows written while its next commits are on their way:
//! until it is told that they are, each document that it commits carries them along.

use std::sync::Arc;

use futures_util::future::{try_join_all, try_join3};
use mongodb::bson::{Binary, RawArrayBuf, RawDocumentBuf, raw::cstr, rawdoc};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    super::Result,
    erase,
    lane::Shared,
    link::{self, Link, Table, Written},
    rows::{DropLog, How, Row},
    usage,
    values::{self, failed},
    work::Work,
};
use crate::chat::SessionId;

/// How long the rows of a commit are tried to be written.
const DEADLINE: Duration = Duration::from_secs(10);
/// Commits whose rows wait; a lane with more of them waits.
pub(super) const QUEUE_MAX: usize = 4;
/// Answers that wait for their lane: of what was written, of what waited, and of what has come since the lane looked.
pub(super) const TOLD_MAX: usize = 3 * QUEUE_MAX;

/// The rows of one commit.
pub(super) struct Implied {
    /// the sessions, and the versions of their documents
    pub(super) sessions: Vec<(SessionId, u64)>,
    pub(super) rows: Vec<Row>,
    /// those whose rows are not read from the documents
    pub(super) answers: Vec<Box<dyn Work>>,
}

/// What became of the rows of some commits.
pub(super) struct Told {
    pub(super) sessions: Vec<(SessionId, u64)>,
    pub(super) written: bool,
}

/// Writes what a lane hands over, in order, until the lane ends.
pub(super) async fn write(shared: Arc<Shared>, mut queue: mpsc::Receiver<Implied>, told: mpsc::Sender<Told>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, QUEUE_MAX).await > 0 {
        let (mut sessions, mut rows, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for implied in waiting.drain(..) {
            sessions.extend(implied.sessions);
            rows.extend(implied.rows);
            answers.extend(implied.answers);
        }
        let applied = apply(&shared.link, &rows, Turnout::First, Instant::now() + DEADLINE).await;
        if let Err(err) = &applied {
            // Readers find them in the documents, and whoever reads those for the next write writes them first.
            tracing::warn!(error = err as &dyn std::error::Error, rows = rows.len(), "rows are written later");
        }
        answers.into_iter().for_each(|work| work.answer());
        if told.send(Told { sessions, written: applied.is_ok() }).await.is_err() {
            return;
        }
    }
}

/// Whether somebody may have written the rows before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turnout {
    First,
    Again,
}

/// Writes what commits imply. When it returns, a majority of the servers has it.
pub(super) async fn apply(link: &Link, rows: &[Row], turnout: Turnout, deadline: Instant) -> Result<()> {
    let of = |how: How| rows.iter().filter(move |row| row.how == how);
    let spent = async {
        // A day is added to before the row of what was spent is there: whoever finds that one knows that it was.
        usage::add_days(link, of(How::Add), turnout, deadline).await?;
        put(link, Table::Usage, rows, deadline).await
    };
    let logs = async {
        put(link, Table::TurnChunks, rows, deadline).await?;
        let logs: Result<Vec<_>> =
            of(How::DropLog).map(|row| values::row::<DropLog>(&row.row).map(|log| log.turn)).collect();
        erase::logs(link, &logs?, deadline).await
    };
    let others = try_join_all([Table::Entries, Table::Turns].map(|table| put(link, table, rows, deadline)));
    try_join3(spent, logs, others).await?;
    for row in of(How::DropSession) {
        erase::session(link, &values::row(&row.row)?, deadline).await?;
    }
    Ok(())
}

/// Most statements, and most bytes, of one command (MongoDB takes 100 000 and 48 MB).
const STATEMENTS_MAX: usize = 1000;
const COMMAND_BYTES_MAX: usize = 16 << 20;

/// Writes the rows of a table. What is there already keeps its place, unless it is older.
async fn put(link: &Link, table: Table, rows: &[Row], deadline: Instant) -> Result<()> {
    let ours = rows.iter().filter(|row| row.table == table && matches!(row.how, How::Insert | How::Put));
    let mut ours: Vec<_> = ours.collect();
    while !ours.is_empty() {
        let mut bytes = 0;
        let fits = |row: &&&Row| {
            bytes += row.bytes();
            bytes <= COMMAND_BYTES_MAX
        };
        let count = ours.iter().take(STATEMENTS_MAX).take_while(fits).count().max(1);
        let rest = ours.split_off(count);
        let documents: RawArrayBuf = ours.iter().map(|row| row.row.clone()).collect();
        let written = link.write(link::insert(table, documents), deadline).await.and_then(Written::unless_duplicate)?;
        let refused = written.failed.iter().filter_map(|(at, _duplicate)| ours.get(*at));
        let older: Result<Vec<_>> = refused.filter(|row| row.how == How::Put).map(|row| in_place(&row.row)).collect();
        let older = older?;
        if !older.is_empty() {
            let command = link::update(table, older.into_iter().collect());
            link.write(command, deadline).await.and_then(Written::unless_duplicate)?;
        }
        ours = rest;
    }
    Ok(())
}

/// Takes the place of an older row; a newer one, or this one, keeps it.
fn in_place(row: &RawDocumentBuf) -> Result<RawDocumentBuf> {
    let id = row.get_binary(cstr!("_id")).map_err(failed)?;
    let id = Binary { subtype: id.subtype, bytes: id.bytes.to_vec() };
    let v = row.get_i64(cstr!("v")).map_err(failed)?;
    Ok(rawdoc! { "q": { "_id": id, "v": { "$lt": v } }, "u": row.clone() })
}
