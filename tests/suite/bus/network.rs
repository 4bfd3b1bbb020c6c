//! What a network does to a bus: it is away, stands still, floods, and carries what is none of ours.

use std::{sync::Arc, time::Duration};

use chatbox::{
    bus::{Config, Delivery, Published, QUEUE_EVENTS, Subscription, Topic},
    chat::{Event, SessionId, SessionUpdate, TurnId, word::Word},
};
use futures_util::StreamExt;
use tokio::time::{interval, timeout};
use uuid::Uuid;

use super::{Node, next, pair};
use crate::harness::{
    ALONE, Server,
    client::{PATIENCE, http},
    eventually,
    nats::Nats,
    stopwatch::Stopwatch,
};

fn session() -> Topic {
    Topic::Session(SessionId::new())
}

fn piece(offset: u64, content: &str) -> Event {
    Event::Piece { turn_id: TurnId(Uuid::nil()), model_id: "demo".into(), offset, content: content.into() }
}

async fn publish(node: &Node, topic: &Topic, event: Event) {
    node.bus.publish(topic, Published::new(event)).await;
}

/// Waits for the event, past what lags until then.
async fn arrives(watch: &mut Subscription, event: &Event) {
    let event = Delivery::Event(Published::new(event.clone()));
    while next(watch).await != event {
        tokio::task::yield_now().await;
    }
}

/// Has the event told again and again until it arrives.
async fn eventually_told(watch: &mut Subscription, event: &Event, mut tell: impl AsyncFnMut()) {
    let arrived = async {
        tokio::select! {
            () = arrives(watch, event) => {}
            () = async { loop { tell().await } } => {}
        }
    };
    timeout(PATIENCE, arrived).await.expect("the event arrives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_a_server_succeeds_and_heals() {
    let Some(mut server) = Nats::start().await else { return };
    server.kill();
    let config = Config { url: server.url(), ..Config::default() };
    let (here, there) = (Node::of(&config).await, Node::of(&config).await);
    let topic = session();
    let mut near = here.bus.subscribe(topic.clone()).await;
    let mut far = there.bus.subscribe(topic.clone()).await;
    assert!(!here.bus.connected());
    // Within the node nothing is missing.
    publish(&here, &topic, piece(0, "near")).await;
    assert_eq!(next(&mut near).await, Delivery::Event(Published::new(piece(0, "near"))));
    assert_eq!(here.dropped("disconnected"), 1);
    server.restart().await;
    assert_eq!(next(&mut near).await, Delivery::Lagged);
    assert_eq!(next(&mut far).await, Delivery::Lagged);
    here.reaches(&there).await;
    publish(&here, &topic, piece(1, "far")).await;
    assert_eq!(next(&mut far).await, Delivery::Event(Published::new(piece(1, "far"))));
    assert_eq!(there.metrics.bus_connected.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_outage_swallowed_is_told_as_a_loss() {
    let Some(mut server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let topics: Vec<_> = (0..100).map(|_| session()).collect();
    let mut watches = Vec::new();
    for topic in &topics {
        watches.push(there.bus.subscribe(topic.clone()).await);
    }
    here.reaches(&there).await;
    server.kill();
    here.becomes(false).await;
    there.becomes(false).await;
    for topic in &topics {
        publish(&here, topic, piece(0, "lost")).await;
    }
    assert!(here.dropped("disconnected") >= 100, "{}", here.dropped("disconnected"));
    // What is subscribed to in the meantime is heard of afterwards, like the others.
    let late = session();
    let mut later = there.bus.subscribe(late.clone()).await;
    server.restart().await;
    for watch in watches.iter_mut().chain([&mut later]) {
        assert_eq!(next(watch).await, Delivery::Lagged);
    }
    here.becomes(true).await;
    here.reaches(&there).await;
    for (topic, watch) in topics.iter().zip(&mut watches).chain([(&late, &mut later)]) {
        publish(&here, topic, piece(1, "found")).await;
        assert_eq!(next(watch).await, Delivery::Event(Published::new(piece(1, "found"))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_holds_nobody_up() {
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let topic = session();
    let mut near = here.bus.subscribe(topic.clone()).await;
    let mut far = there.bus.subscribe(topic.clone()).await;
    here.reaches(&there).await;
    server.freeze();
    let mut longest = Duration::ZERO;
    let mut offset = 0;
    // Far more than the queue and the sockets hold.
    let content = "x".repeat(4000);
    // On a slow machine the connection ends before so many are dropped.
    while here.dropped("full") + here.dropped("disconnected") < 1000 {
        let before = Stopwatch::start();
        publish(&here, &topic, piece(offset, &content)).await;
        drop(here.bus.subscribe(session()).await);
        longest = longest.max(before.elapsed());
        assert_eq!(next(&mut near).await, Delivery::Event(Published::new(piece(offset, &content))));
        offset += 1;
    }
    println!("publishing and subscribing took {longest:?} at most");
    assert!(longest < Duration::from_secs(1), "publishing and subscribing took {longest:?}");
    // The third question without an answer ends the connection.
    here.becomes(false).await;
    there.becomes(false).await;
    server.thaw();
    here.becomes(true).await;
    assert_eq!(next(&mut near).await, Delivery::Lagged);
    here.reaches(&there).await;
    // What the server had taken before may still come, more than a listener has room for: any event may be dropped then.
    let after = piece(offset, "after");
    let mut again = interval(Duration::from_millis(10));
    eventually_told(&mut far, &after, async || {
        again.tick().await;
        publish(&here, &topic, after.clone()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_standstill_loses_nothing() {
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let topic = session();
    let mut far = there.bus.subscribe(topic.clone()).await;
    here.reaches(&there).await;
    server.freeze();
    for offset in 0..QUEUE_EVENTS as u64 {
        publish(&here, &topic, piece(offset, "kept")).await;
    }
    server.thaw();
    for offset in 0..QUEUE_EVENTS as u64 {
        assert_eq!(next(&mut far).await, Delivery::Event(Published::new(piece(offset, "kept"))));
    }
    assert!(here.bus.connected() && there.bus.connected());
}

/// The node's runtime stands still while another one floods it: what does not fit its queues is lost, and told.
#[tokio::test]
async fn a_listener_that_is_too_slow_is_told_of_its_loss() {
    let Some(server) = Nats::start().await else { return };
    let there = Node::on(&server).await;
    let (topic, quiet) = (session(), session());
    let mut flooded = there.bus.subscribe(topic.clone()).await;
    let mut other = there.bus.subscribe(quiet.clone()).await;
    let (url, target) = (server.url(), topic.clone());
    let (ready, go) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let flood = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let here = Node::of(&Config { url, ..Config::default() }).await.connected().await;
            ready.0.send(()).unwrap();
            go.1.recv().unwrap();
            for offset in 0..3000 {
                publish(&here, &target, piece(offset, "flood")).await;
            }
            publish(&here, &quiet, piece(0, "quiet")).await;
            here.bus.close().await;
            assert_eq!(here.metrics.bus_published_total.get(), 3001);
        });
    });
    eventually("the other is connected", async || ready.1.try_recv().is_ok()).await;
    let echo = Node::on(&server).await;
    echo.reaches(&there).await;
    go.0.send(()).unwrap();
    // This blocks the only thread on which the node reads.
    flood.join().unwrap();
    while next(&mut flooded).await != Delivery::Lagged {
        tokio::task::yield_now().await;
    }
    arrives(&mut other, &piece(0, "quiet")).await;
    assert!(there.dropped("slow") > 0, "nothing was lost: the test floods too little");
    echo.reaches(&there).await;
    publish(&echo, &topic, piece(3001, "after")).await;
    arrives(&mut flooded, &piece(3001, "after")).await;
}

#[tokio::test]
async fn what_is_none_of_ours_is_counted_and_compared() {
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let id = SessionId::new();
    let topic = Topic::Session(id);
    let mut watch = there.bus.subscribe(topic.clone()).await;
    here.reaches(&there).await;
    let stranger = async_nats::connect(server.url()).await.unwrap();
    for payload in [
        "",
        "\u{3}origin..{}",
        "\u{2}{}",
        "\u{2}origin..{\"event\":{\"later\":{}}}",
        "\u{2}origin..{",
        "GET / HTTP/1.1",
    ] {
        let before = there.dropped("unreadable");
        stranger.publish(format!("chatbox.default.session.{id}"), payload.into()).await.unwrap();
        assert_eq!(next(&mut watch).await, Delivery::Lagged, "{payload:?}");
        assert_eq!(there.dropped("unreadable"), before + 1, "{payload:?}");
    }
    publish(&here, &topic, piece(0, "ours")).await;
    assert_eq!(next(&mut watch).await, Delivery::Event(Published::new(piece(0, "ours"))));
}

/// A server that stands still takes in what a connection has sent and passes it on when the node has another one.
#[tokio::test]
async fn what_a_node_has_sent_itself_it_is_not_told_again() {
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let id = SessionId::new();
    let topic = Topic::Session(id);
    let mut near = here.bus.subscribe(topic.clone()).await;
    let mut far = there.bus.subscribe(topic.clone()).await;
    here.reaches(&there).await;
    let subject = format!("chatbox.default.session.{id}");
    let stranger = async_nats::connect(server.url()).await.unwrap();
    let mut heard = stranger.subscribe(subject.clone()).await.unwrap();
    // What comes back says that the server knows of the subscription before it.
    let mut back = stranger.subscribe("back").await.unwrap();
    stranger.publish("back", "".into()).await.unwrap();
    timeout(PATIENCE, back.next()).await.expect("in time").unwrap();
    publish(&here, &topic, piece(0, "once")).await;
    let sent = timeout(PATIENCE, heard.next()).await.expect("in time").unwrap();
    stranger.publish(subject, sent.payload).await.unwrap();
    let once = Delivery::Event(Published::new(piece(0, "once")));
    assert_eq!([next(&mut far).await, next(&mut far).await], [once.clone(), once.clone()]);
    publish(&there, &topic, piece(1, "behind it")).await;
    assert_eq!(next(&mut near).await, once);
    assert_eq!(next(&mut near).await, Delivery::Event(Published::new(piece(1, "behind it"))));
}

#[tokio::test]
async fn what_is_too_large_is_a_hint_to_compare() {
    let Some(server) = Nats::with("max_payload: 600000").await else { return };
    let (here, there) = pair(&server).await;
    let id = SessionId::new();
    let topic = Topic::Session(id);
    let mut near = here.bus.subscribe(topic.clone()).await;
    let mut far = there.bus.subscribe(topic.clone()).await;
    let (mut told, mut list) = (there.bus.subscribe(topic.clone()).await, there.bus.subscribe(Topic::Cluster).await);
    far.saw(7);
    told.saw(8);
    here.reaches(&there).await;
    let change = |rev, bytes: usize| {
        let update = SessionUpdate { name: Some("x".repeat(bytes)), ..SessionUpdate::of(id) };
        Event::Session { rev, update: Arc::new(update) }
    };
    // Larger than every server's limit, and than this one's.
    for (rev, bytes) in [(8, 1_100_000), (8, 700_000)] {
        publish(&here, &topic, change(rev, bytes)).await;
        assert_eq!(next(&mut near).await, Delivery::Event(Published::new(change(rev, bytes))));
        assert_eq!(next(&mut far).await, Delivery::Lagged, "{bytes} bytes");
    }
    assert_eq!(here.dropped("large"), 2);
    // Whoever knows of that `rev` has no reason to read the store.
    publish(&here, &topic, change(9, 500_000)).await;
    assert_eq!(next(&mut told).await, Delivery::Event(Published::new(change(9, 500_000))));
    // A word has nothing to be compared with.
    let word = |turn_id| Arc::new(Word::Stop { turn_id });
    let turn_id = TurnId::new();
    here.bus.tell(&Topic::Cluster, word(turn_id));
    assert_eq!(next(&mut list).await, Delivery::Word(word(turn_id)));
}

#[tokio::test]
async fn nothing_crosses_prefixes() {
    let Some(server) = Nats::start().await else { return };
    let of = |prefix: &str| Config { url: server.url(), prefix: prefix.to_owned(), ..Config::default() };
    let (blue, red) = (Node::of(&of("blue")).await.connected().await, Node::of(&of("red")).await.connected().await);
    let again = Node::of(&of("red")).await.connected().await;
    let topic = session();
    let mut other = red.bus.subscribe(topic.clone()).await;
    again.reaches(&red).await;
    let received = red.metrics.bus_received_total.get();
    publish(&blue, &topic, piece(0, "blue")).await;
    // The server has passed on what came before the close.
    blue.bus.close().await;
    publish(&again, &topic, piece(0, "red")).await;
    arrives(&mut other, &piece(0, "red")).await;
    assert_eq!((blue.metrics.bus_published_total.get(), red.metrics.bus_received_total.get()), (1, received + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_leaves_before_the_bus_is_closed() {
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    let topics: Vec<_> = (0..100).map(|_| session()).collect();
    let mut watches = Vec::new();
    for topic in &topics {
        watches.push(there.bus.subscribe(topic.clone()).await);
    }
    here.reaches(&there).await;
    let received = there.metrics.bus_received_total.get();
    // More of one topic than its listener is given at once would be lost on the way.
    for (offset, topic) in (0..3000).zip(topics.iter().cycle()) {
        publish(&here, topic, piece(offset, "last words")).await;
    }
    here.bus.close().await;
    eventually("all of it arrives", async || there.metrics.bus_received_total.get() == received + 3000).await;
    assert_eq!((here.dropped("full"), there.dropped("slow")), (0, 0));
    drop(watches);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_at_another_server() {
    let (Some(mut first), Some(second)) = (Nats::start().await, Nats::start().await) else { return };
    let there = Node::on(&second).await;
    let both = Config { url: format!("{},{}", first.url(), second.url()), ..Config::default() };
    first.kill();
    let here = Node::of(&both).await.connected().await;
    here.reaches(&there).await;
    assert_eq!(here.metrics.bus_connected.get(), 1);
}

/// Ten thousand topics come and go, several times, and nothing of them is left: not here, not at the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_topics_come_and_go() {
    let _alone = ALONE.acquire().await.unwrap();
    let Some(server) = Nats::start().await else { return };
    let (here, there) = pair(&server).await;
    // What the two heard each other by has ended at the server as well.
    eventually("the server has none", async || server.subscriptions().await == 0).await;
    for round in 0..3 {
        let topics: Vec<_> = (0..10_000).map(|_| session()).collect();
        let mut watches = Vec::new();
        for topic in &topics {
            watches.push(there.bus.subscribe(topic.clone()).await);
            // A second subscriber costs the network nothing.
            watches.push(there.bus.subscribe(topic.clone()).await);
        }
        here.reaches(&there).await;
        // The topic of the line before has to end first.
        eventually("there are 10,000 listeners", async || there.metrics.bus_topics.get() == 10_000).await;
        eventually("the server has them too", async || server.subscriptions().await == 10_000).await;
        for (topic, number) in topics.iter().step_by(1000).zip(0..) {
            publish(&here, topic, piece(number, "found")).await;
        }
        for (watch, number) in watches.iter_mut().step_by(2000).zip(0..) {
            assert_eq!(next(watch).await, Delivery::Event(Published::new(piece(number, "found"))));
        }
        drop(watches);
        eventually("no listener is left", async || there.metrics.bus_topics.get() == 0).await;
        assert_eq!(there.bus.topics(), [], "round {round}");
        eventually("the server has none", async || server.subscriptions().await == 0).await;
    }
}

/// checklist 133: what the bus is to readiness.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_its_bus_is_ready_and_says_so() {
    let Some(mut nats) = Nats::start().await else { return };
    let server = Server::with(|config| config.bus.url = nats.url()).await;
    let ready = async || {
        let answer = http().get(format!("http://{}/readyz", server.ops)).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        (status, body["checks"]["bus"]["status"].as_str().unwrap().to_owned())
    };
    eventually("the bus is ready", async || ready().await == (200, "ok".to_owned())).await;
    nats.kill();
    eventually("the bus is missed", async || ready().await == (200, "degraded".to_owned())).await;
    nats.restart().await;
    eventually("the bus is back", async || ready().await == (200, "ok".to_owned())).await;
    assert_eq!(server.metrics.bus_connected.get(), 1);
}
