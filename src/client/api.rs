//! What a client asks for over HTTP: lists, names, logs, files.

use ::http::Method;
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{
    Client, Error,
    http::{Call, log_path},
};
use crate::{
    chat::{ErrorCode, SessionId, SessionState, Timestamp},
    protocol::ServerFrame,
};

/// A session as lists show it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Meta {
    /// the session
    pub id: SessionId,
    /// its name; empty before it has one
    pub name: String,
    /// the model that answers in it
    #[serde(default)]
    pub model_id: String,
    /// whether it takes messages
    pub state: SessionState,
    /// when its log last grew
    pub last_activity: Timestamp,
    /// entries of its log
    pub message_count: u64,
    /// text around what was searched for
    #[serde(default)]
    pub r#match: Option<String>,
}

/// Sessions, latest activity first.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct SessionPage {
    /// the sessions
    pub sessions: Vec<Meta>,
    /// where the next page begins
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// a search did not look at everything
    #[serde(default)]
    pub truncated: bool,
}

/// Entries of a log, in its order.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Page {
    /// the entries as frames: messages, and replies with their whole text
    pub entries: Vec<ServerFrame>,
    /// whether there are more on that side
    pub more: bool,
}

/// What a session is exported as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Export {
    /// everything, for machines
    Json,
    /// the text, for people
    Markdown,
}

impl Client {
    /// One page of the caller's sessions: `limit` of 1 to 100; `cursor` of the page before; `words` of names and of the
    /// caller's own text.
    ///
    /// # Errors
    /// [`Error::Answered`] when the server refuses it, [`Error::Timeout`] after 15 seconds, [`Error::Unreachable`].
    pub async fn sessions(&self, limit: u32, cursor: Option<&str>, words: Option<&str>) -> Result<SessionPage, Error> {
        self.json(Call::get(list_path(limit, cursor, words))).await
    }

    /// Renames a session.
    ///
    /// # Errors
    /// Those of [`Self::sessions`].
    pub async fn rename(&self, session_id: SessionId, name: &str) -> Result<Meta, Error> {
        let body = Some(json!({ "name": name }));
        self.json(Call { method: Method::PATCH, path: format!("/sessions/{session_id}"), body }).await
    }

    /// Makes a session read-only.
    ///
    /// # Errors
    /// Those of [`Self::sessions`].
    pub async fn end(&self, session_id: SessionId) -> Result<(), Error> {
        let path = format!("/sessions/{session_id}/end");
        self.json::<Value>(Call { method: Method::POST, path, body: None }).await.map(drop)
    }

    /// Deletes a session with everything in it.
    ///
    /// # Errors
    /// Those of [`Self::sessions`].
    pub async fn delete(&self, session_id: SessionId) -> Result<(), Error> {
        let path = format!("/sessions/{session_id}");
        self.json::<Value>(Call { method: Method::DELETE, path, body: None }).await.map(drop)
    }

    /// Reads up to `limit` (1 to 200) entries before `before_seq`.
    ///
    /// # Errors
    /// Those of [`Self::sessions`].
    pub async fn history(&self, session_id: SessionId, before_seq: u64, limit: u32) -> Result<Page, Error> {
        self.json(Call::get(log_path(session_id, &format!("before_seq={before_seq}&limit={limit}")))).await
    }

    /// Reads a session as a file of at most 64 MiB.
    ///
    /// # Errors
    /// Those of [`Self::sessions`].
    pub async fn export(&self, session_id: SessionId, format: Export) -> Result<Bytes, Error> {
        let format = match format {
            Export::Json => "json",
            Export::Markdown => "md",
        };
        self.call(Call::get(format!("/sessions/{session_id}/export?format={format}"))).await
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        let body = self.call(call).await?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body).map_err(|_not_json| Error::Protocol("an answer is not what the route gives"))
    }

    /// A refused token is renewed once. A server that is not where it was is looked for anew by the next call.
    async fn call(&self, call: Call) -> Result<Bytes, Error> {
        let known = &self.0.known;
        let dialer = known.find(&self.0.options).await?;
        let tokens = &self.0.options.tokens;
        let first = self.0.http.bytes(&dialer, &tokens.get(false).await?, call.clone()).await;
        match &first {
            Err(Error::Answered(error))
                if tokens.renewable()
                    && matches!(
                        error.code,
                        ErrorCode::InvalidToken | ErrorCode::ExpiredToken | ErrorCode::Unauthorized
                    ) =>
            {
                return self.0.http.bytes(&dialer, &tokens.get(true).await?, call).await;
            }
            Err(Error::Unreachable { .. } | Error::Certificate { .. } | Error::Timeout(_)) => known.forget(),
            _ => {}
        }
        first
    }
}

fn list_path(limit: u32, cursor: Option<&str>, words: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::for_suffix("/sessions?".to_owned(), "/sessions?".len());
    query.append_pair("limit", &limit.to_string());
    for (name, value) in [("cursor", cursor), ("q", words)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}
