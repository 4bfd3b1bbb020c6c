//! What arrives: one connection that watches every session, and how long each piece and message was on its way.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use chatbox::client::{Dialer, Exchange, Link, Transport};
use serde::Deserialize;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::{
    experiment::{Load, Variant},
    source::{self, PATIENCE},
    text,
};

/// What this reads of a frame.
#[derive(Deserialize)]
struct Frame<'a> {
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    session_id: Option<Cow<'a, str>>,
    seq: Option<u64>,
    last_seq: Option<u64>,
    offset: Option<usize>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    state: Option<Cow<'a, str>>,
    length: Option<usize>,
    sha256: Option<Cow<'a, str>>,
}

/// How a frame came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Stream,
    Datagram,
}

/// What one connection got.
#[derive(Clone, Default, Debug)]
pub(crate) struct Arrivals {
    /// of each piece of an answer, when all text up to its end was there
    pub(crate) pieces: Vec<Duration>,
    /// of each message
    pub(crate) messages: Vec<Duration>,
    /// frames of which a datagram's copy was first
    pub(crate) copies: usize,
    /// bytes of answers that were there when the model had said everything
    pub(crate) bytes_in_time: usize,
}

/// One session as one connection sees it, fed by its stream and by copies.
struct Session {
    load: Load,
    arrivals: Arrivals,
    /// of the answer
    text: String,
    /// the place that the next entry has
    next: u64,
    /// when the model began, as the first piece says
    began: Option<Duration>,
    done: bool,
}

impl Session {
    const fn new(load: Load, last_seq: u64) -> Self {
        let arrivals = Arrivals { pieces: Vec::new(), messages: Vec::new(), copies: 0, bytes_in_time: 0 };
        Self { load, arrivals, text: String::new(), next: last_seq + 1, began: None, done: false }
    }

    /// Takes a frame if it is what comes next, whichever way it came (the contract's section 1.3, "Datagrams").
    fn take(&mut self, frame: &Bytes, by: By) -> anyhow::Result<()> {
        let now = text::now();
        let frame: Frame<'_> = serde_json::from_slice(frame)?;
        let new = match &*frame.r#type {
            "ai_response" if frame.state.is_some() => self.end(&frame, by)?,
            "ai_response" => self.piece(&frame, now, by)?,
            "user_message" => self.entry(&frame, now, by)?,
            "error" => bail!("the watch is told an error"),
            _ => false,
        };
        if let Some(seq) = frame.seq.filter(|_| by == By::Stream || new) {
            self.next = self.next.max(seq + 1);
        }
        self.arrivals.copies += usize::from(new && by == By::Datagram);
        Ok(())
    }

    fn piece(&mut self, frame: &Frame<'_>, now: Duration, by: By) -> anyhow::Result<bool> {
        let (offset, content) = frame.offset.zip(frame.content.as_deref()).context("a piece without text")?;
        let held = self.text.len();
        ensure!(offset <= held || by == By::Datagram, "a hole before byte {offset} after {held}");
        let Some(fresh) = held.checked_sub(offset).and_then(|known| content.get(known..)) else { return Ok(false) };
        if fresh.is_empty() {
            return Ok(false);
        }
        self.text.push_str(fresh);
        let bytes = self.load.piece_bytes;
        for index in held / bytes..self.text.len() / bytes {
            let piece = self.text.get(index * bytes..(index + 1) * bytes).context("a record of ASCII")?;
            let sent = text::read(piece, index, bytes)?;
            self.arrivals.pieces.push(now.saturating_sub(sent));
            let began = *self.began.get_or_insert(sent);
            if now.saturating_sub(began) <= self.load.seconds {
                self.arrivals.bytes_in_time = (index + 1) * bytes;
            }
        }
        Ok(true)
    }

    fn end(&mut self, frame: &Frame<'_>, by: By) -> anyhow::Result<bool> {
        let length = frame.length.context("an end without a length")?;
        if self.done || (by == By::Datagram && self.text.len() != length) {
            return Ok(false);
        }
        let digest = hex::encode(ring::digest::digest(&ring::digest::SHA256, self.text.as_bytes()));
        ensure!(frame.state.as_deref() == Some("complete"), "the answer ended as {:?}", frame.state);
        ensure!(self.text.len() == length, "{} of {length} bytes arrived", self.text.len());
        ensure!(frame.sha256.as_deref() == Some(&*digest), "the text is not the one that was sent");
        ensure!(self.arrivals.pieces.len() == self.load.pieces(), "{} pieces arrived", self.arrivals.pieces.len());
        self.done = true;
        Ok(true)
    }

    fn entry(&mut self, frame: &Frame<'_>, now: Duration, by: By) -> anyhow::Result<bool> {
        let (seq, content) = frame.seq.zip(frame.content.as_deref()).context("a message without a place")?;
        // What has been taken comes again by the other way; what lies ahead is not taken from a datagram.
        if seq < self.next || (by == By::Datagram && seq != self.next) {
            return Ok(false);
        }
        // The question itself is short.
        if content.len() != self.load.message_bytes {
            return Ok(true);
        }
        let sent = text::read(content, self.arrivals.messages.len(), self.load.message_bytes)?;
        self.arrivals.messages.push(now.saturating_sub(sent));
        self.done = self.arrivals.messages.len() == self.load.messages();
        Ok(true)
    }
}

/// A connection that watches every session; nothing is read from it before [`Self::read`].
pub(crate) struct Watcher {
    variant: Variant,
    link: Link,
    watches: Vec<(Exchange, Shared)>,
}

type Shared = Arc<Mutex<Session>>;

impl Watcher {
    /// Connects and attaches to each session.
    pub(crate) async fn open(
        dialer: &Dialer,
        variant: Variant,
        token: &str,
        sessions: &[String],
        load: Load,
    ) -> anyhow::Result<Self> {
        let link = dialer.open(variant.transport()).await.with_context(|| format!("{variant} connects"))?;
        let mut watches = Vec::new();
        for session in sessions {
            let attach = json!({"type": "attach", "id": source::id(), "token": token, "session_id": session,
                "datagrams": variant == Variant::Copies});
            let mut watch = link.exchange(source::frame(&attach)).await?;
            let status = timeout(PATIENCE, watch.next()).await.context("no answer in time")??.context("no answer")?;
            let frame: Frame<'_> = serde_json::from_slice(&status)?;
            ensure!(frame.r#type == "connection_status", "{variant} is not attached: {status:?}");
            let session = Session::new(load, frame.last_seq.unwrap_or_default());
            watches.push((watch, Arc::new(Mutex::new(session))));
        }
        Ok(Self { variant, link, watches })
    }

    /// Reads until everything is there.
    ///
    /// # Errors
    /// When something arrives that was not sent, or does not arrive until long after it was sent.
    pub(crate) async fn read(self, sessions: &[String], load: Load) -> anyhow::Result<Arrivals> {
        let Self { variant, link, watches } = self;
        let shared: Vec<_> = watches.iter().map(|(_, session)| Arc::clone(session)).collect();
        let mut streams = JoinSet::new();
        for (watch, session) in watches {
            streams.spawn(follow(watch, session));
        }
        let copies = copies(&link, sessions, &shared);
        let all = async {
            while let Some(followed) = streams.join_next().await {
                followed.context("a reader panicked")??;
            }
            Ok::<_, anyhow::Error>(())
        };
        let read = async {
            tokio::select! {
                read = all => read,
                Err(fault) = copies => Err(fault),
            }
        };
        let read = timeout(load.seconds * 2 + PATIENCE, read).await;
        read.with_context(|| format!("{variant}: not everything arrived"))?.with_context(|| format!("{variant}"))?;
        let mut arrivals = Arrivals::default();
        for session in shared {
            let session = session.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.pieces.extend(&session.arrivals.pieces);
            arrivals.messages.extend(&session.arrivals.messages);
            arrivals.copies += session.arrivals.copies;
            arrivals.bytes_in_time += session.arrivals.bytes_in_time;
        }
        Ok(arrivals)
    }
}

async fn follow(mut watch: Exchange, session: Shared) -> anyhow::Result<()> {
    while !session.lock().unwrap_or_else(PoisonError::into_inner).done {
        let frame = watch.next().await?.context("the watch ended")?;
        session.lock().unwrap_or_else(PoisonError::into_inner).take(&frame, By::Stream)?;
    }
    Ok(())
}

/// Hands copies to their sessions, for ever.
async fn copies(link: &Link, sessions: &[String], shared: &[Shared]) -> anyhow::Result<()> {
    loop {
        let datagram = link.datagram().await;
        let frame: Frame<'_> = serde_json::from_slice(&datagram)?;
        let known = sessions.iter().zip(shared).find(|(id, _)| Some(id.as_str()) == frame.session_id.as_deref());
        let (_, session) = known.context("a copy for no session")?;
        session.lock().unwrap_or_else(PoisonError::into_inner).take(&datagram, By::Datagram)?;
    }
}

impl Variant {
    const fn transport(self) -> Transport {
        match self {
            Self::Bbr | Self::Cubic => Transport::WebSocket,
            Self::Streams | Self::Copies => Transport::WebTransport,
        }
    }
}
