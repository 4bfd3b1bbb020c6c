//! What one session should be.

use std::collections::VecDeque;

use chatbox::{
    chat::{Rating, RequestId, Segment, Session, SessionId, SessionState, Timestamp, TurnId, TurnState, Usage},
    store::{Change, EndTurn, Error, NewEntry, Purpose, Regenerate, Spent, Thread},
};

use super::{
    super::{LONG, Room, ending, piece, places},
    End, Made,
};

pub(super) struct Model {
    pub(super) room: Room,
    pub(super) active: bool,
    pub(super) rev: u64,
    /// what decides which active session ends first
    pub(super) order: (Timestamp, Timestamp, SessionId),
    log: Vec<Line>,
    queue: VecDeque<(TurnId, u64)>,
    running: Option<Running>,
    /// the turns that have ended, with the places of their messages and replies
    ended: Vec<(TurnId, u64, u64)>,
    name: Option<String>,
    /// the owner or the model has named it
    named: bool,
    model_id: Option<String>,
    help: bool,
    /// the newest one of the model that ends every reply
    thread: Option<Thread>,
    /// requests to that model, and the tokens that they took
    pub(super) spent: (u64, u64),
}

/// The model that ends every reply, whichever has begun it.
pub(super) const LAST: &str = "last";

#[derive(Clone, PartialEq, Debug)]
struct Line {
    content: String,
    state: Option<TurnState>,
    reply_to: Option<u64>,
    rating: Option<Rating>,
    segments: Vec<Segment>,
}

struct Running {
    id: TurnId,
    message: u64,
    reply: u64,
    text: String,
}

fn place(length: usize) -> u64 {
    u64::try_from(length).unwrap()
}

/// A text of some length has two writers.
fn segments(text: &str) -> Vec<Segment> {
    let by = |offset, model_id: &str| Segment { offset, model_id: model_id.to_owned() };
    if text.len() < 2 { vec![by(0, LAST)] } else { vec![by(0, "first"), by(1, LAST)] }
}

fn spent(text: &str) -> Spent {
    let usage = Usage { prompt_tokens: 1, completion_tokens: place(text.len()), estimated: false };
    Spent { model_id: LAST.to_owned(), purpose: Purpose::Reply, usage, cost: None }
}

impl Model {
    /// A session that was just made.
    pub(super) fn new(room: Room) -> Self {
        Self {
            order: (Timestamp::default(), Timestamp::default(), room.session),
            room,
            active: true,
            rev: 1,
            log: Vec::new(),
            queue: VecDeque::new(),
            running: None,
            ended: Vec::new(),
            name: None,
            named: false,
            model_id: None,
            help: false,
            thread: None,
            spent: (0, 0),
        }
    }

    /// The turns that have not ended.
    pub(super) fn open(&self) -> Vec<TurnId> {
        let running = self.running.iter().map(|running| running.id);
        running.chain(self.queue.iter().map(|(id, _message)| *id)).collect()
    }

    fn add(&mut self, content: &str, state: Option<TurnState>, reply_to: Option<u64>) -> u64 {
        self.log.push(Line { content: content.to_owned(), state, reply_to, rating: None, segments: Vec::new() });
        place(self.log.len())
    }

    fn begin(&mut self, id: TurnId, message: u64) {
        let reply = self.add("", Some(TurnState::Running), Some(message));
        self.running = Some(Running { id, message, reply, text: String::new() });
        self.rev += 1;
    }

    pub(super) async fn append(&mut self, client_id: RequestId, known: Option<Made>) -> Option<Made> {
        let question = NewEntry {
            client_id: Some(client_id),
            session_name: Some("first".to_owned()),
            ..self.room.question("question")
        };
        let appended = self.room.store.append(question).await;
        match known {
            Some(Made::Message { session, seq }) => {
                let first = appended.unwrap();
                assert_eq!((first.duplicate, first.started), (true, None));
                assert_eq!((first.entry.session_id, first.entry.seq), (session, seq));
                return None;
            }
            Some(Made::Reply { .. }) => {
                assert!(matches!(appended, Err(Error::IdTaken)), "{appended:?}");
                return None;
            }
            None if !self.active => {
                assert!(matches!(appended, Err(Error::Ended)), "{appended:?}");
                return None;
            }
            None => {}
        }
        let appended = appended.unwrap();
        let seq = self.add("question", None, None);
        self.rev += 1;
        self.name.get_or_insert_with(|| "first".to_owned());
        assert_eq!((appended.duplicate, appended.entry.seq, appended.rev), (false, seq, self.rev));
        assert_eq!(appended.started.is_some(), self.open().is_empty());
        let turn = appended.entry.turn_id.unwrap();
        match appended.started {
            Some(_) => self.begin(turn, seq),
            None => self.queue.push_back((turn, seq)),
        }
        Some(Made::Message { session: self.room.session, seq })
    }

    pub(super) async fn start(&mut self) {
        let next = self.queue.front().copied().filter(|_next| self.running.is_none());
        let started = self.room.store.start_turn(self.room.session, self.room.lease(LONG)).await;
        if next.is_some() && !self.active {
            assert!(matches!(started, Err(Error::Ended)), "{started:?}");
            return;
        }
        let started = started.unwrap().map(|started| (started.turn.id, started.turn.message_seq));
        assert_eq!(started, next);
        if let Some((id, message)) = next {
            self.queue.pop_front();
            self.begin(id, message);
        }
    }

    pub(super) async fn extend(&mut self, text: &str, beside: u64) {
        let Some(running) = &mut self.running else { return };
        let length = place(running.text.len());
        let extended = self.room.extend(running.id, length + beside, text).await;
        assert_eq!(extended, beside == 0);
        if extended {
            running.text.push_str(text);
        }
        assert_eq!(self.room.store.turn_text(running.id, 0).await.unwrap(), piece(0, &running.text));
    }

    pub(super) async fn end(&mut self, end: End) {
        let End { state, text, waits, again } = end;
        let waiting = if waits { self.queue.pop_front() } else { None };
        let (id, message, reply, want) = if let Some((id, message)) = waiting {
            let reply = self.add("", None, Some(message));
            (id, message, reply, text.unwrap_or_default().to_owned())
        } else if let Some(running) = self.running.take() {
            let want = text.map_or(running.text, ToOwned::to_owned);
            (running.id, running.message, running.reply, want)
        } else {
            if let Some((id, ..)) = self.ended.last() {
                assert_eq!(self.room.end(*id, state, text).await, None);
            }
            return;
        };
        self.rev += 1;
        let segments = segments(&want);
        let again = again.then(TurnId::new);
        let end = EndTurn {
            again,
            text: text.map(ToOwned::to_owned),
            segments: segments.clone(),
            spent: vec![spent(&want)],
            thread: (state == TurnState::Complete).then(|| format!("thread {reply}")),
            ..ending(id, state)
        };
        let ended = self.room.store.end_turn(end.clone()).await.unwrap().unwrap();
        assert_eq!(self.room.store.end_turn(end.clone()).await.unwrap(), None, "once");
        assert_eq!(ended.reply.model_id.as_deref(), Some(LAST));
        self.spent = (self.spent.0 + 1, self.spent.1 + 1 + place(want.len()));
        self.thread = end.thread.map(|reference| Thread { reference, reply_seq: reply }).or(self.thread.take());
        assert_eq!((ended.reply.seq, ended.reply.reply_to, ended.rev), (reply, Some(message), self.rev));
        let again = again.filter(|_new| self.active && want.is_empty());
        assert_eq!(ended.asked_again, again.is_some());
        if let Some(new) = again {
            self.queue.push_front((new, message));
        }
        assert_eq!(ended.waiting, !self.queue.is_empty());
        let line = &mut self.log[usize::try_from(reply).unwrap() - 1];
        (line.content, line.state) = (want, Some(state));
        line.segments = if segments.len() > 1 { segments } else { Vec::new() };
        self.ended.push((id, message, reply));
    }

    /// The newest turn of the last message that has one; `first`: the one that ended first.
    pub(super) async fn regenerate(&mut self, client_id: RequestId, known: Option<Made>, first: bool) -> Option<Made> {
        let last = self.ended.iter().copied().max_by_key(|(_id, message, reply)| (*message, *reply));
        let (old, message, _reply) = if first { self.ended.first().copied() } else { last }?;
        let (new, lease) = (TurnId::new(), self.room.lease(LONG));
        let ask = Regenerate { turn_id: old, owner: self.room.user.clone(), client_id: Some(client_id), new, lease };
        let made = self.room.store.regenerate(ask).await;
        let session = self.room.session;
        match known {
            Some(Made::Reply { session: of, message: to, seq }) if (of, to) == (session, message) => {
                let made = made.unwrap();
                assert_eq!((made.session_id, made.reply_seq, made.started), (session, seq, None));
                return None;
            }
            None if self.active && last.is_some_and(|last| last.0 == old) && self.open().is_empty() => {}
            None if !self.active => {
                assert!(matches!(made, Err(Error::Ended)), "{made:?}");
                return None;
            }
            Some(_another) => {
                assert!(matches!(made, Err(Error::IdTaken)), "{made:?}");
                return None;
            }
            None => {
                assert!(matches!(made, Err(Error::NotFound)), "{made:?}");
                return None;
            }
        }
        let made = made.unwrap();
        self.begin(new, message);
        let seq = place(self.log.len());
        assert_eq!((made.turn_id, made.reply_seq, made.started.unwrap().rev), (new, seq, self.rev));
        Some(Made::Reply { session, message, seq })
    }

    pub(super) async fn rate(&mut self, seq: u64) {
        let rated = self.room.rate(seq, "", Rating::Up).await;
        let nth = usize::try_from(seq).unwrap().checked_sub(1);
        let line = nth.and_then(|nth| self.log.get_mut(nth)).filter(|line| line.state.is_some_and(TurnState::ended));
        assert_eq!(rated.is_ok(), line.is_some());
        if let Some(line) = line {
            line.rating = Some(Rating::Up);
        }
    }

    pub(super) async fn change(&mut self, change: Change) {
        let done = self.room.change(change.clone()).await;
        let changed = match &change {
            Change::Model(_) | Change::Help(_) if !self.active => {
                assert!(matches!(done, Err(Error::Ended)), "{done:?}");
                return;
            }
            Change::BetterName(_) if self.named => false,
            Change::Name(name) | Change::BetterName(name) => {
                self.named = true;
                self.name.replace(name.clone()).as_ref() != Some(name)
            }
            Change::Model(model) => self.model_id.replace(model.clone()).as_ref() != Some(model),
            Change::Help(wanted) => std::mem::replace(&mut self.help, *wanted) != *wanted,
            Change::End => std::mem::replace(&mut self.active, false),
            Change::EndIdle { .. } => {
                let idle = self.active && self.open().is_empty();
                self.active &= !idle;
                idle
            }
        };
        self.rev += u64::from(changed);
        let done = done.unwrap();
        assert_eq!((done.changed, done.session.rev), (changed, self.rev), "{change:?}");
        let told: Vec<_> = done.open_turns.iter().map(|turn| turn.id).collect();
        assert_eq!(told, if change == Change::End { self.open() } else { vec![] });
    }

    pub(super) async fn compare(&mut self) -> Session {
        let log = self.room.log().await;
        let seen = log.iter().map(|entry| Line {
            content: entry.content.clone(),
            state: entry.state,
            reply_to: entry.reply_to,
            rating: entry.rating,
            segments: entry.segments.clone(),
        });
        assert_eq!(seen.collect::<Vec<_>>(), self.log);
        assert_eq!(places(&log), (1..=place(log.len())).collect::<Vec<_>>());
        let open = self.room.store.open_turns(self.room.session).await.unwrap();
        assert_eq!(open.iter().map(|turn| turn.id).collect::<Vec<_>>(), self.open());
        let running = self.room.store.running_turn(self.room.session).await.unwrap().map(|turn| turn.id);
        assert_eq!(running, self.running.as_ref().map(|running| running.id));
        assert_eq!(self.room.store.thread(self.room.session, LAST).await.unwrap(), self.thread);
        let row = self.room.row().await;
        assert_eq!((row.rev, row.last_seq), (self.rev, place(log.len())), "each change raises it by one");
        assert_eq!((row.state == SessionState::Active, row.ended_at.is_none()), (self.active, self.active));
        assert_eq!((&row.name, &row.model_id, row.help_requested), (&self.name, &self.model_id, self.help));
        assert_eq!(row.counters.entries, row.last_seq);
        self.order = (row.last_activity, row.created_at, row.id);
        row
    }
}
