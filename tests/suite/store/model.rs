//! Random schedules of writes, compared step by step with a model that is a few vectors.

use std::collections::VecDeque;

use chatbox::{
    chat::{RequestId, TurnId, TurnState},
    store::NewEntry,
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    test_runner::{Config, TestCaseError, TestRunner},
};

use super::{Room, Shelf, piece, places};

#[derive(Clone, Debug)]
enum Step {
    /// a question with one of a few request ids, so that some are repeated
    Append(u8),
    Start,
    /// text at the end of the running turn's log, or this many bytes beside it
    Extend(&'static str, u64),
    /// of the running turn, or of the first one that waits
    End(TurnState, Option<&'static str>, bool),
    /// of the turn that ended last
    Requeue,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let text = || prop_oneof![Just("a"), Just("日本"), Just("é!"), Just("")];
    let state = prop_oneof![
        Just(TurnState::Complete),
        Just(TurnState::Stopped),
        Just(TurnState::Interrupted),
        Just(TurnState::Failed)
    ];
    let step = prop_oneof![
        4 => (0..12_u8).prop_map(Step::Append),
        2 => Just(Step::Start),
        4 => (text(), prop_oneof![5 => Just(0_u64), 1 => 1..3_u64]).prop_map(|(text, beside)| Step::Extend(text, beside)),
        3 => (state, proptest::option::of(text()), any::<bool>()).prop_map(|(state, text, waits)| Step::End(state, text, waits)),
        1 => Just(Step::Requeue),
    ];
    vec(step, 1..24)
}

/// What a session should hold.
#[derive(Default)]
struct Model {
    /// content and state, by place
    log: Vec<(String, Option<TurnState>)>,
    requests: Vec<(RequestId, u64)>,
    queue: VecDeque<(TurnId, u64)>,
    running: Option<Running>,
    /// the turn that ended last, and its message
    ended: Option<(TurnId, u64)>,
    rev: u64,
}

struct Running {
    id: TurnId,
    message: u64,
    reply: usize,
    text: String,
}

impl Model {
    fn begin(&mut self, id: TurnId, message: u64) {
        self.running = Some(Running { id, message, reply: self.log.len(), text: String::new() });
        self.log.push((String::new(), Some(TurnState::Running)));
    }

    async fn append(&mut self, room: &Room, request: u8) {
        let client_id = RequestId::from_u128(room.session.0.as_u128() ^ u128::from(request));
        let appended = room.append(NewEntry { client_id: Some(client_id), ..room.question("question") }).await;
        let known = self.requests.iter().find(|(id, _seq)| *id == client_id);
        assert_eq!(appended.duplicate, known.is_some());
        if let Some((_id, seq)) = known {
            assert_eq!((appended.entry.seq, appended.started), (*seq, None));
            return;
        }
        self.log.push(("question".to_owned(), None));
        let seq = u64::try_from(self.log.len()).unwrap();
        self.requests.push((client_id, seq));
        let turn = appended.entry.turn_id.unwrap();
        assert_eq!(
            (appended.entry.seq, appended.started.is_some()),
            (seq, self.running.is_none() && self.queue.is_empty())
        );
        match appended.started {
            Some(_) => self.begin(turn, seq),
            None => self.queue.push_back((turn, seq)),
        }
    }

    async fn start(&mut self, room: &Room) {
        let next = if self.running.is_none() { self.queue.pop_front() } else { None };
        let started = room.start().await.map(|started| (started.turn.id, started.turn.message_seq));
        assert_eq!(started, next);
        if let Some((id, message)) = next {
            self.begin(id, message);
        }
    }

    async fn extend(&mut self, room: &Room, text: &str, beside: u64) {
        let Some(running) = &mut self.running else { return };
        let length = u64::try_from(running.text.len()).unwrap();
        let extended = room.extend(running.id, length + beside, text).await;
        assert_eq!(extended, beside == 0);
        if extended {
            running.text.push_str(text);
        }
        assert_eq!(room.store.turn_text(running.id, 0).await.unwrap(), piece(0, &running.text));
    }

    async fn end(&mut self, room: &Room, state: TurnState, text: Option<&str>, waits: bool) {
        let waiting = if waits { self.queue.pop_front() } else { None };
        if let Some((id, message)) = waiting {
            let reply = room.end(id, state, None).await.unwrap().reply;
            self.log.push((String::new(), Some(state)));
            assert_eq!(
                (places(std::slice::from_ref(&reply))[0], reply.reply_to),
                (u64::try_from(self.log.len()).unwrap(), Some(message))
            );
            self.ended = Some((id, message));
        } else if let Some(running) = self.running.take() {
            let reply = room.end(running.id, state, text).await.unwrap().reply;
            let want = text.map_or(running.text, ToOwned::to_owned);
            assert_eq!((&reply.content, reply.length), (&want, u64::try_from(want.len()).ok()));
            self.log[running.reply] = (want, Some(state));
            self.ended = Some((running.id, running.message));
        } else if let Some((id, _message)) = self.ended {
            assert_eq!(room.end(id, state, text).await, None);
        }
    }

    async fn requeue(&mut self, room: &Room) {
        let Some((id, message)) = self.ended else { return };
        let running = self.running.as_ref().map(|running| running.message);
        let open = self.queue.iter().map(|(_id, message)| *message).chain(running).any(|open| open == message);
        let new = TurnId::new();
        assert_eq!(room.store.requeue(id, new).await.unwrap(), !open);
        if !open {
            self.queue.push_front((new, message));
        }
    }

    async fn compare(&mut self, room: &Room) {
        let log = room.log().await;
        let seen: Vec<_> = log.iter().map(|entry| (entry.content.clone(), entry.state)).collect();
        assert_eq!(seen, self.log);
        assert_eq!(places(&log), (1..=u64::try_from(log.len()).unwrap()).collect::<Vec<_>>());
        let running = room.store.running_turn(room.session).await.unwrap().map(|turn| turn.id);
        assert_eq!(running, self.running.as_ref().map(|running| running.id));
        let row = room.row().await;
        assert!(row.rev >= self.rev, "{} after {}", row.rev, self.rev);
        assert_eq!(row.last_seq, u64::try_from(log.len()).unwrap());
        self.rev = row.rev;
    }
}

async fn check(room: Room, steps: Vec<Step>) {
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Append(request) => model.append(&room, request).await,
            Step::Start => model.start(&room).await,
            Step::Extend(text, beside) => model.extend(&room, text, beside).await,
            Step::End(state, text, waits) => model.end(&room, state, text, waits).await,
            Step::Requeue => model.requeue(&room).await,
        }
        model.compare(&room).await;
    }
}

#[test]
fn random_schedules_do_what_the_model_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let shelf = Shelf::new();
    let store = shelf.open();
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        let session = runtime.block_on(async {
            let room = Room::new(std::sync::Arc::clone(&store)).await;
            let new = super::open(&*room.store, &room.user, chatbox::store::Open::New, 1).await;
            Room { session: new.id, ..room }
        });
        runtime.block_on(check(session, steps));
        Ok::<_, TestCaseError>(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}
