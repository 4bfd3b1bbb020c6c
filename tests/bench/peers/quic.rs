//! One WebTransport client for all servers: web-transport-quinn. With the transport settings that it has by default.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::{Buf, Bytes, BytesMut};
use tokio::time::timeout;
use web_transport_quinn::{ALPN, Client, RecvStream, SendStream, Session};

use crate::{frames, server::Running, socket};

/// How long a connection may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// UDP sockets of the load. What a server sends to a thousand sessions at once is more than one of them holds
/// (`net.core.rmem_default`, some 280 small packets), and browsers do not share one either.
const SOCKETS: usize = 32;

/// Opens sessions from [`SOCKETS`] UDP sockets in turn.
pub(crate) struct Dialer {
    clients: Vec<Client>,
    opened: AtomicUsize,
    address: SocketAddr,
}

impl Dialer {
    /// For a server whose certificate is known. Handshakes are full ones: nothing is resumed.
    pub(crate) fn new(server: &Running) -> anyhow::Result<Self> {
        let mut tls = socket::tls(server)?;
        tls.alpn_protocols = vec![ALPN.as_bytes().to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let client = || {
            let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
            anyhow::Ok(Client::new(endpoint, config.clone()))
        };
        let clients = (0..SOCKETS).map(|_| client()).collect::<Result<_, _>>()?;
        let address = server.site.as_ref().map_or(server.address, |site| site.quic);
        Ok(Self { clients, opened: AtomicUsize::new(0), address })
    }

    pub(crate) async fn open(&self, path: &str) -> anyhow::Result<Session> {
        let url: url::Url = format!("https://{}{path}", self.address).parse()?;
        let turn = self.opened.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let client = self.clients.get(turn).context("there is a socket")?;
        Ok(timeout(PATIENCE, client.connect(url)).await.context("session in time")??)
    }

    /// A device of a user of chatbox, attached to the session in which the user writes. Returns its id too.
    pub(crate) async fn chatbox(&self, server: &Running, user: &str) -> anyhow::Result<(Attached, String)> {
        Attached::attach(self.open("/chatbox/wt").await?, server, user).await
    }
}

/// A session of WebTransport with its attach stream.
pub(crate) struct Attached {
    pub(crate) session: Session,
    send: SendStream,
    lines: Lines,
}

impl Attached {
    /// Attaches, over a session that is open already.
    pub(crate) async fn attach(session: Session, server: &Running, user: &str) -> anyhow::Result<(Self, String)> {
        let (mut send, receive) = session.open_bi().await?;
        send.write_all(format!("{}\n", frames::attach(server.site()?, user)?).as_bytes()).await?;
        let mut attached = Self { session, send, lines: Lines { receive, buffer: BytesMut::new() } };
        let status = timeout(PATIENCE, attached.lines.next()).await.context("status in time")??;
        let id = frames::session(std::str::from_utf8(&status)?)?;
        Ok((attached, id))
    }

    /// Writes a frame on the attach stream.
    pub(crate) async fn send(&mut self, frame: &str) -> anyhow::Result<()> {
        let line = Bytes::from(format!("{frame}\n"));
        Ok(self.send.write_chunk(line).await?)
    }

    /// Waits for the next `typing_indicator` on the attach stream.
    pub(crate) async fn typing(&mut self) -> anyhow::Result<()> {
        loop {
            let line = self.lines.next().await?;
            if frames::is(std::str::from_utf8(&line)?, "typing_indicator")? {
                return Ok(());
            }
        }
    }
}

/// A stream as lines.
struct Lines {
    receive: RecvStream,
    buffer: BytesMut,
}

impl Lines {
    async fn next(&mut self) -> anyhow::Result<Bytes> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                return Ok(line);
            }
            let chunk = self.receive.read_chunk(usize::MAX, true).await?.context("the server ended the stream")?;
            self.buffer.extend_from_slice(&chunk.bytes);
        }
    }
}

/// Sends on a stream of its own, and reads all that comes back on it.
pub(crate) async fn ask(session: &Session, message: Bytes) -> anyhow::Result<Vec<u8>> {
    let (mut send, mut receive) = session.open_bi().await?;
    send.write_chunk(message).await?;
    send.finish()?;
    Ok(receive.read_to_end(ANSWER_BYTES).await?)
}

/// One stream on which everything is sent back.
pub(crate) struct Echo {
    _session: Session,
    send: SendStream,
    receive: RecvStream,
}

impl Echo {
    pub(crate) async fn open(dialer: &Dialer) -> anyhow::Result<Self> {
        let session = dialer.open("/one").await?;
        let (send, receive) = session.open_bi().await?;
        Ok(Self { _session: session, send, receive })
    }

    pub(crate) async fn round_trip(&mut self, message: &Bytes) -> anyhow::Result<()> {
        self.send.write_chunk(message.clone()).await?;
        let mut back = 0;
        while back < message.len() {
            back +=
                self.receive.read_chunk(usize::MAX, true).await?.context("the server ended the stream")?.bytes.len();
        }
        ensure!(back == message.len(), "{back} bytes came back");
        Ok(())
    }
}

/// A subscriber of web-transport-quinn's topic.
pub(crate) struct Subscriber {
    _session: Session,
    receive: RecvStream,
    surplus: usize,
}

impl Subscriber {
    pub(crate) async fn open(dialer: &Dialer) -> anyhow::Result<Self> {
        let session = dialer.open("/topic").await?;
        let mut receive = timeout(PATIENCE, session.accept_uni()).await.context("stream in time")??;
        let mut first = [0];
        receive.read_exact(&mut first).await?;
        Ok(Self { _session: session, receive, surplus: 0 })
    }

    /// Waits for the next message of [`frames::PAYLOAD_BYTES`].
    pub(crate) async fn message(&mut self) -> anyhow::Result<()> {
        while self.surplus < frames::PAYLOAD_BYTES {
            let chunk = self.receive.read_chunk(usize::MAX, true).await?.context("the server ended the stream")?;
            self.surplus += chunk.bytes.len();
        }
        self.surplus -= frames::PAYLOAD_BYTES;
        Ok(())
    }
}
