//! Exports: everything that was said, as a file.

use chatbox::{
    chat::{EntryId, EntryKind, Metadata, Sender, SessionId, UserId},
    store::{NewEntry, Open, OpenSession},
};
use reqwest::{StatusCode, header};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::Api,
    openai,
    provider::{Provider, Script},
};

#[tokio::test]
async fn an_export_holds_every_text_as_it_was_typed() {
    let answer = "Run this:\n\n```sh\nls # not a heading\n```\n\nand\n\n~~~\nleft open";
    let provider = Provider::start(Script::answer([answer]).usage(3, 4)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ann = Api::new(&server, "ann");
    let (mut client, _watch, status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let question = "Wie geht's, 日本?\n\n# <b>\"bold\" & *more*";
    client.say(question).await.reply().await;
    let path = format!("/sessions/{}/export", status["session_id"].as_str().unwrap());

    let export = ann.get(&path).await;
    assert_eq!((export.status, export.header(header::CONTENT_TYPE)), (StatusCode::OK, "application/json"));
    let name = "attachment; filename*=UTF-8''Wie%20geht%27s%2C%20%E6%97%A5%E6%9C%AC_.json";
    assert_eq!(export.header(header::CONTENT_DISPOSITION), name);
    assert_eq!((&export.body["version"], &export.body["session"]["id"]), (&json!(1), &status["session_id"]));
    let entries = export.body["entries"].as_array().unwrap();
    assert_eq!((&entries[0]["content"], &entries[1]["content"]), (&json!(question), &json!(answer)));
    assert_eq!(*entries, replayed(&server, &status).await, "the frames that an attach replays");

    let export = ann.get(&format!("{path}?format=md")).await;
    assert_eq!(export.header(header::CONTENT_TYPE), "text/markdown; charset=utf-8");
    assert!(export.header(header::CONTENT_DISPOSITION).ends_with("_.md"));
    let text = &export.text;
    assert!(text.starts_with("# Wie geht's, 日本?\n"), "{text}");
    let asked = format!("UTC\n\n{question}\n\n## Assistant (scripted), ");
    assert!(text.contains(&asked), "{text}");
    assert!(text.ends_with(&format!("UTC\n\n{answer}\n~~~\n")), "an open block is closed behind the text: {text}");
}

async fn replayed(server: &Server, status: &Value) -> Vec<Value> {
    let fields = json!({"session_id": status["session_id"], "after_seq": 0});
    let (_client, mut watch, status) = Client::attached(server, Via::WebSocket, "ann", fields).await;
    let mut frames = Vec::new();
    while frames.last().is_none_or(|frame: &Value| frame["seq"] != status["last_seq"]) {
        frames.push(watch.next().await.expect("a frame"));
    }
    frames
}

/// Writes a long log with the server's own store while no server runs.
async fn long_log(config: &chatbox::config::Config, entries: u64) -> SessionId {
    let store = chatbox::store::open(&config.store, &config.data_dir, chatbox::metrics::Metrics::new()).await.unwrap();
    let user_id = UserId::parse("ann").unwrap();
    let ask = OpenSession { user_id: user_id.clone(), open: Open::New, id: SessionId::new(), active_max: 1 };
    let session_id = store.open_session(ask).await.unwrap().session.id;
    let entry = |number: u64| NewEntry {
        session_id,
        owner: user_id.clone(),
        id: EntryId::new(),
        client_id: None,
        user_id: user_id.clone(),
        sender: Sender::User,
        kind: EntryKind::Text,
        content: format!("message {number}"),
        files: Vec::new(),
        metadata: Metadata::new(),
        turn: None,
        session_name: None,
    };
    // Many at a time, so that they share commits; the store numbers them in the order of its queue.
    let mut next = 1;
    while next <= entries {
        let batch = next..(next + 100).min(entries + 1);
        next = batch.end;
        for appended in futures_util::future::join_all(batch.map(|number| store.append(entry(number)))).await {
            appended.unwrap();
        }
    }
    store.close().await;
    session_id
}

#[tokio::test]
async fn a_log_of_thousands_is_whole_in_every_answer() {
    const ENTRIES: u64 = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let config = Server::config(dir.path());
    std::fs::create_dir_all(dir.path().join("data")).unwrap();
    let session = long_log(&config, ENTRIES).await;
    let server = Server::run(config).await;
    let ann = Api::new(&server, "ann");
    let expected: Vec<u64> = (1..=ENTRIES).collect();
    for (path, array) in
        [(format!("/sessions/{session}"), "messages"), (format!("/sessions/{session}/export"), "entries")]
    {
        let whole = ann.get(&path).await;
        let seqs: Vec<u64> =
            whole.body[array].as_array().unwrap().iter().map(|it| it["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, expected, "{path}");
    }
    let markdown = ann.get(&format!("/sessions/{session}/export?format=md")).await;
    assert_eq!(markdown.text.matches("\n## User, ").count(), expected.len());
    let reads = server.metrics.store_duration_seconds.with_label_values(&["entries"]).get_sample_count();
    assert!(reads >= 3 * ENTRIES / 200, "got {reads} reads: it is read in pages");
}
