//! How many tokens the models may take for one user in a day of UTC, and what they have taken.
//!
//! A request is admitted while what is counted of its user's day lies below the cap; a request is counted when its
//! turn ends. So an answer that runs is never cut, and a user can go beyond the cap by what was admitted before it was
//! reached: in each of `sessions.active_per_user` sessions one running turn and `limits.queued_turns` waiting ones,
//! each of which takes at most the context of its model, once for each model of its chain.

use std::{sync::Arc, time::Duration};

use super::{Refusal, Router};
use crate::{
    auth::Principal,
    chat::{Day, ErrorCode, Timestamp, UserId},
    clock::now,
    llm,
    store::{self, DaySpent},
};

/// What models may take for a user, and what it costs.
#[derive(Clone, Debug)]
pub struct Budget {
    /// tokens in a day of UTC, prompts included; `None`: any number
    pub tokens_per_user_day: Option<u64>,
    /// what costs are in, as ISO 4217 names it
    pub currency: Arc<str>,
}

impl Budget {
    /// Takes what the configuration says.
    #[must_use]
    pub fn new(config: &llm::Config) -> Self {
        Self { tokens_per_user_day: config.tokens_per_user_day, currency: config.currency.as_str().into() }
    }
}

/// What one user's requests took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// the present day
    pub today: Day,
    /// tokens of the present day, in both directions
    pub tokens: u64,
    /// how many it may be
    pub tokens_max: Option<u64>,
    /// when the next day begins
    pub resets_at: Timestamp,
    /// what costs are in
    pub currency: Arc<str>,
    /// by day, then by model, oldest first
    pub days: Vec<DaySpent>,
}

impl Router {
    /// Reads what the caller's requests took in the last so many days, the present one among them.
    ///
    /// # Errors
    /// `DATABASE_ERROR`.
    pub async fn account(&self, principal: &Principal, days: u32) -> Result<Account, Refusal> {
        let budget = &self.0.parts.budget;
        let today = Day::of(now());
        let since = today.before(i64::from(days.max(1)) - 1);
        let days = self.0.parts.store.spent(&principal.user_id, since).await?;
        Ok(Account {
            today,
            tokens: tokens_of(&days, today),
            tokens_max: budget.tokens_per_user_day,
            resets_at: today.next().begin(),
            currency: Arc::clone(&budget.currency),
            days,
        })
    }

    /// Whether a user's day has tokens left. Reads nothing without a cap, and one range of an index with one: 17 µs, as
    /// `cargo bench --bench append` tells.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED` with the time until the next day begins; `DATABASE_ERROR`.
    pub(super) async fn within_budget(&self, user: &UserId) -> Result<(), Refusal> {
        let Some(tokens_max) = self.0.parts.budget.tokens_per_user_day else { return Ok(()) };
        let moment = now();
        let today = Day::of(moment);
        let tokens = tokens_of(&self.0.parts.store.spent(user, today).await?, today);
        if tokens < tokens_max {
            return Ok(());
        }
        let resets_at = today.next().begin();
        let wait = u64::try_from(resets_at.0 - moment.0).unwrap_or_default();
        Err(Refusal {
            message: format!(
                "the budget of {tokens_max} tokens a day is used up ({tokens} so far); it resets at {resets_at}"
            )
            .into(),
            retry_after: Some(Duration::from_millis(wait)),
            ..Refusal::new(ErrorCode::QuotaExceeded)
        })
    }

    /// Notes what a request outside of a turn took; a failure is logged, and the account lacks it.
    pub(super) async fn spend(&self, spend: store::Spend) {
        if let Err(err) = self.0.parts.store.spend(spend).await {
            tracing::warn!(error = &err as &dyn std::error::Error, "what a request took is not stored");
        }
    }
}

fn tokens_of(days: &[DaySpent], day: Day) -> u64 {
    days.iter().filter(|spent| spent.day == day).map(DaySpent::tokens).fold(0, u64::saturating_add)
}
