//! Frames of chatbox, as PROTOCOL.md has them: what the load sends, and as much of the answers as it looks into.

use std::time::Duration;

use anyhow::{Context, bail};
use chatbox::{
    auth::{Config, Role, issuer::Issuer},
    chat::UserId,
};
use serde_json::{Value, json};

use crate::server::Site;

/// Bytes of a message, envelope included where it is a frame of chatbox.
pub(crate) const PAYLOAD_BYTES: usize = 200;

/// What peers are sent: JSON of [`PAYLOAD_BYTES`].
pub(crate) fn payload() -> String {
    padded("{\"type\":\"m\",\"pad\":\"", "\"}")
}

/// `before`, so many `x` that [`PAYLOAD_BYTES`] come of it, and `after`.
fn padded(before: &str, after: &str) -> String {
    let room = PAYLOAD_BYTES.saturating_sub(before.len() + after.len());
    format!("{before}{}{after}", "x".repeat(room))
}

pub(crate) fn attach(site: &Site, user: &str) -> anyhow::Result<String> {
    let user = UserId::parse(user).context("user id")?;
    let token =
        Issuer::new(&Config::default(), &site.secret).issue(&user, Role::User, None, Duration::from_secs(3600))?;
    Ok(json!({"type": "attach", "token": token}).to_string())
}

/// Unknown fields are ignored, so padding brings it to its length.
pub(crate) fn typing() -> String {
    padded("{\"type\":\"typing_indicator\",\"metadata\":{\"state\":\"start\"},\"pad\":\"", "\"}")
}

pub(crate) fn ping() -> String {
    padded(&format!("{{\"type\":\"ping\",\"id\":\"{}\",\"pad\":\"", uuid::Uuid::new_v4()), "\"}")
}

/// What the model says to every message, in one piece.
pub(crate) const ANSWER: &str = "1";

/// A message to the model.
pub(crate) fn message() -> String {
    let id = uuid::Uuid::now_v7();
    padded(&format!("{{\"type\":\"user_message\",\"id\":\"{id}\",\"content\":\""), "\"}")
}

/// Whether a frame is of that type. An `error` frame is an error.
pub(crate) fn is(frame: &str, kind: &str) -> anyhow::Result<bool> {
    let Some(rest) = frame.strip_prefix("{\"type\":\"") else { bail!("a frame begins with its type: {frame}") };
    if rest.starts_with("error") {
        bail!("the server answers {frame}");
    }
    Ok(rest.strip_prefix(kind).is_some_and(|rest| rest.starts_with('"')))
}

/// The session that a `connection_status` names.
pub(crate) fn session(status: &str) -> anyhow::Result<String> {
    if !is(status, "connection_status")? {
        bail!("expected a status, got {status}");
    }
    let status: Value = serde_json::from_str(status)?;
    Ok(status.get("session_id").and_then(Value::as_str).context("the status names a session")?.to_owned())
}
