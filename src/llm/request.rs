//! What the requests of vendors have in common: messages with a role, as plain text or in parts.

use std::borrow::Cow;

use serde::Serialize;

use super::Role;

/// One message of a request.
#[derive(Serialize)]
pub(super) struct RequestMessage<'a, Part> {
    pub(super) role: &'static str,
    pub(super) content: Content<'a, Part>,
}

/// Parts only where there are images: some servers know plain text alone.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a, Part> {
    Text(Cow<'a, str>),
    Parts(Vec<Part>),
}

impl Role {
    /// What vendors call it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}
