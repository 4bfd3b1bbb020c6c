//! What the users share: three nodes as processes, one database, one bus, and the model that answers.

use std::{
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use chatbox::{
    auth::{Role, issuer::Issuer},
    chat::UserId,
    config::secret::Secret,
    store::Store,
};
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::{
    harness::{mongo::Mongo, nats::Nats, process::Process, provider::Provider, wire::Wire},
    schedules::{
        plan::{Answer, Rng},
        world::Place,
    },
};

/// Where the nodes are, for the users. What stands in front of them sees when a node's ports are closed, and nothing
/// else.
pub(super) struct Front {
    places: Vec<RwLock<Option<Arc<Place>>>>,
    secret: Secret,
    returns: Mutex<Vec<Instant>>,
}

impl Front {
    pub(super) const fn nodes(&self) -> usize {
        self.places.len()
    }

    /// Where a node is, if it takes connections.
    pub(super) fn place(&self, node: usize) -> Option<Arc<Place>> {
        self.places[node].read().unwrap().clone()
    }

    fn lead(&self, node: usize, place: Option<Place>) {
        *self.places[node].write().unwrap() = place.map(Arc::new);
    }

    /// Another node that runs, if there is one.
    pub(super) fn other(&self, node: usize, rng: &mut Rng) -> usize {
        let runs: Vec<_> = (0..self.nodes()).filter(|other| *other != node && self.place(*other).is_some()).collect();
        runs.get(rng.below(runs.len())).copied().unwrap_or(node)
    }

    pub(super) fn token(&self, user: &str) -> String {
        let user = UserId::parse(user).expect("user id");
        let issuer = Issuer::new(&chatbox::auth::Config::default(), &self.secret);
        issuer.issue(&user, Role::User, None, Duration::from_secs(3600)).expect("token")
    }

    /// Somebody has connected.
    pub(super) fn came_back(&self) {
        self.returns.lock().unwrap().push(Instant::now());
    }

    /// When somebody has connected since this was last asked.
    pub(super) fn returns(&self) -> Vec<Instant> {
        std::mem::take(&mut self.returns.lock().unwrap())
    }
}

pub(super) struct World {
    pub(super) front: Arc<Front>,
    pub(super) nodes: Vec<Node>,
    pub(super) mongo: Mongo,
    pub(super) nats: Nats,
    /// from each node to the bus
    pub(super) wires: Vec<Wire>,
    pub(super) provider: Provider,
    store: chatbox::store::Config,
}

pub(super) struct Node {
    dir: TempDir,
    settings: Vec<(&'static str, String)>,
    process: Option<Process>,
}

impl World {
    /// So many nodes on a database of so many members; `None` where a server is not installed. `change` adds settings
    /// to those of a node.
    pub(super) async fn start(
        nodes: usize,
        members: usize,
        change: impl Fn(usize) -> Vec<(&'static str, String)>,
    ) -> Option<Self> {
        let (mongo, nats) = (Mongo::replica_set(members).await?, Nats::start().await?);
        let provider = Provider::start_by(Answer::script).await;
        let [secret, cluster] = [Secret::random(), Secret::random()];
        let store = chatbox::store::Config { url: mongo.url("chatbox"), ..chatbox::store::Config::default() };
        let shared = [
            ("CHATBOX_STORE__URL", store.url.as_str()),
            ("CHATBOX_AUTH__JWT_SECRET", secret.expose()),
            ("CHATBOX_CLUSTER_SECRET", cluster.expose()),
            ("CHATBOX_LIMITS__CONNECTIONS_PER_ADDRESS", "100000"),
            ("CHATBOX_LIMITS__CONNECTIONS_PER_USER", "1000"),
            ("CHATBOX_LIMITS__MESSAGES_PER_MINUTE", "100000"),
            ("CHATBOX_LIMITS__QUEUED_TURNS", "64"),
            ("CHATBOX_LOG", "warn"),
        ];
        let bus = nats.url().strip_prefix("nats://").expect("a scheme").parse().expect("an address");
        let wires = join_all((0..nodes).map(|_| Wire::to(bus))).await;
        let node = |number: usize| {
            let mut settings = shared.map(|(key, value)| (key, value.to_owned())).to_vec();
            settings.push(("CHATBOX_BUS__URL", format!("nats://{}", wires[number].address)));
            settings.extend(change(number));
            Node { dir: tempfile::tempdir().expect("temporary directory"), settings, process: None }
        };
        let nodes: Vec<_> = (0..nodes).map(node).collect();
        let places = nodes.iter().map(|_| RwLock::default()).collect();
        let front = Front { places, secret, returns: Mutex::default() };
        let mut world = Self { front: Arc::new(front), nodes, mongo, nats, wires, provider, store };
        for node in 0..world.nodes.len() {
            world.start_node(node).await;
        }
        Some(world)
    }

    /// Starts a node that does not run.
    pub(super) async fn start_node(&mut self, node: usize) {
        let Node { dir, settings, process } = &mut self.nodes[node];
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let started = Process::start_with(dir.path(), &self.provider, &settings).await;
        self.front.lead(node, Some(Place::of(started.clone())));
        *process = Some(started);
    }

    /// Kills a node, as a crash does.
    pub(super) async fn kill_node(&mut self, node: usize) {
        self.front.lead(node, None);
        self.nodes[node].process.take().expect("it runs").kill().await;
    }

    /// Tells a node to end, and waits for that; whether it ended well.
    pub(super) async fn end_node(&mut self, node: usize) -> bool {
        self.front.lead(node, None);
        let mut process = self.nodes[node].process.take().expect("it runs");
        process.signal("TERM");
        process.ended().await
    }

    /// A node's process.
    pub(super) fn node(&self, node: usize) -> &Process {
        self.nodes[node].process.as_ref().expect("it runs")
    }

    /// Sends a node a signal.
    pub(super) fn signal_node(&self, node: usize, name: &str) {
        self.node(node).signal(name);
    }

    /// The store that the nodes have, for reading.
    pub(super) async fn store(&self) -> Arc<dyn Store> {
        let metrics = chatbox::metrics::Metrics::new();
        chatbox::store::open(&self.store, self.nodes[0].dir.path(), metrics).await.expect("the store opens")
    }
}
