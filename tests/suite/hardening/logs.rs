//! Tokens and what people say are in no log and no metric, whichever way the token came in.

use std::{fs::File, path::Path, process::Stdio};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest, http::HeaderValue};

use crate::harness::{
    Client, Via,
    client::{PATIENCE, http},
    id,
    process::Process,
    provider::{Provider, Script},
    server::Target,
};

const SAID: &str = "the-number-of-my-account-4815162342";
const ANSWERED: &str = "an-answer-that-quotes-4815162342";
const API_KEY: &str = "key-of-the-provider-9b1c7f60";

/// Says something over a socket whose upgrade carries the token, and reads to the end of the answer.
async fn talk(server: &Target, query: &str, header: Option<(&'static str, String)>) {
    let mut url = server.websocket_url();
    url.set_query(Some(query).filter(|query| !query.is_empty()));
    let mut request = url.as_str().into_client_request().unwrap();
    if let Some((name, value)) = header {
        request.headers_mut().insert(name, HeaderValue::try_from(value).unwrap());
    }
    let stream = TcpStream::connect(server.url.socket_addrs(|| None).unwrap().as_slice()).await.expect("connect");
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.expect("socket");
    if response.headers().contains_key("sec-websocket-protocol") {
        socket.send(Message::text(json!({"type": "attach", "id": id()}).to_string())).await.unwrap();
    }
    socket.send(Message::text(json!({"type": "user_message", "content": SAID}).to_string())).await.unwrap();
    let answered = async {
        while let Some(Ok(message)) = socket.next().await {
            if message.to_text().unwrap_or_default().contains("\"sha256\"") {
                return;
            }
        }
        panic!("no answer came");
    };
    timeout(PATIENCE, answered).await.expect("an answer in time");
}

/// The log in `dir`, with what the metrics say, after every way in was used; and the token.
async fn everything_that_is_written_down(dir: &Path, level: &str) -> (String, String) {
    let provider = Provider::start(Script::answer([ANSWERED])).await;
    let log = dir.join("log");
    let ops = crate::harness::ports::reserve().to_string();
    let env = [
        ("CHATBOX_LOG", level),
        ("CHATBOX_LISTEN__OPS", ops.as_str()),
        ("CHATBOX_AUTH__ALLOW_QUERY_TOKEN", "true"),
        ("CHATBOX_LLM__PROVIDERS__SCRIPTED__API_KEY", API_KEY),
        ("CHATBOX_LIMITS__CONNECTIONS_PER_USER", "100"),
    ];
    let server = Process::start_logged(dir, &provider, &env, Stdio::from(File::create(&log).unwrap())).await;
    let token = server.token("ann");
    talk(&server, "", Some(("authorization", format!("Bearer {token}")))).await;
    talk(&server, "", Some(("sec-websocket-protocol", format!("chatbox.v1, bearer.{token}")))).await;
    talk(&server, &format!("token={token}"), None).await;
    for via in [Via::WebSocket, Via::WebTransport] {
        let (mut client, _watch, _status) = Client::attached(&server, via, "ann", json!({"token": token})).await;
        client.say(SAID).await.reply().await;
        client.exchange(json!({"type": "auth", "id": id(), "token": token})).await.until("connection_status").await;
        // What is wrong with a request is told to its client, with the value; to nobody else.
        let wrong = json!({"type": "feedback", "id": id(), "seq": 1, "metadata": {"rating": SAID}, "content": SAID});
        client.exchange(wrong).await.until("error").await;
        let mut forger = Client::open(&server, via).await;
        let forged = json!({"type": "attach", "id": id(), "token": format!("{token}x")});
        forger.exchange(forged).await.until("error").await;
    }
    let list = server.url.join("/chatbox/sessions?q=4815162342").unwrap();
    let found = http().get(list).bearer_auth(&token).send().await.unwrap().text().await.unwrap();
    assert!(found.contains(SAID), "{found}");
    provider.script(Script::status(401, "application/json", &json!({"error": {"message": SAID}}).to_string()));
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({"token": token})).await;
    client.say(SAID).await.until("error").await;
    let metrics = http().get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
    server.kill().await;
    assert!(metrics.contains("chatbox_turns_ended_total"), "{metrics}");
    (std::fs::read_to_string(&log).unwrap() + &metrics, token)
}

/// checklist 7, 35: through the full stack, at every level down to the libraries' own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_texts_are_written_down_nowhere() {
    for level in ["debug", "trace"] {
        let dir = tempfile::tempdir().unwrap();
        let (written, token) = everything_that_is_written_down(dir.path(), level).await;
        assert!(written.contains("turn ended"), "at {level} there is a log: {written}");
        let signature = token.rsplit_once('.').unwrap().1;
        for secret in [token.as_str(), signature, SAID, ANSWERED, "4815162342", API_KEY] {
            if let Some(at) = written.find(secret) {
                let line = written[..at].rfind('\n').map_or(0, |at| at + 1);
                panic!("at {level}: `{secret}` is in: {}", written[line..].lines().next().unwrap());
            }
        }
    }
}

/// The pipe is full, then what waits for it; from then on lines are dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Provider::start(Script::answer([ANSWERED])).await;
    let ops = crate::harness::ports::reserve().to_string();
    let rate = ("CHATBOX_LIMITS__MESSAGES_PER_MINUTE", "10000");
    let env = [("CHATBOX_LOG", "trace"), ("CHATBOX_LISTEN__OPS", ops.as_str()), rate];
    let mut server = Process::start_logged(dir.path(), &provider, &env, Stdio::piped()).await;
    let dropped = async || {
        let metrics = http().get(format!("http://{ops}/metrics")).send().await.unwrap().text().await.unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("chatbox_log_lines_dropped_total "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse::<f64>().unwrap()
    };
    let (mut client, _watch, _status) = Client::attached(&server, Via::WebTransport, "ann", json!({})).await;
    for said in 0..1000 {
        let (text, _end) = client.say(SAID).await.reply().await;
        assert_eq!(text, ANSWERED, "message {said}");
        if dropped().await > 0.0 {
            server.signal("TERM");
            assert!(server.ended().await, "it ends well");
            return;
        }
    }
    panic!("{} lines were dropped", dropped().await);
}
