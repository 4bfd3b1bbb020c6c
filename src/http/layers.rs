//! What every answer has: security headers, `Alt-Svc`, a count and a duration; and the limit of public routes.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{Parts, problem::Problem};
use crate::{auth::origins::Origins, chat::ErrorCode};

/// Lets pages of the allowed origins read answers, and tells their preflights what they may send.
pub(super) fn cross_origin(origins: &Arc<Origins>) -> CorsLayer {
    let origins = Arc::clone(origins);
    let allowed = move |origin: &HeaderValue, _: &_| origin.to_str().is_ok_and(|origin| origins.allows(origin));
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("idempotency-key")])
        .expose_headers([header::CONTENT_DISPOSITION, header::RETRY_AFTER])
        .max_age(PREFLIGHT_MAX_AGE)
}

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(3600);

/// Refuses an address that asks for more than its share.
pub(super) async fn limit_public(State(parts): State<Arc<Parts>>, request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(address)) = request.extensions().get::<ConnectInfo<SocketAddr>>()
        && let Err(wait) = parts.limiter.public(address.ip())
    {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests);
        return problem.retry_after(Duration::from_millis(wait.ms)).into_response();
    }
    next.run(request).await
}

/// Keeps what belongs to one person out of every cache.
pub(super) async fn private(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    std::future::ready(response).await
}

/// Adds what every answer has, and counts it.
pub(super) async fn finish(State(parts): State<Arc<Parts>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let over_tcp = request.version() != Version::HTTP_3;
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    // On loopback with a certificate of our own it would lock the plain listener's pages out.
    if parts.addresses.http.scheme() == "https" {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if over_tcp && let Some(port) = parts.addresses.quic.port_or_known_default() {
        let value = format!("h3=\":{port}\"; ma=3600");
        headers.extend(HeaderValue::try_from(value).ok().map(|value| (header::ALT_SVC, value)));
    }
    let status = response.status().as_u16().to_string();
    parts.metrics.http_requests_total.with_label_values(&[&route, method, &status]).inc();
    parts.metrics.http_request_duration_seconds.with_label_values(&[&route]).observe(began.elapsed().as_secs_f64());
    response
}

const SECURITY: [(HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
