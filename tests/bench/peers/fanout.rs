//! One message to many subscribers. A round trip ends when the last of them has it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use chatbox::bench::load::Pair;
use tokio::{sync::Notify, task::JoinSet};
use web_transport_quinn::{SendStream, Session};

use crate::{
    contest, frames,
    pairs::{Echo, Message, publication},
    quic::{Attached, Dialer, Subscriber},
    server::{Peer, Running},
    socket::{Dialect, Socket},
};

/// The user whose devices all subscribers of chatbox are.
const USER: &str = "user";
/// The subject of NATS.
const SUBJECT: &str = "topic";

/// A publisher, and subscribers that read all the time.
pub(crate) struct Fanout {
    publisher: Publisher,
    subscribers: u64,
    published: u64,
    delivered: Arc<Delivered>,
    _readers: JoinSet<anyhow::Result<()>>,
}

#[derive(Default)]
struct Delivered {
    count: AtomicU64,
    more: Notify,
}

enum Publisher {
    Socket(Box<Echo>),
    Stream { _session: Box<Session>, send: SendStream, message: Bytes },
    Attached { device: Box<Attached>, frame: String },
}

/// Whoever receives.
enum Reader {
    Socket(Socket),
    Stream(Subscriber),
    Attached(Attached),
}

impl Reader {
    async fn message(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Socket(socket) => socket.message().await,
            Self::Stream(subscriber) => subscriber.message().await,
            Self::Attached(device) => device.typing().await,
        }
    }
}

impl Fanout {
    /// Opens all connections. `quic` says over which transport chatbox is asked.
    pub(crate) async fn open(server: &Running, peer: Peer, quic: bool, subscribers: usize) -> anyhow::Result<Self> {
        let dialer = if quic { Some(Dialer::new(server)?) } else { None };
        let readers = contest::each(subscribers, async |_| reader(server, peer, dialer.as_ref()).await).await?;
        let publisher = publisher(server, peer, dialer.as_ref()).await?;
        let delivered = Arc::new(Delivered::default());
        let mut tasks = JoinSet::new();
        let count = u64::try_from(readers.len())?;
        for mut reader in readers {
            let delivered = Arc::clone(&delivered);
            tasks.spawn(async move {
                loop {
                    reader.message().await?;
                    // Only the last one of a round wakes the publisher.
                    if (delivered.count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(count) {
                        delivered.more.notify_one();
                    }
                }
            });
        }
        Ok(Self { publisher, subscribers: count, published: 0, delivered, _readers: tasks })
    }

    async fn publish(&mut self) -> anyhow::Result<()> {
        match &mut self.publisher {
            Publisher::Socket(echo) => echo.send().await,
            Publisher::Stream { send, message, .. } => Ok(send.write_chunk(message.clone()).await?),
            Publisher::Attached { device, frame } => device.send(frame).await,
        }
    }
}

impl Pair for Fanout {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.published += 1;
        let all = self.published * self.subscribers;
        self.publish().await?;
        while self.delivered.count.load(Ordering::Relaxed) < all {
            self.delivered.more.notified().await;
        }
        ensure!(self.delivered.count.load(Ordering::Relaxed) == all, "more was delivered than published");
        Ok(())
    }
}

async fn reader(server: &Running, peer: Peer, dialer: Option<&Dialer>) -> anyhow::Result<Reader> {
    Ok(match (peer, dialer) {
        (Peer::Chatbox, Some(dialer)) => Reader::Attached(dialer.chatbox(server, USER).await?.0),
        (_, Some(dialer)) => Reader::Stream(Subscriber::open(dialer).await?),
        (Peer::Chatbox, None) => Reader::Socket(Socket::chatbox(server, USER, Dialect::Typing).await?.0),
        (Peer::Nats, None) => Reader::Socket(Socket::nats(server, Some(SUBJECT)).await?),
        (Peer::SocketIo, None) => Reader::Socket(Socket::socket_io(server, true).await?),
        (_, None) => Reader::Socket(Socket::open(server, "/topic", Dialect::Plain).await?),
    })
}

async fn publisher(server: &Running, peer: Peer, dialer: Option<&Dialer>) -> anyhow::Result<Publisher> {
    let text = |text: String| Message::Text(text.into());
    Ok(match (peer, dialer) {
        (Peer::Chatbox, Some(dialer)) => {
            let (device, _) = dialer.chatbox(server, USER).await?;
            Publisher::Attached { device: Box::new(device), frame: frames::typing() }
        }
        (_, Some(dialer)) => {
            let session = dialer.open("/publish").await?;
            let (send, _) = session.open_bi().await.context("open a stream")?;
            Publisher::Stream { _session: Box::new(session), send, message: frames::payload().into() }
        }
        (peer, None) => {
            let (socket, message) = match peer {
                Peer::Chatbox => {
                    let (socket, _) = Socket::chatbox(server, USER, Dialect::Typing).await?;
                    (socket, text(frames::typing()))
                }
                Peer::Nats => (Socket::nats(server, None).await?, publication(SUBJECT, &frames::payload())),
                Peer::SocketIo => {
                    let event = format!("42[\"publish\",{}]", serde_json::Value::from(frames::payload()));
                    (Socket::socket_io(server, false).await?, text(event))
                }
                _ => (Socket::open(server, "/publish", Dialect::Plain).await?, text(frames::payload())),
            };
            Publisher::Socket(Box::new(Echo { socket, message }))
        }
    })
}
