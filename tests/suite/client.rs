mod ends; // messages and watches whose owner leaves, whose session is gone, or whose server drains

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatbox::{
    auth::Role,
    chat::{ErrorCode, Rating, TurnState},
    client::{
        Client, Error, Event, Export, OUTBOX_MESSAGES_MAX, Open, Options, Session, State, Status, Tokens, Transport,
    },
    config::Config,
    protocol::CloseCode,
};
use tokio::time::timeout;

use crate::harness::{
    Server, Via,
    client::{PATIENCE, sha256},
    eventually,
    lossy::Lossy,
    openai, over_both, ports,
    provider::{Gate, Provider, Script},
    road::{Road, fix_ports},
    server::Target,
    stopwatch::Stopwatch,
};

over_both!(
    an_answer_is_whole_and_proved,
    an_answer_goes_on_after_the_connection_was_cut,
    messages_outlast_a_dead_server,
    two_sessions_share_a_connection,
    a_turn_is_stopped_and_answered_anew,
    a_drained_server_is_left_and_found_again,
    a_token_is_renewed_before_it_expires,
    a_bad_token_is_told,
    a_session_of_somebody_else_is_refused_alone,
    a_session_that_is_deleted_ends_and_the_connection_stays,
);

/// Short enough to wait for, long enough for a machine on which the other tests run.
const HEARTBEAT: Duration = Duration::from_secs(2);

const fn transport(via: Via) -> Transport {
    match via {
        Via::WebTransport => Transport::WebTransport,
        Via::WebSocket => Transport::WebSocket,
    }
}

fn options(server: &Target, via: Via, user: &str) -> Options {
    let base = server.url.join("/chatbox").unwrap();
    Options { transport: Some(transport(via)), ..Options::new(base, Tokens::fixed(server.token(user))) }
}

async fn open(client: &Client, open: Open) -> Session {
    timeout(PATIENCE, client.open(open)).await.expect("in time").expect("a session")
}

async fn next(session: &mut Session) -> Event {
    timeout(PATIENCE, session.next()).await.expect("an event in time").expect("the watch goes on")
}

/// Waits until the connection is in some state.
async fn until(client: &Client, wanted: impl Fn(&Status) -> bool + Send + Sync) -> Status {
    let mut status = client.status();
    match timeout(PATIENCE, status.wait_for(|status| wanted(status))).await {
        Ok(found) => found.expect("the client lives").clone(),
        Err(_elapsed) => panic!("it is {:?}", client.status().borrow()),
    }
}

/// A server behind a road, answered by a provider.
struct Site {
    road: Road,
    server: Option<Server>,
    config: Config,
    provider: Provider,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn start(script: Script) -> Self {
        Self::with(script, |_config| {}).await
    }

    async fn with(script: Script, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider = Provider::start(script).await;
        let road = Road::new().await;
        let mut config = Server::config(dir.path());
        openai(&mut config, &provider);
        change(&mut config);
        road.name(&mut config);
        let (http, quic) = fix_ports(&mut config);
        let server = Server::run(config.clone()).await;
        road.lead(http, quic);
        Self { road, server: Some(server), config, provider, _dir: dir }
    }

    fn target(&self) -> Target {
        self.server.as_ref().unwrap().target()
    }

    async fn restart(&mut self) {
        let server = self.server.take().unwrap();
        server.stop();
        server.ended().await.unwrap();
        self.run().await;
    }

    async fn run(&mut self) {
        ports::vacant([address(&self.config.listen.http), address(&self.config.listen.quic)]).await;
        self.server = Some(Server::run(self.config.clone()).await);
    }
}

async fn an_answer_is_whole_and_proved(via: Via) {
    let server = Server::start().await;
    let client = Client::new(options(&server, via, "ann"));
    let mut session = open(&client, Open::default()).await;
    let mut message = session.send("What is chatbox?").unwrap();
    let stored = message.stored().await.unwrap();
    assert_eq!((stored.seq, stored.session_id, stored.duplicate), (Some(1), Some(session.id()), false));
    let mut shown = String::new();
    while let Some(piece) = message.piece().await.unwrap() {
        shown.push_str(&piece);
    }
    let reply = message.reply().await.unwrap().expect("a model answers");
    assert_eq!((reply.text.as_str(), reply.sha256.clone(), reply.verified), (shown.as_str(), sha256(&shown), true));
    assert_eq!((reply.seq, reply.reply_to, reply.state), (2, 1, TurnState::Complete));

    let (mut told, mut pieces) = (Vec::new(), String::new());
    loop {
        match next(&mut session).await {
            Event::Session(status) => told.push(status.transport.to_string()),
            Event::Piece { offset, content, .. } => {
                assert_eq!(offset, pieces.len() as u64, "a hole or an overlap");
                pieces.push_str(&content);
            }
            Event::Reply(told) => break assert_eq!(told, reply),
            _ => {}
        }
    }
    assert_eq!((told, pieces), (vec![transport(via).name().to_owned()], shown));
    session.rate(2, Rating::Up, None).await.unwrap();
    let page = session.older(3, 10).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (2, false));
    let file = client.export(session.id(), Export::Markdown).await.unwrap();
    assert!(String::from_utf8(file.to_vec()).unwrap().contains("What is chatbox?"));
    let quic_conns = if via == Via::WebTransport { 2 } else { 0 };
    // Where a connection takes too long its call goes over TCP, and the next one tries again.
    eventually("routes go over HTTP/3 where there is QUIC", async || {
        client.sessions(1, None, None).await.unwrap();
        server.metrics.quic_connections_open.get() == quic_conns
    })
    .await;
    client.rename(session.id(), "Another name").await.unwrap();
    let list = client.sessions(10, None, Some("Another")).await.unwrap();
    assert_eq!(list.sessions.iter().map(|meta| meta.name.as_str()).collect::<Vec<_>>(), ["Another name"]);
    client.delete(session.id()).await.unwrap();
    while session.next().await.is_some() {}
}

/// The road is cut after each piece; what is shown has neither a hole nor an overlap.
async fn an_answer_goes_on_after_the_connection_was_cut(via: Via) {
    let gate = Gate::new();
    let site = Site::start(Script::answer(["eins ", "zwei ", "drei ", "größer ", "fünf"]).gated(&gate)).await;
    let client = Client::new(Options { heartbeat: HEARTBEAT, ..options(&site.target(), via, "ann") });
    let session = open(&client, Open::default()).await;
    let mut message = session.send("Count.").unwrap();
    let mut shown = String::new();
    for cuts in 1..3 {
        gate.release(1);
        shown.push_str(&message.piece().await.unwrap().expect("a piece"));
        site.road.cut();
        until(&client, |status| status.state == State::Reconnecting).await;
        site.road.lead(address(&site.config.listen.http), address(&site.config.listen.quic));
        until(&client, |status| status.state == State::Connected).await;
        // One more where the machine stood still for longer than a heartbeat waits.
        assert!(client.status().borrow().reconnects >= cuts);
    }
    gate.open();
    while let Some(piece) = message.piece().await.unwrap() {
        shown.push_str(&piece);
    }
    assert_eq!(shown, "eins zwei drei größer fünf");
    let reply = message.reply().await.unwrap().unwrap();
    assert_eq!((reply.text.as_str(), reply.verified), (shown.as_str(), true));
    assert_eq!(site.provider.requests(), 1, "the model was asked once");
}

async fn messages_outlast_a_dead_server(via: Via) {
    let mut site = Site::start(Script::answer(["yes"])).await;
    let client = Client::new(Options { heartbeat: HEARTBEAT, ..options(&site.target(), via, "ann") });
    let mut session = open(&client, Open::default()).await;
    site.road.cut();
    let said: Vec<_> = (0..3).map(|n| session.send(format!("message {n}")).unwrap()).collect();
    until(&client, |status| status.state == State::Reconnecting).await;
    site.restart().await;
    site.road.lead(address(&site.config.listen.http), address(&site.config.listen.quic));
    for (n, message) in said.into_iter().enumerate() {
        let reply = timeout(PATIENCE, message.reply()).await.expect("in time").unwrap().unwrap();
        assert_eq!((reply.text.as_str(), reply.verified), ("yes", true), "message {n}");
    }
    let page = session.older(100, 100).await.unwrap();
    let log: Vec<_> = page.entries.iter().map(|entry| serde_json::to_value(entry).unwrap()).collect();
    let mut texts: Vec<_> = log.iter().filter(|entry| entry["type"] == "user_message").collect();
    texts.sort_by_key(|entry| entry["seq"].as_u64());
    let texts: Vec<_> = texts.iter().map(|entry| entry["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["message 0", "message 1", "message 2"], "once each, in order");
    client.close().await;
    while session.next().await.is_some() {}
}

fn address(listener: &chatbox::config::Address) -> std::net::SocketAddr {
    let chatbox::config::Address::Socket(address) = listener else { panic!("the ports are fixed") };
    *address
}

async fn two_sessions_share_a_connection(via: Via) {
    let server = Server::with(|config| config.sessions.active_per_user = 4).await;
    let client = Client::new(options(&server, via, "ann"));
    let first = open(&client, Open { new: true, ..Open::default() }).await;
    let second = open(&client, Open { new: true, ..Open::default() }).await;
    assert_ne!(first.id(), second.id());
    let mut list = timeout(PATIENCE, client.watch_user()).await.unwrap().unwrap();
    assert_eq!(server.open_connections(), 1);
    let (one, two) = (first.send("one").unwrap(), second.send("two").unwrap());
    let (one, two) = (one.reply().await.unwrap().unwrap(), two.reply().await.unwrap().unwrap());
    assert_eq!((one.session_id, two.session_id), (first.id(), second.id()));
    assert_eq!((one.seq, two.seq), (2, 2), "each session has its own log");
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let update = timeout(PATIENCE, list.next()).await.unwrap().unwrap();
        if update.name.is_some() && !heard.contains(&update.session_id) {
            heard.push(update.session_id);
        }
    }
    assert!(heard.contains(&first.id()) && heard.contains(&second.id()));
}

async fn a_turn_is_stopped_and_answered_anew(via: Via) {
    let provider = Provider::start(Script::endless("on and ")).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let client = Client::new(options(&server, via, "ann"));
    let session = open(&client, Open::default()).await;
    let mut message = session.send("Go on.").unwrap();
    let turn_id = message.stored().await.unwrap().turn_id.expect("a turn");
    message.piece().await.unwrap().expect("a piece");
    session.stop(turn_id).await.unwrap();
    let reply = message.reply().await.unwrap().unwrap();
    assert_eq!((reply.state, reply.verified), (TurnState::Stopped, true));
    let again = session.stop(turn_id).await.unwrap_err();
    assert!(matches!(&again, Error::Answered(error) if error.code == ErrorCode::TurnNotFound), "got {again:?}");
    provider.script(Script::answer(["done"]));
    let anew = session.regenerate(turn_id).unwrap().reply().await.unwrap().unwrap();
    assert_eq!((anew.text.as_str(), anew.reply_to), ("done", reply.reply_to));
    let unknown = session.select_model("none".to_owned()).await.unwrap_err();
    assert!(matches!(unknown, Error::Answered(_)), "got {unknown:?}");
}

async fn a_drained_server_is_left_and_found_again(via: Via) {
    let mut site = Site::start(Script::answer(["yes"])).await;
    let client = Client::new(options(&site.target(), via, "ann"));
    let session = open(&client, Open::default()).await;
    session.send("before").unwrap().reply().await.unwrap();
    site.server.as_ref().unwrap().drain();
    site.server.take().unwrap().ended().await.unwrap();
    until(&client, |status| status.state == State::Reconnecting).await;
    let message = session.send("meanwhile").unwrap();
    site.run().await;
    let reply = timeout(PATIENCE, message.reply()).await.expect("in time").unwrap().unwrap();
    assert_eq!((reply.seq, reply.verified), (4, true));
}

async fn a_token_is_renewed_before_it_expires(via: Via) {
    let server = Server::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let (target, count) = (server.target(), Arc::clone(&asked));
    let tokens = Tokens::from_fn(move |_refresh| {
        // The first lives for ten seconds at most, the next one for an hour.
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        let ttl = Duration::from_secs(if first { 10 } else { 3600 });
        let token = target.token_for("ann", Role::User, ttl);
        Box::pin(async move { Some(token) })
    });
    let client = Client::new(Options { tokens, ..options(&server, via, "ann") });
    let mut session = open(&client, Open::default()).await;
    // The status that `auth` is answered with comes before the old token's end.
    next(&mut session).await;
    let renewed = next(&mut session).await;
    assert!(matches!(renewed, Event::Session(_)), "got {renewed:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    session.send("still here").unwrap().reply().await.unwrap();
    assert_eq!(client.status().borrow().reconnects, 0);
}

async fn a_bad_token_is_told(via: Via) {
    let server = Server::start().await;
    let tokens = Tokens::fixed("none");
    let client = Client::new(Options { tokens, ..options(&server, via, "ann") });
    let err = timeout(PATIENCE, client.open(Open::default())).await.unwrap().unwrap_err();
    assert!(matches!(&err, Error::Answered(error) if error.code == ErrorCode::InvalidToken), "got {err:?}");
    until(&client, |status| status.state == State::Closed).await;
}

async fn a_session_of_somebody_else_is_refused_alone(via: Via) {
    let server = Server::start().await;
    let bob = Client::new(options(&server, via, "bob"));
    let session_id = Some(open(&bob, Open::default()).await.id());
    let ann = Client::new(options(&server, via, "ann"));
    let refused = timeout(PATIENCE, ann.open(Open { session_id, ..Open::default() })).await.unwrap().unwrap_err();
    assert!(matches!(&refused, Error::Answered(error) if error.code == ErrorCode::NotFound), "got {refused:?}");
    let own = open(&ann, Open::default()).await;
    let refused = ann.open(Open { session_id, ..Open::default() }).await.unwrap_err();
    assert!(matches!(&refused, Error::Answered(error) if error.code == ErrorCode::NotFound), "got {refused:?}");
    assert!(own.send("hello").unwrap().reply().await.unwrap().unwrap().verified);
}

async fn a_session_that_is_deleted_ends_and_the_connection_stays(via: Via) {
    let server = Server::start().await;
    let client = Client::new(options(&server, via, "ann"));
    let mut session = open(&client, Open::default()).await;
    assert!(session.send("count to 2").unwrap().reply().await.unwrap().unwrap().verified);
    client.delete(session.id()).await.unwrap();
    let mut deleted = false;
    while let Some(event) = timeout(PATIENCE, session.next()).await.expect("an end in time") {
        deleted |= matches!(event, Event::Update(update) if update.deleted);
    }
    assert!(deleted, "the end comes with its reason");
    let another = open(&client, Open::default()).await;
    assert!(another.send("count to 3").unwrap().reply().await.unwrap().unwrap().verified);
    let status = client.status().borrow().clone();
    assert_eq!((status.state, status.reconnects, status.reason), (State::Connected, 0, None));
}

/// Where UDP is refused or lost, a WebSocket is there within 3 seconds, and is tried first from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_udp_a_websocket_is_found_and_remembered() {
    let hole = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut config, road) = (Server::config(dir.path()), Road::new().await);
    road.name(&mut config);
    config.public_quic_url = Some(format!("https://{}", hole.local_addr().unwrap()).parse().unwrap());
    let (http, quic) = fix_ports(&mut config);
    let server = Server::run(config).await;
    road.lead(http, quic);
    let client = Client::new(Options { transport: None, ..options(&server, Via::WebSocket, "ann") });
    let begun = Stopwatch::start();
    let session = open(&client, Open::default()).await;
    let took = begun.elapsed();
    println!("a WebSocket is found after {took:?}");
    assert!(took < Duration::from_secs(3), "took {took:?}");
    until(&client, |status| status.transport == Some(Transport::WebSocket)).await;
    assert!(session.send("hello").unwrap().reply().await.unwrap().unwrap().verified);
    road.break_once();
    let begun = Stopwatch::start();
    until(&client, |status| status.reconnects == 1 && status.state == State::Connected).await;
    let took = begun.elapsed();
    println!("and is there again after {took:?}");
    assert!(took < Duration::from_millis(1400), "took {took:?}");
    // HTTP goes another way, too.
    assert_eq!(client.sessions(10, None, None).await.unwrap().sessions.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_was_changed_on_its_way_is_read_again() {
    let site = Site::start(Script::answer(["true ", " words"])).await;
    let client = Client::new(options(&site.target(), Via::WebSocket, "ann"));
    let session = open(&client, Open::default()).await;
    site.road.garble("true ", "false");
    let reply = session.send("What is it?").unwrap().reply().await.unwrap().unwrap();
    assert!(site.road.has_garbled());
    assert_eq!((reply.text.as_str(), reply.verified), ("true  words", true));
}

#[tokio::test]
async fn with_udp_webtransport_wins() {
    let server = Server::start().await;
    let client = Client::new(Options { transport: None, ..options(&server, Via::WebSocket, "ann") });
    open(&client, Open::default()).await;
    assert_eq!(client.status().borrow().transport, Some(Transport::WebTransport));
}

#[tokio::test]
async fn a_certificate_that_was_not_named_ends_the_client() {
    let server = Server::start().await;
    let certificate_sha256 = Some([7; 32]);
    let client = Client::new(Options { certificate_sha256, ..options(&server, Via::WebTransport, "ann") });
    let err = timeout(PATIENCE, client.open(Open::default())).await.unwrap().unwrap_err();
    assert!(matches!(err, Error::Certificate { .. }), "got {err:?}");
}

#[tokio::test]
async fn the_outbox_is_bounded_and_close_fails_what_waits() {
    let site = Site::start(Script::answer(["yes"])).await;
    let client = Client::new(options(&site.target(), Via::WebSocket, "ann"));
    let session = open(&client, Open::default()).await;
    site.road.cut();
    until(&client, |status| status.state == State::Reconnecting).await;
    let mut waiting: Vec<_> = (0..OUTBOX_MESSAGES_MAX).map(|n| session.send(n.to_string()).unwrap()).collect();
    let full = session.send("one too many").unwrap_err();
    assert!(matches!(full, Error::Full(OUTBOX_MESSAGES_MAX)), "got {full:?}");
    client.close().await;
    let err = waiting.pop().unwrap().reply().await.unwrap_err();
    assert!(matches!(&err, Error::Closed(closed) if closed.code == Some(CloseCode::Done)), "got {err:?}");
}

/// What the demo model says to `count to`.
fn counted(to: usize) -> String {
    (1..=to).map(|line| format!("{line}. line\n")).collect()
}

/// Reads events until a reply has ended. What it was told: entries, and the reply in the end.
async fn shown(session: &mut Session) -> Vec<(u64, String)> {
    let (mut shown, mut text) = (Vec::new(), String::new());
    loop {
        match next(session).await {
            Event::Entry(entry) => shown.push((entry.seq, entry.content.clone())),
            Event::Piece { offset, content, .. } => {
                assert_eq!(offset, text.len() as u64, "a hole or an overlap");
                text.push_str(&content);
            }
            Event::Reply(reply) => {
                assert_eq!((reply.text.as_str(), reply.verified), (text.as_str(), true));
                shown.push((reply.seq, text));
                return shown;
            }
            Event::Missed => panic!("events are read as they come"),
            _ => {}
        }
    }
}

/// Text comes on the watch and on the exchange that asked for it; both lose packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_come_before_what_was_lost_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Server::config(dir.path());
    config.sessions.model_names = false;
    config.llm.providers.get_mut("demo").unwrap().pace = Some(Duration::from_millis(2));
    let (_http, quic) = fix_ports(&mut config);
    let path = Lossy::to(quic).await;
    config.public_quic_url = Some(format!("https://{}", path.address).parse().unwrap());
    let server = Server::run(config).await;
    let far = Client::new(options(&server, Via::WebTransport, "ann"));
    let near = Client::new(options(&server, Via::WebSocket, "ann"));
    let mut far_session = open(&far, Open::default()).await;
    let near_session = open(&near, Open::default()).await;
    assert_eq!(near_session.id(), far_session.id());
    path.delay(Duration::from_millis(10));
    path.lose_one_in(8);

    let copies = || far.status().borrow().copies;
    let (mut log, mut expected) = (Vec::new(), Vec::new());
    while copies() < 20 || expected.len() < 24 {
        let (seq, lines) = (expected.len() as u64 + 1, 20 + expected.len());
        assert!(lines < 200, "{} copies, {:?}", copies(), path.counts());
        let own = lines.is_multiple_of(4);
        let asks = if own { &far_session } else { &near_session };
        let message = asks.send(format!("count to {lines}")).unwrap();
        log.extend(shown(&mut far_session).await);
        assert_eq!(message.reply().await.unwrap().unwrap().text, counted(lines));
        if own {
            log.push((seq, format!("count to {lines}")));
        }
        expected.extend([(seq, format!("count to {lines}")), (seq + 1, counted(lines))]);
    }
    log.sort();
    assert_eq!(log, expected, "each once, and whole");
    assert!(path.counts().1 > 0);
    assert_eq!(far.status().borrow().reconnects, 0, "nothing had to be made good by another connection");
}
