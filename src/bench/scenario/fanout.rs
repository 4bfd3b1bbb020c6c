//! One answer to many devices of one session: what each delivery costs, and when the last device has a piece.
//!
//! Paced, each piece is a frame of its own. Saturated, a watcher that is behind gets several pieces in one frame;
//! what is counted is the piece all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use tokio::{task::JoinSet, time::timeout};

use super::{Bench, Row, Step, Unit, Via, costs, number, per, person};
use crate::bench::{
    device::{Device, Seen},
    load::{Pace, Recorded},
    model::{Answer, Model},
    process::Meter,
};

/// As long as the frames of the peers that it is compared with.
const PIECE_BYTES: usize = 200;

/// 20 pieces in a second.
const PAUSE: Duration = Duration::from_millis(50);

/// Pieces of a saturated answer: enough to be behind, and below what a replay would show whole.
const SATURATED_PIECES: usize = 400;

const WARM_UP_PIECES: usize = 10;
const WARM_UP_PAUSE: Duration = Duration::from_millis(10);

/// Beyond the answer's own time.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    bench.own()?;
    let model = Model::start().await?;
    let target = bench.target(&model.settings()).await?;
    let mut meter = target.meter()?;
    let mut rows = Vec::new();
    let mut devices = Vec::new();
    for &watchers in &bench.sizes.watchers {
        // One more than watch: it asks, and gets the answer on the exchange.
        let missing = (watchers + 1).saturating_sub(devices.len());
        devices.extend(bench.devices(&target, via, vec![person("fanout", 0); missing]).await?);
        if devices.len() > watchers {
            devices = warm_up(bench, devices, &model).await?;
        }
        let paced = usize::try_from(bench.sizes.duration.as_millis() / PAUSE.as_millis())?.max(2);
        for (pieces, pause) in [(paced, PAUSE), (SATURATED_PIECES, Duration::ZERO)] {
            if bench.stop.is_cancelled() {
                break;
            }
            let answer = Answer::new(pieces, PIECE_BYTES, pause);
            let message = model.script().announce(&answer)?;
            let (row, left) = play(bench, devices, &answer, message, meter.as_mut()).await?;
            rows.push(row);
            devices = left;
        }
    }
    super::close(devices).await;
    Ok(rows)
}

/// An answer that is not counted: what the first one allocates is there afterwards.
async fn warm_up(bench: &Bench, devices: Vec<Device>, model: &Model) -> anyhow::Result<Vec<Device>> {
    let answer = Answer::new(WARM_UP_PIECES, PIECE_BYTES, WARM_UP_PAUSE);
    let message = model.script().announce(&answer)?;
    Ok(play(bench, devices, &answer, message, None).await?.1)
}

/// When the last of the watchers got each piece, in nanoseconds after the epoch.
struct Arrivals {
    epoch: Instant,
    last: Vec<AtomicU64>,
    frames: AtomicU64,
    pieces: AtomicU64,
}

async fn play(
    bench: &Bench,
    mut devices: Vec<Device>,
    answer: &Arc<Answer>,
    message: String,
    mut meter: Option<&mut Meter>,
) -> anyhow::Result<(Row, Vec<Device>)> {
    let mut asks = devices.pop().context("nobody is there to ask")?;
    let watchers = devices.len();
    let pause = answer.pause();
    let takes = pause * u32::try_from(answer.pieces())?;
    bench.tell.step(Step::Loads { pace: if pause.is_zero() { Pace::Saturated } else { Pace::Paced(pause) }, takes });
    let last = (0..answer.pieces()).map(|_| AtomicU64::new(0)).collect();
    let arrivals =
        Arc::new(Arrivals { epoch: Instant::now(), last, frames: AtomicU64::new(0), pieces: AtomicU64::new(0) });
    let mut watching = JoinSet::new();
    for device in devices {
        let arrivals = Arc::clone(&arrivals);
        watching.spawn(async move { timeout(takes + PATIENCE, watch(device, &arrivals)).await });
    }
    let before = meter.as_deref_mut().map(Meter::cpu).transpose()?;
    let began = Instant::now();
    timeout(takes + PATIENCE, asks.say(&message)).await.context("the answer takes too long")??;
    let mut recorded = Recorded::default();
    let mut left = Vec::new();
    for watched in watching.join_all().await {
        match watched.context("a watcher did not see the end").flatten() {
            Ok(device) => left.push(device),
            Err(err) => recorded.failed(&err),
        }
    }
    let elapsed = began.elapsed();
    let after = meter.map(Meter::cpu).transpose()?;
    left.push(asks);
    note(&mut recorded, answer, &arrivals);
    let variant = format!("{}, {watchers} watchers", if pause.is_zero() { "saturated" } else { "paced" });
    let mut row = Row { unit: Unit::Delivery, ..Row::of("fanout", variant, &recorded) };
    row.n = arrivals.pieces.load(Ordering::Acquire);
    costs(&mut row, elapsed, after.zip(before).map(|(after, before)| after.saturating_sub(before)));
    let frames = arrivals.frames.load(Ordering::Acquire);
    row.settings.insert("pieces".to_owned(), answer.pieces().to_string());
    if let Some(pieces) = per(number(row.n), number(frames)) {
        row.settings.insert("pieces_per_frame".to_owned(), format!("{pieces:.2}"));
    }
    Ok((row, left))
}

/// Adds, for each piece, the time from the model's socket to the last watcher.
fn note(recorded: &mut Recorded, answer: &Answer, arrivals: &Arrivals) {
    for (piece, last) in arrivals.last.iter().enumerate() {
        let arrived = arrivals.epoch + Duration::from_nanos(last.load(Ordering::Acquire));
        match answer.said_at(piece) {
            Some(said) if arrived > said => recorded.answered(arrived - said),
            _ => recorded.failed(&anyhow!("piece {piece} did not arrive")),
        }
    }
}

/// Reads one watch to the end of the answer. Pieces must come without a hole or an overlap.
async fn watch(mut device: Device, arrivals: &Arrivals) -> anyhow::Result<Device> {
    let bytes = u64::try_from(PIECE_BYTES)?;
    let mut cursor = 0;
    loop {
        let frame = device.watch.next().await?.context("the server ended the watch")?;
        let now = u64::try_from(arrivals.epoch.elapsed().as_nanos())?;
        let seen = Seen::read(&frame)?;
        if seen.r#type != "ai_response" {
            continue;
        }
        if let Some(state) = &seen.state {
            let whole = u64::try_from(arrivals.last.len())? * bytes;
            ensure!(state == "complete" && cursor == whole, "an answer ended {state} at byte {cursor} of {whole}");
            return Ok(device);
        }
        ensure!(seen.piece() && seen.offset == Some(cursor), "a piece is at {:?}, not at {cursor}", seen.offset);
        let end = cursor + u64::try_from(seen.content.as_deref().map_or(0, str::len))?;
        // A piece has arrived when its last byte has.
        let (from, to) = (cursor / bytes, end / bytes);
        let whole = usize::try_from(from)?..usize::try_from(to)?;
        let whole = arrivals.last.get(whole).context("an answer is longer than the model's")?;
        for last in whole {
            last.fetch_max(now, Ordering::AcqRel);
        }
        arrivals.pieces.fetch_add(to - from, Ordering::AcqRel);
        arrivals.frames.fetch_add(1, Ordering::AcqRel);
        cursor = end;
    }
}
