//! Copies of small frames as datagrams, a moment after their stream, while the path loses packets.
//!
//! A frame whose packet is lost is there about half a round trip and a few milliseconds after it was written, instead
//! of one and a half. What is copied the frames say themselves ([`Repeat`]); the client drops what its stream has
//! brought. A copy never delays a stream: while the path takes no more, none leaves. One for each session; where
//! nothing was copied lately it holds no text, no timer and no queue.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    metrics::Metrics,
    protocol::{AiResponse, COPY_BYTES_MAX, Encoded, Repeat, Tail},
    transport::{datagrams::Datagrams, loss::Loss},
};

/// How long after its stream a copy leaves. Packets that leave together are lost together, where queues overflow; the
/// copy's packet is one of its own. Longer only makes it later: with 8 ms, 99 of 100 messages were there 50 ms after
/// they were written, at 40 ms one way and 5 % loss.
const DELAY: Duration = Duration::from_millis(8);

/// Text that was written so long ago is there, or its stream has sent it again by now.
const TEXT_AGE: Duration = Duration::from_millis(300);

/// Frames that wait for their moment; beyond it the oldest is not copied. More are written within 8 ms only when a
/// log is replayed.
const FRAMES_MAX: usize = 32;

/// Turns whose text is copied at a time; beyond it the one that was silent longest is not.
const TURNS_MAX: usize = 16;

/// The copies of one session.
pub(super) struct Copies {
    datagrams: Datagrams,
    metrics: Arc<Metrics>,
    waker: AtomicWaker,
    /// absent until something was written that may be copied
    state: Mutex<Option<Box<State>>>,
}

struct State {
    loss: Loss,
    /// in the order in which they are due
    frames: VecDeque<(Instant, Bytes)>,
    /// the one that was written to last is the last
    texts: Vec<Text>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The end of a turn's text.
struct Text {
    tail: Tail,
    /// when which byte was written, the oldest first
    written: VecDeque<(Instant, u64)>,
    /// when the next copy leaves; without one the text is forgotten at its age
    due: Option<Instant>,
}

impl Copies {
    pub(super) fn new(datagrams: Datagrams, metrics: Arc<Metrics>) -> Self {
        Self { datagrams, metrics, waker: AtomicWaker::new(), state: Mutex::new(None) }
    }

    /// Notes frames that were written to a stream just now.
    pub(super) fn written(&self, frames: &[Encoded]) {
        if frames.iter().all(|frame| frame.repeat().is_none()) {
            return;
        }
        let now = Instant::now();
        let mut state = self.lock();
        let state = state.get_or_insert_with(|| Box::new(State::new(now)));
        if !state.loss.seen(now, || self.datagrams.packets()) {
            return;
        }
        let due = state.due();
        for frame in frames {
            match frame.repeat() {
                Some(Repeat::Frame) => {
                    let gone = state.frame(frame.message(), now);
                    self.dropped("queue_full", gone.iter().count());
                }
                Some(Repeat::Text(piece)) => state.text(piece, now),
                None => {}
            }
        }
        if due.is_none_or(|due| due > now + DELAY) {
            self.waker.wake();
        }
    }

    /// Sends copies when they are due; never ready. Of the task that drives the session.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Infallible> {
        self.waker.register(cx.waker());
        let mut state = self.lock();
        let Some(state) = state.as_mut() else { return Poll::Pending };
        loop {
            let Some(due) = state.due() else {
                state.rest();
                return Poll::Pending;
            };
            let timer = state.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
            self.send(state.take_due(Instant::now(), self.bytes_max()));
        }
    }

    fn bytes_max(&self) -> usize {
        self.datagrams.payload_bytes_max().unwrap_or_default().min(COPY_BYTES_MAX)
    }

    fn send(&self, copies: Vec<Bytes>) {
        if !copies.is_empty() && self.datagrams.waiting() {
            self.dropped("path_busy", copies.len());
            return;
        }
        for copy in copies {
            if self.datagrams.send(&copy) {
                self.metrics.datagrams_sent_total.inc();
            } else {
                self.dropped("too_large", 1);
            }
        }
    }

    fn dropped(&self, reason: &str, count: usize) {
        let count = u64::try_from(count).unwrap_or_default();
        self.metrics.datagrams_dropped_total.with_label_values(&[reason]).inc_by(count);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<State>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self { loss: Loss::new(now), frames: VecDeque::new(), texts: Vec::new(), timer: None }
    }

    /// Notes a frame that was written just now. The oldest, if there are too many, which is then not copied.
    fn frame(&mut self, frame: Bytes, now: Instant) -> Option<Bytes> {
        let oldest = if self.frames.len() == FRAMES_MAX { self.frames.pop_front() } else { None };
        self.frames.push_back((now + DELAY, frame));
        oldest.map(|(_, frame)| frame)
    }

    /// Notes a piece of text that was written just now.
    fn text(&mut self, piece: &AiResponse, now: Instant) {
        let known = self.texts.iter().position(|text| text.tail.turn_id() == piece.turn_id);
        let mut text = match known {
            Some(at) => self.texts.remove(at),
            None => Text { tail: Tail::new(piece), written: VecDeque::new(), due: None },
        };
        if known.is_some() {
            text.tail.push(piece);
        }
        let kept = text.tail.range();
        text.written.push_back((now, kept.end));
        while text.written.front().is_some_and(|(_, end)| *end <= kept.start) {
            text.written.pop_front();
        }
        text.due.get_or_insert(now + DELAY);
        if self.texts.len() == TURNS_MAX {
            self.texts.remove(0);
        }
        self.texts.push(text);
    }

    /// When there is something to do next.
    fn due(&self) -> Option<Instant> {
        let frame = self.frames.front().map(|(due, _)| *due);
        self.texts.iter().filter_map(Text::next).chain(frame).min()
    }

    /// Takes the copies that are due, each at most so large, and forgets old text.
    fn take_due(&mut self, now: Instant, bytes_max: usize) -> Vec<Bytes> {
        let mut copies = Vec::new();
        while let Some((_, frame)) = self.frames.pop_front_if(|(due, _)| *due <= now) {
            copies.push(frame);
        }
        for text in &mut self.texts {
            text.forget(now);
            if text.due.is_some_and(|due| due <= now) {
                copies.extend(text.tail.frame(bytes_max));
                // What was written within the delay goes with it, and once more with the next one.
                let again = text.written.iter().any(|(written, _)| *written + DELAY > now);
                text.due = again.then_some(now + DELAY);
            }
        }
        self.texts.retain(|text| !text.written.is_empty());
        copies
    }

    /// Gives back what an idle session needs not.
    fn rest(&mut self) {
        self.timer = None;
        self.frames.shrink_to_fit();
        self.texts.shrink_to_fit();
    }
}

impl Text {
    fn next(&self) -> Option<Instant> {
        self.due.or_else(|| self.written.back().map(|(written, _)| *written + TEXT_AGE))
    }

    fn forget(&mut self, now: Instant) {
        let mut before = None;
        while let Some((_, end)) = self.written.pop_front_if(|(written, _)| *written + TEXT_AGE <= now) {
            before = Some(end);
        }
        if let Some(before) = before {
            self.tail.forget_before(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::chat::{SessionId, TurnId};

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn piece(turn_id: TurnId, offset: u64, content: &str) -> AiResponse {
        AiResponse::piece(SessionId(uuid::Uuid::nil()), turn_id, offset, content.to_owned())
    }

    fn texts(copies: &[Bytes]) -> Vec<(u64, String)> {
        let frames = copies.iter().map(|copy| serde_json::from_slice::<Value>(copy).unwrap());
        frames.map(|frame| (frame["offset"].as_u64().unwrap(), frame["content"].as_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn pieces_of_one_turn_share_a_copy_and_are_forgotten() {
        let begin = Instant::now();
        let mut state = State::new(begin);
        let turn = TurnId::new();
        for (at, offset, content) in [(0, 0, "one "), (2, 4, "two "), (5, 8, "three")] {
            state.text(&piece(turn, offset, content), begin + ms(at));
        }
        assert_eq!(state.due(), Some(begin + DELAY));
        assert_eq!(texts(&state.take_due(begin + ms(7), 1024)), []);
        assert_eq!(texts(&state.take_due(begin + ms(8), 1024)), [(0, "one two three".to_owned())]);
        // Some of it may have been in the packet before.
        assert_eq!(state.due(), Some(begin + ms(16)));
        assert_eq!(texts(&state.take_due(begin + ms(16), 1024)), [(0, "one two three".to_owned())]);
        assert_eq!(state.due(), Some(begin + ms(5) + TEXT_AGE));

        state.text(&piece(turn, 13, "!"), begin + ms(301));
        assert_eq!(texts(&state.take_due(begin + ms(309), 1024)), [(13, "!".to_owned())], "the rest is old");
        let end = begin + ms(301) + TEXT_AGE;
        assert_eq!(state.due(), Some(end));
        assert_eq!(texts(&state.take_due(end, 1024)), []);
        assert_eq!((state.due(), state.texts.len()), (None, 0));
    }

    #[test]
    fn frames_leave_in_order_and_the_oldest_gives_way() {
        let begin = Instant::now();
        let mut state = State::new(begin);
        let frames: Vec<_> = (0..FRAMES_MAX + 2).map(|number| Bytes::from(number.to_string())).collect();
        let gone: Vec<_> = frames.iter().filter_map(|frame| state.frame(frame.clone(), begin)).collect();
        assert_eq!(gone, frames[..2]);
        assert_eq!(state.take_due(begin + ms(7), 1024), Vec::<Bytes>::new());
        assert_eq!(state.take_due(begin + DELAY, 1024), frames[2..]);
        assert_eq!(state.due(), None);
    }

    #[test]
    fn of_too_many_turns_the_one_that_was_silent_longest_is_not_copied() {
        let begin = Instant::now();
        let mut state = State::new(begin);
        let turns: Vec<_> = (0..=TURNS_MAX).map(|_| TurnId::new()).collect();
        for (turn, at) in turns.iter().zip(0..) {
            state.text(&piece(*turn, at, "text"), begin);
        }
        let copied: Vec<_> = texts(&state.take_due(begin + DELAY, 1024)).iter().map(|(offset, _)| *offset).collect();
        assert_eq!(copied, (1..=TURNS_MAX as u64).collect::<Vec<_>>());
    }
}
