//! The bus over NATS between two nodes: how long an event takes, and what it costs.
//!
//! Starts the `nats-server` that `CHATBOX_TEST_NATS` names, or that of `target/tests-servers`, on a free port of
//! loopback. Both nodes are in this process; what NATS itself takes is told beside it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a tool, not the server"
)]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    bus::{Bus, Config, Delivery, Published, Subscription, Topic, nats::Nats},
    chat::{Event, NodeId, SessionId, TurnId, word::Word},
    metrics::Metrics,
};
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{interval, timeout},
};

const SESSIONS: usize = 200;
/// Pieces of each session in a second, as models give them.
const RATE: usize = 10;
const SECONDS: usize = 10;
const BURST: usize = 60;
const TOPICS: usize = 10_000;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let binary = std::env::var_os("CHATBOX_TEST_NATS").map(PathBuf::from);
    let binary = binary.unwrap_or_else(|| here.join("target/tests-servers/nats-server"));
    if !binary.is_file() {
        println!("skipped: no nats-server");
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(binary);
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server(command.spawn().unwrap());
    let mut look = interval(Duration::from_millis(10));
    loop {
        look.tick().await;
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        if socket.read_u8().await.is_ok() {
            break;
        }
    }
    let config = Config { url: format!("nats://127.0.0.1:{port}"), ..Config::default() };
    let (near, far) = (node(&config).await, node(&config).await);
    reach(&near, &far).await;
    println!("| measure | value |\n| --- | --- |");
    paced(&near, &far, server.0.id()).await;
    burst(&near, &far, server.0.id()).await;
    topics(&near, &far, server.0.id()).await;
}

async fn node(config: &Config) -> Arc<Nats> {
    let node = Nats::open(config, Metrics::new()).await.unwrap();
    let mut look = interval(Duration::from_millis(10));
    while !node.connected() {
        look.tick().await;
    }
    Arc::new(node)
}

/// Waits until one hears the other, and everything that it subscribed to before is known.
async fn reach(near: &Nats, far: &Nats) {
    let topic = Topic::Node(NodeId::new());
    let mut heard = far.subscribe(topic.clone()).await;
    let word = Arc::new(Word::Stop { turn_id: TurnId::new() });
    let mut again = interval(Duration::from_millis(10));
    loop {
        tokio::select! {
            _ = again.tick() => near.tell(&topic, Arc::clone(&word)),
            told = heard.next() => if told == Delivery::Word(Arc::clone(&word)) { return },
        }
    }
}

async fn watched(far: &Nats) -> (Vec<Topic>, Vec<Subscription>) {
    let topics: Vec<_> = (0..SESSIONS).map(|_| Topic::Session(SessionId::new())).collect();
    let subscriptions = join_all(topics.iter().map(|topic| far.subscribe(topic.clone()))).await;
    (topics, subscriptions)
}

/// Thirty bytes of text: a few tokens.
fn piece(turn_id: TurnId, offset: u64) -> Arc<Published> {
    let content = "thirty bytes of generated text".into();
    Published::new(Event::Piece { turn_id, model_id: "demo".into(), offset, content })
}

/// The pace of a node with [`SESSIONS`] answers at a time.
async fn paced(near: &Arc<Nats>, far: &Nats, server: u32) {
    let (topics, mut subscriptions) = watched(far).await;
    reach(near, far).await;
    let began = Instant::now();
    let (own, theirs) = (cpu(None), cpu(Some(server)));
    let publisher = Arc::clone(near);
    let published = async move {
        let turn = TurnId::new();
        let pause = Duration::from_secs(1) / u32::try_from(SESSIONS * RATE).unwrap();
        let mut tick = interval(pause);
        for topic in topics.iter().cycle().take(SESSIONS * RATE * SECONDS) {
            tick.tick().await;
            let sent = u64::try_from(began.elapsed().as_nanos()).unwrap();
            publisher.publish(topic, piece(turn, sent)).await;
        }
    };
    let received = join_all(subscriptions.iter_mut().map(|subscription| async {
        let mut latencies = Vec::new();
        while latencies.len() < RATE * SECONDS {
            if let Delivery::Event(event) = subscription.next().await
                && let Event::Piece { offset, .. } = **event
            {
                latencies.push(u64::try_from(began.elapsed().as_nanos()).unwrap() - offset);
            }
        }
        latencies
    }));
    let ((), latencies) = tokio::join!(published, received);
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    latencies.into_iter().flatten().for_each(|nanos| histogram.record(nanos).unwrap());
    let deliveries = histogram.len() as f64;
    println!("| events in a second | {} |", deliveries / began.elapsed().as_secs_f64());
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        println!("| latency {name}, us | {:.0} |", histogram.value_at_quantile(quantile) as f64 / 1000.0);
    }
    println!("| CPU of both nodes for a delivery, us | {:.1} |", (cpu(None) - own) * 1e6 / deliveries);
    println!("| CPU of NATS for a delivery, us | {:.1} |", (cpu(Some(server)) - theirs) * 1e6 / deliveries);
}

/// As many as fit the queues of their subscribers at once, again and again.
async fn burst(near: &Nats, far: &Nats, server: u32) {
    let (topics, mut subscriptions) = watched(far).await;
    reach(near, far).await;
    let turn = TurnId::new();
    let (own, theirs, began) = (cpu(None), cpu(Some(server)), Instant::now());
    let mut deliveries = 0;
    for _ in 0..50 {
        // What a queue of publishing takes, in slices of the sessions.
        for (topics, subscriptions) in topics.chunks(50).zip(subscriptions.chunks_mut(50)) {
            for (offset, topic) in (0..).zip(topics.iter().cycle().take(50 * BURST)) {
                near.publish(topic, piece(turn, offset)).await;
            }
            for subscription in subscriptions {
                for _ in 0..BURST {
                    timeout(Duration::from_secs(10), subscription.next()).await.unwrap();
                    deliveries += 1;
                }
            }
        }
    }
    let deliveries = f64::from(deliveries);
    println!("| events of bursts in a second | {:.0} |", deliveries / began.elapsed().as_secs_f64());
    println!("| CPU of both nodes for one of a burst, us | {:.1} |", (cpu(None) - own) * 1e6 / deliveries);
    println!("| CPU of NATS for one of a burst, us | {:.1} |", (cpu(Some(server)) - theirs) * 1e6 / deliveries);
}

/// What it takes to listen.
async fn topics(near: &Nats, far: &Nats, server: u32) {
    let (own, theirs, cpu_before, began) = (resident(None), resident(Some(server)), cpu(None), Instant::now());
    let ids = (0..TOPICS).map(|_| Topic::Session(SessionId::new()));
    let subscriptions = join_all(ids.map(|topic| far.subscribe(topic))).await;
    let returned = began.elapsed();
    reach(near, far).await;
    println!("| time until {TOPICS} calls of subscribe return, ms | {:.1} |", returned.as_secs_f64() * 1000.0);
    println!("| time until all are known to NATS, ms | {:.1} |", began.elapsed().as_secs_f64() * 1000.0);
    println!("| CPU of a node for a topic, us | {:.1} |", (cpu(None) - cpu_before) * 1e6 / TOPICS as f64);
    println!("| bytes of a node for a topic | {} |", (resident(None).saturating_sub(own)) / TOPICS);
    println!("| bytes of NATS for a topic | {} |", (resident(Some(server)).saturating_sub(theirs)) / TOPICS);
    drop(subscriptions);
}

fn stat(process: Option<u32>) -> Vec<u64> {
    let process = process.map_or_else(|| "self".to_owned(), |id| id.to_string());
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().map(|field| field.parse().unwrap_or_default()).collect()
}

/// Seconds of CPU that a process has used (proc(5)): hundredths, for user and system.
fn cpu(process: Option<u32>) -> f64 {
    let fields = stat(process);
    (fields[11] + fields[12]) as f64 / 100.0
}

/// Its resident bytes.
fn resident(process: Option<u32>) -> usize {
    usize::try_from(stat(process)[21] * 4096).unwrap()
}
