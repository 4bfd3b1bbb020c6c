//! The lanes: where writes of sessions wait, are decided together, and are committed.
//!
//! A lane takes what is queued, reads the documents that it does not know, decides in memory, and sends one command
//! that compares and sets all of them. While it waits for the servers, the next batch fills by itself, and the rows that
//! earlier batches imply are written. Sessions are spread over the lanes by their ids, so that the writes of one session
//! meet on a node before they meet on a server.

use std::{collections::HashSet, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use lru::LruCache;
use mongodb::bson::{RawArrayBuf, doc, rawdoc};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    super::{Error, Result, seal::Seal},
    beside::{self, Implied, QUEUE_MAX, TOLD_MAX, Told, Turnout},
    clock::Clock,
    group::{Group, grouped},
    head::Head,
    link::{self, Attempt, Find, Link, Table},
    log,
    requests::{self, Request, Standing},
    rows::{self, Due, Row},
    values,
    work::{Draft, Step, Work},
};
use crate::{chat::SessionId, metrics::Metrics};

/// Writes that share one commit at most.
const BATCH_MAX: usize = 512;
/// Session documents that a lane remembers.
const HEADS_KEPT: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Bytes that a document may carry before one session's further writes wait for the next commit (it has at most 16 MiB).
const REDO_BYTES_MAX: usize = 4 << 20;
/// The same of rows that are on their way: above that, further writes wait for them.
const SENT_BYTES_MAX: usize = 1 << 20;
/// What is written stays in documents so long, at least: the next commit of a busy session takes it out for nothing.
const IDLE: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(3600);
/// Requests whose names were taken before that are looked at at the same time.
const SETTLED_AT_ONCE: usize = 16;
/// Sessions that may have written rows in their documents on one node before they are looked at under load.
const UNSETTLED_MAX: usize = 1024;

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
    pub(super) shared: Arc<Shared>,
    queue: mpsc::Receiver<Box<dyn Work>>,
    /// what became of rows
    told: mpsc::Receiver<Told>,
    pub(super) heads: LruCache<SessionId, Known>,
    /// sessions whose documents may still have `redo`
    unsettled: HashSet<SessionId>,
    cleared: Instant,
}

/// A session document as this lane last saw it, with what it implies that is not known to be written.
pub(super) struct Known {
    head: Head,
    /// `redo` of that version is still in the database, since then
    redo_since: Option<Instant>,
}

/// A group whose decision is made, and is to be committed.
pub(super) struct Decided {
    pub(super) group: Group,
    /// as it will be
    pub(super) head: Head,
    pub(super) commit: i64,
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

impl Lane {
    /// Works until nobody can queue anything any more and all is done.
    pub(super) async fn run(shared: Arc<Shared>, queue: mpsc::Receiver<Box<dyn Work>>) {
        let ((beside, rows), (tell, told)) = (mpsc::channel(QUEUE_MAX), mpsc::channel(TOLD_MAX));
        let writing = beside::write(Arc::clone(&shared), rows, tell);
        let heads = LruCache::new(HEADS_KEPT);
        let lane = Self { shared, queue, told, heads, unsettled: HashSet::new(), cleared: Instant::now() };
        tokio::join!(lane.work(beside), writing);
    }

    async fn work(mut self, beside: mpsc::Sender<Implied>) {
        let mut works = Vec::new();
        loop {
            while let Ok(told) = self.told.try_recv() {
                self.hear(told);
            }
            if works.is_empty() {
                let idle = if self.unsettled.is_empty() { FOREVER } else { IDLE };
                tokio::select! {
                    biased;
                    Some(told) = self.told.recv() => {
                        self.hear(told);
                        continue;
                    }
                    taken = timeout(idle, self.queue.recv_many(&mut works, BATCH_MAX)) => match taken {
                        Ok(0) => break,
                        Ok(_taken) => {}
                        Err(_elapsed) => self.clear().await,
                    },
                }
            } else {
                // What has to be tried again meets what came meanwhile.
                while works.len() < BATCH_MAX
                    && let Ok(work) = self.queue.try_recv()
                {
                    works.push(work);
                }
            }
            works = self.batch(works, &beside).await;
            if self.unsettled.len() > UNSETTLED_MAX && self.cleared.elapsed() >= IDLE {
                self.clear().await;
            }
        }
        drop(beside);
        while let Some(told) = self.told.recv().await {
            self.hear(told);
        }
        self.clear().await;
    }

    /// Takes note of what became of rows.
    fn hear(&mut self, Told { sessions, written }: Told) {
        for (id, v) in sessions {
            if !written {
                // Whoever reads the document for the next write writes them first.
                self.heads.pop(&id);
            } else if let Some(known) = self.heads.peek_mut(&id) {
                known.head.redo.retain(|row| !matches!(row.due, Due::Sent(with) if with <= v));
            }
        }
    }

    /// Does a batch; gives the writes that have to be tried again.
    async fn batch(&mut self, works: Vec<Box<dyn Work>>, beside: &mpsc::Sender<Implied>) -> Vec<Box<dyn Work>> {
        let (mut groups, mut again) = grouped(works);
        let Some(deadline) = groups.iter().flat_map(|group| &group.works).map(|work| work.deadline()).max() else {
            return again;
        };
        self.make_room(&groups).await;
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
        if let Some(implied) = self.commit(decided, &mut again, deadline).await
            && beside.send(implied).await.is_err()
        {
            tracing::error!("rows of commits are not written");
        }
        again
    }

    /// Waits until not too much of what the documents carry is still on its way.
    async fn make_room(&mut self, groups: &[Group]) {
        let sent = |known: &Known| {
            let rows = known.head.redo.iter().filter(|row| matches!(row.due, Due::Sent(_)));
            rows.map(Row::bytes).sum::<usize>()
        };
        while groups.iter().filter_map(|group| self.heads.peek(&group.id)).any(|known| sent(known) > SENT_BYTES_MAX) {
            match self.told.recv().await {
                Some(told) => self.hear(told),
                None => return,
            }
        }
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
        let found = self.shared.link.find(Table::Sessions, &find, deadline).await?;
        let heads = found.iter().map(Head::read).collect::<Result<Vec<_>>>()?;
        // All at once: where nodes write the same sessions, whoever is slow to come back loses again.
        let redo: Vec<_> = heads.iter().flat_map(|head| &head.redo).cloned().collect();
        beside::apply(&self.shared.link, &redo, Turnout::Again, deadline).await?;
        for mut head in heads {
            let redo_since = (!head.redo.is_empty()).then(Instant::now);
            head.redo.clear();
            self.unsettled.extend(redo_since.map(|_since| head.id));
            self.heads.put(head.id, Known { head, redo_since });
        }
        Ok(())
    }

    /// Takes the names of requests, so that each makes one entry, and answers those that have made theirs before.
    /// The documents are read before: whoever takes a name over afterwards changes the document of its former holder.
    async fn reserve(&self, groups: &mut [Group], again: &mut Vec<Box<dyn Work>>, deadline: Instant) {
        let (mut rows, mut places, mut taken) = (RawArrayBuf::new(), Vec::new(), Vec::new());
        for (nth, group) in groups.iter_mut().enumerate() {
            for (at, work) in group.works.iter_mut().enumerate() {
                let Some(request) = work.request_mut() else { continue };
                if std::mem::replace(&mut request.reserved, true) {
                    taken.push((nth, at));
                } else {
                    rows.push(request.row());
                    places.push((nth, at));
                }
            }
        }
        if !places.is_empty() {
            match requests::reserve(&self.shared.link, rows, deadline).await {
                Ok(refused) => taken.extend(refused.into_iter().filter_map(|at| places.get(at).copied())),
                Err(err) => {
                    groups.iter_mut().for_each(|group| group.works.drain(..).for_each(|work| work.fail(&err)));
                    return;
                }
            }
        }
        taken.sort_unstable();
        let asked = taken.iter().filter_map(|(nth, at)| {
            let mut request = groups.get(*nth)?.works.get(*at)?.request()?.clone();
            Some(async move { (requests::settle(&self.shared, &mut request, deadline).await, request) })
        });
        let asked: Vec<_> = asked.collect();
        let standings: Vec<_> = stream::iter(asked).buffered(SETTLED_AT_ONCE).collect().await;
        // From the back, so that places stay what they are.
        for ((nth, at), (standing, settled)) in taken.into_iter().zip(standings).rev() {
            let Some(group) = groups.get_mut(nth) else { continue };
            match standing {
                Ok(Standing::Made(entry, rev)) => group.works.remove(at).made(*entry, rev),
                Err(err) => group.works.remove(at).fail(&err),
                Ok(Standing::Held | Standing::Waits) => {
                    let request = group.works.get_mut(at).and_then(|work| work.request_mut());
                    request.into_iter().for_each(|request| request.clone_from(&settled));
                    if matches!(standing, Ok(Standing::Waits)) {
                        again.push(group.works.remove(at));
                    }
                }
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
        // What the document implies already, and then what these writes add to it.
        let mut rows = std::mem::take(&mut head.redo);
        let (mut any, mut all, now) = (false, true, self.shared.clock.now());
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
                    if draft.settles {
                        rows.iter_mut().for_each(Row::settle);
                    }
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
        rows::carry(&mut rows);
        head.finish(rows, commit, now);
        Decision::Commit(Box::new(Decided { group, head, commit }))
    }

    /// One write's decision.
    async fn step(&self, work: &mut Box<dyn Work>, head: &Head, rows: &[Row], now: i64) -> Result<Stepped> {
        let draft = |log| Box::new(Draft { head: head.clone(), rows: Vec::new(), now, log, settles: false });
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

    /// A commit was won: keeps the document, and gives the rows that are to be written now.
    pub(super) fn won(&mut self, mut head: Head) -> Vec<Row> {
        let mut due = Vec::new();
        for row in head.redo.iter_mut().filter(|row| row.due == Due::Now) {
            row.due = Due::Sent(head.v);
            due.push(row.clone());
        }
        let redo_since = head.found.redo_at.map(|_at| Instant::now());
        self.unsettled.extend(redo_since.map(|_since| head.id));
        self.heads.put(head.id, Known { head, redo_since });
        due
    }

    /// Takes out of documents what is written, so that they are small, and that nobody writes it again.
    async fn clear(&mut self) {
        self.cleared = Instant::now();
        let mut statements = RawArrayBuf::new();
        let mut any = false;
        for id in std::mem::take(&mut self.unsettled) {
            let Some(known) = self.heads.peek_mut(&id) else { continue };
            match known.redo_since {
                Some(since) if since.elapsed() >= IDLE && known.head.redo.is_empty() => {
                    known.redo_since = None;
                    any = true;
                    let v = i64::try_from(known.head.v).unwrap_or(i64::MAX);
                    let unset = rawdoc! { "$unset": { "redo": "", "redo_at": "" } };
                    statements.push(rawdoc! { "q": { "_id": values::id(id.0), "v": v }, "u": unset });
                }
                Some(_recently) => drop(self.unsettled.insert(id)),
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
