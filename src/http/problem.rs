//! Errors as RFC 9457 problem details, with the product's code and, for old clients, `error`.

use axum::{
    Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::chat::ErrorCode;

/// One error of the API.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    code: ErrorCode,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    request_id: String,
    error: String,
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
        Self {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            error: detail.clone(),
            detail,
            code,
            retryable: status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
            retry_after_ms: None,
            request_id: uuid::Uuid::new_v4().to_string(),
        }
    }

    /// Says when the request may be tried again.
    #[must_use]
    pub fn retry_after(mut self, wait: std::time::Duration) -> Self {
        self.retry_after_ms = u64::try_from(wait.as_millis()).ok();
        self
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
        response
    }
}

/// The answer to a path that leads nowhere.
pub(super) async fn no_route(request: Request) -> Problem {
    let detail = format!("there is nothing at `{}`", request.uri().path());
    std::future::ready(Problem::with_detail(StatusCode::NOT_FOUND, ErrorCode::NotFound, detail)).await
}
