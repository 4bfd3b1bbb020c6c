//! What becomes of messages, watches and calls whose owner leaves, whose session is gone, or whose server drains, refuses
//! or moves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatbox::{
    chat::ErrorCode,
    client::{Client, Error, Event, Open, Options, Session, State, Tokens},
};
use tokio::time::timeout;

use super::{HEARTBEAT, Site, address, next, open, options, until};
use crate::harness::{
    Server, Via,
    client::PATIENCE,
    eventually,
    lossy::Lossy,
    openai, over_both,
    provider::{Gate, Provider, Script},
    road::fix_ports,
};

over_both!(
    a_message_of_a_session_that_is_dropped_is_answered,
    a_message_to_a_session_that_is_gone_fails,
    a_session_that_is_dropped_gives_its_place_back,
    what_is_said_to_a_draining_server_harms_no_answer,
    a_further_watch_outlasts_a_refusal_that_passes,
    a_session_that_is_opened_again_goes_on_there,
    a_session_that_is_opened_again_is_told_whole,
);

async fn a_message_of_a_session_that_is_dropped_is_answered(via: Via) {
    let provider = Provider::start(Script::answer(["yes"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let client = Client::new(options(&server, via, "ann"));
    for n in 0..5 {
        let session = open(&client, Open::default()).await;
        let message = session.send(format!("message {n}")).unwrap();
        drop(session);
        let reply = timeout(PATIENCE, message.reply()).await.expect("in time").expect("an answer").unwrap();
        assert_eq!((reply.text.as_str(), reply.verified), ("yes", true), "message {n}");
    }
}

async fn a_message_to_a_session_that_is_gone_fails(via: Via) {
    let server = Server::start().await;
    let client = Client::new(options(&server, via, "ann"));
    let mut session = open(&client, Open::default()).await;
    assert!(session.send("count to 2").unwrap().reply().await.unwrap().unwrap().verified);
    client.delete(session.id()).await.unwrap();
    while timeout(PATIENCE, session.next()).await.expect("an end in time").is_some() {}
    let late = timeout(PATIENCE, session.send("too late").unwrap().reply()).await.expect("it is told in time");
    assert!(matches!(late, Err(Error::Closed(_))), "got {late:?}");
}

/// More of them than a connection may have at a time.
async fn a_session_that_is_dropped_gives_its_place_back(via: Via) {
    let server = Server::with(|config| config.sessions.active_per_user = 20).await;
    let client = Client::new(options(&server, via, "ann"));
    for n in 0..10 {
        let opened = timeout(PATIENCE, client.open(Open { new: true, ..Open::default() })).await.expect("in time");
        let session = opened.unwrap_or_else(|err| panic!("session {n} is refused: {err}"));
        let reply = timeout(PATIENCE, session.send("count to 2").unwrap().reply()).await.expect("an answer in time");
        assert!(reply.unwrap().unwrap().verified, "session {n}");
    }
    assert_eq!(client.status().borrow().reconnects, 0);
}

/// An answer holds up the drain, and goes on where it is. What is said meanwhile waits for another server.
async fn what_is_said_to_a_draining_server_harms_no_answer(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["to ", "the end"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let client = Client::new(options(&server, via, "ann"));
    let session = open(&client, Open::default()).await;
    let mut first = session.send("first").unwrap();
    gate.release(1);
    assert_eq!(first.piece().await.unwrap().as_deref(), Some("to "));
    server.drain();
    let _second = session.send("second").unwrap();
    let begun = Instant::now();
    eventually("a second has passed", async || begun.elapsed() > Duration::from_secs(1)).await;
    let refused = server.metrics.errors_total.with_label_values(&["GOING_AWAY"]).get();
    assert!(refused <= 1, "the message was refused {refused} times");
    gate.open();
    let reply = timeout(PATIENCE, first.reply()).await.expect("in time").unwrap().unwrap();
    assert_eq!((reply.text.as_str(), reply.verified), ("to the end", true));
    server.ended().await.expect("clean end");
}

/// The rate is used up when the second of two watches is attached anew.
async fn a_further_watch_outlasts_a_refusal_that_passes(via: Via) {
    let site = Site::with(Script::answer(["yes"]), |config| {
        config.limits.requests_per_minute = 20;
        config.sessions.active_per_user = 2;
    });
    let site = site.await;
    let client = Client::new(Options { heartbeat: HEARTBEAT, ..options(&site.target(), via, "ann") });
    let first = open(&client, Open { new: true, ..Open::default() }).await;
    let second = open(&client, Open { new: true, ..Open::default() }).await;
    while first.ask_for_help(true).await.is_ok() {}
    let metrics = Arc::clone(&site.server.as_ref().unwrap().metrics);
    let refused = metrics.errors_total.with_label_values(&["TOO_MANY_REQUESTS"]);
    let before = refused.get();
    assert_eq!(before, 1);
    site.road.cut();
    let unanswered = first.send("Is anybody there?").unwrap();
    until(&client, |status| status.state == State::Reconnecting).await;
    site.road.lead(address(&site.config.listen.http), address(&site.config.listen.quic));
    eventually("the second watch is refused", async || refused.get() > before).await;
    for message in [unanswered, second.send("And now?").unwrap()] {
        let reply = timeout(PATIENCE, message.reply()).await.expect("in time").unwrap().unwrap();
        assert_eq!((reply.text.as_str(), reply.verified), ("yes", true));
    }
}

/// A message that is being answered, and one that waits.
async fn a_session_that_is_opened_again_goes_on_there(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["to ", "the end"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let client = Client::new(options(&server, via, "ann"));
    let mut older = open(&client, Open::default()).await;
    let mut first = older.send("first").unwrap();
    gate.release(1);
    assert_eq!(first.piece().await.unwrap().as_deref(), Some("to "));
    let second = older.send("second").unwrap();
    let mut newer = open(&client, Open { history: Some(1), ..Open::default() }).await;
    assert_eq!(newer.id(), older.id());
    while timeout(PATIENCE, older.next()).await.expect("an end in time").is_some() {}
    let third = newer.send("third").unwrap();
    gate.open();
    for message in [first, second, third] {
        let reply = timeout(PATIENCE, message.reply()).await.expect("in time").unwrap().unwrap();
        assert_eq!((reply.text.as_str(), reply.verified), ("to the end", true));
    }
    let mut replies = 0;
    while replies < 3 {
        if let Event::Reply(reply) = next(&mut newer).await {
            assert_eq!(reply.text, "to the end");
            replies += 1;
        }
    }
    let mut newest = open(&client, Open { history: Some(50), ..Open::default() }).await;
    let mut told = told_until(&mut newest, 6).await;
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3, 4, 5, 6], "what was said before");
    assert_eq!((client.status().borrow().reconnects, server.open_connections()), (0, 1));
    let mut list = client.watch_user().await.unwrap();
    let mut anew = client.watch_user().await.unwrap();
    assert!(timeout(PATIENCE, list.next()).await.expect("an end in time").is_none());
    client.rename(newest.id(), "named anew").await.unwrap();
    while timeout(PATIENCE, anew.next()).await.expect("in time").unwrap().name.as_deref() != Some("named anew") {}
}

/// Places of the entries that it is told, up to one.
async fn told_until(session: &mut Session, last: u64) -> Vec<u64> {
    let mut told = Vec::new();
    while told.last() != Some(&last) {
        match next(session).await {
            Event::Entry(entry) => told.push(entry.seq),
            Event::Reply(reply) => told.push(reply.seq),
            _ => {}
        }
    }
    told
}

/// What this client has said on the same connection too; and once, also when the watch goes on over another one.
async fn a_session_that_is_opened_again_is_told_whole(via: Via) {
    let site = Site::start(Script::answer(["yes"])).await;
    let client = Client::new(Options { heartbeat: HEARTBEAT, ..options(&site.target(), via, "ann") });
    let _list = client.watch_user().await.unwrap();
    let first = open(&client, Open::default()).await;
    first.send("first").unwrap().reply().await.unwrap();
    let mut second = open(&client, Open::default()).await;
    assert_eq!(told_until(&mut second, 2).await, [1, 2], "one that is watched already");
    second.send("second").unwrap().reply().await.unwrap();
    drop((first, second));
    let mut third = open(&client, Open::default()).await;
    assert_eq!(told_until(&mut third, 4).await, [1, 2, 3, 4], "one that was spoken in before");
    site.road.cut();
    let message = third.send("third").unwrap();
    until(&client, |status| status.state == State::Reconnecting).await;
    site.road.lead(address(&site.config.listen.http), address(&site.config.listen.quic));
    timeout(PATIENCE, message.reply()).await.expect("in time").unwrap();
    assert_eq!(told_until(&mut third, 6).await, [6], "a view that goes on");
}

/// Calls learn of it from the connection, and go to the new address at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_follow_a_server_whose_quic_moves() {
    let mut site = Site::start(Script::answer(["yes"])).await;
    let client = Client::new(Options { heartbeat: HEARTBEAT, ..options(&site.target(), Via::WebTransport, "ann") });
    let session = open(&client, Open::default()).await;
    let carried = |site: &Site| site.server.as_ref().unwrap().metrics.quic_connections_open.get();
    client.sessions(10, None, None).await.unwrap();
    assert_eq!(carried(&site), 2, "the session and the calls");
    let (_http, elsewhere) = fix_ports(&mut site.config);
    site.config.public_quic_url = Some(format!("https://{elsewhere}").parse().unwrap());
    site.config.tls.dir = site.config.data_dir.join("other-certs");
    site.restart().await;
    site.road.lead(address(&site.config.listen.http), elsewhere);
    let reply = timeout(PATIENCE, session.send("Where are you?").unwrap().reply()).await.expect("in time");
    assert!(reply.unwrap().unwrap().verified);
    client.sessions(10, None, None).await.unwrap();
    assert_eq!(carried(&site), 2, "the session and the calls");
}

#[tokio::test]
async fn why_there_is_no_connection_is_told() {
    let client = Client::new(Options::new("http://127.0.0.1:1/chatbox".parse().unwrap(), Tokens::fixed("t")));
    let opening = client.clone();
    let opening = tokio::spawn(async move { opening.open(Open::default()).await });
    let status = until(&client, |status| status.state == State::Reconnecting && status.reason.is_some()).await;
    let reason = status.reason.unwrap();
    assert!(reason.starts_with("http://127.0.0.1:1/chatbox/.well-known/chatbox cannot be reached: "), "{reason}");
    assert!(reason.contains("refused"), "{reason}");
    client.close().await;
    assert!(matches!(opening.await.unwrap(), Err(Error::Closed(_))));
}

/// Calls at the same time wait for the same connection, and an old one that ends takes no newer one with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_share_one_http3_connection() {
    let server = Server::start().await;
    let client = Client::new(options(&server, Via::WebTransport, "ann"));
    let calls = (0..8).map(|_| client.sessions(10, None, None));
    for listed in futures_util::future::join_all(calls).await {
        assert_eq!(listed.unwrap().sessions.len(), 0);
    }
    assert!(server.metrics.quic_connections_open.get() <= 1, "{}", server.metrics.quic_connections_open.get());
}

/// It is read to the limit and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_half_a_request_counts() {
    let server = Server::start().await;
    let client = Client::new(options(&server, Via::WebTransport, "ann"));
    let session = open(&client, Open::default()).await;
    let refused = client.rename(session.id(), &"x".repeat(4 << 20)).await;
    assert!(matches!(&refused, Err(Error::Answered(error)) if error.code == ErrorCode::FrameTooLarge), "{refused:?}");
    let requests = server.metrics.http_requests_total.with_label_values(&["/chatbox/sessions/{id}", "PATCH", "413"]);
    assert_eq!(requests.get(), 1, "and it is not sent again over TCP");
}

/// The handshake alone takes longer than a call waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_http3_takes_too_long_a_call_goes_over_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Server::config(dir.path());
    let (_http, quic) = fix_ports(&mut config);
    let path = Lossy::to(quic).await;
    config.public_quic_url = Some(format!("https://{}", path.address).parse().unwrap());
    let server = Server::run(config).await;
    let client = Client::new(options(&server, Via::WebTransport, "ann"));
    path.delay(Duration::from_millis(1500));
    assert_eq!(client.sessions(10, None, None).await.unwrap().sessions.len(), 0);
    path.delay(Duration::ZERO);
    eventually("the next calls go over HTTP/3 again", async || {
        client.sessions(10, None, None).await.unwrap();
        server.metrics.quic_connections_open.get() == 1
    })
    .await;
}
