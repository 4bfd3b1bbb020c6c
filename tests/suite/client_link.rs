use bytes::Bytes;
use chatbox::{
    client::{Dialer, Error, Exchange, Link, Site, Transport},
    protocol::CloseCode,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Url;

use crate::harness::{
    Server, Via,
    client::{PATIENCE, sha256},
    eventually, id, over_both,
};

over_both!(
    answers_come_on_their_exchange_and_events_on_their_watch,
    the_servers_close_code_is_told,
    a_link_that_is_dropped_ends_at_the_server,
    an_exchange_that_nobody_reads_holds_nothing_up,
);

const fn transport(via: Via) -> Transport {
    match via {
        Via::WebTransport => Transport::WebTransport,
        Via::WebSocket => Transport::WebSocket,
    }
}

fn base(server: &Server) -> Url {
    server.url.join("/chatbox").unwrap()
}

async fn site(server: &Server) -> Site {
    Site::discover(&base(server)).await.expect("discovery")
}

async fn open(server: &Server, via: Via) -> Link {
    Dialer::new(site(server).await).open(transport(via)).await.expect("a link")
}

fn frame(frame: &Value) -> Bytes {
    frame.to_string().into()
}

async fn next(exchange: &mut Exchange) -> Option<Value> {
    let frame = timeout(PATIENCE, exchange.next()).await.expect("a frame in time").expect("the link holds")?;
    Some(serde_json::from_slice(&frame).expect("a frame is JSON"))
}

async fn attach(link: &Link, server: &Server, user: &str, fields: &Value) -> (Exchange, Value) {
    let mut asked = json!({"type": "attach", "id": id(), "token": server.token(user)});
    for (key, value) in fields.as_object().unwrap() {
        asked[key] = value.clone();
    }
    let mut watch = link.exchange(frame(&asked)).await.expect("a stream");
    let status = next(&mut watch).await.expect("a status");
    assert_eq!(status["type"], "connection_status", "{status}");
    (watch, status)
}

async fn answers_come_on_their_exchange_and_events_on_their_watch(via: Via) {
    let server = Server::start().await;
    let link = open(&server, via).await;
    assert_eq!(link.transport(), transport(via));
    let (mut watch, _) = attach(&link, &server, "ann", &json!({})).await;

    let (ping, said) = (id(), id());
    watch.send(frame(&json!({"type": "ping", "id": ping}))).await.unwrap();
    assert_eq!(next(&mut watch).await.unwrap(), json!({"type": "pong", "re": ping}));

    let message = json!({"type": "user_message", "id": said, "content": "What is chatbox?"});
    let mut exchange = link.exchange(frame(&message)).await.unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = next(&mut exchange).await {
        assert_eq!(frame["re"], said, "{frame}");
        frames.push(frame);
    }
    let kinds: Vec<_> = frames.iter().take(2).map(|frame| frame["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["accepted", "loading"]);
    let text: String = frames.iter().filter_map(|frame| frame["content"].as_str()).collect();
    let last = frames.last().unwrap();
    assert_eq!((last["length"].as_u64(), last["sha256"].as_str()), (Some(text.len() as u64), Some(&*sha256(&text))));
    assert_eq!(next(&mut exchange).await, None, "nothing follows the last frame");
    assert_eq!(link.stats().is_some(), via == Via::WebTransport);
}

async fn the_servers_close_code_is_told(via: Via) {
    let server = Server::start().await;
    let link = open(&server, via).await;
    let refused = json!({"type": "attach", "id": id(), "token": "none"});
    let mut watch = link.exchange(frame(&refused)).await.unwrap();
    let error = next(&mut watch).await.expect("an error");
    assert_eq!(error["error"]["code"], "INVALID_TOKEN", "{error}");
    let closed = timeout(PATIENCE, link.closed()).await.expect("a close in time");
    assert_eq!(closed.code, Some(CloseCode::Unauthorized), "{closed:?}");
    let after = link.exchange(frame(&json!({"type": "ping", "id": id()}))).await.unwrap_err();
    assert!(matches!(&after, Error::Closed(end) if end.code == closed.code), "got {after:?}");
}

async fn a_link_that_is_dropped_ends_at_the_server(via: Via) {
    let server = Server::start().await;
    let link = open(&server, via).await;
    let (mut watch, _) = attach(&link, &server, "ann", &json!({})).await;
    assert_eq!(server.open_connections(), 1);
    drop(link);
    let end = timeout(PATIENCE, watch.next()).await.expect("an end in time");
    assert!(matches!(end, Err(Error::Closed(_)) | Ok(None)), "got {end:?}");
    server.connections_fall_below(1).await;
}

async fn an_exchange_that_nobody_reads_holds_nothing_up(via: Via) {
    let server = Server::start().await;
    let link = open(&server, via).await;
    let (mut watch, _) = attach(&link, &server, "ann", &json!({})).await;
    for _ in 0..3 {
        let message = json!({"type": "user_message", "id": id(), "content": "Say much."});
        drop(link.exchange(frame(&message)).await.unwrap());
    }
    let ping = id();
    watch.send(frame(&json!({"type": "ping", "id": ping}))).await.unwrap();
    loop {
        let frame = next(&mut watch).await.expect("the watch goes on");
        if frame["re"] == ping {
            return assert_eq!(frame["type"], "pong");
        }
    }
}

/// `limits.streams` is 4, and an `attach` that would leave no room for an exchange is refused.
#[tokio::test]
async fn a_watch_that_is_dropped_is_detached_from_its_socket() {
    let server = Server::with(|config| config.sessions.active_per_user = 16).await;
    let link = open(&server, Via::WebSocket).await;
    let (_kept, _) = attach(&link, &server, "ann", &json!({})).await;
    for _ in 0..8 {
        let (watch, status) = attach(&link, &server, "ann", &json!({"new": true})).await;
        assert_ne!(status["session_id"], Value::Null, "{status}");
        drop(watch);
    }
}

/// The end of the older one must not meet the newer one at the server, whichever of the two is there first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_dropped_as_a_newer_one_replaces_it_does_not_end_that() {
    let server = Server::with(|config| config.limits.requests_per_minute = 100_000).await;
    let (link, other) = (open(&server, Via::WebSocket).await, open(&server, Via::WebSocket).await);
    let (mut typist, status) = attach(&other, &server, "ann", &json!({})).await;
    let session = json!({"session_id": status["session_id"]});
    for turns in 0..100 {
        let (older, _) = attach(&link, &server, "ann", &session).await;
        let newer = json!({"type": "attach", "id": id(), "session_id": status["session_id"]});
        let mut newer = link.exchange(frame(&newer)).await.unwrap();
        for _ in 0..turns % 5 {
            tokio::task::yield_now().await;
        }
        drop(older);
        assert_eq!(next(&mut newer).await.unwrap()["type"], "connection_status");
        // What was sent for the older one has been answered before this is.
        let ping = id();
        newer.send(frame(&json!({"type": "ping", "id": ping}))).await.unwrap();
        while next(&mut newer).await.unwrap()["re"] != ping {}
        typist.send(frame(&json!({"type": "typing_indicator", "metadata": {"state": "start"}}))).await.unwrap();
        assert_eq!(next(&mut newer).await.unwrap()["type"], "typing_indicator", "the newer one is told");
    }
}

#[tokio::test]
async fn discovery_says_what_the_server_has() {
    let server = Server::start().await;
    let site = site(&server).await;
    assert_eq!(site.base, base(&server));
    assert_eq!(site.webtransport, Some(server.webtransport_url()));
    assert_eq!(site.websocket, server.websocket_url());
    assert_eq!(site.certificate_sha256.map(hex::encode), Some(server.certificate_sha256.clone()));
    assert_eq!(site.limits.streams, 4);
}

#[tokio::test]
async fn websocket_over_tls_trusts_the_named_certificate() {
    let server = Server::start().await;
    let mut site = site(&server).await;
    site.websocket = server.quic_url.join("/chatbox/ws").unwrap();
    site.websocket.set_scheme("wss").unwrap();
    let link = Dialer::new(site).open(Transport::WebSocket).await.expect("a link");
    let (_watch, status) = attach(&link, &server, "ann", &json!({})).await;
    assert_eq!(status["transport"], "websocket");
}

#[tokio::test]
async fn another_certificate_is_not_trusted() {
    let server = Server::start().await;
    let mut site = site(&server).await;
    site.websocket = server.quic_url.join("/chatbox/ws").unwrap();
    site.websocket.set_scheme("wss").unwrap();
    for pin in [Some([7; 32]), None] {
        site.certificate_sha256 = pin;
        let dialer = Dialer::new(site.clone());
        for transport in [Transport::WebTransport, Transport::WebSocket] {
            let err = dialer.open(transport).await.unwrap_err();
            assert!(matches!(err, Error::Certificate { .. }), "{transport:?} with {pin:?}: {err:?}");
        }
    }
    let https = server.quic_url.join("/chatbox").unwrap();
    let err = Site::discover(&https).await.unwrap_err();
    assert!(matches!(err, Error::Certificate { .. }), "got {err:?}");
    let mut named = [0; 32];
    hex::decode_to_slice(&server.certificate_sha256, &mut named).unwrap();
    let pinned = Site::discover_pinned(&https, Some(named)).await.expect("discovery");
    assert_eq!(pinned.certificate_sha256, Some(named));
}

#[tokio::test]
async fn what_is_no_chatbox_server_is_told_apart() {
    let server = Server::start().await;
    let err = Site::discover(&server.url.join("/elsewhere").unwrap()).await.unwrap_err();
    assert!(matches!(err, Error::Refused { status, .. } if status == 404), "got {err:?}");

    let nobody: Url = format!("http://{}/chatbox", crate::harness::ports::reserve()).parse().unwrap();
    let err = Site::discover(&nobody).await.unwrap_err();
    assert!(matches!(err, Error::Unreachable { .. }), "got {err:?}");

    let mut site = site(&server).await;
    site.websocket = server.url.join("/chatbox/elsewhere").unwrap();
    site.websocket.set_scheme("ws").unwrap();
    site.webtransport = None;
    let dialer = Dialer::new(site);
    let err = dialer.open(Transport::WebSocket).await.unwrap_err();
    assert!(matches!(err, Error::Refused { status, .. } if status == 404), "got {err:?}");
    let err = dialer.open(Transport::WebTransport).await.unwrap_err();
    assert!(matches!(err, Error::Lacking(Transport::WebTransport)), "got {err:?}");
}

/// The queue of an exchange holds 64 frames; an answer of the demo model has more pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_holds_the_socket_and_loses_nothing() {
    let server = Server::start().await;
    let link = open(&server, Via::WebSocket).await;
    let (mut watch, _) = attach(&link, &server, "ann", &json!({})).await;
    let message = json!({"type": "user_message", "id": id(), "content": "Tell me everything. ".repeat(400)});
    let mut exchange = link.exchange(frame(&message)).await.unwrap();
    let sent = || server.metrics.frames_sent_total.with_label_values(&["websocket"]).get();
    eventually("more frames leave than the queue holds", async || sent() >= 100).await;
    let mut text = String::new();
    let mut last = Value::Null;
    while let Some(frame) = next(&mut exchange).await {
        text.push_str(frame["content"].as_str().unwrap_or_default());
        last = frame;
    }
    assert_eq!(last["sha256"], sha256(&text), "{last}");
    let ping = id();
    watch.send(frame(&json!({"type": "ping", "id": ping}))).await.unwrap();
    while next(&mut watch).await.expect("the watch goes on")["re"] != ping {}
}
