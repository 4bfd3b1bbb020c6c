//! `chatbox bench` as the real binary: each scenario with tiny numbers. Counts and failures are asserted, speed is not.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use chatbox::bench::{
    MARK_BEGIN, MARK_END,
    process::family,
    report::{Report, Unit},
};
use tokio::time::timeout;

use crate::harness::{ALONE, Server, client::PATIENCE, eventually};

fn bench(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    // Something is counted within this time, although the machine stands still for a second.
    command.args(["bench", "--share-cores", "--connections", "4", "--duration", "1500ms"]).args(arguments);
    command.current_dir(dir).env_remove("CHATBOX_TEST_STRICT").stdin(Stdio::null());
    command
}

/// Runs scenarios against a server of the bench's own, and reads the JSON.
fn report(scenario: &str) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let output = bench(dir.path(), &[scenario, "--out", "report.json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let report = Report::read(&std::fs::read_to_string(dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!((report.failures(), report.stopped), (0, false), "{told}");
    report
}

/// The variants over one transport.
fn variants<'a>(report: &'a Report, transport: &str) -> Vec<&'a str> {
    report.rows.iter().filter(|row| row.transport == transport).map(|row| &*row.variant).collect()
}

/// Both transports have rows of these variants, and each row has counted something that cost CPU time.
fn both(report: &Report, expected: &[&str]) {
    for transport in ["webtransport", "websocket"] {
        assert_eq!(variants(report, transport), expected, "{transport}");
    }
    for row in &report.rows {
        assert!(row.n > 0 && row.cpu_us.is_some_and(|cpu| cpu > 0.0), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_counts_bytes_of_each_connection() {
    let _alone = ALONE.acquire().await;
    let report = report("idle");
    for transport in ["webtransport", "websocket"] {
        assert_eq!(variants(&report, transport), ["4 connections"]);
    }
    assert!(report.rows.iter().all(|row| row.n == 4 && row.bytes.is_some() && row.unit == Unit::Connection));
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_and_stored_have_latencies_at_both_paces() {
    let _alone = ALONE.acquire().await;
    for scenario in ["relay", "stored"] {
        let report = report(scenario);
        both(&report, &["paced", "saturated"]);
        for row in &report.rows {
            let latency = row.latency.as_ref().unwrap();
            assert!(0.0 < latency.min && latency.min <= latency.p50 && latency.p999 <= latency.max, "{latency:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fanout_delivers_every_piece_to_every_watcher() {
    let _alone = ALONE.acquire().await;
    let report = report("fanout");
    both(&report, &["paced, 4 watchers", "saturated, 4 watchers"]);
    let counts: Vec<_> = report.rows.iter().map(|row| row.n).collect();
    assert_eq!(counts, [4 * 30, 4 * 400, 4 * 30, 4 * 400]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ttft_durable_and_storm_count_what_they_asked() {
    let _alone = ALONE.acquire().await;
    let parts = ["of it until the model is asked", "of it from the model's first piece"];
    let pieces = ["pieces of answers of 50", "pieces of answers of 50, to 5 devices"];
    let ttft = report("ttft");
    both(&ttft, &["4 answers at a time", parts[0], parts[1], "4 asked at once", pieces[0], pieces[1]]);
    let long = ttft.rows.iter().filter(|row| row.variant == pieces[1]);
    assert!(long.clone().count() == 2 && long.clone().all(|row| row.n > 0 && row.n % 250 == 0), "{:?}", ttft.rows);
    both(&report("durable"), &["acknowledged"]);
    let storm = report("storm");
    assert_eq!(variants(&storm, "webtransport"), ["full", "resumed"]);
    assert_eq!(variants(&storm, "websocket"), ["full"]);
    assert!(storm.rows.iter().all(|row| row.n == 4 && row.total_ms.is_some()), "{:?}", storm.rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_tells_and_closes_all() {
    let _alone = ALONE.acquire().await;
    let report = report("drain");
    assert_eq!(report.rows.len(), 2);
    for row in &report.rows {
        assert_eq!(row.n, 4, "{row:?}");
        assert!(row.settings.contains_key("exit_ms") && row.total_ms.is_some(), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_and_flat_have_a_row_for_each_size() {
    let _alone = ALONE.acquire().await;
    let dir = tempfile::tempdir().unwrap();
    let output =
        bench(dir.path(), &["start", "flat", "--transport", "websocket", "--out", "r.json", "--html", "r.html"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = Report::read(&std::fs::read_to_string(dir.path().join("r.json")).unwrap()).unwrap();
    let starts: Vec<_> = report.rows.iter().filter(|row| row.unit == Unit::Start).collect();
    assert!(starts.len() == 2 && starts.iter().all(|row| row.n == 5 && row.bytes.is_some()), "{starts:?}");
    let flat = ["attach, 10 entries", "attach, 100 entries", "attach, 1000 entries"];
    assert_eq!(variants(&report, "websocket"), flat);
    assert_eq!(variants(&report, "http").len(), 3);
    let page = std::fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert!(page.contains("<h2>flat</h2>") && page.contains("<svg"), "{page}");
    let table = bench(dir.path(), &["--markdown", "r.json"]);
    assert_eq!(table.status.code(), Some(64), "sizes do not go with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_is_loaded_with_its_secret() {
    let _alone = ALONE.acquire().await;
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), server.secret.expose()).unwrap();
    let url = server.url.join("/chatbox").unwrap().to_string();
    let arguments = ["--url", &url, "--token-secret-file", "secret", "--out", "r.json", "relay", "ttft"];
    let mut loading = command(dir.path(), &arguments);
    let output = tokio::task::spawn_blocking(move || loading.output().unwrap()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("ttft left out: needs a server of its own"), "{told}");
    let report = Report::read(&std::fs::read_to_string(dir.path().join("r.json")).unwrap()).unwrap();
    assert_eq!(variants(&report, "webtransport"), ["paced", "saturated"]);
    assert!(report.rows.iter().all(|row| row.n > 0 && row.cpu_us.is_none()), "{:?}", report.rows);
    let again = format!(
        "chatbox bench relay ttft --url {url} --token-secret-file secret --share-cores --connections 4 --duration 1s500ms"
    );
    assert_eq!(report.command, again);
}

/// What a server refuses is told as it said it, and nothing that was not measured looks as if it had been.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_given_server_refuses_or_is_too_slow_for_is_told() {
    let _alone = ALONE.acquire().await;
    let server = Server::with(|config| {
        config.limits.requests_per_minute = 20;
        let model = config.llm.providers.get_mut("demo").unwrap();
        (model.pace, model.answer) = (Some(Duration::from_secs(1)), Some("late".to_owned()));
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), server.secret.expose()).unwrap();
    std::fs::write(dir.path().join("other"), "0123456789abcdef0123456789abcdef").unwrap();
    let url = server.url.join("/chatbox").unwrap().to_string();
    for (secret, scenario, reason) in [
        ("secret", "relay", "the server answered TOO_MANY_REQUESTS: "),
        ("secret", "stored", "no answer was complete within the measured time"),
        ("other", "stored", "the server answered INVALID_TOKEN: the token is not valid"),
    ] {
        let mut loading = Command::new(env!("CARGO_BIN_EXE_chatbox"));
        loading.args(["bench", scenario, "--share-cores", "--connections", "4", "--duration", "300ms"]);
        loading.args(["--url", &url, "--token-secret-file", secret, "--transport", "websocket"]);
        loading.current_dir(dir.path()).env_remove("CHATBOX_TEST_STRICT").stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || loading.output().unwrap()).await.unwrap();
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.code() == Some(1) && told.contains(reason), "{scenario}: {told}");
    }
}

/// Both nodes are this one, whose bus is within the process.
#[tokio::test(flavor = "multi_thread")]
async fn readers_can_be_on_another_node_than_writers() {
    let _alone = ALONE.acquire().await;
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), server.secret.expose()).unwrap();
    let url = server.url.join("/chatbox").unwrap().to_string();
    let pid = std::process::id().to_string();
    let given = ["--url", &url, "--beside", &url, "--pid", &pid, "--token-secret-file", "secret", "--out", "r.json"];
    let mut loading = command(dir.path(), &[&given[..], &["relay"]].concat());
    let output = tokio::task::spawn_blocking(move || loading.output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = Report::read(&std::fs::read_to_string(dir.path().join("r.json")).unwrap()).unwrap();
    assert!(report.rows.iter().all(|row| row.n > 0 && row.cpu_us.is_some()), "{:?}", report.rows);
    let stored = bench(dir.path(), &[&given[..], &["stored"]].concat());
    let told = String::from_utf8_lossy(&stored.stderr);
    assert!(stored.status.code() == Some(64) && told.contains("--beside is for `relay` alone"), "{told}");
}

#[test]
fn a_target_beyond_this_machine_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    let arguments = ["--url", "http://192.0.2.7/chatbox", "--token-secret-file", "secret", "relay"];
    let output = bench(dir.path(), &arguments);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    assert!(told.contains("is not on this machine") && told.contains("--allow-remote"), "{told}");
}

/// Before anything is measured: a quarter of an hour later nobody would be glad to hear of it.
#[test]
fn a_report_that_cannot_be_written_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for option in ["--out", "--html"] {
        let output = bench(dir.path(), &["start", option, "missing/report"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.starts_with("error: write `missing/report`"), "{told}");
    }
}

#[test]
fn bad_usage_is_told_apart_from_a_server_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    for arguments in [["nothing"].as_slice(), &["--rate", "0"], &["--rounds", "10"], &["--url", "http://localhost:1"]] {
        assert_eq!(bench(dir.path(), arguments).status.code(), Some(64), "{arguments:?}");
    }
    let nobody = ["--url", "http://127.0.0.1:1/chatbox", "--token-secret-file", "secret", "relay"];
    let output = bench(dir.path(), &nobody);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("http://127.0.0.1:1"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_with_what_there_is() {
    let _alone = ALONE.acquire().await;
    for signal in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let report = ended_by(signal, dir.path()).await;
        assert!(report.stopped, "{signal}");
        let starts = report.rows.iter().filter(|row| row.scenario == "start").count();
        assert_eq!(starts, 2, "{signal}: {:?}", report.rows);
    }
}

/// Nothing of the bench runs then, so its server has to notice by itself.
#[tokio::test(flavor = "multi_thread")]
async fn its_server_does_not_outlive_it() {
    let _alone = ALONE.acquire().await;
    let dir = tempfile::tempdir().unwrap();
    let bench = second_scenario(dir.path()).await;
    let pid = bench.id().unwrap();
    let server = async || family(pid).unwrap().get(1).copied();
    eventually("a server is started", async || server().await.is_some()).await;
    let server = server().await.unwrap();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    // One that nobody waits for is left as a zombie.
    let runs = || std::fs::read_to_string(format!("/proc/{server}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    eventually("the server ends", async || !runs()).await;
    drop(bench);
}

/// What a bench leaves that was ended in its second scenario.
async fn ended_by(signal: &str, dir: &Path) -> Report {
    let process = second_scenario(dir).await;
    let pid = process.id().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let output = timeout(PATIENCE, process.wait_with_output()).await.expect("an end in time").unwrap();
    assert_eq!(output.status.code(), Some(0), "{signal}: {output:?}");
    Report::read(&std::fs::read_to_string(dir.join("r.json")).unwrap()).unwrap()
}

/// A long bench, once its second scenario has begun.
async fn second_scenario(dir: &Path) -> tokio::process::Child {
    let arguments = ["bench", "start", "relay", "--share-cores", "--duration", "10m", "--out", "r.json"];
    let mut process = tokio::process::Command::new(env!("CARGO_BIN_EXE_chatbox"))
        .args(arguments)
        .args(["--connections", "4"])
        .current_dir(dir)
        .env_remove("CHATBOX_TEST_STRICT")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(process.stderr.take().unwrap()));
    let second = async { while !lines.next_line().await.unwrap().unwrap().starts_with("relay over webtransport") {} };
    timeout(PATIENCE, second).await.expect("the second scenario begins");
    process
}

#[test]
fn the_readme_shows_what_the_committed_report_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, rest) = readme.split_once(MARK_BEGIN).expect("the section begins");
    let (section, _) = rest.split_once(MARK_END).expect("the section ends");
    let arguments = ["bench", "--markdown", ".github/bench.json"];
    let output = Command::new(env!("CARGO_BIN_EXE_chatbox")).args(arguments).current_dir(root).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(section.trim(), String::from_utf8_lossy(&output.stdout).trim(), "chatbox {}", arguments.join(" "));
}
