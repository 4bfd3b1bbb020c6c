//! The local sign-in: a code or its cookie for a token. The route exists only on loopback with a generated secret.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Parts, input::Body, problem::Problem};
use crate::{
    auth::dev::{COOKIE, COOKIE_TTL},
    chat::ErrorCode,
};

/// What the sign-in takes, unless a cookie comes along.
#[derive(Deserialize, Default, JsonSchema)]
#[serde(default)]
pub(super) struct Ask {
    /// the code of the printed URL
    code: Option<String>,
}

/// What the sign-in gives.
#[derive(Serialize, JsonSchema)]
pub(super) struct Grant {
    /// who the page calls as
    token: String,
}

pub(super) async fn session(
    State(parts): State<Arc<Parts>>,
    headers: HeaderMap,
    Body(ask): Body<Ask>,
) -> Result<Response, Problem> {
    std::future::ready(exchange(&parts, &headers, &ask)).await
}

fn exchange(parts: &Parts, headers: &HeaderMap, ask: &Ask) -> Result<Response, Problem> {
    // The cookie rides along with any request to this origin: only our own pages may use it.
    if let Some(origin) = headers.get(header::ORIGIN)
        && !origin.to_str().is_ok_and(|origin| parts.origins.allows(origin))
    {
        return Err(Problem::new(StatusCode::FORBIDDEN, ErrorCode::Unauthorized));
    }
    let dev = parts.dev.as_ref().ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, ErrorCode::NotFound))?;
    let by_code = ask.code.as_deref().and_then(|code| dev.redeem(code));
    let grant = by_code.or_else(|| cookie(headers).and_then(|cookie| dev.resume(cookie))).ok_or_else(|| {
        let detail = "the code was used before or has expired; use the URL that the server printed last".to_owned();
        Problem::with_detail(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, detail)
    })?;
    let attributes =
        format!("Path={}/dev/session; Max-Age={}; HttpOnly; SameSite=Strict", parts.prefix, COOKIE_TTL.as_secs());
    let headers = [
        (header::SET_COOKIE, format!("{COOKIE}={}; {attributes}", grant.cookie)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Json(Grant { token: grant.token })).into_response())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}
