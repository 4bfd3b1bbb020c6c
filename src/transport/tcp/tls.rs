//! TLS on an accepted socket, over the interface of rustls that keeps no buffers.
//!
//! Records pass through buffers of the thread. A connection that says nothing holds its keys, and room for nothing.
//! It knows neither certificates nor what is said.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What one read may bring: the longest record that there is (RFC 5246, section 6.2.3), with its header.
const READ_BYTES: usize = 16 * 1024 + 2048 + 5;
/// The longest handshake message that rustls takes, and a record.
const HELD_BYTES_MAX: usize = 64 * 1024 + READ_BYTES;
/// Of what is to leave, as much is made records at a time, and waits if the peer does not take it.
const WRITE_BYTES: usize = 64 * 1024;
/// Writes of several pieces that are no longer than this share a record (RFC 8446, section 5.1).
const GATHERED_BYTES: usize = 16 * 1024;
/// What a record is longer than its content, with the cipher suites of `ring`; more is made room for when it is asked.
const HEADER_BYTES: usize = 32;

thread_local! {
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static WRITE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static GATHERED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The server's end of a TLS connection. An end without `close_notify` is an error, of [`io::ErrorKind::UnexpectedEof`].
pub(super) struct Stream {
    socket: TcpStream,
    session: UnbufferedServerConnection,
    /// The beginning of a record, or of a handshake message.
    part: Vec<u8>,
    /// Plain bytes that found no room where they were to go.
    unread: Vec<u8>,
    /// Records that the peer has not taken yet.
    unwritten: Vec<u8>,
    reads: Reads,
    shut: bool,
}

/// Whether something is still to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Open,
    /// The peer has said that nothing follows.
    Ended,
    /// What came was not TLS, or no longer is.
    Failed,
}

impl Stream {
    /// Shakes hands with a client, which may take as long as it wants.
    ///
    /// # Errors
    /// When the client goes, or does not agree; it was sent an alert then, if it takes one.
    pub(super) async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Box<Self>> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let (part, unread, unwritten) = (Vec::new(), Vec::new(), Vec::new());
        let mut stream = Box::new(Self { socket, session, part, unread, unwritten, reads: Reads::Open, shut: false });
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_unwritten(cx))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_more(cx, &mut ReadBuf::new(&mut [])))?;
            if self.reads == Reads::Ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads from the socket, and takes what came apart. Plain bytes go to `plain`, and to `unread` beyond its room.
    fn poll_more(&mut self, cx: &mut Context<'_>, plain: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let held = self.part.len();
        let mut came = READ.take();
        if came.len() < held + READ_BYTES {
            came.resize(held + READ_BYTES, 0);
        }
        let (front, room) = came.split_at_mut(held);
        front.copy_from_slice(&self.part);
        let mut room = ReadBuf::new(room);
        let read = Pin::new(&mut self.socket).poll_read(cx, &mut room).map_ok(|()| room.filled().len());
        let taken = read.map(|read| match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.take_apart(came.get_mut(..held + count).unwrap_or_default(), plain),
        });
        READ.set(came);
        let Poll::Ready(Err(err)) = taken else { return taken };
        self.reads = Reads::Failed;
        self.part = Vec::new();
        // The peer is told why, if it takes that at once.
        match self.poll_unwritten(cx) {
            Poll::Ready(_) | Poll::Pending => Poll::Ready(Err(err)),
        }
    }

    fn take_apart(&mut self, mut came: &mut [u8], plain: &mut ReadBuf<'_>) -> io::Result<()> {
        loop {
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(came);
            let mut all = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        let (fits, rest) = record.payload.split_at(record.payload.len().min(plain.remaining()));
                        plain.put_slice(fits);
                        self.unread.extend_from_slice(rest);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut self.unwritten)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.reads = Reads::Ended,
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => all = true,
                Ok(ConnectionState::Closed) => all = true,
                // We offer no early data.
                Ok(other) => return Err(invalid(rustls::Error::General(format!("unexpected {other:?}")))),
                Err(err) => {
                    self.keep_alert()?;
                    return Err(invalid(err));
                }
            }
            came = came.split_at_mut_checked(discard).unwrap_or_default().1;
            if all {
                self.part = if self.reads == Reads::Open { came.to_vec() } else { Vec::new() };
                if self.part.len() >= HELD_BYTES_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                return Ok(());
            }
        }
    }

    /// What rustls has to say about an error. It reads nothing while it has something to say.
    fn keep_alert(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(mut data)), .. } =
                self.session.process_tls_records(&mut [])
            else {
                break;
            };
            encode(&mut data, &mut self.unwritten)?;
        }
        Ok(())
    }

    /// Resolves when the socket has taken all records.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unwritten.drain(..written);
        }
        // Nothing is kept for what waits rarely.
        self.unwritten = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Has `make` make records of what is to leave, writes what the peer takes of them, and keeps the rest. Must be
    /// called when nothing is unwritten.
    fn leave(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        make: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        let mut records = WRITE.take();
        records.clear();
        let made = self.make(&mut records, bytes, make);
        let written = match made.is_ok().then(|| Pin::new(&mut self.socket).poll_write(cx, &records)) {
            Some(Poll::Ready(written)) => written,
            Some(Poll::Pending) | None => Ok(0),
        };
        if let Ok(written) = written {
            self.unwritten.extend_from_slice(records.get(written..).unwrap_or_default());
        }
        WRITE.set(records);
        made.and(written.map(drop))
    }

    fn make(
        &mut self,
        records: &mut Vec<u8>,
        bytes: usize,
        mut make: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> io::Result<()> {
        loop {
            // What has come in part is read again each time, from its beginning.
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut self.part);
            match state.map_err(invalid)? {
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, records)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => {
                    append(records, bytes, |room| make(&mut traffic, room))?;
                    return Ok(());
                }
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            self.part.drain(..discard.min(self.part.len()));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while this.unread.is_empty() && buf.filled().len() == before {
            match this.reads {
                Reads::Open => ready!(this.poll_more(cx, buf))?,
                Reads::Ended => return Poll::Ready(Ok(())),
                Reads::Failed => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            // An answer to what came, which nobody may flush.
            if let Poll::Ready(Err(err)) = this.poll_unwritten(cx) {
                return Poll::Ready(Err(err));
            }
        }
        let count = this.unread.len().min(buf.remaining());
        buf.put_slice(this.unread.get(..count).unwrap_or_default());
        this.unread.drain(..count);
        if this.unread.is_empty() {
            this.unread = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_unwritten(cx))?;
        if this.shut || this.reads == Reads::Failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let plain = buf.get(..WRITE_BYTES).unwrap_or(buf);
        if !plain.is_empty() {
            let records = plain.len().div_ceil(GATHERED_BYTES);
            this.leave(cx, plain.len() + records * HEADER_BYTES, |traffic, room| traffic.encrypt(plain, room))?;
        }
        Poll::Ready(Ok(plain.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        let first = filled.next().map_or(&[][..], |first| first);
        if first.len() >= GATHERED_BYTES || filled.next().is_none() {
            return self.poll_write(cx, first);
        }
        let mut gathered = GATHERED.take();
        gathered.clear();
        for buf in bufs {
            let room = GATHERED_BYTES - gathered.len();
            gathered.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        let written = self.poll_write(cx, &gathered);
        GATHERED.set(gathered);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unwritten(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_unwritten(cx))?;
        if !this.shut && this.reads != Reads::Failed {
            this.leave(cx, HEADER_BYTES, |traffic, room| traffic.queue_close_notify(room))?;
            this.shut = true;
            ready!(this.poll_unwritten(cx))?;
        }
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

/// Appends what `make` makes. `room` is what it is thought to need; it says so when it needs more.
fn append(
    bytes: &mut Vec<u8>,
    mut room: usize,
    mut make: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> io::Result<()> {
    let begin = bytes.len();
    loop {
        bytes.resize(begin + room, 0);
        match make(bytes.split_at_mut(begin).1) {
            Ok(made) => {
                bytes.truncate(begin + made);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(short)) if short.required_size > room => room = short.required_size,
            Err(err) => {
                bytes.truncate(begin);
                return Err(io::Error::other(err));
            }
        }
    }
}

/// Appends what rustls has made of its own accord.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, records: &mut Vec<u8>) -> io::Result<()> {
    append(records, 0, |room| {
        data.encode(room).map_err(|err| match err {
            EncodeError::InsufficientSize(short) => short.into(),
            EncodeError::AlreadyEncoded => EncryptError::EncryptExhausted,
        })
    })
}

fn invalid(err: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}
