//! What a node may say of a turn: all of it while the turn's lease holds, and nothing after.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via, eventually, openai, over_both,
    provider::{Gate, Provider, Script},
};

over_both! {
    write_of_the_log_that_fails_is_repeated_and_the_turn_goes_on,
    turn_whose_lease_runs_out_falls_silent_and_is_ended_with_its_log,
}

const MOMENT: Duration = Duration::from_millis(150);

struct Rig {
    provider: Provider,
    server: Server,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn start(gate: &Gate, lease: Duration) -> Self {
        let provider = Provider::start(Script::answer(["one ", "two ", "three"]).gated(gate)).await;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Server::config(dir.path());
        openai(&mut config, &provider);
        config.sessions.turn_lease = lease;
        Self { provider, server: Server::run(config).await, dir }
    }

    fn failed_writes(&self) -> u64 {
        self.server.metrics.store_errors_total.with_label_values(&["extend_turn"]).get()
    }
}

/// Another program that has the store open.
fn database(dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.join("data/chatbox.db")).unwrap()
}

/// Bytes of the one turn's log.
fn written(dir: &Path) -> i64 {
    database(dir).query_row("SELECT coalesce(max(length), 0) FROM turns", [], |row| row.get(0)).unwrap()
}

/// What the failed write had taken was in no later one, whose place did then not fit: the turn fell silent for good.
async fn write_of_the_log_that_fails_is_repeated_and_the_turn_goes_on(via: Via) {
    let gate = Gate::new();
    let rig = Rig::start(&gate, Duration::from_secs(60)).await;
    let (mut client, _watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let other = database(rig.dir.path());
    other
        .execute_batch("CREATE TRIGGER refuse BEFORE INSERT ON turn_chunks BEGIN SELECT raise(ABORT, 'not now'); END")
        .unwrap();
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    eventually("a write fails", async || rig.failed_writes() > 0).await;
    gate.release(1);
    assert_eq!(exchange.until("ai_response").await["content"], "two ", "the lease holds");
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    eventually("the log has it", async || written(rig.dir.path()) == 8).await;
    gate.open();
    let (text, last) = exchange.reply_from("one two ".to_owned()).await;
    assert_eq!((text.as_str(), &last["state"]), ("one two three", &json!("complete")));
}

/// checklist 67
async fn turn_whose_lease_runs_out_falls_silent_and_is_ended_with_its_log(via: Via) {
    let gate = Gate::new();
    let rig = Rig::start(&gate, Duration::from_secs(3)).await;
    let (mut client, _watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let other = database(rig.dir.path());
    let mut exchange = client.say("hello").await;
    gate.release(1);
    exchange.until("ai_response").await;
    eventually("the log has it", async || written(rig.dir.path()) == 4).await;
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.release(1);
    assert_eq!(exchange.until("ai_response").await["content"], "two ", "the lease holds");
    rig.provider.hung_up(1).await;
    assert_eq!(rig.server.metrics.turn_leases_lapsed_total.get(), 1);
    assert!(exchange.silent(MOMENT).await, "nobody may end it yet, and nobody can");
    other.execute_batch("ROLLBACK").unwrap();
    let last = exchange.until("ai_response").await;
    assert_eq!((&last["state"], &last["metadata"]["done"]), (&json!("interrupted"), &json!("true")), "{last}");
    let kept = last["length"].as_u64().unwrap();
    assert!([4, 8].contains(&kept), "what the log holds, got {kept} bytes");
    assert_eq!(rig.provider.requests(), 1, "it had shown something, so it is not asked again");
    let (_desk, mut seen, _status) = Client::attached(&rig.server, via, "ann", json!({"after_seq": 0})).await;
    seen.until("user_message").await;
    let reply: Value = seen.until("ai_response").await;
    assert_eq!((&reply["length"], &reply["sha256"]), (&last["length"], &last["sha256"]), "everybody has the same");
}
