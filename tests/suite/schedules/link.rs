//! One connection of a device, over either transport: requests out, frames in. It reads the streams of a
//! connection in any order, a few bytes at a time, and can vanish at any byte.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use chatbox::connection::ATTACH_DEADLINE;
use futures_util::{SinkExt, StreamExt, future::poll_fn};
use serde_json::Value;
use tokio::{
    io::{self, AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};
use web_transport_quinn::{RecvStream, SendStream, Session};

use super::{
    plan::{Rng, Through},
    plant::Planted,
    world::Place,
};
use crate::harness::{Via, client::PATIENCE, proxy::Proxy};

/// How long a network is waited for that may be dead.
const SILENCE: Duration = Duration::from_secs(3);

/// A frame, and the request that opened its stream, where there are streams.
pub(crate) type Came = (Value, Option<String>);

pub(crate) struct Link {
    inner: Inner,
    order: Rng,
    /// bytes that it still reads
    left: usize,
    ready: VecDeque<Came>,
    planted: Option<Planted>,
    opened: Instant,
    /// A network that goes dead is not known to be.
    pub(crate) doubtful: bool,
    _proxy: Option<Proxy>,
}

enum Inner {
    Streams { session: Box<Session>, streams: Vec<Stream> },
    Socket(Box<WebSocketStream<Tap>>),
}

struct Stream {
    id: String,
    /// open on attach streams only
    send: Option<SendStream>,
    recv: RecvStream,
    buffer: BytesMut,
}

impl Link {
    /// Has a fault in everything that comes.
    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = Some(planted);
    }

    /// Opens a connection; `None` when the network went dead meanwhile.
    pub(super) async fn open(place: &Place, via: Via, through: Through, order: Rng) -> Option<Self> {
        let server = if via == Via::WebTransport { place.quic } else { place.http };
        let proxy = match (through, via) {
            (Through::Direct, _) => None,
            (Through::Proxy(bytes), Via::WebTransport) => Some(Proxy::udp(server, bytes).await),
            (Through::Proxy(bytes), Via::WebSocket) => Some(Proxy::tcp(server, bytes).await),
        };
        let address = proxy.as_ref().map_or(server, |proxy| proxy.address);
        let (opened, wait) = (Instant::now(), if proxy.is_some() { SILENCE } else { PATIENCE });
        let inner = match timeout(wait, connect(place, via, address)).await {
            Ok(inner) => inner.expect("a server that runs takes connections"),
            Err(_dead) if proxy.is_some() => return None,
            Err(_elapsed) => panic!("no connection over {via:?}"),
        };
        let doubtful = proxy.is_some();
        let ready = VecDeque::new();
        Some(Self { inner, order, left: usize::MAX, ready, planted: None, opened, doubtful, _proxy: proxy })
    }

    /// Opens a connection to a server that may be gone; `None` when there is none within some time.
    pub(crate) async fn attempt(place: &Place, via: Via, order: Rng, within: Duration) -> Option<Self> {
        let (server, opened) = (if via == Via::WebTransport { place.quic } else { place.http }, Instant::now());
        let inner = timeout(within, connect(place, via, server)).await.ok()?.ok()?;
        let ready = VecDeque::new();
        Some(Self { inner, order, left: usize::MAX, ready, planted: None, opened, doubtful: false, _proxy: None })
    }

    pub(crate) const fn via(&self) -> Via {
        match self.inner {
            Inner::Streams { .. } => Via::WebTransport,
            Inner::Socket(_) => Via::WebSocket,
        }
    }

    /// How long something that must come may take on it.
    pub(super) const fn patience(&self) -> Duration {
        if self.doubtful { SILENCE } else { PATIENCE }
    }

    /// Whether the server may have closed it because something took too long, as on a machine that stands still: it
    /// waits for nothing less long than for an `attach`.
    pub(super) fn late(&self) -> bool {
        self.opened.elapsed() >= ATTACH_DEADLINE
    }

    /// Sends a request: on a stream of its own if it opens an exchange or a watch. `false`: the connection is gone.
    pub(crate) async fn send(&mut self, frame: &Value) -> bool {
        let sent = timeout(self.patience(), self.try_send(frame)).await;
        // A network that goes dead takes what it has room for.
        sent.unwrap_or(None).is_some()
    }

    async fn try_send(&mut self, frame: &Value) -> Option<()> {
        let opens = matches!(frame["type"].as_str(), Some("attach" | "user_message"));
        match &mut self.inner {
            Inner::Socket(socket) => socket.send(Message::text(frame.to_string())).await.ok(),
            Inner::Streams { session, streams } if opens => {
                let (mut send, recv) = session.open_bi().await.ok()?;
                send.write_all(format!("{frame}\n").as_bytes()).await.ok()?;
                let mut stream =
                    Stream { id: frame["id"].as_str().unwrap().to_owned(), send: None, recv, buffer: BytesMut::new() };
                if frame["type"] == "attach" {
                    // The newer watch replaces the older.
                    streams.retain(|stream| stream.send.is_none());
                    stream.send = Some(send);
                } else {
                    send.finish().ok()?;
                }
                streams.push(stream);
                Some(())
            }
            Inner::Streams { streams, .. } => {
                let send = streams.iter_mut().find_map(|stream| stream.send.as_mut())?;
                send.write_all(format!("{frame}\n").as_bytes()).await.ok()
            }
        }
    }

    /// Sends so many bytes of a message, and vanishes.
    pub(super) async fn send_part(mut self, frame: &Value, bytes: usize) {
        let wait = self.patience();
        match &mut self.inner {
            Inner::Socket(socket) => {
                socket.get_mut().left_to_write = bytes;
                let sent = socket.send(Message::text(frame.to_string()));
                drop(timeout(wait, sent).await);
            }
            Inner::Streams { session, .. } => {
                let line = format!("{frame}\n");
                let part = &line.as_bytes()[..bytes.min(line.len())];
                let sent = async {
                    let (mut send, recv) = session.open_bi().await.ok()?;
                    send.write_all(part).await.ok()?;
                    if part.len() == line.len() {
                        send.finish().ok()?;
                    }
                    Some((send, recv))
                };
                drop(timeout(wait, sent).await);
            }
        }
        self.vanish();
    }

    /// Reads no further than so many bytes.
    pub(super) const fn cut_after(&mut self, bytes: usize) {
        self.left = bytes;
    }

    /// Does not read an exchange any longer. `false` on a socket, where all is one.
    pub(super) fn give_up(&mut self, id: &str) -> bool {
        let Inner::Streams { streams, .. } = &mut self.inner else { return false };
        streams.retain(|stream| stream.id != id);
        true
    }

    /// Closes as a page does that is left.
    pub(crate) async fn leave(self) {
        let wait = self.patience();
        match self.inner {
            Inner::Streams { session, .. } => session.close(0, b""),
            Inner::Socket(mut socket) => drop(timeout(wait, SinkExt::close(&mut socket)).await),
        }
    }

    /// Is there no more.
    pub(crate) fn vanish(self) {
        if let Inner::Streams { session, .. } = self.inner {
            quinn::Connection::close(&session, 0_u32.into(), b"");
        }
    }

    /// The next frame of any stream; `None` when nothing more comes. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Came> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Came>> {
        loop {
            if let Some(came) = self.ready.pop_front() {
                return Poll::Ready(Some(came));
            }
            let came = match &mut self.inner {
                Inner::Socket(socket) => ready!(poll_socket(cx, socket, &mut self.left)),
                Inner::Streams { streams, .. } => ready!(poll_streams(cx, streams, &mut self.order, &mut self.left)),
            };
            match (came, &mut self.planted) {
                (None, _) => return Poll::Ready(None),
                (Some(came), Some(planted)) => planted.pass(came, &mut self.ready),
                (Some(came), None) => self.ready.push_back(came),
            }
        }
    }
}

async fn connect(place: &Place, via: Via, address: SocketAddr) -> anyhow::Result<Inner> {
    match via {
        Via::WebTransport => {
            let url = format!("https://{address}/chatbox/wt").parse::<url::Url>()?;
            let session = place.client.connect(url).await?;
            Ok(Inner::Streams { session: Box::new(session), streams: Vec::new() })
        }
        Via::WebSocket => {
            let mut request = format!("ws://{address}/chatbox/ws").into_client_request()?;
            request.headers_mut().insert("sec-websocket-protocol", "chatbox.v1".parse()?);
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let tap = Tap { stream, left_to_read: usize::MAX, left_to_write: usize::MAX };
            let (socket, _) = tokio_tungstenite::client_async(request, tap).await?;
            Ok(Inner::Socket(Box::new(socket)))
        }
    }
}

fn poll_socket(cx: &mut Context<'_>, socket: &mut WebSocketStream<Tap>, left: &mut usize) -> Poll<Option<Came>> {
    loop {
        socket.get_mut().left_to_read = *left;
        let message = socket.poll_next_unpin(cx);
        *left = socket.get_mut().left_to_read;
        match ready!(message) {
            Some(Ok(Message::Text(text))) => return Poll::Ready(Some((parse(text.as_bytes()), None))),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Poll::Ready(None),
            Some(Ok(_)) => {}
        }
    }
}

/// Asks the streams one after the other, from any one on, so that which of two arrivals is read first is chance.
fn poll_streams(
    cx: &mut Context<'_>,
    streams: &mut Vec<Stream>,
    order: &mut Rng,
    left: &mut usize,
) -> Poll<Option<Came>> {
    let first = order.below(streams.len());
    let mut asked = 0;
    while asked < streams.len() {
        let at = (first + asked) % streams.len();
        let stream = &mut streams[at];
        if let Some(end) = stream.buffer.iter().position(|byte| *byte == b'\n') {
            let line = stream.buffer.split_to(end);
            stream.buffer.advance(1);
            return Poll::Ready(Some((parse(&line), Some(stream.id.clone()))));
        }
        if *left == 0 {
            return Poll::Ready(None);
        }
        let mut bytes = [0; 4096];
        let most = (order.below(bytes.len()) + 1).min(*left);
        let mut read = ReadBuf::new(&mut bytes[..most]);
        match Pin::new(&mut stream.recv).poll_read(cx, &mut read) {
            Poll::Pending => asked += 1,
            Poll::Ready(Err(_gone)) => return Poll::Ready(None),
            // The stream is finished. A cut line at its end would be a fault of the server.
            Poll::Ready(Ok(())) if read.filled().is_empty() => {
                assert!(stream.buffer.is_empty(), "a stream ends within a line: {:?}", stream.buffer);
                streams.swap_remove(at);
                return poll_streams(cx, streams, order, left);
            }
            Poll::Ready(Ok(())) => {
                *left -= read.filled().len();
                stream.buffer.extend_from_slice(read.filled());
            }
        }
    }
    Poll::Pending
}

fn parse(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("a frame is JSON")
}

/// A socket that reads and writes so many bytes and then is gone.
#[derive(Debug)]
struct Tap {
    stream: TcpStream,
    left_to_read: usize,
    left_to_write: usize,
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left_to_read == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut part = buffer.take(self.left_to_read);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        self.left_to_read -= read;
        // What the part was filled with is initialised; the whole does not know it yet.
        let bytes = part.filled().to_vec();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = &bytes[..bytes.len().min(self.left_to_write)];
        if part.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, part))?;
        self.left_to_write -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
