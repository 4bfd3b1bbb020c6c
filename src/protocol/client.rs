//! What clients send: one flat JSON object, decoded and checked in one go.

use std::fmt::Display;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::IntoDeserializer};
use uuid::Uuid;

use super::fault;
use crate::chat::{
    ErrorCode, Metadata, Rating, RequestId, Scalar, SessionId, Timestamp, TurnId,
    ask::{Attach, Feedback, Named, Position, Scope, UserMessage},
};

/// Longest message text, in characters.
pub const CONTENT_CHARS_MAX: usize = 10_000;
/// Entries that a replay holds at most; a client that is further behind takes the last ones as a snapshot.
pub const REPLAY_ENTRIES_MAX: u32 = 1000;
const SESSION_ID_CHARS_MAX: usize = 128;
const FILE_ID_CHARS_MAX: usize = 255;
const FILE_URL_CHARS_MAX: usize = 2048;
const MODEL_ID_CHARS_MAX: usize = 100;
const METADATA_KEYS_MAX: usize = 32;
const METADATA_CHARS_MAX: usize = 1000;

/// One request of a client, checked: the frame and the id that answers carry as `re`.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// the idempotency key; absent from old clients
    pub id: Option<RequestId>,
    /// what is asked for
    pub frame: ClientFrame,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientFrame {
    /// start a watch; the first one authenticates the connection
    Attach(Box<Attach>),
    /// end a watch (WebSocket)
    Detach {
        /// the session whose watch ends; absent: the watch of `scope`
        session_id: Option<Named>,
        /// which kind of watch
        scope: Scope,
    },
    /// renew the identity
    Auth {
        /// the new token
        token: String,
    },
    /// say something in a session
    UserMessage(Box<UserMessage>),
    /// end a running turn
    Stop {
        /// the turn
        turn_id: TurnId,
    },
    /// answer the last message of a session once more
    Regenerate {
        /// the turn whose reply is not good enough
        turn_id: TurnId,
    },
    /// choose the model that answers in a session
    ModelSelect {
        /// the session; absent: the one that the connection watches
        session_id: Option<Named>,
        /// a configured model
        model_id: String,
    },
    /// ask for a person, or do no longer
    Help {
        /// the session; absent: the one that the connection watches
        session_id: Option<Named>,
        /// false: `help_cancel`
        wanted: bool,
    },
    /// somebody types, or has stopped typing
    Typing {
        /// the session; absent: the one that the connection watches
        session_id: Option<Named>,
        /// whether they still type
        active: bool,
    },
    /// say whether a reply helped
    Feedback(Box<Feedback>),
    /// are you there
    Ping,
    /// a type of the contract that this version does not serve yet
    Unsupported {
        /// its name
        name: String,
    },
}

impl ClientFrame {
    /// Its `type`, from a closed set: types that are not served count as one.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attach(_) => "attach",
            Self::Detach { .. } => "detach",
            Self::Auth { .. } => "auth",
            Self::UserMessage(_) => "user_message",
            Self::Stop { .. } => "stop",
            Self::Regenerate { .. } => "regenerate",
            Self::ModelSelect { .. } => "model_select",
            Self::Help { wanted: true, .. } => "help_request",
            Self::Help { wanted: false, .. } => "help_cancel",
            Self::Typing { .. } => "typing_indicator",
            Self::Feedback(_) => "feedback",
            Self::Ping => "ping",
            Self::Unsupported { .. } => "unsupported",
        }
    }
}

/// Why a frame was not accepted. Becomes exactly one `error` frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// the request's id, where it could be read
    pub re: Option<RequestId>,
    /// which kind of fault
    pub code: ErrorCode,
    /// what was wrong and what is accepted, for people
    pub message: String,
}

#[derive(Deserialize, Serialize, Default, JsonSchema)]
#[serde(default)]
pub(super) struct Envelope {
    /// what is asked for
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    /// the idempotency key; answers carry it as `re`
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    /// who calls
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// what is watched
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "word_or_none")]
    scope: Option<Scope>,
    /// the session; absent: the one that this connection watches, or the active one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = SESSION_ID_CHARS_MAX))]
    session_id: Option<String>,
    /// largest n for which the client holds every entry up to n in its final state
    #[serde(skip_serializing_if = "Option::is_none")]
    after_seq: Option<u64>,
    /// without `after_seq`: how many of the last entries to replay
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = REPLAY_ENTRIES_MAX))]
    last: Option<u64>,
    /// the place of a reply
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// a turn
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_id: Option<TurnId>,
    /// bytes of the turn's text that the client holds
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// start another session
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    new: bool,
    /// make the named session active again
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reopen: bool,
    /// copies of small frames may come as datagrams of the WebTransport session too, one frame each, until it ends: what
    /// the stream brought first, or what is not what comes next, is to be dropped
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    datagrams: bool,
    /// text exactly as typed
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = CONTENT_CHARS_MAX))]
    content: Option<String>,
    /// ids of uploads
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<String>>,
    /// an upload, from old clients
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = FILE_ID_CHARS_MAX))]
    file_id: Option<String>,
    /// its address, from old clients
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = FILE_URL_CHARS_MAX))]
    file_url: Option<String>,
    /// a configured model
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MODEL_ID_CHARS_MAX))]
    model_id: Option<String>,
    /// the client's clock; advisory
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<Timestamp>,
    /// small facts
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata>,
}

/// Reads one frame. Every limit of the contract holds for what it returns.
///
/// # Errors
/// What was wrong and what is accepted; the caller answers it with one `error` frame.
pub fn decode(frame: &[u8]) -> Result<Request, Rejection> {
    match std::str::from_utf8(frame) {
        Ok(text) => decode_text(text),
        Err(_) => Err(reject(None, ErrorCode::InvalidFormat, "the frame is not UTF-8".to_owned())),
    }
}

/// The same for a transport that knows its frames to be text.
///
/// # Errors
/// Those of [`decode`].
pub fn decode_text(frame: &str) -> Result<Request, Rejection> {
    match serde_json::from_str::<Envelope>(frame) {
        // An array is read as the fields in their order, which the contract does not know.
        Ok(envelope) if frame.trim_ascii_start().starts_with('{') => check(envelope),
        _ => Err(explain(frame.as_bytes())),
    }
}

/// Writes a request as a client sends it: JSON without a line feed.
#[must_use]
#[expect(clippy::expect_used, reason = "an envelope has string keys and is written to memory")]
pub fn encode_request(request: &Request) -> Vec<u8> {
    let mut envelope = Envelope { id: request.id, ..Envelope::default() };
    let name = match &request.frame {
        ClientFrame::Attach(attach) => {
            envelope.token.clone_from(&attach.token);
            envelope.scope = (attach.scope != Scope::Session).then_some(attach.scope);
            envelope.session_id = attach.session_id.as_ref().map(text_of);
            (envelope.after_seq, envelope.last) = (attach.after_seq, attach.last.map(u64::from));
            envelope.turn_id = attach.position.map(|at| at.turn_id);
            envelope.offset = attach.position.map(|at| at.offset);
            (envelope.new, envelope.reopen, envelope.datagrams) = (attach.new, attach.reopen, attach.datagrams);
            "attach"
        }
        ClientFrame::Detach { session_id, scope } => {
            envelope.session_id = session_id.as_ref().map(text_of);
            envelope.scope = (*scope != Scope::Session).then_some(*scope);
            "detach"
        }
        ClientFrame::Auth { token } => {
            envelope.token = Some(token.clone());
            "auth"
        }
        ClientFrame::UserMessage(message) => {
            envelope.session_id = message.session_id.as_ref().map(text_of);
            envelope.content = Some(message.content.clone());
            envelope.files = (!message.files.is_empty()).then(|| message.files.clone());
            envelope.metadata = (!message.metadata.is_empty()).then(|| message.metadata.clone());
            "user_message"
        }
        ClientFrame::Stop { turn_id } => {
            envelope.turn_id = Some(*turn_id);
            "stop"
        }
        ClientFrame::Regenerate { turn_id } => {
            envelope.turn_id = Some(*turn_id);
            "regenerate"
        }
        ClientFrame::ModelSelect { session_id, model_id } => {
            envelope.session_id = session_id.as_ref().map(text_of);
            envelope.model_id = Some(model_id.clone());
            "model_select"
        }
        ClientFrame::Help { session_id, .. } => {
            envelope.session_id = session_id.as_ref().map(text_of);
            request.frame.name()
        }
        ClientFrame::Typing { session_id, active } => {
            envelope.session_id = session_id.as_ref().map(text_of);
            envelope.metadata = Some(word("state", if *active { "start" } else { "stop" }));
            "typing_indicator"
        }
        ClientFrame::Feedback(feedback) => {
            envelope.session_id = feedback.session_id.as_ref().map(text_of);
            (envelope.seq, envelope.content) = (Some(feedback.seq), feedback.content.clone());
            let rating = match feedback.rating {
                Rating::Up => "up",
                Rating::Down => "down",
            };
            envelope.metadata = Some(word("rating", rating));
            "feedback"
        }
        ClientFrame::Ping => "ping",
        ClientFrame::Unsupported { name } => name,
    };
    envelope.r#type = Some(name.to_owned());
    serde_json::to_vec(&envelope).expect("an envelope has string keys and writes to memory")
}

fn word(key: &str, value: &str) -> Metadata {
    Metadata::from([(key.to_owned(), Scalar::Text(value.to_owned()))])
}

fn text_of(named: &Named) -> String {
    match named {
        Ok(id) => id.to_string(),
        Err(text) => text.clone(),
    }
}

const fn reject(re: Option<RequestId>, code: ErrorCode, message: String) -> Rejection {
    Rejection { re, code, message }
}

/// Finds out what to tell about a frame that is not an envelope. Off the fast path: it reads the frame again.
fn explain(frame: &[u8]) -> Rejection {
    #[derive(Deserialize)]
    struct Id {
        id: Uuid,
    }
    let re = serde_json::from_slice::<Id>(frame).ok().map(|envelope| envelope.id);
    let message = fault::read::<Envelope>("the frame", frame).err().unwrap_or_default();
    reject(re, ErrorCode::InvalidFormat, message)
}

/// Reads a word as the value that it means. The derived reader takes an object for a word with something in it.
fn word_or_none<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(deserializer)?;
    word.map(|word| T::deserialize(word.into_deserializer())).transpose()
}

fn check(envelope: Envelope) -> Result<Request, Rejection> {
    let id = envelope.id;
    build(envelope).map(|frame| Request { id, frame }).map_err(|(code, message)| reject(id, code, message))
}

type Fault = (ErrorCode, String);

fn build(mut envelope: Envelope) -> Result<ClientFrame, Fault> {
    limits(&envelope)?;
    let name = need(envelope.r#type.take(), "type")?;
    let session_id =
        envelope.session_id.take().map(|text| text.parse::<Uuid>().map(SessionId).map_err(|_not_ours| text));
    Ok(match name.as_str() {
        "attach" => {
            let position = match (envelope.turn_id, envelope.offset) {
                (Some(turn_id), Some(offset)) => Some(Position { turn_id, offset }),
                (None, None) => None,
                (Some(_), None) => return Err(missing("offset")),
                (None, Some(_)) => return Err(missing("turn_id")),
            };
            if envelope.reopen && session_id.is_none() {
                return Err(missing("session_id"));
            }
            if envelope.reopen && envelope.new {
                return Err((ErrorCode::InvalidFormat, "`new` and `reopen` exclude each other".to_owned()));
            }
            ClientFrame::Attach(Box::new(Attach {
                token: envelope.token,
                scope: envelope.scope.unwrap_or_default(),
                session_id,
                after_seq: envelope.after_seq,
                last: last(envelope.last)?,
                position,
                new: envelope.new,
                reopen: envelope.reopen,
                datagrams: envelope.datagrams,
            }))
        }
        "detach" => ClientFrame::Detach { session_id, scope: envelope.scope.unwrap_or_default() },
        "auth" => ClientFrame::Auth { token: need(envelope.token, "token")? },
        "user_message" => {
            let content = need(envelope.content, "content")?;
            if content.trim().is_empty() && envelope.files.as_ref().is_none_or(Vec::is_empty) {
                return Err((ErrorCode::MissingField, "field `content` is empty".to_owned()));
            }
            ClientFrame::UserMessage(Box::new(UserMessage {
                session_id,
                content,
                files: envelope.files.unwrap_or_default(),
                metadata: envelope.metadata.unwrap_or_default(),
            }))
        }
        "stop" => ClientFrame::Stop { turn_id: need(envelope.turn_id, "turn_id")? },
        "regenerate" => ClientFrame::Regenerate { turn_id: need(envelope.turn_id, "turn_id")? },
        "model_select" => ClientFrame::ModelSelect { session_id, model_id: need(envelope.model_id, "model_id")? },
        "help_request" | "help_cancel" => ClientFrame::Help { session_id, wanted: name == "help_request" },
        "typing_indicator" => {
            let active = one_of(envelope.metadata.as_ref(), "state", [("start", true), ("stop", false)])?;
            ClientFrame::Typing { session_id, active }
        }
        "feedback" => ClientFrame::Feedback(Box::new(Feedback {
            session_id,
            seq: need(envelope.seq, "seq")?,
            rating: one_of(envelope.metadata.as_ref(), "rating", [("up", Rating::Up), ("down", Rating::Down)])?,
            content: envelope.content.filter(|content| !content.trim().is_empty()),
        })),
        "ping" => ClientFrame::Ping,
        "voice_message" | "file_upload" | "admin_join" | "admin_leave" | "note" => ClientFrame::Unsupported { name },
        _ => {
            let shown: String = name.chars().take(40).collect();
            return Err((ErrorCode::InvalidFormat, format!("type `{shown}` is not a request of the contract")));
        }
    })
}

fn last(entries: Option<u64>) -> Result<Option<u32>, Fault> {
    let Some(asked) = entries else { return Ok(None) };
    let last = u32::try_from(asked).ok().filter(|last| (1..=REPLAY_ENTRIES_MAX).contains(last));
    let refused = || format!("field `last` is {asked}, 1 to {REPLAY_ENTRIES_MAX} are accepted");
    last.map(Some).ok_or_else(|| (ErrorCode::InvalidFormat, refused()))
}

/// The meaning of a key of the metadata that must be one of two words.
fn one_of<T>(metadata: Option<&Metadata>, key: &str, meanings: [(&str, T); 2]) -> Result<T, Fault> {
    let value = metadata.and_then(|metadata| metadata.get(key)).ok_or_else(|| missing(&format!("metadata.{key}")))?;
    let accepted = meanings.each_ref().map(|(word, _)| *word);
    let meant = |word: &str| matches!(value, Scalar::Text(text) if text == word);
    let meaning = meanings.into_iter().find(|(word, _)| meant(word));
    let fault =
        || (ErrorCode::InvalidFormat, format!("field `metadata.{key}` is none of `{}`", accepted.join("` or `")));
    meaning.map(|(_, meaning)| meaning).ok_or_else(fault)
}

fn need<T>(field: Option<T>, name: &str) -> Result<T, Fault> {
    field.ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Fault {
    (ErrorCode::MissingField, format!("field `{name}` is missing"))
}

fn limits(envelope: &Envelope) -> Result<(), Fault> {
    text("session_id", envelope.session_id.as_deref(), SESSION_ID_CHARS_MAX)?;
    text("content", envelope.content.as_deref(), CONTENT_CHARS_MAX)?;
    text("file_id", envelope.file_id.as_deref(), FILE_ID_CHARS_MAX)?;
    text("file_url", envelope.file_url.as_deref(), FILE_URL_CHARS_MAX)?;
    text("model_id", envelope.model_id.as_deref(), MODEL_ID_CHARS_MAX)?;
    for file in envelope.files.iter().flatten() {
        text("files", Some(file), FILE_ID_CHARS_MAX)?;
    }
    let Some(metadata) = &envelope.metadata else { return Ok(()) };
    if metadata.len() > METADATA_KEYS_MAX {
        let message = format!("field `metadata` has {} keys, at most {METADATA_KEYS_MAX} are accepted", metadata.len());
        return Err((ErrorCode::InvalidFormat, message));
    }
    for (key, value) in metadata {
        text("metadata", Some(key), METADATA_CHARS_MAX)?;
        if let Scalar::Text(value) = value {
            text(format_args!("metadata.{key}"), Some(value), METADATA_CHARS_MAX)?;
        }
    }
    Ok(())
}

fn text(name: impl Display, value: Option<&str>, chars_max: usize) -> Result<(), Fault> {
    let Some(value) = value else { return Ok(()) };
    let name = || fault::shortened(&name.to_string());
    if value.contains('\0') {
        return Err((ErrorCode::InvalidFormat, format!("field `{}` holds U+0000, which is not accepted", name())));
    }
    if value.len() > chars_max {
        let chars = value.chars().count();
        if chars > chars_max {
            let message = format!("field `{}` has {chars} characters, at most {chars_max} are accepted", name());
            return Err((ErrorCode::InvalidFormat, message));
        }
    }
    Ok(())
}
