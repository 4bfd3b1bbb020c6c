//! SIGTERM under connections: how long until all were told when to come back, and were closed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Bench, Row, Unit, Via, person};
use crate::bench::{
    device::{Device, Seen},
    load::Recorded,
    process,
    target::{Target, home},
};

/// More than any bar allows; a connection that is not closed by then counts as failed.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let mut target = Target::start(bench.own()?, home()?, &Bench::instant_model()).await?;
    let people = (0..bench.sizes.drain).map(|number| person("drain", number)).collect();
    let devices = bench.devices(&target, via, people).await?;
    let child = target.child().context("the server is not a child")?;
    let recorded = Arc::new(Mutex::new(Recorded::default()));
    let signalled = CancellationToken::new();
    let mut waiting = JoinSet::new();
    for device in devices {
        waiting.spawn(wait(device, signalled.clone(), Arc::clone(&recorded)));
    }
    // The times of all begin with the signal: nobody is before it.
    let began = Instant::now();
    process::terminate(child).context("send SIGTERM")?;
    signalled.cancel();
    waiting.join_all().await;
    let closed = began.elapsed();
    let exited = exit(child, began).await;
    let mut recorded = std::mem::take(&mut *recorded.lock().unwrap_or_else(PoisonError::into_inner));
    let ended = match exited {
        Ok(ended) => ended,
        Err(err) => {
            recorded.failed(&err);
            closed
        }
    };
    let mut row = Row { unit: Unit::Connection, ..Row::of("drain", "", &recorded) };
    row.total_ms = Some(closed.as_secs_f64() * 1000.0);
    row.settings.insert("exit_ms".to_owned(), ended.as_millis().to_string());
    Ok(vec![row])
}

/// Reads one device to its end, and notes when that was. Whoever was not told `going_away` first is a failure.
async fn wait(mut device: Device, signalled: CancellationToken, recorded: Arc<Mutex<Recorded>>) {
    signalled.cancelled().await;
    let began = Instant::now();
    let ended = timeout(DEADLINE, async {
        let mut told = false;
        while let Ok(Some(frame)) = device.watch.next().await {
            told |= Seen::read(&frame).is_ok_and(|seen| seen.r#type == "going_away");
        }
        device.link.closed().await;
        told
    });
    let told = ended.await;
    let mut recorded = recorded.lock().unwrap_or_else(PoisonError::into_inner);
    match told {
        Ok(true) => recorded.answered(began.elapsed()),
        Ok(false) => recorded.failed(&anyhow!("closed without a `going_away`")),
        Err(_) => recorded.failed(&anyhow!("not closed within {} s", DEADLINE.as_secs())),
    }
}

async fn exit(child: &mut std::process::Child, began: Instant) -> anyhow::Result<Duration> {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while began.elapsed() < DEADLINE {
        look.tick().await;
        if let Some(status) = child.try_wait().context("wait for the server")? {
            anyhow::ensure!(status.success(), "the server ended with {status}");
            return Ok(began.elapsed());
        }
    }
    anyhow::bail!("the server did not end within {} s", DEADLINE.as_secs())
}
