//! Real MongoDB servers on loopback: one alone, or replica sets whose members a test stops, kills and starts again.
//!
//! Each server hangs on a pipe of this process: when that closes, by a drop, at the exit or by a crash, a shell at its
//! other end kills the server and removes its data.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use mongodb::{
    Client,
    bson::{Document, doc},
    options::ClientOptions,
};
use tokio::{sync::OnceCell, time::timeout};

/// Longest wait for a server or a set to be ready.
const START: Duration = Duration::from_secs(60);
/// How often a server is asked whether it is.
const LOOK: Duration = Duration::from_millis(50);
/// What the files of one server take at most in the tests.
const FILES_MAX: u64 = 1 << 30;
/// Attempts to find a port that nobody else takes in between.
const PORTS: usize = 5;

/// A line on stdin keeps the data, its end does not. Signals to the test's process group are for the test.
const KEEPER: &str = r#"
    trap '' INT TERM HUP
    dir=$1; shift
    "$@" </dev/null >>"$dir/log" 2>&1 &
    pid=$!
    echo $pid
    read -r kept || removed=1
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ -n "$removed" ] && rm -rf "$dir"
"#;

/// One server, or a replica set.
pub(crate) struct Mongo {
    members: Vec<Member>,
    set: bool,
}

struct Member {
    binary: PathBuf,
    dir: PathBuf,
    port: u16,
    running: Option<Running>,
}

struct Running {
    keeper: Child,
    pid: u32,
}

/// The server that is installed for tests; `None`, with a line that says so, where there is none.
fn installed() -> Option<PathBuf> {
    let found = super::installed("mongod", "CHATBOX_TEST_MONGOD");
    if found.is_none() {
        println!("skipped: no mongod");
    }
    found
}

/// Where so many servers have their files: in memory, where there is room. They are killed, and no power is cut, so no
/// test learns anything of the disk but its pauses: three servers that wait for it together are late for every lease.
fn files(members: usize) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let asked = Command::new("df").args(["--output=avail", "-B1"]).arg(memory).stderr(Stdio::null()).output();
    let free = asked.ok().and_then(|free| String::from_utf8(free.stdout).ok()?.lines().nth(1)?.trim().parse().ok());
    let wanted = FILES_MAX * u64::try_from(members).expect("a few");
    if free.is_some_and(|free: u64| free > wanted) { memory.to_owned() } else { std::env::temp_dir() }
}

impl Mongo {
    /// One server without replication; `None` where none is installed.
    pub(crate) async fn standalone() -> Option<Self> {
        Some(Self { members: vec![Member::start(installed()?, &files(1), false).await], set: false })
    }

    /// A replica set with so many members and short elections; `None` where no server is installed.
    pub(crate) async fn replica_set(members: usize) -> Option<Self> {
        Self::replica_set_in(&files(members), members).await
    }

    /// The same with its files on disk, for who measures.
    pub(crate) async fn replica_set_on_disk(members: usize) -> Option<Self> {
        Self::replica_set_in(&std::env::temp_dir(), members).await
    }

    async fn replica_set_in(files: &Path, members: usize) -> Option<Self> {
        let binary = installed()?;
        let starts = (0..members).map(|_nth| Member::start(binary.clone(), files, true));
        let members = futures_util::future::join_all(starts).await;
        let each = (0_i32..).zip(&members);
        let hosts: Vec<_> = each.map(|(id, member)| doc! { "_id": id, "host": member.host() }).collect();
        let settings = doc! { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 };
        let config = doc! { "_id": "rs", "members": hosts, "settings": settings };
        let initiated = run(&members[0].client().await, doc! { "replSetInitiate": config }).await;
        initiated.expect("the set is made");
        let set = Self { members, set: true };
        set.primary().await;
        Some(set)
    }

    /// A replica set of one that all tests of this process use, each with a database of its own.
    pub(crate) async fn shared() -> Option<&'static Self> {
        static SHARED: OnceCell<Option<Mongo>> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::replica_set(1)).await.as_ref()
    }

    /// The URL of a database on it.
    pub(crate) fn url(&self, database: &str) -> String {
        let hosts: Vec<_> = self.members.iter().map(Member::host).collect();
        let set = if self.set { "?replicaSet=rs" } else { "" };
        format!("mongodb://{}/{database}{set}", hosts.join(","))
    }

    /// A client of the whole set.
    pub(crate) async fn client(&self) -> Client {
        Client::with_uri_str(self.url("admin")).await.expect("a client")
    }

    /// Waits for a primary that takes writes; tells which one it is.
    pub(crate) async fn primary(&self) -> usize {
        self.primary_but(None).await
    }

    /// The same, of the members beside this one.
    pub(crate) async fn other_primary(&self, than: usize) -> usize {
        self.primary_but(Some(than)).await
    }

    async fn primary_but(&self, than: Option<usize>) -> usize {
        let found = async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                look.tick().await;
                let asked = self.members.iter().enumerate();
                for (nth, member) in asked.filter(|(nth, member)| member.running.is_some() && Some(*nth) != than) {
                    let hello = timeout(LOOK * 40, async { run(&member.client().await, doc! { "hello": 1 }).await });
                    if let Ok(Ok(hello)) = hello.await
                        && hello.get_bool("isWritablePrimary").unwrap_or(false)
                    {
                        return nth;
                    }
                }
            }
        };
        timeout(START, found).await.expect("a primary in time")
    }

    /// Ends a member as a power cut does; its files stay.
    pub(crate) fn kill(&mut self, nth: usize) {
        self.members[nth].running.take().expect("runs").end(true);
    }

    /// Stops a member without its peers being told: its sockets stay open and silent.
    pub(crate) fn stop(&self, nth: usize) {
        self.members[nth].signal("-STOP");
    }

    /// Lets a stopped member go on.
    pub(crate) fn cont(&self, nth: usize) {
        self.members[nth].signal("-CONT");
    }

    /// The process of a member that runs.
    pub(crate) fn pid(&self, nth: usize) -> u32 {
        self.members[nth].running.as_ref().expect("runs").pid
    }

    /// Starts a killed member on its port with its files.
    pub(crate) async fn restart(&mut self, nth: usize) {
        let member = &mut self.members[nth];
        assert!(member.running.is_none(), "it runs");
        assert!(member.launch(self.set).await, "it starts: {}", member.log());
    }
}

async fn run(client: &Client, command: Document) -> mongodb::error::Result<Document> {
    client.database("admin").run_command(command).await
}

impl Member {
    async fn start(binary: PathBuf, files: &Path, set: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("chatbox-mongod-").tempdir_in(files).expect("a directory").keep();
        std::fs::create_dir(dir.join("db")).expect("a directory");
        let mut member = Self { binary, dir, port: 0, running: None };
        for _ in 0..PORTS {
            member.port = super::ports::reserve().port();
            if member.launch(set).await {
                return member;
            }
        }
        panic!("no server starts: {}", member.log());
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client of this one alone.
    async fn client(&self) -> Client {
        let url = format!("mongodb://{}/?directConnection=true&serverSelectionTimeoutMS=2000", self.host());
        Client::with_options(ClientOptions::parse(url).await.expect("a URL")).expect("a client")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Starts it, and waits until it listens; `false` when it ends instead.
    async fn launch(&mut self, set: bool) -> bool {
        let from = self.log().len();
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(&self.dir).arg(&self.binary);
        keeper.args(["--port", &self.port.to_string(), "--bind_ip", "127.0.0.1", "--nounixsocket", "--dbpath"]);
        keeper.arg(self.dir.join("db")).args(["--wiredTigerCacheSizeGB", "0.25"]);
        keeper.args(["--setParameter", "enableTestCommands=1"]);
        keeper.args(["--setParameter", "diagnosticDataCollectionEnabled=false"]);
        if set {
            keeper.args(["--replSet", "rs", "--oplogSize", "64"]);
        }
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start sh");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("output")).read_line(&mut line).expect("a process id");
        let running = Running { keeper, pid: line.trim().parse().expect("a process id") };
        let ready = async {
            let mut look = tokio::time::interval(LOOK);
            loop {
                look.tick().await;
                let log = self.log();
                let listens = log.get(from..).is_some_and(|log| log.contains("Waiting for connections"));
                if listens || !running.lives() {
                    return listens;
                }
            }
        };
        let ready = timeout(START, ready).await.expect("a server in time");
        if ready {
            self.running = Some(running);
        } else {
            running.end(true);
        }
        ready
    }

    fn signal(&self, signal: &str) {
        let pid = self.running.as_ref().expect("runs").pid.to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill");
        assert!(sent.success(), "{pid} takes no {signal}");
    }
}

impl Running {
    /// Whether the process runs; one that ended stays as a zombie of its keeper (proc(5), `/proc/PID/stat`).
    fn lives(&self) -> bool {
        let stat = std::fs::read_to_string(Path::new("/proc").join(self.pid.to_string()).join("stat"));
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
    }

    /// Kills it, and waits for that.
    fn end(mut self, keep_data: bool) {
        let mut stdin = self.keeper.stdin.take().expect("input");
        if keep_data {
            stdin.write_all(b"keep\n").expect("the keeper listens");
        }
        drop(stdin);
        self.keeper.wait().expect("the keeper ends");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        match self.running.take() {
            Some(running) => running.end(false),
            None => drop(std::fs::remove_dir_all(&self.dir)),
        }
    }
}

#[tokio::test]
async fn set_without_its_primary_finds_another_one_and_takes_the_old_one_back() {
    let _alone = super::ALONE.acquire().await.unwrap();
    let Some(mut set) = Mongo::replica_set(3).await else { return };
    let first = set.primary().await;
    set.kill(first);
    let second = set.primary().await;
    assert_ne!(first, second);
    let written = doc! { "insert": "probe", "documents": [{ "_id": 1 }], "writeConcern": { "w": "majority" } };
    assert_eq!(run(&set.client().await, written).await.unwrap().get_i32("n").unwrap(), 1);
    set.restart(first).await;
    set.stop(second);
    let hello = timeout(LOOK, async { run(&set.members[second].client().await, doc! { "hello": 1 }).await }).await;
    assert!(hello.is_err(), "a stopped one says nothing: {hello:?}");
    set.cont(second);
    let ids = [first, second].map(|nth| set.pid(nth));
    drop(set);
    assert!(ids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "{ids:?} are left");
    assert_eq!(Mongo::standalone().await.unwrap().primary().await, 0);
}
