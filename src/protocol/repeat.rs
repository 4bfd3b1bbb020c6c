//! What may be told once more beside its stream: frames that mean the same however often they come.
//!
//! It knows which frames these are, and no clock and no transport.

use std::borrow::Cow;

use bytes::Bytes;

use super::{AiResponse, Encoded, ServerFrame};
use crate::chat::{TurnId, TurnState};

/// Largest frame that is copied, in bytes. A datagram must fit one packet, and 1170 bytes is what fits before the
/// path's real limit is found (RFC 9221, section 5); what is larger is rare and worth no second packet.
pub const COPY_BYTES_MAX: usize = 1024;

/// What a copy of a frame is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Repeat {
    /// the frame as it is
    Frame,
    /// a piece of text; its copy is the [`Tail`] of the turn's text that ends with it
    Text(Box<AiResponse>),
}

impl Repeat {
    /// What is copied of a frame that takes so many bytes: entries, their acknowledgement, the start, text and the end
    /// of replies. The end of a reply that models broke off is not: its `error` frame must come before it.
    pub(super) fn of(frame: ServerFrame, bytes: usize) -> Option<Self> {
        match frame {
            ServerFrame::AiResponse(piece) if piece.reply.is_none() => Some(Self::Text(piece)),
            _ if bytes > COPY_BYTES_MAX => None,
            ServerFrame::AiResponse(last) => {
                let broken = |state| matches!(state, TurnState::Failed | TurnState::Interrupted);
                last.reply.is_some_and(|reply| !broken(reply.state)).then_some(Self::Frame)
            }
            ServerFrame::UserMessage(_) | ServerFrame::Loading { .. } => Some(Self::Frame),
            ServerFrame::Accepted(accepted) => accepted.seq.map(|_seq| Self::Frame),
            _ => None,
        }
    }
}

/// The end of one turn's text as one piece, so that one datagram makes good the loss of several pieces.
#[derive(Clone, Debug)]
pub struct Tail(AiResponse);

impl Tail {
    /// Largest text that is kept, in bytes: what fits a frame of [`COPY_BYTES_MAX`] beside its other fields.
    pub const TEXT_BYTES_MAX: usize = 640;

    /// Begins with a piece.
    #[must_use]
    pub fn new(piece: &AiResponse) -> Self {
        let mut tail = Self(piece.clone());
        tail.fit(Self::TEXT_BYTES_MAX);
        tail
    }

    /// The turn.
    #[must_use]
    pub const fn turn_id(&self) -> TurnId {
        self.0.turn_id
    }

    /// Where the text begins and ends in that of the turn, in bytes.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<u64> {
        self.0.offset..self.0.offset.saturating_add(bytes_of(&self.0.content))
    }

    /// Adds the next piece. One that does not begin where the text ends begins it anew.
    pub fn push(&mut self, piece: &AiResponse) {
        if piece.offset != self.range().end {
            *self = Self::new(piece);
            return;
        }
        self.0.content.to_mut().push_str(&piece.content);
        self.fit(Self::TEXT_BYTES_MAX);
    }

    /// Forgets the text before a byte of the turn's text.
    pub fn forget_before(&mut self, offset: u64) {
        let left = self.range().end.saturating_sub(offset);
        self.fit(usize::try_from(left).unwrap_or(usize::MAX));
    }

    /// The frame, without a line feed: as much from the end of the text as fits into so many bytes. `None` when there
    /// is none, or no room.
    #[must_use]
    pub fn frame(&self, bytes_max: usize) -> Option<Bytes> {
        let mut piece = self.clone();
        loop {
            if piece.0.content.is_empty() {
                return None;
            }
            let frame = Encoded::new(&ServerFrame::AiResponse(Box::new(piece.0.clone()))).message();
            let Some(excess) = frame.len().checked_sub(bytes_max).filter(|excess| *excess > 0) else {
                return Some(frame);
            };
            // A byte of text takes at least one byte of JSON, but maybe six.
            let length = piece.0.content.len();
            piece.fit(length.saturating_sub(excess).max(length / 2));
        }
    }

    /// Cuts from the beginning, at a character, until at most so many bytes are left.
    fn fit(&mut self, bytes_max: usize) {
        let content = &self.0.content;
        let from = content.ceil_char_boundary(content.len().saturating_sub(bytes_max));
        if from > 0 {
            let rest = content.get(from..).unwrap_or_default().to_owned();
            self.0.offset = self.range().end.saturating_sub(bytes_of(&rest));
            self.0.content = Cow::Owned(rest);
        }
    }
}

fn bytes_of(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{
        chat::{Sender, SessionId, Timestamp},
        protocol::{Accepted, Reply},
    };

    fn piece(offset: u64, content: &str) -> AiResponse {
        let (session_id, turn_id) = (SessionId(uuid::Uuid::nil()), TurnId(uuid::Uuid::nil()));
        AiResponse::piece(session_id, turn_id, offset, content.to_owned())
    }

    fn last(state: TurnState) -> ServerFrame {
        let reply = Reply {
            seq: 2,
            reply_to: 1,
            state,
            length: 3,
            sha256: String::new(),
            usage: None,
            segments: Vec::new(),
            rating: None,
            html: None,
            timestamp: Timestamp(0),
        };
        ServerFrame::AiResponse(Box::new(AiResponse { reply: Some(reply), ..piece(3, "") }))
    }

    #[test]
    fn frames_that_may_come_twice_are_copied_and_no_others() {
        let accepted = |seq| {
            let re = Some(uuid::Uuid::nil());
            ServerFrame::Accepted(Accepted { re, session_id: None, seq, turn_id: None, duplicate: false })
        };
        let typing = ServerFrame::typing(SessionId(uuid::Uuid::nil()), Sender::User, true);
        for (frame, copied) in [
            (accepted(Some(1)), true),
            (accepted(None), false),
            (last(TurnState::Complete), true),
            (last(TurnState::Stopped), true),
            (last(TurnState::Failed), false),
            (last(TurnState::Interrupted), false),
            (typing, false),
            (ServerFrame::Pong { re: None }, false),
        ] {
            assert_eq!(Repeat::of(frame.clone(), 100).is_some(), copied, "{frame:?}");
            assert_eq!(Repeat::of(frame, COPY_BYTES_MAX + 1), None);
        }
        let text = ServerFrame::AiResponse(Box::new(piece(0, "abc")));
        assert_eq!(Repeat::of(text, COPY_BYTES_MAX + 1), Some(Repeat::Text(Box::new(piece(0, "abc")))));
    }

    proptest! {
        #[test]
        fn tail_is_the_end_of_the_text(pieces in prop::collection::vec(any::<String>(), 1..20), room in 0..1200_usize) {
            let mut text = String::new();
            let mut tail: Option<Tail> = None;
            for content in &pieces {
                let piece = piece(text.len().try_into().unwrap(), content);
                text.push_str(content);
                match &mut tail {
                    Some(tail) => tail.push(&piece),
                    None => tail = Some(Tail::new(&piece)),
                }
            }
            let tail = tail.unwrap();
            prop_assert_eq!(tail.range().end, text.len() as u64);
            if let Some(frame) = tail.frame(room) {
                prop_assert!(frame.len() <= room);
                let frame: Value = serde_json::from_slice(&frame).unwrap();
                let offset = usize::try_from(frame["offset"].as_u64().unwrap()).unwrap();
                prop_assert_eq!(text.get(offset..), frame["content"].as_str());
            } else {
                prop_assert!(text.is_empty() || room < 400);
            }
        }
    }

    #[test]
    fn tail_begins_anew_at_a_jump_and_forgets() {
        let mut tail = Tail::new(&piece(0, "one "));
        tail.push(&piece(4, "größe"));
        assert_eq!(tail.range(), 0..11);
        tail.forget_before(7);
        assert_eq!(tail.range(), 8..11, "byte 7 is within a character");
        tail.push(&piece(40, "later"));
        assert_eq!(tail.range(), 40..45);
        assert_eq!(tail.frame(20), None);
    }
}
