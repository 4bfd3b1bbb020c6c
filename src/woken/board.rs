//! The bells of one task on one board: a look at all of them reads one place in memory, however many there are.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
};

/// The bit of the bell that was hung first.
const FIRST: u64 = 1;
/// The bit of all bells beyond 63. They count as rung at each look: so many waits of one task are rare.
const SHARED: u64 = 1 << 63;

/// The bells of a task that does many things: each is asked when it has rung, and not whenever another one has.
#[derive(Debug)]
pub(crate) struct Board {
    wires: Arc<Wires>,
    /// whom the bells wake, as the wires have it
    task: Option<Waker>,
    /// those that rang, as of the last look, and were not asked since
    rung: u64,
    /// the bits of the bells that hang
    hung: u64,
}

/// One bell.
#[derive(Debug)]
pub(crate) struct Hung {
    bit: u64,
    waker: Waker,
}

/// Where bells ring. It rings the first one itself: what a task mostly waits for comes by no other memory.
#[derive(Debug)]
struct Wires {
    rung: AtomicU64,
    task: Mutex<Option<Waker>>,
}

#[derive(Debug)]
struct Rope {
    wires: Arc<Wires>,
    bit: u64,
}

impl Wires {
    fn ring(&self, bit: u64) {
        // Before the lock: whoever changes the task after it looks at the bits later.
        self.rung.fetch_or(bit, Ordering::Release);
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }
}

impl Wake for Wires {
    fn wake(self: Arc<Self>) {
        self.ring(FIRST);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring(FIRST);
    }
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wires.ring(self.bit);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wires.ring(self.bit);
    }
}

impl Board {
    /// An empty board.
    pub(crate) fn new() -> Self {
        let wires = Wires { rung: AtomicU64::new(0), task: Mutex::new(None) };
        Self { wires: Arc::new(wires), task: None, rung: 0, hung: 0 }
    }

    /// Sees which bells have rung since the last look; from now on they wake this task when they do.
    pub(crate) fn look(&mut self, cx: &Context<'_>) {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            // Before the look: whoever rings after it wakes this task.
            self.wires.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.task);
        }
        if self.wires.rung.load(Ordering::Acquire) != 0 {
            self.rung |= self.wires.rung.swap(0, Ordering::Acquire);
        }
    }

    /// Hangs a bell that has rung: what it belongs to is asked for the first time.
    pub(crate) fn hang(&mut self) -> Hung {
        let free = !self.hung & self.hung.wrapping_add(1);
        let bit = if free == 0 { SHARED } else { free };
        self.hung |= bit & !SHARED;
        self.rung |= bit;
        let waker = match bit {
            FIRST => Waker::from(Arc::clone(&self.wires)),
            bit => Waker::from(Arc::new(Rope { wires: Arc::clone(&self.wires), bit })),
        };
        Hung { bit, waker }
    }

    /// Takes a bell down. If it still rings, whoever hangs in its place is asked once more than needed.
    pub(crate) const fn take_down(&mut self, hung: &Hung) {
        self.hung &= !hung.bit;
    }

    /// Whether a bell has rung since the last time that this was asked.
    pub(crate) const fn rang(&mut self, hung: &Hung) -> bool {
        let rang = self.rung & hung.bit != 0 || hung.bit == SHARED;
        self.rung &= !hung.bit;
        rang
    }

    /// The same for one of the next 62 bells after the first one. While only that has rung, the others are not looked
    /// at, wherever they lie.
    pub(crate) const fn rang_rarely(&mut self, hung: &Hung) -> bool {
        self.rung & !FIRST != 0 && self.rang(hung)
    }

    /// Has a bell count as rung: what was asked last has not said that it waits.
    pub(crate) const fn again(&mut self, hung: &Hung) {
        self.rung |= hung.bit;
    }
}

impl Hung {
    /// What rings it.
    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task() -> (Arc<Count>, Waker) {
        let count = Arc::<Count>::default();
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_look_tells_which_bells_have_rung_and_each_is_told_once() {
        let (count, waker) = task();
        let mut board = Board::new();
        let bells = [board.hang(), board.hang(), board.hang()];
        board.look(&Context::from_waker(&waker));
        let rang = |board: &mut Board| bells.each_ref().map(|bell| board.rang(bell));
        assert_eq!([rang(&mut board), rang(&mut board)], [[true; 3], [false; 3]]);
        bells[0].waker().wake_by_ref();
        bells[2].waker().wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(rang(&mut board), [false; 3], "nobody has looked");
        board.look(&Context::from_waker(&waker));
        assert_eq!(rang(&mut board), [true, false, true]);
        board.again(&bells[1]);
        assert_eq!(rang(&mut board), [false, true, false]);
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "nobody was woken for that");
    }

    #[test]
    fn other_bells_than_the_first_one_are_asked_for_once_one_of_them_has_rung() {
        let (_, waker) = task();
        let mut board = Board::new();
        let [first, other, third] = [board.hang(), board.hang(), board.hang()];
        let asked = |board: &mut Board| {
            board.look(&Context::from_waker(&waker));
            [board.rang_rarely(&other), board.rang_rarely(&third), board.rang(&first)]
        };
        assert_eq!([asked(&mut board), asked(&mut board)], [[true; 3], [false; 3]]);
        for (rings, rang) in [([&first].as_slice(), [false, false, true]), (&[&first, &third], [false, true, true])] {
            rings.iter().for_each(|bell| bell.waker().wake_by_ref());
            assert_eq!(asked(&mut board), rang);
        }
    }

    #[test]
    fn bells_wake_whoever_looked_last() {
        let tasks = [task(), task()];
        let mut board = Board::new();
        let bells = [board.hang(), board.hang()];
        for (_, waker) in &tasks {
            board.look(&Context::from_waker(waker));
        }
        for bell in &bells {
            bell.waker().wake_by_ref();
        }
        assert_eq!(tasks.each_ref().map(|(count, _)| count.0.load(Ordering::Relaxed)), [0, 2]);
    }

    #[test]
    fn places_are_used_again_and_bells_beyond_them_are_always_asked() {
        let (_, waker) = task();
        let mut board = Board::new();
        let bells: Vec<_> = (0..70).map(|_| board.hang()).collect();
        let asked = |board: &mut Board| {
            board.look(&Context::from_waker(&waker));
            bells.iter().filter(|bell| board.rang(bell)).count()
        };
        assert_eq!([asked(&mut board), asked(&mut board)], [70, 7]);
        bells[69].waker().wake_by_ref();
        bells[20].waker().wake_by_ref();
        assert_eq!(asked(&mut board), 8);
        board.take_down(&bells[20]);
        board.take_down(&bells[69]);
        assert_eq!((board.hang().bit, board.hang().bit), (bells[20].bit, SHARED));
    }
}
