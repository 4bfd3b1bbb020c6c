//! Clients that read slowly, or not at all: what they cost, and that they lose nothing.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::harness::{
    Client, Server, Via,
    client::{Lines, PATIENCE},
    eventually, id, openai, over_both,
    process::Process,
    provider::{Gate, Provider, Script},
    server::Target,
};

over_both! {
    client_that_reads_nothing_is_closed_and_resumes_without_loss,
    slow_readers_cost_no_memory_and_get_larger_pieces,
}

/// Ten megabytes: more than the buffers of both ends and of the kernel between them take.
const PIECES: usize = 2500;
const PIECE_BYTES: usize = 4096;

fn text() -> String {
    (0..PIECES).map(|number| format!("{number:width$} ", width = PIECE_BYTES - 1)).collect()
}

fn long() -> Script {
    let text = text();
    let pieces: Vec<&str> = (0..PIECES).map(|number| &text[number * PIECE_BYTES..][..PIECE_BYTES]).collect();
    Script::answer(pieces)
}

/// A watch that reads only what it is asked to.
enum Watch {
    Stream(Box<Client>, Lines),
    Socket(Box<WebSocketStream<TcpStream>>),
}

impl Watch {
    async fn attached(server: &Target, via: Via, fields: &Value) -> Self {
        if via == Via::WebTransport {
            let (client, lines, _status) = Client::attached(server, via, "ann", fields.clone()).await;
            return Self::Stream(Box::new(client), lines);
        }
        let mut request = server.websocket_url().as_str().into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chatbox.v1".parse().unwrap());
        let socket = TcpSocket::new_v4().unwrap();
        // So that the kernel does not read in its place.
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let address = ([127, 0, 0, 1], server.url.port().unwrap()).into();
        let stream = socket.connect(address).await.expect("the server listens");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a socket");
        let mut attach = fields.clone();
        (attach["type"], attach["id"], attach["token"]) = (json!("attach"), json!(id()), json!(server.token("ann")));
        socket.send(Message::text(attach.to_string())).await.expect("attach");
        let mut watch = Self::Socket(Box::new(socket));
        assert_eq!(watch.next().await.expect("status")["type"], "connection_status");
        watch
    }

    /// The next frame; `None` at the end, however it came.
    async fn next(&mut self) -> Option<Value> {
        match self {
            Self::Stream(_, lines) => lines.next().await,
            Self::Socket(socket) => loop {
                match timeout(PATIENCE, socket.next()).await.expect("something in time") {
                    Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            },
        }
    }

    /// Reads pieces that follow `shown`, until the reply or the connection ends; says whether the reply has, and how
    /// many pieces came.
    async fn read(&mut self, shown: &mut String) -> (bool, usize) {
        let mut pieces = 0;
        while let Some(frame) = self.next().await {
            if frame["type"] != "ai_response" {
                continue;
            }
            assert_eq!(frame["offset"], shown.len(), "a hole or an overlap");
            shown.push_str(frame["content"].as_str().unwrap());
            if frame["metadata"]["done"] == "true" {
                assert_eq!(frame["length"], shown.len(), "the whole text");
                return (true, pieces);
            }
            pieces += 1;
        }
        (false, pieces)
    }
}

async fn client_that_reads_nothing_is_closed_and_resumes_without_loss(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(long().gated(&gate)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        // Those who read may stand still for as long.
        config.limits.write_timeout = Duration::from_secs(4);
    })
    .await;
    let (mut asker, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut stuck = Watch::attached(&server, via, &json!({})).await;
    let mut exchange = asker.say("hello").await;
    gate.release(1);
    let mut shown = String::new();
    while shown.is_empty() {
        let frame = stuck.next().await.expect("the first piece");
        shown.push_str(frame["content"].as_str().filter(|_| frame["type"] == "ai_response").unwrap_or_default());
    }
    gate.open();
    let (whole, last) = exchange.reply().await;
    assert!(whole == text(), "who reads gets it all");

    let name = if via == Via::WebTransport { "webtransport" } else { "websocket" };
    let closed = server.metrics.connections_closed_total.with_label_values(&[name, "slow consumer"]);
    eventually("who reads nothing is closed", async || closed.get() == 1).await;
    assert!(!stuck.read(&mut shown).await.0, "it did not get the end");
    if let Watch::Stream(client, _) = stuck {
        assert_eq!(client.closed().await, 4);
    }
    let position = json!({"after_seq": 1, "turn_id": last["turn_id"], "offset": shown.len()});
    assert!(Watch::attached(&server, via, &position).await.read(&mut shown).await.0, "it resumes");
    assert!(shown == whole, "nothing is lost, and nothing doubled");
}

/// Forty copies of the answer would be 400 MB. The turn, its log and its entry hold some, whoever watches.
const WATCHERS: usize = 40;
const GROWTH_MAX: u64 = 200 * 1024 * 1024;

async fn slow_readers_cost_no_memory_and_get_larger_pieces(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(long().gated(&gate)).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = [("CHATBOX_LIMITS__CONNECTIONS_PER_USER", "100"), ("CHATBOX_LOG", "warn")];
    let server = Process::start_with(dir.path(), &provider, &settings).await;
    let (mut asker, _watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        watches.push(Watch::attached(&server, via, &json!({})).await);
    }
    let before = server.resident();
    let mut exchange = asker.say("hello").await;
    gate.open();
    let (whole, _last) = exchange.reply().await;
    let growth = server.resident().saturating_sub(before);
    println!("{WATCHERS} readers that read nothing of {} MB: {:.1} MB", whole.len() >> 20, megabytes(growth));
    assert!(growth < GROWTH_MAX, "grew by {growth} bytes");

    let mut shown = String::new();
    let (ended, pieces) = watches.pop().unwrap().read(&mut shown).await;
    assert!(ended && shown == whole, "it comes all the same");
    assert!(pieces < PIECES / 2, "in larger pieces, got {pieces}");
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
