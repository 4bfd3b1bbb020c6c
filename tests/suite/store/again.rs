//! Replies that are asked for once more, and what people think of replies.

use std::sync::Arc;

use chatbox::{
    chat::{Rating, RequestId, TurnId, TurnState},
    store::{Change, EndTurn, Error, NewEntry, Rate, Regenerate, Regenerated},
};
use tokio::task::JoinSet;

use super::{LONG, Room, Shelf, ending, places, user};

over_stores! {
    last_reply_is_asked_for_again_and_both_stay,
    repeated_request_finds_the_turn_that_the_first_one_started,
    repeated_turn_is_recognised_without_a_request_id,
    request_id_of_another_request_is_refused,
    only_the_last_turn_that_has_ended_is_asked_for_again,
    regenerated_turn_that_is_lost_is_asked_again_like_any_other,
    settled_reply_is_rated_and_shows_it_in_every_read,
}

impl Room {
    fn again(&self, turn_id: TurnId) -> Regenerate {
        let (owner, client_id) = (self.user.clone(), Some(RequestId::new_v4()));
        Regenerate { turn_id, owner, client_id, new: TurnId::new(), lease: self.lease(LONG) }
    }

    pub(super) async fn regenerate(&self, turn_id: TurnId) -> Result<Regenerated, Error> {
        self.store.regenerate(self.again(turn_id)).await
    }

    pub(super) async fn rate(&self, seq: u64, why: &str, rating: Rating) -> Result<(), Error> {
        let why = (!why.is_empty()).then(|| why.to_owned());
        let (session_id, owner) = (self.session, self.user.clone());
        self.store.rate(Rate { session_id, seq, owner, rating, why }).await
    }

    /// A question and its whole answer.
    async fn answered(&self, content: &str) -> TurnId {
        let turn = self.ask(content).await.turn.id;
        self.end(turn, TurnState::Complete, Some("an answer")).await.unwrap();
        turn
    }
}

async fn last_reply_is_asked_for_again_and_both_stay(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.answered("first").await;
    let old = room.answered("second").await;
    let rev = room.row().await.rev;
    let ask = room.again(old);
    let made = room.store.regenerate(ask.clone()).await.unwrap();
    let started = made.started.unwrap();
    assert_eq!((made.session_id, made.turn_id, made.reply_seq), (room.session, ask.new, 5));
    assert_eq!((started.turn.id, started.turn.message_seq, started.reply_seq), (ask.new, 3, 5));
    assert_eq!((started.turn.state, started.turn.node), (TurnState::Running, Some(room.node)));
    assert_eq!((started.rev, room.row().await.rev), (rev + 1, rev + 1), "a start is one change");
    assert_eq!(room.store.running_turn(room.session).await.unwrap(), Some(started.turn));
    assert!(room.extend(ask.new, 0, "another ").await);
    room.end(ask.new, TurnState::Complete, Some("another answer")).await.unwrap();
    let log = room.log().await;
    assert_eq!(places(&log), [1, 2, 3, 4, 5]);
    let replies: Vec<_> = log.iter().filter(|entry| entry.reply_to == Some(3)).collect();
    assert_eq!(replies.iter().map(|reply| reply.turn_id).collect::<Vec<_>>(), [Some(old), Some(ask.new)]);
    assert_eq!((replies[0].content.as_str(), replies[1].content.as_str()), ("an answer", "another answer"));
    assert_eq!(replies[1].id, ask.lease.reply_id);
    let counters = room.row().await.counters;
    assert_eq!((counters.entries, counters.responses), (5, 3));
}

async fn repeated_request_finds_the_turn_that_the_first_one_started(shelf: Shelf) {
    let room = Arc::new(Room::fresh(shelf).await);
    let old = room.answered("question").await;
    let client_id = Some(RequestId::new_v4());
    let mut calls = JoinSet::new();
    for _ in 0..16 {
        let (room, ask) = (Arc::clone(&room), Regenerate { client_id, ..room.again(old) });
        calls.spawn(async move { room.store.regenerate(ask).await.unwrap() });
    }
    let (first, again): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(|made| made.started.is_some());
    assert_eq!(first.len(), 1);
    let known = Regenerated { started: None, ..first[0].clone() };
    assert!(again.iter().all(|made| *made == known), "{again:?}");
    room.end(known.turn_id, TurnState::Complete, Some("done")).await.unwrap();
    let late = Regenerate { client_id, ..room.again(old) };
    assert_eq!(room.store.regenerate(late.clone()).await.unwrap(), known, "after its end too");
    room.change(Change::End).await.unwrap();
    assert_eq!(room.store.regenerate(late).await.unwrap(), known, "after the session's end too");
    assert_eq!(places(&room.log().await), [1, 2, 3]);
}

async fn repeated_turn_is_recognised_without_a_request_id(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let old = room.answered("question").await;
    let ask = Regenerate { client_id: None, ..room.again(old) };
    let first = room.store.regenerate(ask.clone()).await.unwrap();
    assert!(first.started.is_some());
    assert_eq!(room.store.regenerate(ask).await.unwrap(), Regenerated { started: None, ..first });
}

async fn request_id_of_another_request_is_refused(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let (asks, regenerates) = (Some(RequestId::new_v4()), Some(RequestId::new_v4()));
    let question = NewEntry { client_id: asks, ..room.question("question") };
    let old = room.append(question).await.started.unwrap().turn.id;
    room.end(old, TurnState::Complete, Some("done")).await.unwrap();
    let ask = Regenerate { client_id: asks, ..room.again(old) };
    assert!(matches!(room.store.regenerate(ask).await, Err(Error::IdTaken)));
    let new = room.store.regenerate(Regenerate { client_id: regenerates, ..room.again(old) }).await.unwrap().turn_id;
    let question = NewEntry { client_id: regenerates, ..room.question("another question") };
    assert!(matches!(room.store.append(question.clone()).await, Err(Error::IdTaken)));
    room.end(new, TurnState::Complete, Some("done")).await.unwrap();
    let other = room.answered("another question").await;
    let ask = Regenerate { client_id: regenerates, ..room.again(other) };
    assert!(matches!(room.store.regenerate(ask).await, Err(Error::IdTaken)), "it made a reply to another message");
    assert_eq!(places(&room.log().await), [1, 2, 3, 4, 5]);
}

async fn only_the_last_turn_that_has_ended_is_asked_for_again(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let first = room.answered("1").await;
    let second = room.answered("2").await;
    let refused = async |turn, why: &str| {
        let before = (room.row().await, room.log().await);
        assert!(matches!(room.regenerate(turn).await, Err(Error::NotFound)), "{why}");
        assert_eq!((room.row().await, room.log().await), before, "{why}");
    };
    refused(first, "an earlier message").await;
    refused(TurnId::new(), "an unknown turn").await;
    let foreign = Regenerate { owner: user("eve"), ..room.again(second) };
    assert!(matches!(room.store.regenerate(foreign).await, Err(Error::NotFound)));
    let third = room.regenerate(second).await.unwrap().turn_id;
    refused(third, "it runs").await;
    refused(second, "a newer one runs").await;
    let waits = room.queue("3").await;
    room.end(third, TurnState::Stopped, None).await.unwrap();
    refused(third, "another one waits").await;
    room.end(waits, TurnState::Stopped, None).await.unwrap();
    refused(third, "a later message has a turn").await;
    let last = room.regenerate(waits).await.unwrap();
    assert_eq!(last.started.unwrap().turn.message_seq, 6, "one that never started is answered now");
    room.end(last.turn_id, TurnState::Complete, Some("done")).await.unwrap();
    refused(waits, "an earlier turn of the same message").await;
    room.append(room.entry("asks for nothing")).await;
    let last = room.regenerate(last.turn_id).await.unwrap().turn_id;
    room.end(last, TurnState::Complete, Some("done")).await.unwrap();
    room.change(Change::End).await.unwrap();
    assert!(matches!(room.regenerate(last).await, Err(Error::Ended)));
}

async fn regenerated_turn_that_is_lost_is_asked_again_like_any_other(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let old = room.answered("question").await;
    let new = room.regenerate(old).await.unwrap().turn_id;
    let third = TurnId::new();
    assert!(room.give_up(new, third).await.unwrap().asked_again);
    assert!(matches!(room.regenerate(new).await, Err(Error::NotFound)), "one waits already");
    assert_eq!(room.start().await.unwrap().turn.id, third);
    room.end(third, TurnState::Complete, Some("done")).await.unwrap();
    let replies: Vec<_> = room.log().await.iter().filter_map(|entry| entry.reply_to).collect();
    assert_eq!(replies, [1, 1, 1]);
    assert!(room.regenerate(third).await.unwrap().started.is_some());
}

async fn settled_reply_is_rated_and_shows_it_in_every_read(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let turn = room.ask("question").await.turn.id;
    assert!(matches!(room.rate(2, "because", Rating::Up).await, Err(Error::NotFound)), "it still runs");
    let usage = Some(chatbox::chat::Usage::default());
    let reply =
        room.store.end_turn(EndTurn { usage, ..ending(turn, TurnState::Stopped) }).await.unwrap().unwrap().reply;
    assert_eq!(reply.rating, None);
    for seq in [0, 1, 3, u64::MAX] {
        assert!(matches!(room.rate(seq, "because", Rating::Up).await, Err(Error::NotFound)), "{seq} is no reply");
    }
    let hers = Room { user: user("eve"), ..room.beside(room.session) };
    assert!(matches!(hers.rate(2, "because", Rating::Up).await, Err(Error::NotFound)), "not hers");
    let before = room.row().await;
    for rating in [Rating::Up, Rating::Down] {
        room.rate(2, "because", rating).await.unwrap();
        assert_eq!(room.log().await[1], chatbox::chat::Entry { rating: Some(rating), ..reply.clone() });
    }
    assert_eq!(room.row().await, before, "nobody is told");
    room.change(Change::End).await.unwrap();
    room.rate(2, "", Rating::Up).await.unwrap();
    assert_eq!(room.log().await[1].rating, Some(Rating::Up));
}
