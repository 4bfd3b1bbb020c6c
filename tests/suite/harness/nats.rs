//! A NATS server of a test's own, which it can stop, kill and start again.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, timeout},
};

use super::{client::PATIENCE, ports};

/// A server that runs until it is dropped.
pub(crate) struct Nats {
    binary: PathBuf,
    dir: TempDir,
    /// where clients and their monitors connect; the same after a restart
    clients: SocketAddr,
    monitor: SocketAddr,
    /// holds the pipe whose end ends the server, also when this process is killed
    shell: Option<Child>,
}

impl Nats {
    /// Starts one that lets everybody in; `None`, with a line that says so, where there is no `nats-server`.
    pub(crate) async fn start() -> Option<Self> {
        Self::with("").await
    }

    /// Starts one with these lines of configuration; `$DIR` is [`Self::dir`].
    pub(crate) async fn with(lines: &str) -> Option<Self> {
        Self::prepared(lines, |_dir| {}).await
    }

    /// The same with files that are written before it starts.
    pub(crate) async fn prepared(lines: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        let binary = installed()?;
        let dir = tempfile::tempdir().expect("temporary directory");
        prepare(dir.path());
        let lines = lines.replace("$DIR", dir.path().to_str().expect("UTF-8"));
        std::fs::write(dir.path().join("nats.conf"), lines).expect("write the configuration");
        let mut server = Self { binary, dir, clients: ports::reserve(), monitor: ports::reserve(), shell: None };
        server.run().await;
        Some(server)
    }

    /// For `bus.url`.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.clients)
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        let Some(mut shell) = self.shell.take() else { return };
        drop(shell.stdin.take());
        shell.wait().expect("the shell ends");
    }

    /// Starts it again on the same ports.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.run().await;
    }

    /// Has it stand still: connections stay open, and nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Subscriptions of its clients, as its monitor tells them.
    pub(crate) async fn subscriptions(&self) -> u64 {
        self.monitored("/connz", "subscriptions").await
    }

    /// The sum of a number over everything in a page of the monitor.
    async fn monitored(&self, page: &str, name: &str) -> u64 {
        let mut socket = TcpStream::connect(self.monitor).await.expect("the monitor listens");
        let request = format!("GET {page} HTTP/1.0\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("ask the monitor");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("an answer of the monitor");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let connections = body["connections"].as_array().expect("connections");
        connections.iter().map(|connection| connection[name].as_u64().expect("a number")).sum()
    }

    async fn run(&mut self) {
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut command = Command::new("sh");
        command.args(["-c", r#""$0" "$@" & read -r _; kill -9 $!; wait $!"#]).arg(&self.binary);
        let [clients, monitor] = [self.clients, self.monitor].map(|address| address.port().to_string());
        command.args(["--addr", "127.0.0.1", "--port", &clients, "--http_port", &monitor]);
        command.args(["--config", "nats.conf", "--pid", "pid"]);
        command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.shell = Some(command.spawn().expect("start nats-server"));
        timeout(PATIENCE, self.ready()).await.expect("nats-server starts");
    }

    /// Waits until it greets a client, and its monitor listens.
    async fn ready(&self) {
        let mut look = interval(Duration::from_millis(10));
        loop {
            look.tick().await;
            let Ok(mut socket) = TcpStream::connect(self.clients).await else { continue };
            let greets = socket.read_u8().await.is_ok_and(|first| first == b'I');
            if greets && TcpStream::connect(self.monitor).await.is_ok() {
                return;
            }
        }
    }

    fn pid(&self) -> u32 {
        std::fs::read_to_string(self.dir.path().join("pid")).expect("a pid").trim().parse().expect("a number")
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().expect("kill");
        assert!(sent.success(), "{signal} did not reach {pid}");
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server that is installed for tests; `None`, with a line that says so, where there is none.
fn installed() -> Option<PathBuf> {
    let found = super::installed("nats-server", "CHATBOX_TEST_NATS");
    if found.is_none() {
        println!("skipped: no nats-server");
    }
    found
}
