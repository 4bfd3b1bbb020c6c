//! Attach and list, by the number of entries in a session: both must stay flat.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, ensure};
use tokio::time::timeout;

use super::{Bench, ROUND_TRIP, Row, Unit, Via, number, per, person};
use crate::bench::{
    device::{self, Device, Seen},
    fill,
    load::Recorded,
    target::{Target, home},
};

/// How often each is asked.
const ASKED: usize = 200;

/// A page opens a session with one screen of it.
const SHOWN: u32 = 50;

pub(super) async fn run(bench: &Bench, via: Via) -> anyhow::Result<Vec<Row>> {
    let own = bench.own()?;
    let dir = home()?;
    let store = fill::open(&dir.path().join("data")).await?;
    for &entries in &bench.sizes.entries {
        fill::session(&store, &person("flat", entries), entries).await?;
    }
    store.close().await;
    drop(store);
    let target = Target::start(own, dir, &Bench::instant_model()).await?;
    let mut rows = Vec::new();
    for &entries in &bench.sizes.entries {
        if bench.stop.is_cancelled() {
            break;
        }
        rows.push(attach(&target, via, entries).await?);
        rows.push(list(&target, entries).await?);
    }
    Ok(rows)
}

/// Watches a session anew, again and again, on one connection; a time is that to the last entry that is shown.
async fn attach(target: &Target, via: Via, entries: usize) -> anyhow::Result<Row> {
    let (dialer, transport) = target.dialer(via)?;
    let token = target.token(&person("flat", entries))?;
    let device = Device::open(&dialer, transport, &token).await?;
    let shown = entries.min(usize::try_from(SHOWN)?);
    let mut recorded = Recorded::default();
    let mut meter = target.meter()?.context("the server is a child")?;
    let before = meter.cpu()?;
    for _ in 0..ASKED {
        let began = Instant::now();
        let watched = timeout(ROUND_TRIP, async {
            let mut watch = device.link.exchange(device::attach(&token, Some(SHOWN))).await?;
            // The status, then the entries.
            for frame in 0..=shown {
                let seen = watch.next().await?.context("the server ended the watch")?;
                let name = Seen::read(&seen)?.r#type;
                let expected = if frame == 0 { "connection_status" } else { "user_message" };
                ensure!(name == expected, "frame {frame} of an attach is {name}");
            }
            anyhow::Ok(())
        });
        watched.await.context("an attach")??;
        recorded.answered(began.elapsed());
    }
    let cpu = meter.cpu()?.saturating_sub(before);
    super::close(vec![device]).await;
    let row = Row::of("flat", format!("attach, {entries} entries"), &recorded);
    let settings = BTreeMap::from([("shown".to_owned(), shown.to_string())]);
    let cpu_us = per(cpu.as_secs_f64() * 1e6, number(row.n));
    Ok(Row { unit: Unit::Request, cpu_us, settings, ..row })
}

/// Reads the list of a person's sessions over HTTP/1.1, again and again, on one connection.
async fn list(target: &Target, entries: usize) -> anyhow::Result<Row> {
    let token = target.token(&person("flat", entries))?;
    // The client wants a TLS library even for plain HTTP; that one is there already is no error.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().timeout(ROUND_TRIP).build().context("make an HTTP client")?;
    let url = target.site.http.join("sessions?limit=20").context("the address of the list")?;
    let mut recorded = Recorded::default();
    let mut meter = target.meter()?.context("the server is a child")?;
    let before = meter.cpu()?;
    for _ in 0..ASKED {
        let began = Instant::now();
        let answer = client.get(url.clone()).bearer_auth(&token).send().await.context("ask for the list")?;
        let status = answer.status();
        let body = answer.bytes().await.context("read the list")?;
        ensure!(status.is_success() && !body.is_empty(), "the list was answered with {status}");
        recorded.answered(began.elapsed());
    }
    let cpu = meter.cpu()?.saturating_sub(before);
    let row = Row::of("flat", format!("list, {entries} entries"), &recorded);
    let cpu_us = per(cpu.as_secs_f64() * 1e6, number(row.n));
    Ok(Row { unit: Unit::Request, transport: "http".to_owned(), cpu_us, ..row })
}
