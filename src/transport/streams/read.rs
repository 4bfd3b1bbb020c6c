//! Reading the frames of one stream.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::transport::{
    lines::Lines,
    webtransport::{RecvStream, StreamError},
};

/// What is read from a stream at once.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Why a stream is not read any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unread {
    /// the client finished it
    Finished,
    /// the client reset it, or is gone
    Broken,
    /// a frame took too long
    Late,
    /// a frame is too large
    TooLarge,
}

impl Unread {
    pub(super) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Finished => None,
            Self::Broken => Some("reset"),
            Self::Late => Some("frame_deadline"),
            Self::TooLarge => Some("frame_too_large"),
        }
    }
}

/// Reads frames.
pub(super) struct Reader {
    pub(super) receive: RecvStream,
    pub(super) lines: Lines,
}

impl Reader {
    /// The next frame, for which the client may take its time. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Bytes, Unread> {
        loop {
            if let Some(line) = self.lines.next_line().map_err(|_too_long| Unread::TooLarge)? {
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    /// The next frame, which has to be whole within `deadline` once it has begun. Cancel safe.
    pub(super) async fn next_within(&mut self, deadline: Duration) -> Result<Bytes, Unread> {
        loop {
            if let Some(line) = self.lines.next_line().map_err(|_too_long| Unread::TooLarge)? {
                return Ok(line);
            }
            if self.lines.partial() {
                // Boxed, being rare: an idle stream keeps no room for it.
                return Box::pin(timeout(deadline, self.next())).await.unwrap_or(Err(Unread::Late));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Unread> {
        match self.receive.read(READ_BYTES_MAX.min(self.lines.room())).await {
            Ok(Some(bytes)) => self.lines.push(&bytes),
            // The end of the stream ends its last line.
            Ok(None) if self.lines.partial() => self.lines.push(b"\n"),
            Ok(None) => return Err(Unread::Finished),
            Err(StreamError::Ended(_) | StreamError::Gone) => return Err(Unread::Broken),
        }
        Ok(())
    }
}
