//! Changes of whole sessions: names, models, ends, calls for help, deletion.

use std::sync::Arc;

use chatbox::{
    chat::{Session, SessionId, SessionState, Timestamp, TurnId, TurnState},
    store::{Change, Changed, Error, Lost, NewEntry, NewShare, Open, OpenSession, Range},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Room, Shelf, open, piece, user};

over_stores! {
    owner_names_a_session_and_the_first_message_does_not_any_more,
    model_improves_the_first_name_once_and_never_the_owners,
    owner_who_keeps_a_guessed_name_makes_it_their_own,
    chosen_model_answers_from_the_next_turn_on,
    session_ends_once_and_each_call_tells_the_turns_that_are_open,
    of_many_parallel_ends_one_counts,
    queued_turns_of_an_ended_session_do_not_start_and_are_found_until_somebody_ends_them,
    idle_session_ends_unless_something_happened_or_is_about_to,
    help_is_asked_for_and_called_off_while_the_session_is_active,
    session_of_another_user_is_neither_changed_nor_deleted,
    opened_session_tells_what_it_changed_and_what_ended_for_it,
    activity_survives_a_restart,
    deleted_session_is_gone_with_everything_in_it,
}

impl Room {
    pub(super) async fn change(&self, change: Change) -> Result<Changed, Error> {
        self.store.change_session(self.session, Some(self.user.clone()), change).await
    }

    /// Makes a change that must raise `rev` by one, or must not touch the session.
    pub(super) async fn changes(&self, change: Change, changed: bool) -> Session {
        let before = self.row().await;
        let done = self.change(change.clone()).await.unwrap();
        assert_eq!(done.changed, changed, "{change:?}");
        let after = self.row().await;
        assert_eq!(done.session, after, "{change:?}");
        if changed {
            assert_eq!(after.rev, before.rev + 1, "{change:?}");
        } else {
            assert_eq!(after, before, "{change:?}");
        }
        after
    }

    /// A room of the same user with another session.
    pub(super) fn beside(&self, session: SessionId) -> Self {
        let (store, user) = (Arc::clone(&self.store), self.user.clone());
        Self { store, node: self.node, user, session, _shelf: None }
    }

    /// A room of the same user with a new session.
    pub(super) async fn next(&self, active_max: u32) -> Self {
        self.beside(open(&*self.store, &self.user, Open::New, active_max).await.id)
    }
}

fn name(text: &str) -> Change {
    Change::Name(text.to_owned())
}

fn better(text: &str) -> Change {
    Change::BetterName(text.to_owned())
}

async fn owner_names_a_session_and_the_first_message_does_not_any_more(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    assert_eq!(room.changes(name("größer"), true).await.name.as_deref(), Some("größer"));
    room.changes(name("größer"), false).await;
    room.append(NewEntry { session_name: Some("guess".to_owned()), ..room.entry("hello") }).await;
    room.changes(better("better guess"), false).await;
    assert_eq!(room.changes(name("second"), true).await.name.as_deref(), Some("second"));
}

// checklist 70
async fn model_improves_the_first_name_once_and_never_the_owners(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.append(NewEntry { session_name: Some("from the message".to_owned()), ..room.entry("hello") }).await;
    assert_eq!(room.row().await.name.as_deref(), Some("from the message"));
    assert_eq!(room.changes(better("from the model"), true).await.name.as_deref(), Some("from the model"));
    room.changes(better("once more"), false).await;
    room.changes(name("mine"), true).await;
    room.changes(better("too late"), false).await;
}

async fn owner_who_keeps_a_guessed_name_makes_it_their_own(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.append(NewEntry { session_name: Some("guess".to_owned()), ..room.entry("hello") }).await;
    room.changes(name("guess"), false).await;
    assert_eq!(room.changes(better("better guess"), false).await.name.as_deref(), Some("guess"));
}

async fn chosen_model_answers_from_the_next_turn_on(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("1").await;
    assert_eq!(room.changes(Change::Model("large".to_owned()), true).await.model_id.as_deref(), Some("large"));
    room.changes(Change::Model("large".to_owned()), false).await;
    let running = room.store.turn(first.turn.id).await.unwrap().unwrap();
    assert_eq!(running.model_id.as_deref(), Some("small"), "the model of a running turn is fixed");
    room.end(first.turn.id, TurnState::Complete, Some("done")).await.unwrap();
    assert_eq!(room.ask("2").await.model_id, "large");
}

// checklist 77
async fn session_ends_once_and_each_call_tells_the_turns_that_are_open(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let runs = room.ask("1").await.turn.id;
    let (second, third) = (room.queue("2").await, room.queue("3").await);
    let first = room.change(Change::End).await.unwrap();
    assert_eq!((first.changed, first.session.state), (true, SessionState::Ended));
    assert!(first.session.ended_at.is_some());
    let again = room.change(Change::End).await.unwrap();
    assert_eq!(again, Changed { changed: false, ..first.clone() });
    let open = |changed: &Changed| changed.open_turns.iter().map(|turn| turn.id).collect::<Vec<_>>();
    assert_eq!(open(&first), [runs, second, third]);
    assert_eq!(room.store.open_turns(room.session).await.unwrap(), first.open_turns);
    room.end(runs, TurnState::Stopped, None).await.unwrap();
    assert_eq!(open(&room.change(Change::End).await.unwrap()), [second, third]);
    assert_eq!(room.row().await.ended_at, first.session.ended_at);
    assert!(matches!(room.store.append(room.question("too late")).await, Err(Error::Ended)));
}

// checklist 77
async fn of_many_parallel_ends_one_counts(shelf: Shelf) {
    let room = Arc::new(Room::fresh(shelf).await);
    let rev = room.row().await.rev;
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let room = Arc::clone(&room);
        calls.spawn(async move { room.change(Change::End).await.unwrap() });
    }
    let ends = calls.join_all().await;
    assert_eq!(ends.iter().filter(|end| end.changed).count(), 1);
    assert!(ends.iter().all(|end| end.session == ends[0].session));
    assert_eq!(room.row().await.rev, rev + 1);
}

async fn queued_turns_of_an_ended_session_do_not_start_and_are_found_until_somebody_ends_them(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let runs = room.ask("1").await.turn.id;
    let waits = room.queue("2").await;
    room.change(Change::End).await.unwrap();
    room.end(runs, TurnState::Stopped, None).await.unwrap();
    let lease = room.lease(super::LONG);
    assert!(matches!(room.store.start_turn(room.session, lease.clone()).await, Err(Error::Ended)));
    let lost = room.store.lost(room.node, 10).await.unwrap();
    assert_eq!((lost.turns, lost.sessions), (vec![], vec![room.session]));
    room.end(waits, TurnState::Stopped, None).await.unwrap();
    assert_eq!(room.store.start_turn(room.session, lease).await.unwrap(), None);
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), Lost::default());
}

// checklist 71, W9
async fn idle_session_ends_unless_something_happened_or_is_about_to(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("1").await.turn.id;
    let idle = |since: Timestamp| Change::EndIdle { since };
    let last_activity = room.row().await.last_activity;
    room.changes(idle(last_activity), false).await;
    assert_eq!(room.store.idle_sessions(last_activity, 9).await.unwrap(), [], "a turn runs");
    room.end(turn, TurnState::Complete, Some("done")).await.unwrap();
    let before = Timestamp(last_activity.0 - 1);
    room.changes(idle(before), false).await;
    assert_eq!(room.store.idle_sessions(before, 9).await.unwrap(), []);
    assert_eq!(room.store.idle_sessions(last_activity, 9).await.unwrap(), [room.session]);
    assert_eq!(room.store.idle_sessions(last_activity, 0).await.unwrap(), []);
    assert_eq!(room.changes(idle(last_activity), true).await.state, SessionState::Ended);
    room.changes(idle(last_activity), false).await;
    assert_eq!(room.store.idle_sessions(last_activity, 9).await.unwrap(), [], "it has ended");
}

async fn help_is_asked_for_and_called_off_while_the_session_is_active(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.changes(Change::Help(false), false).await;
    assert!(room.changes(Change::Help(true), true).await.help_requested);
    room.changes(Change::Help(true), false).await;
    assert!(!room.changes(Change::Help(false), true).await.help_requested);
    room.changes(Change::End, true).await;
    let before = room.row().await;
    for change in [Change::Help(true), Change::Help(false), Change::Model("large".to_owned())] {
        assert!(matches!(room.change(change.clone()).await, Err(Error::Ended)), "{change:?}");
    }
    assert_eq!(room.row().await, before);
    room.changes(name("an old one"), true).await;
}

// checklist 1
async fn session_of_another_user_is_neither_changed_nor_deleted(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.ask("mine").await;
    let before = room.row().await;
    let all = [
        name("hers"),
        better("hers"),
        Change::Model("large".to_owned()),
        Change::End,
        Change::EndIdle { since: Timestamp(i64::MAX) },
        Change::Help(true),
    ];
    for change in all {
        let foreign = room.store.change_session(room.session, Some(user("eve")), change.clone()).await;
        assert!(matches!(foreign, Err(Error::NotFound)), "{change:?}");
        let unknown = room.store.change_session(SessionId::new(), Some(room.user.clone()), change.clone()).await;
        assert!(matches!(unknown, Err(Error::NotFound)), "{change:?}");
    }
    assert!(matches!(room.store.delete_session(room.session, user("eve")).await, Err(Error::NotFound)));
    assert_eq!(room.row().await, before);
    let anyone = room.store.change_session(room.session, None, Change::Help(true)).await.unwrap();
    assert!(anyone.changed && anyone.session.help_requested);
}

async fn opened_session_tells_what_it_changed_and_what_ended_for_it(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let ask = |open| OpenSession { user_id: room.user.clone(), open, id: SessionId::new(), active_max: 1 };
    let current = room.store.open_session(ask(Open::Current)).await.unwrap();
    assert_eq!((current.session.id, current.changed, current.ended.len()), (room.session, false, 0));
    let before = room.row().await;
    let new = room.store.open_session(ask(Open::New)).await.unwrap();
    let ended = room.row().await;
    assert_eq!((ended.state, ended.rev), (SessionState::Ended, before.rev + 1));
    assert_eq!((new.changed, &new.ended), (true, &vec![ended.clone()]));
    let again = room.store.open_session(ask(Open::Reopen(room.session))).await.unwrap();
    assert_eq!((again.session.rev, again.session.ended_at, again.changed), (ended.rev + 1, None, true));
    assert_eq!(again.ended.iter().map(|ended| ended.id).collect::<Vec<_>>(), [new.session.id]);
    let active = room.store.open_session(ask(Open::Reopen(room.session))).await.unwrap();
    assert_eq!((active.session, active.changed, active.ended), (again.session, false, vec![]));
}

// checklist 73
async fn activity_survives_a_restart(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    while room.row().await.last_activity == room.row().await.created_at {
        room.append(room.entry("busy")).await;
    }
    let before = room.row().await;
    room.store.close().await;
    let room = Room { store: shelf.open().await, ..room };
    assert_eq!(room.row().await, before);
}

async fn deleted_session_is_gone_with_everything_in_it(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let other = room.next(2).await;
    let kept = other.append(other.question("kept")).await;
    let client_id = Some(Uuid::new_v4());
    let answered = room.ask("first").await.turn.id;
    room.end(answered, TurnState::Complete, Some("done")).await.unwrap();
    let question = NewEntry { client_id, ..room.question("second") };
    let runs = room.append(question.clone()).await.started.unwrap().turn.id;
    assert!(room.extend(runs, 0, "half an answer").await);
    let waits = room.queue("third").await;
    let share = Uuid::new_v4();
    let new =
        NewShare { id: share, session_id: room.session, owner: room.user.clone(), expires_at: None, shares_max: 3 };
    room.store.share(new).await.unwrap();

    let before = room.row().await;
    let deleted = room.store.delete_session(room.session, room.user.clone()).await.unwrap();
    assert_eq!((deleted.session, deleted.changed), (before, true));
    assert_eq!(deleted.open_turns.iter().map(|turn| turn.id).collect::<Vec<_>>(), [runs, waits]);
    let store = &room.store;
    assert_eq!(store.session(room.session).await.unwrap(), None);
    assert_eq!(room.log().await, []);
    for turn in [answered, runs, waits] {
        assert_eq!(store.turn(turn).await.unwrap(), None);
        assert!(matches!(store.turn_text(turn, 0).await, Err(Error::NotFound)));
    }
    assert_eq!(store.shared(share).await.unwrap(), None);
    assert_eq!(store.lost(room.node, 9).await.unwrap(), Lost::default());
    assert!(matches!(store.delete_session(room.session, room.user.clone()).await, Err(Error::NotFound)));

    assert!(!room.extend(runs, 14, "late").await, "whoever still writes is told that it is not theirs");
    assert_eq!(room.end(runs, TurnState::Stopped, Some("late")).await, None);
    assert_eq!(room.give_up(runs, TurnId::new()).await, None);
    assert_eq!(room.start().await, None);
    assert!(matches!(store.append(room.question("more")).await, Err(Error::NotFound)));
    let again = NewEntry { session_id: other.session, ..question };
    assert!(!room.append(again).await.duplicate, "the request is forgotten with what it made");
    assert_eq!(store.entries(other.session, Range::After(0, 1)).await.unwrap(), [kept.entry]);
    let running = store.running_turn(other.session).await.unwrap().unwrap();
    assert!(store.extend_turn(running.id, room.node, piece(0, "goes on"), super::LONG).await.unwrap());
}
