//! The frames of one WebSocket: what the library makes of the bytes that came, and the bytes of those that leave.
//!
//! Both directions go through a buffer of the thread, so that a socket holds only what the peer has not sent or taken
//! whole. A text message that is one short frame is read there; pings, fragments and everything else is the library's.
//! It knows neither requests nor exchanges.

use std::{
    cell::Cell,
    future::poll_fn,
    io::{self, Cursor, Read, Write},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    protocol::{
        CloseFrame, Role, WebSocketConfig, WebSocketContext,
        frame::{
            FrameHeader,
            coding::{Control, Data, OpCode},
        },
    },
};

use crate::protocol::Encoded;

/// What one read may bring, and what one write takes at least if there is as much.
const BUFFER_BYTES: usize = 16 * 1024;
/// Longest message that is read there, with room for its header.
const SHORT_BYTES_MAX: usize = BUFFER_BYTES - 16;
/// Frames that share a write; bounds how long reading waits for writing.
const FRAMES_MAX: usize = 32;
/// What the library reads at a time from the thread's buffer; each socket has room for it.
const PART_BYTES: usize = 128;
/// Pongs and close frames that wait behind bytes which the peer does not take; beyond it the latest ping is answered.
const OWED_BYTES_MAX: usize = 1024;

thread_local! {
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static WRITE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The server's end of a WebSocket. The fields lie as they are written here: what is written touches the first ones only.
#[repr(C)]
pub(super) struct Socket<S> {
    stream: S,
    /// What the peer has not taken yet; everything that leaves passes here, so that no frame is cut by another.
    unwritten: Vec<u8>,
    /// The library may keep something that is to leave: a pong that found no room.
    library_owes: bool,
    /// The library reads whatever comes, for good: it was given a message that is long or comes in parts, or a close
    /// frame, and may hold the beginning of what follows.
    by_library: bool,
    ended: bool,
    frame_bytes_max: usize,
    unread: Unread,
    context: WebSocketContext,
}

/// What has come.
pub(super) enum Received<T> {
    /// a text message, as the caller has read it
    Text(T),
    /// a message of a kind that nobody here understands
    Binary,
    /// something between two ends of a connection
    Control,
    /// the peer's close frame
    Close,
}

/// What bytes begin with.
enum First {
    /// a text message: its text, unmasked; the next frame begins where it ends
    Text(Range<usize>),
    /// a frame of so many bytes that tells of the connection
    Control(usize),
    /// a part of one of these
    Part,
    /// something else
    Other,
}

impl First {
    fn of(bytes: &mut [u8], frame_bytes_max: usize) -> Self {
        let mut cursor = Cursor::new(&*bytes);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Self::Part,
            Err(_invalid) => return Self::Other,
        };
        let begin = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let Some(length) =
            usize::try_from(length).ok().filter(|length| *length <= frame_bytes_max.min(SHORT_BYTES_MAX))
        else {
            return Self::Other;
        };
        let plain = header.is_final && !header.rsv1 && !header.rsv2 && !header.rsv3;
        let text = begin..begin + length;
        match (header.opcode, header.mask, bytes.get_mut(text.clone())) {
            (OpCode::Data(Data::Text), Some(mask), Some(payload)) if plain => {
                unmask(payload, mask);
                Self::Text(text)
            }
            (OpCode::Control(_), _, Some(_payload)) => Self::Control(text.end),
            (OpCode::Data(Data::Text), Some(_), None) if plain => Self::Part,
            (OpCode::Control(_), _, None) => Self::Part,
            _ => Self::Other,
        }
    }
}

/// RFC 6455, section 5.3.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (whole, rest) = payload.as_chunks_mut();
    for bytes in whole {
        *bytes = (u64::from_ne_bytes(*bytes) ^ twice).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

/// Bytes that have come and were not read yet.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    left: Range<usize>,
    /// Whether the bytes are in the buffer of the thread.
    lent: bool,
}

impl Unread {
    fn of(bytes: Vec<u8>) -> Self {
        Self { left: 0..bytes.len(), bytes, lent: false }
    }

    fn left(&self) -> &[u8] {
        self.bytes.get(self.left.clone()).unwrap_or_default()
    }

    fn left_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.left.clone()).unwrap_or_default()
    }

    /// Reads more, behind what is left. Says how much came; zero at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<usize>> {
        if !self.lent || self.left.is_empty() {
            self.borrow();
        }
        let mut room = ReadBuf::new(self.bytes.get_mut(self.left.end..).unwrap_or_default());
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let count = room.filled().len();
        self.left.end += count;
        Poll::Ready(Ok(count))
    }

    /// Moves what is left to the beginning of the thread's buffer. Whoever needs more has less than that takes.
    fn borrow(&mut self) {
        let mut buffer = if self.lent { std::mem::take(&mut self.bytes) } else { READ.take() };
        buffer.resize(BUFFER_BYTES, 0);
        let left = self.left().len();
        buffer.iter_mut().zip(self.left()).for_each(|(to, from)| *to = *from);
        *self = Self { bytes: buffer, left: 0..left, lent: true };
    }

    /// Gives the buffer back to the thread, and keeps what is left.
    fn give_back(&mut self) {
        if self.lent {
            let left = Self::of(self.left().to_vec());
            READ.set(std::mem::replace(self, left).bytes);
        } else if self.left.is_empty() {
            *self = Self::default();
        }
    }
}

/// Frames that are to leave together, in the buffer of the thread.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    frames: usize,
}

impl Batch {
    pub(super) const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether another frame has to wait.
    pub(super) fn full(&self) -> bool {
        self.frames >= FRAMES_MAX || self.bytes.len() >= BUFFER_BYTES
    }

    /// Adds a frame as a text message. What serde wrote is UTF-8, and is not looked through once more.
    pub(super) fn text(&mut self, frame: &Encoded) {
        self.frame(OpCode::Data(Data::Text), &frame.message());
    }

    pub(super) fn ping(&mut self) {
        self.frame(OpCode::Control(Control::Ping), &[]);
    }

    #[expect(clippy::expect_used, reason = "memory takes what is written to it")]
    fn frame(&mut self, opcode: OpCode, payload: &[u8]) {
        if self.is_empty() {
            self.bytes = WRITE.take();
        }
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        let length = u64::try_from(payload.len()).unwrap_or(u64::MAX);
        header.format(length, &mut self.bytes).expect("memory takes what is written to it");
        self.bytes.extend_from_slice(payload);
        self.frames += 1;
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(BUFFER_BYTES);
            WRITE.set(std::mem::take(&mut self.bytes));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Takes a connection over whose upgrade is done; `early` is what the client has sent since.
    pub(super) fn new(stream: S, early: Vec<u8>, frame_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(PART_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(OWED_BYTES_MAX)
            .max_message_size(Some(frame_bytes_max))
            .max_frame_size(Some(frame_bytes_max));
        Self {
            stream,
            context: WebSocketContext::new(Role::Server, Some(config)),
            unread: Unread::of(early),
            frame_bytes_max,
            by_library: false,
            library_owes: false,
            unwritten: Vec::new(),
            ended: false,
        }
    }

    /// The next message; `None` after the last one. Answers pings and close frames by itself. `read` is given the text
    /// of a text message.
    pub(super) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&str) -> T,
    ) -> Poll<Option<Result<Received<T>, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let received = self.poll_received(cx, read);
        self.unread.give_back();
        let received = ready!(received);
        self.ended = !matches!(received, Some(Ok(_)));
        Poll::Ready(received)
    }

    fn poll_received<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&str) -> T,
    ) -> Poll<Option<Result<Received<T>, Error>>> {
        while !self.by_library {
            let left = self.unread.left_mut();
            match First::of(left, self.frame_bytes_max) {
                First::Text(text) => {
                    let end = text.end;
                    let text = std::str::from_utf8(left.get(text).unwrap_or_default());
                    let received = text.map(read).map(Received::Text).map_err(|err| Error::Utf8(err.to_string()));
                    self.unread.left.start += end;
                    return Poll::Ready(Some(received));
                }
                First::Control(length) => {
                    // It alone, so that the library is not in the middle of the next one afterwards.
                    let mut frame = Unread::of(left.get(..length).unwrap_or_default().to_vec());
                    self.unread.left.start += length;
                    std::mem::swap(&mut frame, &mut self.unread);
                    let received = self.poll_library(cx, read);
                    self.unread = frame;
                    return received;
                }
                First::Part => {
                    if ready!(self.unread.poll_more(cx, &mut self.stream))? == 0 {
                        return Poll::Ready(None);
                    }
                }
                First::Other => self.by_library = true,
            }
        }
        self.poll_library(cx, read)
    }

    fn poll_library<T>(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(&str) -> T,
    ) -> Poll<Option<Result<Received<T>, Error>>> {
        let received = match self.with_library(cx, |library, io| library.read(io)) {
            Ok(Message::Text(text)) => Received::Text(read(&text)),
            Ok(Message::Binary(_)) => Received::Binary,
            Ok(Message::Close(_)) => {
                self.by_library = true;
                Received::Close
            }
            Ok(Message::Ping(_)) => {
                // The pong leaves now, or, if there is no room, with the next flush.
                match self.with_library(cx, |library, io| library.flush(io)) {
                    Err(Error::Io(err)) if err.kind() == io::ErrorKind::WouldBlock => {}
                    flushed => flushed?,
                }
                Received::Control
            }
            Ok(Message::Pong(_) | Message::Frame(_)) => Received::Control,
            Err(Error::Io(err)) if err.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
                // The peer is to see our answer to its close frame.
                return self.poll_drain(cx).map(|_drained| None);
            }
            Err(err) => return Poll::Ready(Some(Err(err))),
        };
        Poll::Ready(Some(Ok(received)))
    }

    /// Adds what is to leave behind all that has not left, and writes as much as the peer takes.
    pub(super) fn write(&mut self, cx: &mut Context<'_>, batch: &Batch) -> io::Result<()> {
        Io { stream: &mut self.stream, unread: &mut self.unread, unwritten: &mut self.unwritten, cx }
            .leave(&batch.bytes)
    }

    /// Adds what is to leave with the next flush.
    pub(super) fn keep(&mut self, batch: &Batch) {
        self.unwritten.extend_from_slice(&batch.bytes);
    }

    /// Whether something waits to leave, such as pongs that the peer does not take.
    pub(super) const fn owes(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Resolves when everything has left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(self.poll_drain(cx))?;
            if self.library_owes {
                match self.with_library(cx, |library, io| library.flush(io)) {
                    Ok(()) | Err(Error::ConnectionClosed) => self.library_owes = false,
                    Err(err) => return Poll::Ready(Err(err)),
                }
            }
            if self.unwritten.is_empty() {
                return Pin::new(&mut self.stream).poll_flush(cx).map_err(Error::Io);
            }
        }
    }

    /// Writes our close frame, behind what has not left. No ping may wait for its answer.
    pub(super) async fn close(&mut self, frame: CloseFrame) -> Result<(), Error> {
        let mut frame = Some(frame);
        let closed = poll_fn(|cx| Poll::Ready(self.with_library(cx, |library, io| library.close(io, frame.take()))));
        match closed.await {
            Err(Error::Io(err)) if err.kind() == io::ErrorKind::WouldBlock => {}
            closed => closed?,
        }
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// The connection below.
    pub(super) const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unwritten.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unwritten))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unwritten.drain(..written);
        }
        // Nothing is kept for what waits rarely.
        self.unwritten = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn with_library<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut WebSocketContext, &mut Io<'_, '_, S>) -> T,
    ) -> T {
        let Self { stream, context, unread, unwritten, library_owes, .. } = self;
        *library_owes = true;
        let mut io = Io { stream, unread, unwritten, cx };
        act(context, &mut io)
    }
}

/// The connection as the library sees it: it reads what has come, leaves what is to go, and never waits.
struct Io<'a, 'b, S> {
    stream: &'a mut S,
    unread: &'a mut Unread,
    unwritten: &'a mut Vec<u8>,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncWrite + Unpin> Io<'_, '_, S> {
    /// Writes what the peer takes at once, and keeps the rest.
    fn leave(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while self.unwritten.is_empty() && !bytes.is_empty() {
            match Pin::new(&mut *self.stream).poll_write(self.cx, bytes) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Poll::Ready(Err(err)) => return Err(err),
                Poll::Pending => break,
            }
        }
        self.unwritten.extend_from_slice(bytes);
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> Read for Io<'_, '_, S> {
    fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        if self.unread.left().is_empty() {
            match self.unread.poll_more(self.cx, self.stream) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let left = self.unread.left();
        let count = left.len().min(part.len());
        part.split_at_mut(count).0.copy_from_slice(left.split_at(count).0);
        self.unread.left.start += count;
        Ok(count)
    }
}

impl<S: AsyncWrite + Unpin> Write for Io<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unwritten.len() >= OWED_BYTES_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.leave(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
