//! What requests to models took: a row for each, which outlives its session, and the sums of a user's days.

use mongodb::bson::{Binary, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    super::{DaySpent, EndTurn, Error, Purpose, Result, Spend, Spent, usage::COUNT_MAX},
    beside::Turnout,
    lane::Shared,
    link::{self, DUPLICATE, Find, Link, Table, Written},
    rows::{How, Row},
    values,
    work::Draft,
};
use crate::chat::{Day, SessionId, Timestamp, TurnId, Usage, UserId};

/// Names of additions that a day remembers. A helper that comes late looks for the request's own row first.
const ADDED_KEPT: i32 = 256;

#[derive(Serialize, Deserialize)]
struct UsageRow {
    #[serde(rename = "_id")]
    id: Binary,
    user_id: UserId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session_id: Option<SessionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turn_id: Option<TurnId>,
    model_id: String,
    purpose: String,
    usage: Usage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost: Option<u64>,
    created_at: i64,
}

/// What is added to a user's day.
#[derive(Serialize, Deserialize)]
struct AddRow {
    /// the request's row, which is written after it
    #[serde(rename = "_id")]
    id: Binary,
    user_id: UserId,
    day: i64,
    model_id: String,
    prompt_tokens: u64,
    completion_tokens: u64,
    estimated_tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost: Option<u64>,
}

#[derive(Deserialize)]
struct DayRow {
    day: i64,
    model_id: String,
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    estimated_tokens: u64,
    #[serde(default)]
    cost: Option<u64>,
}

/// What is counted of what a provider reported.
pub(super) fn counted(usage: Usage) -> Usage {
    let Usage { prompt_tokens, completion_tokens, estimated } = usage;
    let (prompt_tokens, completion_tokens) = (prompt_tokens.min(COUNT_MAX), completion_tokens.min(COUNT_MAX));
    Usage { prompt_tokens, completion_tokens, estimated }
}

/// The name of a row: it tells nothing to whoever does not know what was asked.
fn name(asked: Uuid, nth: u64) -> Binary {
    let asked = [asked.as_bytes().as_slice(), &nth.to_be_bytes()].concat();
    let digest = ring::digest::digest(&ring::digest::SHA256, &asked);
    values::binary(digest.as_ref().get(..16).unwrap_or_default())
}

/// The rows of what was asked of models for a turn.
pub(super) fn charge(draft: &mut Draft, user: &UserId, end: &EndTurn) -> Result<()> {
    for (nth, spent) in (0..).zip(&end.spent) {
        let id = name(end.turn_id.0, nth);
        let row = usage_row(id, user, spent, draft.now);
        let add = add_row(&row);
        let row = UsageRow { session_id: Some(draft.head.id), turn_id: Some(end.turn_id), ..row };
        draft.row(Table::UsageDaily, How::Add, &add)?;
        draft.row(Table::Usage, How::Insert, &row)?;
    }
    Ok(())
}

fn usage_row(id: Binary, user: &UserId, spent: &Spent, created_at: i64) -> UsageRow {
    let purpose = match spent.purpose {
        Purpose::Reply => "reply",
        Purpose::Name => "name",
    };
    UsageRow {
        id,
        user_id: user.clone(),
        session_id: None,
        turn_id: None,
        model_id: spent.model_id.clone(),
        purpose: purpose.to_owned(),
        usage: counted(spent.usage),
        cost: spent.cost.map(|cost| cost.min(COUNT_MAX)),
        created_at,
    }
}

fn add_row(row: &UsageRow) -> AddRow {
    let Usage { prompt_tokens, completion_tokens, estimated } = row.usage;
    AddRow {
        id: row.id.clone(),
        user_id: row.user_id.clone(),
        day: Day::of(Timestamp(row.created_at)).0,
        model_id: row.model_id.clone(),
        prompt_tokens,
        completion_tokens,
        estimated_tokens: if estimated { prompt_tokens + completion_tokens } else { 0 },
        cost: row.cost,
    }
}

/// Adds what a request outside of a turn took, unless an earlier call has.
pub(super) async fn spend(shared: &Shared, spend: &Spend, deadline: Instant) -> Result<()> {
    let id = name(spend.id, 0);
    let mut find = Find::of(doc! { "_id": values::id(spend.session_id.0), "gone_at": null });
    (find.projection, find.limit) = (Some(doc! { "_id": 1 }), 1);
    let known = !shared.link.find(Table::Sessions, &find, deadline).await?.is_empty();
    let row = usage_row(id, &spend.user_id, &spend.spent, shared.clock.now());
    let add = Row::new(Table::UsageDaily, How::Add, &add_row(&row))?;
    let row = UsageRow { session_id: known.then_some(spend.session_id), ..row };
    add_days(&shared.link, [&add].into_iter(), Turnout::Again, deadline).await?;
    let rows = [values::document(&row)?].into_iter().collect();
    shared.link.write(link::insert(Table::Usage, rows), deadline).await?.unless_duplicate()?;
    Ok(())
}

/// Adds to users' days, each of these once.
pub(super) async fn add_days(
    link: &Link,
    adds: impl Iterator<Item = &Row> + Send,
    turnout: Turnout,
    deadline: Instant,
) -> Result<()> {
    let mut adds: Vec<AddRow> = adds.map(|row| values::row(&row.row)).collect::<Result<_>>()?;
    if turnout == Turnout::Again && !adds.is_empty() {
        let ids: Vec<_> = adds.iter().map(|add| add.id.clone()).collect();
        let find = Find { projection: Some(doc! { "_id": 1 }), ..Find::of(doc! { "_id": { "$in": ids } }) };
        for known in link.find(Table::Usage, &find, deadline).await? {
            let known = known.get_binary(mongodb::bson::raw::cstr!("_id")).map_err(values::failed)?;
            adds.retain(|add| add.id.bytes != known.bytes);
        }
    }
    // A second time for those that met another first one of the same day, which made its row.
    for _attempt in 0..2 {
        if adds.is_empty() {
            break;
        }
        let statements: RawArrayBuf = adds.iter().map(addition).collect();
        let written: Written = link.write(link::update(Table::UsageDaily, statements), deadline).await?;
        let failed = written.unless_duplicate()?.failed;
        let refused = |at: &usize| failed.iter().any(|(failed, code)| failed == at && *code == DUPLICATE);
        adds = adds.into_iter().enumerate().filter(|(at, _add)| refused(at)).map(|(_at, add)| add).collect();
    }
    Ok(())
}

/// Adds unless the day remembers that it was: then no row matches, and the unique index refuses another one.
fn addition(add: &AddRow) -> RawDocumentBuf {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let filter = rawdoc! {
        "user_id": add.user_id.as_str(), "day": add.day, "model_id": add.model_id.as_str(),
        "added": { "$ne": add.id.clone() },
    };
    let mut sums = rawdoc! {
        "requests": 1_i64, "prompt_tokens": count(add.prompt_tokens),
        "completion_tokens": count(add.completion_tokens), "estimated_tokens": count(add.estimated_tokens),
    };
    if let Some(cost) = add.cost {
        sums.append(mongodb::bson::raw::cstr!("cost"), count(cost));
    }
    let remembered = rawdoc! { "added": { "$each": [add.id.clone()], "$slice": -ADDED_KEPT } };
    rawdoc! { "q": filter, "u": { "$inc": sums, "$push": remembered }, "upsert": true }
}

/// What a user's requests took from a day on.
pub(super) async fn spent(shared: &Shared, user: &UserId, since: Day, deadline: Instant) -> Result<Vec<DaySpent>> {
    let find = Find {
        projection: Some(doc! { "added": 0 }),
        sort: Some(doc! { "user_id": 1, "day": 1, "model_id": 1 }),
        ..Find::of(doc! { "user_id": user.as_str(), "day": { "$gte": since.0 } })
    };
    let days = shared.link.find(Table::UsageDaily, &find, deadline).await?;
    days.iter().map(|day| values::row::<DayRow>(day).map(DaySpent::from)).collect::<std::result::Result<_, Error>>()
}

impl From<DayRow> for DaySpent {
    fn from(row: DayRow) -> Self {
        Self {
            day: Day(row.day),
            model_id: row.model_id,
            requests: row.requests,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            estimated_tokens: row.estimated_tokens,
            cost: row.cost,
        }
    }
}
