//! The local sign-in: a code or its cookie for a token. The route exists only on loopback with a generated secret.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{Parts, problem::Problem};
use crate::{
    auth::dev::{COOKIE, COOKIE_TTL},
    chat::ErrorCode,
};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ask {
    code: Option<String>,
}

pub(super) async fn session(State(parts): State<Arc<Parts>>, headers: HeaderMap, body: Bytes) -> Response {
    std::future::ready(exchange(&parts, &headers, &body).unwrap_or_else(|problem| problem.into_response())).await
}

fn exchange(parts: &Parts, headers: &HeaderMap, body: &[u8]) -> Result<Response, Problem> {
    // The cookie rides along with any request to this origin: only our own pages may use it.
    if let Some(origin) = headers.get(header::ORIGIN)
        && !origin.to_str().is_ok_and(|origin| parts.origins.allows(origin))
    {
        return Err(Problem::new(StatusCode::FORBIDDEN, ErrorCode::Unauthorized));
    }
    let ask: Ask = if body.is_empty() {
        Ask::default()
    } else {
        serde_json::from_slice(body).map_err(|err| {
            let detail = format!("the body is not {{\"code\": TEXT}}: {err}");
            Problem::with_detail(StatusCode::BAD_REQUEST, ErrorCode::InvalidFormat, detail)
        })?
    };
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
    Ok((headers, Json(json!({"token": grant.token}))).into_response())
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
