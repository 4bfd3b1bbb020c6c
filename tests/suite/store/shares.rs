//! Shares: a conversation as it was, for whoever has the link.

use chatbox::{
    chat::{SessionId, Timestamp, TurnState},
    store::{Change, Error, NewShare, Share},
};
use uuid::Uuid;

use super::{Room, Shelf, user};

over_stores! {
    share_keeps_what_the_session_was_and_survives_a_restart,
    repeated_share_is_the_first_one,
    session_of_another_user_is_neither_shared_nor_unshared,
    share_is_gone_at_its_end_and_when_it_is_revoked,
    oldest_share_gives_way_and_those_of_other_sessions_stay,
}

impl Room {
    fn new_share(&self) -> NewShare {
        let (id, session_id, owner) = (Uuid::new_v4(), self.session, self.user.clone());
        NewShare { id, session_id, owner, expires_at: None, shares_max: 3 }
    }

    async fn share(&self) -> Share {
        self.store.share(self.new_share()).await.unwrap()
    }

    async fn shared(&self, share: &Share) -> Option<Share> {
        self.store.shared(share.id).await.unwrap()
    }
}

async fn share_keeps_what_the_session_was_and_survives_a_restart(shelf: Shelf) {
    let room = Room::new(shelf.open().await).await;
    let empty = room.share().await;
    assert_eq!((empty.name.as_deref(), empty.last_seq, empty.running_seq), (None, 0, None));
    room.change(Change::Name("before".to_owned())).await.unwrap();
    let turn = room.ask("question").await.turn.id;
    let rev = room.row().await.rev;
    let share = room.share().await;
    assert_eq!((share.session_id, share.name.as_deref()), (room.session, Some("before")));
    assert_eq!((share.last_seq, share.running_seq, share.expires_at), (2, Some(2), None));
    assert_eq!(room.row().await.rev, rev);
    room.end(turn, TurnState::Complete, Some("answer")).await.unwrap();
    room.change(Change::Name("after".to_owned())).await.unwrap();
    room.append(room.entry("more")).await;
    room.change(Change::End).await.unwrap();
    room.store.close().await;
    let room = Room { store: shelf.open().await, ..room };
    assert_eq!(room.shared(&share).await, Some(share.clone()));
    let later = room.share().await;
    assert_eq!((later.name.as_deref(), later.last_seq, later.running_seq), (Some("after"), 3, None));
    assert_eq!(room.store.shared(Uuid::new_v4()).await.unwrap(), None);
}

async fn repeated_share_is_the_first_one(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let new = room.new_share();
    let first = room.store.share(new.clone()).await.unwrap();
    room.append(room.entry("more")).await;
    assert_eq!(room.store.share(new).await.unwrap(), first);
    assert_eq!(room.store.unshare(room.session, room.user.clone()).await.unwrap(), 1);
}

// checklist 1
async fn session_of_another_user_is_neither_shared_nor_unshared(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let new = NewShare { owner: user("eve"), ..room.new_share() };
    assert!(matches!(room.store.share(new).await, Err(Error::NotFound)));
    let new = NewShare { session_id: SessionId::new(), ..room.new_share() };
    assert!(matches!(room.store.share(new).await, Err(Error::NotFound)));
    let share = room.share().await;
    let other = room.next(2).await;
    let new = NewShare { id: share.id, ..other.new_share() };
    assert!(matches!(room.store.share(new).await, Err(Error::NotFound)), "the id is taken");
    assert!(matches!(room.store.unshare(room.session, user("eve")).await, Err(Error::NotFound)));
    assert_eq!(room.shared(&share).await, Some(share));
}

async fn share_is_gone_at_its_end_and_when_it_is_revoked(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let until = |at| NewShare { expires_at: Some(Timestamp(at)), ..room.new_share() };
    let ended = room.store.share(until(1)).await.unwrap();
    let lasts = room.store.share(until(i64::MAX)).await.unwrap();
    let ended_too = room.store.share(until(2)).await.unwrap();
    assert_eq!((room.shared(&ended).await, room.shared(&ended_too).await), (None, None));
    assert_eq!(room.shared(&lasts).await, Some(lasts.clone()));
    assert_eq!(
        room.store.shares_of(&[room.session]).await.unwrap(),
        std::slice::from_ref(&lasts),
        "the newest that lasts"
    );
    room.store.unshare(room.session, room.user.clone()).await.unwrap();
    assert_eq!(room.shared(&lasts).await, None);
    assert_eq!(room.store.unshare(room.session, room.user.clone()).await.unwrap(), 0);
    assert_eq!(room.store.shares_of(&[room.session]).await.unwrap(), []);
}

async fn oldest_share_gives_way_and_those_of_other_sessions_stay(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let other = room.next(2).await;
    let hers = other.share().await;
    let mut shares = Vec::new();
    for _ in 0..5 {
        shares.push(room.share().await);
    }
    let mut left = Vec::new();
    for share in &shares {
        left.extend(room.shared(share).await);
    }
    assert_eq!(left, shares[2..]);
    let newest = room.store.shares_of(&[room.session, SessionId::new(), other.session]).await.unwrap();
    assert_eq!(newest, [shares[4].clone(), hers.clone()]);
    assert_eq!(room.store.unshare(room.session, room.user.clone()).await.unwrap(), 3);
    assert_eq!(room.shared(&hers).await, Some(hers));
}
