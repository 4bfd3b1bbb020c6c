//! Without a terminal: each line of standard input is a message, and its answer goes to standard output. With `--json`,
//! one object a line for everything that happens.

use std::{
    io::{BufRead, ErrorKind, IsTerminal, Write},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use futures_util::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};

use super::opened;
use crate::{
    chat::{ErrorCode, TurnId, TurnState},
    client::{Client, Error, Event, Message, Open, Reply, Session, State, Status},
    protocol::ErrorBody,
};

/// Lines that wait to be sent; whoever writes them waits meanwhile.
const LINES: usize = 16;

/// How long the event of a reply may take that has ended, where events are missing.
const BEHIND: Duration = Duration::from_millis(100);

/// Ctrl-C was pressed while an answer was waited for, and once more if it could be stopped.
const INTERRUPTED: &str = "interrupted";

/// Talks until the input ends, or Ctrl-C is pressed with nothing to stop.
///
/// # Errors
/// When no session opens, a message is refused, or an answer fails. The rest of the input is sent all the same.
pub(super) async fn run(client: &Client, open: Open, as_json: bool) -> anyhow::Result<()> {
    // What was said before is of no use to a pipe, except that an answer still runs.
    let mut session = opened(client, Open { history: Some(1), ..open }).await?;
    let mut status = client.status();
    // From here on the signal does not end the process by itself.
    let mut interrupts = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let (lines, mut read) = mpsc::channel(LINES);
    std::thread::spawn(move || read_lines(&lines));
    let mut failures = 0_u32;
    loop {
        let line = tokio::select! {
            biased;
            _ = interrupts.recv() => break,
            line = read.recv() => line,
            event = happens(&mut session, &mut status), if as_json => match event? {
                Some(_) => continue,
                None => return over(client),
            },
        };
        let Some(line) = line else { break };
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
        let answered = if as_json {
            events(&mut session, &mut status, message, &mut interrupts).await
        } else {
            answer(&session, message, &mut interrupts).await
        };
        match answered {
            Ok(()) => {}
            Err(err) if err.downcast_ref::<Error>().is_some() && !ended(client) => {
                failures += 1;
                told(as_json, &err)?;
            }
            Err(err) => return Err(err),
        }
    }
    anyhow::ensure!(failures == 0, "{failures} messages were not answered");
    Ok(())
}

/// Why nothing more will happen.
fn over(client: &Client) -> anyhow::Result<()> {
    let status = client.status().borrow().clone();
    let reason = status.reason.filter(|_reason| status.state == State::Closed);
    anyhow::bail!("{}", reason.unwrap_or_else(|| "this conversation is not there any more".to_owned()))
}

fn ended(client: &Client) -> bool {
    client.status().borrow().state == State::Closed
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

/// Writes the answer as it grows. The first Ctrl-C stops it, the second gives it up.
async fn answer(session: &Session, mut message: Message, interrupts: &mut Signal) -> anyhow::Result<()> {
    let stored = tokio::select! {
        stored = message.stored() => stored?,
        _ = interrupts.recv() => bail!(INTERRUPTED),
    };
    let mut stopping = None;
    loop {
        tokio::select! {
            piece = message.piece() => match piece? {
                Some(piece) => write(&shown(piece))?,
                None => break,
            },
            _ = interrupts.recv() => stop(session, stored.turn_id, &mut stopping)?,
            stopped = stopped(&mut stopping) => stopped?,
        }
    }
    write("\n")?;
    match message.reply().await? {
        Some(reply) => whole(&reply),
        None => Ok(()),
    }
}

/// The request that stops an answer, while it is on its way.
type Stopping = Option<BoxFuture<'static, Result<(), Error>>>;

fn stop(session: &Session, turn_id: Option<TurnId>, stopping: &mut Stopping) -> anyhow::Result<()> {
    ensure!(stopping.is_none(), INTERRUPTED);
    *stopping = turn_id.map(|turn_id| session.stop(turn_id).boxed());
    Ok(())
}

/// Fails when an answer could not be stopped.
async fn stopped(stopping: &mut Stopping) -> anyhow::Result<()> {
    let Some(asked) = stopping else { return std::future::pending().await };
    let stopped = asked.await;
    *stopping = Some(std::future::pending().boxed());
    match stopped {
        // It has ended by itself.
        Err(Error::Answered(error)) if error.code == ErrorCode::TurnNotFound => Ok(()),
        stopped => Ok(stopped?),
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

/// Writes everything that happens until a message is answered. The first Ctrl-C stops the answer, the second gives it
/// up.
async fn events(
    session: &mut Session,
    status: &mut watch::Receiver<Status>,
    mut message: Message,
    interrupts: &mut Signal,
) -> anyhow::Result<()> {
    let told = loop {
        tokio::select! {
            biased;
            told = message.stored() => break told?,
            _ = interrupts.recv() => bail!(INTERRUPTED),
            event = happens(session, status) => if event?.is_none() {
                return message.reply().await.map(drop).map_err(Into::into);
            },
        }
    };
    write_line(&json!({
        "event": "stored", "id": message.id(), "session_id": told.session_id, "seq": told.seq,
        "turn_id": told.turn_id, "duplicate": told.duplicate,
    }))?;
    if told.turn_id.is_none() {
        return Ok(());
    }
    // Where events are missing, the reply may be one of them.
    let (mut reply, mut missed, mut stopping) = (pin!(message.reply()), false, None);
    loop {
        tokio::select! {
            biased;
            _ = interrupts.recv() => stop(session, told.turn_id, &mut stopping)?,
            stopped = stopped(&mut stopping) => stopped?,
            event = happens(session, status) => match event? {
                Some(Happened::Event(Event::Reply(reply))) if told.turn_id == Some(reply.turn_id) => {
                    return whole(&reply);
                }
                Some(Happened::Event(Event::Missed)) => missed = true,
                Some(_) => {}
                None => return reply.await.map(drop).map_err(Into::into),
            },
            ended = &mut reply, if missed => {
                let Some(reply) = ended? else { return Ok(()) };
                // Its event comes right behind it, if it was not lost.
                while let Ok(event) = timeout(BEHIND, happens(session, status)).await {
                    let Some(event) = event? else { break };
                    if matches!(event, Happened::Event(Event::Reply(told)) if told.turn_id == reply.turn_id) {
                        return whole(&reply);
                    }
                }
                write_line(&object(&Event::Reply(Arc::clone(&reply))))?;
                return whole(&reply);
            }
        }
    }
}

/// What was written.
enum Happened {
    Event(Event),
    Status,
}

/// Writes what happens next; `None`: the watch is over.
async fn happens(session: &mut Session, status: &mut watch::Receiver<Status>) -> anyhow::Result<Option<Happened>> {
    tokio::select! {
        biased;
        event = session.next() => {
            let Some(event) = event else { return Ok(None) };
            write_line(&object(&event))?;
            Ok(Some(Happened::Event(event)))
        }
        Ok(()) = status.changed() => {
            let line = status_object(&status.borrow_and_update());
            write_line(&line)?;
            Ok(Some(Happened::Status))
        }
    }
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

/// Without what would steer the terminal, where it goes to one.
fn shown(mut text: String) -> String {
    if std::io::stdout().is_terminal() {
        text.retain(|c| matches!(c, '\n' | '\t') || !c.is_control());
    }
    text
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write the answer")
}

fn write_line(object: &Value) -> anyhow::Result<()> {
    write(&format!("{object}\n"))
}
