//! The replies of one session, from their first piece to the proof of their text. Knows frames, no connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    event::Reply,
    message::{Progress, Teller},
};
use crate::{
    chat::TurnId,
    protocol::{AiResponse, ErrorBody},
};

/// Finished replies that are remembered, for messages that are answered after them and frames that come twice.
const FINISHED_MAX: usize = 64;

/// Turns of one session that run at a time are one; the rest is what a fault of the server's may make of it.
const TURNS_MAX: usize = 256;

/// What came of a frame.
#[derive(Debug)]
pub(super) enum Outcome {
    /// it was known
    Known,
    /// new text, and how many bytes are before it
    Piece(u64, String),
    /// text before it is missing
    Hole,
    /// the reply has ended; whether its text has the announced length and hash is in it
    Ended(Box<Reply>),
}

/// The replies that run, and the last ones that ended.
#[derive(Debug, Default)]
pub(super) struct Turns {
    running: HashMap<TurnId, Turn>,
    finished: VecDeque<Arc<Reply>>,
}

#[derive(Debug, Default)]
struct Turn {
    text: String,
    model_id: Option<String>,
    error: Option<ErrorBody>,
    tellers: Vec<Teller>,
    /// the last frame has come, and its text is read again
    ended: bool,
}

impl Turns {
    /// Where the running text ends here, as `attach` names it.
    pub(super) fn place(&self) -> Option<(TurnId, u64)> {
        let running = self.running.iter().find(|(_, turn)| !turn.ended && !turn.text.is_empty());
        running.map(|(id, turn)| (*id, turn.text.len() as u64))
    }

    /// What is held of replies that run.
    pub(super) fn texts(&self) -> Vec<(TurnId, String)> {
        let running = self.running.iter().filter(|(_, turn)| !turn.ended && !turn.text.is_empty());
        running.map(|(id, turn)| (*id, turn.text.clone())).collect()
    }

    pub(super) fn any(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether the last frame of a turn has not come.
    pub(super) fn runs(&self, id: TurnId) -> bool {
        self.running.get(&id).is_some_and(|turn| !turn.ended)
    }

    pub(super) fn finished(&self, id: TurnId) -> Option<&Arc<Reply>> {
        self.finished.iter().find(|reply| reply.turn_id == id)
    }

    /// A turn that will be heard of; `false`: it is over already.
    pub(super) fn expect(&mut self, id: TurnId) -> bool {
        if self.finished(id).is_some() {
            return false;
        }
        if self.running.len() < TURNS_MAX {
            self.running.entry(id).or_default();
        }
        true
    }

    /// Has somebody told of a turn, from the beginning of its text on.
    pub(super) fn follow(&mut self, id: TurnId, teller: Teller) {
        if let Some(reply) = self.finished(id) {
            let reply = Arc::clone(reply);
            return teller.send_modify(|progress| finish(progress, &reply));
        }
        self.expect(id);
        if let Some(turn) = self.running.get_mut(&id) {
            teller.send_modify(|progress| progress.text.clone_from(&turn.text));
            turn.tellers.push(teller);
        }
    }

    /// Whether a copy is exactly what comes next; everything else is dropped unseen.
    pub(super) fn wants(&self, frame: &AiResponse) -> bool {
        let Some(turn) = self.running.get(&frame.turn_id).filter(|turn| !turn.ended) else { return false };
        let held = turn.text.len() as u64;
        match &frame.reply {
            Some(reply) => frame.content.is_empty() && reply.length == held,
            None => frame.offset <= held && held < frame.offset + frame.content.len() as u64,
        }
    }

    /// Notes why a turn failed.
    pub(super) fn failed(&mut self, id: TurnId, error: ErrorBody) {
        if let Some(turn) = self.running.get_mut(&id) {
            turn.error = Some(error);
        }
    }

    /// Takes a piece or a last frame.
    pub(super) fn take(&mut self, frame: &AiResponse) -> Outcome {
        if !self.expect(frame.turn_id) {
            return Outcome::Known;
        }
        let Some(turn) = self.running.get_mut(&frame.turn_id).filter(|turn| !turn.ended) else { return Outcome::Known };
        if turn.model_id.is_none() {
            turn.model_id.clone_from(&frame.model_id);
        }
        let before = turn.text.len();
        if !turn.add(frame.offset, &frame.content) {
            return Outcome::Hole;
        }
        let Some(last) = &frame.reply else {
            let fresh = turn.text.get(before..).unwrap_or_default().to_owned();
            return if fresh.is_empty() { Outcome::Known } else { Outcome::Piece(before as u64, fresh) };
        };
        // Text that came after the turn had ended elsewhere is taken back.
        let length = usize::try_from(last.length).unwrap_or(usize::MAX);
        if length < turn.text.len() && turn.text.is_char_boundary(length) {
            turn.text.truncate(length);
        }
        turn.ended = true;
        Outcome::Ended(Box::new(Reply {
            session_id: frame.session_id,
            turn_id: frame.turn_id,
            seq: last.seq,
            reply_to: last.reply_to,
            state: last.state,
            verified: matches(&turn.text, last.length, &last.sha256),
            text: turn.text.clone(),
            sha256: last.sha256.clone(),
            usage: last.usage,
            rating: last.rating,
            model_id: frame.model_id.clone().or_else(|| turn.model_id.clone()),
            segments: last.segments.clone(),
            html: last.html.clone(),
            timestamp: last.timestamp,
            error: turn.error.clone(),
        }))
    }

    /// A reply is whole, and everybody may have it.
    pub(super) fn conclude(&mut self, reply: &Arc<Reply>) {
        if let Some(turn) = self.running.remove(&reply.turn_id) {
            for teller in turn.tellers {
                teller.send_modify(|progress| finish(progress, reply));
            }
        }
        self.finished.push_back(Arc::clone(reply));
        if self.finished.len() > FINISHED_MAX {
            self.finished.pop_front();
        }
    }

    /// Takes over the replies that somebody waits for; gives what is held of their texts.
    pub(super) fn inherit(&mut self, older: Self) -> Vec<(TurnId, String)> {
        let awaited = older.running.into_iter().filter(|(_, turn)| !turn.tellers.is_empty());
        self.running.extend(awaited);
        self.texts()
    }

    /// Nothing more will be heard of them.
    pub(super) fn abandon(&mut self, err: &super::Error) {
        for teller in self.running.drain().flat_map(|(_, turn)| turn.tellers) {
            teller.send_modify(|progress| progress.end = Some(Err(err.clone())));
        }
    }
}

impl Turn {
    /// Adds what is not held, by bytes; `false`: text before it is missing.
    fn add(&mut self, offset: u64, content: &str) -> bool {
        let held = self.text.len() as u64;
        let Some(known) = held.checked_sub(offset).and_then(|known| usize::try_from(known).ok()) else { return false };
        let Some(fresh) = content.get(known..).filter(|fresh| !fresh.is_empty()) else { return true };
        self.text.push_str(fresh);
        for teller in &self.tellers {
            teller.send_modify(|progress| progress.text.push_str(fresh));
        }
        true
    }
}

fn finish(progress: &mut Progress, reply: &Arc<Reply>) {
    // The rest of it, or what is left when the server took text back: a slow reader is not given that.
    if reply.text.starts_with(&progress.text) || progress.text.starts_with(&reply.text) {
        progress.text.clone_from(&reply.text);
    }
    progress.end = Some(Ok(Some(Arc::clone(reply))));
}

/// Whether a text has the length and the hash that were announced.
pub(super) fn matches(text: &str, length: u64, sha256: &str) -> bool {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    text.len() as u64 == length && hex::encode(digest) == sha256
}
