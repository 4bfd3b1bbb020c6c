//! What the devices of many users share: one server, which can be stopped in the middle and started again on the
//! same data, and the model that answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chatbox::{
    bus::{Bus, Local, Published, Subscription, Topic},
    chat::word::Word,
    config::Config,
};
use rusqlite::OpenFlags;
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};

use super::plan::{Answer, Rng};
use crate::harness::{Server, openai, provider::Provider};

/// How long a turn may take to end, and a device to hold what the store holds.
pub(super) const QUIET: Duration = Duration::from_secs(30);

pub(super) struct World {
    config: Config,
    /// per cent of the events that the bus loses
    lossy: usize,
    place: RwLock<Arc<Place>>,
    running: std::sync::Mutex<Option<Running>>,
    _provider: Provider,
    _dir: TempDir,
}

/// Where the server is at the moment, and who may come in.
pub(super) struct Place {
    pub(super) http: SocketAddr,
    pub(super) quic: SocketAddr,
    pub(super) client: web_transport_quinn::Client,
    target: crate::harness::server::Target,
}

/// A server on threads of its own. Without them it is as dead as a killed process, save for what the operating
/// system would do to the files.
struct Running {
    server: Server,
    runtime: Runtime,
}

/// How a server ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// it is told to stop at once
    Stopped,
    /// its tasks are dropped where they are
    Dead,
}

impl World {
    pub(super) async fn start(lossy: usize) -> Arc<Self> {
        let provider = Provider::start_by(Answer::script).await;
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut config = Server::config(dir.path());
        openai(&mut config, &provider);
        config.limits.connections_per_address = 10_000;
        config.sessions.compare_interval = Duration::from_millis(200);
        // The machine may be busy, and this is not about leases.
        config.sessions.turn_lease = Duration::from_secs(10);
        // So that no request waits for another, and a schedule needs no more than it has steps.
        config.limits.streams = 64;
        config.limits.queued_turns = 64;
        let (running, place) = run(config.clone(), lossy).await;
        let (place, running) = (RwLock::new(Arc::new(place)), std::sync::Mutex::new(Some(running)));
        Arc::new(Self { config, lossy, place, running, _provider: provider, _dir: dir })
    }

    pub(super) fn place(&self) -> Arc<Place> {
        Arc::clone(&self.place.read().unwrap())
    }

    /// Ends the server, and starts it again on what it has left.
    pub(super) async fn restart(&self, ending: Ending) {
        self.end(ending).await;
        let (running, place) = run(self.config.clone(), self.lossy).await;
        *self.running.lock().unwrap() = Some(running);
        *self.place.write().unwrap() = Arc::new(place);
    }

    /// Ends the server for good.
    pub(super) async fn end(&self, ending: Ending) {
        let Running { server, runtime } = self.running.lock().unwrap().take().expect("a server runs");
        if ending == Ending::Stopped {
            server.stop();
            timeout(QUIET, server.ended()).await.expect("an end in time").expect("a clean end");
            runtime.shutdown_background();
            return;
        }
        let dead = tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(QUIET);
            drop(server);
        });
        dead.await.expect("no panic");
    }

    /// Waits until no turn of a session waits or runs.
    pub(super) async fn quiet(&self, session: &str) -> bool {
        let session: uuid::Uuid = session.parse().expect("a session's id");
        let path = self.config.data_dir.join("chatbox.db");
        let quiet = async {
            let database = rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
            let mut look = tokio::time::interval(Duration::from_millis(10));
            loop {
                look.tick().await;
                let open = "SELECT count(*) FROM turns WHERE session_id = ?1 AND state IN ('queued', 'running')";
                let open: u32 = database.query_row(open, [session.as_bytes()], |row| row.get(0)).unwrap();
                if open == 0 {
                    return;
                }
            }
        };
        timeout(QUIET, quiet).await.is_ok()
    }

    /// The store, once the server has ended.
    pub(super) async fn store(&self) -> Arc<dyn chatbox::store::Store> {
        let metrics = chatbox::metrics::Metrics::new();
        chatbox::store::open(&self.config.store, &self.config.data_dir, metrics).await.expect("the store opens")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut().unwrap().take() {
            running.runtime.shutdown_background();
        }
    }
}

impl Place {
    pub(super) fn token(&self, user: &str) -> String {
        self.target.token(user)
    }
}

async fn run(config: Config, lossy: usize) -> (Running, Place) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bus = move |metrics| -> Arc<dyn Bus> {
        let local = Local::new(metrics);
        if lossy == 0 { Arc::new(local) } else { Arc::new(Lossy { local, percent: lossy, seen: AtomicUsize::new(0) }) }
    };
    let server = runtime.spawn(Server::run_with_bus(config, bus)).await.expect("the server starts");
    let address = |url: &url::Url| SocketAddr::from(([127, 0, 0, 1], url.port().expect("a port")));
    let target = server.target();
    let (http, quic) = (address(&target.url), address(&target.quic_url));
    (Running { server, runtime }, Place { http, quic, client: target.webtransport(), target })
}

/// The in-process bus, over a network that loses events.
#[derive(Debug)]
struct Lossy {
    local: Local,
    percent: usize,
    seen: AtomicUsize,
}

#[async_trait]
impl Bus for Lossy {
    async fn publish(&self, topic: &Topic, event: Arc<Published>) {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        if !Rng::new(number.try_into().unwrap()).chance(self.percent) {
            self.local.publish(topic, event).await;
        }
    }

    fn tell(&self, topic: &Topic, word: Arc<Word>) {
        self.local.tell(topic, word);
    }

    async fn subscribe(&self, topic: Topic) -> Subscription {
        self.local.subscribe(topic).await
    }

    fn topics(&self) -> Vec<Topic> {
        self.local.topics()
    }

    fn compare(&self, topic: &Topic, rev: u64) {
        self.local.compare(topic, rev);
    }
}
