//! What the devices of many users share: a server, which can be stopped in the middle and started again on the same
//! data, or several on one database; and the model that answers.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chatbox::{
    bus::{Bus, Local, Published, Subscription, Topic},
    chat::{SessionId, word::Word},
    config::{Config, secret::Secret},
    metrics::Metrics,
    store::{self, Store},
};
use rusqlite::OpenFlags;
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};

use super::plan::{Answer, Rng};
use crate::harness::{Server, mongo::Mongo, nats::Nats, openai, provider::Provider, server::Target};

/// How long a turn may take to end, and a device to hold what the store holds: longer than a lease, after which a turn
/// is found whose end was not written.
pub(super) const QUIET: Duration = Duration::from_secs(180);

pub(super) struct World {
    /// of each node
    configs: Vec<Config>,
    /// per cent of the events that the bus loses
    lossy: usize,
    places: RwLock<Vec<Arc<Place>>>,
    running: std::sync::Mutex<Vec<Running>>,
    /// what several nodes share
    shared: Option<Shared>,
    _provider: Provider,
    _dir: TempDir,
}

/// A database and a bus of servers of their own.
struct Shared {
    store: Arc<dyn Store>,
    _mongo: Mongo,
    _nats: Nats,
}

/// Where the server is at the moment, and who may come in.
pub(crate) struct Place {
    pub(crate) http: SocketAddr,
    pub(crate) quic: SocketAddr,
    pub(crate) client: web_transport_quinn::Client,
    target: Target,
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
    /// One node with a file, on a bus within the process.
    pub(super) async fn start(lossy: usize) -> Arc<Self> {
        Self::with(lossy, |config| (vec![config], None)).await
    }

    /// So many nodes on MongoDB and NATS; `None` where these are not installed.
    pub(super) async fn cluster(nodes: usize) -> Option<Arc<Self>> {
        let (mongo, nats) = (Mongo::replica_set(1).await?, Nats::start().await?);
        let store = store::Config { url: mongo.url("chatbox"), ..store::Config::default() };
        let bus = nats.url();
        let opened = store::open(&store, Path::new(""), Metrics::new()).await.expect("the store opens");
        let secret = Secret::random();
        let node = |number: usize, config: &Config| {
            let mut config = config.clone();
            config.data_dir = config.data_dir.join(number.to_string());
            (config.store, config.bus.url) = (store.clone(), bus.clone());
            (config.auth.jwt_secret, config.cluster_secret) = (Some(secret.clone()), Some(secret.clone()));
            config
        };
        let world = Self::with(0, |config| {
            let configs = (0..nodes).map(|number| node(number, &config)).collect();
            (configs, Some(Shared { store: opened, _mongo: mongo, _nats: nats }))
        });
        Some(world.await)
    }

    async fn with(lossy: usize, spread: impl FnOnce(Config) -> (Vec<Config>, Option<Shared>)) -> Arc<Self> {
        let provider = Provider::start_by(Answer::script).await;
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut config = Server::config(dir.path());
        openai(&mut config, &provider);
        config.limits.connections_per_address = 10_000;
        config.sessions.compare_interval = Duration::from_millis(200);
        // The machine may stand still for seconds, and this is not about leases.
        config.sessions.turn_lease = Duration::from_secs(60);
        // So that no request waits for another, and a schedule needs no more than it has steps.
        config.limits.streams = 64;
        config.limits.queued_turns = 64;
        let (configs, shared) = spread(config);
        let (places, running) = (RwLock::default(), std::sync::Mutex::default());
        let world = Arc::new(Self { configs, lossy, places, running, shared, _provider: provider, _dir: dir });
        world.run().await;
        world
    }

    async fn run(&self) {
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for config in self.configs.clone() {
            let (running, place) = run(config, self.lossy).await;
            all.push(running);
            places.push(Arc::new(place));
        }
        *self.running.lock().unwrap() = all;
        *self.places.write().unwrap() = places;
    }

    /// Any node.
    pub(super) fn place(&self, rng: &mut Rng) -> Arc<Place> {
        let places = self.places.read().unwrap();
        Arc::clone(&places[rng.below(places.len())])
    }

    /// Ends the server, and starts it again on what it has left.
    pub(super) async fn restart(&self, ending: Ending) {
        self.end(ending).await;
        self.run().await;
    }

    /// Whether a node was too slow to stop an answer, so that another one stopped it.
    pub(super) fn overtaken(&self) -> bool {
        let running = self.running.lock().unwrap();
        running.iter().any(|running| running.server.metrics.turn_stops_unanswered_total.get() > 0)
    }

    /// Ends every server for good.
    pub(super) async fn end(&self, ending: Ending) {
        let running = std::mem::take(&mut *self.running.lock().unwrap());
        assert!(!running.is_empty(), "a server runs");
        for Running { server, runtime } in running {
            if ending == Ending::Stopped {
                server.stop();
                timeout(QUIET, server.ended()).await.expect("an end in time").expect("a clean end");
                runtime.shutdown_background();
                continue;
            }
            let dead = tokio::task::spawn_blocking(move || {
                runtime.shutdown_timeout(QUIET);
                drop(server);
            });
            dead.await.expect("no panic");
        }
    }

    /// Waits until no turn of a session waits or runs.
    pub(crate) async fn quiet(&self, session: &str) -> bool {
        let session: uuid::Uuid = session.parse().expect("a session's id");
        let quiet = async {
            let mut look = tokio::time::interval(Duration::from_millis(10));
            loop {
                look.tick().await;
                if self.open_turns(session).await == 0 {
                    return;
                }
            }
        };
        timeout(QUIET, quiet).await.is_ok()
    }

    async fn open_turns(&self, session: uuid::Uuid) -> usize {
        if let Some(Shared { store, .. }) = &self.shared {
            return match store.open_turns(SessionId(session)).await {
                // It could not tell in time, and is asked again.
                Err(store::Error::Overloaded) => usize::MAX,
                open => open.expect("the store is read").len(),
            };
        }
        let path = self.configs[0].data_dir.join("chatbox.db");
        let database = rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let open = "SELECT count(*) FROM turns WHERE session_id = ?1 AND state IN ('queued', 'running')";
        database.query_row(open, [session.as_bytes()], |row| row.get(0)).unwrap()
    }

    /// The store, once the server has ended.
    pub(super) async fn store(&self) -> Arc<dyn Store> {
        if let Some(Shared { store, .. }) = &self.shared {
            return Arc::clone(store);
        }
        let config = &self.configs[0];
        store::open(&config.store, &config.data_dir, Metrics::new()).await.expect("the store opens")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for running in std::mem::take(self.running.get_mut().unwrap()) {
            running.runtime.shutdown_background();
        }
    }
}

impl Place {
    pub(crate) fn of(target: Target) -> Self {
        let address = |url: &url::Url| SocketAddr::from(([127, 0, 0, 1], url.port().expect("a port")));
        let (http, quic) = (address(&target.url), address(&target.quic_url));
        Self { http, quic, client: target.webtransport(), target }
    }

    pub(crate) fn token(&self, user: &str) -> String {
        self.target.token(user)
    }
}

async fn run(config: Config, lossy: usize) -> (Running, Place) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bus = move |metrics| -> Arc<dyn Bus> {
        Arc::new(Lossy { local: Local::new(metrics), percent: lossy, seen: AtomicUsize::new(0) })
    };
    let start =
        async move { if lossy == 0 { Server::run(config).await } else { Server::run_with_bus(config, bus).await } };
    let server = runtime.spawn(start).await.expect("the server starts");
    let place = Place::of(server.target());
    (Running { server, runtime }, place)
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
