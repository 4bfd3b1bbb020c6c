//! What becomes of messages and watches whose owner leaves, whose session is gone, or whose server drains.

use std::time::{Duration, Instant};

use chatbox::{
    chat::ErrorCode,
    client::{Client, Error, Open, Options, State, Tokens},
};
use tokio::time::timeout;

use super::{open, options, until};
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
