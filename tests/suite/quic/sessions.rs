use std::time::{Duration, Instant};

use bytes::Bytes;
use h3::ext::Protocol;
use http::{Method, Request, StatusCode};
use tokio::time::timeout;
use web_transport_quinn::{ReadError, SessionError, WebTransportError, WriteError};

use super::site::{MOMENT, ORIGIN, Site, TOO_MANY, ask, response};
use crate::harness::{ALONE, client::PATIENCE, lossy::Lossy, stopwatch::Stopwatch};

fn connect(site: &Site, path: &str) -> Request<()> {
    let mut request = Request::builder().method(Method::CONNECT).uri(site.url(path).as_str()).body(()).unwrap();
    request.extensions_mut().insert(Protocol::WEB_TRANSPORT);
    request
}

fn with(mut request: Request<()>, name: &'static str, value: &str) -> Request<()> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

/// Browsers look for exactly these: what h3 writes for draft 02, and `WT_MAX_SESSIONS` of draft 07 for Safari.
#[tokio::test]
async fn settings_are_these_bytes() {
    let site = Site::start();
    let quic_conn = site.quic_conn().await.unwrap();
    let expected: &[u8] = &[
        0x00, 0x04, 0x1c, // control stream, SETTINGS, length
        0x06, 0x80, 0x00, 0x40, 0x00, // MAX_FIELD_SECTION_SIZE = 16384
        0x08, 0x01, // ENABLE_CONNECT_PROTOCOL = 1
        0xab, 0x60, 0x37, 0x42, 0x01, // ENABLE_WEBTRANSPORT = 1 (draft 02)
        0x33, 0x01, // H3_DATAGRAM = 1
        0xab, 0x60, 0x37, 0x43, 0x01, // WEBTRANSPORT_MAX_SESSIONS = 1 (draft 02 to 06)
        0xc0, 0x00, 0x00, 0x00, 0xc6, 0x71, 0x70, 0x6a, 0x01, // WT_MAX_SESSIONS = 1 (draft 07)
    ];
    let control = async {
        loop {
            let mut stream = quic_conn.accept_uni().await.unwrap();
            let mut first = [0];
            stream.read_exact(&mut first).await.unwrap();
            if first == [0] {
                let mut rest = vec![0; expected.len() - 1];
                stream.read_exact(&mut rest).await.unwrap();
                return [&first[..], &rest].concat();
            }
        }
    };
    let written = timeout(PATIENCE, control).await.expect("SETTINGS before any request");
    assert_eq!(Bytes::from(written), Bytes::from_static(expected));
}

/// The client's next flight, with which its CONNECT could come, never arrives.
#[tokio::test]
async fn settings_come_with_the_first_flight() {
    let site = Site::start();
    let path = Lossy::to(site.address).await;
    path.mute();
    let quic_conn = site.quic_conn_at(path.address).await.unwrap();
    let mut stream = timeout(PATIENCE, quic_conn.accept_uni()).await.expect("the control stream").unwrap();
    let mut first = [0; 3];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.expect("SETTINGS").unwrap();
    assert_eq!(first, [0x00, 0x04, 0x1c]);
    assert_eq!(site.metrics.quic_connections_open.get(), 0, "the client has not shown its keys yet");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_is_open_after_two_round_trips() {
    let _alone = ALONE.acquire().await.unwrap();
    let site = Site::start();
    let path = Lossy::to(site.address).await;
    let one_way = Duration::from_millis(300);
    path.delay(one_way);
    let (began, watch) = (Instant::now(), Stopwatch::start());
    let session = site.session_at(path.address).await;
    let (took, worked) = (began.elapsed(), watch.elapsed());
    println!("a session is open after {took:?} at {one_way:?} one way");
    assert!(took >= one_way * 4 && worked < one_way * 6, "took {took:?}, of which {worked:?} were the machine's");
    assert_eq!(ask(&session, "hello").await, "hello");
}

#[tokio::test]
async fn stream_is_answered() {
    let site = Site::start();
    let session = site.session().await;
    assert_eq!(ask(&session, "hello").await, "hello");
    assert_eq!(ask(&session, "again").await, "again");
}

/// The windows are far smaller than a frame may be.
#[tokio::test]
async fn large_frames_flow_both_ways() {
    let site = Site::start();
    let session = site.session().await;
    let large = "x".repeat(1 << 20);
    assert_eq!(ask(&session, &large).await.len(), large.len());
}

// checklist 10
#[tokio::test]
async fn only_welcome_clients_get_a_session() {
    let site = Site::start();
    for (request, status) in [
        (connect(&site, "/chatbox/wt"), StatusCode::OK),
        (connect(&site, "/chatbox/wt?x=1"), StatusCode::OK),
        (connect(&site, "/elsewhere"), StatusCode::NOT_FOUND),
        (with(connect(&site, "/chatbox/wt"), "origin", ORIGIN), StatusCode::OK),
        (with(connect(&site, "/chatbox/wt"), "origin", "https://evil.example"), StatusCode::FORBIDDEN),
        (with(connect(&site, "/chatbox/wt"), "authorization", "Bearer token"), StatusCode::OK),
        (
            with(connect(&site, "/chatbox/wt"), "authorization", &format!("Bearer {TOO_MANY}")),
            StatusCode::TOO_MANY_REQUESTS,
        ),
    ] {
        let mut client = site.http3().await;
        let mut stream = client.send(request).await;
        let response = response(&mut stream).await;
        assert_eq!(response.status(), status);
        let draft = response.headers().get("sec-webtransport-http3-draft");
        assert_eq!(draft.is_some_and(|draft| draft == "draft02"), status == StatusCode::OK);
    }
    assert_eq!((site.refused("connect_path"), site.refused("origin")), (1, 1));
}

#[tokio::test]
async fn refused_connect_can_be_tried_again() {
    let site = Site::start();
    let mut client = site.http3().await;
    for (path, status) in [("/elsewhere", StatusCode::NOT_FOUND), ("/chatbox/wt", StatusCode::OK)] {
        let mut stream = client.send(connect(&site, path)).await;
        assert_eq!(response(&mut stream).await.status(), status);
    }
}

#[tokio::test]
async fn second_connect_is_misdirected() {
    let site = Site::start();
    let mut client = site.http3().await;
    let mut first = client.send(connect(&site, "/chatbox/wt")).await;
    assert_eq!(response(&mut first).await.status(), StatusCode::OK);
    let mut second = client.send(connect(&site, "/chatbox/wt")).await;
    assert_eq!(response(&mut second).await.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn one_stream_beside_the_connect_until_credit_is_raised() {
    let mut site = Site::start();
    let session = site.session().await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    assert!(timeout(MOMENT, session.open_bi()).await.is_err(), "a second stream must wait for credit");
    send.write_all(b"raise 3").await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_to_end(100).await.unwrap(), b"raise 3");
    three_streams_and_no_fourth(&session, &mut site).await;
    assert_eq!(ask(&session, "credit is back").await, "credit is back");
}

/// Holds all the streams that there is credit for, and lets them go.
async fn three_streams_and_no_fourth(session: &web_transport_quinn::Session, site: &mut Site) {
    let mut held = Vec::new();
    for _ in 0..3 {
        let (mut send, recv) = timeout(PATIENCE, session.open_bi()).await.expect("credit").unwrap();
        send.write_all(b"hold").await.unwrap();
        send.finish().unwrap();
        held.push(recv);
    }
    assert!(timeout(MOMENT, session.open_bi()).await.is_err(), "a fourth stream must wait for credit");
    for mut recv in held {
        recv.stop(9).unwrap();
        assert_eq!(site.told().await, "stopped Some(Ended(Some(9)))");
    }
}

/// In a packet of its own it would be acknowledged by another one.
#[tokio::test]
async fn credit_comes_back_with_the_end_of_the_answer_and_not_twice() {
    const ASKED: u64 = 10;
    let mut site = Site::start();
    let session = site.session().await;
    assert_eq!(ask(&session, "raise 3").await, "raise 3");
    // What is discovered about the path takes packets too.
    assert!(timeout(MOMENT, session.closed()).await.is_err(), "the session stays open");
    let received = || quinn::Connection::stats(&session).udp_rx.datagrams;
    let before = received();
    for _ in 0..ASKED {
        assert_eq!(ask(&session, "hello").await, "hello");
        // Longer than an acknowledgement may be delayed.
        assert!(timeout(Duration::from_millis(60), session.closed()).await.is_err(), "the session stays open");
    }
    let packets = received() - before;
    assert!((ASKED..ASKED * 3 / 2).contains(&packets), "{packets} packets for {ASKED} answers");
    three_streams_and_no_fourth(&session, &mut site).await;
}

/// hyperium/h3 issue 348: one such stream would stop all that come later.
#[tokio::test]
async fn half_written_header_disturbs_no_other_stream() {
    let site = Site::start();
    let session = site.session().await;
    ask(&session, "raise 4").await;
    let (mut stuck, _recv) = quinn::Connection::open_bi(&session).await.unwrap();
    stuck.write_all(&[0x40]).await.unwrap();
    let (mut broken, _recv) = quinn::Connection::open_bi(&session).await.unwrap();
    broken.write_all(&[0x40, 0x41, 0x80]).await.unwrap();
    broken.finish().unwrap();
    for _ in 0..5 {
        assert_eq!(ask(&session, "hello").await, "hello");
    }
    let broken = site.metrics.streams_broken_total.with_label_values(&["header_incomplete"]).get();
    assert_eq!(broken, 1);
}

#[tokio::test]
async fn stream_of_an_unknown_session_is_rejected() {
    let site = Site::start();
    let session = site.session().await;
    let (mut send, mut recv) = quinn::Connection::open_bi(&session).await.unwrap();
    send.write_all(&[0x40, 0x41, 0x41, 0x00]).await.unwrap();
    let read = timeout(PATIENCE, recv.read_to_end(10)).await.expect("reset in time");
    let rejected = quinn::VarInt::from_u64(0x3994_bd84).unwrap();
    assert_eq!(read, Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(rejected))));
    assert_eq!(send.stopped().await, Ok(Some(rejected)));
}

#[tokio::test]
async fn stream_that_comes_before_its_connect_is_served() {
    let site = Site::start();
    let mut client = site.http3().await;
    let mut stream = client.quic_conn.open_bi().await.unwrap();
    stream.0.write_all(&[0x40, 0x41, 0x04, b'h', b'i']).await.unwrap();
    stream.0.finish().unwrap();
    let mut connected = client.send(connect(&site, "/chatbox/wt")).await;
    assert_eq!(connected.id().into_inner(), 4);
    assert_eq!(response(&mut connected).await.status(), StatusCode::OK);
    assert_eq!(timeout(PATIENCE, stream.1.read_to_end(10)).await.unwrap().unwrap(), b"hi");
}

#[tokio::test]
async fn unidirectional_streams_are_refused() {
    let site = Site::start();
    let session = site.session().await;
    for _ in 0..10 {
        let mut send = timeout(PATIENCE, session.open_uni()).await.expect("credit comes back").unwrap();
        send.write_all(b"hello").await.unwrap();
        assert_eq!(timeout(PATIENCE, send.stopped()).await.unwrap().unwrap(), Some(0));
    }
    assert_eq!(site.refused("unidirectional_stream"), 10);
}

#[tokio::test]
async fn client_closes_with_a_code() {
    let mut site = Site::start();
    let session = site.session().await;
    ask(&session, "hello").await;
    session.close(7, b"frame too large");
    assert_eq!(site.told().await, "closed 7 frame too large");
}

#[tokio::test]
async fn server_closes_with_a_code() {
    let site = Site::start();
    let session = site.session().await;
    let (mut send, _recv) = session.open_bi().await.unwrap();
    send.write_all(b"close 4 slow consumer").await.unwrap();
    send.finish().unwrap();
    match timeout(PATIENCE, session.closed()).await.expect("close in time") {
        SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
            assert_eq!((code, reason.as_str()), (4, "slow consumer"));
        }
        other => panic!("closed without a code: {other:?}"),
    }
}

#[tokio::test]
async fn client_that_finishes_its_side_has_closed() {
    let mut site = Site::start();
    let mut client = site.http3().await;
    let mut stream = client.send(connect(&site, "/chatbox/wt")).await;
    assert_eq!(response(&mut stream).await.status(), StatusCode::OK);
    stream.finish().await.unwrap();
    assert_eq!(site.told().await, "closed 0 ");
}

#[tokio::test]
async fn client_that_vanishes_is_lost() {
    let mut site = Site::start();
    let session = site.session().await;
    ask(&session, "hello").await;
    quinn::Connection::close(&session, 0x100_u32.into(), b"");
    assert_eq!(site.told().await, "lost");
}

#[tokio::test]
async fn codes_of_reset_and_stop_arrive_on_either_side() {
    let mut site = Site::start();
    let session = site.session().await;
    ask(&session, "raise 4").await;

    let (mut send, mut recv) = session.open_bi().await.unwrap();
    send.write_all(b"reset 77").await.unwrap();
    send.finish().unwrap();
    let reset = loop {
        match timeout(PATIENCE, recv.read_chunk(100, true)).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("finished instead of reset"),
            Err(error) => break error,
        }
    };
    assert!(matches!(reset, ReadError::Reset(77)), "got {reset:?}");

    let (mut stopped, _recv) = session.open_bi().await.unwrap();
    stopped.write_all(b"stop 31").await.unwrap();
    assert_eq!(timeout(PATIENCE, stopped.stopped()).await.unwrap().unwrap(), Some(31));
    let write = stopped.write_all(b"more").await.unwrap_err();
    assert!(matches!(write, WriteError::Stopped(31)), "got {write:?}");

    let (mut reset, _recv) = session.open_bi().await.unwrap();
    reset.write_all(b"unfinished").await.unwrap();
    // A reset drops what the server has not read, the stream's header too.
    assert_eq!(site.told().await, "reading");
    reset.reset(1_000_000).unwrap();
    assert_eq!(site.told().await, "read Ended(Some(1000000))");

    let (mut send, mut recv) = session.open_bi().await.unwrap();
    send.write_all(b"hold").await.unwrap();
    send.finish().unwrap();
    recv.stop(u32::MAX).unwrap();
    assert_eq!(site.told().await, format!("stopped Some(Ended(Some({})))", u32::MAX));
}
