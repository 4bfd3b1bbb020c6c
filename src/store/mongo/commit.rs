//! The commit of a batch: one command that compares and sets the documents of all its sessions.

use std::collections::HashMap;

use mongodb::bson::{RawArrayBuf, doc, rawdoc};
use tokio::time::Instant;

use super::{
    super::{Error, Result},
    beside::Implied,
    lane::{Decided, Lane},
    link::{self, Attempt, DUPLICATE, Find, Pause, Table},
    rows::{Due, Row},
    values,
    work::Work,
};
use crate::chat::SessionId;

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
    /// Compares and sets, and answers those who won; gives what their commits imply.
    pub(super) async fn commit(
        &mut self,
        decided: Vec<Decided>,
        again: &mut Vec<Box<dyn Work>>,
        deadline: Instant,
    ) -> Option<Implied> {
        if decided.is_empty() {
            return None;
        }
        let fates = match self.compare_and_set(&decided, deadline).await {
            Ok(fates) => fates,
            Err(err) => {
                for made in decided {
                    self.heads.pop(&made.group.id);
                    made.group.works.into_iter().for_each(|work| work.fail(&err));
                }
                return None;
            }
        };
        let mut implied = Implied { sessions: Vec::new(), rows: Vec::new(), answers: Vec::new() };
        let mut writes = 0_u32;
        for (made, fate) in decided.into_iter().zip(fates) {
            match fate {
                Fate::Won => {
                    writes += u32::try_from(made.group.works.len()).unwrap_or(u32::MAX);
                    // Readers of entries and logs look into the document too, and need not wait for those rows.
                    if made.head.redo.iter().filter(|row| row.due == Due::Now).all(Row::read_from_its_document) {
                        made.group.works.into_iter().for_each(|work| work.answer());
                    } else {
                        implied.answers.extend(made.group.works);
                    }
                    let commit = (made.head.id, made.head.v);
                    let due = self.won(made.head);
                    if !due.is_empty() {
                        implied.sessions.push(commit);
                        implied.rows.extend(due);
                    }
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
        Some(implied).filter(|implied| !implied.rows.is_empty())
    }

    /// Sends one command for all, and finds out who won when it does not say so.
    async fn compare_and_set(&self, decided: &[Decided], deadline: Instant) -> Result<Vec<Fate>> {
        let mut statements = Vec::with_capacity(decided.len());
        for Decided { head, .. } in decided {
            let before = i64::try_from(head.v - 1).unwrap_or(i64::MAX);
            let filter = rawdoc! { "_id": values::id(head.id.0), "v": before };
            // Without it the server looks at every index for each statement.
            let hint = rawdoc! { "_id": 1 };
            statements.push(rawdoc! { "q": filter, "u": values::document(head)?, "hint": hint });
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
