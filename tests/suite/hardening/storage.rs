//! A store that does not take writes: told as such, nothing is shown as stored, and what comes later is not doubled.

use serde_json::json;

use crate::harness::{Client, Server, Via, id, over_both};

over_both! {
    message_that_cannot_be_stored_is_told_so_and_is_stored_once_when_it_can,
    first_visit_that_cannot_be_stored_leaves_no_half_session,
}

struct Rig {
    server: Server,
    dir: tempfile::TempDir,
}

impl Rig {
    /// Another program that keeps the store from writing, until it is dropped.
    fn lock(&self) -> rusqlite::Connection {
        let other = rusqlite::Connection::open(self.dir.path().join("data/chatbox.db")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Server::config(dir.path());
        Self { server: Server::run(config).await, dir }
    }
}

/// checklist 34, 69, 74
async fn message_that_cannot_be_stored_is_told_so_and_is_stored_once_when_it_can(via: Via) {
    let rig = Rig::start().await;
    let (mut client, mut watch, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let (_desk, mut seen, _status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "count to 3"});
    let lock = rig.lock();
    let mut exchange = client.exchange(message.clone()).await;
    let error = exchange.next().await.unwrap();
    assert_eq!((&error["error"]["code"], &error["re"]), (&json!("DATABASE_ERROR"), &message["id"]), "{error}");
    assert_eq!((&error["error"]["recoverable"], error["error"]["retry_after"].is_number()), (&json!(true), true));
    let told = error["error"]["message"].as_str().unwrap().to_lowercase();
    for cause in ["sql", "lock", "busy", "chatbox.db"] {
        assert!(!told.contains(cause), "{told}");
    }
    assert_eq!(rig.server.metrics.store_errors_total.with_label_values(&["append"]).get(), 1);
    drop(lock);
    let mut again = client.exchange(message).await;
    let accepted = again.until("accepted").await;
    assert_eq!((&accepted["seq"], accepted["duplicate"].is_null()), (&json!(1), true));
    assert_eq!(again.reply().await.1["seq"], 2);
    assert_eq!(seen.until("user_message").await["seq"], 1);
    assert_eq!(seen.reply().await.1["seq"], 2, "nothing came twice, nothing is missing");
    assert_eq!(watch.next().await.unwrap()["type"], "session_update");
}

/// checklist 75
async fn first_visit_that_cannot_be_stored_leaves_no_half_session(via: Via) {
    let rig = Rig::start().await;
    let lock = rig.lock();
    let mut client = Client::open(&rig.server, via).await;
    let attach = json!({"type": "attach", "id": id(), "token": rig.server.token("ann")});
    let error = client.exchange(attach).await.next().await.unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["recoverable"]), (&json!("DATABASE_ERROR"), &json!(false)));
    assert_eq!(client.closed().await, 8, "an internal error: resume");
    let count = "SELECT count(*) FROM sessions";
    assert_eq!(lock.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    drop(lock);
    let (mut client, _watch, status) = Client::attached(&rig.server, via, "ann", json!({})).await;
    assert_eq!(status["last_seq"], 0);
    assert_eq!(client.say("count to 2").await.reply().await.1["seq"], 2);
}
