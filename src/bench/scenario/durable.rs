//! Stored messages in a second, each acknowledged after its commit.
//!
//! Each writer waits for the whole answer before it writes again, because answers of a session run one after the
//! other; the time that counts is the one to the acknowledgement.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Bench, Pace, Pair, Row, Unit, Via, person, stored::Person};
use crate::bench::load::Recorded;

struct Writer {
    person: Person,
    acknowledged: Arc<Mutex<Recorded>>,
}

impl Pair for Writer {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let said = self.person.device.say(&self.person.message).await?;
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).answered(said.accepted);
        Ok(())
    }
}

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let target = bench.target(&Bench::instant_model()).await?;
    let mut meter = target.meter()?;
    let people = (0..bench.sizes.writers).map(|number| person("durable", number)).collect();
    let acknowledged = Arc::new(Mutex::new(Recorded::default()));
    let writer = |device| Writer { person: Person::new(device), acknowledged: Arc::clone(&acknowledged) };
    let writers: Vec<_> = bench.devices(&target, via, people).await?.into_iter().map(writer).collect();
    let (whole, outcome) = bench.load(writers, Pace::Saturated, meter.as_mut()).await;
    // What was acknowledged before the measured time is a sample like any other; the rate is that of the whole.
    let times = std::mem::take(&mut *acknowledged.lock().unwrap_or_else(PoisonError::into_inner));
    let row = Row {
        scenario: "durable".to_owned(),
        variant: "acknowledged".to_owned(),
        unit: Unit::Message,
        latency: crate::bench::report::Latency::of(&times.latencies),
        ..whole
    };
    super::close(outcome.pairs.into_iter().map(|writer| writer.person.device).collect()).await;
    Ok(vec![row])
}
