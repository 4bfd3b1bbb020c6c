//! Lists of a user's sessions, and the search through them.

use std::collections::BTreeSet;

use chatbox::{
    chat::{Session, TurnState, UserId},
    store::{Change, Found, ListSessions, Order, Page, Place, Search},
};
use futures_util::future::join_all;

use super::{Room, Shelf, user};

over_stores! {
    pages_hold_each_session_once_in_the_order_of_all,
    session_is_listed_from_its_first_entry_on_for_its_owner_alone,
    revs_of_each_users_latest_sessions_are_read,
    words_are_found_in_names_and_texts_whatever_their_case,
    search_shows_the_text_around_the_first_hit,
    search_goes_on_where_it_stopped_and_finds_each_session_once,
    search_says_that_it_did_not_read_everything,
}

impl Room {
    async fn list(&self, order: Order, after: Option<Place>, limit: u32) -> Page {
        let ask = ListSessions { user_id: self.user.clone(), order, after, limit };
        self.store.sessions(ask).await.unwrap()
    }

    /// Many sessions with a few messages each, and one without.
    async fn many(&self, count: usize, texts: fn(usize) -> Vec<&'static str>) -> Vec<Self> {
        let active_max = u32::try_from(count).unwrap() + 1;
        let rooms = join_all((0..count).map(async |nth| {
            let room = self.next(active_max).await;
            for text in texts(nth) {
                room.append(room.entry(text)).await;
            }
            room
        }));
        let rooms = rooms.await;
        self.next(active_max + 1).await;
        rooms
    }

    async fn search(&self, text: &str, after: Option<Place>, limit: u32, entries_max: u32) -> Found {
        let (user_id, text) = (self.user.clone(), text.to_owned());
        self.store.search(Search { user_id, text, after, limit, entries_max }).await.unwrap()
    }

    async fn hits(&self, text: &str) -> Vec<String> {
        let found = self.search(text, None, 100, 1000).await;
        assert_eq!((found.next, found.truncated), (None, false));
        found.sessions.into_iter().map(|(_session, hit)| hit).collect()
    }
}

fn place(order: Order, session: &Session) -> Place {
    let at = match order {
        Order::Activity => session.last_activity,
        Order::Created => session.created_at,
    };
    Place { at, id: session.id }
}

// checklist 84, 85
async fn pages_hold_each_session_once_in_the_order_of_all(shelf: Shelf) {
    let home = Room::fresh(shelf).await;
    let rooms = home.many(23, |_nth| vec!["hello"]).await;
    for nth in [7, 3, 22, 3, 0] {
        rooms[nth].append(rooms[nth].entry("more")).await;
    }
    let mut all = Vec::new();
    for room in &rooms {
        all.push(room.row().await);
    }
    for order in [Order::Activity, Order::Created] {
        all.sort_by_key(|session| std::cmp::Reverse((place(order, session).at, session.id)));
        for limit in [1, 5, 23, 24] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = home.list(order, after, limit).await;
                assert_eq!(page.total, 23);
                assert!(page.sessions.len() <= usize::try_from(limit).unwrap());
                after = page.sessions.last().map(|last| place(order, last));
                seen.extend(page.sessions);
                assert_eq!(page.more, seen.len() < 23, "{order:?} by {limit}");
                if !page.more {
                    break;
                }
            }
            assert_eq!(seen, all, "{order:?} by {limit}");
        }
    }
}

async fn session_is_listed_from_its_first_entry_on_for_its_owner_alone(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    assert_eq!(room.list(Order::Activity, None, 10).await, Page { sessions: vec![], more: false, total: 0 });
    room.append(room.entry("hello")).await;
    let want = Page { sessions: vec![room.row().await], more: false, total: 1 };
    assert_eq!(room.list(Order::Activity, None, 10).await, want);
    assert_eq!(room.list(Order::Created, None, 10).await, want);
    let nothing = Page { sessions: vec![], more: true, total: 1 };
    assert_eq!(room.list(Order::Created, None, 0).await, nothing);
    let eve = Room { user: user("eve"), ..room.beside(room.session) };
    assert_eq!(eve.list(Order::Activity, None, 10).await.total, 0);
}

async fn revs_of_each_users_latest_sessions_are_read(shelf: Shelf) {
    let home = Room::fresh(shelf).await;
    let rooms = home.many(5, |_nth| vec!["hello"]).await;
    let asked = [user("nobody"), home.user.clone()];
    let read = async |limit| home.store.user_revs(&asked, limit).await.unwrap();
    let mut want = Vec::new();
    for session in home.list(Order::Activity, None, 10).await.sessions {
        want.push((session.id, session.rev));
    }
    let of = |revs: &[_]| -> [(UserId, Vec<_>); 2] { [(user("nobody"), vec![]), (home.user.clone(), revs.to_vec())] };
    assert_eq!(want.len(), 5);
    assert_eq!(read(100).await, of(&want));
    assert_eq!(read(2).await, of(&want[..2]));
    rooms[4].append(rooms[4].entry("more")).await;
    let rev = rooms[4].row().await.rev;
    assert!(read(100).await[1].1.contains(&(rooms[4].session, rev)));
}

async fn words_are_found_in_names_and_texts_whatever_their_case(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    room.append(room.entry("Die GRÖSSTE Überraschung kam am Ende.")).await;
    let turn = room.ask("Und dann?").await.turn.id;
    assert_eq!(room.hits("nie geschah").await, [""; 0], "a running reply has no text yet");
    room.end(turn, TurnState::Complete, Some("Dann geschah NICHTS mehr.")).await.unwrap();
    room.change(Change::Name("Ein Märchen".to_owned())).await.unwrap();
    let text = "Die GRÖSSTE Überraschung kam am Ende.";
    for (wanted, hit) in [
        ("grösste über", text),
        ("ENDE", text),
        ("nichts", "Dann geschah NICHTS mehr."),
        ("MÄRCHEN", "Ein Märchen"),
        ("d", text),
    ] {
        assert_eq!(room.hits(wanted).await, [hit], "{wanted}");
    }
    assert_eq!(room.hits("Überraschung am").await, [""; 0]);
    let eve = Room { user: user("eve"), ..room.beside(room.session) };
    assert_eq!(eve.hits("ende").await, [""; 0], "another user's words");
}

async fn search_shows_the_text_around_the_first_hit(shelf: Shelf) {
    let room = Room::fresh(shelf).await;
    let long = format!("{} Needle {}", "ä".repeat(300), "ö".repeat(300));
    room.append(room.entry("nothing")).await;
    room.append(room.entry(&long)).await;
    room.append(room.entry("needle again")).await;
    assert_eq!(room.hits("needle").await, [format!("…{} Needle {}…", "ä".repeat(39), "ö".repeat(73))]);
}

// checklist 84
async fn search_goes_on_where_it_stopped_and_finds_each_session_once(shelf: Shelf) {
    let home = Room::fresh(shelf).await;
    home.many(70, |nth| vec![if nth % 3 == 0 { "needle" } else { "hay" }, "more hay"]).await;
    let all = home.list(Order::Activity, None, 100).await.sessions;
    for (wanted, hits) in [("needle", 24), ("hay", 70), ("nowhere", 0)] {
        for (limit, entries_max) in [(100, 1000), (5, 1000), (100, 7), (1, 2), (3, 1)] {
            let (mut seen, mut after, mut calls) = (Vec::new(), None, 0);
            loop {
                let found = home.search(wanted, after, limit, entries_max).await;
                calls += 1;
                assert!(calls <= 71, "{wanted} by {limit} and {entries_max} does not come to an end");
                assert!(found.sessions.len() <= usize::try_from(limit).unwrap());
                seen.extend(found.sessions.into_iter().map(|(session, _hit)| session.id));
                after = found.next;
                if after.is_none() {
                    break;
                }
            }
            let distinct: BTreeSet<_> = seen.iter().collect();
            assert_eq!(distinct.len(), seen.len());
            let in_order = all.iter().map(|session| session.id).filter(|id| distinct.contains(id));
            assert_eq!(in_order.collect::<Vec<_>>(), seen, "latest activity first");
            // One entry is too few for a log of two, whose second one then stays unread.
            let reach = entries_max > 1 || wanted != "hay";
            assert_eq!(seen.len(), if reach { hits } else { 46 }, "{wanted} by {limit} and {entries_max}");
        }
    }
}

async fn search_says_that_it_did_not_read_everything(shelf: Shelf) {
    let home = Room::fresh(shelf).await;
    let (old, new) = (home.next(2).await, home.next(2).await);
    for room in [&old, &new] {
        for text in ["hay", "hay", "needle"] {
            room.append(room.entry(text)).await;
        }
    }
    let sessions = home.list(Order::Activity, None, 2).await.sessions;
    let place = |nth: usize| Some(place(Order::Activity, &sessions[nth]));
    let found = home.search("needle", None, 10, 5).await;
    assert_eq!((found.sessions.len(), found.next, found.truncated), (1, place(0), true));
    let found = home.search("needle", None, 1, 100).await;
    assert_eq!((found.sessions.len(), found.next, found.truncated), (1, place(0), false));
    let found = home.search("needle", None, 10, 2).await;
    assert_eq!((found.sessions.len(), found.next, found.truncated), (0, place(0), true), "longer than any search");
    let found = home.search("needle", place(0), 10, 2).await;
    assert_eq!((found.sessions.len(), found.next, found.truncated), (0, None, true));
    let found = home.search("needle", None, 10, 6).await;
    assert_eq!((found.sessions.len(), found.next, found.truncated), (2, None, false));
}
