//! What the server adds to the time to first token: from the first byte of the message sent to the first byte of the
//! answer received, less what the model itself took, while as many answers as there are people stream.
//!
//! Twice: people who ask on their own, at moments of their own; and all of them at the same moment, again and again.
//! For the first, its two parts as well: until the model has the whole request, and from the model's first piece on.
//! And what a piece costs: the server's CPU time for long answers, shared out among their pieces; and once more where
//! each person has several devices, among all that get them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use super::{Bench, Pace, Pair, Row, Unit, Via, person};
use crate::bench::{
    device::Device,
    load::Recorded,
    model::{Answer, Model, Script},
    report::Latency,
};

/// An answer that streams for a fifth of a second, as fast as hosted models do at their best.
const PIECES: usize = 20;
const PIECE_BYTES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// How many pieces answers have by turns where people are on their own: who asked together once does not again.
const LENGTHS: [usize; 7] = [20, 14, 26, 17, 23, 15, 25];

/// How many pieces an answer has whose cost is that of its pieces: question and ends are a small part of it.
const LONG: usize = 50;
const LONG_PAUSE: Duration = Duration::from_millis(4);

/// Devices of each person that see a long answer, with the one that asks.
const DEVICES: usize = 5;

#[derive(Default)]
struct Added {
    whole: Recorded,
    asking: Recorded,
    passing: Recorded,
}

struct Asker {
    device: Device,
    script: Script,
    added: Arc<Mutex<Added>>,
    /// how far through [`LENGTHS`]; `None`: every answer has `pieces`
    turn: Option<usize>,
    pieces: usize,
    pause: Duration,
    /// before the first question
    wait: Duration,
}

impl Asker {
    fn pieces(&mut self) -> usize {
        let Some(turn) = &mut self.turn else { return self.pieces };
        *turn += 1;
        LENGTHS.get(*turn % LENGTHS.len()).copied().unwrap_or(self.pieces)
    }
}

impl Pair for Asker {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let wait = std::mem::take(&mut self.wait);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let answer = Answer::new(self.pieces(), PIECE_BYTES, self.pause);
        let message = self.script.announce(&answer)?;
        let said = self.device.say(&message).await?;
        let asked = answer.asked_at().context("the model was not asked")?;
        let spoke = answer.said_at(0).context("the model said nothing")?;
        let asking = asked.saturating_duration_since(said.began);
        let passing = (said.began + said.first).saturating_duration_since(spoke);
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        added.whole.answered(asking + passing);
        added.asking.answered(asking);
        added.passing.answered(passing);
        Ok(())
    }
}

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    bench.own()?;
    let model = Model::start().await?;
    let target = bench.target(&model.settings()).await?;
    let mut meter = target.meter()?;
    let answers = bench.sizes.answers;
    let people: Vec<_> = (0..answers).map(|number| person("ttft", number)).collect();
    let mut devices = bench.devices(&target, via, people.clone()).await?;
    let mut watching = JoinSet::new();
    let mut rows = Vec::new();
    let (own, shared) = (1, DEVICES);
    for (apart, pieces, pause, seen_by) in [
        (true, PIECES, PAUSE, own),
        (false, PIECES, PAUSE, own),
        (true, LONG, LONG_PAUSE, own),
        (true, LONG, LONG_PAUSE, shared),
    ] {
        for _other in own..seen_by {
            let others = bench.devices(&target, via, people.clone()).await?;
            others.into_iter().for_each(|other| drop(watching.spawn(watch(other))));
        }
        let added = Arc::new(Mutex::new(Added::default()));
        let span = pause * u32::try_from(pieces).unwrap_or(0);
        let asker = |(place, device)| Asker {
            device,
            script: model.script().clone(),
            added: Arc::clone(&added),
            turn: (apart && pieces == PIECES).then_some(place),
            pieces,
            pause,
            wait: if apart { span.mul_f64(share(place, answers)) } else { Duration::ZERO },
        };
        let askers = devices.into_iter().enumerate().map(asker).collect();
        let (whole, outcome) = bench.load(askers, Pace::Saturated, meter.as_mut()).await;
        devices = outcome.pairs.into_iter().map(|asker| asker.device).collect();
        let whole = Row { scenario: "ttft".to_owned(), unit: Unit::Answer, ..whole };
        let Added { whole: all, asking, passing } =
            std::mem::take(&mut *added.lock().unwrap_or_else(PoisonError::into_inner));
        let row = |variant: String, times: &Recorded| Row {
            variant,
            latency: Latency::of(&times.latencies),
            ..whole.clone()
        };
        match (apart, pieces) {
            (_, LONG) => rows.push(of_pieces(whole, seen_by)),
            (false, _) => rows.push(row(format!("{answers} asked at once"), &all)),
            (true, _) => {
                rows.push(row(format!("{answers} answers at a time"), &all));
                rows.push(row("of it until the model is asked".to_owned(), &asking));
                rows.push(row("of it from the model's first piece".to_owned(), &passing));
            }
        }
    }
    // One whose watch has ended would have made the others cheap.
    ensure!(watching.try_join_next().is_none(), "a watch has ended before its answers");
    watching.shutdown().await;
    super::close(devices).await;
    Ok(rows)
}

/// Reads what a device watches, until the server ends it.
async fn watch(mut device: Device) -> anyhow::Result<()> {
    while device.watch.next().await?.is_some() {}
    Ok(())
}

/// The row of long answers by their pieces, each as often as a device gets it.
fn of_pieces(answers: Row, seen_by: usize) -> Row {
    let each = super::count(LONG * seen_by);
    let pieces = super::number(each);
    let (whom, unit) = match seen_by {
        1 => (String::new(), Unit::Piece),
        devices => (format!(", to {devices} devices"), Unit::Delivery),
    };
    Row {
        variant: format!("pieces of answers of {LONG}{whom}"),
        unit,
        n: answers.n * each,
        latency: None,
        cpu_us: answers.cpu_us.map(|cpu_us| cpu_us / pieces),
        per_second: answers.per_second.map(|answers| answers * pieces),
        ..answers
    }
}

/// Where one of so many is, from 0 to 1.
fn share(place: usize, of: usize) -> f64 {
    super::number(super::count(place)) / super::number(super::count(of.max(1)))
}
