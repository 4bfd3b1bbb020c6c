//! Errors as RFC 9457 problem details, with the product's code and, for old clients, `error`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::{chat::ErrorCode, router::Refusal};

/// One error of the API.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Problem {
    /// always `about:blank`: the status says what kind it is
    r#type: &'static str,
    /// the status in words
    title: &'static str,
    /// the HTTP status
    status: u16,
    /// what was wrong and what is accepted, for people
    detail: Arc<str>,
    /// this occurrence
    instance: Arc<str>,
    /// for programs
    code: ErrorCode,
    /// whether the same request may succeed later
    retryable: bool,
    /// when, in milliseconds from now
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// names the request
    request_id: Uuid,
    /// `detail`, for old clients
    error: Arc<str>,
}

impl Problem {
    /// A problem with the catalogue's sentence for its code.
    #[must_use]
    pub fn new(status: StatusCode, code: ErrorCode) -> Self {
        Self::with_detail(status, code, code.sentence().to_owned())
    }

    /// A problem with a sentence of its own: what was wrong, and what is accepted.
    #[must_use]
    pub fn with_detail(status: StatusCode, code: ErrorCode, detail: String) -> Self {
        let detail: Arc<str> = detail.into();
        let request_id = Uuid::new_v4();
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            error: Arc::clone(&detail),
            detail,
            instance: request_id.urn().to_string().into(),
            code,
            retryable: status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
            retry_after_ms: None,
            request_id,
        }
    }

    /// Says when the request may be tried again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after_ms = u64::try_from(wait.as_millis()).ok();
        self
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = status_of(refusal.code);
        // The catalogue's sentence speaks of a message.
        let detail = match refusal.code {
            ErrorCode::DatabaseError => "the store did not do what it was asked for; try again".to_owned(),
            _ => refusal.message.into_owned(),
        };
        let problem = Self::with_detail(status, refusal.code, detail);
        match refusal.retry_after {
            Some(wait) => problem.retry_after(wait),
            None => problem,
        }
    }
}

/// The status of a refusal: faults of the client are 4xx, faults of the server 5xx.
const fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidFormat | ErrorCode::MissingField | ErrorCode::InvalidFileType => StatusCode::BAD_REQUEST,
        ErrorCode::InvalidToken | ErrorCode::ExpiredToken | ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::InsufficientPermissions => StatusCode::FORBIDDEN,
        ErrorCode::NotFound | ErrorCode::TurnNotFound => StatusCode::NOT_FOUND,
        ErrorCode::SessionEnded | ErrorCode::AlreadyAssisted => StatusCode::CONFLICT,
        ErrorCode::InvalidFileSize | ErrorCode::FrameTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::TooManyRequests | ErrorCode::ConnectionLimitExceeded | ErrorCode::QuotaExceeded => {
            StatusCode::TOO_MANY_REQUESTS
        }
        ErrorCode::DatabaseError
        | ErrorCode::StorageError
        | ErrorCode::GoingAway
        | ErrorCode::LlmUnavailable
        | ErrorCode::LlmTimeout => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::ContentRefused => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::ServiceError => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let seconds = self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1));
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The answer to a path that leads nowhere.
pub(super) async fn no_route(request: Request) -> Problem {
    let detail = format!("there is nothing at `{}`", request.uri().path());
    std::future::ready(Problem::with_detail(StatusCode::NOT_FOUND, ErrorCode::NotFound, detail)).await
}

/// The answer to a method that a path does not take; `Allow` names those that it does.
pub(super) async fn no_method(request: Request) -> Problem {
    let detail = format!("`{}` is not accepted at `{}`", request.method(), request.uri().path());
    let problem = Problem::with_detail(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidFormat, detail);
    std::future::ready(problem).await
}
