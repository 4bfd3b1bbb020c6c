use std::{path::Path, process::Command};

use serde_json::json;

use super::{Safe, key, safe_at};
use crate::harness::{
    Client, Via,
    api::Api,
    process::Process,
    provider::{Provider, Script},
};

const OLD: &str = r#"{"id": 1, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#;
const NEW: &str = r#"{"id": 2, "key": "EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE="}"#;
const VARIABLE: &str = "CHATBOX_STORE__ENCRYPTION_KEYS";

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The binary with these keys.
async fn ran(home: &Path, keys: String, arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    command.args(arguments).current_dir(home).env_clear().env(VARIABLE, keys);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// checklist 78
#[tokio::test]
async fn start_and_the_commands_before_it_name_the_key_that_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let safe: Safe = safe_at(&data);
    let store = safe.open(&[key(1, "A")]).await;
    store.close().await;
    let why = "the store holds values of encryption key 1, and `store.encryption_keys` has 2: add what is missing";
    let ports = ["http", "quic", "ops"].map(|listener| format!("listen.{listener}=localhost:0"));
    let [http, quic, ops] = ports.each_ref().map(String::as_str);
    let set = ["--set", http, "--set", quic, "--set", ops];
    let serve = ran(home.path(), format!("[{NEW}]"), &[&["serve"][..], &set].concat()).await;
    assert_eq!((serve.code, serve.stdout.as_str()), (Some(1), ""), "{}", serve.stderr);
    assert!(serve.stderr.ends_with(&format!("{why}\n")), "{}", serve.stderr);
    let doctor = ran(home.path(), format!("[{NEW}]"), &[&["doctor", "--offline"][..], &set].concat()).await;
    let line = format!(
        "WRONG    store: `data/chatbox.db` does not open: {why}; keep every key until `chatbox rotate-keys` has run"
    );
    assert!(doctor.stdout.lines().any(|found| found == line), "{}", doctor.stdout);
    let check = ran(home.path(), format!("[{NEW}]"), &["check-config"]).await;
    assert_eq!(check.code, Some(1));
    assert!(check.stdout.lines().any(|found| found == format!("# store: {why}")), "{}", check.stdout);
    let both = ran(home.path(), format!("[{NEW}, {OLD}]"), &["check-config"]).await;
    assert_eq!((both.code, both.stderr.as_str()), (Some(0), ""), "{}", both.stdout);
    let none = ran(home.path(), String::new(), &["rotate-keys"]).await;
    assert_eq!(none.code, Some(64));
    assert!(none.stderr.starts_with("error: no encryption key is configured: "), "{}", none.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_by_the_server_that_has_the_store_and_without_one() {
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer(["answered"])).await;
    let old = Process::start_with(home.path(), &provider, &[(VARIABLE, &format!("[{OLD}]"))]).await;
    let (mut client, _watch, _status) = Client::attached(&old, Via::WebSocket, "ann", json!({})).await;
    client.say("words").await.reply().await;
    old.kill().await;

    let both = format!("[{NEW}, {OLD}]");
    let ops = crate::harness::ports::reserve().to_string();
    let settings = [(VARIABLE, both.as_str()), ("CHATBOX_LISTEN__OPS", &ops)];
    let server = Process::start_with(home.path(), &provider, &settings).await;
    let set = format!("listen.ops={ops}");
    let url = format!("http://{ops}/rotate-keys");
    let http = crate::harness::client::http();
    let status = async |token: Option<String>| {
        let request = token.into_iter().fold(http.post(&url), |request, token| request.bearer_auth(token));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((status(None).await, status(Some(server.token("ann"))).await), (401, 403));

    let by_server = ran(home.path(), both.clone(), &["--json", "--set", &set, "rotate-keys"]).await;
    let progress: serde_json::Value = serde_json::from_str(&by_server.stdout).expect(&by_server.stderr);
    assert_eq!((by_server.code, &progress["state"], &progress["key"]), (Some(0), &json!("done"), &json!(2)));
    assert_eq!(progress["renewed"], progress["values"]["2"], "{progress}");
    let metrics = http.get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
    let renewed = format!("chatbox_store_resealed_total{{outcome=\"renewed\"}} {}", progress["renewed"]);
    assert!(metrics.contains(&renewed) && metrics.contains("chatbox_store_plain_text 0"), "{metrics}");
    assert_eq!(Api::new(&server, "ann").get("/sessions").await.body["sessions"][0]["message_count"], 2);
    server.kill().await;
    assert_eq!(safe_at(&home.path().join("data")).values().into_keys().collect::<Vec<_>>(), [2]);

    // Back again, without a server.
    let alone = ran(home.path(), format!("[{OLD}, {NEW}]"), &["rotate-keys"]).await;
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    let lines = ["everything is sealed with key 1; other keys are not needed any more", "values sealed anew: "];
    assert!(lines.iter().all(|line| alone.stdout.contains(line)), "{}", alone.stdout);
    assert_eq!(safe_at(&home.path().join("data")).values().into_keys().collect::<Vec<_>>(), [1]);
}

/// checklist 80
#[tokio::test]
async fn open_server_without_keys_complains_in_its_log_and_in_its_metrics() {
    let home = tempfile::tempdir().unwrap();
    let port = crate::harness::ports::reserve().port();
    let log = home.path().join("log");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_chatbox"));
    command.arg("serve").current_dir(home.path()).env_clear().kill_on_drop(true);
    for (key, value) in [
        ("LISTEN__HTTP", "localhost:0"),
        ("LISTEN__QUIC", "localhost:0"),
        ("LISTEN__OPS", &format!("0.0.0.0:{port}")),
        ("AUTH__JWT_SECRET", "9b1c7f60a4d2e8835d0f6ab7c2e49d11"),
        ("CLUSTER_SECRET", "c0ffee11c0de22beef3377aa5e99d00d"),
        ("STORE__ALLOW_PLAIN_TEXT", "true"),
    ] {
        command.env(format!("CHATBOX_{key}"), value);
    }
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .await
        .unwrap();
    let complaint = "no encryption key is configured: what people say is stored as plain text";
    // A thread of its own writes the log, a little later.
    crate::harness::eventually("the log complains", async || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().any(|line| line.contains("ERROR") && line.ends_with(complaint))
    })
    .await;
    let metrics = crate::harness::client::http().get(format!("http://127.0.0.1:{port}/metrics")).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("\nchatbox_store_plain_text 1\n"));
}
