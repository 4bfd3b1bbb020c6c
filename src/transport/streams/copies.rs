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

/// What copies of text leave of their allowance for the next entry, in bytes: an entry has one copy, a text has many.
const FRAME_RESERVE: u64 = COPY_BYTES_MAX as u64;

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
    allowance: Allowance,
}

/// The end of a turn's text.
struct Text {
    tail: Tail,
    /// when which byte was written, the oldest first
    written: VecDeque<(Instant, u64)>,
    /// when the next copy leaves; without one the text is forgotten at its age
    due: Option<Instant>,
    /// when the last one left
    copied: Option<Instant>,
}

/// What copies may take of the window. quinn sends datagrams before what waits on streams, so copies that filled the
/// window would delay every stream: four answers of 50 pieces a second are 66 kB of frames and 180 kB of copies, and a
/// lossy path's window may be 12 kB for each 80 ms.
#[derive(Debug)]
struct Allowance {
    bytes: u64,
    since: Instant,
}

impl Allowance {
    /// Bytes of a window for each that copies may take.
    const ONE_IN: u64 = 4;

    const fn new(now: Instant) -> Self {
        Self { bytes: 0, since: now }
    }

    /// Adds what has become free since the last time: a quarter of the window in each round trip, and no more than
    /// that at once.
    fn refill(&mut self, now: Instant, (window, round_trip): (u64, Duration)) {
        let most = window / Self::ONE_IN;
        let (passed, whole) = (now.duration_since(self.since).as_nanos(), round_trip.as_nanos().max(1));
        let free = u64::try_from(u128::from(most) * passed / whole).unwrap_or(u64::MAX);
        // What is less than a byte is not lost: it counts the next time.
        if free > 0 {
            (self.bytes, self.since) = (self.bytes.saturating_add(free).min(most), now);
        }
    }

    /// Takes so many bytes, if they are there and so many are left.
    const fn take(&mut self, bytes: u64, leaving: u64) -> bool {
        if self.bytes < bytes + leaving {
            return false;
        }
        self.bytes -= bytes;
        true
    }
}

impl Copies {
    pub(super) fn new(datagrams: Datagrams, metrics: Arc<Metrics>) -> Self {
        Self { datagrams, metrics, waker: AtomicWaker::new(), state: Mutex::new(None) }
    }

    /// Notes a frame that was written to a stream just now.
    pub(super) fn written(&self, frame: &Encoded) {
        let Some(repeat) = frame.repeat() else { return };
        let now = Instant::now();
        let mut state = self.lock();
        let state = state.get_or_insert_with(|| Box::new(State::new(now)));
        if !state.loss.seen(now, || self.datagrams.packets()) {
            return;
        }
        let due = state.due();
        match repeat {
            Repeat::Frame => {
                let gone = state.frame(frame.message(), now);
                self.dropped("queue_full", gone.iter().count());
            }
            Repeat::Text(piece) => state.text(piece, now),
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
            let now = Instant::now();
            state.allowance.refill(now, self.datagrams.window());
            let (copies, too_many) = state.take_due(now, self.bytes_max());
            self.dropped("allowance", too_many);
            self.send(copies);
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
        let (loss, allowance) = (Loss::new(now), Allowance::new(now));
        Self { loss, frames: VecDeque::new(), texts: Vec::new(), timer: None, allowance }
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
            None => Text { tail: Tail::new(piece), written: VecDeque::new(), due: None, copied: None },
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

    /// Takes the copies that are due and allowed, each at most so large, and forgets old text. Frames come before text,
    /// and of texts the one that was not copied for longest. How many were not allowed is told too: the next piece of a
    /// text brings its next copy.
    fn take_due(&mut self, now: Instant, bytes_max: usize) -> (Vec<Bytes>, usize) {
        let mut due = Vec::new();
        while let Some((_, frame)) = self.frames.pop_front_if(|(due, _)| *due <= now) {
            due.push((None, frame));
        }
        let mut texts: Vec<_> = self.texts.iter_mut().collect();
        texts.sort_by_key(|text| text.copied);
        for text in texts {
            text.forget(now);
            if text.due.is_some_and(|due| due <= now) {
                due.extend(text.tail.frame(bytes_max).map(|frame| (Some(&mut text.copied), frame)));
                // What was written within the delay goes with it, and once more with the next one.
                let again = text.written.iter().any(|(written, _)| *written + DELAY > now);
                text.due = again.then_some(now + DELAY);
            }
        }
        let asked = due.len();
        let mut copies = Vec::new();
        for (copied, frame) in due {
            let leaving = if copied.is_some() { FRAME_RESERVE } else { 0 };
            if self.allowance.take(u64::try_from(frame.len()).unwrap_or(COPY_BYTES_MAX as u64), leaving) {
                copies.push(frame);
                if let Some(copied) = copied {
                    *copied = Some(now);
                }
            }
        }
        self.texts.retain(|text| !text.written.is_empty());
        let too_many = asked - copies.len();
        (copies, too_many)
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

    const WINDOW: (u64, Duration) = (12_000, Duration::from_millis(80));

    #[test]
    fn copies_take_a_quarter_of_the_window_in_each_round_trip() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert!(!allowance.take(1, 0), "nothing is there at first");
        let taken = (1..=100_u32).filter(|step| {
            allowance.refill(now + Duration::from_millis(8) * *step, WINDOW);
            allowance.take(900, 0)
        });
        // 800 ms are ten round trips of 3,000 bytes.
        assert_eq!(taken.count(), 33);
    }

    #[test]
    fn what_was_not_taken_does_not_pile_up() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        allowance.refill(now + Duration::from_secs(3600), WINDOW);
        assert_eq!((0..10).filter(|_| allowance.take(1000, 0)).count(), 3);
    }

    #[test]
    fn text_leaves_room_for_an_entry() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        allowance.refill(now + Duration::from_secs(1), WINDOW);
        assert_eq!((0..10).filter(|_| allowance.take(900, FRAME_RESERVE)).count(), 2);
        assert!(allowance.take(1024, 0), "{allowance:?} is left for an entry");
    }

    #[test]
    fn less_than_a_byte_is_counted_the_next_time() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        for step in 1..=80_000_u32 {
            allowance.refill(now + Duration::from_micros(1) * step, WINDOW);
        }
        assert!(allowance.take(2_700, 0), "{allowance:?} after a round trip");
    }

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// What a connection copies with when its window is large.
    fn rich(begin: Instant) -> State {
        let mut state = State::new(begin);
        state.allowance.refill(begin + ms(1), (1 << 20, ms(1)));
        state
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
        let mut state = rich(begin);
        let turn = TurnId::new();
        for (at, offset, content) in [(0, 0, "one "), (2, 4, "two "), (5, 8, "three")] {
            state.text(&piece(turn, offset, content), begin + ms(at));
        }
        assert_eq!(state.due(), Some(begin + DELAY));
        assert_eq!(texts(&state.take_due(begin + ms(7), 1024).0), []);
        assert_eq!(texts(&state.take_due(begin + ms(8), 1024).0), [(0, "one two three".to_owned())]);
        // Some of it may have been in the packet before.
        assert_eq!(state.due(), Some(begin + ms(16)));
        assert_eq!(texts(&state.take_due(begin + ms(16), 1024).0), [(0, "one two three".to_owned())]);
        assert_eq!(state.due(), Some(begin + ms(5) + TEXT_AGE));

        state.text(&piece(turn, 13, "!"), begin + ms(301));
        assert_eq!(texts(&state.take_due(begin + ms(309), 1024).0), [(13, "!".to_owned())], "the rest is old");
        let end = begin + ms(301) + TEXT_AGE;
        assert_eq!(state.due(), Some(end));
        assert_eq!(texts(&state.take_due(end, 1024).0), []);
        assert_eq!((state.due(), state.texts.len()), (None, 0));
    }

    #[test]
    fn frames_leave_in_order_and_the_oldest_gives_way() {
        let begin = Instant::now();
        let mut state = rich(begin);
        let frames: Vec<_> = (0..FRAMES_MAX + 2).map(|number| Bytes::from(number.to_string())).collect();
        let gone: Vec<_> = frames.iter().filter_map(|frame| state.frame(frame.clone(), begin)).collect();
        assert_eq!(gone, frames[..2]);
        assert_eq!(state.take_due(begin + ms(7), 1024).0, Vec::<Bytes>::new());
        assert_eq!(state.take_due(begin + DELAY, 1024).0, frames[2..]);
        assert_eq!(state.due(), None);
    }

    #[test]
    fn of_too_many_turns_the_one_that_was_silent_longest_is_not_copied() {
        let begin = Instant::now();
        let mut state = rich(begin);
        let turns: Vec<_> = (0..=TURNS_MAX).map(|_| TurnId::new()).collect();
        for (turn, at) in turns.iter().zip(0..) {
            state.text(&piece(*turn, at, "text"), begin);
        }
        let copied: Vec<_> = texts(&state.take_due(begin + DELAY, 1024).0).iter().map(|(offset, _)| *offset).collect();
        assert_eq!(copied, (1..=TURNS_MAX as u64).collect::<Vec<_>>());
    }
}
