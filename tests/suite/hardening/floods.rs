//! A client that sends as fast as it can: the work that it causes is bounded, and each of its requests is answered.

use std::{collections::HashMap, time::Duration};

use futures_util::{SinkExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Handle, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::harness::{
    Client, Server, Via,
    client::{Lines, PATIENCE},
    id, openai, over_both,
    provider::{Provider, Script},
};

over_both! {
    thousand_requests_of_each_type_are_each_answered_with_bounded_work,
}

const FLOOD: usize = 1000;

/// Tasks that one connection may have beside those of an idle server: its streams, its turns and what they ask.
const TASKS_MAX: usize = 64;

/// A request of each type that is answered, well-formed or not.
fn request(kind: &str) -> Value {
    let mut frame = json!({"type": kind, "id": id()});
    match kind {
        "user_message" => frame["content"] = json!("count to 1"),
        "stop" | "regenerate" => frame["turn_id"] = json!(id()),
        "model_select" => frame["model_id"] = json!("demo"),
        "feedback" => {
            frame["seq"] = json!(2);
            frame["metadata"] = json!({"rating": "up"});
        }
        "auth" => frame["token"] = json!("no.to.ken"),
        _ => {}
    }
    frame
}

const KINDS: [&str; 14] = [
    "attach",
    "detach",
    "auth",
    "user_message",
    "stop",
    "regenerate",
    "model_select",
    "help_request",
    "help_cancel",
    "typing_indicator",
    "feedback",
    "file_upload",
    "ping",
    "nonsense",
];

/// What counts as the answer to a request: the first frame that says what became of it.
fn answers(frame: &Value) -> bool {
    ["accepted", "error", "pong", "connection_status"].iter().any(|kind| frame["type"] == *kind)
}

/// checklist 44: the rates are those that users have unless configured. What is beyond them, or beyond the queue of a
/// socket, is told so; a client of streams waits for its credit instead.
async fn thousand_requests_of_each_type_are_each_answered_with_bounded_work(via: Via) {
    let server = Server::with(|config| {
        let defaults = chatbox::limit::Config::default();
        config.limits.messages_per_minute = defaults.messages_per_minute;
        config.limits.requests_per_minute = defaults.requests_per_minute;
    })
    .await;
    let idle = Handle::current().metrics().num_alive_tasks();
    for kind in KINDS {
        let requests = (0..FLOOD).map(|_| request(kind)).collect();
        let (told, tasks) = match via {
            Via::WebTransport => over_streams(&server, kind, requests).await,
            Via::WebSocket => over_a_socket(&server, kind, requests).await,
        };
        assert_eq!(told.values().sum::<usize>(), FLOOD, "{kind}: {told:?}");
        for answer in told.keys() {
            let known = ["accepted", "pong", "connection_status", "INVALID_FORMAT", "MISSING_FIELD", "NOT_FOUND"];
            let refused = ["TOO_MANY_REQUESTS", "TURN_NOT_FOUND", "INVALID_TOKEN"];
            assert!(known.iter().chain(&refused).any(|word| answer == word), "{kind}: {told:?}");
        }
        assert!(tasks <= idle + TASKS_MAX, "{kind}: {tasks} tasks, {idle} when idle");
    }
    assert_eq!(server.metrics.panics_total.get(), 0);
}

/// How often each answer came, and how many tasks there were at most.
type Told = (HashMap<String, usize>, usize);

fn count(told: &mut HashMap<String, usize>, answer: &Value) {
    let code = answer["error"]["code"].as_str().or(answer["type"].as_str());
    *told.entry(code.unwrap_or_default().to_owned()).or_default() += 1;
}

async fn over_streams(server: &Server, user: &str, requests: Vec<Value>) -> Told {
    let (client, mut watch, _status) = Client::attached(server, Via::WebTransport, user, json!({})).await;
    let Client::WebTransport(session) = &client else { panic!("not over WebTransport") };
    let asked = stream::iter(requests).map(|request| async move {
        let (mut send, recv) = session.open_bi().await.expect("stream credit");
        send.write_all(format!("{request}\n").as_bytes()).await.expect("stream open");
        send.finish().expect("stream open");
        let mut lines = Lines::Stream { send, recv, buffer: bytes::BytesMut::new() };
        let answer = lines.next().await.unwrap_or_else(|| panic!("no answer to {request}"));
        assert_eq!((&answer["re"], answers(&answer)), (&request["id"], true), "{answer}");
        while lines.next().await.is_some() {}
        answer
    });
    let (mut told, mut tasks) = (HashMap::new(), 0);
    // As many at a time as a client may have outstanding; the transport lets a few of them through.
    let mut asked = Box::pin(asked.buffer_unordered(100));
    while let Some(answer) = timeout(PATIENCE, asked.next()).await.expect("an answer in time") {
        count(&mut told, &answer);
        tasks = tasks.max(Handle::current().metrics().num_alive_tasks());
    }
    drop(asked);
    if !["attach", "detach"].contains(&user) {
        watch.send(json!({"type": "ping", "id": id()})).await;
        watch.until("pong").await;
    }
    client.leave(server).await;
    (told, tasks)
}

async fn over_a_socket(server: &Server, user: &str, requests: Vec<Value>) -> Told {
    let (mut send, mut receive) = socket(server, user).await.split();
    let ids: Vec<Value> = requests.iter().map(|request| request["id"].clone()).collect();
    let sent = async {
        for request in requests {
            send.send(Message::text(request.to_string())).await.expect("socket open");
        }
    };
    let read = async {
        let (mut told, mut tasks) = (HashMap::new(), 0);
        let mut open: std::collections::HashSet<Value> = ids.into_iter().collect();
        while !open.is_empty() {
            let message = timeout(PATIENCE, receive.next()).await.unwrap_or_else(|_| {
                panic!("{user}: {} requests have no answer, told {told:?}", open.len());
            });
            let Message::Text(text) = message.expect("socket open").expect("frame") else { continue };
            let frame: Value = serde_json::from_str(&text).expect("a message is one JSON object");
            if answers(&frame) && open.remove(&frame["re"]) {
                count(&mut told, &frame);
            }
            tasks = tasks.max(Handle::current().metrics().num_alive_tasks());
        }
        (told, tasks)
    };
    tokio::join!(sent, read).1
}

/// A socket that is attached, with the frames as they are.
async fn socket(server: &Server, user: &str) -> WebSocketStream<TcpStream> {
    let mut request = server.websocket_url().as_str().into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chatbox.v1".parse().unwrap());
    let stream = TcpStream::connect(server.url.socket_addrs(|| None).unwrap().as_slice()).await.expect("connect");
    let (mut socket, _response) = tokio_tungstenite::client_async(request, stream).await.expect("socket");
    let attach = json!({"type": "attach", "id": id(), "token": server.token(user)});
    socket.send(Message::text(attach.to_string())).await.unwrap();
    let status = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("frame");
    assert!(status.to_text().unwrap().contains("connection_status"), "{status}");
    socket
}

/// checklist 49: pieces that come in one burst share writes, and each message is a whole frame by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_of_a_burst_is_one_json_object() {
    let words: Vec<String> = (0..100).map(|nth| format!("{nth}\n{{\"type\":\"pong\"}}\n")).collect();
    let provider = Provider::start(Script::answer(words.iter().map(String::as_str))).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let mut socket = socket(&server, "ann").await;
    let ask = json!({"type": "user_message", "id": id(), "content": "all at once"});
    socket.send(Message::text(ask.to_string())).await.unwrap();
    let (mut text, mut pieces) = (String::new(), 0);
    loop {
        let message = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("frame");
        let Message::Text(message) = message else { continue };
        assert!(!message.contains('\n'), "one line, got {message}");
        let frame: Value = serde_json::from_str(&message).expect("one JSON object");
        if frame["type"] != "ai_response" {
            continue;
        }
        text.push_str(frame["content"].as_str().unwrap());
        pieces += 1;
        if frame["metadata"]["done"] == "true" {
            break;
        }
    }
    assert_eq!(text, words.concat());
    assert!(pieces > 10, "got {pieces} pieces");
}

/// checklist 17, 45: whatever bytes a client makes up, each frame of them gets one error and the connection lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_frames_get_one_error_each() {
    let server = Server::start().await;
    let mut socket = socket(&server, "ann").await;
    let made_up = (0..300_usize).map(|nth| {
        let whole = request(KINDS[nth % KINDS.len()]).to_string();
        let cut = whole.len() - 1 - nth % (whole.len() - 1);
        whole[..cut].to_owned()
    });
    for text in made_up {
        socket.send(Message::text(text.clone())).await.unwrap();
        let answer = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("frame");
        let frame: Value = serde_json::from_str(answer.to_text().unwrap()).expect("one JSON object");
        assert_eq!((&frame["type"], &frame["error"]["code"]), (&json!("error"), &json!("INVALID_FORMAT")), "{text}");
    }
    let silent = timeout(Duration::from_millis(150), socket.next()).await;
    assert!(silent.is_err(), "and nothing else");
    assert_eq!(server.metrics.entries_stored_total.get(), 0);
}
