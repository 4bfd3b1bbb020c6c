//! Lines of a byte stream: NDJSON frames, however the stream cuts them.

use std::io::BufRead as _;

use bytes::{Bytes, BytesMut};

/// Collects bytes and gives out whole lines, without their line feeds. Keeps at most one line and one chunk.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that hold no line feed.
    searched: usize,
    bytes_max: usize,
}

/// A line is longer than it may be. What follows cannot be told apart from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line is too long")]
pub struct TooLong;

impl Lines {
    /// Refuses lines longer than `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), searched: 0, bytes_max }
    }

    /// Takes the next bytes of the stream. Every line must be taken out before more is put in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes more are worth reading at once; at least 1.
    #[must_use]
    pub fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.buffer.len()).saturating_add(1)
    }

    /// Whether a line has begun and not ended.
    #[must_use]
    pub fn partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole line that is not blank.
    ///
    /// # Errors
    /// When the line is too long, whether or not it is whole.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, TooLong> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(end) = line_feed(unsearched) else {
                self.searched = self.buffer.len();
                return if self.searched > self.bytes_max { Err(TooLong) } else { Ok(None) };
            };
            let length = self.searched + end;
            if length > self.bytes_max {
                return Err(TooLong);
            }
            let mut line = self.buffer.split_to(length + 1);
            line.truncate(length);
            self.searched = 0;
            if self.buffer.is_empty() {
                // An idle stream keeps no memory for lines to come.
                self.buffer = BytesMut::new();
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line.freeze()));
            }
        }
    }

    /// The line that the end of the stream ended, if one had begun.
    pub fn last_line(&mut self) -> Option<Bytes> {
        self.searched = 0;
        let line = std::mem::take(&mut self.buffer).freeze();
        (!line.trim_ascii().is_empty()).then_some(line)
    }
}

/// Where the first line feed is. The search of the standard library looks at many bytes at a time.
fn line_feed(bytes: &[u8]) -> Option<usize> {
    let length = { bytes }.skip_until(b'\n').ok()?;
    bytes.get(..length)?.strip_suffix(b"\n").map(<[u8]>::len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(chunks: &[&[u8]], bytes_max: usize) -> (Vec<Bytes>, bool) {
        let mut lines = Lines::new(bytes_max);
        let mut read = Vec::new();
        for chunk in chunks {
            lines.push(chunk);
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => read.push(line),
                    Ok(None) => break,
                    Err(TooLong) => return (read, true),
                }
            }
        }
        read.extend(lines.last_line());
        (read, false)
    }

    #[test]
    fn lines_are_cut_at_line_feeds_and_blank_ones_skipped() {
        let (lines, too_long) = read(&[b"a\n\n b", b"c\r\n", b"d"], 5);
        assert_eq!(lines, [&b"a"[..], b" bc\r", b"d"]);
        assert!(!too_long);
    }

    // checklist 18
    #[test]
    fn line_may_be_as_long_as_the_limit_and_no_longer() {
        assert_eq!(read(&[b"abc\n"], 3), (vec![Bytes::from_static(b"abc")], false));
        assert_eq!(read(&[b"abcd\n"], 3), (vec![], true));
        assert_eq!(read(&[b"abcd"], 3), (vec![], true));
    }

    #[test]
    fn idle_reader_keeps_no_buffer() {
        let mut lines = Lines::new(1024);
        lines.push(&[b'a'; 1000]);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"\n");
        assert_eq!(lines.next_line().unwrap().unwrap().len(), 1000);
        assert_eq!((lines.buffer.capacity(), lines.partial()), (0, false));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            cut: prop::sample::Index,
            bytes_max in 1_usize..40,
        ) {
            let (left, right) = bytes.split_at(if bytes.is_empty() { 0 } else { cut.index(bytes.len()) });
            prop_assert_eq!(read(&[&bytes], bytes_max), read(&[left, right], bytes_max));
        }
    }
}
