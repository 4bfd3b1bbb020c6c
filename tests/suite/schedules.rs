//! Nothing lost, nothing doubled: random schedules of what users and networks do to a conversation, each judged by
//! the contract's words.
//!
//! A schedule is made of a seed. Every run takes new ones, and a failure prints the run's seed, the schedule's steps,
//! the one that failed and the shortest prefix that still fails, and what was wrong; `SCHEDULES_SEED=n cargo test
//! schedules` runs those of a run that failed again. The steps are the same then; what the threads of the server do
//! meanwhile is theirs.

pub(crate) mod held;
pub(crate) mod link;
pub(crate) mod outbox;
pub(crate) mod plan;
mod plant;
mod play;
pub(crate) mod world;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    chat::{Sender, SessionId},
    store::Range,
};
use futures_util::{StreamExt, stream, stream::FuturesUnordered};

use self::{
    held::{Entry, Fault},
    plan::{Answer, Rng, Step, Through},
    plant::Plant,
    play::{Log, Play},
    world::{Ending, World},
};
use crate::harness::{ALONE, Via};

/// Schedules that run at a time, each with a user of its own.
const AT_ONCE: usize = 24;

/// After so many failures a run has nothing new to tell.
const FAILED_MAX: usize = 8;

/// How long a shorter schedule is looked for that fails too.
const EXPLAIN_MAX: Duration = Duration::from_secs(60);

/// What is told of a fault, in characters: it may quote long texts.
const TOLD_MAX: usize = 4000;

/// The seed of this run, which is shown when its test fails.
fn seed() -> u64 {
    let given = std::env::var("SCHEDULES_SEED").ok();
    let seed = given.map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1 >> 32, |seed| seed.parse().expect("a number"));
    println!("SCHEDULES_SEED={seed}");
    seed
}

/// The beginning of a text.
fn beginning(text: &str) -> String {
    match text.char_indices().nth(TOLD_MAX) {
        Some((end, _)) => format!("{} … of {} bytes", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// Runs one schedule on a server that goes on.
async fn run(world: &Arc<World>, seed: u64, steps: &[Step], plant: Option<Plant>) -> Result<Option<Log>, Fault> {
    let mut play = Play::new(world, seed, plant);
    play.run(steps).await?;
    play.finish().await
}

/// Runs as many schedules as there are seeds, and returns the logs that they leave.
async fn run_all(world: &Arc<World>, seeds: impl Iterator<Item = u64>) -> Vec<Log> {
    let schedules = seeds.map(|seed| async move { (seed, run(world, seed, &plan::random(seed), None).await) });
    let (mut logs, mut failed) = (Vec::new(), Vec::new());
    let mut running = stream::iter(schedules).buffer_unordered(AT_ONCE);
    while let Some((seed, outcome)) = running.next().await {
        match outcome {
            Ok(log) => logs.extend(log),
            Err(fault) => failed.push((seed, fault)),
        }
        if failed.len() == FAILED_MAX {
            break;
        }
    }
    if let Some((seed, fault)) = failed.first() {
        let seeds: Vec<_> = failed.iter().map(|(seed, _)| seed).collect();
        panic!("the schedules {seeds:?} failed, {}", explain(world, *seed, fault).await);
    }
    logs
}

/// Finds the shortest prefix of a schedule that still fails, and tells it all.
async fn explain(world: &Arc<World>, seed: u64, fault: &str) -> String {
    let steps = plan::random(seed);
    let mut text = format!("{seed} with: {}\nof the steps{}\n", beginning(fault), list(&steps));
    let began = Instant::now();
    for length in (1..steps.len()).flat_map(|length| [length; 3]) {
        if began.elapsed() > EXPLAIN_MAX {
            break;
        }
        if let Err(fault) = run(world, seed, &steps[..length], None).await {
            writeln!(text, "its first {length} steps fail too: {}", beginning(&fault)).unwrap();
            break;
        }
    }
    text
}

fn list(steps: &[Step]) -> String {
    steps.iter().enumerate().map(|(number, step)| format!("\n  {number} {step:?}")).collect()
}

/// Compares what clients were shown with what is in the file.
async fn check_store(world: &World, logs: &[Log]) {
    let store = world.store().await;
    for Log { session, entries } in logs {
        let session = SessionId(session.parse().unwrap());
        let stored = store.entries(session, Range::After(0, u32::MAX)).await.expect("the store is read");
        let stored: BTreeMap<u64, Entry> = stored.into_iter().map(|entry| (entry.seq, from_store(entry))).collect();
        let shown = |seq| (stored.get(seq), entries.get(seq));
        let other = stored.keys().chain(entries.keys()).find(|seq| stored.get(seq) != entries.get(seq));
        let told = other.map(|seq| beginning(&format!("stored and shown: {:?}", shown(seq))));
        assert_eq!(told, None, "entry {other:?} of session {session}");
    }
    store.close().await;
}

pub(crate) fn from_store(entry: chatbox::chat::Entry) -> Entry {
    let turn = entry.turn_id.expect("every entry here has a turn").to_string();
    match (entry.sender, entry.state) {
        (Sender::Ai, Some(state)) => {
            let state = serde_json::to_value(state).unwrap().as_str().unwrap().to_owned();
            Entry::Reply { turn, reply_to: entry.reply_to.unwrap(), state, text: entry.content }
        }
        _ => Entry::Message { id: entry.client_id.unwrap().to_string(), content: entry.content, turn },
    }
}

/// Runs the same steps many times, for what happens between two threads of the server.
async fn check_repeated(times: u64, steps: impl Fn(Rng) -> Vec<Step> + Sync) {
    let (world, first) = (World::start(0).await, seed());
    let schedules = (first..first + times).map(|seed| {
        let (world, steps) = (Arc::clone(&world), steps(Rng::new(seed)));
        let told = move |fault: &str, steps: &[Step]| format!("{seed}: {}\nof{}", beginning(fault), list(steps));
        async move { run(&world, seed, &steps, None).await.map_err(|fault| told(&fault, &steps)) }
    });
    let outcomes: Vec<_> = stream::iter(schedules).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {times} failed, the first with {}", failed.len(), failed[0]);
}

/// The store is read in several steps: what has ended between two of them must be shown once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_at_the_moment_a_turn_ends_shows_its_reply_once() {
    check_repeated(200, |mut rng| {
        let mut steps = vec![Step::Connect { device: 0, via: Via::WebSocket, through: Through::Direct }];
        steps.push(Step::Say { device: 0, answer: Answer::quick(&mut rng) });
        for _ in 0..12 {
            steps.push(Step::Connect { device: 1, via: Via::WebSocket, through: Through::Direct });
            steps.push(Step::Read { device: 1, frames: rng.below(3) });
        }
        steps
    })
    .await;
}

/// A turn that was stopped before its runner began shows no text afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_at_the_moment_a_turn_starts_shows_no_text_beyond_its_length() {
    check_repeated(200, |mut rng| {
        let mut steps = vec![Step::Connect { device: 0, via: Via::WebSocket, through: Through::Direct }];
        for pick in 0..6 {
            steps.push(Step::Say { device: 0, answer: Answer::quick(&mut rng) });
            steps.push(Step::Read { device: 0, frames: 2 });
            steps.push(Step::Stop { device: 0, pick });
        }
        steps
    })
    .await;
}

/// What is stored is also started, although nobody is there any more to hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vanishing_at_the_moment_a_message_is_stored_does_not_keep_it_from_being_answered() {
    check_repeated(200, |mut rng| {
        let connect = Step::Connect { device: 0, via: rng.via(), through: Through::Direct };
        let part = Step::SayPart { device: 0, answer: Answer::quick(&mut rng), bytes: 1000 };
        vec![connect, part, connect, part, connect, part, connect, Step::Read { device: 0, frames: 20 }]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_lose_nothing_and_double_nothing() {
    let _alone = ALONE.acquire().await.unwrap();
    const SCHEDULES: u64 = 2000;
    let (world, first) = (World::start(0).await, seed());
    let logs = run_all(&world, first..first + SCHEDULES).await;
    world.end(Ending::Stopped).await;
    assert!(logs.iter().map(|log| log.entries.len()).sum::<usize>() > 2000, "much was said");
    check_store(&world, &logs).await;
}

/// Each device is on any of the nodes, and on another one when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_over_several_nodes_lose_nothing_and_double_nothing() {
    let _alone = ALONE.acquire().await.unwrap();
    const SCHEDULES: u64 = 200;
    let Some(world) = World::cluster(3).await else { return };
    let first = seed();
    let logs = run_all(&world, first..first + SCHEDULES).await;
    world.end(Ending::Stopped).await;
    assert!(logs.iter().map(|log| log.entries.len()).sum::<usize>() > 250, "much was said");
    check_store(&world, &logs).await;
}

/// Half of the servers are told to stop at once, half are dropped where they are, in the middle of answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_with_restarts_lose_nothing_and_double_nothing() {
    let _alone = ALONE.acquire().await.unwrap();
    const RESTARTS: u64 = 50;
    const USERS: u64 = 8;
    let (world, first) = (World::start(0).await, seed());
    let mut logs = Vec::new();
    for round in 0..RESTARTS {
        let ending = if round % 2 == 0 { Ending::Dead } else { Ending::Stopped };
        let seeds = (0..USERS).map(|user| first + round * USERS + user);
        let plays = seeds.map(|seed| Half::first(&world, seed)).collect::<FuturesUnordered<_>>();
        let halves: Vec<_> = plays.collect().await;
        world.restart(ending).await;
        let outcomes: Vec<_> = halves.into_iter().map(Half::second).collect::<FuturesUnordered<_>>().collect().await;
        for outcome in outcomes {
            logs.extend(outcome.unwrap_or_else(|fault| panic!("round {round}, server {ending:?}: {fault}")));
        }
    }
    world.end(Ending::Stopped).await;
    assert!(logs.iter().any(|log| log.interrupted()), "answers were cut");
    check_store(&world, &logs).await;
}

/// A schedule that is interrupted by a restart.
struct Half {
    play: Play,
    seed: u64,
    steps: Vec<Step>,
    at: usize,
    outcome: Result<(), Fault>,
}

impl Half {
    /// The first half ends with an answer under way.
    async fn first(world: &Arc<World>, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut steps = plan::random(rng.next());
        let at = rng.below(steps.len()) + 1;
        let (device, answer) = (rng.below(plan::DEVICES), Answer::plain());
        let asks = [Step::Say { device, answer }, Step::Read { device, frames: rng.below(12) }];
        steps.splice(at..at, asks);
        let mut play = Play::new(world, seed, None);
        let outcome = play.run(&steps[..at + asks.len()]).await;
        Self { play, seed, steps, at: at + asks.len(), outcome }
    }

    async fn second(mut self) -> Result<Option<Log>, Fault> {
        let outcome = async {
            self.outcome.clone()?;
            self.play.cut_off().await?;
            self.play.run(&self.steps[self.at..]).await?;
            self.play.finish().await
        };
        let outcome = outcome.await;
        outcome.map_err(|fault| {
            format!("{}: {}\nof a restart before step {}{}", self.seed, beginning(&fault), self.at, list(&self.steps))
        })
    }
}

/// The bus is a hint: what it loses, its last event too, is found in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_with_a_bus_that_drops() {
    let _alone = ALONE.acquire().await.unwrap();
    const SCHEDULES: u64 = 70;
    let mut first = seed();
    for percent in [2, 20, 60] {
        let world = World::start(percent).await;
        let logs = run_all(&world, first..first + SCHEDULES).await;
        world.end(Ending::Stopped).await;
        assert!(!logs.is_empty(), "something was said");
        check_store(&world, &logs).await;
        first += SCHEDULES;
    }
}

/// A device comes back while an answer runs, then another one when it has ended.
fn two_that_come_back(via: Via) -> Vec<Step> {
    let answer = Answer::plain();
    let connect = |device| Step::Connect { device, via, through: Through::Direct };
    let leave = |device| Step::Leave { device, politely: true };
    let (away, back) = ([connect(0), connect(1), leave(1), connect(2), leave(2)], [connect(1), connect(2)]);
    let says = [Step::Say { device: 0, answer }, Step::Read { device: 0, frames: 4 }];
    let ends = [Step::Read { device: 1, frames: 100 }, Step::Read { device: 0, frames: 100 }];
    [&away[..], &says, &back[..1], &ends, &back[1..], &[Step::Read { device: 2, frames: 100 }]].concat()
}

async fn finds(plant: Plant, words: &str) {
    let world = World::start(0).await;
    for via in [Via::WebTransport, Via::WebSocket] {
        let steps = two_that_come_back(via);
        assert_eq!(run(&world, 1, &steps, None).await.map(drop), Ok(()), "without the plant");
        let fault = run(&world, 1, &steps, Some(plant)).await.map(drop).expect_err("the plant is found");
        assert!(fault.contains(words), "{plant:?} is found as {fault}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_piece_is_found() {
    finds(Plant::Drop, "a hole at").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubled_entry_is_found() {
    finds(Plant::Double, "entry 1 is shown twice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_order_is_found() {
    finds(Plant::Swap, "entry 1 is shown after entry 2").await;
}
