//! A client of the written contract: JSON in, JSON out, over either transport. It shares no type with the server.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use bytes::{Buf, BytesMut};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::server::{Server, Target};

/// How long anything that must come may take: far longer than it takes, because the machine may be slow, or stand still
/// for seconds. What comes too late by itself is asserted where it is the point.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Which transport a test runs over. Every chat behaviour is tested over both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    WebTransport,
    WebSocket,
}

pub(crate) enum Client {
    WebTransport(Box<web_transport_quinn::Session>),
    WebSocket {
        requests: mpsc::Sender<(Value, Option<mpsc::Sender<Value>>)>,
        closed: oneshot::Receiver<u16>,
        task: JoinHandle<()>,
    },
}

/// The answers of one exchange, or the events of one watch.
pub(crate) enum Lines {
    Stream { send: web_transport_quinn::SendStream, recv: web_transport_quinn::RecvStream, buffer: BytesMut },
    Queue { frames: mpsc::Receiver<Value>, requests: mpsc::Sender<(Value, Option<mpsc::Sender<Value>>)> },
}

impl Client {
    /// Opens a connection that is not attached yet.
    pub(crate) async fn open(server: &Target, via: Via) -> Self {
        match via {
            Via::WebTransport => {
                let client = server.webtransport();
                let session = timeout(PATIENCE, client.connect(server.webtransport_url()));
                Self::WebTransport(Box::new(session.await.expect("session in time").expect("session")))
            }
            Via::WebSocket => {
                let mut request = server.websocket_url().as_str().into_client_request().unwrap();
                request.headers_mut().insert("sec-websocket-protocol", "chatbox.v1".parse().unwrap());
                let stream =
                    TcpStream::connect(server.url.socket_addrs(|| None).unwrap().as_slice()).await.expect("connect");
                let upgrade = timeout(PATIENCE, tokio_tungstenite::client_async(request, stream));
                let (socket, _response) = upgrade.await.expect("in time").expect("socket");
                Self::over_socket(socket)
            }
        }
    }

    pub(crate) fn over_socket(socket: WebSocketStream<TcpStream>) -> Self {
        let (requests, inbox) = mpsc::channel(64);
        let (closing, closed) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Some(code) = pump(socket, inbox).await {
                closing.send(code).unwrap_or_default();
            }
        });
        Self::WebSocket { requests, closed, task }
    }

    /// Opens, attaches as `user` with `fields` on top, and reads the status.
    pub(crate) async fn attached(server: &Target, via: Via, user: &str, fields: Value) -> (Self, Lines, Value) {
        let mut client = Self::open(server, via).await;
        let mut frame = json!({"type": "attach", "id": id(), "token": server.token(user)});
        merge(&mut frame, &fields);
        let mut watch = client.exchange(frame).await;
        let status = watch.next().await.expect("status");
        assert_eq!(status["type"], "connection_status", "{status}");
        (client, watch, status)
    }

    /// Sends a request on an exchange of its own. A frame without an `id` is answered on the default queue of a
    /// WebSocket, which is the first watch.
    pub(crate) async fn exchange(&mut self, frame: Value) -> Lines {
        self.try_exchange(frame).await.expect("stream")
    }

    /// The same; `None` when the connection is gone.
    pub(crate) async fn try_exchange(&mut self, frame: Value) -> Option<Lines> {
        match self {
            Self::WebTransport(session) => {
                let (mut send, recv) = timeout(PATIENCE, session.open_bi()).await.expect("stream credit").ok()?;
                send.write_all(format!("{frame}\n").as_bytes()).await.ok()?;
                if frame["type"] != "attach" {
                    send.finish().ok()?;
                }
                Some(Lines::Stream { send, recv, buffer: BytesMut::new() })
            }
            Self::WebSocket { requests, .. } => {
                let (answers, frames) = mpsc::channel(4096);
                requests.send((frame, Some(answers))).await.ok()?;
                Some(Lines::Queue { frames, requests: requests.clone() })
            }
        }
    }

    /// Sends a user message and returns its exchange, from `accepted` on.
    pub(crate) async fn say(&mut self, content: &str) -> Lines {
        self.exchange(json!({"type": "user_message", "id": id(), "content": content})).await
    }

    /// Waits for the end of the connection and returns the close code as WebTransport has it.
    pub(crate) async fn closed(self) -> u32 {
        match self {
            Self::WebTransport(session) => match timeout(PATIENCE, session.closed()).await.expect("close in time") {
                web_transport_quinn::SessionError::WebTransportError(
                    web_transport_quinn::WebTransportError::Closed(code, _reason),
                ) => code,
                other => panic!("closed without a code: {other}"),
            },
            Self::WebSocket { closed, .. } => {
                match timeout(PATIENCE, closed).await.expect("close in time").expect("close frame") {
                    1000 => 0,
                    1001 => 3,
                    1002 => 5,
                    1009 => 7,
                    code => u32::from(code) - 4000,
                }
            }
        }
    }

    /// The next copy of a frame that comes as a datagram; `None` when none comes within a moment. WebTransport only.
    pub(crate) async fn copy(&self, moment: Duration) -> Option<Value> {
        let Self::WebTransport(session) = self else { panic!("a socket has no datagrams") };
        let datagram = timeout(moment, session.read_datagram()).await.ok()?.expect("a session");
        Some(published(serde_json::from_slice(&datagram).expect("a copy is JSON")))
    }

    /// Sends bytes as the one frame of an exchange; WebTransport only.
    pub(crate) async fn raw(&mut self, frame: &[u8]) -> Lines {
        let Self::WebTransport(session) = self else { panic!("a socket has no streams") };
        let (mut send, recv) = session.open_bi().await.expect("stream");
        send.write_all(frame).await.expect("stream open");
        send.write_all(b"\n").await.expect("stream open");
        send.finish().expect("stream open");
        Lines::Stream { send, recv, buffer: BytesMut::new() }
    }

    /// Closes and waits until the server has noticed.
    pub(crate) async fn leave(self, server: &Server) {
        let open = server.open_connections();
        match self {
            Self::WebTransport(session) => session.close(0, b""),
            Self::WebSocket { task, .. } => task.abort(),
        }
        server.connections_fall_below(open).await;
    }

    /// Vanishes without a word, as a phone in a tunnel does.
    pub(crate) fn vanish(self) {
        match self {
            Self::WebTransport(session) => drop(session),
            Self::WebSocket { task, .. } => task.abort(),
        }
    }
}

impl Lines {
    /// The next frame; `None` when the server has finished.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        timeout(PATIENCE, self.read()).await.expect("a frame in time")
    }

    /// Whether the server stays silent for a moment.
    pub(crate) async fn silent(&mut self, moment: Duration) -> bool {
        timeout(moment, self.read()).await.is_err()
    }

    /// A frame that comes within a moment.
    pub(crate) async fn soon(&mut self, moment: Duration) -> Option<Value> {
        timeout(moment, self.read()).await.ok().flatten()
    }

    async fn read(&mut self) -> Option<Value> {
        match self {
            Self::Stream { recv, buffer, .. } => loop {
                if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line = buffer.split_to(end);
                    buffer.advance(1);
                    return Some(published(serde_json::from_slice(&line).expect("a line is JSON")));
                }
                let chunk = recv.read_chunk(usize::MAX, true).await.ok()??;
                buffer.extend_from_slice(&chunk.bytes);
            },
            Self::Queue { frames, .. } => frames.recv().await,
        }
    }

    /// Sends a further frame: on the attach stream itself, or on the one socket.
    pub(crate) async fn send(&mut self, frame: Value) {
        match self {
            Self::Stream { send, .. } => send.write_all(format!("{frame}\n").as_bytes()).await.expect("stream open"),
            Self::Queue { requests, .. } => requests.send((frame, None)).await.expect("socket open"),
        }
    }

    /// Reads until a frame of this type.
    pub(crate) async fn until(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("no `{kind}` came"));
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// Reads until a `session_update` that tells this of a session.
    pub(crate) async fn update(&mut self, field: &str) -> Value {
        loop {
            let update = self.until("session_update").await;
            if !update[field].is_null() {
                return update;
            }
        }
    }

    /// Reads a reply to its last frame and returns its text, checked piece by piece, and that frame.
    pub(crate) async fn reply(&mut self) -> (String, Value) {
        self.reply_from(String::new()).await
    }

    /// The same with the text that is held already.
    pub(crate) async fn reply_from(&mut self, mut text: String) -> (String, Value) {
        loop {
            let frame = self.until("ai_response").await;
            if frame["metadata"]["streaming"] == "false" {
                return (frame["content"].as_str().unwrap().to_owned(), frame);
            }
            assert_eq!(frame["offset"], text.len(), "a hole or an overlap: {frame}");
            text.push_str(frame["content"].as_str().unwrap());
            if frame["metadata"]["done"] == "true" {
                assert_eq!(frame["length"], text.len(), "{frame}");
                assert_eq!(frame["sha256"], sha256(&text), "{frame}");
                return (text, frame);
            }
        }
    }
}

/// Routes one socket's frames: by `re` to its exchange, else by `session_id` to its watch, else to the first.
async fn pump(
    mut socket: WebSocketStream<TcpStream>,
    mut inbox: mpsc::Receiver<(Value, Option<mpsc::Sender<Value>>)>,
) -> Option<u16> {
    let mut exchanges: HashMap<String, mpsc::Sender<Value>> = HashMap::new();
    let mut watches: Vec<(String, mpsc::Sender<Value>)> = Vec::new();
    loop {
        tokio::select! {
            request = inbox.recv() => {
                let Some((frame, answers)) = request else {
                    drop(socket.close(None).await);
                    return None;
                };
                if let Some(answers) = answers {
                    match frame["id"].as_str() {
                        Some(id) => drop(exchanges.insert(id.to_owned(), answers)),
                        None => watches.push((String::new(), answers)),
                    }
                }
                let text = match &frame { Value::String(raw) => raw.clone(), frame => frame.to_string() };
                socket.send(Message::text(text)).await.ok()?;
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = published(serde_json::from_str(&text).expect("a message is JSON"));
                    let asked = frame["re"].as_str().and_then(|re| exchanges.get(re));
                    let session = frame["session_id"].as_str().unwrap_or_default().to_owned();
                    if let (Some(answers), "connection_status") = (asked, frame["type"].as_str().unwrap_or_default()) {
                        watches.push((session.clone(), answers.clone()));
                    }
                    let watch = || watches.iter().rev().find(|(id, _)| *id == session).or(watches.first()).map(|(_, to)| to);
                    if let Some(answers) = asked.or_else(watch) {
                        drop(answers.send(frame.clone()).await);
                    }
                    let over = match frame["type"].as_str().unwrap_or_default() {
                        "ai_response" => frame["metadata"]["done"] == "true",
                        "error" => frame["turn_id"].is_null(),
                        "accepted" => frame["duplicate"] == true || frame["seq"].is_null(),
                        "pong" => true,
                        _ => false,
                    };
                    if let (true, Some(re)) = (over, frame["re"].as_str()) {
                        exchanges.remove(re);
                    }
                }
                Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) => return Some(code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}

/// A frame as the published description has it: every one that a test reads is held against that.
fn published(frame: Value) -> Value {
    static FRAMES: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let mut document = chatbox::http::document::frames();
        document["$ref"] = "#/components/schemas/ServerFrame".into();
        let options = jsonschema::options().with_draft(jsonschema::Draft::Draft202012).should_validate_formats(true);
        options.build(&document).expect("the description is a schema")
    });
    if let Some(fault) = FRAMES.iter_errors(&frame).next() {
        panic!("not as described: {fault} at {}: {frame}", fault.instance_path());
    }
    frame
}

/// A client for ordinary HTTP requests that follows no redirect.
pub(crate) fn http() -> reqwest::Client {
    // Only the first test of the process installs it; nothing here depends on which.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    client.build().expect("client")
}

/// A fresh request id.
pub(crate) fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

pub(crate) fn sha256(text: &str) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()))
}

fn merge(frame: &mut Value, fields: &Value) {
    for (key, value) in fields.as_object().cloned().unwrap_or_default() {
        frame[key] = value;
    }
}
