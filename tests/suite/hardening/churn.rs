//! Connections that come and go in every order leave nothing behind, and the end of a server waits for all of them.

use std::{sync::Arc, time::Duration};

use chatbox::bus::{Bus, Local, Topic};
use futures_util::future::join_all;
use serde_json::json;
use tokio::runtime::Handle;

use super::settles;
use crate::harness::{
    Client, Server, Via,
    client::{Lines, http},
    id, openai, over_both,
    provider::{Gate, Provider, Script},
    stopwatch::Stopwatch,
};

over_both! {
    reconnecting_leaves_nothing_behind,
    any_device_may_go_and_the_others_go_on,
    ends_from_every_side_at_once_are_one_end,
    failed_attempts_lock_nobody_out,
}

const RECONNECTS: usize = 100;

/// checklist 41, 46, 71, W9: neither connections, turns, watches nor tasks; memory is looked at by `endurance`.
async fn reconnecting_leaves_nothing_behind(via: Via) {
    let dir = tempfile::tempdir().unwrap();
    let config = Server::config(dir.path());
    let mut bus = None;
    let server = Server::run_with_bus(config, |metrics| {
        let local: Arc<dyn Bus> = Arc::new(Local::new(metrics));
        bus = Some(Arc::clone(&local));
        local
    })
    .await;
    let bus = bus.unwrap();
    // What the first client brings about once: the runtime's and the libraries' own.
    let (first, _watch, _status) = Client::attached(&server, via, "warm", json!({})).await;
    first.leave(&server).await;
    let idle = Handle::current().metrics().num_alive_tasks();
    for nth in 0..RECONNECTS {
        let user = format!("user {}", nth % 10);
        let (mut client, _watch, _status) = Client::attached(&server, via, &user, json!({"after_seq": 0})).await;
        let mut exchange = client.say("count to 50").await;
        exchange.until("ai_response").await;
        client.vanish();
    }
    let metrics = &server.metrics;
    settles("connections", || server.open_connections(), |open| *open == 0).await;
    settles("turns", || metrics.turns_running.get(), |running| *running == 0).await;
    // What nodes say to each other is heard to the end.
    let watched = |topic: &Topic| matches!(topic, Topic::Session(_) | Topic::User(_));
    settles("watches", || bus.topics(), |topics| !topics.iter().any(watched)).await;
    settles("tasks", || Handle::current().metrics().num_alive_tasks(), |tasks| *tasks <= idle + 2).await;
    assert_eq!(server.metrics.panics_total.get(), 0);
}

/// checklist 50, W15, W16
async fn any_device_may_go_and_the_others_go_on(via: Via) {
    for leaves in 0..3 {
        let gate = Gate::new();
        let provider = Provider::start(Script::answer(["one ", "two ", "three"]).gated(&gate)).await;
        let server = Server::with(|config| openai(config, &provider)).await;
        let mut devices = Vec::new();
        for _ in 0..3 {
            devices.push(Client::attached(&server, via, "ann", json!({})).await);
        }
        // The one that goes may be the one that asked.
        let mut exchange = devices[1].0.say("hello").await;
        gate.release(1);
        for (at, (_client, watch, _status)) in devices.iter_mut().enumerate() {
            let seen = if at == 1 { exchange.until("ai_response").await } else { watch.until("ai_response").await };
            assert_eq!(seen["content"], "one ");
        }
        let (gone, _watch, _status) = devices.remove(leaves);
        gone.leave(&server).await;
        gate.open();
        for (at, (_client, watch, _status)) in devices.iter_mut().enumerate() {
            let asked = leaves != 1 && at == if leaves == 0 { 0 } else { 1 };
            let lines = if asked { &mut exchange } else { watch };
            let (text, last) = lines.reply_from("one ".to_owned()).await;
            assert_eq!((text.as_str(), &last["state"]), ("one two three", &json!("complete")));
        }
        // And what is said next reaches all that are left.
        provider.script(Script::answer(["again"]));
        devices[0].0.say("more").await.reply().await;
        assert_eq!(devices[1].1.until("user_message").await["content"], "more");
        assert_eq!(devices[1].1.reply().await.0, "again");
    }
}

/// How often; the socket's own driver goes through the same a thousand times, see its tests.
const ENDS: usize = 12;

/// checklist 38, 39, 40, 41, 48, 66, W22: clients leave and vanish while they are sent to, tokens end and the server
/// drains, all in the same moment.
async fn ends_from_every_side_at_once_are_one_end(via: Via) {
    for nth in 0..ENDS {
        let server = Server::with(|config| config.drain.timeout = Duration::from_millis(50)).await;
        let metrics = Arc::clone(&server.metrics);
        let clients = join_all((0..8).map(|user| {
            let server = &server;
            async move {
                let user = format!("user {user}");
                let (mut client, watch, _status) = Client::attached(server, via, &user, json!({})).await;
                let mut exchange = client.say("count to 100000").await;
                exchange.until("ai_response").await;
                (client, watch, exchange)
            }
        }))
        .await;
        let began = Stopwatch::start();
        let go = Arc::new(tokio::sync::Barrier::new(clients.len() + 1));
        let leaving = join_all(clients.into_iter().enumerate().map(|(at, (client, mut watch, exchange))| {
            let go = Arc::clone(&go);
            async move {
                go.wait().await;
                match (at + nth) % 4 {
                    0 => client.vanish(),
                    1 => {
                        if let Client::WebTransport(session) = &client {
                            session.close(0, b"");
                        }
                        drop((client, watch, exchange));
                    }
                    2 => {
                        let stop = json!({"type": "stop", "id": id(), "turn_id": id()});
                        watch.send(stop).await;
                        drop((watch, exchange));
                        client.closed().await;
                    }
                    _ => {
                        // Reads to the end, which is one of the server's.
                        let read = async |mut lines: Lines| while lines.next().await.is_some() {};
                        assert_eq!(tokio::join!(client.closed(), read(watch), read(exchange)).0, 3);
                    }
                }
            }
        }));
        let drain = async {
            go.wait().await;
            server.drain();
            server.ended().await.expect("every task ended in time");
        };
        tokio::join!(leaving, drain);
        assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
        let name = if via == Via::WebTransport { "webtransport" } else { "websocket" };
        let open = metrics.connections_open.with_label_values(&[name]).get();
        assert_eq!((open, metrics.turns_running.get(), metrics.panics_total.get()), (0, 0, 0), "round {nth}");
    }
}

/// W24: attempts that fail count as nothing, whatever they fail at.
async fn failed_attempts_lock_nobody_out(via: Via) {
    let server = Server::with(|config| {
        config.limits.connections_per_user = 1;
        config.limits.connections_per_address = 2;
    })
    .await;
    let token = server.token("ann");
    for _ in 0..10 {
        let upgrade = server.url.join("/chatbox/ws").unwrap();
        let plain = http().get(upgrade.clone()).bearer_auth(&token);
        assert_eq!(plain.send().await.unwrap().status(), 426);
        let foreign = http().get(upgrade).header("origin", "https://evil.example");
        assert_eq!(foreign.bearer_auth(&token).send().await.unwrap().status(), 403);
        let open = server.open_connections();
        let mut client = Client::open(&server, via).await;
        let expired = json!({"type": "attach", "id": id(), "token": server.expired_token("ann")});
        client.exchange(expired).await.until("error").await;
        assert_eq!(client.closed().await, 2);
        server.connections_fall_below(open + 1).await;
    }
    let (_client, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(status["user_id"], "ann");
}
