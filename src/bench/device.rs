//! A device: a connection that watches a session, and what it can ask.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::client::{Dialer, Exchange, Link, Transport};

/// How long one answer of a server is waited for.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);

/// What the bench reads of a frame.
#[derive(Deserialize, Debug)]
pub(super) struct Seen<'a> {
    /// which frame it is
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    /// the session of a status
    pub(super) session_id: Option<Uuid>,
    /// where a piece begins
    pub(super) offset: Option<u64>,
    /// its text
    #[serde(borrow)]
    pub(super) content: Option<Cow<'a, str>>,
    /// on the last frame of an answer
    #[serde(borrow)]
    pub(super) state: Option<Cow<'a, str>>,
    /// of an `error`
    error: Option<Refused>,
}

#[derive(Deserialize, Debug)]
struct Refused {
    code: String,
    #[serde(default)]
    message: String,
}

impl<'a> Seen<'a> {
    /// # Errors
    /// When it is no frame, or an `error`.
    pub(super) fn read(frame: &'a [u8]) -> anyhow::Result<Self> {
        let seen: Self = serde_json::from_slice(frame).context("the server sent what is no frame")?;
        match &seen.error {
            Some(Refused { code, message }) => bail!("the server answered {code}: {message}"),
            None => Ok(seen),
        }
    }

    /// Whether it is a piece of an answer, not its end.
    pub(super) fn piece(&self) -> bool {
        self.r#type == "ai_response" && self.state.is_none()
    }
}

/// A connection that watches a session.
#[derive(Debug)]
pub(super) struct Device {
    /// carries it
    pub(super) link: Link,
    /// its attach stream
    pub(super) watch: Exchange,
    /// what it watches
    pub(super) session: Uuid,
}

/// How long the parts of an answer took, from the moment before the message was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    /// the moment before the message was sent
    pub(super) began: Instant,
    /// until it was acknowledged
    pub(super) accepted: Duration,
    /// until the first piece of the answer
    pub(super) first: Duration,
}

impl Device {
    /// Connects and attaches to the active session of the token's bearer.
    pub(super) async fn open(dialer: &Dialer, transport: Transport, token: &str) -> anyhow::Result<Self> {
        let opened = async {
            let link = dialer.open(transport).await?;
            let mut watch = link.exchange(attach(token, None)).await?;
            let frame = watch.next().await?.context("the server ended the watch")?;
            let seen = Seen::read(&frame)?;
            ensure!(seen.r#type == "connection_status", "attach was answered with {}", seen.r#type);
            let session = seen.session_id.context("the status names no session")?;
            Ok(Self { link, watch, session })
        };
        timeout(DEADLINE, opened).await.context("connect and attach")?
    }

    /// Sends a message and reads its answer to the end, which must be complete.
    pub(super) async fn say(&mut self, content: &str) -> anyhow::Result<Said> {
        let frame = json!({
            "type": "user_message", "id": Uuid::now_v7(), "session_id": self.session, "content": content,
        });
        let frame = Bytes::from(frame.to_string());
        let began = Instant::now();
        let mut exchange = self.link.exchange(frame).await?;
        let (mut accepted, mut first, mut complete) = (None, None, false);
        while let Some(frame) = self.next_of(&mut exchange).await? {
            let seen = Seen::read(&frame)?;
            match &*seen.r#type {
                "accepted" => accepted = Some(began.elapsed()),
                "ai_response" => {
                    first.get_or_insert_with(|| began.elapsed());
                    complete |= seen.state.is_some_and(|state| state == "complete");
                }
                _ => {}
            }
        }
        ensure!(complete, "the answer did not end complete");
        let accepted = accepted.context("nothing was accepted")?;
        Ok(Said { began, accepted, first: first.context("there was no answer")? })
    }

    /// The next frame of an exchange. What the watch brings meanwhile is read too, so that it holds nothing up.
    async fn next_of(&mut self, exchange: &mut Exchange) -> anyhow::Result<Option<Bytes>> {
        loop {
            tokio::select! {
                biased;
                frame = exchange.next() => return Ok(frame?),
                event = self.watch.next() => ensure!(event?.is_some(), "the server ended the watch"),
            }
        }
    }
}

/// An `attach`; with `last`, that shows so many of the last entries.
pub(super) fn attach(token: &str, last: Option<u32>) -> Bytes {
    // A field that is null counts as absent.
    json!({"type": "attach", "id": Uuid::new_v4(), "token": token, "last": last}).to_string().into()
}

/// A `typing_indicator` of so many bytes, which has no answer.
pub(super) fn typing(session: Uuid, state: &str, bytes: usize) -> Bytes {
    let frame = |pad: &str| {
        json!({"type": "typing_indicator", "session_id": session, "metadata": {"state": state}, "pad": pad}).to_string()
    };
    let missing = bytes.saturating_sub(frame("").len());
    frame(&"x".repeat(missing)).into()
}

/// A text of so many bytes.
pub(super) fn text(bytes: usize) -> String {
    "What a person types in a chat is short, and asks for something. ".chars().cycle().take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_asked_length() {
        assert_eq!(typing(Uuid::nil(), "start", 200).len(), 200);
        assert_eq!(text(200).len(), 200);
        assert!(attach("t", Some(5)).windows(8).any(|window| window == b"\"last\":5"));
    }

    #[test]
    fn an_error_frame_is_an_error_and_a_piece_is_not_the_end() {
        let err = Seen::read(br#"{"type":"error","error":{"code":"NOT_FOUND"}}"#).unwrap_err();
        assert!(err.to_string().contains("NOT_FOUND"), "{err}");
        let piece = br#"{"type":"ai_response","offset":3,"content":"a\n"}"#;
        assert!(Seen::read(piece).unwrap().piece());
        assert!(!Seen::read(br#"{"type":"ai_response","content":"","state":"complete"}"#).unwrap().piece());
    }
}
