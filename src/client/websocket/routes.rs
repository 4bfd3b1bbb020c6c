//! Whose frame it is that came over a socket: `re` tells the exchanges apart, `session_id` the watches (the contract,
//! 1.3). Of a frame it reads no more than that takes.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc::{Sender, error::TrySendError};
use uuid::Uuid;

use crate::client::link::Asked;

/// One frame for an exchange.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) frame: Bytes,
    /// nothing follows it
    pub(super) last: bool,
}

/// What a request begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// a watch: its events come until it ends
    Watch(Watched),
    /// a reply: answers until its last frame
    Reply,
    /// one answer
    Single,
    /// one answer, which goes to the watch that the request was sent on
    Inline,
}

/// What a watch is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watched {
    /// a session; which one is known once it is answered
    Session(Option<Uuid>),
    /// the caller's list
    User,
    /// the staff's queue
    Desk,
}

impl Purpose {
    pub(super) fn of(asked: &Asked<'_>) -> Self {
        match &*asked.r#type {
            "attach" => Self::Watch(match asked.scope.as_deref() {
                Some("user") => Watched::User,
                Some("desk") => Watched::Desk,
                _ => Watched::Session(asked.session_id),
            }),
            "user_message" | "regenerate" | "voice_message" => Self::Reply,
            _ => Self::Single,
        }
    }
}

/// What must be known of a frame from the server.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    re: Option<Uuid>,
    session_id: Option<Uuid>,
    turn_id: Option<Uuid>,
    #[serde(default)]
    duplicate: bool,
    /// on the last frame of a reply
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
}

#[derive(Debug)]
struct Waiting {
    purpose: Purpose,
    answers: Sender<Answer>,
}

#[derive(Debug)]
struct Watch {
    watched: Watched,
    answers: Sender<Answer>,
}

/// The exchanges and watches of one socket. How many there are is limited by whoever opens them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    exchanges: HashMap<Uuid, Waiting>,
    watches: Vec<Watch>,
    /// frames for exchanges whose queue is full
    held: VecDeque<(Sender<Answer>, Answer)>,
}

impl Routes {
    /// Notes where the answers of a request go. Exchanges that nobody reads any more are forgotten.
    pub(super) fn expect(&mut self, id: Option<Uuid>, purpose: Purpose, answers: Sender<Answer>) {
        let Some(id) = id else { return };
        if self.exchanges.len() >= super::EXCHANGES_MAX {
            self.exchanges.retain(|_, waiting| !waiting.answers.is_closed());
        }
        self.exchanges.insert(id, Waiting { purpose, answers });
    }

    /// Forgets the watches that nobody reads any more, and says how to end each of them. One that a newer watch may be
    /// about to replace waits for the answer to that: `detach` would end the newer one.
    pub(super) fn left(&mut self) -> Vec<String> {
        let replaced = |watched| {
            let begins = |purpose: &Purpose| match *purpose {
                Purpose::Watch(Watched::Session(None)) => matches!(watched, Watched::Session(_)),
                Purpose::Watch(newer) => newer == watched,
                _ => false,
            };
            self.exchanges.values().any(|waiting| begins(&waiting.purpose))
        };
        let left = self.watches.extract_if(.., |watch| watch.answers.is_closed() && !replaced(watch.watched));
        let detach = left.map(|watch| {
            let id = Uuid::new_v4();
            let detach = match watch.watched {
                Watched::Session(session_id) => json!({"type": "detach", "id": id, "session_id": session_id}),
                Watched::User => json!({"type": "detach", "id": id, "scope": "user"}),
                Watched::Desk => json!({"type": "detach", "id": id, "scope": "desk"}),
            };
            detach.to_string()
        });
        detach.collect()
    }

    /// Whether there is a watch that nobody reads any more.
    pub(super) fn forsaken(&self) -> bool {
        self.watches.iter().any(|watch| watch.answers.is_closed())
    }

    /// Whether a queue is full, so that nothing more may be read.
    pub(super) fn blocked(&self) -> bool {
        !self.held.is_empty()
    }

    /// Waits until the queue that is full has room, and fills it. Cancel safe.
    pub(super) async fn room(&mut self) {
        let Some((answers, _)) = self.held.front() else { return };
        let answers = answers.clone();
        // Nobody waits for the frame when this fails.
        let permit = answers.reserve().await.ok();
        if let (Some((_, answer)), Some(permit)) = (self.held.pop_front(), permit) {
            permit.send(answer);
        }
    }

    /// Hands a frame to whom it belongs. One that belongs to nobody, or that is no frame, is dropped.
    pub(super) fn take(&mut self, frame: &Bytes) {
        let Ok(header) = serde_json::from_slice::<Header<'_>>(frame) else { return };
        let Some(re) = header.re else { return self.publish(&header, frame) };
        if let Some((answers, last)) = self.answered(re, &header) {
            self.hand(answers, frame.clone(), last);
        }
    }

    /// The exchange that a frame answers, and whether it is its last one.
    fn answered(&mut self, re: Uuid, header: &Header<'_>) -> Option<(Sender<Answer>, bool)> {
        let waiting = self.exchanges.get(&re)?;
        let answers = waiting.answers.clone();
        let last = match waiting.purpose {
            Purpose::Watch(watched) if header.r#type == "connection_status" => {
                self.exchanges.remove(&re);
                self.watch(watched, header.session_id, answers.clone());
                return Some((answers, false));
            }
            Purpose::Watch(_) | Purpose::Single => true,
            Purpose::Inline => {
                self.exchanges.remove(&re);
                return Some((answers, false));
            }
            Purpose::Reply => match &*header.r#type {
                "accepted" => header.duplicate || header.turn_id.is_none(),
                "ai_response" => header.state.is_some(),
                // An error with a turn comes just before the last frame.
                "error" => header.turn_id.is_none(),
                _ => false,
            },
        };
        if last {
            self.exchanges.remove(&re);
        }
        Some((answers, last))
    }

    /// A watch has begun. A newer one of the same session replaces the older.
    fn watch(&mut self, watched: Watched, session_id: Option<Uuid>, answers: Sender<Answer>) {
        let watched = if matches!(watched, Watched::Session(_)) { Watched::Session(session_id) } else { watched };
        self.watches.retain(|watch| watch.watched != watched);
        self.watches.push(Watch { watched, answers });
    }

    /// Hands on what answers no exchange.
    fn publish(&mut self, header: &Header<'_>, frame: &Bytes) {
        let session = Watched::Session(header.session_id);
        let of_session = self.watches.iter().find(|watch| header.session_id.is_some() && watch.watched == session);
        // Lists are told of sessions that are watched, too, and nothing tells the two copies apart.
        let of_lists = self.watches.iter().filter(|watch| {
            matches!(watch.watched, Watched::User | Watched::Desk)
                && matches!(&*header.r#type, "session_update" | "queue_update")
        });
        let mut to: Vec<Sender<Answer>> = of_session.into_iter().chain(of_lists).map(|w| w.answers.clone()).collect();
        if to.is_empty() && header.session_id.is_none() {
            to.extend(self.watches.first().map(|watch| watch.answers.clone()));
        }
        for answers in to {
            self.hand(answers, frame.clone(), false);
        }
    }

    fn hand(&mut self, answers: Sender<Answer>, frame: Bytes, last: bool) {
        let answer = Answer { frame, last };
        if self.blocked() {
            return self.held.push_back((answers, answer));
        }
        if let Err(TrySendError::Full(answer)) = answers.try_send(answer) {
            self.held.push_back((answers, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    const SESSIONS: [Uuid; 2] = [Uuid::from_u128(1), Uuid::from_u128(2)];

    /// Asks for a watch, whose session may be for the server to say.
    fn attach(routes: &mut Routes, session_id: Option<Uuid>) -> (Uuid, Receiver<Answer>) {
        let (id, (answers, frames)) = (Uuid::new_v4(), channel(1));
        routes.expect(Some(id), Purpose::Watch(Watched::Session(session_id)), answers);
        (id, frames)
    }

    fn answer(routes: &mut Routes, re: Uuid, session_id: Uuid) {
        let status = json!({"type": "connection_status", "re": re, "session_id": session_id});
        routes.take(&status.to_string().into());
    }

    fn watched(routes: &mut Routes, session_id: Uuid) -> Receiver<Answer> {
        let (id, frames) = attach(routes, None);
        answer(routes, id, session_id);
        frames
    }

    /// The sessions whose watches are ended.
    fn detached(routes: &mut Routes) -> Vec<Uuid> {
        let session = |frame: &String| serde_json::from_str::<Header<'_>>(frame).unwrap().session_id.unwrap();
        routes.left().iter().map(session).collect()
    }

    #[test]
    fn a_watch_that_is_left_as_another_begins_is_detached() {
        let mut routes = Routes::default();
        drop(watched(&mut routes, SESSIONS[0]));
        let _other = watched(&mut routes, SESSIONS[1]);
        assert_eq!(detached(&mut routes), [SESSIONS[0]]);
        assert!(detached(&mut routes).is_empty(), "once");
    }

    /// `detach` would end the newer one.
    #[test]
    fn a_watch_that_a_newer_one_replaces_is_not_detached() {
        for named in [Some(SESSIONS[0]), None] {
            let mut routes = Routes::default();
            let older = watched(&mut routes, SESSIONS[0]);
            let (id, _newer) = attach(&mut routes, named);
            drop(older);
            assert!(detached(&mut routes).is_empty(), "which it is is not told yet");
            answer(&mut routes, id, SESSIONS[0]);
            assert!(!routes.forsaken());
            assert!(detached(&mut routes).is_empty());
        }
        let mut routes = Routes::default();
        let left = watched(&mut routes, SESSIONS[0]);
        let (id, _newer) = attach(&mut routes, None);
        drop(left);
        assert!(detached(&mut routes).is_empty());
        answer(&mut routes, id, SESSIONS[1]);
        assert!(routes.forsaken(), "it was of another session");
        assert_eq!(detached(&mut routes), [SESSIONS[0]]);
    }
}
