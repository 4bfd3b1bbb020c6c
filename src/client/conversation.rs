//! What one watch has brought: its place in the log, its replies, and what is told of them. Knows frames, no connection.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    Open,
    event::{Event, Reply},
    message::{Stored, Teller},
    position::Position,
    turns::{Outcome, Turns},
};
use crate::{
    chat::{
        RequestId, SessionId,
        ask::{Attach, Position as Place, Scope},
    },
    protocol::{
        AiResponse, ClientFrame, ConnectionStatus, EntryFrame, REPLAY_ENTRIES_MAX, Request, ServerFrame, TypingState,
        encode_request,
    },
};

/// One watch of a client.
pub(super) struct Conversation {
    pub(super) scope: Scope,
    /// `None` until it is known which
    pub(super) session_id: Option<SessionId>,
    /// what is asked for before it is; the id makes it harmless to repeat
    open: Open,
    id: RequestId,
    pub(super) position: Position,
    pub(super) turns: Turns,
    events: mpsc::Sender<Event>,
    /// events are lost, and the last one that waits says so
    missed: bool,
}

/// What is to be done about a frame, beyond what was told.
#[derive(Debug)]
pub(super) enum Wanted {
    Nothing,
    /// attach anew, from where this stands
    Resume,
    /// read a reply again: its text is not what was announced
    Reread(Box<Reply>),
    /// a message of this user, maybe one of this client that came back in the log
    Own(Box<EntryFrame>),
    /// the session does not exist any more
    Gone,
}

/// An entry of a type that this version does not know still has its place.
#[derive(Deserialize)]
struct Placed {
    seq: u64,
}

/// A watch's `attach`, without what the connection adds to it.
#[derive(Clone)]
pub(super) struct Attaching {
    pub(super) id: RequestId,
    attach: Attach,
}

impl Attaching {
    /// The frame, with `datagrams` where the transport has them.
    pub(super) fn frame(&self, token: &str, datagrams: bool) -> Bytes {
        let mut attach = self.attach.clone();
        attach.token = Some(token.to_owned());
        attach.datagrams &= datagrams;
        encode_request(&Request { id: Some(self.id), frame: ClientFrame::Attach(Box::new(attach)) }).into()
    }
}

impl Conversation {
    pub(super) fn new(scope: Scope, open: Open, events: mpsc::Sender<Event>) -> Self {
        let session_id = open.session_id;
        let (id, position) = (RequestId::now_v7(), Position::default());
        Self { scope, session_id, open, id, position, turns: Turns::default(), events, missed: false }
    }

    /// Whether anybody still listens.
    pub(super) fn left(&self) -> bool {
        self.events.is_closed()
    }

    /// The `attach` for where this stands.
    pub(super) fn attaching(&self) -> Attaching {
        let begun = self.position.after_seq();
        let session = self.scope == Scope::Session;
        // Once it is answered, the wish is granted; what follows are other requests.
        let asked = self.open.new || self.open.reopen;
        Attaching {
            id: if asked { self.id } else { RequestId::now_v7() },
            attach: Attach {
                token: None,
                scope: self.scope,
                session_id: self.session_id.map(Ok),
                after_seq: begun.filter(|_| session),
                // Where a view goes on, the server does not tell again what this connection has said.
                last: Some(self.open.history.unwrap_or(REPLAY_ENTRIES_MAX)).filter(|_| session && begun.is_none()),
                position: self.turns.place().map(|(turn_id, offset)| Place { turn_id, offset }),
                new: self.open.new,
                reopen: self.open.reopen,
                datagrams: session,
            },
        }
    }

    /// The watch has begun, or goes on.
    pub(super) fn attached(&mut self, status: ConnectionStatus) {
        if self.scope != Scope::Session {
            return;
        }
        if status.recovered == Some(false) {
            self.position = Position::default();
            self.tell(Event::Reset);
            // What is held of unfinished replies is told once more; finished ones come again by themselves.
            for (turn_id, content) in self.turns.texts() {
                self.tell(Event::Piece { turn_id, offset: 0, content });
            }
        }
        if status.last_seq == Some(0) {
            self.position.begin(1);
        }
        self.session_id = status.session_id;
        (self.open.new, self.open.reopen) = (false, false);
        self.tell(Event::Session(Box::new(status)));
    }

    /// Whether both are of the same session, or of the list.
    pub(super) fn same(&self, other: &Self) -> bool {
        (self.scope, self.session_id) == (other.scope, other.session_id)
    }

    /// Goes on with what somebody waits for in an older watch of the same session.
    pub(super) fn succeed(&mut self, older: Self) {
        for (turn_id, content) in self.turns.inherit(older.turns) {
            self.tell(Event::Piece { turn_id, offset: 0, content });
        }
    }

    /// Takes a frame of a type that this version does not know.
    pub(super) fn unknown(&mut self, frame: &Bytes) {
        if let Ok(Placed { seq }) = serde_json::from_slice(frame) {
            self.position.hold(seq);
        }
    }

    /// Whether a copy that came as a datagram is exactly what comes next; its stream will bring the rest.
    pub(super) fn wants(&self, copy: &ServerFrame) -> bool {
        match copy {
            ServerFrame::UserMessage(entry) => self.position.is_next(entry.seq),
            ServerFrame::AiResponse(response) => self.turns.wants(response),
            _ => false,
        }
    }

    /// Takes a frame that answers nobody's request, or goes on answering a message's.
    pub(super) fn frame(&mut self, frame: ServerFrame) -> Wanted {
        match frame {
            ServerFrame::ConnectionStatus(status) => self.tell(Event::Session(status)),
            ServerFrame::Loading { re, turn_id, seq, .. } => {
                if re.is_none() {
                    self.position.begin(seq);
                }
                if self.turns.expect(turn_id) {
                    self.tell(Event::Turn { turn_id, seq });
                }
            }
            ServerFrame::AiResponse(response) => return self.response(&response),
            ServerFrame::UserMessage(entry) => return self.entry(entry),
            ServerFrame::SessionUpdate(update) => {
                let gone = update.deleted && self.session_id == Some(update.session_id);
                self.tell(Event::Update(update));
                if gone {
                    return Wanted::Gone;
                }
            }
            ServerFrame::TypingIndicator { sender, metadata, .. } => {
                let active = metadata.state == TypingState::Start;
                self.tell(Event::Typing { sender, active });
            }
            ServerFrame::Error { turn_id: Some(turn_id), error, .. } => self.turns.failed(turn_id, error),
            ServerFrame::Error { error, .. } => self.tell(Event::Refused(error)),
            ServerFrame::Accepted(_) | ServerFrame::Pong { .. } | ServerFrame::GoingAway { .. } => {}
        }
        Wanted::Nothing
    }

    fn response(&mut self, frame: &AiResponse) -> Wanted {
        // What answers a request comes beside the log.
        if let Some(last) = frame.reply.as_ref().filter(|_last| frame.re.is_none()) {
            self.position.begin(last.seq);
        }
        let held = frame.reply.as_ref().is_some_and(|last| self.position.holds(last.seq));
        if held && !self.turns.runs(frame.turn_id) {
            return Wanted::Nothing;
        }
        match self.turns.take(frame) {
            Outcome::Known => Wanted::Nothing,
            Outcome::Hole => Wanted::Resume,
            Outcome::Piece(offset, content) => {
                self.tell(Event::Piece { turn_id: frame.turn_id, offset, content });
                Wanted::Nothing
            }
            Outcome::Ended(reply) if reply.verified => {
                self.conclude(*reply);
                Wanted::Nothing
            }
            Outcome::Ended(reply) => Wanted::Reread(reply),
        }
    }

    /// A reply is what it will be.
    pub(super) fn conclude(&mut self, reply: Reply) {
        let reply = Arc::new(reply);
        self.position.note(reply.seq);
        self.turns.conclude(&reply);
        self.tell(Event::Reply(reply));
    }

    fn entry(&mut self, entry: Box<EntryFrame>) -> Wanted {
        if entry.id.is_some() {
            return Wanted::Own(entry);
        }
        self.show(entry);
        Wanted::Nothing
    }

    /// Shows an entry, unless it is held.
    pub(super) fn show(&mut self, entry: Box<EntryFrame>) {
        if self.position.hold(entry.seq) {
            self.tell(Event::Entry(entry));
        }
    }

    /// A message of this client is stored: its turn is followed.
    pub(super) fn stored(&mut self, stored: &Stored, lasting: bool, teller: Teller) {
        // The place of a regenerated reply is no entry that is held.
        if let Some(seq) = stored.seq.filter(|_| lasting) {
            self.position.note(seq);
        }
        teller.send_modify(|progress| progress.stored = Some(*stored));
        match stored.turn_id {
            Some(turn_id) => self.turns.follow(turn_id, teller),
            None => teller.send_modify(|progress| progress.end = Some(Ok(None))),
        }
    }

    /// Tells whoever listens. What they do not read in time is lost to them: the last place tells them so, and the
    /// next event is told when half of what waits is read.
    pub(super) fn tell(&mut self, event: Event) {
        let room = self.events.capacity();
        if self.missed && room < self.events.max_capacity() / 2 {
            return;
        }
        self.missed = room <= 1;
        drop(self.events.try_send(if self.missed { Event::Missed } else { event }));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SESSION: &str = "01a21579-63cf-77f9-8d53-a904e2c57f36";
    const TURN: &str = "01a21579-79c2-70e9-afe1-f85fef28a5ce";

    fn parsed(frame: Value) -> ServerFrame {
        serde_json::from_value(frame).unwrap()
    }

    fn piece(offset: u64, content: &str) -> ServerFrame {
        parsed(json!({
            "type": "ai_response", "session_id": SESSION, "turn_id": TURN, "offset": offset, "content": content,
            "sender": "ai", "metadata": {"streaming": "true", "done": "false"},
        }))
    }

    fn last(text: &str) -> ServerFrame {
        let sha256 = hex::encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
        parsed(json!({
            "type": "ai_response", "session_id": SESSION, "turn_id": TURN, "offset": text.len(), "content": "",
            "sender": "ai", "metadata": {"streaming": "true", "done": "true"}, "seq": 2, "reply_to": 1,
            "state": "complete", "length": text.len(), "sha256": sha256, "timestamp": "2026-01-02T03:04:05.678Z",
        }))
    }

    fn entry(seq: u64) -> ServerFrame {
        parsed(json!({
            "type": "user_message", "entry_id": TURN, "session_id": SESSION, "seq": seq, "content": "hello",
            "sender": "user", "timestamp": "2026-01-02T03:04:05.678Z",
        }))
    }

    fn copy(held: &mut Conversation, frame: ServerFrame) {
        if held.wants(&frame) {
            held.frame(frame);
        }
    }

    fn told(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
        let shown = std::iter::from_fn(|| events.try_recv().ok()).map(|event| match event {
            Event::Piece { offset, content, .. } => format!("{offset} {content}"),
            Event::Entry(entry) => format!("entry {}", entry.seq),
            Event::Reply(reply) => format!("reply {} {}", reply.text, reply.verified),
            other => format!("{other:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
        });
        shown.collect()
    }

    #[test]
    fn a_copy_is_taken_only_where_it_is_what_comes_next() {
        let (events, mut heard) = mpsc::channel(64);
        let mut held = Conversation::new(Scope::Session, Open::default(), events);
        held.position.begin(1);
        copy(&mut held, entry(2));
        copy(&mut held, piece(0, "never "));
        assert_eq!(told(&mut heard), Vec::<String>::new(), "an entry ahead, and a turn that is not known");
        copy(&mut held, entry(1));
        copy(&mut held, entry(1));
        held.frame(entry(1));
        held.frame(parsed(json!({"type": "loading", "session_id": SESSION, "turn_id": TURN, "seq": 2})));
        assert_eq!(told(&mut heard), ["entry 1", "Turn"]);
        copy(&mut held, piece(4, "too far"));
        copy(&mut held, last("eins zwei"));
        copy(&mut held, piece(0, "eins "));
        copy(&mut held, piece(0, "eins zwei"));
        assert_eq!(told(&mut heard), ["0 eins ", "5 zwei"]);
        held.frame(piece(0, "eins "));
        held.frame(piece(5, "zwei"));
        copy(&mut held, last("eins zwei"));
        held.frame(last("eins zwei"));
        assert_eq!(told(&mut heard), ["reply eins zwei true"]);
    }

    #[test]
    fn a_reply_that_comes_beside_the_log_does_not_tell_where_a_view_begins() {
        let (events, mut heard) = mpsc::channel(64);
        let mut held = Conversation::new(Scope::Session, Open { history: Some(2), ..Open::default() }, events);
        held.frame(piece(0, "eins"));
        let ServerFrame::AiResponse(mut end) = last("eins") else { panic!("a last frame") };
        end.re = Some(RequestId::now_v7());
        held.frame(ServerFrame::AiResponse(end));
        held.frame(entry(1));
        assert_eq!(told(&mut heard), ["0 eins", "reply eins true", "entry 1"]);
        assert_eq!(held.position.after_seq(), Some(2));
    }

    #[test]
    fn a_view_that_begins_with_a_running_reply_does_not_hold_it() {
        let (events, _heard) = mpsc::channel(64);
        let mut held = Conversation::new(Scope::Session, Open { history: Some(2), ..Open::default() }, events);
        held.frame(parsed(json!({"type": "loading", "session_id": SESSION, "turn_id": TURN, "seq": 2})));
        held.frame(entry(3));
        assert_eq!(held.position.after_seq(), Some(1));
        held.frame(piece(0, "eins"));
        held.frame(last("eins"));
        assert_eq!(held.position.after_seq(), Some(3));
    }

    #[test]
    fn a_hole_in_a_text_and_a_text_of_another_hash_are_found() {
        let (events, mut heard) = mpsc::channel(64);
        let mut held = Conversation::new(Scope::Session, Open::default(), events);
        assert!(matches!(held.frame(piece(3, "zwei")), Wanted::Resume));
        held.frame(piece(0, "eins dre"));
        assert!(matches!(held.frame(last("eins zwe")), Wanted::Reread(reply) if reply.text == "eins dre"));
        assert_eq!(told(&mut heard), ["0 eins dre"], "a reply is told once it is proved");
    }

    #[test]
    fn whoever_reads_no_events_is_told_that_some_are_missed() {
        let (events, mut heard) = mpsc::channel(4);
        let mut held = Conversation::new(Scope::Session, Open::default(), events);
        (1..=5).for_each(|seq| drop(held.frame(entry(seq))));
        assert!(matches!(heard.try_recv(), Ok(Event::Entry(first)) if first.seq == 1));
        held.frame(entry(6));
        assert_eq!(told(&mut heard), ["entry 2", "entry 3", "Missed"], "once, and without another event");
        held.frame(entry(7));
        assert_eq!(told(&mut heard), ["entry 7"]);
    }
}
