//! How far a watcher is in a turn's text. Pieces that it gets neither overlap nor leave a hole.

use std::{collections::VecDeque, sync::Arc};

use super::{boundary, live::Live};
use crate::{
    bus::Published,
    chat::{Entry, ErrorCode, Event, Segment, Sender, SessionUpdate, TurnId},
};

/// Largest piece of text that one frame carries, in bytes, so that its frame stays far below the limit.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Shows a settled entry in one frame, or, if its text is too long for that, as a reply that is told again.
pub(super) fn whole(entry: Arc<Entry>, out: &mut Waiting) {
    match entry.turn_id.filter(|_| entry.sender == Sender::Ai && entry.content.len() > PIECE_BYTES_MAX) {
        Some(turn_id) => Cursor::start(turn_id).finish(&entry, None, out),
        None => out.push(Shown::Entry(entry)),
    }
}

/// What a watcher is to be shown, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Shown {
    /// what has just happened, whole: the same for all who see it
    Published(Arc<Published>),
    /// a settled entry that the watcher does not hold
    Entry(Arc<Entry>),
    /// a turn has started, or its provider is still silent
    Loading {
        /// the turn
        turn_id: TurnId,
        /// the place of its reply
        seq: u64,
    },
    /// the next piece of a turn's text
    Piece {
        /// the turn
        turn_id: TurnId,
        /// the model that writes
        model_id: Option<Arc<str>>,
        /// UTF-8 byte offset of `content`
        offset: u64,
        /// the text
        content: Arc<str>,
    },
    /// a turn ended, and the watcher was shown all of its text
    End {
        /// the reply, settled
        entry: Arc<Entry>,
        /// why the models gave no more of it
        failure: Option<ErrorCode>,
    },
    /// the session itself has changed
    Update(Arc<SessionUpdate>),
    /// somebody types, or has stopped
    Typing {
        /// who, seen from the session
        sender: Sender,
        /// whether they still type
        active: bool,
    },
}

impl Shown {
    /// What an event shows by itself.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        match event {
            Event::Appended { entry, .. } => Self::Entry(Arc::clone(entry)),
            Event::Loading { turn_id, seq, .. } => Self::Loading { turn_id: *turn_id, seq: *seq },
            Event::Piece { turn_id, model_id, offset, content } => Self::Piece {
                turn_id: *turn_id,
                model_id: Some(Arc::clone(model_id)),
                offset: *offset,
                content: Arc::clone(content),
            },
            Event::Ended { entry, failure, .. } => Self::End { entry: Arc::clone(entry), failure: *failure },
            Event::Session { update, .. } => Self::Update(Arc::clone(update)),
            Event::Typing { sender, active, .. } => Self::Typing { sender: *sender, active: *active },
        }
    }
}

/// The next byte of a turn's text that a watcher has not seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) turn_id: TurnId,
    pub(super) model_id: Option<Arc<str>>,
    pub(super) offset: u64,
}

/// Whether a piece fitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// it was shown, or had been shown before
    Seamless,
    /// something before it is missing
    Hole,
}

impl Cursor {
    pub(super) const fn start(turn_id: TurnId) -> Self {
        Self { turn_id, model_id: None, offset: 0 }
    }

    /// Shows what is new of the piece that `event` is.
    pub(super) fn piece(&mut self, event: &Arc<Published>, out: &mut Waiting) -> Fit {
        let Event::Piece { offset, content, model_id, .. } = &***event else { return Fit::Seamless };
        if *offset > self.offset {
            return Fit::Hole;
        }
        self.model_id = Some(Arc::clone(model_id));
        if *offset == self.offset {
            self.offset += u64::try_from(content.len()).unwrap_or_default();
            out.push(Shown::Published(Arc::clone(event)));
        } else if let Some(rest) = tail(content, self.offset - offset) {
            self.text(rest, out);
        }
        Fit::Seamless
    }

    /// Shows text that begins at the cursor.
    pub(super) fn text(&mut self, mut text: &str, out: &mut Waiting) {
        while !text.is_empty() {
            let (piece, rest) = text.split_at(boundary(text, PIECE_BYTES_MAX));
            out.push(self.show(piece.into()));
            text = rest;
        }
    }

    /// Bytes of a piece that one model wrote, at most; notes which.
    fn by_one_writer(&mut self, segments: &[Segment]) -> usize {
        let next = segments.partition_point(|segment| segment.offset <= self.offset);
        if let Some(writer) = next.checked_sub(1).and_then(|at| segments.get(at)) {
            self.model_id = Some(writer.model_id.as_str().into());
        }
        let until = segments.get(next).map(|segment| segment.offset - self.offset);
        until.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX).min(PIECE_BYTES_MAX)
    }

    fn show(&mut self, content: Arc<str>) -> Shown {
        let offset = self.offset;
        self.offset += u64::try_from(content.len()).unwrap_or_default();
        Shown::Piece { turn_id: self.turn_id, model_id: self.model_id.clone(), offset, content }
    }

    /// Shows what is missing of a reply that has settled, and its end.
    pub(super) fn finish(self, entry: &Arc<Entry>, failure: Option<ErrorCode>, out: &mut Waiting) {
        out.items.push_back(Item::Rest { cursor: self, entry: Arc::clone(entry), failure });
    }

    /// Shows what is missing of the reply that `event` ends, and its end.
    pub(super) fn end(self, event: &Arc<Published>, out: &mut Waiting) {
        match &***event {
            Event::Ended { entry, .. } if entry.length == Some(self.offset) => {
                out.push(Shown::Published(Arc::clone(event)));
            }
            Event::Ended { entry, failure, .. } => self.finish(entry, *failure, out),
            _ => {}
        }
    }

    /// Shows what a running turn's text has beyond the cursor.
    pub(super) fn follow(&mut self, live: Arc<Live>, out: &mut Waiting) {
        let until = live.length();
        if until > self.offset {
            out.items.push_back(Item::Live { cursor: self.clone(), live, until });
            self.offset = until;
        }
    }
}

/// What became of the turn that a client left.
pub(super) enum Left {
    /// it names none
    Nowhere,
    /// it is queued or running: go on at this byte
    Running(TurnId, u64),
    /// it ended: go on at the cursor, then its end
    Ended(Arc<Entry>, Cursor),
    /// nobody knows it here, or its text is shorter than what the client shows
    Unknown,
}

impl Left {
    /// What is known once an entry was read, which may be newer: of the turn's reply, its length says that it has ended.
    pub(super) fn after(self, entry: &Arc<Entry>) -> Self {
        match self {
            Self::Running(turn_id, offset)
                if entry.turn_id == Some(turn_id) && entry.length.is_some_and(|length| offset <= length) =>
            {
                Self::Ended(Arc::clone(entry), Cursor { offset, ..Cursor::start(turn_id) })
            }
            left => left,
        }
    }
}

/// What waits to be shown, in order. Text that others hold anyway waits there, and is cut as it is taken: a watcher
/// that is slow keeps no copy of it.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// before all items: what has just happened, when nothing else waits, which is nearly always. It takes no memory
    /// elsewhere.
    published: Option<Arc<Published>>,
    items: VecDeque<Item>,
}

#[derive(Debug)]
enum Item {
    Shown(Shown),
    /// a running turn's text from the cursor up to a byte
    Live {
        cursor: Cursor,
        live: Arc<Live>,
        until: u64,
    },
    /// a settled reply's text from the cursor on, and its end
    Rest {
        cursor: Cursor,
        entry: Arc<Entry>,
        failure: Option<ErrorCode>,
    },
}

impl Waiting {
    pub(super) fn push(&mut self, shown: Shown) {
        match shown {
            Shown::Published(event) if self.published.is_none() && self.items.is_empty() => {
                self.published = Some(event);
            }
            shown => self.items.push_back(Item::Shown(shown)),
        }
    }

    pub(super) fn next(&mut self) -> Option<Shown> {
        if let Some(event) = self.published.take() {
            return Some(Shown::Published(event));
        }
        loop {
            match self.items.front_mut()? {
                Item::Live { cursor, live, until } => {
                    let most = until.saturating_sub(cursor.offset).min(PIECE_BYTES_MAX.try_into().unwrap_or(u64::MAX));
                    let (begin, writer, piece) = live.piece(cursor.offset, most);
                    if !piece.is_empty() {
                        cursor.offset = begin;
                        cursor.model_id = writer.or_else(|| cursor.model_id.take());
                        return Some(cursor.show(piece.into()));
                    }
                }
                Item::Rest { cursor, entry, .. } => {
                    let begin = boundary(&entry.content, usize::try_from(cursor.offset).unwrap_or(usize::MAX));
                    if let Some(rest) = entry.content.get(begin..).filter(|rest| !rest.is_empty()) {
                        cursor.offset = begin.try_into().unwrap_or(u64::MAX);
                        let most = cursor.by_one_writer(&entry.segments);
                        let piece = rest.get(..boundary(rest, most)).filter(|piece| !piece.is_empty()).unwrap_or(rest);
                        return Some(cursor.show(piece.into()));
                    }
                }
                Item::Shown(_) => {}
            }
            match self.items.pop_front()? {
                Item::Shown(shown) => return Some(shown),
                Item::Rest { entry, failure, .. } => return Some(Shown::End { entry, failure }),
                Item::Live { .. } => {}
            }
        }
    }
}

fn tail(text: &str, from: u64) -> Option<&str> {
    text.get(usize::try_from(from).ok()?..).filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::history::tests::entry;

    #[test]
    fn what_waits_is_shown_in_the_order_in_which_it_came() {
        let turn_id = TurnId::new();
        let told = |offset| {
            let (content, model_id) = ("x".into(), "model".into());
            Shown::Published(Published::new(Event::Piece { turn_id, model_id, offset, content }))
        };
        let loading = |seq| Shown::Loading { turn_id, seq };
        let mut waiting = Waiting::default();
        let mut shown = Vec::new();
        for (comes, taken) in [(vec![told(0), told(1)], 1), (vec![told(2), loading(3)], 2), (vec![told(4)], 3)] {
            comes.into_iter().for_each(|comes| waiting.push(comes));
            shown.extend((0..taken).map_while(|_| waiting.next()));
        }
        assert_eq!(shown, [told(0), told(1), told(2), loading(3), told(4)]);
        assert_eq!(waiting.next(), None);
    }

    #[test]
    fn turn_that_ended_since_it_was_asked_about_goes_on_where_it_was_left() {
        let turn_id = TurnId::new();
        let reply = |turn_id, length| {
            Arc::new(Entry { turn_id: Some(turn_id), length, ..entry(2, Sender::Ai, "abcdef", Some(1)) })
        };
        let ended = reply(turn_id, Some(6));
        let Left::Ended(read, cursor) = Left::Running(turn_id, 4).after(&ended) else { panic!("it has ended") };
        let mut waiting = Waiting::default();
        cursor.finish(&read, None, &mut waiting);
        let (content, model_id) = ("ef".into(), None);
        assert_eq!(waiting.next(), Some(Shown::Piece { turn_id, model_id, offset: 4, content }));
        assert_eq!(waiting.next(), Some(Shown::End { entry: read, failure: None }));
        // Of another turn, not ended, or shorter than what was shown.
        for other in [reply(TurnId::new(), Some(6)), reply(turn_id, None), reply(turn_id, Some(3))] {
            assert!(matches!(Left::Running(turn_id, 4).after(&other), Left::Running(_, 4)), "{other:?}");
        }
    }
}
