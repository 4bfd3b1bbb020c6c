//! A server that has done much weighs what it weighed before. `cargo bench --bench endurance` does more of the same.

use std::{fmt, time::Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::{
    Client, Via,
    client::PATIENCE,
    id,
    process::Process,
    provider::{Provider, Script},
};

/// Connections that come and go at a time.
const AT_ONCE: usize = 8;

/// Exchanges that are open at a time.
const OPEN: usize = 8;

/// Resident memory of the server in bytes: when it had done a part of the work, and when it had done it all.
pub(crate) struct Weight {
    what: String,
    pub(crate) before: u64,
    pub(crate) after: u64,
    seconds: f64,
}

impl Weight {
    pub(crate) const fn growth(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }
}

impl fmt::Display for Weight {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, before, after, seconds } = self;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (before, after, growth) = (megabytes(*before), megabytes(*after), megabytes(self.growth()));
        write!(f, "{what:44} {before:7.1} MB -> {after:7.1} MB, {growth:5.1} MB more, in {seconds:.0} s")
    }
}

/// A server of its own, with the demo model and limits that the work stays below.
async fn start(dir: &tempfile::TempDir) -> Process {
    let provider = Provider::start(Script::silent()).await;
    let settings = [
        ("CHATBOX_LLM__DEFAULT", "demo"),
        ("CHATBOX_LLM__PROVIDERS__DEMO__TYPE", "demo"),
        ("CHATBOX_LLM__PROVIDERS__DEMO__PACE", "0s"),
        ("CHATBOX_LIMITS__CONNECTIONS_PER_USER", "1000"),
        ("CHATBOX_LIMITS__CONNECTIONS_PER_ADDRESS", "10000"),
        ("CHATBOX_LIMITS__MESSAGES_PER_MINUTE", "1000000"),
        ("CHATBOX_LIMITS__STREAMS", "16"),
        ("CHATBOX_LOG", "warn"),
    ];
    Process::start_with(dir.path(), &provider, &settings).await
}

/// One user comes and goes so many times, half of them over each transport.
pub(crate) async fn reconnects(count: usize) -> Weight {
    let dir = tempfile::tempdir().unwrap();
    let server = std::sync::Arc::new(start(&dir).await);
    come_and_go(&server, count / 4).await;
    let (before, began) = (server.resident(), Instant::now());
    come_and_go(&server, count).await;
    let seconds = began.elapsed().as_secs_f64();
    Weight { what: format!("{count} reconnects of one user"), before, after: server.resident(), seconds }
}

async fn come_and_go(server: &std::sync::Arc<Process>, count: usize) {
    let mut comers = JoinSet::new();
    for number in 0..AT_ONCE {
        let server = std::sync::Arc::clone(server);
        comers.spawn(async move {
            let via = if number.is_multiple_of(2) { Via::WebTransport } else { Via::WebSocket };
            for _ in 0..count / AT_ONCE {
                let (client, watch, status) = Client::attached(&server, via, "ann", json!({"after_seq": 0})).await;
                assert_eq!(status["recovered"], true);
                drop(watch);
                client.vanish();
            }
        });
    }
    comers.join_all().await;
}

/// One connection over each transport, and half of so many pings on each; then so many messages on one.
pub(crate) async fn exchanges(pings: usize, messages: usize) -> [Weight; 2] {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let mut clients = Vec::new();
    for via in [Via::WebTransport, Via::WebSocket] {
        clients.push(Client::attached(&server, via, "ann", json!({})).await);
    }
    ping(&mut clients, pings / 4).await;
    let (before, began) = (server.resident(), Instant::now());
    ping(&mut clients, pings).await;
    let seconds = began.elapsed().as_secs_f64();
    let pinged =
        Weight { what: format!("{pings} exchanges on two connections"), before, after: server.resident(), seconds };

    say(&mut clients[0].0, messages / 4).await;
    let (before, began) = (server.resident(), Instant::now());
    say(&mut clients[0].0, messages).await;
    let seconds = began.elapsed().as_secs_f64();
    let said =
        Weight { what: format!("{messages} messages, answered, on one"), before, after: server.resident(), seconds };
    [pinged, said]
}

type Attached = (Client, crate::harness::client::Lines, serde_json::Value);

async fn ping(clients: &mut [Attached], count: usize) {
    let rounds = count / (OPEN * clients.len());
    let pinging = clients.iter_mut().map(|(client, ..)| async move {
        for _ in 0..rounds {
            let mut open = Vec::new();
            for _ in 0..OPEN {
                open.push(client.exchange(json!({"type": "ping", "id": id()})).await);
            }
            for exchange in &mut open {
                assert_eq!(exchange.next().await.expect("pong")["type"], "pong");
            }
        }
    });
    futures_util::future::join_all(pinging).await;
}

async fn say(client: &mut Client, count: usize) {
    for _ in 0..count {
        let reply = tokio::time::timeout(PATIENCE, async { client.say("count to 2").await.reply().await });
        assert_eq!(reply.await.expect("a reply in time").0, "1. line\n2. line\n");
    }
}

/// What the allocator keeps for later, and connections that linger until their peer can be sure of their end.
#[cfg(test)]
const GROWTH_MAX: u64 = 8 * 1024 * 1024;

// checklist 46
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_over_reconnects() {
    let weight = reconnects(1200).await;
    println!("{weight}");
    assert!(weight.growth() < GROWTH_MAX, "{weight}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_over_exchanges() {
    for weight in exchanges(12_000, 400).await {
        println!("{weight}");
        assert!(weight.growth() < GROWTH_MAX, "{weight}");
    }
}
