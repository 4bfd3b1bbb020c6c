//! The session document: the head of a log, and the only place where anything is decided.
//!
//! It holds what every write needs to know of its session, so that one compare-and-set of its version is the commit.
//! What a commit implies beside it rides along as `redo` until it is known to be written.

use mongodb::bson::RawDocumentBuf;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    super::{Error, Result, Share, seal::Seal},
    rows::Row,
    values::{self, Sealed},
};
use crate::chat::{
    Assist, Counters, EntryId, NodeId, RequestId, Session, SessionId, SessionState, Timestamp, Turn, TurnId, TurnState,
    UserId,
};

const QUARTER_MS: i64 = 15 * 60 * 1000;

/// The quarter of an hour that a moment is in.
pub(super) const fn quarter(at: i64) -> i64 {
    at.div_euclid(QUARTER_MS)
}

const MINUTE_MS: i64 = 60 * 1000;

/// Commits that are remembered, so that one whose answer was lost is recognised.
const COMMITS_KEPT: usize = 16;

/// One session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    #[serde(rename = "_id")]
    pub(super) id: SessionId,
    /// raised by every write of this document
    pub(super) v: u64,
    pub(super) user_id: UserId,
    /// taken while the session is active: a unique index bounds active sessions
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) active_slot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name_by: Option<NamedBy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    pub(super) state: SessionState,
    pub(super) rev: u64,
    pub(super) last_seq: u64,
    pub(super) created_at: i64,
    pub(super) last_activity: i64,
    /// of the latest activity, in whole quarters of an hour: an index of it seldom changes
    pub(super) quarter: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended_at: Option<i64>,
    /// the log has an entry
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) filled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) help: Option<Help>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) assist: Option<AssistRow>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) admin_assisted: bool,
    pub(super) counters: CounterRow,
    /// the turns that have not ended: the one that runs, then those that wait, in the order of the queue
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) open: Vec<OpenTurn>,
    /// the newest turn of the last message that has one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<LastTurn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) shares: Vec<ShareRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) threads: Vec<ThreadRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) commits: Vec<i64>,
    /// what the last commit implies
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) redo: Vec<Row>,
    #[serde(flatten)]
    pub(super) found: Found,
    /// when it was deleted: what is left keeps late writers from bringing it back
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gone_at: Option<i64>,
}

/// What the document is found by, beside its user: made from the rest of it before each write.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// the turns that have not ended, or that `redo` has
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) turns: Vec<TurnId>,
    /// the running turn is somebody's until then, if not longer: an index of it changes with few renewals
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lease_until: Option<i64>,
    /// since when turns wait and none runs
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waits_since: Option<i64>,
    /// the minute in which `redo` was committed: an index of it seldom changes in a busy session
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) redo_at: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NamedBy {
    User,
    Model,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Help {
    pub(super) requested_at: i64,
    pub(super) by: UserId,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AssistRow {
    pub(super) admin_id: UserId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Sealed>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct CounterRow {
    pub(super) entries: u64,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) responses: u64,
    pub(super) response_ms_sum: u64,
    pub(super) response_ms_max: u64,
}

/// A turn that has not ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OpenTurn {
    pub(super) id: TurnId,
    pub(super) message_seq: u64,
    /// who wrote the message
    pub(super) user_id: UserId,
    pub(super) created_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) running: Option<Running>,
}

/// What a turn has once it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) node: NodeId,
    pub(super) lease_until: i64,
    pub(super) reply_seq: u64,
    pub(super) reply_id: EntryId,
    /// the request that asks for another reply
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_id: Option<RequestId>,
    pub(super) model_id: String,
    pub(super) started_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first_token_at: Option<i64>,
    /// UTF-8 bytes of its log
    pub(super) length: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct LastTurn {
    pub(super) message_seq: u64,
    pub(super) reply_seq: u64,
    pub(super) id: TurnId,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ShareRow {
    pub(super) id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Sealed>,
    pub(super) last_seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) running_seq: Option<u64>,
    pub(super) created_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<i64>,
}

impl ShareRow {
    pub(super) fn lasts(&self, now: i64) -> bool {
        self.expires_at.is_none_or(|expires_at| expires_at > now)
    }

    pub(super) fn open(&self, session_id: SessionId, seal: &Seal) -> Result<Share> {
        Ok(Share {
            id: self.id,
            session_id,
            name: values::open_text(seal, values::share_place(&self.id), self.name.as_ref())?,
            last_seq: self.last_seq,
            running_seq: self.running_seq,
            created_at: Timestamp(self.created_at),
            expires_at: self.expires_at.map(Timestamp),
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ThreadRow {
    pub(super) model_id: String,
    pub(super) reference: Sealed,
    pub(super) reply_seq: u64,
}

/// The moment that a lease is found by: an earlier one, as long as half of the time until the lease's end is left.
const fn found_by(lease_until: i64, known: Option<i64>, now: i64) -> i64 {
    match known {
        Some(known) if known <= lease_until && known - now >= (lease_until - now) / 2 => known,
        _ => lease_until,
    }
}

impl OpenTurn {
    pub(super) fn turn(&self, session_id: SessionId) -> Turn {
        let running = self.running.as_ref();
        Turn {
            id: self.id,
            session_id,
            message_seq: self.message_seq,
            reply_seq: running.map(|running| running.reply_seq),
            state: if running.is_some() { TurnState::Running } else { TurnState::Queued },
            node: running.map(|running| running.node),
            model_id: running.map(|running| running.model_id.clone()),
        }
    }
}

impl Head {
    /// A session that was just made, active.
    pub(super) fn new(id: SessionId, user_id: UserId, slot: u32, now: i64) -> Self {
        Self {
            id,
            v: 1,
            user_id,
            active_slot: Some(slot),
            name: None,
            name_by: None,
            model_id: None,
            state: SessionState::Active,
            rev: 1,
            last_seq: 0,
            created_at: now,
            last_activity: now,
            quarter: quarter(now),
            ended_at: None,
            filled: false,
            help: None,
            assist: None,
            admin_assisted: false,
            counters: CounterRow::default(),
            open: Vec::new(),
            last: None,
            shares: Vec::new(),
            threads: Vec::new(),
            commits: Vec::new(),
            redo: Vec::new(),
            found: Found::default(),
            gone_at: None,
        }
    }

    pub(super) fn read(document: &RawDocumentBuf) -> Result<Self> {
        values::row(document)
    }

    pub(super) fn active(&self) -> bool {
        self.state == SessionState::Active
    }

    pub(super) fn running(&self) -> Option<(&OpenTurn, &Running)> {
        self.open.iter().find_map(|open| Some((open, open.running.as_ref()?)))
    }

    pub(super) fn open_turns(&self) -> Vec<Turn> {
        self.open.iter().map(|open| open.turn(self.id)).collect()
    }

    /// The log has grown, or the session is active again.
    pub(super) fn active_at(&mut self, now: i64) {
        self.last_activity = self.last_activity.max(now);
        self.quarter = self.quarter.max(quarter(now));
    }

    pub(super) fn end(&mut self, now: i64) {
        (self.state, self.active_slot, self.ended_at) = (SessionState::Ended, None, Some(now));
        self.rev += 1;
    }

    /// The last word before it is written as version `v`, by the commit of this name.
    pub(super) fn finish(&mut self, redo: Vec<Row>, commit: i64, now: i64) {
        self.v += 1;
        self.commits.push(commit);
        let surplus = self.commits.len().saturating_sub(COMMITS_KEPT);
        self.commits.drain(..surplus);
        let ended = redo.iter().filter(|row| row.table == super::link::Table::Turns);
        let ended = ended.filter_map(|row| values::row::<super::rows::TurnRow>(&row.row).ok()).map(|turn| turn.id);
        let turns = self.open.iter().map(|open| open.id).chain(ended).collect();
        let found = self.found.lease_until;
        let runs = self.running().map(|(_open, running)| found_by(running.lease_until, found, now));
        let waits = runs.is_none() && !self.open.is_empty();
        self.found = Found {
            turns,
            lease_until: runs,
            waits_since: waits.then(|| self.found.waits_since.unwrap_or(now)),
            redo_at: (!redo.is_empty()).then_some(now - now.rem_euclid(MINUTE_MS)),
        };
        self.redo = redo;
    }

    /// The session as everybody else knows it.
    pub(super) fn session(&self, seal: &Seal) -> Result<Session> {
        let place = |field| values::session_place(&self.id, field);
        let CounterRow { entries, prompt_tokens, completion_tokens, responses, response_ms_sum, response_ms_max } =
            self.counters;
        let assist = self.assist.as_ref().map(|assist| {
            let name = values::open_text(seal, place("assist_name"), assist.name.as_ref())?.unwrap_or_default();
            Ok::<_, Error>(Assist { admin_id: assist.admin_id.clone(), name })
        });
        Ok(Session {
            id: self.id,
            user_id: self.user_id.clone(),
            name: values::open_text(seal, place("name"), self.name.as_ref())?,
            model_id: self.model_id.clone(),
            state: self.state,
            rev: self.rev,
            last_seq: self.last_seq,
            created_at: Timestamp(self.created_at),
            last_activity: Timestamp(self.last_activity),
            ended_at: self.ended_at.map(Timestamp),
            help_requested: self.help.is_some(),
            assist: assist.transpose()?,
            admin_assisted: self.admin_assisted,
            counters: Counters {
                entries,
                prompt_tokens,
                completion_tokens,
                responses,
                response_ms_sum,
                response_ms_max,
            },
        })
    }
}
