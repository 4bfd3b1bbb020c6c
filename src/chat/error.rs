//! The codes of what went wrong.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request was refused or a turn failed, as clients see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names are the documentation; the protocol lists them")]
pub enum ErrorCode {
    InvalidToken,
    ExpiredToken,
    InsufficientPermissions,
    Unauthorized,
    InvalidFormat,
    MissingField,
    InvalidFileType,
    InvalidFileSize,
    NotFound,
    LlmUnavailable,
    LlmTimeout,
    DatabaseError,
    StorageError,
    ServiceError,
    TooManyRequests,
    ConnectionLimitExceeded,
    AlreadyAssisted,
    SessionEnded,
    TurnNotFound,
    QuotaExceeded,
    FrameTooLarge,
    GoingAway,
    ContentRefused,
}

impl ErrorCode {
    /// The code as it stands in frames, problem details and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidToken => "INVALID_TOKEN",
            Self::ExpiredToken => "EXPIRED_TOKEN",
            Self::InsufficientPermissions => "INSUFFICIENT_PERMISSIONS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::InvalidFormat => "INVALID_FORMAT",
            Self::MissingField => "MISSING_FIELD",
            Self::InvalidFileType => "INVALID_FILE_TYPE",
            Self::InvalidFileSize => "INVALID_FILE_SIZE",
            Self::NotFound => "NOT_FOUND",
            Self::LlmUnavailable => "LLM_UNAVAILABLE",
            Self::LlmTimeout => "LLM_TIMEOUT",
            Self::DatabaseError => "DATABASE_ERROR",
            Self::StorageError => "STORAGE_ERROR",
            Self::ServiceError => "SERVICE_ERROR",
            Self::TooManyRequests => "TOO_MANY_REQUESTS",
            Self::ConnectionLimitExceeded => "CONNECTION_LIMIT_EXCEEDED",
            Self::AlreadyAssisted => "ALREADY_ASSISTED",
            Self::SessionEnded => "SESSION_ENDED",
            Self::TurnNotFound => "TURN_NOT_FOUND",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::FrameTooLarge => "FRAME_TOO_LARGE",
            Self::GoingAway => "GOING_AWAY",
            Self::ContentRefused => "CONTENT_REFUSED",
        }
    }

    /// The sentence that people read when nothing more precise is known.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::InvalidToken => "the token is not valid",
            Self::ExpiredToken => "the token has expired",
            Self::InsufficientPermissions => "this needs a right that the token does not give",
            Self::Unauthorized => "sign in first",
            Self::InvalidFormat => "the frame is not valid",
            Self::MissingField => "a field is missing",
            Self::InvalidFileType => "this type of file is not accepted",
            Self::InvalidFileSize => "the file is too large",
            Self::NotFound => "there is no such thing for this user",
            Self::LlmUnavailable => "the model is not available at the moment",
            Self::LlmTimeout => "the model took too long to answer",
            Self::DatabaseError => "the message could not be saved; try again",
            Self::StorageError => "the file could not be saved; try again",
            Self::ServiceError => "something went wrong on the server; try again",
            Self::TooManyRequests => "too many requests; wait a moment",
            Self::ConnectionLimitExceeded => "too many connections",
            Self::AlreadyAssisted => "another member of staff holds this session",
            Self::SessionEnded => "the session has ended",
            Self::TurnNotFound => "there is no such running turn",
            Self::QuotaExceeded => "the quota is used up",
            Self::FrameTooLarge => "the frame is too large",
            Self::GoingAway => "the server is restarting; the connection moves in a moment",
            Self::ContentRefused => "this content is not allowed here",
        }
    }
}
