//! One device of a user: on some node, over some transport; it finds out by itself when that node is of no use any
//! longer, and goes to another one.

use std::{pin::Pin, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::world::Front;
use crate::{
    harness::{Via, id},
    schedules::{
        held::{Held, Position},
        link::{Came, Link},
        plan::Rng,
    },
};

/// How long a connection may take. A node that is held still takes connections, and says nothing.
const OPENING_MAX: Duration = Duration::from_secs(3);

/// How long a device hears nothing before it asks whether its node is there.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// How long a node that was asked whether it is there may be silent.
const PONG_MAX: Duration = Duration::from_secs(3);

/// The pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Device {
    pub(super) held: Held,
    /// where it is, or tries to be
    pub(super) node: usize,
    pub(super) via: Via,
    line: Line,
    /// how long it hears nothing before it asks whether the node is there
    quiet_max: Duration,
    /// the id of an `attach` that has no answer
    attach: Option<String>,
    heard: Instant,
    pinged: bool,
    leaves: Option<Instant>,
}

enum Line {
    /// not before that moment
    Off(Instant),
    Opening(Pin<Box<dyn Future<Output = Option<Link>> + Send>>),
    On(Box<Link>),
}

/// What happens to a device by itself.
pub(super) enum News {
    /// it tries to connect
    Due,
    Opened(Option<Box<Link>>),
    Frame(Came),
    /// nothing came for a while
    Silent,
    /// it was told to go, and it is time
    Leaves,
    Gone,
}

impl Device {
    pub(super) fn new(node: usize, via: Via) -> Self {
        let now = Instant::now();
        let mut held = Held::default();
        held.restarted = true;
        let (line, quiet_max) = (Line::Off(now), QUIET_MAX);
        Self { held, node, via, line, quiet_max, attach: None, heard: now, pinged: false, leaves: None }
    }

    /// Asks late whether its node is there.
    pub(super) const fn wait_long(&mut self) {
        self.quiet_max = Duration::from_secs(30);
    }

    /// Cancel safe.
    pub(super) async fn news(&mut self) -> News {
        match &mut self.line {
            Line::Off(at) => {
                sleep_until(*at).await;
                News::Due
            }
            Line::Opening(opening) => News::Opened(opening.await.map(Box::new)),
            Line::On(link) => {
                let patience = if self.pinged { PONG_MAX } else { self.quiet_max };
                let until = self.leaves.unwrap_or(self.heard + patience);
                match timeout_at(until, link.next()).await {
                    Ok(Some(came)) => News::Frame(came),
                    Ok(None) => News::Gone,
                    Err(_elapsed) if self.leaves.is_some() => News::Leaves,
                    Err(_elapsed) => News::Silent,
                }
            }
        }
    }

    /// Whether it may send requests.
    pub(super) const fn attached(&self) -> bool {
        matches!(self.line, Line::On(_)) && self.attach.is_none()
    }

    /// Begins to connect, if its node is one that takes connections.
    pub(super) fn open(&mut self, front: &Front, rng: &mut Rng) {
        let Some(place) = front.place(self.node) else { return self.elsewhere(front, rng) };
        let (via, order) = (self.via, Rng::new(rng.next()));
        let opening = async move { Link::attempt(&place, via, order, OPENING_MAX).await };
        self.line = Line::Opening(Box::pin(opening));
    }

    /// Tries another node after a pause.
    pub(super) fn elsewhere(&mut self, front: &Front, rng: &mut Rng) {
        let jitter = Duration::from_millis(rng.next() % 100);
        // Who was told when to come back does so then, also when the connection ended before.
        let at = self.leaves.take().unwrap_or_else(|| Instant::now() + PAUSE + jitter);
        self.node = front.other(self.node, rng);
        if let Line::On(link) = std::mem::replace(&mut self.line, Line::Off(at)) {
            link.vanish();
        }
    }

    /// A connection is there: says who it is, and what it holds.
    pub(super) async fn attach(&mut self, link: Box<Link>, token: &str, session: Option<&str>) {
        self.held.connected();
        self.held.refused = true;
        self.line = Line::On(link);
        (self.heard, self.pinged, self.leaves) = (Instant::now(), false, None);
        let (after, named) = (self.held.after_seq(), self.held.parts().pop());
        let mut frame = json!({"type": "attach", "id": id(), "token": token, "after_seq": after});
        if let Some(session) = session {
            frame["session_id"] = json!(session);
        }
        if let Some(Position { turn, offset }) = &named {
            (frame["turn_id"], frame["offset"]) = (json!(turn), json!(offset));
        }
        let request = frame["id"].as_str().unwrap().to_owned();
        self.held.attaching(&request, after, named);
        self.attach = Some(request);
        self.send(&frame).await;
    }

    /// Sends a request. That it did not is told by [`News::Gone`].
    pub(super) async fn send(&mut self, frame: &Value) {
        let Line::On(link) = &mut self.line else { return };
        if frame["type"] == "user_message" {
            self.held.asking(frame["id"].as_str().unwrap());
        }
        if !link.send(frame).await {
            self.leaves.get_or_insert_with(Instant::now);
        }
    }

    /// Asks whether anyone is there; `false` when it has asked already.
    pub(super) async fn ping(&mut self) -> bool {
        if std::mem::replace(&mut self.pinged, true) {
            return false;
        }
        self.heard = Instant::now();
        self.send(&json!({"type": "ping", "id": id()})).await;
        true
    }

    /// Notes what a frame says of the connection; `false` when it is of no use.
    pub(super) fn note(&mut self, frame: &Value) -> bool {
        (self.heard, self.pinged) = (Instant::now(), false);
        let answers = self.attach.is_some() && frame["re"].as_str() == self.attach.as_deref();
        match frame["type"].as_str() {
            Some("connection_status") if answers => self.attach = None,
            Some("error") if answers => return false,
            Some("going_away") => {
                let after = Duration::from_millis(frame["retry_after"].as_u64().expect("a delay"));
                self.leaves = Some(Instant::now() + after);
            }
            _ => {}
        }
        true
    }

    /// Says what it is doing.
    pub(super) fn doing(&self) -> String {
        let line = match self.line {
            Line::Off(_) => "off",
            Line::Opening(_) => "opening",
            Line::On(_) if self.attach.is_some() => "attaching",
            Line::On(_) => "on",
        };
        format!("{line} at node {} over {:?}", self.node, self.via)
    }
}
