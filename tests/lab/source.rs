//! What is sent, from inside the server's namespace: a model that answers in stamped pieces, and a device that says
//! stamped messages.

use std::{convert::Infallible, time::Duration};

use anyhow::{Context as _, ensure};
use async_stream::stream;
use axum::{
    Json, Router,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
    routing::post,
    serve::ListenerExt as _,
};
use bytes::Bytes;
use chatbox::client::{Dialer, Exchange, Link, Transport};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{experiment::Load, text};

/// How long anything that must come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the model is asked with: to stream, or to say nothing for ever.
///
/// The silent turn is what the independent messages queue behind, so that no answer of theirs disturbs.
const STREAM: &str = "stream";
const HOLD: &str = "hold";

/// A model on a free port of loopback; the endpoint is where it answers.
pub(crate) async fn model(load: Load, tasks: &mut JoinSet<()>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the model")?;
    let endpoint = format!("http://{}/v1", listener.local_addr()?);
    // Small writes must not wait for acknowledgements of those before them.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let app = Router::new().route("/v1/chat/completions", post(move |asked: Json<Value>| answer(load, asked)));
    tasks.spawn(async move { drop(axum::serve(listener, app).await) });
    Ok(endpoint)
}

/// OpenAI's chat completions, streamed.
async fn answer(load: Load, Json(asked): Json<Value>) -> Response {
    let last = asked.pointer("/messages").and_then(Value::as_array).and_then(|messages| messages.last());
    let streams = last.and_then(|message| message.get("content")).is_some_and(|content| content == STREAM);
    let events = stream! {
        if !streams {
            std::future::pending::<()>().await;
        }
        let mut pace = interval(load.piece_pause());
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for index in 0..load.pieces() {
            pace.tick().await;
            yield event(&json!({"delta": {"content": text::record(index, load.piece_bytes)}, "finish_reason": null}));
        }
        yield event(&json!({"delta": {}, "finish_reason": "stop"}));
        yield Ok(Bytes::from_static(b"data: [DONE]\n\n"));
    };
    std::future::ready(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()).await
}

fn event(choice: &Value) -> Result<Bytes, Infallible> {
    Ok(format!("data: {}\n\n", json!({"choices": [choice]})).into())
}

/// A device of the person whose other devices watch.
pub(crate) struct Device {
    link: Link,
    token: String,
    /// a watch ends when it is dropped
    watch: Exchange,
}

impl Device {
    /// Opens a connection and attaches.
    pub(crate) async fn open(dialer: &Dialer, token: &str) -> anyhow::Result<Self> {
        let link = dialer.open(Transport::WebTransport).await.context("the device connects")?;
        let watch = link.exchange(frame(&json!({"type": "attach", "token": token, "scope": "user"}))).await?;
        let mut device = Self { link, token: token.to_owned(), watch };
        let status = next(&mut device.watch).await?;
        ensure!(status.get("type").is_some_and(|kind| kind == "connection_status"), "not attached: {status}");
        Ok(device)
    }

    /// Makes a session.
    pub(crate) async fn session(&self) -> anyhow::Result<String> {
        let attach = json!({"type": "attach", "id": id(), "token": self.token, "new": true});
        let mut watch = self.link.exchange(frame(&attach)).await?;
        let status = next(&mut watch).await?;
        Ok(status
            .get("session_id")
            .and_then(Value::as_str)
            .with_context(|| format!("no session: {status}"))?
            .to_owned())
    }

    /// Has the model answer in all sessions but the last, and says messages in that one, at the load's pace.
    pub(crate) async fn talk(self, sessions: &[String], load: Load) -> anyhow::Result<()> {
        let Self { link, mut watch, .. } = self;
        let (quiet, busy) = sessions.split_last().context("there are sessions")?;
        say(&link, quiet, HOLD).await?;
        for session in busy {
            say(&link, session, STREAM).await?;
        }
        let mut pace = interval(load.message_pause());
        let messages = async {
            for index in 0..load.messages() {
                pace.tick().await;
                say(&link, quiet, &text::record(index, load.message_bytes)).await?;
            }
            Ok(())
        };
        // What the list tells is read, so that it does not pile up.
        let list = async { while let Ok(Some(_)) = watch.next().await {} };
        tokio::select! {
            done = messages => done,
            () = list => anyhow::bail!("the device's connection ended"),
        }
    }
}

async fn say(link: &Link, session: &str, content: &str) -> anyhow::Result<()> {
    let message = json!({"type": "user_message", "id": id(), "session_id": session, "content": content});
    // Given up once it is accepted: the answer is for those who watch.
    let accepted = next(&mut link.exchange(frame(&message)).await?).await?;
    ensure!(accepted.get("type").is_some_and(|kind| kind == "accepted"), "not accepted: {accepted}");
    Ok(())
}

pub(crate) fn frame(value: &Value) -> Bytes {
    value.to_string().into()
}

pub(crate) fn id() -> uuid::Uuid {
    uuid::Uuid::now_v7()
}

/// The next frame, which must come.
pub(crate) async fn next(exchange: &mut Exchange) -> anyhow::Result<Value> {
    let frame = timeout(PATIENCE, exchange.next()).await.context("no answer in time")??.context("no answer")?;
    Ok(serde_json::from_slice(&frame)?)
}
