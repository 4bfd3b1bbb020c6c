//! How often an answer is written while it streams: in batches of 4 KiB or 250 ms, not piece by piece.
//! Run: `cargo bench --bench turnlog`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it shares the tests' harness, prints, and fails loudly"
)]

#[path = "../suite/harness/mod.rs"]
mod harness;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    llm::{Kind, ProviderConfig},
    metrics::Metrics,
};
use harness::{Client, Server, Via};
use serde_json::json;
use tokio::task::JoinSet;

/// Fifty tokens in a second: what a hosted model says.
const PACE: Duration = Duration::from_millis(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("{:36} {:>8} {:>9} {:>9} {:>12} {:>9}", "", "pieces", "bytes", "seconds", "log writes", "commits");
    runtime.block_on(async {
        row("one answer at 50 tokens/s", PACE, "count to 100", 1).await;
        row("one answer at full speed", Duration::ZERO, "count to 1000", 1).await;
        row("100 answers at a time, 50 tokens/s", PACE, "count to 100", 100).await;
    });
}

async fn row(name: &str, pace: Duration, question: &'static str, answers: usize) {
    let server = Server::with(|config| {
        let mut demo = ProviderConfig::new(Kind::Demo);
        demo.pace = Some(pace);
        config.llm.providers.clear();
        config.llm.providers.insert("demo".to_owned(), demo);
        config.sessions.turn_lease = Duration::from_secs(10);
        config.limits.connections_per_address = 1000;
    })
    .await;
    let mut clients = Vec::new();
    for number in 0..answers {
        clients.push(Client::attached(&server, Via::WebSocket, &format!("user-{number}"), json!({})).await);
    }
    let (writes, commits) = counts(&server.metrics);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for (mut client, watch, _status) in clients {
        tasks.spawn(async move {
            let text = client.say(question).await.reply().await.0;
            drop(watch);
            (text.split_inclusive([' ', '\n']).count(), text.len())
        });
    }
    let done = tasks.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let (pieces, bytes) = done.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (writes, commits) = {
        let now = counts(&server.metrics);
        (now.0 - writes, now.1 - commits)
    };
    println!("{name:36} {pieces:>8} {bytes:>9} {seconds:>9.1} {writes:>12} {commits:>9}");
}

/// Writes to turns' logs, and commits of anything.
fn counts(metrics: &Arc<Metrics>) -> (u64, u64) {
    let writes = metrics.store_duration_seconds.with_label_values(&["extend_turn"]).get_sample_count();
    (writes, metrics.store_commit_writes.get_sample_count())
}
