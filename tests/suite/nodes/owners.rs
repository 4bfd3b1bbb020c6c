//! Who may speak for a turn when its node dies or is cut off: over MongoDB and NATS, with short leases.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    chat::TurnId,
    config::{Config, secret::Secret},
    metrics::Metrics,
    store::{self, Store},
};
use mongodb::bson::doc;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use url::Url;

use super::{OWNER_DEADLINE, last_of, text_of};
use crate::harness::{
    ALONE, Client, Server, Via, eventually,
    fault::Fault,
    id,
    mongo::Mongo,
    nats::Nats,
    openai, over_both,
    provider::{Gate, Provider, Script},
    stopwatch::Stopwatch,
    wire::{State, Wire},
};

over_both! {
    turn_of_a_dead_node_is_ended_elsewhere_with_what_was_written,
    turn_of_a_dead_node_that_had_shown_nothing_is_asked_again,
    node_that_dies_as_it_ends_an_abandoned_turn_leaves_its_message_to_the_next_one,
    node_without_its_store_is_silent_before_anybody_ends_its_turn,
    stop_and_limits_reach_other_nodes_over_the_network,
}

/// Two thirds of it are left at any time: the machine may stand still for as long.
const LEASE: Duration = Duration::from_secs(3);

/// After the lease another node looks within as much time again; and the machine may be busy.
const FOUND: Duration = LEASE;
const SLACK: Duration = Duration::from_secs(10);

const PIECES: [&str; 3] = ["eins ", "zwei ", "dreiß"];

/// Two nodes over servers of their own.
struct World {
    nodes: Vec<Node>,
    provider: Provider,
    /// between the first node and its store
    wire: Wire,
    store: Arc<dyn Store>,
    mongo: &'static Mongo,
    /// the database's name, and the one that the second node tells it
    database: String,
    /// of the second node
    config: Config,
    _nats: Nats,
    _dir: TempDir,
}

/// A server on threads of its own: without them it is as dead as a killed process.
struct Node {
    server: Server,
    runtime: Runtime,
}

impl World {
    async fn start(gate: &Gate) -> Option<Self> {
        let (mongo, nats) = (Mongo::shared().await?, Nats::start().await?);
        let provider = Provider::start(Script::answer(PIECES).gated(gate)).await;
        let dir = tempfile::tempdir().unwrap();
        let database = format!("owners-{}", id());
        let direct = Url::parse(&mongo.url(&database)).unwrap();
        let member: SocketAddr = format!("{}:{}", direct.host_str().unwrap(), direct.port().unwrap()).parse().unwrap();
        let wire = Wire::to(member).await;
        let secret = Secret::random();
        let (mut nodes, mut config) = (Vec::new(), Config::default());
        for (store, name) in [(wire.address, "first"), (member, &*database)] {
            config = Server::config(&dir.path().join(name));
            openai(&mut config, &provider);
            config.store.url = format!("mongodb://{store}{}?directConnection=true&appName={name}", direct.path());
            config.bus.url = nats.url();
            (config.auth.jwt_secret, config.cluster_secret) = (Some(secret.clone()), Some(secret.clone()));
            config.sessions.turn_lease = LEASE;
            nodes.push(Node::start(config.clone()).await);
        }
        let store = store::Config { url: direct.to_string(), ..store::Config::default() };
        let store = store::open(&store, Path::new(""), Metrics::new()).await.expect("the store opens");
        Some(Self { nodes, provider, wire, store, mongo, database, config, _nats: nats, _dir: dir })
    }

    fn server(&self, node: usize) -> &Server {
        &self.nodes[node].server
    }

    /// Has every thread of the first node gone, in the middle of whatever it does.
    fn kill_first(&mut self) {
        let Node { server, runtime } = self.nodes.remove(0);
        runtime.shutdown_background();
        drop(server);
    }
}

impl Node {
    async fn start(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.spawn(Server::run(config)).await.expect("it starts");
        Self { server, runtime }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for Node { server, runtime } in self.nodes.drain(..) {
            drop(server);
            runtime.shutdown_background();
        }
    }
}

/// A turn that runs on the first node and is watched on both, when so much of it is shown; and its id.
async fn watched(world: &World, via: Via, gate: &Gate, pieces: usize) -> (Vec<Client>, [super::Lines; 2], Value) {
    let (mut client, _watch, _status) = Client::attached(world.server(0), via, "ann", json!({})).await;
    let (desk, mut watch, _status) = Client::attached(world.server(1), via, "ann", json!({"after_seq": 0})).await;
    let mut exchange = client.say("hello").await;
    let turn = exchange.until("accepted").await["turn_id"].clone();
    gate.release(pieces);
    let shown = PIECES[..pieces].concat().len();
    for lines in [&mut exchange, &mut watch] {
        lines.until("loading").await;
        text_of(lines, &mut String::new(), shown).await;
    }
    (vec![client, desk], [exchange, watch], turn)
}

/// Waits until so much of the text is in the turn's log: what was only told of it is lost with its node.
async fn written(world: &World, turn: &Value, text: &str) {
    let turn = TurnId(turn.as_str().unwrap().parse().unwrap());
    let log = async || world.store.turn_text(turn, 0).await.expect("the store is read").text;
    eventually("the log is written", async || log().await.len() >= text.len()).await;
}

/// checklist 67, 68
async fn turn_of_a_dead_node_is_ended_elsewhere_with_what_was_written(via: Via) {
    let _alone = ALONE.acquire().await.unwrap();
    let gate = Gate::new();
    let Some(mut world) = World::start(&gate).await else { return };
    let (_clients, [_exchange, mut watch], turn) = watched(&world, via, &gate, 2).await;
    let shown = PIECES[..2].concat();
    written(&world, &turn, &shown).await;
    let died = Stopwatch::start();
    world.kill_first();
    let (text, last) = watch.reply_from(shown.clone()).await;
    let took = died.elapsed();
    assert_eq!((text, &last["state"]), (shown, &json!("interrupted")));
    println!("a dead node's turn was ended after {took:?}, with a lease of {LEASE:?}");
    assert!(took < LEASE + FOUND + SLACK, "took {took:?}");
    assert_eq!(world.provider.requests(), 1, "it had shown something");
    // Its session goes on elsewhere, and the model is told what was said.
    gate.open();
    let (mut desk, _watch, _status) = Client::attached(world.server(0), via, "ann", json!({})).await;
    assert_eq!(desk.say("and now?").await.reply().await.0, PIECES.concat());
    let told = world.provider.request(1).await;
    assert_eq!(told.messages(), [("user", "hello"), ("assistant", &*PIECES[..2].concat()), ("user", "and now?")]);
}

/// checklist 68
async fn turn_of_a_dead_node_that_had_shown_nothing_is_asked_again(via: Via) {
    let _alone = ALONE.acquire().await.unwrap();
    let gate = Gate::new();
    let Some(mut world) = World::start(&gate).await else { return };
    let (_clients, [_exchange, mut watch], turn) = watched(&world, via, &gate, 0).await;
    world.provider.request(0).await;
    world.kill_first();
    let last = last_of(&mut watch).await;
    assert_eq!((&last["turn_id"], &last["state"], &last["length"]), (&turn, &json!("interrupted"), &json!(0)));
    gate.open();
    let again = watch.until("loading").await;
    assert_ne!(again["turn_id"], turn);
    let (text, last) = watch.reply().await;
    assert_eq!((text, &last["reply_to"], &last["state"]), (PIECES.concat(), &json!(1), &json!("complete")));
    assert_eq!(world.provider.requests(), 2);
}

/// checklist 68
async fn node_that_dies_as_it_ends_an_abandoned_turn_leaves_its_message_to_the_next_one(via: Via) {
    let _alone = ALONE.acquire().await.unwrap();
    let gate = Gate::new();
    let Some(mut world) = World::start(&gate).await else { return };
    let (_clients, [_exchange, mut watch], turn) = watched(&world, via, &gate, 0).await;
    world.provider.request(0).await;
    // The second node gets one commit through, the end of the turn.
    let sessions = format!("{}.sessions", world.database);
    let later = doc! { "failCommands": ["update"], "namespace": sessions, "closeConnection": true };
    let fault = Fault::set(&world.mongo.client().await, &world.database, later, doc! { "skip": 1 }).await;
    world.kill_first();
    let last = last_of(&mut watch).await;
    assert_eq!((&last["turn_id"], &last["state"], &last["length"]), (&turn, &json!("interrupted"), &json!(0)));
    world.kill_first();
    // What is still on its way from there does not pass either: the next one goes by another name.
    world.config.store.url.push_str("-next");
    world.nodes.push(Node::start(world.config.clone()).await);
    let (_desk, mut watch, _status) = Client::attached(world.server(0), via, "ann", json!({"after_seq": 2})).await;
    let again = watch.until("loading").await;
    assert_ne!(again["turn_id"], turn);
    gate.open();
    let (text, last) = watch.reply().await;
    let want = (PIECES.concat(), &again["turn_id"], &json!(1), &json!("complete"));
    assert_eq!((text, &last["turn_id"], &last["reply_to"], &last["state"]), want);
    assert_eq!(world.provider.requests(), 2);
    fault.end().await;
}

/// checklist 67. The bus still carries what it says, so that nothing but its lease keeps it silent.
async fn node_without_its_store_is_silent_before_anybody_ends_its_turn(via: Via) {
    let _alone = ALONE.acquire().await.unwrap();
    let gate = Gate::new();
    let Some(world) = World::start(&gate).await else { return };
    let (mut clients, [mut exchange, mut watch], turn) = watched(&world, via, &gate, 1).await;
    written(&world, &turn, PIECES[0]).await;
    world.wire.set(State::Cut);
    gate.release(1);
    assert_eq!(watch.until("ai_response").await["content"], PIECES[1], "its lease holds");
    let ended = async {
        let last = last_of(&mut watch).await;
        (last, Instant::now())
    };
    let (silent, (last, ended)) = tokio::join!(world.provider.hung_up(1), ended);
    assert_eq!(last["state"], "interrupted");
    assert!(silent < ended, "its turn was ended {:?} before it was silent", silent - ended);
    println!("the turn was ended {:?} after its node had fallen silent", ended - silent);
    assert_eq!(world.server(0).metrics.turn_leases_lapsed_total.get(), 1);
    let told = last_of(&mut exchange).await;
    assert_eq!((&told["length"], &told["sha256"]), (&last["length"], &last["sha256"]), "everybody has the same");
    world.wire.set(State::Whole);
    gate.open();
    let again = clients[1].say("and now?").await.reply().await;
    assert_eq!(again.0, PIECES.concat());
}

/// checklist 67
async fn stop_and_limits_reach_other_nodes_over_the_network(via: Via) {
    let _alone = ALONE.acquire().await.unwrap();
    let gate = Gate::new();
    let Some(world) = World::start(&gate).await else { return };
    super::hear_each_other(world.nodes.iter().map(|node| &node.server)).await;
    let (mut clients, [mut exchange, mut watch], turn) = watched(&world, via, &gate, 2).await;
    // So that what is kept does not depend on which node ends it.
    written(&world, &turn, &PIECES[..2].concat()).await;
    let asked = Instant::now();
    let stop = json!({"type": "stop", "id": id(), "turn_id": turn});
    clients[1].exchange(stop).await.until("accepted").await;
    let took = asked.elapsed();
    let (text, last) = watch.reply_from(PIECES[..2].concat()).await;
    assert_eq!((text, &last["state"]), (PIECES[..2].concat(), &json!("stopped")));
    assert_eq!(last_of(&mut exchange).await["sha256"], last["sha256"]);
    let hung_up = world.provider.hung_up(1).await;
    println!("stopped elsewhere after {took:?}, its provider's request cut after {:?}", hung_up.duration_since(asked));
    let by_its_owner = world.server(1).metrics.turn_stops_unanswered_total.get() == 0;
    assert!(by_its_owner || took >= OWNER_DEADLINE, "its owner had {took:?}");
}
