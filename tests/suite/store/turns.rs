//! Turns: started once, one at a time, ended once, found when nobody runs them.

use std::{sync::Arc, time::Duration};

use chatbox::{
    chat::{ErrorCode, NodeId, SessionId, TurnId, TurnState, Usage},
    store::{EndTurn, Error, Lost, NewTurn, Open, Range},
};
use tokio::task::JoinSet;

use super::{LONG, Room, Shelf, ending, open, piece, places};

over_stores! {
    message_and_the_start_of_its_turn_are_one_write,
    turns_run_one_at_a_time_in_the_order_of_their_messages,
    question_after_the_queue_has_ended_starts_at_once,
    question_waits_behind_a_queued_turn_that_nobody_has_started,
    full_queue_refuses_the_question_and_stores_nothing,
    parallel_starts_start_one_turn_and_a_repeated_one_finds_it,
    text_is_added_only_at_the_end_by_the_node_that_runs_the_turn,
    text_is_read_from_any_offset,
    turn_ends_exactly_once_whoever_asks,
    reply_has_the_text_its_length_its_hash_and_its_tokens,
    failed_turn_keeps_what_was_shown,
    state_that_is_no_end_is_refused,
    turn_that_ends_while_it_waits_gets_an_empty_reply_at_the_end_of_the_log,
    turn_whose_node_lives_is_not_lost,
    turn_whose_lease_has_run_out_is_lost_until_its_node_renews_it,
    turn_of_a_former_run_is_interrupted_with_its_text_after_a_restart,
    lost_keeps_its_limit,
    turn_that_asks_its_message_again_is_the_next_to_start,
    message_of_a_turn_that_waited_is_asked_again_behind_the_running_one,
    message_is_asked_again_only_where_nothing_is_left_of_its_answer,
    message_whose_turn_has_not_ended_or_whose_session_has_is_not_asked_again,
    end_of_an_abandoned_turn_and_its_message_asked_again_are_one_write,
    end_of_a_session_leaves_its_running_turn_to_the_caller,
    every_change_raises_the_rev,
}

async fn message_and_the_start_of_its_turn_are_one_write(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let question = room.question("how are you?");
    let asked = question.turn.clone().unwrap();
    let appended = room.append(question).await;
    let started = appended.started.unwrap();
    assert_eq!((appended.entry.seq, started.reply_seq, started.rev), (1, 2, room.row().await.rev));
    assert_eq!(appended.entry.turn_id, Some(asked.id));
    assert_eq!(
        (started.turn.id, started.turn.state, started.turn.node),
        (asked.id, TurnState::Running, Some(room.node))
    );
    assert_eq!((started.turn.message_seq, started.turn.reply_seq), (1, Some(2)));
    assert_eq!((&started.user_id, started.model_id.as_str()), (&room.user, "small"));
    assert_eq!(room.store.running_turn(room.session).await.unwrap(), Some(started.turn.clone()));
    assert_eq!(room.store.turn(asked.id).await.unwrap(), Some(started.turn));
    let log = room.log().await;
    assert_eq!(log[0], appended.entry);
    let reply = &log[1];
    assert_eq!((reply.id, reply.reply_to, reply.turn_id), (asked.lease.reply_id, Some(1), Some(asked.id)));
    assert_eq!((reply.content.as_str(), reply.state, reply.length), ("", Some(TurnState::Running), None));
    assert_eq!((reply.model_id.as_deref(), reply.settled()), (Some("small"), false));
}

async fn turns_run_one_at_a_time_in_the_order_of_their_messages(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("1").await.turn.id;
    let second = room.queue("2").await;
    let third = room.queue("3").await;
    assert_eq!(room.start().await, None, "one runs already");
    let mut order = vec![first];
    for expected in [second, third] {
        room.end(order[order.len() - 1], TurnState::Complete, Some("done")).await.unwrap();
        let started = room.start().await.unwrap();
        assert_eq!(started.turn.id, expected);
        order.push(started.turn.id);
    }
    room.end(third, TurnState::Complete, Some("done")).await.unwrap();
    assert_eq!(room.start().await, None);
    let log = room.log().await;
    assert_eq!(places(&log), [1, 2, 3, 4, 5, 6]);
    let replies: Vec<_> = log.iter().filter_map(|entry| entry.reply_to.map(|to| (entry.seq, to))).collect();
    assert_eq!(replies, [(2, 1), (5, 3), (6, 4)]);
}

async fn question_after_the_queue_has_ended_starts_at_once(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("1").await.turn.id;
    room.end(first, TurnState::Failed, Some("")).await.unwrap();
    assert_eq!(room.ask("2").await.turn.message_seq, 3);
}

async fn question_waits_behind_a_queued_turn_that_nobody_has_started(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("1").await.turn.id;
    let second = room.queue("2").await;
    room.end(first, TurnState::Complete, Some("done")).await.unwrap();
    room.queue("3").await;
    assert_eq!(room.start().await.unwrap().turn.id, second);
}

async fn full_queue_refuses_the_question_and_stores_nothing(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.ask("runs").await;
    room.queue("waits").await;
    room.queue("waits too").await;
    let before = room.row().await;
    let mut question = room.question("one too many");
    question.turn = Some(NewTurn { queued_max: 2, ..question.turn.unwrap() });
    assert!(matches!(room.store.append(question.clone()).await, Err(Error::QueueFull)));
    assert_eq!(room.row().await, before);
    question.turn = Some(NewTurn { queued_max: 3, ..question.turn.unwrap() });
    assert!(!room.append(question).await.duplicate);
}

async fn parallel_starts_start_one_turn_and_a_repeated_one_finds_it(shelf: Shelf) {
    let room = Arc::new(Room::fresh(shelf).await);
    let first = room.ask("1").await.turn.id;
    let second = room.queue("2").await;
    room.queue("3").await;
    room.end(first, TurnState::Complete, Some("done")).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let room = Arc::clone(&room);
        calls.spawn(async move {
            let lease = room.lease(LONG);
            (room.store.start_turn(room.session, lease.clone()).await.unwrap(), lease)
        });
    }
    let started: Vec<_> = calls.join_all().await.into_iter().filter(|(started, _lease)| started.is_some()).collect();
    assert_eq!(started.len(), 1);
    let (once, lease) = started.into_iter().next().unwrap();
    assert_eq!(once.as_ref().unwrap().turn.id, second);
    assert_eq!(room.store.start_turn(room.session, lease).await.unwrap(), once, "a repeated call finds what it did");
    assert_eq!(room.store.start_turn(SessionId::new(), room.lease(LONG)).await.unwrap(), None);
}

async fn text_is_added_only_at_the_end_by_the_node_that_runs_the_turn(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    assert!(room.extend(turn, 0, "grü").await);
    assert!(!room.extend(turn, 3, "x").await, "offset inside");
    assert!(!room.extend(turn, 5, "x").await, "offset behind the end");
    assert!(!room.extend(turn, 0, "gru").await, "other text at a known offset");
    assert!(room.extend(turn, 0, "grü").await, "a repeated call is recognised");
    let stranger = room.store.extend_turn(turn, NodeId::new(), piece(4, "x"), LONG).await.unwrap();
    assert!(!stranger, "another node");
    assert!(room.extend(turn, 4, "").await, "no text renews the lease");
    assert!(room.extend(turn, 4, "n").await);
    assert!(!room.extend(TurnId::new(), 0, "x").await, "an unknown turn");
    assert_eq!(room.store.turn_text(turn, 0).await.unwrap(), piece(0, "grün"));
    room.end(turn, TurnState::Stopped, None).await.unwrap();
    assert!(!room.extend(turn, 5, "late").await, "after the end");
    assert_eq!(room.log().await[1].content, "grün");
}

async fn text_is_read_from_any_offset(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    assert_eq!(room.store.turn_text(turn, 0).await.unwrap(), piece(0, ""));
    assert!(room.extend(turn, 0, "añ").await && room.extend(turn, 3, "日本").await && room.extend(turn, 9, "!").await);
    let cases = [
        (0, 0, "añ日本!"),
        (1, 1, "ñ日本!"),
        (2, 1, "ñ日本!"),
        (3, 3, "日本!"),
        (6, 6, "本!"),
        (9, 9, "!"),
        (10, 10, ""),
    ];
    for (asked, offset, text) in cases {
        assert_eq!(room.store.turn_text(turn, asked).await.unwrap(), piece(offset, text), "from {asked}");
    }
    assert_eq!(room.store.turn_text(turn, u64::MAX).await.unwrap(), piece(10, ""));
    assert!(matches!(room.store.turn_text(TurnId::new(), 0).await, Err(Error::NotFound)));
    room.end(turn, TurnState::Complete, None).await.unwrap();
    assert_eq!(room.store.turn_text(turn, 0).await.unwrap().text, "", "the text is the reply's content");
}

async fn turn_ends_exactly_once_whoever_asks(shelf: Shelf) {
    let room = Arc::new(Room::fresh(shelf).await);
    let turn = room.ask("go").await.turn.id;
    assert!(room.extend(turn, 0, "so far").await);
    let states = [TurnState::Complete, TurnState::Stopped, TurnState::Interrupted, TurnState::Failed];
    let mut calls = JoinSet::new();
    for nth in 0..32 {
        let room = Arc::clone(&room);
        calls.spawn(async move {
            let text = (nth % 2 == 0).then(|| format!("text {nth}"));
            room.end(turn, states[nth % 4], text.as_deref()).await
        });
    }
    let ended: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    assert_eq!(ended.len(), 1);
    let log = room.log().await;
    assert_eq!(log[1], ended[0].reply);
    assert_eq!(room.store.turn(turn).await.unwrap().unwrap().state, ended[0].reply.state.unwrap());
    assert_eq!(room.row().await.rev, ended[0].rev);
    assert_eq!(room.end(TurnId::new(), TurnState::Stopped, None).await, None);
}

async fn reply_has_the_text_its_length_its_hash_and_its_tokens(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let usage = Some(Usage { prompt_tokens: 11, completion_tokens: 3, estimated: true });
    let started = room.ask("go").await;
    let text = Some("héllo 👍".to_owned());
    let end = EndTurn { text, usage, ..ending(started.turn.id, TurnState::Complete) };
    let reply = room.store.end_turn(end).await.unwrap().unwrap().reply;
    assert_eq!((reply.content.as_str(), reply.length, reply.usage), ("héllo 👍", Some(11), usage));
    // printf 'héllo 👍' | sha256sum
    let sha256 = "a1ad86d7fdc8b524c22d91c44d37311594beab0900a36ae7623cb2be3b630edd";
    assert_eq!(reply.sha256.as_deref(), Some(sha256));
    assert_eq!(room.log().await[1], reply);
    assert_eq!(room.store.running_turn(room.session).await.unwrap(), None);
}

// checklist 69
async fn failed_turn_keeps_what_was_shown(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    assert!(room.extend(turn, 0, "half an ans").await);
    let end = EndTurn { failure: Some(ErrorCode::LlmTimeout), ..ending(turn, TurnState::Failed) };
    let reply = room.store.end_turn(end).await.unwrap().unwrap().reply;
    assert_eq!((reply.content.as_str(), reply.state, reply.length), ("half an ans", Some(TurnState::Failed), Some(11)));
}

async fn state_that_is_no_end_is_refused(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    for state in [TurnState::Queued, TurnState::Running] {
        assert!(matches!(room.store.end_turn(ending(turn, state)).await, Err(Error::Database(_))));
    }
    assert_eq!(room.store.turn(turn).await.unwrap().unwrap().state, TurnState::Running);
}

async fn turn_that_ends_while_it_waits_gets_an_empty_reply_at_the_end_of_the_log(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("runs").await.turn.id;
    let second = room.queue("waits").await;
    let ended = room.end(second, TurnState::Stopped, None).await.unwrap();
    let reply = &ended.reply;
    assert_eq!((reply.seq, reply.reply_to, reply.turn_id), (4, Some(3), Some(second)));
    assert_eq!((reply.content.as_str(), reply.state, reply.length), ("", Some(TurnState::Stopped), Some(0)));
    // printf '' | sha256sum
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(reply.sha256.as_deref(), Some(nothing));
    assert_eq!((room.row().await.last_seq, room.row().await.rev), (4, ended.rev));
    assert_eq!(room.store.turn(second).await.unwrap().unwrap().reply_seq, Some(4));
    room.end(first, TurnState::Complete, Some("done")).await.unwrap();
    assert_eq!(room.start().await, None, "it does not start any more");
}

async fn turn_whose_node_lives_is_not_lost(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    let waits = room.queue("next").await;
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), Lost::default());
    for turn in [turn, waits] {
        let end = EndTurn { only_lost: Some(room.node), ..ending(turn, TurnState::Interrupted) };
        assert_eq!(room.store.end_turn(end).await.unwrap(), None);
    }
    assert_eq!(room.store.turn(turn).await.unwrap().unwrap().state, TurnState::Running);
}

async fn turn_whose_lease_has_run_out_is_lost_until_its_node_renews_it(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("go").await.turn.id;
    assert!(room.store.extend_turn(turn, room.node, piece(0, "a"), Duration::ZERO).await.unwrap());
    let lost = room.store.lost(room.node, 10).await.unwrap();
    assert_eq!(lost.turns.iter().map(|turn| turn.id).collect::<Vec<_>>(), [turn]);
    assert!(room.store.extend_turn(turn, room.node, piece(1, "b"), LONG).await.unwrap());
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), Lost::default());
    assert!(room.store.extend_turn(turn, room.node, piece(2, "c"), Duration::ZERO).await.unwrap());
    let end = EndTurn { only_lost: Some(room.node), ..ending(turn, TurnState::Interrupted) };
    assert_eq!(room.store.end_turn(end).await.unwrap().unwrap().reply.content, "abc");
}

// checklist 68, 69
async fn turn_of_a_former_run_is_interrupted_with_its_text_after_a_restart(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    let turn = room.ask("go").await.turn.id;
    let waits = room.queue("next").await;
    assert!(room.extend(turn, 0, "half ").await);
    assert!(room.store.extend_turn(turn, room.node, piece(5, "a wörd"), Duration::ZERO).await.unwrap());
    room.store.close().await;

    let room = Room { store: shelf.open().await, node: NodeId::new(), ..room };
    let lost = room.store.lost(room.node, 10).await.unwrap();
    assert_eq!((lost.turns.len(), lost.turns[0].id, lost.sessions), (1, turn, vec![]));
    assert_eq!(room.store.turn_text(turn, 0).await.unwrap(), piece(0, "half a wörd"));
    let end = EndTurn { only_lost: Some(room.node), ..ending(turn, TurnState::Interrupted) };
    let reply = room.store.end_turn(end).await.unwrap().unwrap().reply;
    assert_eq!(
        (reply.content.as_str(), reply.state, reply.length),
        ("half a wörd", Some(TurnState::Interrupted), Some(12))
    );
    let lost = room.store.lost(room.node, 10).await.unwrap();
    assert_eq!((lost.turns.len(), lost.sessions), (0, vec![room.session]));
    assert_eq!(room.start().await.unwrap().turn.id, waits);
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), Lost::default());
}

// checklist W3
async fn lost_keeps_its_limit(shelf: Shelf) {
    let store = shelf.open().await;
    for name in ["ada", "bob", "eve"] {
        let user = super::user(name);
        let session = open(&*store, &user, Open::Current, 1).await.id;
        let room = Room { store: Arc::clone(&store), node: NodeId::new(), user, session, _shelf: None };
        let turn = room.ask("runs").await.turn.id;
        assert!(store.extend_turn(turn, room.node, piece(0, ""), Duration::ZERO).await.unwrap());
    }
    assert_eq!(store.lost(NodeId::new(), 2).await.unwrap().turns.len(), 2);
    assert_eq!(store.lost(NodeId::new(), 9).await.unwrap().turns.len(), 3);
}

async fn turn_that_asks_its_message_again_is_the_next_to_start(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.ask("1").await.turn.id;
    let second = room.queue("2").await;
    let third = room.queue("3").await;
    let (again, rev) = (TurnId::new(), room.row().await.rev);
    let ended = room.give_up(first, again).await.unwrap();
    assert_eq!((ended.reply.content.as_str(), ended.asked_again, ended.waiting), ("", true, true));
    assert_eq!((ended.rev, room.row().await.rev), (rev + 1, rev + 1), "both are one change");
    assert_eq!(room.give_up(first, again).await, None, "a repeated call is recognised");
    assert_eq!(room.give_up(first, TurnId::new()).await, None, "the message has a turn that waits");
    assert_eq!(room.open_turns().await, [again, second, third]);
    let waiting = room.store.turn(again).await.unwrap().unwrap();
    assert_eq!((waiting.state, waiting.message_seq, waiting.reply_seq), (TurnState::Queued, 1, None));
    for expected in [again, second, third] {
        let started = room.start().await.unwrap();
        assert_eq!(started.turn.id, expected);
        room.end(expected, TurnState::Complete, Some("done")).await.unwrap();
    }
    let replies: Vec<_> = room.log().await.iter().filter_map(|entry| entry.reply_to).collect();
    assert_eq!(replies, [1, 1, 3, 4], "both replies to the first message stay");
}

async fn message_of_a_turn_that_waited_is_asked_again_behind_the_running_one(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let (runs, again) = (room.ask("1").await.turn.id, TurnId::new());
    let second = room.queue("2").await;
    let third = room.queue("3").await;
    assert!(room.give_up(third, again).await.unwrap().asked_again);
    assert_eq!(room.open_turns().await, [runs, again, second]);
    room.end(runs, TurnState::Complete, Some("done")).await.unwrap();
    let started = room.start().await.unwrap().turn;
    assert_eq!((started.id, started.message_seq), (again, 4));
}

async fn message_is_asked_again_only_where_nothing_is_left_of_its_answer(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let cases = [
        ("", None, true),
        ("", Some(""), true),
        ("taken back", Some(""), true),
        ("half", None, false),
        ("", Some("all"), false),
    ];
    for (log, text, asked_again) in cases {
        let (turn, again) = (room.ask("go").await.turn.id, TurnId::new());
        assert!(room.extend(turn, 0, log).await);
        let text = text.map(ToOwned::to_owned);
        let end = EndTurn { text, again: Some(again), ..ending(turn, TurnState::Interrupted) };
        let ended = room.store.end_turn(end.clone()).await.unwrap().unwrap();
        assert_eq!((ended.asked_again, ended.waiting), (asked_again, asked_again), "{end:?}");
        assert_eq!(room.open_turns().await, if asked_again { vec![again] } else { vec![] }, "{end:?}");
        room.end(again, TurnState::Stopped, None).await;
    }
}

async fn message_whose_turn_has_not_ended_or_whose_session_has_is_not_asked_again(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("1").await.turn.id;
    let (only_lost, again) = (Some(room.node), Some(TurnId::new()));
    let end = EndTurn { only_lost, again, ..ending(turn, TurnState::Interrupted) };
    assert_eq!(room.store.end_turn(end).await.unwrap(), None, "its node lives");
    assert_eq!(room.give_up(TurnId::new(), TurnId::new()).await, None, "an unknown turn");
    assert_eq!(room.open_turns().await, [turn]);
    open(&*room.store, &room.user, Open::New, 1).await;
    let ended = room.give_up(turn, TurnId::new()).await.unwrap();
    assert_eq!((ended.asked_again, ended.waiting), (false, false));
    assert_eq!(room.open_turns().await, []);
}

// checklist 68
async fn end_of_an_abandoned_turn_and_its_message_asked_again_are_one_write(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    let turn = room.ask("go").await.turn.id;
    assert!(room.store.extend_turn(turn, room.node, piece(0, ""), Duration::ZERO).await.unwrap());
    room.store.close().await;

    // It does this one thing, and is gone too.
    let room = Room { store: shelf.open().await, node: NodeId::new(), ..room };
    let again = TurnId::new();
    let end = EndTurn { only_lost: Some(room.node), again: Some(again), ..ending(turn, TurnState::Interrupted) };
    assert!(room.store.end_turn(end.clone()).await.unwrap().unwrap().asked_again);
    room.store.close().await;

    let room = Room { store: shelf.open().await, node: NodeId::new(), ..room };
    let waits = Lost { turns: vec![], sessions: vec![room.session] };
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), waits);
    assert_eq!(room.store.end_turn(end).await.unwrap(), None, "a repeated call is recognised");
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), waits);
    assert_eq!(room.open_turns().await, [again]);
    let started = room.start().await.unwrap().turn;
    assert_eq!((started.id, started.message_seq, started.reply_seq), (again, 1, Some(3)));
    assert_eq!(room.store.lost(room.node, 10).await.unwrap(), Lost::default());
}

async fn end_of_a_session_leaves_its_running_turn_to_the_caller(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("1").await.turn.id;
    open(&*room.store, &room.user, Open::New, 1).await;
    assert!(room.extend(turn, 0, "still here").await);
    let reply = room.end(turn, TurnState::Stopped, None).await.unwrap().reply;
    assert_eq!(reply.content, "still here");
}

async fn every_change_raises_the_rev(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let mut revs = vec![room.row().await.rev];
    let appended = room.append(room.question("1")).await;
    let started = appended.started.unwrap();
    revs.extend([appended.rev, started.rev]);
    let waits = room.append(room.question("2")).await;
    revs.push(waits.rev);
    let again = TurnId::new();
    let ended = room.give_up(started.turn.id, again).await.unwrap();
    assert!(ended.asked_again);
    revs.push(ended.rev);
    revs.push(room.start().await.unwrap().rev);
    revs.push(room.end(again, TurnState::Complete, Some("x")).await.unwrap().rev);
    revs.push(room.end(waits.entry.turn_id.unwrap(), TurnState::Stopped, None).await.unwrap().rev);
    open(&*room.store, &room.user, Open::New, 1).await;
    revs.push(room.row().await.rev);
    revs.push(open(&*room.store, &room.user, Open::Reopen(room.session), 1).await.rev);
    assert!(revs.is_sorted_by(|earlier, later| earlier < later), "{revs:?}");
    let entries = room.store.entries(room.session, Range::Last(100)).await.unwrap();
    assert_eq!(places(&entries), [1, 2, 3, 4, 5]);
}
