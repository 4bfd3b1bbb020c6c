//! What requests to models took, who wrote which part of a reply, and threads of providers.

use chatbox::{
    chat::{Day, Segment, SessionId, TurnId, TurnState, Usage},
    store::{DaySpent, EndTurn, Purpose, Spend, Spent, Thread},
};
use uuid::Uuid;

use super::{Room, Shelf, ending, user};

over_stores! {
    requests_of_a_turn_are_counted_with_its_end_and_only_once,
    request_outside_of_a_turn_is_counted_once_for_each_id,
    accounts_of_users_and_days_are_apart,
    nonsense_of_a_provider_keeps_no_turn_from_ending,
    reply_of_several_models_says_who_wrote_what,
    thread_is_kept_for_each_session_and_model_with_the_place_of_its_reply,
    session_that_is_deleted_takes_its_threads_along_and_leaves_its_costs,
    turn_that_nobody_ran_any_more_is_not_charged_by_its_former_node,
}

fn spent(model_id: &str, prompt_tokens: u64, completion_tokens: u64) -> Spent {
    let usage = Usage { prompt_tokens, completion_tokens, estimated: false };
    Spent { model_id: model_id.to_owned(), purpose: Purpose::Reply, usage, cost: None }
}

fn by(offset: u64, model_id: &str) -> Segment {
    Segment { offset, model_id: model_id.to_owned() }
}

/// Model, requests, prompt tokens, completion tokens, estimated ones, cost.
type Line = (String, u64, u64, u64, u64, Option<u64>);

fn line(model_id: &str, requests: u64, tokens: (u64, u64), estimated: u64, cost: Option<u64>) -> Line {
    (model_id.to_owned(), requests, tokens.0, tokens.1, estimated, cost)
}

impl Room {
    /// What the user's requests took, all days together: a test may run over midnight.
    async fn account(&self) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for DaySpent { model_id, requests, prompt_tokens, completion_tokens, estimated_tokens, cost, .. } in
            self.store.spent(&self.user, Day(0)).await.unwrap()
        {
            let tokens = (prompt_tokens, completion_tokens);
            match lines.iter_mut().find(|line| line.0 == model_id) {
                Some(sum) => {
                    (sum.1, sum.2, sum.3) = (sum.1 + requests, sum.2 + tokens.0, sum.3 + tokens.1);
                    (sum.4, sum.5) = (sum.4 + estimated_tokens, sum.5.into_iter().chain(cost).reduce(|a, b| a + b));
                }
                None => lines.push(line(&model_id, requests, tokens, estimated_tokens, cost)),
            }
        }
        lines.sort();
        lines
    }

    /// Asks, and ends the turn as told.
    async fn replied(&self, end: impl FnOnce(EndTurn) -> EndTurn) -> chatbox::chat::Entry {
        let turn = self.ask("so?").await.turn.id;
        let end = end(EndTurn { text: Some("it is".to_owned()), ..ending(turn, TurnState::Complete) });
        self.store.end_turn(end).await.unwrap().unwrap().reply
    }

    fn spend(&self, session_id: SessionId) -> Spend {
        let spent = Spent { purpose: Purpose::Name, ..spent("small", 5, 2) };
        Spend { id: Uuid::now_v7(), user_id: self.user.clone(), session_id, spent }
    }
}

async fn requests_of_a_turn_are_counted_with_its_end_and_only_once(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("so?").await.turn.id;
    let guess = Usage { prompt_tokens: 20, completion_tokens: 1, estimated: true };
    let end = EndTurn {
        text: Some("it is".to_owned()),
        spent: vec![
            Spent { cost: Some(7), ..spent("small", 100, 3) },
            Spent { usage: guess, ..spent("small", 0, 0) },
            Spent { cost: Some(40), ..spent("large", 120, 9) },
        ],
        ..ending(turn, TurnState::Complete)
    };
    assert!(room.store.end_turn(end.clone()).await.unwrap().is_some());
    let want = [line("large", 1, (120, 9), 0, Some(40)), line("small", 2, (120, 4), 21, Some(7))];
    assert_eq!(room.account().await, want);
    assert_eq!(room.store.end_turn(end.clone()).await.unwrap(), None, "a repeated end writes nothing");
    let unknown = EndTurn { turn_id: TurnId::new(), ..end };
    assert_eq!(room.store.end_turn(unknown).await.unwrap(), None);
    assert_eq!(room.account().await, want);
    room.replied(|end| EndTurn { spent: vec![spent("small", 1, 1)], ..end }).await;
    assert_eq!(room.account().await, [want[0].clone(), line("small", 3, (121, 5), 21, Some(7))]);
}

async fn request_outside_of_a_turn_is_counted_once_for_each_id(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let spend = room.spend(room.session);
    for _repeated in 0..3 {
        room.store.spend(spend.clone()).await.unwrap();
    }
    assert_eq!(room.account().await, [line("small", 1, (5, 2), 0, None)]);
    room.store.spend(room.spend(SessionId::new())).await.unwrap();
    assert_eq!(room.account().await, [line("small", 2, (10, 4), 0, None)], "its session is gone, its tokens are not");
}

async fn accounts_of_users_and_days_are_apart(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    room.replied(|end| EndTurn { spent: vec![spent("small", 3, 4)], ..end }).await;
    assert_eq!(room.store.spent(&user("bob"), Day(0)).await.unwrap(), []);
    let all = room.store.spent(&room.user, Day(0)).await.unwrap();
    let began = Day::of(room.row().await.created_at);
    assert!(all.len() == 1 && (all[0].day == began || all[0].day == began.next()), "{all:?}");
    assert_eq!((all[0].tokens(), all[0].requests), (7, 1));
    assert_eq!(room.store.spent(&room.user, all[0].day).await.unwrap(), all);
    assert_eq!(room.store.spent(&room.user, all[0].day.next()).await.unwrap(), []);
    room.store.close().await;
    assert_eq!(shelf.open().await.spent(&room.user, Day(0)).await.unwrap(), all, "a restart changes nothing");
}

async fn nonsense_of_a_provider_keeps_no_turn_from_ending(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let most = 1 << 40;
    let usage = Usage { prompt_tokens: u64::MAX, completion_tokens: u64::MAX, estimated: true };
    for nth in 1..=3 {
        let nonsense = Spent { usage, cost: Some(u64::MAX), ..spent("small", 0, 0) };
        let reply = room.replied(|end| EndTurn { usage: Some(usage), spent: vec![nonsense], ..end }).await;
        let kept = Some(Usage { prompt_tokens: most, completion_tokens: most, estimated: true });
        assert_eq!(reply.usage, kept);
        assert_eq!(room.log().await.pop().unwrap().usage, kept);
        assert_eq!(
            room.account().await,
            [line("small", nth, (most * nth, most * nth), 2 * most * nth, Some(most * nth))]
        );
    }
    assert_eq!(room.row().await.counters.prompt_tokens, 3 * most);
}

async fn reply_of_several_models_says_who_wrote_what(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let segments = vec![by(0, "small"), by(3, "large")];
    let reply = room.replied(|end| EndTurn { segments: segments.clone(), ..end }).await;
    assert_eq!((reply.model_id.as_deref(), &reply.segments), (Some("large"), &segments));
    assert_eq!(room.log().await.pop().unwrap(), reply);
    let reply = room.replied(|end| EndTurn { segments: vec![by(0, "large")], ..end }).await;
    assert_eq!((reply.model_id.as_deref(), &reply.segments), (Some("large"), &vec![]), "another one wrote it all");
    assert_eq!(room.log().await.pop().unwrap(), reply);
    let reply = room.replied(|end| end).await;
    assert_eq!((reply.model_id.as_deref(), &reply.segments), (Some("small"), &vec![]), "the one that it started with");
}

async fn thread_is_kept_for_each_session_and_model_with_the_place_of_its_reply(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    let named = |name: &str| Some(name.to_owned());
    let thread = |name: &str, reply_seq| Some(Thread { reference: name.to_owned(), reply_seq });
    assert_eq!(room.store.thread(room.session, "small").await.unwrap(), None);
    room.replied(|end| EndTurn { thread: named("one"), ..end }).await;
    assert_eq!(room.store.thread(room.session, "small").await.unwrap(), thread("one", 2));
    room.replied(|end| EndTurn { thread: named("two"), segments: vec![by(0, "large")], ..end }).await;
    room.replied(|end| EndTurn { thread: named("three"), ..end }).await;
    room.replied(|end| end).await;
    room.store.close().await;
    let store = shelf.open().await;
    assert_eq!(store.thread(room.session, "small").await.unwrap(), thread("three", 6));
    assert_eq!(store.thread(room.session, "large").await.unwrap(), thread("two", 4));
    assert_eq!(store.thread(SessionId::new(), "small").await.unwrap(), None);
}

async fn session_that_is_deleted_takes_its_threads_along_and_leaves_its_costs(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let (spent, thread) = (vec![spent("small", 3, 4)], Some("one".to_owned()));
    room.replied(|end| EndTurn { spent, thread, ..end }).await;
    room.store.delete_session(room.session, room.user.clone()).await.unwrap();
    assert_eq!(room.store.thread(room.session, "small").await.unwrap(), None);
    assert_eq!(room.account().await, [line("small", 1, (3, 4), 0, None)]);
}

async fn turn_that_nobody_ran_any_more_is_not_charged_by_its_former_node(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("so?").await.turn.id;
    room.end(turn, TurnState::Interrupted, None).await.unwrap();
    let late = EndTurn { spent: vec![spent("small", 3, 4)], ..ending(turn, TurnState::Complete) };
    assert_eq!(room.store.end_turn(late).await.unwrap(), None);
    assert_eq!(room.account().await, []);
}
