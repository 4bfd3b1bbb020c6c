//! The driver against a real WebSocket client, with scripted exchanges and paused time.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio::{io::DuplexStream, sync::mpsc, task::JoinSet};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            Role,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};
use uuid::Uuid;

use super::*;
use crate::{chat::RequestId, protocol::ClientFrame};

const FRAME_BYTES_MAX: usize = 4096;
const STREAMS: u32 = 3;
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// A driver, its client, and what its exchanges were asked for.
struct Rig {
    client: WebSocketStream<DuplexStream>,
    driver: JoinSet<CloseCode>,
    over: Option<tokio::sync::oneshot::Sender<CloseCode>>,
    stop: tokio_util::sync::CancellationToken,
    metrics: Arc<Metrics>,
    asked: mpsc::Receiver<String>,
    /// Ends the exchanges of `hang` messages, one for each permit.
    release: Arc<tokio::sync::Semaphore>,
}

fn pong(re: Option<RequestId>) -> Encoded {
    Encoded::new(&ServerFrame::Pong { re })
}

/// Answers as a message's text says: `hang` is answered when it is released, `silent` ends then, `flood` is answered for
/// ever.
fn answer(content: &str, re: Option<RequestId>, release: Arc<tokio::sync::Semaphore>) -> Outcome {
    match content {
        "hang" => {
            let answers = stream::once(async move {
                release.acquire_owned().await.unwrap().forget();
                pong(re)
            });
            Outcome::Answers(answers.boxed())
        }
        "silent" => {
            let answers = stream::once(async move { release.acquire_owned().await.unwrap().forget() });
            Outcome::Answers(answers.filter_map(async |()| None).boxed())
        }
        "flood" => Outcome::Answers(stream::repeat(pong(re)).boxed()),
        "bye" => Outcome::Close(Some(pong(re)), CloseCode::TokenExpired),
        _ => Outcome::Answers(stream::iter([pong(re)]).boxed()),
    }
}

async fn rig(pipe_bytes: usize) -> Rig {
    let (near, far) = tokio::io::duplex(pipe_bytes);
    let client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let socket = Socket::new(far, Vec::new(), FRAME_BYTES_MAX);
    let (asks, asked) = mpsc::channel(1024);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let releases = Arc::clone(&release);
    let handle = move |request: Incoming| {
        let (asks, releases) = (asks.clone(), Arc::clone(&releases));
        async move {
            let Request { id, frame } = match request {
                Ok(request) => request,
                Err(rejection) => return answer("", rejection.re, releases),
            };
            match frame {
                ClientFrame::UserMessage(message) if message.content == "store" => {
                    asks.send("store".to_owned()).await.unwrap();
                    releases.acquire().await.unwrap().forget();
                    asks.send("start".to_owned()).await.unwrap();
                    answer("", id, releases)
                }
                ClientFrame::Attach(_) => {
                    asks.send("attach".to_owned()).await.unwrap();
                    let answers = stream::iter([pong(id)]).chain(stream::pending()).boxed();
                    Outcome::Watch { streams: STREAMS, answers }
                }
                ClientFrame::UserMessage(message) => {
                    asks.send(message.content.clone()).await.unwrap();
                    answer(&message.content, id, releases)
                }
                _ => answer("", id, releases),
            }
        }
        .boxed()
    };
    let metrics = Metrics::new();
    let limits = Limits { frame_bytes_max: FRAME_BYTES_MAX, write_timeout: WRITE_TIMEOUT };
    let driver = Box::new(Driver::new(socket, handle, Arc::clone(&metrics), limits));
    let (over, ends) = tokio::sync::oneshot::channel();
    let stop = tokio_util::sync::CancellationToken::new();
    let stopping = stop.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let over = async { ends.await.unwrap() };
        driver.run(over, stopping.cancelled_owned(), || Encoded::new(&ServerFrame::GoingAway { retry_after: 7 })).await
    });
    Rig { client, driver: tasks, over: Some(over), stop, metrics, asked, release }
}

async fn attached(pipe_bytes: usize) -> Rig {
    let mut rig = rig(pipe_bytes).await;
    let id = rig.send("attach", "").await;
    assert_eq!(rig.receive().await["re"], json!(id));
    rig
}

impl Rig {
    async fn send(&mut self, kind: &str, content: &str) -> Uuid {
        let id = Uuid::new_v4();
        let frame = json!({"type": kind, "id": id, "content": content});
        self.client.send(Message::text(frame.to_string())).await.unwrap();
        id
    }

    async fn receive(&mut self) -> Value {
        loop {
            match self.client.next().await.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("expected a frame, got {frame:?}"),
                _ => {}
            }
        }
    }

    /// Reads to the close frame; everything before it is thrown away.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.client.next().await.unwrap().unwrap() {
                Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
                Message::Close(None) => panic!("the close frame has no code"),
                _ => {}
            }
        }
    }

    async fn ended(&mut self) -> CloseCode {
        // Reads on, so that the closing handshake completes.
        while let Some(Ok(_)) = self.client.next().await {}
        self.driver.join_next().await.unwrap().unwrap()
    }
}

// checklist 42, 44
#[tokio::test(start_paused = true)]
async fn exchanges_beyond_the_cap_wait_in_order_and_a_ping_does_not() {
    let mut rig = attached(65536).await;
    let ids = [rig.send("user_message", "hang").await, rig.send("user_message", "hang").await];
    let last = rig.send("user_message", "quick").await;
    let ping = rig.send("ping", "").await;
    assert_eq!(rig.receive().await["re"], json!(ping));
    let mut asked = Vec::new();
    while let Ok(content) = rig.asked.try_recv() {
        asked.push(content);
    }
    assert_eq!(asked, ["attach", "hang", "hang"], "the watch and two exchanges take the three places");
    rig.release.add_permits(1);
    let first = rig.receive().await["re"].clone();
    assert!(ids.iter().any(|id| first == json!(id)), "got {first}, expected one of {ids:?}");
    assert_eq!(rig.receive().await["re"], json!(last));
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_ends_without_a_frame_makes_room_too() {
    let mut rig = attached(65536).await;
    rig.send("user_message", "silent").await;
    rig.send("user_message", "silent").await;
    let last = rig.send("user_message", "quick").await;
    let ping = rig.send("ping", "").await;
    assert_eq!(rig.receive().await["re"], json!(ping), "the two have all places");
    let began = Instant::now();
    rig.release.add_permits(1);
    assert_eq!(rig.receive().await["re"], json!(last));
    assert_eq!(began.elapsed(), Duration::ZERO, "it waited for something else to happen");
}

// checklist 44, 45
#[tokio::test(start_paused = true)]
async fn requests_beyond_the_queue_are_refused_each_with_its_own_error() {
    let mut rig = attached(65536).await;
    for _ in 0..2 + WAITING_MAX {
        rig.send("user_message", "hang").await;
    }
    for _ in 0..3 {
        let id = rig.send("user_message", "hang").await;
        let frame = rig.receive().await;
        assert_eq!(frame["re"], json!(id));
        assert_eq!(frame["error"]["code"], "TOO_MANY_REQUESTS");
        assert_eq!(frame["error"]["retry_after"], 1000);
    }
    rig.release.add_permits(100);
    for _ in 0..2 + WAITING_MAX {
        assert_eq!(rig.receive().await["type"], "pong");
    }
}

// checklist 44
#[tokio::test(start_paused = true)]
async fn waiting_requests_are_limited_in_bytes_too() {
    let mut rig = attached(65536).await;
    rig.send("user_message", "hang").await;
    rig.send("user_message", "hang").await;
    rig.send("user_message", &"x".repeat(3000)).await;
    let id = rig.send("user_message", &"y".repeat(3000)).await;
    let frame = rig.receive().await;
    assert_eq!((&frame["re"], &frame["error"]["code"]), (&json!(id), &json!("TOO_MANY_REQUESTS")));
}

#[tokio::test(start_paused = true)]
async fn nothing_but_the_attach_runs_before_it_succeeded() {
    let mut rig = rig(65536).await;
    let attach = rig.send("attach", "").await;
    let ping = rig.send("ping", "").await;
    assert_eq!(rig.receive().await["re"], json!(attach));
    assert_eq!(rig.receive().await["re"], json!(ping));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_attach_is_closed_after_five_seconds() {
    let mut rig = rig(65536).await;
    let start = Instant::now();
    assert_eq!(rig.closed().await, (4001, "unauthorized".to_owned()));
    assert_eq!(start.elapsed().as_secs(), 5);
    assert_eq!(rig.ended().await, CloseCode::Unauthorized);
}

// checklist 18
#[tokio::test(start_paused = true)]
async fn a_frame_that_is_too_large_gets_an_error_and_1009() {
    let mut rig = attached(65536).await;
    rig.client.send(Message::text("x".repeat(FRAME_BYTES_MAX + 1))).await.unwrap();
    assert_eq!(rig.receive().await["retry_after"], 7);
    assert_eq!(rig.closed().await.0, 1009);
    assert_eq!(rig.ended().await, CloseCode::FrameTooLarge);
}

// checklist 18
#[tokio::test(start_paused = true)]
async fn a_frame_of_exactly_the_limit_is_read() {
    let mut rig = attached(65536).await;
    let frame = json!({"type": "ping", "content": "x"}).to_string();
    let padded = format!("{frame}{}", " ".repeat(FRAME_BYTES_MAX - frame.len()));
    rig.client.send(Message::text(padded)).await.unwrap();
    assert_eq!(rig.receive().await["type"], "pong");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_text_in_utf8_closes_with_the_standard_code() {
    let invalid = Frame::message(Bytes::from_static(b"\xff\xfe"), OpCode::Data(Data::Text), true);
    for (message, code) in [(Message::Frame(invalid), 1007), (Message::binary(vec![1, 2, 3]), 1003)] {
        let mut rig = attached(65536).await;
        rig.client.send(message).await.unwrap();
        assert_eq!(rig.closed().await.0, code);
        assert_eq!(rig.ended().await, CloseCode::ProtocolError);
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_not_of_the_contract_is_answered_and_the_socket_lives() {
    let mut rig = attached(65536).await;
    rig.client.send(Message::text("{nonsense")).await.unwrap();
    assert_eq!(rig.receive().await["type"], "pong", "the handler answers rejections");
    let ping = rig.send("ping", "").await;
    assert_eq!(rig.receive().await["re"], json!(ping));
}

// checklist 51
#[tokio::test(start_paused = true)]
async fn an_idle_client_that_answers_pings_stays() {
    let mut rig = attached(65536).await;
    let start = Instant::now();
    for n in 1..=24 {
        let message = rig.client.next().await.unwrap().unwrap();
        assert_eq!(message, Message::Ping(Bytes::new()));
        assert_eq!(start.elapsed().as_secs(), 25 * n);
    }
    let ping = rig.send("ping", "").await;
    assert_eq!(rig.receive().await["re"], json!(ping));
}

/// checklist 42: longer than the idle time and the deadline of pongs together.
#[tokio::test(start_paused = true)]
async fn a_stream_of_ninety_seconds_keeps_the_socket_alive_and_read() {
    let mut rig = attached(65536).await;
    let start = Instant::now();
    let message = rig.send("user_message", "hang").await;
    for n in 1..=3 {
        assert_eq!(rig.client.next().await.unwrap().unwrap(), Message::Ping(Bytes::new()));
        assert_eq!(start.elapsed().as_secs(), 25 * n);
        let stop = rig.send("ping", "").await;
        assert_eq!(rig.receive().await["re"], json!(stop), "what is sent meanwhile is read and answered");
    }
    tokio::time::advance(Duration::from_secs(15)).await;
    rig.release.add_permits(1);
    assert_eq!(rig.receive().await["re"], json!(message));
    assert_eq!(start.elapsed().as_secs(), 90);
}

/// checklist 38, 39, 40, W22: whichever comes first decides, and the others find it decided.
#[tokio::test]
async fn closes_from_both_sides_and_the_stop_at_once_are_one_end() {
    for nth in 0..1000 {
        let mut rig = attached(4096).await;
        rig.send("user_message", "flood").await;
        assert_eq!(rig.receive().await["type"], "pong");
        let over = rig.over.take().unwrap();
        let (stop, mut client) = (rig.stop.clone(), rig.client);
        let pause = |turns: usize| async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        let server = async {
            pause(nth % 5).await;
            over.send(CloseCode::GoingAway).unwrap_or_default();
        };
        let stopped = async {
            pause(nth % 7 + 2).await;
            stop.cancel();
        };
        let leaves = async {
            pause(nth % 3).await;
            drop(client.close(None).await);
            while let Some(Ok(message)) = client.next().await {
                if let Message::Text(text) = message {
                    assert!(serde_json::from_str::<Value>(&text).is_ok(), "a frame is whole: {text}");
                }
            }
        };
        let (ended, (), (), ()) = tokio::join!(rig.driver.join_next(), server, stopped, leaves);
        let code = ended.unwrap().expect("no panic");
        assert!(matches!(code, CloseCode::GoingAway | CloseCode::Done), "{code:?} in round {nth}");
        assert_eq!(rig.metrics.panics_total.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_gone_after_a_minute() {
    let mut rig = attached(65536).await;
    let start = Instant::now();
    // The client does not read, so that it does not answer pings.
    assert_eq!(rig.driver.join_next().await.unwrap().unwrap(), CloseCode::Done);
    assert_eq!(start.elapsed().as_secs(), 60);
}

// checklist 51, W23
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_closed_as_slow() {
    let mut rig = attached(1024).await;
    rig.send("user_message", "flood").await;
    let start = Instant::now();
    assert_eq!(rig.driver.join_next().await.unwrap().unwrap(), CloseCode::SlowConsumer);
    let waited = start.elapsed() - CLOSE_DEADLINE;
    assert!((WRITE_TIMEOUT..WRITE_TIMEOUT + Duration::from_millis(10)).contains(&waited), "waited {waited:?}");
}

// checklist W19
#[tokio::test(start_paused = true)]
async fn a_request_is_handled_to_its_end_when_its_client_has_gone() {
    let mut rig = attached(65536).await;
    assert_eq!(rig.asked.recv().await.as_deref(), Some("attach"));
    rig.send("user_message", "store").await;
    assert_eq!(rig.asked.recv().await.as_deref(), Some("store"));
    let Rig { client, mut driver, mut asked, release, .. } = rig;
    drop(client);
    tokio::task::yield_now().await;
    release.add_permits(1);
    assert_eq!(asked.recv().await.as_deref(), Some("start"));
    assert_eq!(driver.join_next().await.unwrap().unwrap(), CloseCode::Done);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_every_frame_in_order() {
    let mut rig = attached(64).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(rig.send("user_message", "quick").await);
    }
    for id in ids {
        assert_eq!(rig.receive().await["re"], json!(id));
    }
}

// checklist 42, W23
#[tokio::test(start_paused = true)]
async fn a_flood_of_answers_does_not_keep_a_close_from_being_read() {
    let mut rig = attached(65536).await;
    rig.send("user_message", "flood").await;
    assert_eq!(rig.receive().await["type"], "pong");
    rig.client.close(None).await.unwrap();
    assert_eq!(rig.ended().await, CloseCode::Done);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_closes_writes_its_frame_first() {
    let mut rig = attached(65536).await;
    let id = rig.send("user_message", "bye").await;
    assert_eq!(rig.receive().await["re"], json!(id));
    assert_eq!(rig.closed().await, (4002, "token expired".to_owned()));
    assert_eq!(rig.ended().await, CloseCode::TokenExpired);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_connection_closes_the_socket() {
    let mut rig = attached(65536).await;
    rig.over.take().unwrap().send(CloseCode::GoingAway).unwrap();
    assert_eq!(rig.closed().await, (1001, "going away".to_owned()));
    assert_eq!(rig.ended().await, CloseCode::GoingAway);
}

// checklist 41
#[tokio::test(start_paused = true)]
async fn stopping_drops_the_socket_at_once() {
    let mut rig = attached(65536).await;
    let start = Instant::now();
    rig.stop.cancel();
    assert_eq!(rig.driver.join_next().await.unwrap().unwrap(), CloseCode::GoingAway);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

// checklist 49
#[tokio::test(start_paused = true)]
async fn ready_frames_share_one_write() {
    let mut rig = attached(65536).await;
    rig.send("user_message", "hang").await;
    rig.send("user_message", "hang").await;
    for _ in 0..3 {
        rig.asked.recv().await.unwrap();
    }
    rig.release.add_permits(2);
    let mut bytes = [0; 4096];
    let length = rig.client.get_mut().read(&mut bytes).await.unwrap();
    let frames = String::from_utf8_lossy(&bytes[..length]).matches("\"type\":\"pong\"").count();
    assert_eq!(frames, 2, "one read brings what was ready together");
}

#[tokio::test(start_paused = true)]
async fn of_pings_that_pile_up_the_latest_is_answered() {
    let mut rig = attached(256).await;
    for ping in 0..5000_u32 {
        rig.client.send(Message::Ping(ping.to_be_bytes().to_vec().into())).await.unwrap();
    }
    let mut pongs: Vec<u32> = Vec::new();
    while pongs.last() != Some(&4999) {
        match rig.client.next().await.unwrap().unwrap() {
            Message::Pong(payload) => pongs.push(u32::from_be_bytes(payload.as_ref().try_into().unwrap())),
            message => assert!(matches!(message, Message::Ping(_)), "got {message:?}"),
        }
    }
    assert!(pongs.is_sorted() && pongs.len() < 1000, "{} pongs waited", pongs.len());
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_whole_and_in_order_however_they_are_cut() {
    for pipe_bytes in [1, 7, 130, 65536] {
        let mut rig = attached(pipe_bytes).await;
        let Rig { client, asked, .. } = &mut rig;
        asked.recv().await.unwrap();
        let frame = |content: &str| json!({"type": "user_message", "content": content}).to_string();
        let contents = ["short".to_owned(), "ä".repeat(200), "z".repeat(3000), "after".to_owned()];
        let sent = async {
            for content in &contents[..2] {
                client.feed(Message::text(frame(content))).await.unwrap();
                client.feed(Message::Ping(Bytes::from_static(b"between"))).await.unwrap();
            }
            let long = frame(&contents[2]);
            let (begin, end) = long.split_at(1000);
            for (part, code, last) in [(begin, Data::Text, false), (end, Data::Continue, true)] {
                let part = Frame::message(part.to_owned(), OpCode::Data(code), last);
                client.feed(Message::Frame(part)).await.unwrap();
                client.feed(Message::Ping(Bytes::from_static(b"between"))).await.unwrap();
            }
            client.send(Message::text(frame(&contents[3]))).await.unwrap();
            let mut pongs = 0;
            while pongs < 4 {
                pongs += usize::from(matches!(client.next().await.unwrap().unwrap(), Message::Pong(_)));
            }
        };
        let read = async {
            for content in &contents {
                assert_eq!(asked.recv().await.as_ref(), Some(content), "with a pipe of {pipe_bytes} bytes");
            }
        };
        tokio::join!(sent, read);
    }
}
