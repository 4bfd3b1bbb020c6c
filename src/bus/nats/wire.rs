//! What travels: subjects, and payloads of a version byte, who sent it, and JSON.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::{
    bus::Topic,
    chat::{Event, word::Word},
};

/// The form of what follows it. Whoever meets another one compares with the store.
const VERSION: u8 = 2;

/// Which bus sent something: random, and another one after a restart.
pub(super) type Origin = [u8; 8];

/// Largest payload, in bytes. Servers accept 1 MiB unless they are configured otherwise.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1_000_000;

/// What one payload says.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(super) enum Carried<E, W> {
    Event(E),
    Word(W),
    /// something happened that is too large to be carried: whoever was not told of this `rev` reads the store
    Compare {
        rev: u64,
    },
}

impl<E: Serialize, W: Serialize> Carried<E, W> {
    /// Version, origin and JSON; `None` when it is larger than [`PAYLOAD_BYTES_MAX`].
    pub(super) fn encode(&self, origin: Origin) -> Option<Bytes> {
        let mut payload = Vec::with_capacity(512);
        payload.push(VERSION);
        payload.extend(origin);
        // Nothing of what is carried has a form that JSON lacks.
        serde_json::to_writer(&mut payload, self).ok()?;
        (payload.len() <= PAYLOAD_BYTES_MAX).then(|| payload.into())
    }
}

/// Reads a payload; `None` when it is of another version, or none of ours.
pub(super) fn decode(payload: &[u8]) -> Option<(Origin, Carried<Event, Word>)> {
    let (version, rest) = payload.split_first()?;
    let (origin, json) = rest.split_first_chunk().filter(|_| *version == VERSION)?;
    Some((*origin, serde_json::from_slice(json).ok()?))
}

/// The names of topics on the network.
#[derive(Debug)]
pub(super) struct Subjects {
    root: String,
}

impl Subjects {
    pub(super) fn new(prefix: &str) -> Self {
        Self { root: format!("chatbox.{prefix}") }
    }

    /// A topic's subject. Of a user it has a digest: ids of users hold any text, and are nobody's business.
    pub(super) fn of(&self, topic: &Topic) -> String {
        let root = &self.root;
        match topic {
            Topic::Session(id) => format!("{root}.session.{id}"),
            Topic::User(id) => {
                let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
                format!("{root}.user.{}", URL_SAFE_NO_PAD.encode(digest))
            }
            Topic::Node(id) => format!("{root}.node.{id}"),
            Topic::Cluster => format!("{root}.cluster"),
        }
    }

    /// Where nobody but whoever made the name listens.
    pub(super) fn inbox(&self) -> String {
        format!("{}.inbox", self.root)
    }
}
