//! What the server adds to the time to first token: from the first byte of the message sent to the first byte of the
//! answer received, less what the model itself took, while as many answers as there are people stream.

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

struct Asker {
    device: Device,
    script: Script,
    added: Arc<Mutex<Recorded>>,
}

impl Pair for Asker {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let answer = Answer::new(PIECES, PIECE_BYTES, PAUSE);
        let message = self.script.announce(&answer)?;
        let said = self.device.say(&message).await?;
        let own = answer.own_time().context("the model was not asked")?;
        self.added.lock().unwrap_or_else(PoisonError::into_inner).answered(said.first.saturating_sub(own));
        Ok(())
    }
}

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    bench.own()?;
    let model = Model::start().await?;
    let target = bench.target(&model.settings()).await?;
    let mut meter = target.meter()?;
    let people = (0..bench.sizes.answers).map(|number| person("ttft", number)).collect();
    let added = Arc::new(Mutex::new(Recorded::default()));
    let asker = |device| Asker { device, script: model.script().clone(), added: Arc::clone(&added) };
    let askers: Vec<_> = bench.devices(&target, via, people).await?.into_iter().map(asker).collect();
    let (whole, outcome) = bench.load(askers, Pace::Saturated, meter.as_mut()).await;
    let times = std::mem::take(&mut *added.lock().unwrap_or_else(PoisonError::into_inner));
    let row = Row {
        scenario: "ttft".to_owned(),
        variant: format!("{} answers at a time", bench.sizes.answers),
        unit: Unit::Answer,
        latency: Latency::of(&times.latencies),
        ..whole
    };
    super::close(outcome.pairs.into_iter().map(|asker| asker.device).collect()).await;
    Ok(vec![row])
}
