//! A frame from one device to another of the same session, which is routed and not stored.

use anyhow::Context;
use bytes::Bytes;

use super::{Bench, Pace, Pair, Row, Unit, Via, person};
use crate::bench::device::{self, Device, Seen};

/// As long as the frames of the peers that it is compared with.
const FRAME_BYTES: usize = 200;

/// Two devices of one person.
struct Typists {
    writes: Device,
    reads: Device,
    /// start and stop, in turns, so that an old frame is not taken for the next one
    frames: [Bytes; 2],
    asked: usize,
}

impl Pair for Typists {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let [start, stop] = &self.frames;
        let (frame, state) = if self.asked.is_multiple_of(2) { (start, "\"start\"") } else { (stop, "\"stop\"") };
        self.asked += 1;
        self.writes.watch.send(frame.clone()).await?;
        loop {
            let seen = tokio::select! {
                biased;
                seen = self.reads.watch.next() => seen?.context("the server ended the watch")?,
                // Whoever writes is told when the server refuses it.
                told = self.writes.watch.next() => {
                    Seen::read(&told?.context("the server ended the watch")?)?;
                    continue;
                }
            };
            let seen = std::str::from_utf8(&seen).context("a frame is not UTF-8")?;
            if seen.contains("\"typing_indicator\"") && seen.contains(state) {
                return Ok(());
            }
        }
    }
}

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let target = bench.target(&Bench::instant_model()).await?;
    let mut meter = target.meter()?;
    let people: Vec<_> = (0..bench.sizes.pairs).map(|number| person("relay", number)).collect();
    // One after the other, so that both devices of a person find the same session.
    let writers = bench.devices(&target, via, people.clone()).await?;
    let readers = bench.devices(&bench.beside(&target), via, people).await?;
    let pair = |(writes, reads): (Device, Device)| {
        let frames = ["start", "stop"].map(|state| device::typing(writes.session, state, FRAME_BYTES));
        Typists { writes, reads, frames, asked: 0 }
    };
    let mut pairs: Vec<_> = writers.into_iter().zip(readers).map(pair).collect();
    let mut rows = Vec::new();
    for pace in [bench.people_pace(), Pace::Saturated] {
        let (row, outcome) = bench.load(pairs, pace, meter.as_mut()).await;
        rows.push(Row { scenario: "relay".to_owned(), unit: Unit::Message, ..row });
        pairs = outcome.pairs;
    }
    super::close(pairs.into_iter().flat_map(|pair| [pair.writes, pair.reads]).collect()).await;
    Ok(rows)
}
