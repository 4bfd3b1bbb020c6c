use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use http::{Method, Request, StatusCode};
use tokio::{
    net::UdpSocket,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use super::site::{Site, Start, ask, response};
use crate::harness::{client::PATIENCE, stopwatch::Stopwatch};

/// Passes datagrams on between one client and the server of the moment, as the network does when a server is
/// killed and started again on its address.
struct Relay {
    address: SocketAddr,
    server: watch::Sender<SocketAddr>,
    task: JoinHandle<()>,
}

impl Relay {
    async fn start(first: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (server, current) = watch::channel(first);
        let task = tokio::spawn(async move {
            let (mut client, mut buffer) = (None, vec![0; 2048]);
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let server = *current.borrow();
                let to = if from == server { client } else { Some(server) };
                if client.is_none() {
                    client = Some(from);
                }
                // What a server sends after it was replaced is lost.
                if let Some(to) = to.filter(|_| from == server || Some(from) == client) {
                    socket.send_to(&buffer[..length], to).await.unwrap();
                }
            }
        });
        Self { address, server, task }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client learns at once that its server was killed and restarted; without the common secret it would wait for
/// the idle timeout.
#[tokio::test]
async fn restarted_server_resets_the_connections_it_lost() {
    let killed = Site::start();
    let relay = Relay::start(killed.address).await;
    let quic_conn = killed.quic_conn_at(relay.address).await.unwrap();
    // The first byte of SETTINGS: the handshake is done on both sides.
    quic_conn.accept_uni().await.unwrap().read_exact(&mut [0]).await.unwrap();

    let restarted = Site::start();
    relay.server.send(restarted.address).unwrap();
    let asked = Stopwatch::start();
    let (mut send, _recv) = quic_conn.open_bi().await.unwrap();
    drop(send.write_all(&[b'x'; 500]).await);
    let closed = timeout(PATIENCE, quic_conn.closed()).await.expect("reset in time");
    assert_eq!(closed, quinn::ConnectionError::Reset);
    let took = asked.elapsed();
    println!("reset after {took:?}");
    assert!(took < Duration::from_secs(10), "took {took:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let site = Start { connections_max: 4, ..Start::default() }.site();
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(site.session().await);
    }
    let refused = site.quic_conn().await.unwrap_err();
    let quinn::ConnectionError::ConnectionClosed(close) = &refused else { panic!("got {refused:?}") };
    assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
    assert_eq!(site.refused("quic_connections"), 1);
    assert_eq!(site.metrics.quic_connections_open.get(), 4);
}

/// With fewer than four places, none is for a client whose address is not proven.
#[tokio::test]
async fn client_proves_its_address_when_room_is_short() {
    let site = Start { connections_max: 3, ..Start::default() }.site();
    assert_eq!(ask(&site.session().await, "hello").await, "hello");
    assert_eq!(site.refused("address_unproven"), 1);
}

#[tokio::test]
async fn drain_lets_sessions_go_on_and_new_clients_go_elsewhere() {
    let mut site = Site::start();
    let session = site.session().await;
    ask(&session, "hello").await;
    site.lifecycle.drain();
    let refused = site.quic_conn().await.unwrap_err();
    let quinn::ConnectionError::ConnectionClosed(close) = &refused else { panic!("got {refused:?}") };
    assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
    assert_eq!(site.refused("draining"), 1);
    assert_eq!(ask(&session, "still here").await, "still here");
    session.close(0, b"");
    assert_eq!(site.told().await, "closed 0 ");
    site.ended().await;
}

#[tokio::test]
async fn drain_finishes_requests_that_run() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
        move || async move {
            begun.notify_one();
            go.notified().await;
            "done"
        }
    };
    let app = Router::new().route("/", get(handler));
    let mut site = Start { app, ..Start::default() }.site();
    let mut client = site.http3().await;
    let request = Request::builder().method(Method::GET).uri(site.url("/").as_str()).body(()).unwrap();
    let mut stream = client.send(request).await;
    stream.finish().await.unwrap();
    timeout(PATIENCE, begun.notified()).await.expect("request runs");
    site.lifecycle.drain();
    go.notify_one();
    assert_eq!(response(&mut stream).await.status(), StatusCode::OK);
    assert_eq!(super::site::read_body(&mut stream).await.unwrap(), "done");
    site.ended().await;
}

#[tokio::test]
async fn stop_ends_idle_connections_at_once() {
    let mut site = Site::start();
    let client = site.http3().await;
    site.lifecycle.stop();
    let closed = timeout(PATIENCE, client.quic_conn.closed()).await.expect("close in time");
    let quinn::ConnectionError::ApplicationClosed(close) = &closed else { panic!("got {closed:?}") };
    assert_eq!(close.error_code.into_inner(), 0x100);
    site.ended().await;
}
