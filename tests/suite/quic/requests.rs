use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use h3::ext::Protocol;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::site::{Site, Start, read_body, response};
use crate::harness::client::PATIENCE;

fn serving(app: Router) -> Site {
    Start { app, ..Start::default() }.site()
}

fn request(site: &Site, method: Method, path: &str) -> http::Request<()> {
    http::Request::builder().method(method).uri(site.url(path).as_str()).body(()).unwrap()
}

fn plain() -> Router {
    Router::new().route("/", get(|| async { "hello" })).route("/echo", post(|body: Bytes| async move { body })).route(
        "/seen",
        get(|ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| async move {
            assert_eq!(request.version(), Version::HTTP_3);
            format!("{} {}", peer.ip(), request.headers()["host"].to_str().unwrap())
        }),
    )
}

#[tokio::test]
async fn requests_and_bodies_go_through() {
    let site = serving(plain());
    let mut client = site.http3().await;
    let (parts, body) = client.fetch(request(&site, Method::GET, "/")).await;
    assert_eq!(
        (parts.status, &body[..], &parts.headers["content-length"]),
        (StatusCode::OK, &b"hello"[..], &"5".parse().unwrap())
    );
    let (_, body) = client.fetch(request(&site, Method::GET, "/seen")).await;
    assert_eq!(body, format!("127.0.0.1 {}", site.address));
    let (parts, body) = client.fetch(request(&site, Method::GET, "/absent")).await;
    assert_eq!((parts.status, body.len()), (StatusCode::NOT_FOUND, 0));

    let upload = Bytes::from(vec![7; 300_000]);
    let mut stream = client.send(request(&site, Method::POST, "/echo")).await;
    stream.send_data(upload.clone()).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(response(&mut stream).await.status(), StatusCode::OK);
    assert_eq!(read_body(&mut stream).await.unwrap(), upload);
}

#[tokio::test]
async fn head_has_headers_and_no_body() {
    let site = serving(plain());
    let (parts, body) = site.http3().await.fetch(request(&site, Method::HEAD, "/")).await;
    assert_eq!(
        (parts.status, &parts.headers["content-length"], body.len()),
        (StatusCode::OK, &"5".parse().unwrap(), 0)
    );
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    let talk = |request: Request| async move {
        let frames = request.into_body().into_data_stream();
        let frames = frames.map(|data| data.map(http_body::Frame::data));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        let end = stream::iter([Ok(http_body::Frame::trailers(trailers))]);
        Response::new(Body::new(StreamBody::new(frames.chain(end))))
    };
    let site = serving(Router::new().route("/talk", post(talk)));
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::POST, "/talk")).await;
    for piece in ["one", "two"] {
        stream.send_data(Bytes::from(piece)).await.unwrap();
        if piece == "one" {
            assert_eq!(response(&mut stream).await.status(), StatusCode::OK);
        }
        let mut data = timeout(PATIENCE, stream.recv_data()).await.expect("piece in time").unwrap().unwrap();
        assert_eq!(bytes::Buf::copy_to_bytes(&mut data, 3), piece);
    }
    stream.finish().await.unwrap();
    assert!(stream.recv_data().await.unwrap().is_none());
    assert_eq!(stream.recv_trailers().await.unwrap().unwrap()["x-sum"], "42");
}

/// Half a response must not look like a whole one.
#[tokio::test]
async fn response_that_breaks_off_is_reset() {
    let fail = Arc::new(Notify::new());
    let broken = {
        let fail = Arc::clone(&fail);
        move || async move {
            let failure = async move {
                fail.notified().await;
                Err(std::io::Error::other("gone"))
            };
            let half = stream::iter([Ok(Bytes::from_static(b"half"))]);
            Response::new(Body::from_stream(half.chain(stream::once(failure))))
        }
    };
    let site = serving(Router::new().route("/", get(broken)));
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::GET, "/")).await;
    stream.finish().await.unwrap();
    assert_eq!(response(&mut stream).await.status(), StatusCode::OK);
    let half = timeout(PATIENCE, stream.recv_data()).await.expect("in time").unwrap();
    assert_eq!(half.map(|data| bytes::Buf::remaining(&data)), Some(4));
    fail.notify_one();
    let error = read_body(&mut stream).await.unwrap_err();
    assert!(matches!(error, h3::error::StreamError::RemoteTerminate { .. }), "got {error:?}");
}

#[tokio::test]
async fn request_is_cancelled_when_the_client_gives_up() {
    struct Told(mpsc::Sender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.try_send(()).unwrap_or_default();
        }
    }
    let (begun, mut begins) = mpsc::channel(1);
    let (ended, mut ends) = mpsc::channel(1);
    let told = Arc::new((begun, ended));
    let wait = move || {
        let told = Arc::clone(&told);
        async move {
            let _told = Told(told.1.clone());
            told.0.send(()).await.unwrap();
            std::future::pending::<()>().await;
        }
    };
    let site = serving(Router::new().route("/", get(wait)));
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::GET, "/")).await;
    stream.finish().await.unwrap();
    timeout(PATIENCE, begins.recv()).await.expect("begins").unwrap();
    stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
    timeout(PATIENCE, ends.recv()).await.expect("ends").unwrap();
    let (_, body) = client.fetch(request(&site, Method::POST, "/")).await;
    assert_eq!(body.len(), 0);
}

#[tokio::test]
async fn large_header_section_is_refused_and_no_other_request_with_it() {
    let site = serving(plain());
    let mut client = site.http3().await;
    let mut large = request(&site, Method::GET, "/");
    large.headers_mut().insert("x-large", "x".repeat(17_000).parse().unwrap());
    let mut stream = client.send(large).await;
    assert_eq!(response(&mut stream).await.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let (parts, _) = client.fetch(request(&site, Method::GET, "/")).await;
    assert_eq!(parts.status, StatusCode::OK);
}

/// h3 would keep such a frame in memory until it is whole.
#[tokio::test]
async fn endless_header_frame_ends_its_request() {
    let site = serving(plain());
    let mut client = site.http3().await;
    client.fetch(request(&site, Method::GET, "/")).await;
    let (mut send, _recv) = client.quic_conn.open_bi().await.unwrap();
    send.write_all(&[0x01, 0xbf, 0xff, 0xff, 0xff, 0x00]).await.unwrap();
    let stopped = timeout(PATIENCE, send.stopped()).await.expect("stopped in time");
    assert_eq!(stopped, Ok(Some(quinn::VarInt::from_u32(0x107))));
    let (parts, _) = client.fetch(request(&site, Method::GET, "/")).await;
    assert_eq!(parts.status, StatusCode::OK);
}

#[tokio::test]
async fn ordinary_request_first_gives_ordinary_credit_and_no_session() {
    let site = serving(plain());
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::POST, "/echo")).await;
    stream.finish().await.unwrap();
    assert_eq!(response(&mut stream).await.status(), StatusCode::OK);

    let mut connect = request(&site, Method::CONNECT, "/chatbox/wt");
    connect.extensions_mut().insert(Protocol::WEB_TRANSPORT);
    let mut refused = client.send(connect).await;
    assert_eq!(response(&mut refused).await.status(), StatusCode::MISDIRECTED_REQUEST);

    let mut open = Vec::new();
    for _ in 0..90 {
        open.push(client.send(request(&site, Method::POST, "/echo")).await);
    }
    assert_eq!(open.len(), 90);
}

// checklist 13, 43
#[tokio::test]
async fn panic_of_a_handler_is_contained() {
    async fn fail() -> &'static str {
        panic!("as intended")
    }
    let site = serving(Router::new().route("/fail", get(fail)).route("/", get(|| async { "hello" })));
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::GET, "/fail")).await;
    stream.finish().await.unwrap();
    let failed = timeout(PATIENCE, stream.recv_response()).await.expect("reset in time");
    assert!(matches!(failed, Err(h3::error::StreamError::RemoteTerminate { .. })), "got {failed:?}");
    let (_, body) = client.fetch(request(&site, Method::GET, "/")).await;
    assert_eq!(body, "hello");
    assert_eq!(site.metrics.panics_total.get(), 1);
}

#[tokio::test]
async fn stalled_upload_does_not_stop_other_requests() {
    let site = serving(plain());
    let mut client = site.http3().await;
    let mut stalled = client.send(request(&site, Method::POST, "/echo")).await;
    stalled.send_data(Bytes::from_static(b"half")).await.unwrap();
    let other = client.fetch(request(&site, Method::GET, "/"));
    // Sooner than the server gives up on the other one.
    let (_, body) = timeout(Duration::from_secs(25), other).await.expect("in time");
    assert_eq!(body, "hello");
    stalled.finish().await.unwrap();
    assert_eq!(read_after_response(&mut stalled).await, "half");
}

async fn read_after_response(stream: &mut super::site::ClientStream) -> Bytes {
    assert_eq!(response(stream).await.status(), StatusCode::OK);
    read_body(stream).await.unwrap()
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_handler() {
    let read = |request: Request| async move {
        let body = request.into_body().collect().await.unwrap();
        body.trailers().and_then(|trailers| trailers.get("x-end").cloned()).unwrap().to_str().unwrap().to_owned()
    };
    let site = serving(Router::new().route("/", post(read)));
    // The connection closes with its last handle.
    let mut client = site.http3().await;
    let mut stream = client.send(request(&site, Method::POST, "/")).await;
    stream.send_data(Bytes::from_static(b"data")).await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", "yes".parse().unwrap());
    stream.send_trailers(trailers).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(read_after_response(&mut stream).await, "yes");
}
