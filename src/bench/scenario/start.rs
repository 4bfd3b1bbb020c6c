//! From the start of the process to its first accept, with an empty store and with a full one.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tempfile::TempDir;

use super::{Bench, Row, Unit, number};
use crate::bench::{
    fill,
    load::Recorded,
    target::{Own, Target, home},
};

/// Each number is the median of so many starts.
const STARTS: usize = 5;

const DEADLINE: Duration = Duration::from_secs(30);

/// Messages of one session of the full store.
const SESSION_MESSAGES: usize = 1000;

pub(super) async fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let own = bench.own()?;
    let size = own.binary.metadata().context("look at the binary")?.len();
    let mut rows = Vec::new();
    for messages in [0, bench.sizes.messages] {
        let mut dir = home()?;
        if messages > 0 {
            full(dir.path(), messages).await?;
        }
        let mut recorded = Recorded::default();
        let mut resident = 0;
        for _ in 0..STARTS {
            if bench.stop.is_cancelled() {
                break;
            }
            let started = start(own, dir).await?;
            recorded.answered(started.took);
            resident = started.resident_bytes;
            dir = started.dir;
        }
        if recorded.latencies.is_empty() {
            break;
        }
        let variant = if messages == 0 { "empty store".to_owned() } else { format!("{messages} messages") };
        let mut row = Row { unit: Unit::Start, ..Row::of("start", variant, &recorded) };
        row.bytes = Some(number(resident));
        row.settings.insert("binary_bytes".to_owned(), size.to_string());
        rows.push(row);
    }
    Ok(rows)
}

struct Started {
    took: Duration,
    resident_bytes: u64,
    dir: TempDir,
}

/// Starts a server on the data of `dir`, and kills it once it has accepted.
async fn start(own: &Own, dir: TempDir) -> anyhow::Result<Started> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let settings = [("LISTEN__HTTP", format!("localhost:{port}"))];
    let began = Instant::now();
    let accepted = tokio::task::spawn_blocking(move || accepts(port, began));
    let target = Target::start(own, dir, &settings).await?;
    let took = accepted.await.context("the waiting thread panicked")??;
    let resident_bytes = target.meter()?.context("the server is a child")?.resident_bytes()?;
    Ok(Started { took, resident_bytes, dir: target.kill().context("the server is a child")? })
}

/// Tries until the port accepts.
fn accepts(port: u16, began: Instant) -> anyhow::Result<Duration> {
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(began.elapsed() < DEADLINE, "nothing accepted within {} s", DEADLINE.as_secs());
        std::thread::yield_now();
    }
    Ok(began.elapsed())
}

async fn full(dir: &Path, messages: usize) -> anyhow::Result<()> {
    let store = fill::open(&dir.join("data")).await?;
    for session in 0..messages.div_ceil(SESSION_MESSAGES) {
        let left = messages - session * SESSION_MESSAGES;
        fill::session(&store, &super::person("full", session), left.min(SESSION_MESSAGES)).await?;
    }
    store.close().await;
    Ok(())
}
