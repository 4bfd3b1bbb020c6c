//! What answers about sessions are made of. The names are those that the predecessor's clients read.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Parts, links::Links};
use crate::{
    chat::{Entry, Scalar, Sender, Session, SessionId, SessionState, Timestamp, UserId},
    clock::now,
    router::{Listed, Listing},
};

/// A session as lists show it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Meta {
    /// its name in paths and frames
    id: SessionId,
    /// its owner
    user_id: UserId,
    /// what people read; empty until it has one
    name: String,
    /// the model that answers
    model_id: String,
    /// whether it takes messages
    state: SessionState,
    /// when its log last grew
    last_activity: Timestamp,
    /// entries of its log, replies included
    message_count: u64,
    /// whether staff ever held it
    admin_assisted: bool,
    /// its owner waits for a person
    help_requested: bool,
    /// when it was made
    start_time: Timestamp,
    /// when it ended
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Timestamp>,
    /// whether it has no end yet
    is_active: bool,
    /// seconds from its start to its end, or until now
    duration: u64,
    /// tokens that went to models and came back
    total_tokens: u64,
    /// milliseconds of its slowest complete reply
    max_response_time: u64,
    /// milliseconds of a complete reply on average
    avg_response_time: u64,
    /// the member of staff who holds it
    #[serde(skip_serializing_if = "Option::is_none")]
    assisting_admin_name: Option<String>,
    /// its newest link; for its owner
    #[serde(skip_serializing_if = "Option::is_none")]
    share_token: Option<String>,
    /// the text around what was searched for
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    snippet: Option<String>,
}

impl Meta {
    pub(super) fn new(parts: &Parts, listed: Listed) -> Self {
        let session = listed.session;
        let counters = session.counters;
        let end = session.ended_at.unwrap_or_else(now);
        Self {
            id: session.id,
            user_id: session.user_id.clone(),
            model_id: model_of(parts, &session),
            name: session.name.unwrap_or_default(),
            state: session.state,
            last_activity: session.last_activity,
            message_count: counters.entries,
            admin_assisted: session.admin_assisted,
            help_requested: session.help_requested,
            start_time: session.created_at,
            end_time: session.ended_at,
            is_active: session.state == SessionState::Active,
            duration: u64::try_from((end.0 - session.created_at.0) / 1000).unwrap_or_default(),
            total_tokens: counters.prompt_tokens + counters.completion_tokens,
            max_response_time: counters.response_ms_max,
            avg_response_time: counters.response_ms_sum.checked_div(counters.responses).unwrap_or_default(),
            assisting_admin_name: session.assist.map(|assist| assist.name),
            share_token: listed.share.map(|share| parts.links.token(share)),
            snippet: listed.snippet,
        }
    }
}

/// The model that answers in a session.
pub(super) fn model_of(parts: &Parts, session: &Session) -> String {
    session.model_id.clone().unwrap_or_else(|| parts.router.models().default_id().to_string())
}

/// A page of the caller's sessions.
#[derive(Serialize, JsonSchema)]
pub(super) struct SessionList {
    /// the sessions
    sessions: Vec<Meta>,
    /// the caller
    user_id: UserId,
    /// how many there are on this page
    count: usize,
    /// how many there are on a page at most
    limit: u64,
    /// how many there are on all pages; without parameters and for searches it is absent
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// the `cursor` of the next page
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// there are more sessions than are shown; of a search: more texts than are read
    truncated: bool,
}

impl SessionList {
    pub(super) fn new(parts: &Parts, user_id: UserId, limit: u64, listing: Listing) -> Self {
        let sessions: Vec<Meta> = listing.sessions.into_iter().map(|listed| Meta::new(parts, listed)).collect();
        let (total, next_cursor, truncated) = (listing.total, listing.next, listing.truncated);
        Self { count: sessions.len(), sessions, user_id, limit, total, next_cursor, truncated }
    }
}

/// A message as the predecessor's clients read it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Message {
    /// its place in the log
    seq: u64,
    /// the text
    content: String,
    /// when it was stored
    timestamp: Timestamp,
    /// who wrote it
    sender: Sender,
    /// the upload that rides with it
    #[serde(skip_serializing_if = "Option::is_none")]
    file_id: Option<String>,
    /// small facts, as texts
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

impl Message {
    /// A settled entry; `None` for a reply that has no text.
    pub(super) fn new(entry: Entry) -> Option<Self> {
        if entry.sender == Sender::Ai && entry.content.is_empty() {
            return None;
        }
        let metadata = entry.metadata.into_iter().map(|(key, value)| {
            let text = match value {
                Scalar::Bool(value) => value.to_string(),
                Scalar::Integer(value) => value.to_string(),
                Scalar::Number(value) => value.to_string(),
                Scalar::Text(value) => value,
            };
            (key, text)
        });
        Some(Self {
            seq: entry.seq,
            content: entry.content,
            timestamp: entry.created_at,
            sender: entry.sender,
            file_id: entry.files.into_iter().next(),
            metadata: metadata.collect(),
        })
    }
}

/// A link to a session as it was when it was shared.
#[derive(Serialize, JsonSchema)]
pub(super) struct Link {
    /// what `GET /shared/{token}` takes
    share_token: String,
    /// opens the conversation
    url: String,
    /// when it ends; absent: when it is revoked
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// when it was made
    created_at: Timestamp,
}

impl Link {
    pub(super) fn new(parts: &Parts, share: uuid::Uuid, created_at: Timestamp, expires_at: Option<Timestamp>) -> Self {
        let share_token = Links::token(&parts.links, share);
        let mut url = parts.addresses.http.clone();
        url.set_path(&format!("{}/chat.html", parts.prefix));
        url.set_fragment(Some(&format!("share={share_token}")));
        Self { share_token, url: url.into(), expires_at, created_at }
    }
}
