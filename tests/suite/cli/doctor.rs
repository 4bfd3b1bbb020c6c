//! `check-config` and `doctor`: what they find, and what they say about it.

use std::{net::TcpListener, path::Path, process::Command};

use super::{Ended, Serving, chatbox, run};
use crate::harness::provider::{Provider, Script};

const LISTED: &str = r#"{"object":"list","data":[{"id":"vendor-1"}]}"#;
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn listed() -> Script {
    Script::status(200, "application/json", LISTED)
}

/// The command with two models of one provider, on free ports.
fn configured(home: &Path, arguments: &[&str], provider: &Provider) -> Command {
    let mut command = chatbox(home, arguments);
    for listener in ["HTTP", "QUIC", "OPS"] {
        command.env(format!("CHATBOX_LISTEN__{listener}"), "localhost:0");
    }
    for (name, model) in [("FAST", "vendor-1"), ("SLOW", "vendor-2")] {
        command.env(format!("CHATBOX_LLM__PROVIDERS__{name}__TYPE"), "openai");
        command.env(format!("CHATBOX_LLM__PROVIDERS__{name}__ENDPOINT"), provider.endpoint());
        command.env(format!("CHATBOX_LLM__PROVIDERS__{name}__API_KEY"), "sk-secret");
        command.env(format!("CHATBOX_LLM__PROVIDERS__{name}__MODEL"), model);
    }
    command
}

/// Runs it while the provider answers.
async fn ran(mut command: Command) -> Ended {
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

#[tokio::test]
async fn check_config_tries_the_endpoints_and_fails_when_one_does() {
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start_by(|request| match request.target.as_str() {
        "GET /v1/models" => listed(),
        _ => Script::status(404, "application/json", "{}"),
    })
    .await;
    let ended = ran(configured(home.path(), &["check-config"], &provider)).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stdout.starts_with("# model fast: usable\n# model slow: does not know the model `vendor-2`\n"));
    assert!(ended.stdout.contains("\n[llm.providers.slow]\n"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "error: 1 of 2 endpoints cannot be used; --offline leaves them out\n");

    let ended = ran(configured(home.path(), &["--json", "check-config"], &provider)).await;
    let printed: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let found = [("model fast", true, "usable"), ("model slow", false, "does not know the model `vendor-2`")];
    let found = found
        .map(|(endpoint, usable, said)| serde_json::json!({ "endpoint": endpoint, "usable": usable, "said": said }));
    assert_eq!((ended.code, &printed["endpoints"]), (Some(1), &serde_json::json!(found)));

    let asked = provider.requests();
    let ended = ran(configured(home.path(), &["check-config", "--offline"], &provider)).await;
    assert_eq!((ended.code, ended.stderr.as_str(), provider.requests()), (Some(0), "", asked));
    assert!(!ended.stdout.contains('#') && !ended.stdout.contains("sk-secret"), "{}", ended.stdout);
}

/// The lines without the one about UDP, which depends on the machine, and that one.
fn lines(ended: &Ended) -> (Vec<&str>, &str) {
    let (buffer, lines): (Vec<_>, Vec<_>) = ended.stdout.lines().partition(|line| line.contains("UDP receive buffer"));
    (lines, buffer.first().copied().unwrap_or_default())
}

#[tokio::test]
async fn doctor_finds_nothing_wrong_on_a_machine_that_never_ran_it() {
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(listed()).await;
    let mut command = configured(home.path(), &["doctor"], &provider);
    command.env("CHATBOX_LLM__PROVIDERS__SLOW__MODEL", "vendor-1");
    let ended = ran(command).await;
    let (lines, buffer) = lines(&ended);
    assert_eq!(
        lines,
        [
            "ok       configuration: no fault",
            "ok       data directory: `data` is made by the first start",
            "ok       store: `data/chatbox.db` is made by the first start",
            "ok       listen.http: localhost:0 is free",
            "ok       listen.quic: localhost:0 is free",
            "ok       listen.ops: localhost:0 is free",
            "ok       certificate: a self-signed one is made by the first start",
            "ok       model fast: usable",
            "ok       model slow: usable",
        ]
    );
    assert!(buffer == "ok       UDP receive buffer: 4194304 bytes" || buffer.ends_with("net.core.rmem_max=4194304"));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "it leaves nothing behind");
}

#[tokio::test]
async fn doctor_names_what_is_wrong_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("file"), "no database").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = taken.local_addr().unwrap().to_string();
    let refused = Script::status(401, "application/json", r#"{"error":{"code":"invalid_api_key"}}"#);
    let provider = Provider::start_by(move |request| match request.header("authorization") {
        Some("Bearer sk-other") => refused.clone(),
        _ => listed().header("date", DATE),
    })
    .await;
    let arguments = |first: &'static str| {
        let mut command = configured(home.path(), &[first, "doctor"], &provider);
        command
            .env("CHATBOX_LISTEN__HTTP", &http)
            .env("CHATBOX_DATA_DIR", "file/data")
            .env("CHATBOX_STORE__URL", "sqlite:file")
            .env("CHATBOX_TLS__CERT_FILE", "file")
            .env("CHATBOX_TLS__KEY_FILE", "file")
            .env("CHATBOX_LLM__PROVIDERS__SLOW__API_KEY", "sk-other");
        command
    };
    let ended = ran(arguments("--log=off")).await;
    let (lines, _) = lines(&ended);
    let (clock, lines) = lines.split_last().unwrap();
    assert_eq!(
        lines,
        [
            "ok       configuration: no fault".to_owned(),
            "WRONG    data directory: `file` cannot be written: Not a directory (os error 20); let the user that runs \
             chatbox write there, or set `data_dir`"
                .to_owned(),
            "WRONG    store: `file` does not open: the database cannot be used: file is not a database: Error \
             code 26: file is not a database; restore a backup, or set `store.url`"
                .to_owned(),
            format!(
                "WRONG    listen.http: listen on {http} (TCP): Address already in use (os error 98); end what has it, \
                 or set `listen.http`"
            ),
            "ok       listen.quic: localhost:0 is free".to_owned(),
            "ok       listen.ops: localhost:0 is free".to_owned(),
            "WRONG    certificate: `file` holds no certificate; correct `tls.cert_file` and `tls.key_file`".to_owned(),
            "ok       model fast: usable".to_owned(),
            "WRONG    model slow: refused with status 401 (invalid_api_key); check its endpoint, api_key and model"
                .to_owned(),
        ]
    );
    assert!(clock.starts_with("WRONG    clock: ") && clock.contains(" s ahead of that of an endpoint; set it by NTP"));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), "error: 6 of 11 things are wrong\n"));

    let ended = ran(arguments("--json")).await;
    let printed: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &printed["healthy"]), (Some(1), &serde_json::json!(false)));
    let slow = printed["findings"].as_array().unwrap().iter().find(|it| it["subject"] == "model slow").unwrap();
    assert_eq!(slow["status"], "wrong");
    assert_eq!(slow["advice"], "check its endpoint, api_key and model");
}

#[tokio::test]
async fn doctor_tells_a_faulty_configuration_line_by_line() {
    let home = tempfile::tempdir().unwrap();
    let provider = Provider::start(listed()).await;
    let mut command = configured(home.path(), &["--set", "limits.streams=0", "doctor"], &provider);
    let ended = ran({
        command.env("CHATBOX_LLM__PROVIDERS__SLOW__MODEL", "");
        command
    })
    .await;
    assert_eq!((ended.code, provider.requests()), (Some(1), 0), "{}", ended.stdout);
    let (lines, _) = lines(&ended);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.starts_with("WRONG    configuration: ")), "{lines:?}");
    assert!(ended.stdout.contains("limits.streams") && ended.stdout.contains("llm.providers.slow.model"));
}

#[tokio::test]
async fn doctor_says_who_has_the_store() {
    let home = tempfile::tempdir().unwrap();
    let (serving, _) = Serving::start(home.path());
    let ended = run(&mut chatbox(home.path(), &["doctor", "--offline", "--set", "listen.http=localhost:0"]));
    let held = format!(
        "warning  store: `data/chatbox.db` is open in process {}; end it before you start another",
        serving.0.id()
    );
    assert!(ended.stdout.lines().any(|line| line == held), "{held} is not in:\n{}", ended.stdout);
    assert!(ended.stdout.contains("certificate: self-signed, valid until 20"), "{}", ended.stdout);
    serving.signal("TERM");
    let mut serving = serving;
    assert_eq!(serving.0.wait().unwrap().code(), Some(0));
    let ended = run(&mut chatbox(home.path(), &["doctor", "--offline", "--set", "listen.http=localhost:0"]));
    assert!(ended.stdout.contains("store: `data/chatbox.db` opens, version "), "{}", ended.stdout);
    assert!(ended.stdout.contains("data directory: `data` can be written"), "{}", ended.stdout);
}
