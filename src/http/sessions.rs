//! The routes of sessions and their links.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Parts,
    input::{Body, Caller, Id, Key, Number, Query, Text, Token, invalid},
    log,
    meta::{Link, Message, Meta, SessionList, model_of},
    problem::Problem,
};
use crate::{
    chat::{Entry, ErrorCode, Session, SessionId, SessionState, Timestamp},
    clock::now,
    protocol::ServerFrame,
    router::{Create, Listed, Log, NAME_CHARS_MAX, Side},
};

/// Sessions in the answer that old clients know.
const OLD_LIMIT: u64 = 100;

/// Sessions on a page, unless the caller asks for another number; entries likewise.
const PAGE: u64 = 50;

/// Names, for the published description: no control characters, and not blank.
const NAME: &str = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$";

/// What `POST /sessions` and `PATCH /sessions/{id}` take.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(default)]
pub(super) struct Wish {
    /// what people read
    #[schemars(length(min = 1, max = NAME_CHARS_MAX), regex(pattern = NAME))]
    name: Option<String>,
    /// the model that answers from here on: one of those that are configured
    #[schemars(length(min = 1))]
    model_id: Option<String>,
}

pub(super) async fn create(
    Caller(principal): Caller,
    Key(key): Key,
    State(parts): State<Arc<Parts>>,
    Body(wish): Body<Wish>,
) -> Result<(StatusCode, Json<Meta>), Problem> {
    let create = Create { key: key.as_deref(), name: wish.name.as_deref(), model_id: wish.model_id.as_deref() };
    let listed = parts.router.create_session(&principal, create).await?;
    Ok((StatusCode::CREATED, Json(Meta::new(&parts, listed))))
}

/// What `GET /sessions` takes. Without any of it the answer is the one that old clients know.
#[derive(Deserialize, JsonSchema)]
pub(super) struct ListQuery {
    /// sessions on a page
    limit: Option<Number<1, 100>>,
    /// `next_cursor` of the page before
    cursor: Option<Text<100>>,
    /// words to search names and texts for
    q: Option<Text<255>>,
}

pub(super) async fn list(
    Caller(principal): Caller,
    State(parts): State<Arc<Parts>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<SessionList>, Problem> {
    let router = &parts.router;
    let cursor = query.cursor.as_ref().map(|cursor| &*cursor.0);
    let words = query.q.as_ref().map(|q| q.0.trim()).filter(|words| !words.is_empty());
    let limit = query.limit.map_or(PAGE, |limit| limit.0);
    let most = u32::try_from(limit).unwrap_or(u32::MAX);
    let (limit, listing) = match (&query, words) {
        (ListQuery { limit: None, cursor: None, q: None }, _) => (OLD_LIMIT, router.newest_sessions(&principal).await?),
        (_, None) => (limit, router.list_sessions(&principal, most, cursor).await?),
        (_, Some(words)) => (limit, router.search_sessions(&principal, words, most, cursor).await?),
    };
    Ok(Json(SessionList::new(&parts, principal.user_id, limit, listing)))
}

pub(super) async fn change(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
    Body(wish): Body<Wish>,
) -> Result<Json<Meta>, Problem> {
    let listed = match (&wish.name, &wish.model_id) {
        (None, None) => return Err(invalid("body: `name`, `model_id` or both are accepted, and neither is there")),
        (name, model_id) => parts.router.edit_session(&principal, id, name.as_deref(), model_id.as_deref()).await?,
    };
    Ok(Json(Meta::new(&parts, listed)))
}

pub(super) async fn delete(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
) -> Result<StatusCode, Problem> {
    parts.router.delete_session(&principal, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The answer to `POST /sessions/{id}/end`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Ended {
    /// always `ended`
    status: SessionState,
}

pub(super) async fn end(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
) -> Result<Json<Ended>, Problem> {
    parts.router.end_session(&principal, id).await?;
    Ok(Json(Ended { status: SessionState::Ended }))
}

/// What `GET /sessions/{id}` takes. Without any of it the answer is the one that old clients know.
#[derive(Deserialize, JsonSchema)]
pub(super) struct LogQuery {
    /// entries that follow this place
    after_seq: Option<Number<0, { i64::MAX.unsigned_abs() }>>,
    /// entries just before this place
    before_seq: Option<Number<0, { i64::MAX.unsigned_abs() }>>,
    /// at most so many
    limit: Option<Number<1, 200>>,
}

/// What old clients read of a session, before its `messages`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Head {
    /// the session
    session_id: SessionId,
    /// what people read; empty until it has one
    name: String,
    /// the model that answers
    model_id: String,
}

impl Head {
    fn new(parts: &Parts, session: &Session) -> Self {
        let name = session.name.clone().unwrap_or_default();
        Self { session_id: session.id, name, model_id: model_of(parts, session) }
    }
}

/// A part of a session's log.
#[derive(Serialize, JsonSchema)]
pub(super) struct LogPage {
    #[serde(flatten)]
    head: Head,
    /// whether it takes messages
    state: SessionState,
    /// the last place of the log that is taken, a running reply's included
    last_seq: u64,
    /// the frames that an attach replays, in order; a running reply is left out
    entries: Vec<ServerFrame>,
    /// whether there are more on that side
    more: bool,
}

pub(super) async fn read(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    let side = match (query.after_seq, query.before_seq) {
        (Some(_), Some(_)) => return Err(invalid("query: `after_seq` and `before_seq` exclude each other")),
        (None, None) if query.limit.is_none() => {
            let (session, log) = parts.router.read_log(&principal, id).await?;
            return whole(&Head::new(&parts, &session), vec![(MESSAGES, log, log::values(Message::new))]);
        }
        (after, None) => Side::After(after.map_or(0, |after| after.0)),
        (None, Some(before)) => Side::Before(before.0),
    };
    let limit = query.limit.map_or(PAGE, |limit| limit.0);
    let page = parts.router.read_page(&principal, id, side, u32::try_from(limit).unwrap_or(u32::MAX)).await?;
    let settled = page.entries.iter().filter(|entry| entry.settled());
    let answer = LogPage {
        head: Head::new(&parts, &page.session),
        state: page.session.state,
        last_seq: page.session.last_seq,
        entries: settled.map(|entry| log::frame(entry, &principal.user_id)).collect(),
        more: page.more,
    };
    Ok(Json(answer).into_response())
}

/// The names of the arrays that answers with a whole log have.
pub(super) const MESSAGES: &str = "messages";
pub(super) const ENTRIES: &str = "entries";

fn whole(head: &impl Serialize, sections: Vec<(&'static str, Log, log::Write)>) -> Result<Response, Problem> {
    let body = log::json(head, sections).map_err(|err| {
        tracing::error!(error = &err as &dyn std::error::Error, "answer does not encode");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::ServiceError)
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// What `GET /sessions/{id}/export` takes.
#[derive(Deserialize, JsonSchema)]
pub(super) struct ExportQuery {
    /// how it is written
    #[serde(default)]
    format: Format,
}

/// How an export is written.
#[derive(Deserialize, Clone, Copy, Default, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// for programs
    #[default]
    Json,
    /// Markdown, for people
    Md,
}

/// What an export holds before its `entries`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ExportHead {
    /// the shape of this document; it is raised when something in it changes its meaning
    version: u32,
    /// when it was made
    exported_at: Timestamp,
    /// the session
    session: Meta,
}

pub(super) async fn export(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Problem> {
    let (session, log) = parts.router.read_log(&principal, id).await?;
    let (extension, content_type) = match query.format {
        Format::Json => ("json", "application/json"),
        Format::Md => ("md", "text/markdown; charset=utf-8"),
    };
    let disposition = log::attachment(session.name.as_deref(), extension);
    let mut answer = match query.format {
        Format::Md => log::markdown(&session, log).into_response(),
        Format::Json => {
            let session = Meta::new(&parts, Listed { session, share: None, snippet: None });
            let head = ExportHead { version: 1, exported_at: now(), session };
            let frames = log::values(move |entry| Some(log::frame(&entry, &principal.user_id)));
            whole(&head, vec![(ENTRIES, log, frames)])?
        }
    };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.extend(HeaderValue::try_from(disposition).ok().map(|value| (header::CONTENT_DISPOSITION, value)));
    Ok(answer)
}

/// What `POST /sessions/{id}/share` takes.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(default)]
pub(super) struct ShareWish {
    /// seconds until the link ends; absent: it ends when it is revoked
    #[schemars(range(min = LIFETIME_MIN, max = LIFETIME_MAX))]
    expires_in: Option<u64>,
}

/// Seconds that a link may last: a minute to a year.
const LIFETIME_MIN: u64 = 60;
const LIFETIME_MAX: u64 = 365 * 24 * 3600;

pub(super) async fn share(
    Caller(principal): Caller,
    Id(id): Id,
    Key(key): Key,
    State(parts): State<Arc<Parts>>,
    Body(wish): Body<ShareWish>,
) -> Result<Json<Link>, Problem> {
    if let Some(seconds) = wish.expires_in.filter(|seconds| !(LIFETIME_MIN..=LIFETIME_MAX).contains(seconds)) {
        let accepted = format!("{LIFETIME_MIN} to {LIFETIME_MAX} seconds are accepted");
        return Err(invalid(&format!("body: expires_in: `{seconds}`; {accepted}")));
    }
    let lifetime = wish.expires_in.map(Duration::from_secs);
    let share = parts.router.share(&principal, id, key.as_deref(), lifetime).await?;
    Ok(Json(Link::new(&parts, share.id, share.created_at, share.expires_at)))
}

pub(super) async fn unshare(
    Caller(principal): Caller,
    Id(id): Id,
    State(parts): State<Arc<Parts>>,
) -> Result<StatusCode, Problem> {
    parts.router.unshare(&principal, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a link shows, before its `messages` and `entries`.
#[derive(Serialize, JsonSchema)]
pub(super) struct SharedHead {
    /// the session
    session_id: SessionId,
    /// its name when it was shared
    name: String,
    /// when it was shared
    shared_at: Timestamp,
    /// when the link ends
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

pub(super) async fn shared(State(parts): State<Arc<Parts>>, Token(token): Token) -> Result<Response, Problem> {
    let unknown = || {
        let detail = "there is no such link, or it was revoked, or it has ended".to_owned();
        Problem::with_detail(StatusCode::NOT_FOUND, ErrorCode::NotFound, detail)
    };
    let share = token.and_then(|token| parts.links.share(&token)).ok_or_else(unknown)?;
    let (share, log) = match parts.router.shared(share).await {
        Err(refusal) if refusal.code == ErrorCode::NotFound => return Err(unknown()),
        found => found?,
    };
    let head = SharedHead {
        session_id: share.session_id,
        name: share.name.unwrap_or_default(),
        shared_at: share.created_at,
        expires_at: share.expires_at,
    };
    // A reply that ran at that time has settled since, and was not there to be shared.
    let shown = move |entry: &Entry| Some(entry.seq) != share.running_seq;
    let messages = log::values(move |entry| Some(entry).filter(shown).and_then(Message::new));
    let entries = log::values(move |entry| Some(entry).filter(shown).map(log::public_frame));
    whole(&head, vec![(MESSAGES, log.again(), messages), (ENTRIES, log, entries)])
}
