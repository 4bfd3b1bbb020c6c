//! Every node is told to end, and started again, one after the other, under load.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{all, check, longest_gap, refused, user::User, world::World};
use crate::harness::ALONE;

/// Users with two connections each, and how many of them are being answered all the time.
const USERS: usize = 1000;
const TALKERS: usize = 100;

/// Users who connect at a time at the start.
const AT_ONCE: usize = 50;

/// Within which time clients come back, each at a moment of its own (`going_away.retry_after`).
const SPREAD: Duration = Duration::from_secs(5);

/// How long a node may take to end.
const END_MAX: Duration = Duration::from_secs(30);

// checklist 113, 114, 115; W14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_spreads_who_comes_back() {
    let _alone = ALONE.acquire().await.unwrap();
    let files = chatbox::bench::process::raise_open_files();
    assert!(files > 4 * u64::try_from(USERS).unwrap(), "{files} open files are allowed");
    let Some(mut world) = World::start(3, 1, |_node| Vec::new()).await else { return };
    let mut users = Vec::new();
    for first in (0..USERS).step_by(AT_ONCE) {
        let some: Vec<_> = (first..first + AT_ONCE).map(|number| User::patient(&world.front, number)).collect();
        users.extend(all(some, async |mut user| user.arrive().await.map(|()| user)).await);
    }
    drop(world.front.returns());
    let (over, began) = (CancellationToken::new(), Instant::now());
    let talking = all(users, |mut user| {
        let over = over.clone();
        async move {
            if user.number < TALKERS {
                user.answered = user.talk(&over).await?
            } else {
                user.listen(&over).await?
            }
            Ok(user)
        }
    });
    let restarting = async {
        let mut peaks = Vec::new();
        for node in 0..world.nodes.len() {
            let asked = Instant::now();
            let ended = timeout(END_MAX, world.end_node(node)).await.expect("a node ends in time");
            assert!(ended, "node {node} ends well");
            let took = asked.elapsed();
            world.start_node(node).await;
            // Until all have come back.
            let mut settled = tokio::time::interval(SPREAD);
            settled.tick().await;
            settled.tick().await;
            let returns: BTreeSet<_> = world.front.returns().into_iter().collect();
            let peak = returns.iter().map(|at| returns.range(*at..*at + Duration::from_secs(1)).count()).max();
            println!("node {node}: ended after {took:?}, {} came back, {peak:?} within a second", returns.len());
            peaks.push((returns.len(), peak.unwrap_or_default()));
        }
        over.cancel();
        peaks
    };
    let (mut users, peaks) = tokio::join!(talking, restarting);
    let answered: usize = users.iter().map(|user| user.answered).sum();
    let (refusals, gap) = (refused(&mut users), longest_gap(&mut users));
    println!("{answered} answers in {:?}, longest gap {gap:?}, refused {refusals:?}", began.elapsed());
    for (all, peak) in peaks {
        // Evenly spread a fifth would come within a second of five.
        assert!(peak * 2 < all, "{peak} of {all} came within one second");
    }
    let (talkers, _listeners): (Vec<_>, Vec<_>) = users.into_iter().partition(|user| user.number < TALKERS);
    let talkers = check(&*world.store().await, talkers).await;
    // With the lease that nodes have by default: a machine that is busy with 2,000 connections may be late.
    assert!(talkers.iter().all(|user| !user.interrupted()), "no answer is cut");
    let only = ["GOING_AWAY"];
    assert!(refusals.keys().all(|code| only.contains(&code.as_str())), "{refusals:?}");
}
