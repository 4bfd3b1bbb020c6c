//! What can be measured of a server: relayed and stored messages, fan-out, connections.

use anyhow::{Context, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    frames,
    pairs::{self, Asks, Echo, EchoEach, EchoOne, Message, Relay, RelayQuic, Request, Stored},
    quic::{self, Dialer},
    server::{Peer, Running},
    socket::{Dialect, Socket},
};

/// Connections that are opened at a time.
pub(crate) const AT_ONCE: usize = 8;

/// One thing that a server is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// sent back to the sender; of chatbox: a `typing_indicator` to another device of the session
    Relay,
    /// sent on to another connection, as chatbox does: what two sockets cost where one is read and the other is written
    Between,
    /// the same over QUIC; of web-transport-quinn: everything on one stream
    RelayQuic,
    /// web-transport-quinn sends back what comes on a stream, for each message a new one; chatbox answers a `ping`
    Streams,
    /// A message is stored, and answered in one piece. Of chatbox by the model of the process, and four frames are
    /// delivered to the one device that is there: `accepted`, `loading`, and of the answer the piece and the end
    Stored,
    /// the same over QUIC, on a stream for each message
    StoredQuic,
}

/// Pairs of each type; [`chatbox::bench::load::run`] wants all of one.
pub(crate) enum Pairs {
    Echo(Vec<Echo>),
    Relay(Vec<Relay>),
    Stored(Vec<Stored>),
    EchoOne(Vec<EchoOne>),
    EchoEach(Vec<EchoEach>),
    RelayQuic(Vec<RelayQuic>),
    Asks(Vec<Asks>),
}

/// Opens so many pairs.
pub(crate) async fn pairs(server: &Running, peer: Peer, task: Task, count: usize) -> anyhow::Result<Pairs> {
    Ok(match (peer, task) {
        (Peer::Chatbox, Task::Relay) => Pairs::Relay(each(count, |at| relay(server, at)).await?),
        (Peer::Chatbox, Task::Stored) => {
            let open = async |at| Ok(Stored(Socket::chatbox(server, &user(at), Dialect::Answer).await?.0));
            Pairs::Stored(each(count, open).await?)
        }
        (Peer::Sqlite, Task::Stored) => {
            let open = async |_| Ok(Stored(Socket::open(server, "/", Dialect::Answer).await?));
            Pairs::Stored(each(count, open).await?)
        }
        (Peer::Chatbox, Task::RelayQuic) => {
            let dialer = Dialer::new(server)?;
            Pairs::RelayQuic(each(count, |at| relay_quic(server, &dialer, at)).await?)
        }
        (Peer::Chatbox, Task::Streams | Task::StoredQuic) => {
            let dialer = Dialer::new(server)?;
            let request = if task == Task::Streams { Request::Ping } else { Request::Message };
            let open = async |at| {
                let (device, _) = dialer.chatbox(server, &user(at)).await?;
                Ok(Asks { device, request })
            };
            Pairs::Asks(each(count, open).await?)
        }
        (Peer::WebTransportQuinn, Task::RelayQuic) => {
            let dialer = Dialer::new(server)?;
            let open =
                async |_| Ok(EchoOne { echo: quic::Echo::open(&dialer).await?, message: frames::payload().into() });
            Pairs::EchoOne(each(count, open).await?)
        }
        (Peer::WebTransportQuinn, Task::Streams) => {
            let dialer = Dialer::new(server)?;
            let open =
                async |_| Ok(EchoEach { session: dialer.open("/each").await?, message: frames::payload().into() });
            Pairs::EchoEach(each(count, open).await?)
        }
        (_, Task::Between) => Pairs::Relay(each(count, |at| between(server, peer, at)).await?),
        (_, Task::Relay) => Pairs::Echo(each(count, |at| echo(server, peer, at)).await?),
        (peer, task) => anyhow::bail!("{peer} has no {task:?}"),
    })
}

/// Opens so many, some at a time.
#[expect(clippy::future_not_send, reason = "the load has one thread")]
pub(crate) async fn each<T>(count: usize, open: impl AsyncFn(usize) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    stream::iter(0..count).map(|at| open(at)).buffer_unordered(AT_ONCE).try_collect().await.context("open connections")
}

fn user(at: usize) -> String {
    format!("user-{at}")
}

async fn echo(server: &Running, peer: Peer, at: usize) -> anyhow::Result<Echo> {
    let (socket, dialect) = match peer {
        Peer::Nats => (Socket::nats(server, Some(&format!("echo.{at}"))).await?, Dialect::Nats),
        Peer::SocketIo => (Socket::socket_io(server, false).await?, Dialect::SocketIo),
        _ => (Socket::open(server, "/echo", Dialect::Plain).await?, Dialect::Plain),
    };
    Ok(pairs::echo(socket, dialect, at))
}

async fn relay(server: &Running, at: usize) -> anyhow::Result<Relay> {
    let (one, session) = Socket::chatbox(server, &user(at), Dialect::Typing).await?;
    let (other, same) = Socket::chatbox(server, &user(at), Dialect::Typing).await?;
    ensure!(session == same, "two devices of a user are in two sessions");
    Ok(Relay([one, other].map(|socket| Echo { socket, message: Message::Text(frames::typing().into()) })))
}

async fn between(server: &Running, peer: Peer, at: usize) -> anyhow::Result<Relay> {
    let subjects = [2 * at, 2 * at + 1];
    let (path, dialect) = (format!("/between/{at}"), Dialect::Plain);
    let [one, other] = match peer {
        Peer::Nats => {
            let open = async |subject| Socket::nats(server, Some(&format!("echo.{subject}"))).await;
            [open(subjects[0]).await?, open(subjects[1]).await?]
        }
        _ => [Socket::open(server, &path, dialect).await?, Socket::open(server, &path, dialect).await?],
    };
    let dialect = if peer == Peer::Nats { Dialect::Nats } else { dialect };
    Ok(Relay([pairs::echo(one, dialect, subjects[1]), pairs::echo(other, dialect, subjects[0])]))
}

async fn relay_quic(server: &Running, dialer: &Dialer, at: usize) -> anyhow::Result<RelayQuic> {
    let (one, session) = dialer.chatbox(server, &user(at)).await?;
    let (other, same) = dialer.chatbox(server, &user(at)).await?;
    ensure!(session == same, "two devices of a user are in two sessions");
    Ok(RelayQuic { devices: [one, other], frame: frames::typing() })
}
