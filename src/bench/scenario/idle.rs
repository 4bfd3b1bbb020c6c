//! Memory of each attached connection that says nothing.

use std::time::Duration;

use anyhow::Context;

use super::{Bench, Row, Unit, Via, count, number, per, person};

/// Connections that are there before the first reading: what the first ones allocate is shared.
const WARM_UP: usize = 50;

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let target = bench.target(&Bench::instant_model()).await?;
    let meter = target.meter()?.context("memory is read of a server whose process is known: --pid")?;
    let people = |from: usize, to: usize| (from..to).map(|number| person("idle", number)).collect();
    let warm_up = WARM_UP.min(bench.sizes.idle.first().copied().unwrap_or(WARM_UP));
    let mut held = bench.devices(&target, via, people(0, warm_up)).await?;
    settle(bench).await;
    let before = meter.resident_bytes()?;
    let mut rows = Vec::new();
    for &connections in &bench.sizes.idle {
        held.extend(bench.devices(&target, via, people(held.len(), warm_up + connections)).await?);
        settle(bench).await;
        if bench.stop.is_cancelled() {
            break;
        }
        let n = count(held.len() - warm_up);
        let grown = meter.resident_bytes()?.saturating_sub(before);
        rows.push(Row {
            scenario: "idle".to_owned(),
            variant: format!("{connections} connections"),
            server: "chatbox".to_owned(),
            unit: Unit::Connection,
            n,
            rounds: 1,
            bytes: per(number(grown), number(n)),
            ..Row::default()
        });
    }
    super::close(held).await;
    Ok(rows)
}

/// What follows an attach is over by then: session tickets, acknowledgements, first keep-alives.
async fn settle(bench: &Bench) {
    tokio::select! {
        () = bench.stop.cancelled() => {}
        () = tokio::time::sleep(bench.sizes.settle.min(Duration::from_secs(10))) => {}
    }
}
