//! What the server adds to the time to first token: from the first byte of the message sent to the first byte of the
//! answer received, less what the model itself took, while as many answers as there are people stream.
//!
//! Twice: people who ask on their own, at moments of their own; and all of them at the same moment, again and again.
//! For the first, its two parts as well: until the model has the whole request, and from the model's first piece on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;

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
    /// how far through [`LENGTHS`]; `None`: every answer has [`PIECES`]
    turn: Option<usize>,
    /// before the first question
    wait: Duration,
}

impl Asker {
    fn pieces(&mut self) -> usize {
        let Some(turn) = &mut self.turn else { return PIECES };
        *turn += 1;
        LENGTHS.get(*turn % LENGTHS.len()).copied().unwrap_or(PIECES)
    }
}

impl Pair for Asker {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let wait = std::mem::take(&mut self.wait);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let answer = Answer::new(self.pieces(), PIECE_BYTES, PAUSE);
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
    let people = (0..answers).map(|number| person("ttft", number)).collect();
    let mut devices = bench.devices(&target, via, people).await?;
    let mut rows = Vec::new();
    for together in [false, true] {
        let added = Arc::new(Mutex::new(Added::default()));
        let span = PAUSE * u32::try_from(PIECES).unwrap_or(0);
        let asker = |(place, device)| Asker {
            device,
            script: model.script().clone(),
            added: Arc::clone(&added),
            turn: (!together).then_some(place),
            wait: if together { Duration::ZERO } else { span.mul_f64(share(place, answers)) },
        };
        let askers = devices.into_iter().enumerate().map(asker).collect();
        let (whole, outcome) = bench.load(askers, Pace::Saturated, meter.as_mut()).await;
        devices = outcome.pairs.into_iter().map(|asker| asker.device).collect();
        let Added { whole: all, asking, passing } =
            std::mem::take(&mut *added.lock().unwrap_or_else(PoisonError::into_inner));
        let row = |variant: String, times: &Recorded| Row {
            scenario: "ttft".to_owned(),
            variant,
            unit: Unit::Answer,
            latency: Latency::of(&times.latencies),
            ..whole.clone()
        };
        if together {
            rows.push(row(format!("{answers} asked at once"), &all));
        } else {
            rows.push(row(format!("{answers} answers at a time"), &all));
            rows.push(row("of it until the model is asked".to_owned(), &asking));
            rows.push(row("of it from the model's first piece".to_owned(), &passing));
        }
    }
    super::close(devices).await;
    Ok(rows)
}

/// Where one of so many is, from 0 to 1.
fn share(place: usize, of: usize) -> f64 {
    super::number(super::count(place)) / super::number(super::count(of.max(1)))
}
