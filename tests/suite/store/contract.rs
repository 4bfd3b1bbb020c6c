//! Sessions and entries: places, idempotence, ownership, slots.

use std::{collections::BTreeSet, sync::Arc};

use chatbox::{
    chat::{Metadata, RequestId, Scalar, SessionId, SessionState},
    store::{Error, NewEntry, Open, OpenSession, Opened, Range},
};
use tokio::task::JoinSet;

use super::{Room, Shelf, open, places, user};

over_stores! {
    parallel_writers_get_places_without_gaps,
    repeated_request_is_applied_once_even_in_parallel_and_after_a_restart,
    repeated_row_is_recognised_without_a_request_id,
    two_users_may_choose_the_same_request_id,
    foreign_session_is_not_found_and_nothing_is_stored,
    ended_session_takes_no_message_but_knows_the_ones_it_took,
    entry_comes_back_as_it_was_written,
    ranges_are_in_order_and_keep_their_limit,
    first_message_names_the_session_and_later_ones_do_not,
    revs_are_read_for_the_sessions_that_there_are,
    fifty_parallel_first_visits_share_one_session,
    parallel_new_sessions_never_exceed_the_slots,
    new_session_ends_the_one_that_was_silent_longest,
    current_session_is_the_active_one_with_the_latest_activity,
    reopened_session_is_active_again_and_another_one_ends,
    session_of_another_user_is_neither_reopened_nor_found_by_its_id,
    repeated_call_finds_the_session_that_the_first_one_made,
    closed_store_takes_no_write,
}

// checklist 65, W1
async fn parallel_writers_get_places_without_gaps(shelf: Shelf) {
    let room = Arc::new(Room::new(shelf.open().await).await);
    let mut writers = JoinSet::new();
    for writer in 0..64 {
        let room = Arc::clone(&room);
        writers.spawn(async move {
            let mut seen = Vec::new();
            for nth in 0..4 {
                seen.push(room.append(room.entry(&format!("{writer}.{nth}"))).await.entry.seq);
            }
            seen
        });
    }
    let each = writers.join_all().await;
    assert!(each.iter().all(|seen| seen.is_sorted()), "a writer's own messages keep their order");
    let all: BTreeSet<u64> = each.into_iter().flatten().collect();
    assert_eq!(all, (1..=256).collect());
    assert_eq!(places(&room.log().await), (1..=256).collect::<Vec<_>>());
    assert_eq!(room.row().await.last_seq, 256);
}

// checklist 68, 75, 76, W6
async fn repeated_request_is_applied_once_even_in_parallel_and_after_a_restart(shelf: Shelf) {
    let room = Arc::new(Room::new(shelf.open().await).await);
    let client_id = Some(RequestId::new_v4());
    let mut calls = JoinSet::new();
    for nth in 0..64 {
        let room = Arc::clone(&room);
        calls.spawn(async move {
            let question = room.question(&format!("attempt {nth}"));
            room.append(NewEntry { client_id, ..question }).await
        });
    }
    let mut answers = calls.join_all().await;
    answers.sort_by_key(|answer| answer.duplicate);
    let first = answers[0].clone();
    assert!(first.started.is_some() && !first.duplicate);
    for again in &answers[1..] {
        assert_eq!((again.duplicate, &again.entry, &again.started), (true, &first.entry, &None));
    }
    let rev = room.row().await.rev;
    room.store.close().await;

    let room = Arc::into_inner(room).expect("all calls have ended");
    let room = Room { store: shelf.open().await, ..room };
    let again = room.append(NewEntry { client_id, ..room.question("after the restart") }).await;
    assert_eq!((again.duplicate, again.entry, again.started, again.rev), (true, first.entry, None, rev));
    assert_eq!(places(&room.log().await), [1, 2]);
}

// checklist 75, W6
async fn repeated_row_is_recognised_without_a_request_id(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let entry = NewEntry { client_id: None, ..room.entry("once") };
    let first = room.append(entry.clone()).await;
    let again = room.append(entry).await;
    assert_eq!((first.duplicate, again.duplicate), (false, true));
    assert_eq!(again.entry, first.entry);
    assert_eq!(room.log().await, [first.entry]);
}

// checklist 1
async fn two_users_may_choose_the_same_request_id(shelf: Shelf) {
    let store = shelf.open().await;
    let room = Room::new(Arc::clone(&store)).await;
    let eve = user("eve");
    let session = open(&*store, &eve, Open::Current, 1).await.id;
    let client_id = Some(RequestId::new_v4());
    let first = room.append(NewEntry { client_id, ..room.entry("mine") }).await;
    let other = NewEntry { client_id, session_id: session, owner: eve.clone(), user_id: eve, ..room.entry("hers") };
    let second = room.append(other).await;
    assert_eq!((first.duplicate, second.duplicate), (false, false));
    assert_eq!(second.entry.content, "hers");
}

// checklist 1, 2, 3
async fn foreign_session_is_not_found_and_nothing_is_stored(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let before = room.row().await;
    let eve = user("eve");
    let entry = NewEntry { owner: eve.clone(), user_id: eve, ..room.question("let me in") };
    assert!(matches!(room.store.append(entry).await, Err(Error::NotFound)));
    let unknown = NewEntry { session_id: SessionId::new(), ..room.question("nobody is here") };
    assert!(matches!(room.store.append(unknown).await, Err(Error::NotFound)));
    assert_eq!(room.row().await, before);
    assert_eq!(room.log().await, []);
    assert_eq!(room.store.running_turn(room.session).await.unwrap(), None);
}

// checklist W10
async fn ended_session_takes_no_message_but_knows_the_ones_it_took(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let taken = room.entry("in time");
    let first = room.append(taken.clone()).await;
    open(&*room.store, &room.user, Open::New, 1).await;
    let ended = room.row().await;
    assert_eq!(ended.state, SessionState::Ended);
    assert!(matches!(room.store.append(room.question("too late")).await, Err(Error::Ended)));
    assert_eq!(room.row().await, ended);
    let again = room.append(taken).await;
    assert_eq!((again.duplicate, again.entry), (true, first.entry));
}

// checklist 27, W27
async fn entry_comes_back_as_it_was_written(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let metadata = Metadata::from([
        ("flag".to_owned(), Scalar::Bool(true)),
        ("size".to_owned(), Scalar::Integer(-7)),
        ("ratio".to_owned(), Scalar::Number(0.5)),
        ("name".to_owned(), Scalar::Text("größe \"1\"".to_owned())),
    ]);
    let files = vec!["a".to_owned(), "b/ü".to_owned()];
    let content = "tab\t, zero \0, 日本語 and 👍🏽\r\n";
    let entry = NewEntry { files: files.clone(), metadata: metadata.clone(), ..room.entry(content) };
    let stored = room.append(entry.clone()).await.entry;
    assert_eq!(room.log().await, std::slice::from_ref(&stored));
    assert_eq!((stored.content.as_str(), stored.files, stored.metadata), (content, files, metadata));
    assert_eq!((stored.id, stored.client_id, stored.user_id), (entry.id, entry.client_id, entry.user_id));
}

async fn ranges_are_in_order_and_keep_their_limit(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    for nth in 1..=5 {
        room.append(room.entry(&nth.to_string())).await;
    }
    let cases = [
        (Range::After(0, 1000), vec![1, 2, 3, 4, 5]),
        (Range::After(2, 2), vec![3, 4]),
        (Range::After(5, 10), vec![]),
        (Range::After(u64::MAX, 10), vec![]),
        (Range::After(0, 0), vec![]),
        (Range::Before(4, 2), vec![2, 3]),
        (Range::Before(2, 9), vec![1]),
        (Range::Before(1, 9), vec![]),
        (Range::Before(0, 9), vec![]),
        (Range::Before(9, 2), vec![4, 5]),
        (Range::Before(u64::MAX, 1), vec![5]),
        (Range::Before(4, 0), vec![]),
        (Range::Last(2), vec![4, 5]),
        (Range::Last(1000), vec![1, 2, 3, 4, 5]),
    ];
    for (range, want) in cases {
        assert_eq!(places(&room.store.entries(room.session, range).await.unwrap()), want, "{range:?}");
    }
    assert_eq!(room.store.entries(SessionId::new(), Range::Last(10)).await.unwrap(), []);
}

// checklist 70
async fn first_message_names_the_session_and_later_ones_do_not(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    assert_eq!(room.row().await.name, None);
    for name in ["Ünïcode first", "second"] {
        room.append(NewEntry { session_name: Some(name.to_owned()), ..room.entry("hello") }).await;
    }
    assert_eq!(room.row().await.name.as_deref(), Some("Ünïcode first"));
}

async fn revs_are_read_for_the_sessions_that_there_are(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let appended = room.append(room.entry("hello")).await;
    let revs = room.store.revs(&[SessionId::new(), room.session]).await.unwrap();
    assert_eq!(revs, [(room.session, appended.rev)]);
    assert_eq!(room.store.session(SessionId::new()).await.unwrap(), None);
}

// checklist 3, 4, W4
async fn fifty_parallel_first_visits_share_one_session(shelf: Shelf) {
    let store = shelf.open().await;
    let mut visits = JoinSet::new();
    for _ in 0..50 {
        let store = Arc::clone(&store);
        visits.spawn(async move { open(&*store, &user("ada"), Open::Current, 1).await });
    }
    let sessions: BTreeSet<SessionId> = visits.join_all().await.into_iter().map(|session| session.id).collect();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
}

// checklist 4, W4
async fn parallel_new_sessions_never_exceed_the_slots(shelf: Shelf) {
    let store = shelf.open().await;
    let mut calls = JoinSet::new();
    for _ in 0..30 {
        let store = Arc::clone(&store);
        calls.spawn(async move { open(&*store, &user("ada"), Open::New, 3).await });
    }
    let made = calls.join_all().await;
    assert!(made.iter().all(|session| session.state == SessionState::Active), "each is active as it is made");
    let mut active = 0;
    for session in &made {
        active += usize::from(store.session(session.id).await.unwrap().unwrap().state == SessionState::Active);
    }
    assert_eq!((made.len(), active), (30, 3));
}

async fn new_session_ends_the_one_that_was_silent_longest(shelf: Shelf) {
    let store = shelf.open().await;
    let room = Room::new(Arc::clone(&store)).await;
    let second = open(&*store, &room.user, Open::New, 3).await;
    let third = open(&*store, &room.user, Open::New, 3).await;
    grow_until_latest(&room, third.last_activity.0).await;
    let fourth = open(&*store, &room.user, Open::New, 3).await;
    let mut states = Vec::new();
    for id in [room.session, second.id, third.id, fourth.id] {
        states.push(store.session(id).await.unwrap().unwrap().state);
    }
    use SessionState::{Active, Ended};
    assert_eq!(states, [Active, Ended, Active, Active]);
}

async fn current_session_is_the_active_one_with_the_latest_activity(shelf: Shelf) {
    let store = shelf.open().await;
    let room = Room::new(Arc::clone(&store)).await;
    let second = open(&*store, &room.user, Open::New, 2).await;
    grow_until_latest(&room, second.last_activity.0).await;
    assert_eq!(open(&*store, &room.user, Open::Current, 2).await, room.row().await);
}

/// Adds messages until the session's activity is later than a moment, by the store's own clock.
async fn grow_until_latest(room: &Room, moment: i64) {
    while room.row().await.last_activity.0 <= moment {
        room.append(room.entry("busy")).await;
    }
}

// checklist W12
async fn reopened_session_is_active_again_and_another_one_ends(shelf: Shelf) {
    let store = shelf.open().await;
    let room = Room::new(Arc::clone(&store)).await;
    room.append(room.entry("before")).await;
    let second = open(&*store, &room.user, Open::New, 1).await;
    let ended = room.row().await;
    let again = open(&*store, &room.user, Open::Reopen(room.session), 1).await;
    assert_eq!((again.state, again.last_seq), (SessionState::Active, 1));
    assert!(again.rev > ended.rev, "{} > {}", again.rev, ended.rev);
    let other = store.session(second.id).await.unwrap().unwrap();
    assert_eq!((other.state, other.rev > second.rev), (SessionState::Ended, true));
    assert_eq!(open(&*store, &room.user, Open::Reopen(room.session), 1).await, again, "it is active already");
    assert_eq!(room.append(room.entry("after")).await.entry.seq, 2);
}

// checklist 1, 2, 3
async fn session_of_another_user_is_neither_reopened_nor_found_by_its_id(shelf: Shelf) {
    let store = shelf.open().await;
    let room = Room::new(Arc::clone(&store)).await;
    let before = room.row().await;
    for open in [Open::Reopen(room.session), Open::Reopen(SessionId::new()), Open::New, Open::Current] {
        let ask = OpenSession { user_id: user("eve"), open, id: room.session, active_max: 1 };
        assert!(matches!(store.open_session(ask).await, Err(Error::NotFound)), "{open:?}");
    }
    assert_eq!(room.row().await, before);
}

// checklist 4, 75
async fn repeated_call_finds_the_session_that_the_first_one_made(shelf: Shelf) {
    let store = shelf.open().await;
    let ask = OpenSession { user_id: user("ada"), open: Open::New, id: SessionId::new(), active_max: 1 };
    let first = store.open_session(ask.clone()).await.unwrap();
    assert_eq!((first.session.id, first.changed), (ask.id, true));
    let again = store.open_session(ask).await.unwrap();
    assert_eq!(again, Opened { changed: false, ..first });
}

async fn closed_store_takes_no_write(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    room.store.ready().await.unwrap();
    let last = room.append(room.entry("last")).await.entry;
    room.store.close().await;
    assert!(matches!(room.store.append(room.entry("later")).await, Err(Error::Database(_))));
    assert!(matches!(room.store.ready().await, Err(Error::Database(_))));
    let again = shelf.open().await;
    assert_eq!(again.entries(room.session, Range::Last(10)).await.unwrap(), [last]);
}
