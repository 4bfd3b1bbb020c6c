//! What streams mean to a chat, where a WebSocket has no counterpart.

use serde_json::json;
use tokio::time::timeout;

use crate::harness::{
    Client, Server, Via,
    client::{Lines, PATIENCE},
    id,
};

fn session(client: &Client) -> &web_transport_quinn::Session {
    match client {
        Client::WebTransport(session) => session,
        Client::WebSocket { .. } => panic!("not over WebTransport"),
    }
}

fn halves(lines: &mut Lines) -> (&mut web_transport_quinn::SendStream, &mut web_transport_quinn::RecvStream) {
    match lines {
        Lines::Stream { send, recv, .. } => (send, recv),
        Lines::Queue { .. } => panic!("not over WebTransport"),
    }
}

/// The server answers what came before the end, and finishes its side too, which gives the stream back.
#[tokio::test]
async fn finishing_the_attach_stream_ends_the_watch_after_its_answers() {
    let server = Server::start().await;
    let (_client, mut watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    let pings = [id(), id(), id()];
    for ping in &pings {
        watch.send(json!({"type": "ping", "id": ping})).await;
    }
    halves(&mut watch).0.finish().unwrap();
    for ping in &pings {
        let pong = watch.next().await.expect("pong");
        assert_eq!((&pong["type"], &pong["re"]), (&json!("pong"), &json!(ping)));
    }
    assert_eq!(watch.next().await, None);
}

/// The client wants to know where it stands, and nothing after that.
#[tokio::test]
async fn attach_whose_stream_is_finished_at_once_is_answered() {
    let server = Server::start().await;
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    for _ in 0..20 {
        let attach = json!({"type": "attach", "id": id()});
        let mut exchange = client.raw(attach.to_string().as_bytes()).await;
        let status = exchange.next().await.expect("a status");
        assert_eq!((&status["type"], &status["re"]), (&json!("connection_status"), &attach["id"]));
        assert_eq!(exchange.next().await, None, "the watch has ended");
    }
}

#[tokio::test]
async fn frame_without_a_line_feed_is_ended_by_its_stream() {
    let server = Server::start().await;
    let (client, _watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    let (mut send, mut recv) = timeout(PATIENCE, session(&client).open_bi()).await.unwrap().unwrap();
    send.write_all(br#"{"type":"ping"}"#).await.unwrap();
    send.finish().unwrap();
    let answer = timeout(PATIENCE, recv.read_to_end(1000)).await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["type"], "pong");
}

/// The cap is four streams: each exchange that is given up makes room for the next.
#[tokio::test]
async fn exchange_that_is_not_read_any_longer_gives_its_stream_back() {
    let server = Server::with(|config| config.sessions.active_per_user = 10).await;
    let (mut client, mut watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    for _ in 0..8 {
        let mut exchange = client.say("count to 1000").await;
        let accepted = exchange.next().await.expect("accepted");
        halves(&mut exchange).1.stop(0).unwrap();
        watch.send(json!({"type": "stop", "id": id(), "turn_id": accepted["turn_id"]})).await;
    }
    let (text, last) = client.say("count to 2").await.reply().await;
    assert_eq!((last["state"].as_str(), last["length"].as_u64()), (Some("complete"), u64::try_from(text.len()).ok()));
}

/// Firefox discards what it has not read of a stream on which it is told to send no more.
#[tokio::test]
async fn client_that_does_not_end_its_half_is_asked_to_once_it_was_answered() {
    let server = Server::start().await;
    let (client, _watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    // More than the cap: each is given back.
    for _ in 0..8 {
        let (mut send, mut recv) = timeout(PATIENCE, session(&client).open_bi()).await.unwrap().unwrap();
        let message = json!({"type": "user_message", "id": id(), "content": "count to 3"});
        send.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        let answer = async {
            tokio::select! {
                biased;
                told = send.stopped() => panic!("told {told:?} before it has read the answer"),
                answer = recv.read_to_end(100_000) => answer.unwrap(),
            }
        };
        let answer = String::from_utf8(timeout(PATIENCE, answer).await.unwrap()).unwrap();
        assert!(answer.lines().last().unwrap().contains("\"complete\""), "{answer}");
        assert_eq!(timeout(PATIENCE, send.stopped()).await.unwrap().unwrap(), Some(0));
    }
}
