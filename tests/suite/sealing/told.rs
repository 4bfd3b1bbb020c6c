use std::{fs::File, path::Path, process::Stdio};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{
    Client, Via,
    api::Api,
    eventually, id, over_both,
    process::Process,
    provider::{Provider, Script},
};

over_both! {
    changed_value_is_an_error_to_its_readers_and_a_line_in_the_log,
}

const KEYS: [(&str, &str); 1] =
    [("CHATBOX_STORE__ENCRYPTION_KEYS", r#"[{"id": 1, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]"#)];

fn sql(dir: &Path) -> Connection {
    Connection::open(dir.join("data/chatbox.db")).unwrap()
}

fn entry(dir: &Path, seq: u32) -> (String, Vec<u8>) {
    let read = "SELECT lower(hex(id)), content FROM entries WHERE seq = ?1";
    sql(dir).query_row(read, [seq], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// What was said, its place in another row, in part, with another bit, from a key that is not there, in plain.
fn changes(dir: &Path) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let ((_, stored), (_, other)) = (entry(dir, 1), entry(dir, 3));
    let foreign = [&[0, 0, 0, 9][..], &stored[4..]].concat();
    let mut flipped = stored.clone();
    flipped[20] ^= 1;
    let changed = "it is not what encryption key 1, which is configured, sealed there";
    vec![
        ("another row's", other, changed),
        ("cut", stored[..stored.len() - 1].to_vec(), changed),
        ("cut to nothing", stored[..3].to_vec(), "it is shorter than a sealed value"),
        ("flipped", flipped, changed),
        ("foreign", foreign, "its encryption key 9 is not configured"),
        ("plain", b"\0\0\0\0forged".to_vec(), "it is plain text, which this store holds no more"),
    ]
}

// checklist 83
async fn changed_value_is_an_error_to_its_readers_and_a_line_in_the_log(via: Via) {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer(["answered"])).await;
    let server = Process::start_with(dir.path(), &provider, &KEYS).await;
    let (mut client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    for said in ["secret words", "other words"] {
        client.say(said).await.reply().await;
    }
    let path = format!("/sessions/{}", status["session_id"].as_str().unwrap());
    assert_eq!(Api::new(&server, "ann").get(&path).await.body["messages"][0]["content"], "secret words");
    server.kill().await;
    let (row, stored) = entry(dir.path(), 1);
    for (case, changed, why) in changes(dir.path()) {
        sql(dir.path()).execute("UPDATE entries SET content = ?1 WHERE seq = 1", [&changed]).unwrap();
        let log = dir.path().join("log");
        let file = Stdio::from(File::create(&log).unwrap());
        let server = Process::start_logged(dir.path(), &provider, &KEYS, file).await;
        let reply = Api::new(&server, "ann").get(&path).await;
        assert_eq!((reply.status.as_u16(), &reply.body["code"]), (503, &json!("DATABASE_ERROR")), "{case}: {reply:?}");
        let mut client = Client::open(&server, via).await;
        let attach = json!({"type": "attach", "id": id(), "token": server.token("ann"), "after_seq": 0});
        let frame = refusal(client.exchange(attach).await).await;
        assert_eq!(frame["error"]["code"], "DATABASE_ERROR", "{case}: {frame}");
        let line = format!("stored entries.content of row {row} does not open: {why}");
        let logged = async || std::fs::read_to_string(&log).unwrap().contains(&line);
        eventually(&format!("{case}: `{line}` is in the log"), logged).await;
        server.kill().await;
        let said = format!("{frame}{}", reply.text);
        assert!(!said.contains("words") && !said.contains("forged") && !said.contains(&row), "{case}: {said}");
    }
    sql(dir.path()).execute("UPDATE entries SET content = ?1 WHERE seq = 1", [&stored]).unwrap();
    let server = Process::start_with(dir.path(), &provider, &KEYS).await;
    assert_eq!(Api::new(&server, "ann").get(&path).await.body["messages"][0]["content"], "secret words");
}

async fn refusal(mut lines: crate::harness::client::Lines) -> Value {
    loop {
        let frame = lines.next().await.expect("an error");
        if frame["type"] == "error" {
            return frame;
        }
        assert_eq!(frame["type"], "connection_status", "{frame}");
    }
}
