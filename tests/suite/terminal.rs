mod screen; // in a terminal

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::{interval, timeout},
};
use url::Url;

use crate::harness::{
    Server,
    client::{PATIENCE, sha256},
    eventually, openai,
    process::Process,
    provider::{Gate, Provider, Script},
    server::Target,
};

struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

fn chat(server: &Target, arguments: &[&str]) -> Command {
    chat_at(&server.url, arguments)
}

fn chat_at(listener: &Url, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    let url = listener.join("/chatbox").unwrap();
    command.args(["chat", "--url", url.as_str()]).args(arguments).env_clear().kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Gives a command its input, and waits for its end.
async fn talk(mut command: Command, input: impl AsRef<[u8]>) -> Ended {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_ref()).await.unwrap();
    drop(stdin);
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A model that says again what it was told.
async fn repeating() -> Provider {
    let provider = Provider::start_by(|request| {
        let (_, asked) = *request.messages().last().unwrap();
        Script::answer(["re: ", asked])
    });
    provider.await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_is_a_message_and_its_answer_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let provider = repeating().await;
    let server = Process::start(dir.path(), &provider).await;
    for transport in ["webtransport", "websocket"] {
        let mut command = chat(&server, &["--transport", transport]);
        command.env("CHATBOX_TOKEN", server.token("ann"));
        let ended = talk(command, "one\n\nGröße 漢字\n").await;
        assert_eq!(ended.stdout, "re: one\nre: Größe 漢字\n", "{}", ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_no_text_is_told_and_those_behind_it_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let provider = repeating().await;
    let server = Process::start(dir.path(), &provider).await;
    let command = |arguments: &[&str]| {
        let mut command = chat(&server, arguments);
        command.env("CHATBOX_TOKEN", server.token("ann"));
        command
    };
    let ended = talk(command(&[]), b"one\ntw\xff\nthree\n").await;
    assert_eq!((ended.stdout.as_str(), ended.status.code()), ("re: one\nre: three\n", Some(1)), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("error: read a line of the input: "), "{}", ended.stderr);
    let ended = talk(command(&["--json"]), b"tw\xff\n").await;
    assert!(ended.stdout.contains(r#"{"error":"read a line of the input: "#), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_json_every_event_is_an_object_on_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer(["Hel", "lo"])).await;
    let server = Process::start(dir.path(), &provider).await;
    let ended = talk(chat(&server, &["--json", "--token", &server.token("ann")]), "hi\n").await;
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let events: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    let stored = of("stored")[0];
    assert_eq!((stored["seq"].as_u64(), stored["duplicate"].as_bool()), (Some(1), Some(false)), "{stored}");
    let text: String = of("piece").iter().map(|piece| piece["content"].as_str().unwrap()).collect();
    let reply = events.last().unwrap();
    assert_eq!((reply["event"].as_str(), reply["text"].as_str()), (Some("reply"), Some("Hello")), "{reply}");
    assert_eq!((reply["sha256"].as_str(), &reply["verified"]), (Some(&*sha256("Hello")), &Value::Bool(true)));
    assert_eq!((text.as_str(), reply["turn_id"].as_str()), ("Hello", stored["turn_id"].as_str()));
}

/// Has a gated answer come in far more frames than a client keeps of it, which is 1,024, and end.
async fn flood(server: &Server, gate: &Gate) {
    let sent = ["webtransport", "websocket"].map(|via| server.metrics.frames_sent_total.with_label_values(&[via]));
    let mut one = interval(Duration::from_millis(1));
    // Twice for each piece: to the watch and to the exchange. Some pieces leave together.
    let frames = async {
        while sent.iter().map(|sent| sent.get()).sum::<u64>() < 6000 {
            gate.release(1);
            one.tick().await;
        }
    };
    timeout(PATIENCE, frames).await.expect("many pieces in time");
    gate.open();
    let ended = server.metrics.turns_ended_total.with_label_values(&["scripted", "complete"]);
    eventually("the answer ends", async || ended.get() == 1).await;
}

/// More happens than waits to be read: that is told, and the reply all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_json_a_reply_is_told_to_whoever_reads_late() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["word "; 10_000]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let mut child = chat(&server, &["--json", "--token", &server.token("ann")]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
    flood(&server, &gate).await;
    let mut stdout = String::new();
    let read = child.stdout.take().unwrap().read_to_string(&mut stdout).await;
    read.unwrap();
    assert_eq!(timeout(PATIENCE, child.wait()).await.expect("an end in time").unwrap().code(), Some(0));
    let events: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert!(of("missed") > 0, "{} pieces", of("piece"));
    assert_eq!((of("reply"), &events.last().unwrap()["text"]), (1, &Value::from("word ".repeat(10_000))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_fails_ends_with_1_and_bad_usage_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::status(500, "application/json", "{}")).await;
    let server = Process::start(dir.path(), &provider).await;
    let ended = talk(chat(&server, &["--token", &server.token("ann")]), "hi\n").await;
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("the model is not available"), "got {}", ended.stderr);

    let ended = talk(chat(&server, &["--token", "none"]), "hi\n").await;
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains("the token is not valid"), "got {}", ended.stderr);

    let wrong = "00".repeat(32);
    let told = format!("it has the SHA-256 {}, and {wrong} was named", server.certificate_sha256);
    for discovery in [&server.url, &server.quic_url] {
        let arguments = ["--token", "t", "--transport", "webtransport", "--certificate-sha256", &wrong];
        let ended = talk(chat_at(discovery, &arguments), "hi\n").await;
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
        assert!(ended.stderr.contains("a certificate that is not trusted"), "got {}", ended.stderr);
        assert!(
            ended.stderr.trim_end().ends_with(&format!("a certificate that is not trusted: {told}")),
            "got {}",
            ended.stderr
        );
    }

    for usage in [&["--transport", "pigeon"][..], &["--session", "x"], &["--certificate-sha256", "12"]] {
        let ended = talk(chat(&server, usage), "").await;
        assert_eq!(ended.status.code(), Some(64), "{usage:?}: {}", ended.stderr);
    }
    let mut remote = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    remote.args(["chat", "--url", "https://chat.example/chatbox"]).env_clear().current_dir(dir.path());
    remote.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ended = talk(remote, "").await;
    assert_eq!(ended.status.code(), Some(64), "{}", ended.stderr);
    assert!(ended.stderr.contains("wants a token"), "got {}", ended.stderr);
}

/// What was said is printed, and that it broke off is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_ends_with_1_too() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer(["half ", "of it"]).cut_after(1)).await;
    let server = Process::start(dir.path(), &provider).await;
    let ended = talk(chat(&server, &["--token", &server.token("ann")]), "hi\n").await;
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), "half \n"), "{}", ended.stderr);
    assert!(ended.stderr.contains("the model is not available"), "got {}", ended.stderr);
}

/// The server stands still until its lease of the answer has run out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_its_server_loses_ends_with_1_too() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["begun ", "never said"]).gated(&gate)).await;
    let server = Process::start_with(dir.path(), &provider, &[("CHATBOX_SESSIONS__TURN_LEASE", "1s")]).await;
    let mut child = chat(&server, &["--token", &server.token("ann")]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    drop(stdin);
    gate.release(1);
    let mut shown = [0; 6];
    timeout(PATIENCE, child.stdout.as_mut().unwrap().read_exact(&mut shown)).await.expect("a piece in time").unwrap();
    server.signal("STOP");
    let stopped = Instant::now();
    eventually("the lease has run out", async || stopped.elapsed() > Duration::from_millis(1500)).await;
    server.signal("CONT");
    let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("an end in time").unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((&shown[..], &*ended.stdout, ended.status.code()), (&b"begun "[..], &b"\n"[..], Some(1)), "{told}");
    assert!(told.contains("the answer broke off"), "got {told}");
}

/// On loopback a token is made from the secret that the server keeps in its data folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_nobody_needs_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer(["welcome"])).await;
    let server = Process::start(dir.path(), &provider).await;
    let mut command = chat(&server, &["--user", "ann"]);
    command.current_dir(dir.path());
    let ended = talk(command, "hi\n").await;
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(0), "welcome\n"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_stops_the_answer_and_keeps_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["begun ", "never said"]).gated(&gate)).await;
    let server = Process::start(dir.path(), &provider).await;
    let mut child = chat(&server, &["--token", &server.token("ann")]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    gate.release(1);
    let mut shown = [0; 6];
    let mut stdout = child.stdout.take().unwrap();
    timeout(PATIENCE, stdout.read_exact(&mut shown)).await.expect("a piece in time").unwrap();
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    drop(stdin);
    let mut rest = String::new();
    timeout(PATIENCE, stdout.read_to_string(&mut rest)).await.expect("an end in time").unwrap();
    assert_eq!((&shown[..], rest.as_str()), (&b"begun "[..], "\n"));
    assert_eq!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

/// As tokio catches the signal, whoever waits for a line has to heed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_between_two_lines_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let provider = repeating().await;
    let server = Process::start(dir.path(), &provider).await;
    for (user, json) in [("ann", &[][..]), ("bob", &["--json"])] {
        let token = server.token(user);
        let arguments = [&["--token", &*token], json].concat();
        let mut child = chat(&server, &arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\n").await.unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let answered = async { while !lines.next_line().await.unwrap().unwrap().contains("re: one") {} };
        timeout(PATIENCE, answered).await.expect("an answer in time");
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
        let ended = timeout(PATIENCE, child.wait()).await.expect("an end in time").unwrap();
        assert_eq!(ended.code(), Some(0), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_json_events_come_while_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let provider = repeating().await;
    let server = Process::start(dir.path(), &provider).await;
    let arguments = ["--json", "--token", &server.token("ann")];
    let mut child = chat(&server, &arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = timeout(PATIENCE, lines.next_line()).await.expect("a line in time").unwrap().unwrap();
    assert!(first.contains(r#""event":"session""#), "{first}");
    let ended = talk(chat(&server, &arguments[1..]), "from elsewhere\n").await;
    assert_eq!(ended.stdout, "re: from elsewhere\n", "{}", ended.stderr);
    let told = async { while !lines.next_line().await.unwrap().unwrap().contains("from elsewhere") {} };
    timeout(PATIENCE, told).await.expect("what another device says is told in time");
    drop(child.stdin.take());
    assert_eq!(timeout(PATIENCE, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

/// A secret that was made here would be one that the server does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_server_keeps_no_secret_none_is_made() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let provider = Provider::start(Script::answer(["welcome"])).await;
    let server = Process::start(dir.path(), &provider).await;
    let mut command = chat(&server, &[]);
    command.current_dir(elsewhere.path());
    let ended = talk(command, "").await;
    assert_eq!(ended.status.code(), Some(64), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("error: there is no secret in `data` to sign a token with"), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is written");
}
