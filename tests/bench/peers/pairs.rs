//! Who asks and who answers: one round trip of each kind, over each transport.

use anyhow::ensure;
use bytes::Bytes;
use chatbox::bench::load::Pair;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use web_transport_quinn::Session;

use crate::{
    frames, quic,
    socket::{Dialect, Socket},
};

/// A connection, and what is said on it. By itself it waits for what comes back.
pub(crate) struct Echo {
    pub(crate) socket: Socket,
    pub(crate) message: Message,
}

/// Text, or bytes as NATS wants them.
pub(crate) enum Message {
    Text(Utf8Bytes),
    Bytes(Bytes),
}

impl Echo {
    pub(crate) async fn send(&mut self) -> anyhow::Result<()> {
        match &self.message {
            Message::Text(text) => self.socket.send(text.clone()).await,
            Message::Bytes(bytes) => self.socket.send_bytes(bytes.clone()).await,
        }
    }
}

impl Pair for Echo {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.send().await?;
        self.socket.message().await
    }
}

/// Two connections: each in turn says something that the other one is told. Of chatbox: two devices of one session that
/// type. Both read, so that both answer what the server asks of a connection.
pub(crate) struct Relay(pub(crate) [Echo; 2]);

impl Pair for Relay {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.0.reverse();
        let [from, to] = &mut self.0;
        from.send().await?;
        to.socket.message().await
    }
}

/// A message to the model, and its answer to the last frame.
pub(crate) struct Stored(pub(crate) Socket);

impl Pair for Stored {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.0.send(frames::message()).await?;
        self.0.message().await
    }
}

/// web-transport-quinn: everything on one stream.
pub(crate) struct EchoOne {
    pub(crate) echo: quic::Echo,
    pub(crate) message: Bytes,
}

impl Pair for EchoOne {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.echo.round_trip(&self.message).await
    }
}

/// web-transport-quinn: a stream for each message.
pub(crate) struct EchoEach {
    pub(crate) session: Session,
    pub(crate) message: Bytes,
}

impl Pair for EchoEach {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let answer = quic::ask(&self.session, self.message.clone()).await?;
        ensure!(answer.len() == self.message.len(), "{} bytes came back", answer.len());
        Ok(())
    }
}

/// chatbox over WebTransport: as [`Relay`], on the attach streams.
pub(crate) struct RelayQuic {
    pub(crate) devices: [quic::Attached; 2],
    pub(crate) frame: String,
}

impl Pair for RelayQuic {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        self.devices.reverse();
        let [from, to] = &mut self.devices;
        from.send(&self.frame).await?;
        to.typing().await
    }
}

/// chatbox over WebTransport: a request on a stream of its own.
pub(crate) struct Asks {
    pub(crate) device: quic::Attached,
    pub(crate) request: Request,
}

/// What is asked on a stream of its own.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    /// answered at once, neither routed nor stored
    Ping,
    /// stored, and answered by the model
    Message,
}

impl Pair for Asks {
    async fn round_trip(&mut self) -> anyhow::Result<()> {
        let (frame, last) = match self.request {
            Request::Ping => (frames::ping(), "{\"type\":\"pong\""),
            Request::Message => (frames::message(), "{\"type\":\"ai_response\""),
        };
        let answer = quic::ask(&self.device.session, format!("{frame}\n").into()).await?;
        let answer = std::str::from_utf8(&answer)?;
        let end = answer.trim_end().rsplit('\n').next().unwrap_or_default();
        ensure!(end.starts_with(last), "the answer ends with {end}");
        Ok(())
    }
}

/// The dialect in which a peer is echoed.
pub(crate) fn echo(socket: Socket, dialect: Dialect, subject: usize) -> Echo {
    let payload = frames::payload();
    let message = match dialect {
        Dialect::SocketIo => Message::Text(format!("42[\"m\",{}]", serde_json::Value::from(payload)).into()),
        Dialect::Nats => publication(&format!("echo.{subject}"), &payload),
        Dialect::Plain | Dialect::Typing | Dialect::Answer => Message::Text(payload.into()),
    };
    Echo { socket, message }
}

/// NATS's `PUB`.
pub(crate) fn publication(subject: &str, payload: &str) -> Message {
    Message::Bytes(format!("PUB {subject} {}\r\n{payload}\r\n", payload.len()).into())
}
