//! What is kept of requests to models: what each took, and what providers call the conversations that they keep.

use uuid::Uuid;

use crate::chat::{Day, SessionId, Usage, UserId};

/// Most tokens, and most millionths of a currency, that one request is counted with. Providers report what they like,
/// and a sum that does not fit its column would keep a turn from ending.
pub(super) const COUNT_MAX: u64 = 1 << 40;

/// What one request to a model took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spent {
    /// the model's name in the configuration
    pub model_id: String,
    /// what for
    pub purpose: Purpose,
    /// tokens; more than 2^40 are counted as 2^40
    pub usage: Usage,
    /// price in millionths of the configured currency, counted likewise; `None` without configured prices
    pub cost: Option<u64>,
}

/// What a model was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// a reply, or a part of one
    Reply,
    /// the name of a session
    Name,
}

/// Requests to models outside of turns, on their way into a user's account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spend {
    /// the name of the row, made before the first attempt
    pub id: Uuid,
    /// who is charged
    pub user_id: UserId,
    /// what it was for; one that has been deleted meanwhile is left out
    pub session_id: SessionId,
    /// what it took
    pub spent: Spent,
}

/// What one user's requests to one model took in a day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaySpent {
    /// the day
    pub day: Day,
    /// the model's name in the configuration at that time
    pub model_id: String,
    /// how many there were
    pub requests: u64,
    /// tokens that went to the model
    pub prompt_tokens: u64,
    /// tokens that came back
    pub completion_tokens: u64,
    /// those of both that are guesses of ours
    pub estimated_tokens: u64,
    /// price in millionths of the currency that was configured then; `None` when none of them had a price
    pub cost: Option<u64>,
}

impl DaySpent {
    /// Tokens in both directions.
    #[must_use]
    pub const fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// A conversation as a provider that keeps it calls it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thread {
    /// the provider's name for it
    pub reference: String,
    /// the place of the last reply that it holds
    pub reply_seq: u64,
}
