//! Without a terminal: each line of standard input is a message, and its answer goes to standard output. With `--json`,
//! one object a line for everything that happens.

use std::io::{BufRead, ErrorKind, Write};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::opened;
use crate::{
    chat::{ErrorCode, TurnState},
    client::{Client, Error, Event, Message, Open, Reply, Session, Status},
    protocol::ErrorBody,
};

/// Lines that wait to be sent; whoever writes them waits meanwhile.
const LINES: usize = 16;

/// Talks until the input ends.
///
/// # Errors
/// When no session opens, a message is refused, or an answer fails. The rest of the input is sent all the same.
pub(super) async fn run(client: &Client, open: Open, as_json: bool) -> anyhow::Result<()> {
    // What was said before is of no use to a pipe, except that an answer still runs.
    let mut session = opened(client, Open { history: Some(1), ..open }).await?;
    let (lines, mut read) = mpsc::channel(LINES);
    let reader = std::thread::spawn(move || read_lines(&lines));
    let mut failures = 0_u32;
    while let Some(line) = read.recv().await {
        let line = match line {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => line,
            Err(err) => {
                failures += 1;
                told(as_json, &err.context("read a line of the input"))?;
                continue;
            }
        };
        let message = session.send(line)?;
        let answered =
            if as_json { events(client, &mut session, message).await } else { answer(&session, message).await };
        match answered {
            Ok(()) => {}
            Err(err) if err.downcast_ref::<Error>().is_some() && !ended(client) => {
                failures += 1;
                told(as_json, &err)?;
            }
            Err(err) => return Err(err),
        }
    }
    drop(reader.join());
    anyhow::ensure!(failures == 0, "{failures} messages were not answered");
    Ok(())
}

fn ended(client: &Client) -> bool {
    client.status().borrow().state == crate::client::State::Closed
}

fn told(as_json: bool, err: &anyhow::Error) -> anyhow::Result<()> {
    if as_json {
        return write_line(&json!({"event": "failed", "error": format!("{err:#}")}));
    }
    super::super::complain(false, err);
    Ok(())
}

/// Reads until the input ends or nobody waits for it.
fn read_lines(lines: &mpsc::Sender<anyhow::Result<String>>) {
    for line in std::io::stdin().lock().lines() {
        // What is not UTF-8 is left behind; after any other fault there is nothing to be read.
        let goes_on = line.as_ref().map_or_else(|err| err.kind() == ErrorKind::InvalidData, |_line| true);
        if lines.blocking_send(line.map_err(Into::into)).is_err() || !goes_on {
            return;
        }
    }
}

/// Writes the answer as it grows.
async fn answer(session: &Session, mut message: Message) -> anyhow::Result<()> {
    let stored = message.stored().await?;
    let mut leaving = false;
    loop {
        tokio::select! {
            piece = message.piece() => match piece? {
                Some(piece) => write(&piece)?,
                None => break,
            },
            interrupted = tokio::signal::ctrl_c(), if !leaving => {
                interrupted.context("wait for a signal")?;
                leaving = true;
                if let Some(turn_id) = stored.turn_id {
                    session.stop(turn_id).await?;
                }
            }
        }
    }
    write("\n")?;
    match message.reply().await? {
        Some(reply) => whole(&reply),
        None => Ok(()),
    }
}

/// Fails where an answer did, or broke off.
fn whole(reply: &Reply) -> anyhow::Result<()> {
    if reply.state == TurnState::Failed || reply.error.is_some() {
        let error = reply.error.clone();
        return Err(error.map_or(Error::Protocol("the answer failed"), Error::Answered).into());
    }
    if reply.state == TurnState::Interrupted {
        let message = "the answer broke off: its server was cut off from it".to_owned();
        let code = ErrorCode::ServiceError;
        return Err(Error::Answered(ErrorBody { code, message, recoverable: true, retry_after: None }).into());
    }
    if reply.verified { Ok(()) } else { Err(Error::Protocol("the answer is not the one that the server has").into()) }
}

/// Writes everything that happens until a message is answered.
async fn events(client: &Client, session: &mut Session, mut message: Message) -> anyhow::Result<()> {
    let mut status = client.status();
    let mut stored = None;
    loop {
        tokio::select! {
            biased;
            told = message.stored(), if stored.is_none() => {
                let told = told?;
                write_line(&json!({
                    "event": "stored", "id": message.id(), "session_id": told.session_id, "seq": told.seq,
                    "turn_id": told.turn_id, "duplicate": told.duplicate,
                }))?;
                if told.turn_id.is_none() {
                    return Ok(());
                }
                stored = Some(told);
            }
            event = session.next() => {
                let Some(event) = event else { break };
                write_line(&object(&event))?;
                if let Event::Reply(reply) = &event
                    && stored.is_some_and(|stored| stored.turn_id == Some(reply.turn_id))
                {
                    return whole(reply);
                }
            }
            changed = status.changed() => {
                if changed.is_err() {
                    break;
                }
                let line = status_object(&status.borrow_and_update());
                write_line(&line)?;
            }
        }
    }
    message.reply().await.map(drop).map_err(Into::into)
}

fn status_object(status: &Status) -> Value {
    json!({
        "event": "status", "state": format!("{:?}", status.state).to_lowercase(),
        "transport": status.transport.map(crate::client::Transport::name),
        "reason": status.reason, "reconnects": status.reconnects,
    })
}

/// An event as a line of JSON; frames of the contract as they are, with an `event` beside their fields.
fn object(event: &Event) -> Value {
    let named = |name: &str, value: Value| {
        let mut object = json!({"event": name});
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), value) {
            object.extend(fields);
        }
        object
    };
    match event {
        Event::Session(status) => named("session", json!(status)),
        Event::Reset => named("reset", Value::Null),
        Event::Entry(entry) => named("entry", json!(entry)),
        Event::Turn { turn_id, seq } => named("turn", json!({"turn_id": turn_id, "seq": seq})),
        Event::Piece { turn_id, offset, content } => {
            named("piece", json!({"turn_id": turn_id, "offset": offset, "content": content}))
        }
        Event::Reply(reply) => named(
            "reply",
            json!({
                "session_id": reply.session_id, "turn_id": reply.turn_id, "seq": reply.seq,
                "reply_to": reply.reply_to, "state": reply.state, "text": reply.text, "length": reply.text.len(),
                "sha256": reply.sha256, "verified": reply.verified, "usage": reply.usage, "model_id": reply.model_id,
                "segments": reply.segments, "timestamp": reply.timestamp, "error": reply.error,
            }),
        ),
        Event::Update(update) => named("update", json!(update)),
        Event::Typing { sender, active } => named("typing", json!({"sender": sender, "active": active})),
        Event::Refused(error) => named("refused", json!(error)),
        Event::Missed => named("missed", Value::Null),
    }
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write the answer")
}

fn write_line(object: &Value) -> anyhow::Result<()> {
    write(&format!("{object}\n"))
}
