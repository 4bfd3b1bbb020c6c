//! Waits that share a task with busier ones.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{Stream, task::AtomicWaker};

/// A future or stream that is polled when it was woken, and not whenever something else in its task was. For what rarely
/// happens and is costly to ask: a wait for a drain takes the lock that all connections wait on.
#[derive(Debug)]
pub(crate) struct Woken<F> {
    future: F,
    flag: Arc<Flag>,
}

#[derive(Debug)]
struct Flag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F> Woken<F> {
    /// Wraps a future; its first poll is always handed on.
    pub(crate) fn new(future: F) -> Self {
        Self { future, flag: Arc::new(Flag { woken: AtomicBool::new(true), task: AtomicWaker::new() }) }
    }
}

impl<F: Future + Unpin> Future for Woken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Before the look: whoever sets the flag after it wakes this task.
        self.flag.task.register(cx.waker());
        if !self.flag.woken.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }
}

impl<S: Stream + Unpin> Stream for Woken<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.flag.task.register(cx.waker());
        if !self.flag.woken.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        let next = Pin::new(&mut self.future).poll_next(&mut Context::from_waker(&waker));
        if next.is_ready() {
            // It has not said that it waits: it is asked again.
            self.flag.woken.store(true, Ordering::Relaxed);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn};

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
