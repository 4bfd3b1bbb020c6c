//! The bytes of WebTransport over HTTP/3 that h3 does not know: varints, stream headers, capsules, SETTINGS, codes.
//!
//! Pure functions and small parsers that take bytes as they come, however they are split. No I/O, no panics on
//! any input, nothing is kept that is longer than its stated limit.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// First varint of a bidirectional WebTransport stream (draft-ietf-webtrans-http3-02, section 4.2).
pub const BIDIRECTIONAL: u64 = 0x41;

/// First varint of a unidirectional WebTransport stream (draft-ietf-webtrans-http3-02, section 4.1).
pub const UNIDIRECTIONAL: u64 = 0x54;

/// H3 error code for a stream whose session is not known (draft-ietf-webtrans-http3-02, section 8.5).
pub const BUFFERED_STREAM_REJECTED: u64 = 0x3994_bd84;

/// Type of the first unidirectional stream of each side (RFC 9114, section 6.2.1).
pub const CONTROL_STREAM: u64 = 0x00;

const DATA_FRAME: u64 = 0x00;
const SETTINGS_FRAME: u64 = 0x04;
const CLOSE_CAPSULE: u64 = 0x2843;

/// Largest frame other than DATA that h3 is handed. It keeps such a frame in memory until it is whole; a header
/// section of the advertised size fits even in its longest encoding.
const FRAME_BYTES_MAX: u64 = 64 * 1024;

/// Longest reason in a CLOSE capsule (draft-ietf-webtrans-http3-02, section 5).
const REASON_BYTES_MAX: usize = 1024;

/// Largest capsule of an unknown type that is skipped.
const CAPSULE_BYTES_MAX: u64 = 64 * 1024;

/// Reads a varint (RFC 9000, section 16) and moves past it; `None` when it is not whole.
#[must_use]
pub fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let (whole, rest) = bytes.split_at_checked(varint_length(first))?;
    *bytes = rest;
    let rest = whole.iter().skip(1);
    Some(rest.fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)))
}

/// How many bytes the varint has that begins with `first`: 1, 2, 4 or 8.
const fn varint_length(first: u8) -> usize {
    1 << (first >> 6)
}

/// Writes a varint in its shortest form. Values of 2^62 and more do not exist in QUIC and are cut to 62 bits.
pub fn put_varint(out: &mut impl BufMut, value: u64) {
    let bytes = value.to_be_bytes();
    let [.., seventh, eighth] = bytes;
    let [_, _, _, _, fifth, sixth, ..] = bytes;
    match value {
        0..0x40 => out.put_u8(eighth),
        0x40..0x4000 => out.put_slice(&[seventh | 0x40, eighth]),
        0x4000..0x4000_0000 => out.put_slice(&[fifth | 0x80, sixth, seventh, eighth]),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// What the header of an incoming stream says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// a WebTransport stream of this session; its payload follows
    WebTransport {
        /// id of the CONNECT stream
        session: u64,
    },
    /// a stream of HTTP/3, of which these bytes have been read
    Http3 {
        /// the stream's or first frame's type
        first: u64,
        /// the bytes to put back
        read: Bytes,
    },
}

/// Recognises a stream by its first bytes, one at a time, and reads not one byte too many.
#[derive(Clone, Debug)]
pub struct Header {
    marker: u64,
    read: [u8; 16],
    length: usize,
}

impl Header {
    /// Expects `marker`, [`BIDIRECTIONAL`] or [`UNIDIRECTIONAL`], on WebTransport streams.
    #[must_use]
    pub const fn new(marker: u64) -> Self {
        Self { marker, read: [0; 16], length: 0 }
    }

    /// How many bytes may be read before the next decision; at least 1.
    #[must_use]
    pub fn wanted(&self) -> usize {
        let read = self.read.get(..self.length).unwrap_or_default();
        let mut rest = read;
        if get_varint(&mut rest).is_none() {
            rest = read;
        }
        rest.first().map_or(1, |first| varint_length(*first).saturating_sub(rest.len())).max(1)
    }

    /// Takes the next byte; `Some` when the stream is recognised.
    pub fn push(&mut self, byte: u8) -> Option<Kind> {
        *self.read.get_mut(self.length)? = byte;
        self.length += 1;
        let read = self.read.get(..self.length)?;
        let mut rest = read;
        let first = get_varint(&mut rest)?;
        if first != self.marker {
            return Some(Kind::Http3 { first, read: Bytes::copy_from_slice(read) });
        }
        get_varint(&mut rest).map(|session| Kind::WebTransport { session })
    }
}

/// Refuses an HTTP/3 stream on which a frame other than DATA is longer than h3 should keep in memory.
#[derive(Clone, Default, Debug)]
pub struct FrameGuard {
    header: [u8; 16],
    length: usize,
    payload: u64,
}

/// A frame is longer than is accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("frame exceeds {FRAME_BYTES_MAX} bytes")]
pub struct FrameTooLong;

impl FrameGuard {
    /// A guard for a stream of which the first varint, and nothing else, has been read: the type of a frame.
    #[must_use]
    pub fn after(varint: &[u8]) -> Self {
        let mut guard = Self::default();
        for (kept, byte) in guard.header.iter_mut().zip(varint) {
            *kept = *byte;
            guard.length += 1;
        }
        guard
    }

    /// Looks at the next bytes of the stream.
    ///
    /// # Errors
    /// When they announce a frame that is too long; the stream is then unusable.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<(), FrameTooLong> {
        loop {
            let skipped = bytes.len().min(usize::try_from(self.payload).unwrap_or(usize::MAX));
            bytes.advance(skipped);
            self.payload -= u64::try_from(skipped).unwrap_or(self.payload);
            let Some((byte, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            *self.header.get_mut(self.length).ok_or(FrameTooLong)? = *byte;
            self.length += 1;
            let mut header = self.header.get(..self.length).unwrap_or_default();
            if let Some(kind) = get_varint(&mut header)
                && let Some(payload) = get_varint(&mut header)
            {
                if kind != DATA_FRAME && payload > FRAME_BYTES_MAX {
                    return Err(FrameTooLong);
                }
                self.length = 0;
                self.payload = payload;
            }
        }
    }
}

/// The end of a WebTransport session, as CLOSE_WEBTRANSPORT_SESSION says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// the application's code
    pub code: u32,
    /// for people; what is not UTF-8 is replaced
    pub reason: String,
}

impl Close {
    /// The whole capsule. A reason longer than 1024 bytes is cut at a character.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let end = self.reason.floor_char_boundary(REASON_BYTES_MAX);
        let reason = self.reason.get(..end).unwrap_or_default();
        let mut out = BytesMut::with_capacity(reason.len() + 16);
        put_varint(&mut out, CLOSE_CAPSULE);
        put_varint(&mut out, u64::try_from(reason.len() + 4).unwrap_or_default());
        out.put_u32(self.code);
        out.put_slice(reason.as_bytes());
        out.freeze()
    }
}

/// Reads the capsules of a CONNECT stream (RFC 9297, section 3.2) and skips all but the closing one.
#[derive(Clone, Default, Debug)]
pub struct Capsules {
    header: [u8; 16],
    length: usize,
    skip: u64,
    close: Option<Vec<u8>>,
    left: usize,
}

/// The peer broke the capsule protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("capsule is malformed or too long")]
pub struct BadCapsule;

impl Capsules {
    /// Takes the next bytes; `Some` when the session is closed by them, and then nothing that follows counts.
    ///
    /// # Errors
    /// When a capsule is longer than it may be, or a closing one is too short for its code.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Close>, BadCapsule> {
        loop {
            if let Some(payload) = &mut self.close {
                let (taken, _) = bytes.split_at_checked(self.left).unwrap_or((bytes, &[]));
                payload.extend_from_slice(taken);
                self.left -= taken.len();
                return if self.left > 0 { Ok(None) } else { decode_close(payload).map(Some) };
            }
            let skipped = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            bytes.advance(skipped);
            self.skip -= u64::try_from(skipped).unwrap_or(self.skip);
            let Some((byte, rest)) = bytes.split_first() else { return Ok(None) };
            bytes = rest;
            self.push_header(*byte)?;
        }
    }

    fn push_header(&mut self, byte: u8) -> Result<(), BadCapsule> {
        *self.header.get_mut(self.length).ok_or(BadCapsule)? = byte;
        self.length += 1;
        let mut header = self.header.get(..self.length).unwrap_or_default();
        let Some(kind) = get_varint(&mut header) else { return Ok(()) };
        let Some(payload) = get_varint(&mut header) else { return Ok(()) };
        self.length = 0;
        if kind != CLOSE_CAPSULE {
            self.skip = payload;
            return if payload > CAPSULE_BYTES_MAX { Err(BadCapsule) } else { Ok(()) };
        }
        self.left = usize::try_from(payload).unwrap_or(usize::MAX);
        if !(4..=4 + REASON_BYTES_MAX).contains(&self.left) {
            return Err(BadCapsule);
        }
        self.close = Some(Vec::with_capacity(self.left));
        Ok(())
    }
}

fn decode_close(payload: &[u8]) -> Result<Close, BadCapsule> {
    let (code, reason) = payload.split_first_chunk().ok_or(BadCapsule)?;
    Ok(Close { code: u32::from_be_bytes(*code), reason: String::from_utf8_lossy(reason).into_owned() })
}

/// Adds settings to the first bytes of a control stream, as h3 writes them: stream type, then a SETTINGS frame.
/// A setting that is there already gets the new value. `None` when the bytes are anything else.
#[must_use]
pub fn add_settings(written: &[u8], extra: &[(u64, u64)]) -> Option<Bytes> {
    let mut rest = written;
    let (stream, frame) = (get_varint(&mut rest)?, get_varint(&mut rest)?);
    let length = usize::try_from(get_varint(&mut rest)?).ok()?;
    if stream != CONTROL_STREAM || frame != SETTINGS_FRAME || rest.len() != length {
        return None;
    }
    let mut settings = BytesMut::with_capacity(written.len() + 16 * extra.len());
    while !rest.is_empty() {
        let (id, value) = (get_varint(&mut rest)?, get_varint(&mut rest)?);
        if extra.iter().all(|(other, _)| *other != id) {
            put_varint(&mut settings, id);
            put_varint(&mut settings, value);
        }
    }
    for (id, value) in extra {
        put_varint(&mut settings, *id);
        put_varint(&mut settings, *value);
    }
    let mut out = BytesMut::with_capacity(settings.len() + 8);
    put_varint(&mut out, CONTROL_STREAM);
    put_varint(&mut out, SETTINGS_FRAME);
    put_varint(&mut out, u64::try_from(settings.len()).ok()?);
    out.put(settings);
    Some(out.freeze())
}

/// Where the application's codes begin among those of HTTP/3 (draft-ietf-webtrans-http3-02, section 4.3).
const FIRST_CODE: u64 = 0x52e4_a40f_a8db;
const LAST_CODE: u64 = 0x52e5_ac98_3162;

/// The code in RESET_STREAM and STOP_SENDING for an application's code. Every 31st one is reserved by HTTP/3.
#[must_use]
pub fn to_http3(code: u32) -> u64 {
    FIRST_CODE + u64::from(code) + u64::from(code) / 0x1e
}

/// The application's code, if that is what a RESET_STREAM or STOP_SENDING carries.
#[must_use]
pub fn from_http3(code: u64) -> Option<u32> {
    if !(FIRST_CODE..=LAST_CODE).contains(&code) || (code - 0x21).is_multiple_of(0x1f) {
        return None;
    }
    let shifted = code - FIRST_CODE;
    u32::try_from(shifted - shifted / 0x1f).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        out
    }

    fn recognise(marker: u64, bytes: &[u8]) -> Option<(Kind, usize)> {
        let mut header = Header::new(marker);
        bytes.iter().enumerate().find_map(|(index, byte)| Some((header.push(*byte)?, index + 1)))
    }

    fn closes(chunks: &[&[u8]]) -> Result<Option<Close>, BadCapsule> {
        let mut capsules = Capsules::default();
        for chunk in chunks {
            if let Some(close) = capsules.push(chunk)? {
                return Ok(Some(close));
            }
        }
        Ok(None)
    }

    /// RFC 9000, appendix A.1.
    #[test]
    fn varints_match_the_specification() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(get_varint(&mut &*bytes), Some(value));
            assert_eq!(encoded(value), bytes);
        }
        assert_eq!(get_varint(&mut &[0x40, 0x25][..]), Some(37));
    }

    #[test]
    fn streams_are_told_apart_by_their_first_bytes() {
        assert_eq!(recognise(BIDIRECTIONAL, &[0x40, 0x41, 0x04, b'x']), Some((Kind::WebTransport { session: 4 }, 3)));
        let http3 = Kind::Http3 { first: 1, read: Bytes::from_static(&[0x01]) };
        assert_eq!(recognise(BIDIRECTIONAL, &[0x01, 0x20]), Some((http3, 1)));
        assert_eq!(recognise(BIDIRECTIONAL, &[0x40, 0x41, 0x40]), None);
    }

    #[test]
    fn long_frames_are_refused_unless_they_carry_a_body() {
        let announce = |kind, length| [encoded(kind), encoded(length)].concat();
        assert_eq!(FrameGuard::default().check(&announce(1, FRAME_BYTES_MAX)), Ok(()));
        assert_eq!(FrameGuard::default().check(&announce(1, FRAME_BYTES_MAX + 1)), Err(FrameTooLong));
        assert_eq!(FrameGuard::default().check(&announce(0, 1 << 40)), Ok(()));
        let mut guard = FrameGuard::default();
        assert_eq!(guard.check(&announce(0, 2)), Ok(()));
        assert_eq!(guard.check(&[b"ab".to_vec(), announce(0x21, 1 << 20)].concat()), Err(FrameTooLong));
    }

    #[test]
    fn settings_are_added_once_and_replace_what_is_there() {
        let written = [0x00, 0x04, 0x04, 0x06, 0x01, 0x08, 0x00];
        let patched = add_settings(&written, &[(0x08, 1), (0x33, 1)]);
        assert_eq!(patched.as_deref(), Some(&[0x00, 0x04, 0x06, 0x06, 0x01, 0x08, 0x01, 0x33, 0x01][..]));
        assert_eq!(add_settings(&[0x00, 0x04, 0x05, 0x06, 0x01], &[]), None);
        assert_eq!(add_settings(&[0x02], &[]), None);
    }

    /// draft-ietf-webtrans-http3-02, section 4.3.
    #[test]
    fn codes_skip_the_reserved_ones() {
        assert_eq!(to_http3(0), FIRST_CODE);
        assert_eq!(to_http3(u32::MAX), LAST_CODE);
        assert_eq!(from_http3(FIRST_CODE - 1), None);
        assert_eq!(from_http3(to_http3(0x1d) + 1), None);
        assert_eq!(to_http3(0x1e), to_http3(0x1d) + 2);
    }

    #[test]
    fn capsules_beyond_the_limits_are_refused() {
        let capsule = |kind, length| [encoded(kind), encoded(length)].concat();
        assert_eq!(closes(&[&capsule(CLOSE_CAPSULE, 3)]), Err(BadCapsule));
        assert_eq!(closes(&[&capsule(CLOSE_CAPSULE, 1029)]), Err(BadCapsule));
        assert_eq!(closes(&[&capsule(0x78ae, CAPSULE_BYTES_MAX + 1)]), Err(BadCapsule));
        assert_eq!(closes(&[&capsule(0x78ae, 0)]), Ok(None));
    }

    proptest! {
        #[test]
        fn varints_come_back(value in 0_u64..1 << 62, tail: Vec<u8>) {
            let mut bytes = encoded(value);
            bytes.extend_from_slice(&tail);
            let mut rest = &bytes[..];
            prop_assert_eq!(get_varint(&mut rest), Some(value));
            prop_assert_eq!(rest, &tail[..]);
        }

        #[test]
        fn codes_come_back(code: u32) {
            prop_assert_eq!(from_http3(to_http3(code)), Some(code));
        }

        #[test]
        fn any_code_maps_back_to_itself_or_to_none(code in FIRST_CODE - 64..LAST_CODE + 64) {
            prop_assert!(from_http3(code).is_none_or(|application| to_http3(application) == code));
        }

        #[test]
        fn header_reads_exactly_its_bytes(session in 0_u64..1 << 62, payload: Vec<u8>) {
            let header = [encoded(BIDIRECTIONAL), encoded(session)].concat();
            let bytes = [header.clone(), payload].concat();
            prop_assert_eq!(recognise(BIDIRECTIONAL, &bytes), Some((Kind::WebTransport { session }, header.len())));
        }

        /// A reader that asks for `wanted` bytes at a time reads what a reader of single bytes does.
        #[test]
        fn header_never_wants_more_than_it_uses(bytes in prop::collection::vec(any::<u8>(), 0..32)) {
            let mut header = Header::new(UNIDIRECTIONAL);
            let (mut rest, mut used, mut found) = (&bytes[..], 0, None);
            while found.is_none() && header.wanted() <= rest.len() {
                let (now, later) = rest.split_at(header.wanted());
                for (index, byte) in now.iter().enumerate() {
                    found = header.push(*byte);
                    prop_assert!(found.is_none() || index + 1 == now.len());
                }
                used += now.len();
                rest = later;
            }
            if let Some((kind, length)) = recognise(UNIDIRECTIONAL, &bytes) {
                prop_assert_eq!(found, Some(kind));
                prop_assert_eq!(used, length);
            }
        }

        #[test]
        fn close_comes_back_however_it_is_split(
            code: u32,
            reason in ".{0,300}",
            before in prop::collection::vec((0_u64..0x2843, prop::collection::vec(any::<u8>(), 0..200)), 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let close = Close { code, reason };
            let mut bytes = Vec::new();
            for (kind, payload) in before {
                bytes.extend([encoded(kind), encoded(u64::try_from(payload.len()).unwrap()), payload].concat());
            }
            bytes.extend_from_slice(&close.encode());
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected = (close.reason.len() <= REASON_BYTES_MAX).then_some(close);
            if let Some(expected) = expected {
                prop_assert_eq!(closes(&chunks), Ok(Some(expected)));
            }
        }

        #[test]
        fn any_split_gives_the_same_result(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (left, right) = bytes.split_at(if bytes.is_empty() { 0 } else { cut.index(bytes.len()) });
            prop_assert_eq!(closes(&[&bytes]), closes(&[left, right]));
            let mut whole = FrameGuard::default();
            let mut parts = FrameGuard::default();
            prop_assert_eq!(whole.check(&bytes), parts.check(left).and_then(|()| parts.check(right)));
            if let Some((Kind::Http3 { read, .. }, length)) = recognise(BIDIRECTIONAL, &bytes) {
                prop_assert_eq!(FrameGuard::after(&read).check(&bytes[length..]), FrameGuard::default().check(&bytes));
            }
            drop(add_settings(&bytes, &[(1, 1)]));
        }
    }
}
