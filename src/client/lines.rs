//! Frames out of a byte stream: one line each.

use bytes::{Buf, Bytes, BytesMut};

/// A longer line than any frame can be: the server's own limit is 1 MiB unless configured.
pub(super) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Cuts what arrives into lines. A line that arrives in one piece is not copied.
#[derive(Default)]
pub(super) struct Lines {
    arrived: Bytes,
    /// the beginning of a line whose end has not arrived
    begun: BytesMut,
}

impl Lines {
    /// The next whole line without its line feed; `None`: more must arrive first.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let Some(end) = self.arrived.iter().position(|byte| *byte == b'\n') else {
            self.begun.extend_from_slice(&self.arrived);
            self.arrived.clear();
            return None;
        };
        let line = self.arrived.split_to(end);
        self.arrived.advance(1);
        if self.begun.is_empty() {
            return Some(line);
        }
        self.begun.extend_from_slice(&line);
        Some(self.begun.split().freeze())
    }

    /// Takes what arrived; to be called when [`Self::next`] gave nothing. `false`: the line is longer than a frame.
    pub(super) fn arrive(&mut self, bytes: Bytes) -> bool {
        self.arrived = bytes;
        self.begun.len() + self.arrived.len() <= FRAME_BYTES_MAX
    }

    /// Whether a line has begun and not ended.
    pub(super) fn unfinished(&self) -> bool {
        !self.begun.is_empty() || !self.arrived.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&str]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for chunk in chunks {
            assert!(lines.arrive(Bytes::copy_from_slice(chunk.as_bytes())));
            while let Some(line) = lines.next() {
                found.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        assert!(!lines.unfinished());
        found
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = "one\ntwo\n\nthree\n";
        assert_eq!(cut(&[text]), ["one", "two", "", "three"]);
        let bytes: Vec<&str> = text.split_inclusive(|_| true).collect();
        assert_eq!(cut(&bytes), ["one", "two", "", "three"]);
        assert_eq!(cut(&["on", "e\ntwo\n\nth", "ree\n"]), ["one", "two", "", "three"]);
    }

    #[test]
    fn an_unfinished_line_is_known() {
        let mut lines = Lines::default();
        assert!(lines.arrive(Bytes::from_static(b"one\ntw")));
        assert_eq!(lines.next().unwrap(), "one");
        assert_eq!(lines.next(), None);
        assert!(lines.unfinished());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        assert!(lines.arrive(Bytes::from(vec![b'x'; FRAME_BYTES_MAX])));
        assert_eq!(lines.next(), None);
        assert!(!lines.arrive(Bytes::from_static(b"x")));
    }
}
