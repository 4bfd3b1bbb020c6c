//! A message that is stored, and its answer of one piece: two entries, a turn and two durable commits, shared with
//! whatever is committed at the same time.

use super::{Bench, Pace, Pair, Row, Unit, Via, person};
use crate::bench::device::{self, Device};

/// Bytes of a message; the answer has as many.
const MESSAGE_BYTES: usize = 200;

/// A person who asks and reads the whole answer.
pub(super) struct Person {
    pub(super) device: Device,
    pub(super) message: String,
}

impl Person {
    pub(super) fn new(device: Device) -> Self {
        Self { device, message: device::text(MESSAGE_BYTES) }
    }
}

impl Pair for Person {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.device.say(&self.message).await?;
        Ok(())
    }
}

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let target = bench.target(&Bench::instant_model()).await?;
    let mut meter = target.meter()?;
    let people = (0..bench.sizes.pairs).map(|number| person("stored", number)).collect();
    let mut pairs: Vec<_> = bench.devices(&target, via, people).await?.into_iter().map(Person::new).collect();
    let mut rows = Vec::new();
    for pace in [bench.people_pace(), Pace::Saturated] {
        let (row, outcome) = bench.load(pairs, pace, meter.as_mut()).await;
        rows.push(Row { scenario: "stored".to_owned(), unit: Unit::Message, ..row });
        pairs = outcome.pairs;
    }
    super::close(pairs.into_iter().map(|pair| pair.device).collect()).await;
    Ok(rows)
}
