//! The messages of one user, and what the server has said of them; and the judgement of a whole log.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    held::{Entry, Fault},
    plan::Answer,
};

#[derive(Debug, Default)]
pub(crate) struct Outbox(Vec<Message>);

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) content: String,
    /// its place and its turn
    pub(crate) accepted: Option<(u64, String)>,
    /// some answer said that it is no duplicate
    applied: bool,
}

impl Outbox {
    pub(crate) fn add(&mut self, answer: &Answer) -> Message {
        let message = Message { id: crate::harness::id(), content: answer.content(), accepted: None, applied: false };
        self.0.push(message.clone());
        message
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|message| message.id.as_str())
    }

    pub(crate) fn find(&self, id: &str) -> Option<&Message> {
        self.0.iter().find(|message| message.id == id)
    }

    pub(super) fn pick(&self, pick: usize) -> Option<&Message> {
        self.0.get(pick % self.0.len().max(1))
    }

    pub(crate) fn unanswered(&self) -> Vec<Message> {
        self.0.iter().filter(|message| message.accepted.is_none()).cloned().collect()
    }

    /// The turns that it knows of.
    pub(crate) fn turns(&self) -> Vec<String> {
        self.0.iter().filter_map(|message| message.accepted.as_ref()).map(|(_, turn)| turn.clone()).collect()
    }

    /// Notes an `accepted`, and returns the message's text.
    pub(crate) fn accepted(&mut self, id: &str, seq: u64, turn: &str, duplicate: bool) -> Result<String, Fault> {
        let Some(message) = self.0.iter_mut().find(|message| message.id == id) else {
            return Err(format!("{id} was never sent"));
        };
        let now = (seq, turn.to_owned());
        if let Some(before) = message.accepted.replace(now.clone())
            && before != now
        {
            return Err(format!("message {id} was accepted as {before:?} and as {now:?}"));
        }
        if !duplicate && std::mem::replace(&mut message.applied, true) {
            return Err(format!("message {id} was applied twice"));
        }
        Ok(message.content.clone())
    }

    /// Judges a whole log: places without gaps, each acknowledged message once and where it was said to be, every
    /// reply the answer to its message, as far as its state promises.
    pub(crate) fn judge(&self, log: &BTreeMap<u64, Entry>, restarted: bool) -> Result<(), Fault> {
        if let Some((expected, got)) = (1..).zip(log.keys()).find(|(expected, got)| expected != *got) {
            return Err(format!("entry {got} follows entry {}", expected - 1));
        }
        let mut found = HashSet::new();
        let mut ended = HashSet::new();
        let mut answered = HashMap::new();
        for (seq, entry) in log {
            match entry {
                Entry::Message { id, content, turn } => {
                    let Some(message) = self.0.iter().find(|message| message.id == *id) else {
                        return Err(format!("nobody sent entry {seq}: {entry:?}"));
                    };
                    if message.accepted.as_ref().is_some_and(|accepted| *accepted != (*seq, turn.clone())) {
                        return Err(format!("entry {seq} was acknowledged as {:?}: {entry:?}", message.accepted));
                    }
                    if message.content != *content {
                        return Err(format!("entry {seq} was sent as {}: {entry:?}", message.content));
                    }
                    if !found.insert(id) {
                        return Err(format!("message {id} is in the log twice"));
                    }
                    answered.insert(*seq, (content, 0));
                }
                Entry::Reply { turn, reply_to, state, text } => {
                    if !ended.insert(turn) {
                        return Err(format!("a second end of its turn is entry {seq}: {entry:?}"));
                    }
                    let Some((content, replies)) = answered.get_mut(reply_to) else {
                        return Err(format!("entry {seq} answers what is no message before it: {entry:?}"));
                    };
                    *replies += 1;
                    let answer = Answer::of(content).ok_or_else(|| format!("no message of ours: {content}"))?;
                    if state == "interrupted" && !restarted && !answer.broken {
                        return Err(format!("entry {seq} is interrupted, and nobody did it: {entry:?}"));
                    }
                    let told = answer.text();
                    let right = if state == "complete" { told == *text } else { told.starts_with(text) };
                    if !right {
                        return Err(format!("entry {seq} is not what the model said, {told:?}: {entry:?}"));
                    }
                }
            }
        }
        let lost = self.0.iter().find(|message| message.accepted.is_some() && !found.contains(&message.id));
        if let Some(lost) = lost {
            return Err(format!("an acknowledged message is lost: {lost:?}"));
        }
        match answered.iter().find(|(_, (_, replies))| *replies == 0) {
            Some((seq, _)) => Err(format!("entry {seq} has no reply")),
            None => Ok(()),
        }
    }
}
