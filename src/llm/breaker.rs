//! Leaving a provider alone that keeps failing: a circuit breaker for each, which asks nobody by itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Whether a provider is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// it is
    Closed,
    /// it failed so often in a row that it is left alone for a while
    Open,
    /// the while is over: one request tries it, and decides
    Trying,
}

impl Status {
    /// What `/readyz` calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "usable",
            Self::Open => "left_alone",
            Self::Trying => "trying",
        }
    }

    /// What the metric shows.
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
            Self::Trying => 2,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    Trying,
}

/// The circuit breaker of one provider. Shared by all turns.
#[derive(Debug)]
pub struct Breaker {
    failures_max: u32,
    pause: Duration,
    state: Mutex<State>,
}

impl Breaker {
    /// Leaves a provider alone for `pause` after `failures_max` failures in a row, of which there is at least one.
    #[must_use]
    pub fn new(failures_max: u32, pause: Duration) -> Arc<Self> {
        Arc::new(Self { failures_max: failures_max.max(1), pause, state: Mutex::new(State::Closed { failures: 0 }) })
    }

    /// Whether the provider is asked.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = *self.lock();
        match state {
            State::Closed { .. } => Status::Closed,
            State::Open { until } if until > Instant::now() => Status::Open,
            State::Open { .. } | State::Trying => Status::Trying,
        }
    }

    /// Lets a request through, which then says what came of it; else says how long the provider is left alone.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Permit, Duration> {
        let mut state = self.lock();
        let now = Instant::now();
        let trial = match *state {
            State::Closed { .. } => false,
            State::Open { until } if until > now => return Err(until - now),
            State::Open { .. } => true,
            // Nobody knows how long the one that tries will take.
            State::Trying => return Err(self.pause),
        };
        if trial {
            *state = State::Trying;
        }
        drop(state);
        Ok(Permit { breaker: Arc::clone(self), trial })
    }

    fn failed(&self, trial: bool) -> Option<Duration> {
        let mut state = self.lock();
        let failures = match *state {
            State::Closed { failures } => failures + 1,
            State::Trying if trial => self.failures_max,
            // Of a request that began before: the provider is left alone already.
            State::Trying | State::Open { .. } => return None,
        };
        let open = failures >= self.failures_max;
        *state = if open { State::Open { until: Instant::now() + self.pause } } else { State::Closed { failures } };
        open.then_some(self.pause)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that was let through. Dropped without a word, as by a stop, it counts neither way.
#[derive(Debug)]
pub(super) struct Permit {
    breaker: Arc<Breaker>,
    trial: bool,
}

impl Permit {
    /// The provider writes: if this request tries it, which is told, others are let through too. It may still break
    /// off, and then it is left alone again.
    pub(super) fn works(&mut self) -> bool {
        let trial = std::mem::take(&mut self.trial);
        if trial {
            *self.breaker.lock() = State::Closed { failures: self.breaker.failures_max - 1 };
        }
        trial
    }

    /// The provider did what it is there for.
    pub(super) fn succeeded(mut self) {
        self.trial = false;
        *self.breaker.lock() = State::Closed { failures: 0 };
    }

    /// It did not. Says for how long it is left alone, if that begins with this failure.
    pub(super) fn failed(mut self) -> Option<Duration> {
        self.breaker.failed(std::mem::take(&mut self.trial))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.trial {
            // The next request tries it.
            *self.breaker.lock() = State::Open { until: Instant::now() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    fn failing(times: u32) -> Arc<Breaker> {
        let breaker = Breaker::new(3, PAUSE);
        (0..times).for_each(|_| {
            breaker.admit().unwrap().failed();
        });
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_one_success_between_them_does_not() {
        let breaker = failing(2);
        breaker.admit().unwrap().succeeded();
        assert_eq!([(); 2].map(|()| breaker.admit().unwrap().failed()), [None, None]);
        assert_eq!(breaker.status(), Status::Closed);
        assert_eq!(breaker.admit().unwrap().failed(), Some(PAUSE));
        assert_eq!((breaker.status(), breaker.admit().unwrap_err()), (Status::Open, PAUSE));
        tokio::time::advance(PAUSE / 3).await;
        assert_eq!(breaker.admit().unwrap_err(), PAUSE * 2 / 3);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_one_request_tries_and_decides() {
        for succeeds in [true, false] {
            let breaker = failing(3);
            tokio::time::advance(PAUSE).await;
            assert_eq!(breaker.status(), Status::Trying);
            let trial = breaker.admit().unwrap();
            assert_eq!((breaker.status(), breaker.admit().unwrap_err()), (Status::Trying, PAUSE));
            if succeeds {
                trial.succeeded();
            } else {
                assert_eq!(trial.failed(), Some(PAUSE));
            }
            assert_eq!(breaker.status(), if succeeds { Status::Closed } else { Status::Open });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_given_up_leaves_the_next_request_to_try() {
        let breaker = failing(3);
        tokio::time::advance(PAUSE).await;
        drop(breaker.admit().unwrap());
        assert_eq!(breaker.status(), Status::Trying);
        breaker.admit().unwrap().succeeded();
        assert_eq!(breaker.status(), Status::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_breaks_off_after_text_opens_it_again() {
        let breaker = failing(3);
        tokio::time::advance(PAUSE).await;
        let mut trial = breaker.admit().unwrap();
        assert!(trial.works());
        assert_eq!(breaker.status(), Status::Closed, "a long answer keeps nobody waiting");
        assert_eq!(trial.failed(), Some(PAUSE));
        assert_eq!(breaker.status(), Status::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_from_before_changes_nothing_when_it_fails_late() {
        let breaker = failing(0);
        let late = breaker.admit().unwrap();
        (0..3).for_each(|_| {
            breaker.admit().unwrap().failed();
        });
        tokio::time::advance(PAUSE).await;
        let trial = breaker.admit().unwrap();
        assert_eq!(late.failed(), None);
        assert_eq!(breaker.status(), Status::Trying);
        trial.succeeded();
        assert_eq!(breaker.status(), Status::Closed);
    }
}
