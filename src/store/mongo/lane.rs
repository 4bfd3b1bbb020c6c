//! The lanes: where writes of sessions wait, are decided together, and are committed.
//!
//! A lane takes what is queued, reads the documents that it does not know, decides in memory, and sends one command
//! that compares and sets all of them. While it waits for the servers, the next batch fills by itself. Sessions are
//! spread over the lanes by their ids, so that the writes of one session meet on a node before they meet on a server.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, time::Duration};

use lru::LruCache;
use mongodb::bson::{RawArrayBuf, doc, rawdoc};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    super::{Error, Result, seal::Seal},
    clock::Clock,
    group::{Group, grouped},
    head::Head,
    link::{self, Attempt, DUPLICATE, Find, Link, Pause, Table},
    log,
    requests::{self, Request, Standing},
    rows::{self, Row, Turnout},
    values,
    work::{Draft, Step, Work},
};
use crate::{chat::SessionId, metrics::Metrics};

/// Writes that share one commit at most.
const BATCH_MAX: usize = 512;
/// Session documents that a lane remembers.
const HEADS_KEPT: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Bytes that one session's writes may add to its document in one commit (a document has at most 16 MiB).
const REDO_BYTES_MAX: usize = 4 << 20;
/// How long the rows of a commit are tried to be written. Nobody waits for them.
const ROWS_DEADLINE: Duration = Duration::from_secs(10);
/// What is written stays in documents so long, at least: the next commit of a busy session takes it out for nothing.
const IDLE: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(3600);
/// Sessions that may have written rows in their documents on one node before they are looked at under load.
const UNSETTLED_MAX: usize = 4096;

/// What all lanes share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) link: Link,
    pub(super) seal: Seal,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
}

/// One lane.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Box<dyn Work>>,
    heads: LruCache<SessionId, Known>,
    /// sessions whose documents may still have `redo`
    unsettled: Vec<SessionId>,
}

/// A session document as this lane last saw it. What it implies is written.
struct Known {
    head: Head,
    /// `redo` of that version is still in the database, since then
    redo_since: Option<Instant>,
}

/// A group whose decision is made, and is to be committed.
struct Decided {
    group: Group,
    /// as it will be
    head: Head,
    commit: i64,
}

/// What one write of a group comes to.
enum Stepped {
    Kept(Box<Draft>),
    Same,
    /// what it needs is gone: the document is older than that
    Moved,
}

enum Decision {
    Commit(Box<Decided>),
    /// an answer hangs on a document that may be old
    Stale(Group),
    Answered,
}

/// What became of a compare-and-set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Won,
    Lost,
    /// the slot that it wants is taken
    Refused,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Box<dyn Work>>) -> Self {
        Self { shared, queue, heads: LruCache::new(HEADS_KEPT), unsettled: Vec::new() }
    }

    /// Works until nobody can queue anything any more and all is done.
    pub(super) async fn run(mut self) {
        let mut works = Vec::new();
        loop {
            if works.is_empty() {
                let idle = if self.unsettled.is_empty() { FOREVER } else { IDLE };
                match timeout(idle, self.queue.recv_many(&mut works, BATCH_MAX)).await {
                    Ok(0) => break,
                    Ok(_taken) => {}
                    Err(_elapsed) => self.clear().await,
                }
            } else {
                // What has to be tried again meets what came meanwhile.
                while works.len() < BATCH_MAX
                    && let Ok(work) = self.queue.try_recv()
                {
                    works.push(work);
                }
            }
            works = self.batch(works).await;
            if self.unsettled.len() > UNSETTLED_MAX {
                self.clear().await;
            }
        }
        self.clear().await;
    }

    /// Does a batch; gives the writes that have to be tried again.
    async fn batch(&mut self, works: Vec<Box<dyn Work>>) -> Vec<Box<dyn Work>> {
        let (mut groups, mut again) = grouped(works);
        let Some(deadline) = groups.iter().flat_map(|group| &group.works).map(|work| work.deadline()).max() else {
            return again;
        };
        if let Err(err) = self.load(&mut groups, deadline).await {
            groups.into_iter().flat_map(|group| group.works).for_each(|work| work.fail(&err));
            return again;
        }
        self.reserve(&mut groups, &mut again, deadline).await;
        let mut decided = Vec::new();
        for group in groups {
            match self.decide(group, &mut again).await {
                Decision::Commit(made) => decided.push(*made),
                Decision::Stale(group) => {
                    self.heads.pop(&group.id);
                    again.extend(group.works);
                }
                Decision::Answered => {}
            }
        }
        self.commit(decided, &mut again, deadline).await;
        again
    }

    /// Reads the documents that are not known, and writes what they imply: nobody is known to have.
    async fn load(&mut self, groups: &mut [Group], deadline: Instant) -> Result<()> {
        let mut ids = Vec::new();
        for group in groups.iter_mut().filter(|group| !self.heads.contains(&group.id)) {
            group.fresh = true;
            ids.push(values::id(group.id.0));
        }
        if ids.is_empty() {
            return Ok(());
        }
        let find = Find::of(doc! { "_id": { "$in": ids } });
        for document in self.shared.link.find(Table::Sessions, &find, deadline).await? {
            let mut head = Head::read(&document)?;
            let redo_since = (!head.redo.is_empty()).then(Instant::now);
            rows::apply(&self.shared.link, &head.redo, Turnout::Again, deadline).await?;
            head.redo.clear();
            self.unsettled.extend(redo_since.map(|_since| head.id));
            self.heads.put(head.id, Known { head, redo_since });
        }
        Ok(())
    }

    /// Takes the names of requests, so that each makes one entry, and answers those that have made theirs before.
    /// The documents are read before: whoever takes a name over afterwards changes the document of its former holder.
    async fn reserve(&self, groups: &mut [Group], again: &mut Vec<Box<dyn Work>>, deadline: Instant) {
        let mut rows = RawArrayBuf::new();
        let mut places = Vec::new();
        for (nth, group) in groups.iter().enumerate() {
            for (at, work) in group.works.iter().enumerate() {
                if let Some(request) = work.request() {
                    rows.push(request.row());
                    places.push((nth, at));
                }
            }
        }
        if places.is_empty() {
            return;
        }
        let taken = match requests::reserve(&self.shared.link, rows, deadline).await {
            Ok(taken) => taken,
            Err(err) => {
                groups.iter_mut().for_each(|group| group.works.drain(..).for_each(|work| work.fail(&err)));
                return;
            }
        };
        // From the back, so that places stay what they are.
        for (nth, at) in taken.into_iter().rev().filter_map(|taken| places.get(taken).copied()) {
            let Some(group) = groups.get_mut(nth) else { continue };
            let Some(request) = group.works.get_mut(at).and_then(|work| work.request_mut()) else { continue };
            match requests::settle(&self.shared, request, deadline).await {
                Ok(Standing::Held) => {}
                Ok(Standing::Waits) => again.push(group.works.remove(at)),
                Ok(Standing::Made(entry, rev)) => group.works.remove(at).made(*entry, rev),
                Err(err) => group.works.remove(at).fail(&err),
            }
        }
    }

    /// Decides a group in memory.
    async fn decide(&self, mut group: Group, again: &mut Vec<Box<dyn Work>>) -> Decision {
        let known = self.heads.peek(&group.id).filter(|known| known.head.gone_at.is_none());
        let Some(mut head) = known.map(|known| known.head.clone()) else {
            if !group.fresh {
                return Decision::Stale(group);
            }
            for work in group.works {
                if let Some(request) = work.request().cloned() {
                    self.release(&request).await;
                }
                work.missing();
            }
            return Decision::Answered;
        };
        let (mut rows, mut all, now) = (Vec::new(), true, self.shared.clock.now());
        let mut any = false;
        let mut left = Vec::new();
        for (at, work) in group.works.iter_mut().enumerate() {
            if rows.iter().map(Row::bytes).sum::<usize>() > REDO_BYTES_MAX {
                left.push(at);
                continue;
            }
            match self.step(work, &head, &rows, now).await {
                Ok(Stepped::Kept(draft)) => {
                    any = true;
                    head = draft.head;
                    draft.rows.into_iter().for_each(|row| row.add_to(&mut rows));
                }
                Ok(Stepped::Same) => all = false,
                Ok(Stepped::Moved) => return Decision::Stale(group),
                Err(err) => {
                    all = false;
                    work.refuse(err);
                }
            }
        }
        if !all && !group.fresh {
            return Decision::Stale(group);
        }
        again.extend(left.into_iter().rev().map(|at| group.works.remove(at)));
        let refused = group.works.iter().filter(|work| work.refused());
        let refused: Vec<_> = refused.filter_map(|work| work.request().cloned()).collect();
        for request in &refused {
            self.release(request).await;
        }
        if !any {
            group.works.into_iter().for_each(|work| work.answer());
            return Decision::Answered;
        }
        let (commit, _rest) = Uuid::new_v4().as_u64_pair();
        let commit = commit.cast_signed();
        head.finish(rows, commit, now);
        Decision::Commit(Box::new(Decided { group, head, commit }))
    }

    /// One write's decision.
    async fn step(&self, work: &mut Box<dyn Work>, head: &Head, rows: &[Row], now: i64) -> Result<Stepped> {
        let draft = |log| Box::new(Draft { head: head.clone(), rows: Vec::new(), now, log });
        match work.decide(draft(None), &self.shared.seal)? {
            Step::Keep(draft) => Ok(Stepped::Kept(draft)),
            Step::Same => Ok(Stepped::Same),
            Step::Log(turn) => {
                let length = head.running().map_or(0, |(_open, running)| running.length);
                let text = log::text(&self.shared, turn, 0..length, rows, work.deadline()).await;
                // Another node has ended the turn, and taken its log along.
                let text = match text {
                    Err(Error::Database(_gap)) => return Ok(Stepped::Moved),
                    text => text?,
                };
                match work.decide(draft(Some(text)), &self.shared.seal)? {
                    Step::Keep(draft) => Ok(Stepped::Kept(draft)),
                    Step::Same => Ok(Stepped::Same),
                    Step::Log(_again) => Err(Error::Database("a write asks for a log twice".into())),
                }
            }
        }
    }

    /// Gives a request's name back when it made nothing. Of no consequence when that fails: whoever asks again with
    /// it finds that there is no entry.
    async fn release(&self, request: &Request) {
        requests::release(&self.shared.link, request, Instant::now() + link::ATTEMPT).await;
    }

    /// Compares and sets, answers those who won, and writes what their commits imply.
    async fn commit(&mut self, decided: Vec<Decided>, again: &mut Vec<Box<dyn Work>>, deadline: Instant) {
        if decided.is_empty() {
            return;
        }
        let fates = match self.compare_and_set(&decided, deadline).await {
            Ok(fates) => fates,
            Err(err) => {
                for made in decided {
                    self.heads.pop(&made.group.id);
                    made.group.works.into_iter().for_each(|work| work.fail(&err));
                }
                return;
            }
        };
        let (mut won, mut answers) = (Vec::new(), Vec::new());
        let mut writes = 0_u32;
        for (made, fate) in decided.into_iter().zip(fates) {
            match fate {
                Fate::Won => {
                    writes += u32::try_from(made.group.works.len()).unwrap_or(u32::MAX);
                    // Readers of entries and logs look into the document too, and need not wait for those rows.
                    if made.head.redo.iter().all(Row::read_from_its_document) {
                        made.group.works.into_iter().for_each(|work| work.answer());
                    } else {
                        answers.extend(made.group.works);
                    }
                    won.push(made.head);
                }
                Fate::Refused => {
                    self.heads.pop(&made.group.id);
                    again.extend(made.group.works.into_iter().filter_map(|work| work.without_slot()));
                }
                Fate::Lost | Fate::Open => {
                    self.heads.pop(&made.group.id);
                    again.extend(made.group.works);
                }
            }
        }
        if writes > 0 {
            self.shared.metrics.store_commit_writes.observe(writes.into());
        }
        self.settle(won).await;
        answers.into_iter().for_each(|work| work.answer());
    }

    /// Writes the rows of commits that were won.
    async fn settle(&mut self, won: Vec<Head>) {
        let mut heads = won;
        let rows: Vec<Row> = heads.iter_mut().flat_map(|head| std::mem::take(&mut head.redo)).collect();
        let deadline = Instant::now() + ROWS_DEADLINE;
        let applied = rows::apply(&self.shared.link, &rows, Turnout::First, deadline).await;
        if let Err(err) = &applied {
            // Readers find them in the documents, and whoever reads those for the next write writes them first.
            tracing::warn!(error = err as &dyn std::error::Error, rows = rows.len(), "rows are written later");
        }
        for head in heads {
            if applied.is_err() {
                self.heads.pop(&head.id);
                continue;
            }
            let redo_since = head.found.redo_at.map(|_at| Instant::now());
            self.unsettled.extend(redo_since.map(|_since| head.id));
            self.heads.put(head.id, Known { head, redo_since });
        }
    }

    /// Sends one command for all, and finds out who won when it does not say so.
    async fn compare_and_set(&self, decided: &[Decided], deadline: Instant) -> Result<Vec<Fate>> {
        let mut statements = Vec::with_capacity(decided.len());
        for Decided { head, .. } in decided {
            let before = i64::try_from(head.v - 1).unwrap_or(i64::MAX);
            let filter = rawdoc! { "_id": values::id(head.id.0), "v": before };
            statements.push(rawdoc! { "q": filter, "u": values::document(head)? });
        }
        let mut fates = vec![Fate::Open; decided.len()];
        let mut pause = Pause::new(deadline);
        loop {
            let open: Vec<_> = (0..decided.len()).filter(|at| fates.get(*at) == Some(&Fate::Open)).collect();
            if open.is_empty() {
                return Ok(fates);
            }
            let sent: RawArrayBuf = open.iter().filter_map(|at| statements.get(*at)).collect();
            match self.shared.link.write_once(link::update(Table::Sessions, sent), deadline).await {
                Attempt::Done(written) if written.failed.is_empty() && written.n == open.len() as u64 => {
                    return Ok(fates
                        .into_iter()
                        .map(|fate| if fate == Fate::Open { Fate::Won } else { fate })
                        .collect());
                }
                Attempt::Done(written) => {
                    for (statement, code) in &written.failed {
                        if *code != DUPLICATE {
                            return Err(Error::Database(format!("a commit failed: {code}").into()));
                        }
                        let at = open.get(*statement).and_then(|at| fates.get_mut(*at));
                        at.into_iter().for_each(|fate| *fate = Fate::Refused);
                    }
                    if !self.look(decided, &mut fates, deadline).await? {
                        pause.wait().await?;
                    }
                }
                Attempt::Again => {
                    pause.wait().await?;
                    self.look(decided, &mut fates, deadline).await?;
                }
                Attempt::Failed(err) => return Err(err),
            }
        }
    }

    /// Reads who won; tells whether that is known of all. Where a document has not come so far as it was set to, what
    /// was sent is still on its way, or a new primary does not know yet what a majority has: it is sent once more as
    /// it is, and finds its version or not.
    async fn look(&self, decided: &[Decided], fates: &mut [Fate], deadline: Instant) -> Result<bool> {
        let ids: Vec<_> = decided.iter().map(|made| values::id(made.group.id.0)).collect();
        let find = Find { projection: Some(doc! { "v": 1, "commits": 1 }), ..Find::of(doc! { "_id": { "$in": ids } }) };
        let mut seen: HashMap<SessionId, Seen> = HashMap::new();
        for document in self.shared.link.find(Table::Sessions, &find, deadline).await? {
            let row: Seen = values::row(&document)?;
            seen.insert(row.id, row);
        }
        for (made, fate) in decided.iter().zip(&mut *fates).filter(|(_made, fate)| **fate == Fate::Open) {
            *fate = match seen.get(&made.group.id) {
                Some(seen) if seen.commits.contains(&made.commit) => Fate::Won,
                Some(seen) if seen.v < made.head.v => Fate::Open,
                _ => Fate::Lost,
            };
        }
        Ok(!fates.contains(&Fate::Open))
    }

    /// Takes out of documents what is written, so that they are small, and that nobody writes it again.
    async fn clear(&mut self) {
        let mut statements = RawArrayBuf::new();
        let mut any = false;
        for id in std::mem::take(&mut self.unsettled) {
            let Some(known) = self.heads.peek_mut(&id) else { continue };
            match known.redo_since {
                Some(since) if since.elapsed() >= IDLE => {
                    known.redo_since = None;
                    any = true;
                    let v = i64::try_from(known.head.v).unwrap_or(i64::MAX);
                    let unset = rawdoc! { "$unset": { "redo": "", "redo_at": "" } };
                    statements.push(rawdoc! { "q": { "_id": values::id(id.0), "v": v }, "u": unset });
                }
                Some(_recently) => self.unsettled.push(id),
                None => {}
            }
        }
        if any {
            let command = link::update(Table::Sessions, statements);
            if let Attempt::Failed(err) = self.shared.link.write_once(command, Instant::now() + link::ATTEMPT).await {
                tracing::debug!(error = &err as &dyn std::error::Error, "written rows stay in their documents");
            }
        }
    }
}

/// What tells who won.
#[derive(serde::Deserialize)]
struct Seen {
    #[serde(rename = "_id")]
    id: SessionId,
    v: u64,
    #[serde(default)]
    commits: Vec<i64>,
}
