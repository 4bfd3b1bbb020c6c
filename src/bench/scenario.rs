//! The scenarios: each starts what it needs, loads it, and gives rows.

mod drain;
mod durable;
mod fanout;
mod flat;
mod idle;
mod relay;
mod start;
mod stored;
mod storm;
mod ttft;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Step, Tell,
    device::Device,
    load::{self, Outcome, Pace, Pair, Plan},
    plan::{Scenario, Sizes, Via},
    process::Meter,
    report::{Row, Unit},
    target::{Own, Target},
};
use crate::client::{Dialer, Transport};

/// Where scenarios find a server.
#[derive(Clone, Debug)]
pub enum Place {
    /// each starts its own
    Own(Own),
    /// all load this one
    Given(Arc<Target>),
    /// those who write are on the first, those who read on the second: two nodes of one cluster
    Nodes(Arc<Target>, Arc<Target>),
}

/// What every scenario is given.
#[derive(Clone)]
pub struct Bench {
    /// where servers come from
    pub place: Place,
    /// how much is measured
    pub sizes: Sizes,
    /// ends everything early, with what there is
    pub stop: CancellationToken,
    /// hears how far it is
    pub tell: Tell,
}

/// How long one round trip may take before it is a failure.
const ROUND_TRIP: Duration = Duration::from_secs(10);

/// The people whose sessions are measured have names that nobody else has.
fn person(kind: &str, number: usize) -> String {
    format!("bench-{kind}-{number}")
}

impl Bench {
    /// Runs one scenario over one transport, once. Scenarios without a transport ignore it.
    ///
    /// # Errors
    /// When it could not be measured at all. What fails within it is counted in its rows.
    pub async fn run(&self, scenario: Scenario, via: Via) -> anyhow::Result<Vec<Row>> {
        let mut rows = match scenario {
            Scenario::Idle => idle::run(self, via).await,
            Scenario::Relay => relay::run(self, via).await,
            Scenario::Stored => stored::run(self, via).await,
            Scenario::Fanout => fanout::run(self, via).await,
            Scenario::Ttft => ttft::run(self, via).await,
            Scenario::Storm => storm::run(self, via).await,
            Scenario::Durable => durable::run(self, via).await,
            Scenario::Drain => drain::run(self, via).await,
            Scenario::Start => start::run(self).await,
            Scenario::Flat => flat::run(self, via).await,
        }?;
        for row in rows.iter_mut().filter(|row| row.transport.is_empty() && scenario != Scenario::Start) {
            row.transport = via.name().to_owned();
        }
        Ok(rows)
    }

    /// The server of a scenario; of our own, with these settings.
    async fn target(&self, settings: &[(&str, String)]) -> anyhow::Result<Arc<Target>> {
        match &self.place {
            Place::Own(own) => Ok(Arc::new(Target::start(own, super::target::home()?, settings).await?)),
            Place::Given(target) | Place::Nodes(target, _) => Ok(Arc::clone(target)),
        }
    }

    /// Where those are who read what others write.
    fn beside(&self, target: &Arc<Target>) -> Arc<Target> {
        let Place::Nodes(_, beside) = &self.place else { return Arc::clone(target) };
        Arc::clone(beside)
    }

    /// What starts servers, for scenarios that need one of their own.
    fn own(&self) -> anyhow::Result<&Own> {
        match &self.place {
            Place::Own(own) => Ok(own),
            Place::Given(_) | Place::Nodes(..) => anyhow::bail!("needs a server of its own: leave out --url"),
        }
    }

    /// The demo with one piece for an answer: a model without a network and without pauses.
    fn instant_model() -> [(&'static str, String); 3] {
        [
            ("LLM__PROVIDERS__INSTANT__TYPE", "demo".to_owned()),
            ("LLM__PROVIDERS__INSTANT__PACE", "0s".to_owned()),
            ("LLM__PROVIDERS__INSTANT__ANSWER", super::device::text(200)),
        ]
    }

    /// Opens a device for each of these people, some at a time, in their order. Tells how far it is.
    async fn devices(&self, target: &Target, via: Via, people: Vec<String>) -> anyhow::Result<Vec<Device>> {
        let (dialer, transport) = target.dialer(via)?;
        let tokens = people.iter().map(|person| target.token(person)).collect::<Result<Vec<_>, _>>()?;
        let of = tokens.len();
        let mut waiting = tokens.into_iter().enumerate();
        let mut opening = JoinSet::new();
        let mut devices: Vec<Option<Device>> = Vec::new();
        devices.resize_with(of, || None);
        let mut open = 0;
        loop {
            while opening.len() < self.sizes.at_once.max(1) && !self.stop.is_cancelled() {
                let Some((place, token)) = waiting.next() else { break };
                opening.spawn(open_one(dialer.clone(), transport, place, token));
            }
            let Some(opened) = opening.join_next().await else { break };
            let (place, device) = opened.context("a task that opens a connection panicked")?;
            let device = device.with_context(|| format!("open connection {} of {of} over {via}", place + 1))?;
            if let Some(free) = devices.get_mut(place) {
                *free = Some(device);
            }
            open += 1;
            self.tell.step(Step::Opened { open, of });
        }
        // Fewer than asked for only when it was stopped.
        Ok(devices.into_iter().flatten().collect())
    }

    /// Loads with pairs at a pace, and makes a row of it.
    async fn load<P: Pair>(&self, pairs: Vec<P>, pace: Pace, meter: Option<&mut Meter>) -> (Row, Outcome<P>) {
        let plan = Plan {
            pace,
            warm_up: self.sizes.warm_up,
            duration: self.sizes.duration,
            deadline: ROUND_TRIP,
            stop: self.stop.clone(),
        };
        let count = pairs.len();
        self.tell.step(Step::Loads { pace, takes: plan.warm_up + plan.duration });
        let outcome = load::run(pairs, &plan, meter).await;
        let mut recorded = outcome.recorded.clone();
        if recorded.latencies.is_empty() && recorded.failures == 0 && !self.stop.is_cancelled() {
            // Zeros without a word would look like a measurement.
            recorded.failed(&anyhow::anyhow!("no answer was complete within the measured time: a longer --duration"));
        }
        let mut row = Row::of("", pace.to_string(), &recorded);
        row.settings.insert("pairs".to_owned(), count.to_string());
        if let Pace::Paced(pause) = pace {
            row.settings.insert("pause_ms".to_owned(), pause.as_millis().to_string());
        }
        costs(&mut row, outcome.elapsed, outcome.cpu);
        (row, outcome)
    }

    /// The pace that people have: with pauses, or at the rate that was asked for.
    fn people_pace(&self) -> Pace {
        self.sizes.rate.map_or(Pace::Paced(self.sizes.pause), Pace::Rate)
    }
}

async fn open_one(
    dialer: Dialer,
    transport: Transport,
    place: usize,
    token: String,
) -> (usize, anyhow::Result<Device>) {
    (place, Device::open(&dialer, transport, &token).await)
}

/// Adds the rate of a row, and the CPU time of each that it counts.
fn costs(row: &mut Row, elapsed: Duration, cpu: Option<Duration>) {
    row.per_second = per(number(row.n), elapsed.as_secs_f64());
    row.cpu_us = cpu.and_then(|cpu| per(cpu.as_secs_f64() * 1e6, number(row.n)));
}

fn per(what: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| what / of)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run fit into the 53 bits of a float")]
const fn number(count: u64) -> f64 {
    count as f64
}

fn count(items: usize) -> u64 {
    u64::try_from(items).unwrap_or(u64::MAX)
}

/// Closes devices and waits until it is done, so that the next measurement does not pay for it.
async fn close(devices: Vec<Device>) {
    for device in &devices {
        device.link.close(crate::protocol::CloseCode::Done);
    }
    for device in devices {
        // One that does not end in time is dropped, which ends it too.
        drop(timeout(Duration::from_secs(3), device.link.closed()).await);
    }
}
