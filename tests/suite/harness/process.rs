//! The real binary as a process of its own, which a test can kill.

use std::{ops::Deref, path::Path, process::Stdio};

use chatbox::config::secret::Secret;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use url::Url;

use super::{
    client::{PATIENCE, http},
    provider::Provider,
    server::Target,
};

pub(crate) struct Process {
    child: Child,
    target: Target,
    database: std::path::PathBuf,
}

impl Deref for Process {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

impl Process {
    /// Starts the binary in `dir` on free ports, answered by `provider`.
    pub(crate) async fn start(dir: &Path, provider: &Provider) -> Self {
        Self::start_with(dir, provider, &[]).await
    }

    /// The same with further settings, as the environment has them.
    pub(crate) async fn start_with(dir: &Path, provider: &Provider, settings: &[(&str, &str)]) -> Self {
        Self::start_logged(dir, provider, settings, Stdio::inherit()).await
    }

    /// The same with its log somewhere else.
    pub(crate) async fn start_logged(dir: &Path, provider: &Provider, settings: &[(&str, &str)], log: Stdio) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
        // Every CHATBOX_ variable is a setting to the server, and these are none.
        for variable in ["CHATBOX_TEST_STRICT", "CHATBOX_TEST_MONGOD", "CHATBOX_TEST_NATS"] {
            command.env_remove(variable);
        }
        let mut child = command
            .current_dir(dir)
            .env("CHATBOX_LISTEN__HTTP", "localhost:0")
            .env("CHATBOX_LISTEN__QUIC", "localhost:0")
            .env("CHATBOX_LISTEN__OPS", "localhost:0")
            .env("CHATBOX_LLM__PROVIDERS__SCRIPTED__TYPE", "openai")
            .env("CHATBOX_SESSIONS__MODEL_NAMES", "false")
            .env("CHATBOX_LLM__PROVIDERS__SCRIPTED__MODEL", "scripted")
            .env("CHATBOX_LLM__PROVIDERS__SCRIPTED__ENDPOINT", provider.endpoint())
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("start the binary");
        let mut output = BufReader::new(child.stdout.take().expect("output"));
        let mut line = String::new();
        timeout(PATIENCE, output.read_line(&mut line)).await.expect("a line in time").expect("output");
        let url = Url::parse(line.split_whitespace().find(|word| word.starts_with("http")).expect("a URL")).unwrap();
        let discovery = http().get(url.join(".well-known/chatbox").unwrap()).send().await.expect("discovery");
        let known: Value = serde_json::from_slice(&discovery.bytes().await.unwrap()).unwrap();
        let given = settings.iter().find(|(key, _)| *key == "CHATBOX_AUTH__JWT_SECRET").map(|(_, value)| *value);
        let generated = || std::fs::read_to_string(dir.join("data/jwt_secret")).expect("generated secret");
        let secret = given.map_or_else(generated, str::to_owned);
        Self {
            child,
            target: Target {
                quic_url: Url::parse(known["webtransport"].as_str().unwrap()).unwrap(),
                certificate_sha256: known["certificate_sha256"].as_str().unwrap().to_owned(),
                secret: Secret::new(secret.trim()),
                url,
            },
            database: dir.join("data/chatbox.db"),
        }
    }

    /// Resident memory in bytes (proc(5), `/proc/PID/statm`).
    pub(crate) fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id().expect("runs"))).expect("statm");
        let pages: u64 = statm.split_whitespace().nth(1).expect("resident pages").parse().expect("a number");
        pages * 4096
    }

    /// Waits until so many bytes of a turn's text are in its log.
    pub(crate) async fn written(&self, turn: &Value, bytes: i64) {
        let turn: uuid::Uuid = turn.as_str().unwrap().parse().unwrap();
        super::eventually("the log is written", async || self.log_length(turn) >= bytes).await;
    }

    fn log_length(&self, turn: uuid::Uuid) -> i64 {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let database = rusqlite::Connection::open_with_flags(&self.database, flags).expect("database");
        let length = "SELECT length FROM turns WHERE id = ?1";
        let length: Option<i64> = database.query_row(length, [turn.as_bytes()], |row| row.get(0)).expect("turn");
        length.unwrap_or_default()
    }

    /// The same while others still hold it; does not wait for its end.
    pub(crate) fn kill_now(&self) {
        self.signal("KILL");
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().expect("runs").to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(sent.success(), "{name} was not sent to {pid}");
    }

    /// Waits until it has ended by itself, and says whether well.
    pub(crate) async fn ended(&mut self) -> bool {
        timeout(PATIENCE, self.child.wait()).await.expect("an end in time").expect("a child is waited for").success()
    }

    /// Kills it as a crash does: no handler runs.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("kill");
    }
}
