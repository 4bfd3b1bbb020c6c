//! What requests carry, checked: who calls, path, query, body. What is wrong is told as a [`Problem`].

use std::{error::Error as _, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query as AxumQuery, Request, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header, request},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};

use super::{Parts, problem::Problem};
use crate::{
    auth::{Denied, Principal},
    chat::{ErrorCode, SessionId},
    protocol::fault,
};

/// Largest body of a request, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1024;

/// Longest `Idempotency-Key`, in characters.
pub(super) const KEY_CHARS_MAX: usize = 255;

/// Who calls, by the token in `Authorization`. One request of their `limits.requests_per_minute`.
pub(super) struct Caller(pub(super) Principal);

impl FromRequestParts<Arc<Parts>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, parts: &Arc<Parts>) -> Result<Self, Problem> {
        let caller = bearer(&request.headers)
            .ok_or_else(|| {
                let detail = "the request has no `Authorization: Bearer TOKEN`".to_owned();
                Problem::with_detail(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, detail)
            })
            .and_then(|token| {
                parts.verifier.verify(token).map_err(|denied| {
                    let code = match denied {
                        Denied::Expired => ErrorCode::ExpiredToken,
                        Denied::Invalid => ErrorCode::InvalidToken,
                    };
                    Problem::new(StatusCode::UNAUTHORIZED, code)
                })
            });
        let principal = std::future::ready(caller).await?;
        parts.limiter.request(&principal.user_id).map_err(|wait| {
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests);
            problem.retry_after(Duration::from_millis(wait.ms))
        })?;
        Ok(Self(principal))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// A session in the path. A text that is no id is a session that does not exist.
pub(super) struct Id(pub(super) SessionId);

impl FromRequestParts<Arc<Parts>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, parts: &Arc<Parts>) -> Result<Self, Problem> {
        let unknown = || Problem::new(StatusCode::NOT_FOUND, ErrorCode::NotFound);
        let text: Path<String> = Path::from_request_parts(request, parts).await.map_err(|_not_text| unknown())?;
        text.parse().map(|id| Self(SessionId(id))).map_err(|_not_ours| unknown())
    }
}

/// The token of a link in the path; `None` for what is no text.
pub(super) struct Token(pub(super) Option<String>);

impl FromRequestParts<Arc<Parts>> for Token {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(request: &mut request::Parts, parts: &Arc<Parts>) -> Result<Self, Self::Rejection> {
        Ok(Self(Path::from_request_parts(request, parts).await.ok().map(|Path(token)| token)))
    }
}

/// The key by which a repeated `POST` is known.
pub(super) struct Key(pub(super) Option<String>);

impl FromRequestParts<Arc<Parts>> for Key {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, _parts: &Arc<Parts>) -> Result<Self, Problem> {
        let key = request.headers.get("idempotency-key").map(|value| {
            let text = value.to_str().ok().filter(|text| (1..=KEY_CHARS_MAX).contains(&text.len()));
            text.map(str::to_owned).ok_or_else(|| {
                let detail = format!(
                    "`Idempotency-Key` has {} bytes; 1 to {KEY_CHARS_MAX} visible ASCII characters are accepted",
                    value.len()
                );
                Problem::with_detail(StatusCode::BAD_REQUEST, ErrorCode::InvalidFormat, detail)
            })
        });
        Ok(Self(std::future::ready(key.transpose()).await?))
    }
}

/// The query's parameters. Unknown ones are passed over.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Parts>> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut request::Parts, parts: &Arc<Parts>) -> Result<Self, Problem> {
        let query: Result<AxumQuery<T>, QueryRejection> = AxumQuery::from_request_parts(request, parts).await;
        query.map(|query| Self(query.0)).map_err(|rejection| {
            let cause = rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
            let told = cause.split_once(": ").map(|(name, cause)| fault::tell(name, cause));
            invalid(&format!("query: {}", told.unwrap_or(cause)))
        })
    }
}

/// A body of JSON; an empty one is a value with nothing in it. Unknown fields are passed over.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Default + Send> FromRequest<Arc<Parts>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, parts: &Arc<Parts>) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, parts).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
                Problem::with_detail(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::FrameTooLarge, detail)
            }
            _ => invalid("the body broke off"),
        })?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        fault::read("the body", &body).map(Self).map_err(|told| invalid(&told))
    }
}

/// What a request holds is not what is accepted.
pub(super) fn invalid(detail: &str) -> Problem {
    Problem::with_detail(StatusCode::BAD_REQUEST, ErrorCode::InvalidFormat, detail.to_owned())
}

/// A whole number in a query.
#[derive(Clone, Copy)]
pub(super) struct Number<const MIN: u64, const MAX: u64>(pub(super) u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Number<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).ok_or_else(|| D::Error::custom(format!("`{text}` is not a whole number from {MIN} to {MAX}")))
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Number<MIN, MAX> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Number{MIN}To{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX})
    }
}

/// A text in a query.
#[derive(Clone)]
pub(super) struct Text<const MAX: usize>(pub(super) String);

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let chars = text.chars().count();
        let refused = || D::Error::custom(format!("{chars} characters, at most {MAX} are accepted"));
        if chars <= MAX { Ok(Self(text)) } else { Err(refused()) }
    }
}

impl<const MAX: usize> JsonSchema for Text<MAX> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Text{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": MAX})
    }
}
