//! Bad input: exactly one clear error each, nothing stored, other exchanges unharmed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via, id, openai, over_both,
    provider::{Gate, Provider, Script},
};

const MOMENT: Duration = Duration::from_millis(150);

over_both! {
    bad_frames_get_one_error_each,
    bad_first_frames_close_the_connection,
    bad_tokens_close_the_connection,
    oversized_frame_is_told_and_ends_the_socket_or_the_stream,
}

fn user_message(content: &Value) -> Value {
    json!({"type": "user_message", "id": id(), "content": content})
}

/// Each frame with the code and a part of the sentence that its one error must have.
fn bad_frames() -> Vec<(Value, &'static str, String)> {
    let long = "ü".repeat(10_001);
    let keys: serde_json::Map<_, _> = (0..33).map(|n| (format!("k{n}"), json!(n))).collect();
    let deep = (0..200).fold(json!("x"), |inner, _| json!([inner]));
    let with = |field: &str, value: Value| {
        let mut frame = user_message(&json!("hello"));
        frame[field] = value;
        frame
    };
    let format = "INVALID_FORMAT";
    let missing = "MISSING_FIELD";
    vec![
        (json!({"type": "dance", "id": id()}), format, "`dance`".to_owned()),
        (json!({"id": id()}), missing, "`type`".to_owned()),
        (json!({"type": 7, "id": id()}), format, "`type`".to_owned()),
        (json!({"type": "user_message", "id": id()}), missing, "`content`".to_owned()),
        (json!({"type": "stop", "id": id()}), missing, "`turn_id`".to_owned()),
        (json!({"type": "auth", "id": id()}), missing, "`token`".to_owned()),
        (json!({"type": "model_select", "id": id(), "model_id": "gpt-9"}), format, "`gpt-9`".to_owned()),
        (json!({"type": "model_select", "id": id()}), missing, "`model_id`".to_owned()),
        (json!({"type": "regenerate", "id": id()}), missing, "`turn_id`".to_owned()),
        (json!({"type": "feedback", "id": id(), "seq": 1}), missing, "`metadata.rating`".to_owned()),
        (json!({"type": "feedback", "id": id(), "metadata": {"rating": "up"}}), missing, "`seq`".to_owned()),
        (
            json!({"type": "feedback", "id": id(), "seq": 1, "metadata": {"rating": 5}}),
            format,
            "`up` or `down`".to_owned(),
        ),
        (json!({"type": "typing_indicator", "id": id()}), missing, "`metadata.state`".to_owned()),
        (json!({"type": "voice_message", "id": id(), "file_id": "a"}), format, "`voice_message`".to_owned()),
        (user_message(&json!(7)), format, "`content`".to_owned()),
        (user_message(&json!("  \n ")), missing, "`content`".to_owned()),
        (user_message(&json!("a\u{0}b")), format, "U+0000".to_owned()),
        (user_message(&json!(long)), format, "10001 characters".to_owned()),
        (with("metadata", deep), format, "`metadata`".to_owned()),
        (with("metadata", json!({"a": {}})), format, "`metadata".to_owned()),
        (with("metadata", Value::Object(keys)), format, "33 keys".to_owned()),
        (
            with("metadata", json!({"page": "x".repeat(1001), "b": "x"})),
            format,
            "field `metadata.page` has 1001 characters, at most 1000 are accepted".to_owned(),
        ),
        (
            with("metadata", json!({"k".repeat(999): "a\u{0}"})),
            format,
            format!("field `metadata.{}…` holds U+0000", "k".repeat(31)),
        ),
        (with("session_id", json!("s".repeat(129))), format, "129 characters".to_owned()),
        (with("file_url", json!(format!("https://{}", "u".repeat(2041)))), format, "2049 characters".to_owned()),
        (with("file_id", json!("f".repeat(256))), format, "256 characters".to_owned()),
        (with("model_id", json!("m".repeat(101))), format, "101 characters".to_owned()),
        (with("timestamp", json!("yesterday")), format, "`timestamp`".to_owned()),
        (with("files", json!("one")), format, "`files`".to_owned()),
        (json!({"type": "attach", "id": id(), "after_seq": -1}), format, "`after_seq`".to_owned()),
        (json!({"type": "attach", "id": id(), "last": 1001}), format, "1 to 1000".to_owned()),
        (json!({"type": "attach", "id": id(), "scope": "desk"}), format, "`user`".to_owned()),
        (json!({"type": "attach", "id": id(), "offset": 3}), missing, "`turn_id`".to_owned()),
        (json!({"type": "attach", "id": id(), "scope": "moon"}), format, "`scope`".to_owned()),
        (json!({"type": "attach", "id": id(), "reopen": true}), missing, "`session_id`".to_owned()),
    ]
}

// checklist 17, 20, 21, 34, 45, W18, W27
async fn bad_frames_get_one_error_each(via: Via) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["still ", "here"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let mut running = client.say("hello").await;
    gate.release(1);
    running.until("ai_response").await;
    watch.until("session_update").await;
    for (frame, code, part) in bad_frames() {
        let mut exchange = client.exchange(frame.clone()).await;
        let error = exchange.next().await.expect("an answer");
        assert_eq!((&error["type"], &error["error"]["code"]), (&json!("error"), &json!(code)), "{frame} got {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(&part), "{frame} got {error}");
        assert_eq!((&error["re"], &error["error"]["recoverable"]), (&frame["id"], &json!(true)), "{frame}");
        if via == Via::WebTransport {
            assert_eq!(exchange.next().await, None, "exactly one");
        }
    }
    for raw in ["not json", "[1]", "{\"type\":\"ping\"", "null"] {
        let error = raw_exchange(&mut client, &mut watch, raw).await;
        assert_eq!((&error["error"]["code"], &error["re"]), (&json!("INVALID_FORMAT"), &Value::Null), "{raw}");
    }
    assert!(watch.silent(MOMENT).await, "nothing was stored");
    gate.open();
    assert_eq!(running.reply_from("still ".to_owned()).await.0, "still here", "the other exchange is unharmed");
    let (_other, _watch, status) = Client::attached(&server, via, "ann", json!({})).await;
    assert_eq!(status["last_seq"], 2);
}

/// Sends what is no JSON value on an exchange of its own. On a WebSocket its error comes to the first watch.
async fn raw_exchange(client: &mut Client, watch: &mut crate::harness::client::Lines, raw: &str) -> Value {
    match client {
        Client::WebTransport(_) => client.raw(raw.as_bytes()).await.next().await.expect("an answer"),
        Client::WebSocket { .. } => {
            watch.send(Value::String(raw.to_owned())).await;
            watch.next().await.expect("an answer")
        }
    }
}

async fn bad_first_frames_close_the_connection(via: Via) {
    let server = Server::start().await;
    let token = server.token("ann");
    let table = [
        (json!({"type": "ping", "id": id()}), "UNAUTHORIZED", 1),
        (json!({"type": "user_message", "id": id(), "token": token, "content": "hello"}), "UNAUTHORIZED", 1),
        (json!({"type": "attach", "id": id()}), "MISSING_FIELD", 1),
        (json!({"type": "attach", "id": id(), "token": 7}), "INVALID_FORMAT", 5),
        (json!({"type": "dance", "id": id()}), "INVALID_FORMAT", 5),
    ];
    for (frame, code, close) in table {
        let mut client = Client::open(&server, via).await;
        let mut exchange = client.exchange(frame.clone()).await;
        let error = exchange.next().await.expect("an answer");
        assert_eq!((&error["error"]["code"], &error["error"]["recoverable"]), (&json!(code), &json!(false)), "{frame}");
        assert_eq!(client.closed().await, close, "{frame}");
    }
}

async fn bad_tokens_close_the_connection(via: Via) {
    let server = Server::start().await;
    let good = server.token("ann");
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (header, claims) = head.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let rs256 = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9";
    let table = [
        (format!("{header}.{claims}."), "INVALID_TOKEN", 1),
        (format!("{none}.{claims}."), "INVALID_TOKEN", 1),
        (format!("{none}.{claims}.{signature}"), "INVALID_TOKEN", 1),
        (format!("{rs256}.{claims}.{signature}"), "INVALID_TOKEN", 1),
        (format!("{header}.{claims}x.{signature}"), "INVALID_TOKEN", 1),
        ("garbage".to_owned(), "INVALID_TOKEN", 1),
        (server.expired_token("ann"), "EXPIRED_TOKEN", 2),
    ];
    for (token, code, close) in table {
        let mut client = Client::open(&server, via).await;
        let mut exchange = client.exchange(json!({"type": "attach", "id": id(), "token": token})).await;
        let error = exchange.next().await.expect("an answer");
        assert_eq!((&error["error"]["code"], &error["error"]["recoverable"]), (&json!(code), &json!(false)), "{token}");
        assert_eq!(client.closed().await, close, "{token}");
    }
}

// checklist 18
async fn oversized_frame_is_told_and_ends_the_socket_or_the_stream(via: Via) {
    let server = Server::with(|config| config.limits.frame_bytes = 65_536).await;
    let (mut client, mut watch, _status) = Client::attached(&server, via, "ann", json!({})).await;
    let frame = json!({"type": "ping", "id": id(), "padding": "x".repeat(70_000)});
    // What is not recoverable is followed by a close.
    let told = |frame: &Value, recoverable: bool| {
        let error = (&frame["error"]["code"], &frame["error"]["recoverable"]);
        assert_eq!(error, (&json!("FRAME_TOO_LARGE"), &json!(recoverable)), "{frame}");
    };
    match via {
        Via::WebTransport => {
            let mut exchange = client.exchange(frame.clone()).await;
            told(&exchange.next().await.unwrap(), true);
            assert_eq!(client.say("count to 2").await.reply().await.1["state"], "complete", "the connection goes on");
            watch.until("session_update").await;
            watch.send(frame).await;
            told(&watch.next().await.unwrap(), false);
        }
        Via::WebSocket => {
            watch.send(frame).await;
            told(&watch.next().await.unwrap(), false);
        }
    }
    assert_eq!(client.closed().await, 7);
}
