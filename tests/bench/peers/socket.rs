//! One WebSocket client for all servers: the same library, the same buffers; only what is said differs.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use rustls::{pki_types::ServerName, version::TLS13};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, Utf8Bytes, protocol::WebSocketConfig},
};

use crate::{frames, server::Running};

/// How long a connection may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// Of reads and of writes, on this side.
const BUFFER_BYTES: usize = 4096;

/// What is said over a WebSocket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// every text message counts
    Plain,
    /// engine.io 4 and socket.io 5: events named `m` count
    SocketIo,
    /// NATS's protocol over WebSocket: each `MSG` counts, however the server cuts it into frames
    Nats,
    /// chatbox: `typing_indicator` counts
    Typing,
    /// chatbox: the last frame of an answer counts
    Answer,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection that is ready to be asked.
pub(crate) struct Socket {
    stream: WebSocketStream<Box<dyn Io>>,
    dialect: Dialect,
    /// what NATS has sent and is not complete
    partial: BytesMut,
}

impl Socket {
    /// Opens a connection to `path`.
    pub(crate) async fn open(server: &Running, path: &str, dialect: Dialect) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        Self::upgrade(Box::new(stream), &format!("ws://{}{path}", server.address), dialect).await
    }

    /// The same over TLS 1.3, with a full handshake, to the TLS listener at `address`.
    pub(crate) async fn open_tls(
        address: std::net::SocketAddr,
        tls: &Arc<rustls::ClientConfig>,
        path: &str,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
        let stream = connector.connect(ServerName::from(address.ip()), stream).await?;
        Self::upgrade(Box::new(stream), &format!("wss://{address}{path}"), Dialect::Plain).await
    }

    async fn upgrade(stream: Box<dyn Io>, url: &str, dialect: Dialect) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default().read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
        let upgrade = tokio_tungstenite::client_async_with_config(url, stream, Some(config));
        let (stream, _) = timeout(PATIENCE, upgrade).await.context("upgrade in time")??;
        Ok(Self { stream, dialect, partial: BytesMut::new() })
    }

    /// Sends text.
    pub(crate) async fn send(&mut self, text: impl Into<Utf8Bytes>) -> anyhow::Result<()> {
        Ok(self.stream.send(Message::Text(text.into())).await?)
    }

    /// Sends bytes.
    pub(crate) async fn send_bytes(&mut self, bytes: bytes::Bytes) -> anyhow::Result<()> {
        Ok(self.stream.send(Message::Binary(bytes)).await?)
    }

    /// The next frame with data in it.
    async fn frame(&mut self) -> anyhow::Result<Message> {
        loop {
            match self.stream.next().await.context("the server closed the connection")?? {
                message @ (Message::Text(_) | Message::Binary(_)) => return Ok(message),
                Message::Close(frame) => bail!("the server closed the connection: {frame:?}"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Waits for the next message that counts.
    pub(crate) async fn message(&mut self) -> anyhow::Result<()> {
        loop {
            if self.dialect == Dialect::Nats {
                if self.take_message()? {
                    return Ok(());
                }
                let frame = self.frame().await?;
                self.partial.extend_from_slice(&frame.into_data());
                continue;
            }
            let frame = self.frame().await?;
            let text = frame.to_text()?;
            let counts = match self.dialect {
                Dialect::Plain => true,
                Dialect::SocketIo if text == "2" => {
                    self.send("3").await?;
                    false
                }
                Dialect::SocketIo => text.starts_with("42[\"m\""),
                Dialect::Typing => frames::is(text, "typing_indicator")?,
                Dialect::Answer => frames::is(text, "ai_response")? && text.contains("\"done\":\"true\""),
                Dialect::Nats => bail!("NATS is read above"),
            };
            if counts {
                return Ok(());
            }
        }
    }

    /// Takes one protocol message of NATS out of what has come; whether it was a `MSG`. False when more is needed.
    fn take_message(&mut self) -> anyhow::Result<bool> {
        while let Some(end) = self.partial.windows(2).position(|pair| pair == b"\r\n") {
            let line = std::str::from_utf8(self.partial.get(..end).unwrap_or_default())?;
            if !line.starts_with("MSG ") {
                ensure!(!line.starts_with("-ERR"), "NATS answers {line}");
                drop(self.partial.split_to(end + 2));
                continue;
            }
            let length: usize = line.rsplit(' ').next().context("MSG has a length")?.parse()?;
            let whole = end + 2 + length + 2;
            if self.partial.len() < whole {
                return Ok(false);
            }
            drop(self.partial.split_to(whole));
            return Ok(true);
        }
        Ok(false)
    }

    /// A client of NATS, subscribed to `subject`. Returns when the server has taken note of it.
    pub(crate) async fn nats(server: &Running, subject: Option<&str>) -> anyhow::Result<Self> {
        let mut socket = Self::open(server, "/", Dialect::Nats).await?;
        let subscribe = subject.map(|subject| format!("SUB {subject} 1\r\n")).unwrap_or_default();
        let hello = format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\n{subscribe}PING\r\n");
        socket.send_bytes(hello.into()).await?;
        let mut answers = Vec::new();
        while !answers.windows(4).any(|word| word == b"PONG") {
            answers.extend_from_slice(&socket.frame().await?.into_data());
        }
        Ok(socket)
    }

    /// A client of Socket.IO, in the room if it shall be.
    pub(crate) async fn socket_io(server: &Running, join: bool) -> anyhow::Result<Self> {
        let mut socket = Self::open(server, "/socket.io/?EIO=4&transport=websocket", Dialect::SocketIo).await?;
        socket.frame().await?;
        socket.send("40").await?;
        let answer = socket.frame().await?;
        ensure!(answer.to_text()?.starts_with("40"), "Socket.IO answers {answer}");
        if join {
            socket.send("42[\"join\"]").await?;
            let answer = socket.frame().await?;
            ensure!(answer.to_text()? == "42[\"joined\"]", "Socket.IO answers {answer}");
        }
        Ok(socket)
    }

    /// A device of a user of chatbox, attached to the session in which the user writes. Returns its id too.
    pub(crate) async fn chatbox(server: &Running, user: &str, dialect: Dialect) -> anyhow::Result<(Self, String)> {
        let mut socket = Self::open(server, "/chatbox/ws", dialect).await?;
        socket.send(frames::attach(server.site()?, user)?).await?;
        let status = socket.frame().await?;
        let session = frames::session(status.to_text()?)?;
        Ok((socket, session))
    }

    /// Attaches, over a connection that is open already.
    pub(crate) async fn attach(&mut self, server: &Running, user: &str) -> anyhow::Result<()> {
        self.send(frames::attach(server.site()?, user)?).await?;
        let status = self.frame().await?;
        frames::session(status.to_text()?).map(drop)
    }
}

/// TLS 1.3 of a client that trusts one certificate, and never resumes.
pub(crate) fn tls(server: &Running) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.certificate()?.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}
