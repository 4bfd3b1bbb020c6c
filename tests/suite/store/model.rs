//! Random schedules of writes by one user, compared step by step with a model that is a few vectors.

mod session;

use chatbox::{
    chat::{Day, NodeId, RequestId, SessionId, TurnState},
    store::{Change, ListSessions, Open, OpenSession, Order, Range},
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof,
    test_runner::{Config, TestCaseError, TestRunner},
};

use self::session::{LAST, Model};
use super::{Room, Shelf, user};

/// How many sessions are active at a time.
const ACTIVE_MAX: u32 = 2;

/// Steps name sessions by a number, which is taken modulo the number of sessions that there are.
#[derive(Clone, Debug)]
enum Step {
    Open(Which),
    Delete(usize),
    Change(usize, Change),
    /// a question with one of a few request ids, so that some are repeated
    Append(usize, u8),
    Start(usize),
    /// text at the end of the running turn's log, or this many bytes beside it
    Extend(usize, &'static str, u64),
    End(usize, End),
    /// of the last turn, or of the first one, with one of a few request ids
    Regenerate(usize, u8, bool),
    /// of an entry
    Rate(usize, u64),
}

/// How a turn ends.
#[derive(Clone, Copy, Debug)]
struct End {
    state: TurnState,
    text: Option<&'static str>,
    /// the first one that waits, if there is any, and not the running one
    waits: bool,
    /// its message is asked again, if no text is left
    again: bool,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Current,
    New,
    Reopen(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let text = || prop_oneof![Just("a"), Just("日本"), Just("é!"), Just("")];
    let state = prop_oneof![
        Just(TurnState::Complete),
        Just(TurnState::Stopped),
        Just(TurnState::Interrupted),
        Just(TurnState::Failed)
    ];
    let end = (state, proptest::option::of(text()), any::<bool>(), any::<bool>())
        .prop_map(|(state, text, waits, again)| End { state, text, waits, again });
    let which = prop_oneof![Just(Which::Current), Just(Which::New), any::<usize>().prop_map(Which::Reopen)];
    let name = || prop_oneof![Just("one".to_owned()), Just("two".to_owned())];
    let change = prop_oneof![
        name().prop_map(Change::Name),
        name().prop_map(Change::BetterName),
        name().prop_map(Change::Model),
        any::<bool>().prop_map(Change::Help),
        Just(Change::End),
        Just(Change::EndIdle { since: chatbox::chat::Timestamp(i64::MAX) }),
    ];
    let one = || 0..3_usize;
    let beside = prop_oneof![5 => Just(0_u64), 1 => 1..3_u64];
    let step = prop_oneof![
        2 => which.prop_map(Step::Open),
        1 => (0..12_usize).prop_map(Step::Delete),
        4 => (one(), change).prop_map(|(session, change)| Step::Change(session, change)),
        8 => (one(), 0..12_u8).prop_map(|(session, request)| Step::Append(session, request)),
        4 => one().prop_map(Step::Start),
        6 => (one(), text(), beside).prop_map(|(session, text, beside)| Step::Extend(session, text, beside)),
        8 => (one(), end).prop_map(|(session, end)| Step::End(session, end)),
        6 => (one(), 0..12_u8, proptest::bool::weighted(0.2))
            .prop_map(|(session, request, first)| Step::Regenerate(session, request, first)),
        1 => (one(), 0..8_u64).prop_map(|(session, seq)| Step::Rate(session, seq)),
    ];
    vec(step, 1..48)
}

/// What the user's sessions should be, and what the user's requests have made.
struct World {
    room: Room,
    sessions: Vec<Model>,
    requests: Vec<(RequestId, Made)>,
    /// what sessions had spent that are gone
    spent: (u64, u64),
}

/// What a request has made, and in which session.
#[derive(Clone, Copy, PartialEq)]
enum Made {
    Message { session: SessionId, seq: u64 },
    Reply { session: SessionId, message: u64, seq: u64 },
}

impl Made {
    const fn session(self) -> SessionId {
        match self {
            Self::Message { session, .. } | Self::Reply { session, .. } => session,
        }
    }
}

impl World {
    fn request(&self, request: u8) -> (RequestId, Option<Made>) {
        let id = RequestId::from_u128(self.room.node.0.as_u128() ^ u128::from(request));
        (id, self.requests.iter().find(|(known, _made)| *known == id).map(|(_id, made)| *made))
    }

    async fn open(&mut self, which: Which) {
        let count = self.sessions.len();
        let open = match which {
            Which::Current => Open::Current,
            Which::New => Open::New,
            Which::Reopen(nth) => Open::Reopen(self.sessions[nth % count].room.session),
        };
        let id = SessionId::new();
        let ask = OpenSession { user_id: self.room.user.clone(), open, id, active_max: ACTIVE_MAX };
        let opened = self.room.store.open_session(ask).await.unwrap();
        let active = self.sessions.iter().filter(|model| model.active);
        let mut oldest: Vec<_> = active.map(|model| (model.order, model.room.session)).collect();
        oldest.sort();
        let changes = match open {
            Open::Current => oldest.is_empty(),
            Open::New => true,
            Open::Reopen(id) => self.sessions.iter().any(|model| model.room.session == id && !model.active),
        };
        assert_eq!(opened.changed, changes, "{open:?}");
        if !changes {
            assert_eq!(opened.ended, []);
            return;
        }
        let surplus = (oldest.len() + 1).saturating_sub(usize::try_from(ACTIVE_MAX).unwrap());
        let ended: Vec<_> = opened.ended.iter().map(|ended| ended.id).collect();
        assert_eq!(ended, oldest.iter().take(surplus).map(|(_order, id)| *id).collect::<Vec<_>>());
        for model in self.sessions.iter_mut().filter(|model| ended.contains(&model.room.session)) {
            (model.active, model.rev) = (false, model.rev + 1);
        }
        match open {
            Open::Reopen(id) => {
                let model = self.sessions.iter_mut().find(|model| model.room.session == id).unwrap();
                (model.active, model.rev) = (true, model.rev + 1);
            }
            _ => {
                assert_eq!(opened.session.id, id);
                self.sessions.push(Model::new(self.room.beside(id)));
            }
        }
    }

    async fn delete(&mut self, nth: usize) {
        // The steps need at least one, and seldom many.
        if nth >= self.sessions.len() || self.sessions.len() == 1 {
            return;
        }
        let model = self.sessions.remove(nth);
        self.spent = (self.spent.0 + model.spent.0, self.spent.1 + model.spent.1);
        let id = model.room.session;
        let deleted = self.room.store.delete_session(id, self.room.user.clone()).await.unwrap();
        assert_eq!((deleted.session.rev, deleted.changed), (model.rev, true));
        assert_eq!(deleted.open_turns.iter().map(|turn| turn.id).collect::<Vec<_>>(), model.open());
        assert_eq!(self.room.store.session(id).await.unwrap(), None);
        assert_eq!(self.room.store.entries(id, Range::Last(9)).await.unwrap(), []);
        assert_eq!(self.room.store.thread(id, LAST).await.unwrap(), None);
        for turn in model.open() {
            assert_eq!(self.room.store.turn(turn).await.unwrap(), None);
        }
        self.requests.retain(|(_id, made)| made.session() != id);
    }

    async fn step(&mut self, step: Step) {
        let count = self.sessions.len();
        match step {
            Step::Open(which) => self.open(which).await,
            Step::Delete(nth) => self.delete(nth).await,
            Step::Change(nth, change) => self.sessions[nth % count].change(change).await,
            Step::Append(nth, request) => {
                let (id, made) = self.request(request);
                let made = self.sessions[nth % count].append(id, made).await;
                self.requests.extend(made.map(|made| (id, made)));
            }
            Step::Start(nth) => self.sessions[nth % count].start().await,
            Step::Extend(nth, text, beside) => self.sessions[nth % count].extend(text, beside).await,
            Step::End(nth, end) => self.sessions[nth % count].end(end).await,
            Step::Regenerate(nth, request, first) => {
                let (id, made) = self.request(request);
                let made = self.sessions[nth % count].regenerate(id, made, first).await;
                self.requests.extend(made.map(|made| (id, made)));
            }
            Step::Rate(nth, seq) => self.sessions[nth % count].rate(seq).await,
        }
    }

    async fn compare(&mut self) {
        let mut listed = Vec::new();
        for model in &mut self.sessions {
            let row = model.compare().await;
            listed.extend((row.counters.entries > 0).then_some(row));
        }
        listed.sort_by_key(|row| std::cmp::Reverse((row.last_activity, row.id)));
        let (user_id, limit) = (self.room.user.clone(), 100);
        let ask = ListSessions { user_id: user_id.clone(), order: Order::Activity, after: None, limit };
        let revs = vec![(user_id.clone(), listed.iter().map(|row| (row.id, row.rev)).collect())];
        assert_eq!(self.room.store.sessions(ask).await.unwrap().sessions, listed);
        assert_eq!(self.room.store.user_revs(&[user_id], limit).await.unwrap(), revs);
        let sum = |spent: (u64, u64), next: (u64, u64)| (spent.0 + next.0, spent.1 + next.1);
        let want = self.sessions.iter().map(|model| model.spent).fold(self.spent, sum);
        let days = self.room.store.spent(&self.room.user, Day(0)).await.unwrap();
        assert_eq!(days.iter().map(|day| (day.requests, day.tokens())).fold((0, 0), sum), want);
        let active = self.sessions.iter().filter(|model| model.active).count();
        assert!(active <= usize::try_from(ACTIVE_MAX).unwrap(), "{active} are active");
    }
}

async fn check(room: Room, steps: Vec<Step>) {
    let first = Model::new(room.beside(room.session));
    let mut world = World { room, sessions: vec![first], requests: Vec::new(), spent: (0, 0) };
    for step in steps {
        world.step(step).await;
        world.compare().await;
    }
}

over_stores! {
    random_schedules_do_what_the_model_does,
}

// checklist 65
async fn random_schedules_do_what_the_model_does(shelf: Shelf) {
    let cases = match &shelf {
        Shelf::File(_) => 160,
        // A server is asked over a socket, and each step is followed by a dozen of reads.
        Shelf::Mongo(_) => 24,
    };
    let store = shelf.open().await;
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = tokio::task::block_in_place(|| {
        let runtime = tokio::runtime::Handle::current();
        TestRunner::new(config).run(&steps(), |steps| {
            let room = runtime.block_on(async {
                let user = user(&NodeId::new().to_string());
                let session = super::open(&*store, &user, Open::New, ACTIVE_MAX).await.id;
                Room { store: std::sync::Arc::clone(&store), node: NodeId::new(), user, session, _shelf: None }
            });
            runtime.block_on(check(room, steps));
            Ok::<_, TestCaseError>(())
        })
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}
