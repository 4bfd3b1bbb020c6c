//! Many connections at once: from nothing to an attached watch, in full and with session tickets.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{Bench, Row, Step, Unit, Via, costs, person};
use crate::{
    bench::{device::Device, load::Recorded, target::Target},
    client::Dialer,
};

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let target = bench.target(&Bench::instant_model()).await?;
    let mut rows = vec![storm(bench, &target, via, Tickets::None).await?];
    // Without TLS there is nothing to resume.
    if via != Via::Websocket {
        rows.push(storm(bench, &target, via, Tickets::Shared).await?);
    }
    Ok(rows)
}

/// Whether connections know each other's session tickets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tickets {
    None,
    Shared,
}

/// What the workers of a storm share.
struct Storm {
    target: Arc<Target>,
    via: Via,
    /// with the tickets of a connection before; `None`: each connection begins without any
    shared: Option<Dialer>,
    next: AtomicUsize,
    connections: usize,
    recorded: Mutex<Recorded>,
    bench: Bench,
}

async fn storm(bench: &Bench, target: &Arc<Target>, via: Via, tickets: Tickets) -> anyhow::Result<Row> {
    let shared = match tickets {
        Tickets::None => None,
        Tickets::Shared => Some(with_ticket(target, via).await?),
    };
    let variant = if shared.is_some() { "resumed" } else { "full" };
    let storm = Arc::new(Storm {
        target: Arc::clone(target),
        via,
        shared,
        next: AtomicUsize::new(0),
        connections: bench.sizes.storm,
        recorded: Mutex::default(),
        bench: bench.clone(),
    });
    let mut meter = target.meter()?;
    let before = meter.as_mut().map(|meter| meter.cpu()).transpose()?;
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..bench.sizes.at_once.max(1) {
        workers.spawn(work(Arc::clone(&storm)));
    }
    let held: Vec<Device> = workers.join_all().await.into_iter().flatten().collect();
    let elapsed = began.elapsed();
    let after = meter.as_mut().map(|meter| meter.cpu()).transpose()?;
    let recorded = std::mem::take(&mut *storm.recorded.lock().unwrap_or_else(PoisonError::into_inner));
    let mut row = Row { unit: Unit::Connection, ..Row::of("storm", variant, &recorded) };
    row.total_ms = Some(elapsed.as_secs_f64() * 1000.0);
    row.settings.insert("at_once".to_owned(), bench.sizes.at_once.to_string());
    costs(&mut row, elapsed, after.zip(before).map(|(after, before)| after.saturating_sub(before)));
    super::close(held).await;
    Ok(row)
}

/// Opens connections until there are enough, and holds them.
async fn work(storm: Arc<Storm>) -> Vec<Device> {
    let mut held = Vec::new();
    while !storm.bench.stop.is_cancelled() {
        let number = storm.next.fetch_add(1, Ordering::Relaxed);
        if number >= storm.connections {
            break;
        }
        // Tokens are signed before the time begins.
        let prepared = storm.target.token(&person("storm", number)).and_then(|token| {
            let (fresh, transport) = storm.target.dialer(storm.via)?;
            Ok((storm.shared.clone().unwrap_or(fresh), transport, token))
        });
        let began = Instant::now();
        let opened = match prepared {
            Ok((dialer, transport, token)) => Device::open(&dialer, transport, &token).await,
            Err(err) => Err(err),
        };
        let took = began.elapsed();
        let mut recorded = storm.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Ok(device) => {
                recorded.answered(took);
                held.push(device);
            }
            Err(err) => recorded.failed(&err),
        }
        drop(recorded);
        storm.bench.tell.step(Step::Opened { open: number + 1, of: storm.connections });
    }
    held
}

/// A dialer that has been connected once, long enough to have been given a ticket.
async fn with_ticket(target: &Target, via: Via) -> anyhow::Result<Dialer> {
    let (dialer, transport) = target.dialer(via)?;
    let first = Device::open(&dialer, transport, &target.token(&person("storm", 0))?).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    super::close(vec![first]).await;
    Ok(dialer)
}
