//! The route of a user's own usage.

use std::sync::Arc;

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Parts,
    input::{Caller, Number, Query},
    problem::Problem,
};
use crate::{
    chat::{Day, Timestamp},
    router::Account,
};

/// Days that are shown unless the caller asks for another number.
const DAYS: u64 = 30;

/// What `GET /usage` takes.
#[derive(Deserialize, JsonSchema)]
pub(super) struct UsageQuery {
    /// so many days of UTC, the present one among them; 30 unless said otherwise
    days: Option<Number<1, 366>>,
}

/// What the caller's requests to models took.
#[derive(Serialize, JsonSchema)]
pub(super) struct UsageReport {
    /// the present day
    today: Today,
    /// what costs are in, as ISO 4217 names it
    currency: String,
    /// by day, then by model, oldest first. Days and models without requests are left out
    days: Vec<DayUsage>,
}

/// What the present day has taken of the caller's budget.
#[derive(Serialize, JsonSchema)]
struct Today {
    /// the day
    day: Day,
    /// tokens that went to models and came back
    tokens: u64,
    /// how many it may be; absent: any number
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_max: Option<u64>,
    /// when the next day begins, and the count with it
    resets_at: Timestamp,
}

/// What the requests to one model took in a day.
#[derive(Serialize, JsonSchema)]
struct DayUsage {
    /// the day
    day: Day,
    /// the model
    model_id: String,
    /// requests that it answered, or began to
    requests: u64,
    /// tokens that went to it
    prompt_tokens: u64,
    /// tokens that came back
    completion_tokens: u64,
    /// those of both that are guesses, as its provider reported none
    estimated_tokens: u64,
    /// the price in millionths of `currency`; absent when none was configured
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_millionths: Option<u64>,
}

impl From<Account> for UsageReport {
    fn from(account: Account) -> Self {
        let Account { today, tokens, tokens_max, resets_at, currency, days } = account;
        let days = days.into_iter().map(|spent| DayUsage {
            day: spent.day,
            model_id: spent.model_id,
            requests: spent.requests,
            prompt_tokens: spent.prompt_tokens,
            completion_tokens: spent.completion_tokens,
            estimated_tokens: spent.estimated_tokens,
            cost_millionths: spent.cost,
        });
        Self {
            today: Today { day: today, tokens, tokens_max, resets_at },
            currency: currency.to_string(),
            days: days.collect(),
        }
    }
}

pub(super) async fn read(
    Caller(principal): Caller,
    State(parts): State<Arc<Parts>>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageReport>, Problem> {
    let days = query.days.map_or(DAYS, |days| days.0);
    let account = parts.router.account(&principal, u32::try_from(days).unwrap_or(u32::MAX)).await?;
    Ok(Json(account.into()))
}
