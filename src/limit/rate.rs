//! [`Rate`]: a rate for each key, in bounded memory.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};

use super::RetryAfter;

/// Keys that are remembered at least, and half of those that are remembered at most.
const GENERATION_KEYS: usize = 50_000;

/// Longest time that a key is shut out for what it did elsewhere.
const DEBT_MAX: Duration = Duration::from_secs(300);

/// So many actions of each key in a minute, all of them at once if it has rested for a minute (GCRA).
pub(super) struct Rate<K: Hash + Eq + Clone, C: Clock> {
    limiter: RateLimiter<K, States<K>, C, NoOpMiddleware<C::Instant>>,
    states: States<K>,
    began: C::Instant,
    quota: Quota,
}

impl<K: Hash + Eq + Clone, C: Clock> Rate<K, C> {
    pub(super) fn per_minute(actions: u32, clock: C) -> Self {
        Self::bounded(actions, clock, GENERATION_KEYS)
    }

    fn bounded(actions: u32, clock: C, generation_keys: usize) -> Self {
        let quota = Quota::per_minute(NonZeroU32::new(actions).unwrap_or(NonZeroU32::MIN));
        let states = Generations { halves: Mutex::new((HashMap::new(), HashMap::new())), generation_keys };
        let states = States(Arc::new(states));
        // The limiter counts from its making: some nanoseconds later.
        let began = clock.now();
        Self { limiter: RateLimiter::new(quota, states.clone(), clock), states, began, quota }
    }

    pub(super) fn take(&self, key: &K) -> Result<(), RetryAfter> {
        self.limiter.check_key(key).map_err(|until| {
            let wait = until.wait_time_from(self.limiter.clock().now());
            let ms = wait.as_nanos().div_ceil(1_000_000).max(1);
            RetryAfter { ms: u64::try_from(ms).unwrap_or(u64::MAX) }
        })
    }

    /// Takes actions that were admitted elsewhere, also those that would not be admitted here.
    pub(super) fn owe(&self, key: &K, actions: u32) {
        // More than that no node has admitted at once.
        let actions = actions.min(self.quota.burst_size().get().saturating_mul(2));
        let now = self.limiter.clock().now().duration_since(self.began);
        let cost = Nanos::from(self.quota.replenish_interval()) * u64::from(actions);
        let owed = self.states.measure_and_replace(key, |paid| {
            let paid = paid.map_or(now, |paid| paid.max(now));
            let most = (now + Nanos::from(DEBT_MAX)).max(paid);
            Ok::<_, std::convert::Infallible>(((), (paid + cost).min(most)))
        });
        match owed {
            Ok(()) => {}
        }
    }
}

impl<K: Hash + Eq + Clone, C: Clock> fmt::Debug for Rate<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rate").finish_non_exhaustive()
    }
}

type Half<K> = HashMap<K, InMemoryState>;

struct States<K>(Arc<Generations<K>>);

impl<K> Clone for States<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The states of the keys of late, in two generations: what is used moves to the young one; when that is full, the
/// old one is dropped and the young one becomes old. So a flood of new keys costs the keys that have been silent
/// longest, which begin anew, and refuses nobody; and nothing has to be swept.
struct Generations<K> {
    /// young, old
    halves: Mutex<(Half<K>, Half<K>)>,
    generation_keys: usize,
}

impl<K: Hash + Eq + Clone> StateStore for States<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut halves = self.0.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let (young, old) = &mut *halves;
        if let Some(state) = young.get(key) {
            return state.measure_and_replace(&NotKeyed::NonKey, measure);
        }
        // Taken out before the old generation may be dropped.
        let state = old.remove(key).unwrap_or_default();
        if young.len() >= self.0.generation_keys {
            *old = std::mem::take(young);
        }
        young.entry(key.clone()).or_insert(state).measure_and_replace(&NotKeyed::NonKey, measure)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    fn rate(actions: u32, keys: usize) -> (Rate<u32, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Rate::bounded(actions, clock.clone(), keys), clock)
    }

    fn taken(rate: &Rate<u32, FakeRelativeClock>, key: u32) -> usize {
        (0..1000).take_while(|_| rate.take(&key).is_ok()).count()
    }

    #[test]
    fn a_minute_allows_its_number_and_says_when_to_come_back() {
        let (rate, clock) = rate(60, 100);
        assert_eq!(taken(&rate, 1), 60);
        assert_eq!(rate.take(&1), Err(RetryAfter { ms: 1000 }));
        clock.advance(Duration::from_micros(999_999));
        assert_eq!(rate.take(&1), Err(RetryAfter { ms: 1 }), "a rest of one microsecond counts as one millisecond");
        clock.advance(Duration::from_millis(1));
        assert_eq!(taken(&rate, 1), 1);
        clock.advance(Duration::from_secs(60));
        assert_eq!(taken(&rate, 1), 60);
    }

    #[test]
    fn a_flood_of_keys_is_not_refused_and_memory_stays_bounded() {
        let (rate, _) = rate(1, 100);
        for key in 0..100_000 {
            assert_eq!(rate.take(&key), Ok(()), "newcomer {key}");
        }
        let halves = rate.states.0.halves.lock().unwrap();
        assert!(halves.0.len() <= 100 && halves.1.len() <= 100, "{} and {}", halves.0.len(), halves.1.len());
    }

    #[test]
    fn a_key_that_is_in_use_is_not_forgotten_in_a_flood() {
        let (rate, _) = rate(1, 100);
        assert_eq!(rate.take(&0), Ok(()));
        for key in 1..10_000 {
            assert_eq!(rate.take(&key), Ok(()));
            if key % 50 == 0 {
                assert_ne!(rate.take(&0), Ok(()), "after {key} newcomers");
            }
        }
    }
}
