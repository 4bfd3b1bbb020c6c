//! Identity on a live connection: it ends with its token, and `auth` renews it.

use std::time::Duration;

use chatbox::{auth::Role, connection::ATTACH_DEADLINE};
use serde_json::json;

use crate::harness::{Client, Server, Via, id, over_both, stopwatch::Stopwatch};

over_both! {
    connection_that_does_not_attach_is_closed,
    connection_ends_with_its_token,
    renewed_token_keeps_the_connection,
    token_of_another_user_does_not_renew,
    expired_token_does_not_renew,
    connections_of_one_user_are_limited,
}

/// Long enough to attach with, although the machine may stand still for seconds.
const SHORT: Duration = Duration::from_secs(8);

async fn connection_that_does_not_attach_is_closed(via: Via) {
    let server = Server::start().await;
    let (asked, watch) = (std::time::Instant::now(), Stopwatch::start());
    let client = Client::open(&server, via).await;
    assert_eq!(client.closed().await, 1);
    println!("closed after {:?}", asked.elapsed());
    assert!(asked.elapsed() >= ATTACH_DEADLINE, "closed after {:?}", asked.elapsed());
    assert!(watch.elapsed() < ATTACH_DEADLINE * 3, "closed after {:?}", watch.elapsed());
}

// checklist W25
async fn connection_ends_with_its_token(via: Via) {
    let server = Server::start().await;
    let token = server.token_for("ann", Role::User, SHORT);
    let (client, watch, _status) = Client::attached(&server, via, "ann", json!({"token": token})).await;
    assert_eq!(client.closed().await, 2);
    drop(watch);
}

// checklist W25
async fn renewed_token_keeps_the_connection(via: Via) {
    let server = Server::start().await;
    let token = server.token_for("ann", Role::User, SHORT);
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({"token": token})).await;
    let (brief, _brief_watch, _status) = Client::attached(&server, via, "ann", json!({"token": token})).await;
    let request = id();
    watch.send(json!({"type": "auth", "id": request, "token": server.token("ann")})).await;
    let status = watch.until("connection_status").await;
    assert_eq!((&status["re"], &status["user_id"]), (&json!(request), &json!("ann")));
    assert_eq!(brief.closed().await, 2, "the first token has ended by now");
    let (_text, last) = client.say("count to 2").await.reply().await;
    assert_eq!(last["state"], "complete");
}

async fn token_of_another_user_does_not_renew(via: Via) {
    let server = Server::start().await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    watch.send(json!({"type": "auth", "id": id(), "token": server.token("bob")})).await;
    assert_eq!(watch.until("error").await["error"]["code"], "INSUFFICIENT_PERMISSIONS");
    assert_eq!(client.say("count to 2").await.reply().await.1["state"], "complete", "the old identity stays");
}

async fn expired_token_does_not_renew(via: Via) {
    let server = Server::start().await;
    let (_client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    watch.send(json!({"type": "auth", "id": id(), "token": server.expired_token("ann")})).await;
    assert_eq!(watch.until("error").await["error"]["code"], "EXPIRED_TOKEN");
    watch.send(json!({"type": "ping", "id": id()})).await;
    assert_eq!(watch.next().await.unwrap()["type"], "pong");
}

// checklist W24
async fn connections_of_one_user_are_limited(via: Via) {
    let server = Server::with(|config| config.limits.connections_per_user = 2).await;
    let (first, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let (_second, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut third = Client::open(&server, via).await;
    let attach = json!({"type": "attach", "id": id(), "token": server.token("ann")});
    let mut exchange = third.exchange(attach.clone()).await;
    assert_eq!(exchange.next().await.unwrap()["error"]["code"], "CONNECTION_LIMIT_EXCEEDED");
    assert_eq!(third.closed().await, 6);
    first.leave(&server).await;
    let (_fourth, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
}
