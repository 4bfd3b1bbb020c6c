//! Several nodes on one database and one bus, as processes, while parts of it are killed, held, cut off, or restarted.

mod device;
mod elsewhere;
mod harm;
mod rolling;
mod user;
mod world;

use std::{collections::BTreeMap, future::Future, path::PathBuf, time::Duration};

use chatbox::{
    chat::SessionId,
    store::{Range, Store},
};
use futures_util::future::join_all;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{harm::Harm, user::User, world::World};
use crate::{
    harness::ALONE,
    schedules::{from_store, held::Fault},
};

/// Users, each with two devices on different nodes.
const USERS: usize = 200;

/// How many of them a machine that is late may refuse or interrupt while the database works: none where two cores are
/// there for the test alone.
const LATE_MAX: usize = USERS / 10;

/// Has every user do something, and waits until all have.
async fn all<F>(users: Vec<User>, act: impl Fn(User) -> F) -> Vec<User>
where
    F: Future<Output = Result<User, Fault>> + Send + 'static,
{
    let mut acting = JoinSet::new();
    for user in users {
        acting.spawn(act(user));
    }
    let done = acting.join_all().await;
    let (users, faults): (Vec<_>, Vec<_>) = done.into_iter().partition(Result::is_ok);
    let faults: Vec<_> = faults.into_iter().filter_map(Result::err).collect();
    assert!(faults.is_empty(), "{} of {} users: {}", faults.len(), faults.len() + users.len(), faults[0]);
    users.into_iter().filter_map(Result::ok).collect()
}

/// Asserts that every device holds what the store holds, each acknowledged message once, and one end of each turn.
async fn check(store: &dyn Store, users: Vec<User>) -> Vec<User> {
    let users = all(users, async |mut user| user.converge().await.map(|()| user)).await;
    let held = users.iter().map(|user| {
        let session = user.session.as_ref().expect("it has said something").parse().unwrap();
        (SessionId(session), user.log().clone())
    });
    for (session, log) in held.collect::<Vec<_>>() {
        let entries = store.entries(session, Range::After(0, u32::MAX)).await.expect("the store is read");
        let stored: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.seq, from_store(entry))).collect();
        assert_eq!(stored, log, "session {session}");
    }
    users
}

/// In how many sessions an answer runs.
async fn answered_now(store: &dyn Store, sessions: Vec<SessionId>) -> usize {
    let turns = join_all(sessions.into_iter().map(|session| store.running_turn(session))).await;
    turns.into_iter().filter(|turn| turn.as_ref().expect("the store is read").is_some()).count()
}

/// What was refused to all of them since this was last asked, by its code.
fn refused(users: &mut [User]) -> BTreeMap<String, usize> {
    let mut refused = BTreeMap::new();
    for (code, times) in users.iter_mut().flat_map(|user| std::mem::take(&mut user.errors)) {
        *refused.entry(code).or_default() += times;
    }
    refused
}

/// Asserts that the store was asked again for few requests at most, and nothing else was refused.
fn assert_few_were_late(refused: &BTreeMap<String, usize>) {
    let late = refused.get("DATABASE_ERROR").copied().unwrap_or_default();
    assert!(
        late <= LATE_MAX && late == refused.values().sum::<usize>(),
        "refused while the database works: {refused:?}"
    );
}

fn longest_gap(users: &mut [User]) -> Duration {
    users.iter_mut().map(|user| std::mem::take(&mut user.gap)).max().unwrap_or_default()
}

/// Settings that put a node's wall clock a minute ahead; its monotonic clock is left alone, as by a machine whose
/// clock was set wrong.
fn wrong_clock() -> Option<Vec<(&'static str, String)>> {
    let library = |folder: PathBuf| Some(folder.join("faketime/libfaketimeMT.so.1")).filter(|library| library.exists());
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let library = folders.filter_map(library).next();
    let Some(library) = library else {
        assert!(std::env::var_os("CHATBOX_TEST_STRICT").is_none(), "no libfaketime");
        println!("skipped: no libfaketime; every clock is right");
        return None;
    };
    let preload = library.to_str().expect("a path").to_owned();
    let settings = [("LD_PRELOAD", preload), ("FAKETIME", "+60s".to_owned()), ("DONT_FAKE_MONOTONIC", "1".to_owned())];
    Some(settings.to_vec())
}

// checklist 67, 68, 69; W5, W6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_nodes_database_and_bus_lose_nothing_and_double_nothing() {
    let _alone = ALONE.acquire().await.unwrap();
    let wrong = wrong_clock().unwrap_or_default();
    let change = |node| if node == 2 { wrong.clone() } else { Vec::new() };
    let Some(mut world) = World::start(3, 3, change).await else { return };
    let mut users: Vec<_> = (0..USERS).map(|number| User::new(&world.front, number)).collect();
    users = all(users, async |mut user| user.arrive().await.map(|()| user)).await;

    let began = Instant::now();
    users = all(users, async |mut user| user.begin().await.map(|()| user)).await;
    users = all(users, async |mut user| user.recover().await.map(|_| user)).await;
    let (refusals, gap) = (refused(&mut users), longest_gap(&mut users));
    println!("no fault: {USERS} users answered after {:?}, longest gap {gap:?}", began.elapsed());
    assert_few_were_late(&refusals);
    let store = world.store().await;
    users = check(&*store, users).await;
    let interrupted = users.iter().filter(|user| user.interrupted()).count();
    println!("no fault: {interrupted} users were interrupted");
    assert!(interrupted <= LATE_MAX, "{interrupted} users are interrupted without a fault");

    for harm in Harm::ALL {
        users = round((&mut world, &*store), users, harm).await;
    }
}

/// One fault in the middle of everybody's answers, and what comes of it.
async fn round((world, store): (&mut World, &dyn Store), users: Vec<User>, harm: Harm) -> Vec<User> {
    let users = all(users, async |mut user| user.begin().await.map(|()| user)).await;
    let sessions = users.iter().map(|user| SessionId(user.session.as_ref().expect("a session").parse().unwrap()));
    let sessions = sessions.collect();
    let running = answered_now(store, sessions).await;
    assert!(running * 4 > USERS, "{running} answers run");
    let began = Instant::now();
    let whom = harm.begin(world).await;
    let over = CancellationToken::new();
    let recovering = all(users, |mut user| {
        let over = over.clone();
        async move {
            user.recovered = Some(user.recover().await?);
            user.talk(&over).await?;
            Ok(user)
        }
    });
    let healing = async {
        harm.end(world, whom).await;
        over.cancel();
    };
    let (mut users, ()) = tokio::join!(recovering, healing);
    let mut took: Vec<_> = users.iter_mut().filter_map(|user| user.recovered.take()).map(|at| at - began).collect();
    took.sort();
    let (refusals, gap) = (refused(&mut users), longest_gap(&mut users));
    let (half, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{harm:?} in {running} answers: answered again after {half:?} (half), {slowest:?} (all); longest gap {gap:?}; \
         refused {refusals:?}"
    );
    if !matches!(harm, Harm::PrimaryKilled | Harm::PrimaryHeld) {
        assert_few_were_late(&refusals);
    }
    let users = check(store, users).await;
    println!("{harm:?}: checked {:?} after it began", began.elapsed());
    users
}
