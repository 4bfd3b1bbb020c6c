//! Waits that share a task with busier ones.

mod board;

pub(crate) use board::{Board, Hung};

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A future that is polled when it was woken, and not whenever something else in its task was. For what rarely
/// happens and is costly to ask: a wait for a drain takes the lock that all connections wait on.
#[derive(Debug)]
pub(crate) struct Woken<F> {
    future: F,
    bell: Bell,
}

/// Tells which of the things that a task waits for has woken it.
#[derive(Debug)]
pub(crate) struct Bell {
    flag: Arc<Flag>,
    /// rings it
    waker: Waker,
    /// whom it wakes, as the flag has it
    task: Option<Waker>,
}

/// Keeps its waker when it wakes: a look that finds the bell silent writes nothing.
#[derive(Debug)]
struct Flag {
    woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Before the lock: whoever changes the task after it looks at the flag later.
        self.woken.store(true, Ordering::Release);
        if let Some(task) = &*self.task.lock().unwrap_or_else(PoisonError::into_inner) {
            task.wake_by_ref();
        }
    }
}

impl Bell {
    /// One that has rung: the first look asks.
    pub(crate) fn new() -> Self {
        let flag = Arc::new(Flag { woken: AtomicBool::new(true), task: Mutex::new(None) });
        Self { waker: Waker::from(Arc::clone(&flag)), flag, task: None }
    }

    /// Whether it has rung since the last look; from now on it wakes this task when it does.
    pub(crate) fn rung(&mut self, cx: &Context<'_>) -> bool {
        if !self.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            // Before the look: whoever sets the flag after it wakes this task.
            self.flag.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.task);
        }
        self.flag.woken.load(Ordering::Acquire) && self.flag.woken.swap(false, Ordering::Acquire)
    }

    /// What rings it.
    pub(crate) const fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl<F> Woken<F> {
    /// Wraps a future; its first poll is always handed on.
    pub(crate) fn new(future: F) -> Self {
        Self { future, bell: Bell::new() }
    }
}

impl<F: Future + Unpin> Future for Woken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.bell.rung(cx) {
            return Poll::Pending;
        }
        let Self { future, bell } = &mut *self;
        Pin::new(future).poll(&mut Context::from_waker(&bell.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, sync::atomic::AtomicUsize};

    use futures_util::{FutureExt, task::noop_waker_ref};
    use tokio::sync::Notify;

    use super::*;

    #[test]
    fn it_is_polled_only_when_it_was_woken() {
        let notify = Notify::new();
        let polls = Cell::new(0);
        let mut notified = Box::pin(notify.notified());
        let counted = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            notified.poll_unpin(cx)
        });
        let mut woken = Woken::new(counted);
        let mut cx = Context::from_waker(noop_waker_ref());
        for _ in 0..3 {
            assert_eq!(woken.poll_unpin(&mut cx), Poll::Pending);
        }
        assert_eq!(polls.get(), 1);
        notify.notify_one();
        assert_eq!(woken.poll_unpin(&mut cx), Poll::Ready(()));
        assert_eq!(polls.get(), 2);
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_bell_wakes_whoever_looked_last_each_time() {
        let tasks = [Arc::<Count>::default(), Arc::default()];
        let wakers = tasks.each_ref().map(|task| Waker::from(Arc::clone(task)));
        let mut bell = Bell::new();
        let looks = wakers.each_ref().map(|waker| bell.rung(&Context::from_waker(waker)));
        assert_eq!(looks, [true, false]);
        for round in 1..=2 {
            bell.waker.wake_by_ref();
            assert_eq!(tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed)), [0, round]);
            let looks = [(); 2].map(|()| bell.rung(&Context::from_waker(&wakers[1])));
            assert_eq!(looks, [true, false]);
        }
    }

    #[tokio::test]
    async fn its_task_is_woken_too() {
        let notify = Arc::new(Notify::new());
        let waits = Arc::clone(&notify);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { Woken::new(Box::pin(waits.notified())).await });
        tokio::task::yield_now().await;
        notify.notify_one();
        assert_eq!(tasks.join_next().await.map(|ended| ended.is_ok()), Some(true));
    }
}
