//! HTTP: sessions, links, pages, discovery, local sign-in, health and metrics, the same over HTTP/1.1, HTTP/2 and
//! HTTP/3.

mod api;
mod dev;
mod discovery;
pub mod document;
mod input;
mod layers;
pub mod links;
mod log;
mod meta;
mod ops;
pub mod problem;
mod sessions;
mod ui;
mod usage;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware, response::Redirect, routing::get};
use url::Url;

use crate::{
    auth::{Verifier, dev::DevSessions, origins::Origins},
    limit::Limiter,
    metrics::Metrics,
    protocol::Limits,
    router,
};

/// What the routes need.
#[derive(Debug)]
pub struct Parts {
    /// what every path starts with
    pub prefix: String,
    /// how clients reach this deployment
    pub addresses: Addresses,
    /// where pages may come from, and be framed by
    pub origins: Arc<Origins>,
    /// who is calling
    pub verifier: Arc<Verifier>,
    /// what opens shared sessions
    pub links: links::Links,
    /// what is published of the API
    pub documents: document::Documents,
    /// the local sign-in, where there is one
    pub dev: Option<DevSessions>,
    /// the use cases
    pub router: router::Router,
    /// how much anyone may use
    pub limiter: Arc<Limiter>,
    /// what a connection may do at a time
    pub limits: Limits,
    /// what is counted
    pub metrics: Arc<Metrics>,
    /// whether the server has begun to drain
    pub lifecycle: crate::lifecycle::Lifecycle,
}

/// How clients reach this deployment, whatever stands in front of it.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// scheme, host and port of `listen.http`
    pub http: Url,
    /// scheme, host and port of `listen.quic`
    pub quic: Url,
    /// SHA-256 of the certificate in hex, when it is self-signed
    pub certificate_sha256: Option<String>,
}

/// The public routes, all under the prefix; `websocket` is the transport's own route for `/ws`.
pub fn routes(parts: Arc<Parts>, websocket: Router) -> Router {
    let prefix = parts.prefix.clone();
    let home = format!("{prefix}/");
    let to_home = get(move || async move { Redirect::temporary(&home) });
    // The WebSocket has limits of its own.
    let inner = api::routes(&parts).with_state(Arc::clone(&parts)).merge(websocket);
    Router::new()
        .nest(&prefix, inner)
        .merge(ui::routes(&prefix).with_state(Arc::clone(&parts)))
        .route("/", to_home.clone())
        .route(&prefix, to_home)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .layer(DefaultBodyLimit::max(input::BODY_BYTES_MAX))
        .layer(layers::cross_origin(&parts.origins))
        .layer(middleware::from_fn_with_state(parts, layers::finish))
}

/// The routes of `listen.ops`: health, metrics and the rotation of keys, without prefix, and nothing else.
pub fn ops_routes(parts: Arc<Parts>) -> Router {
    Router::new()
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/rotate-keys", get(ops::rotation).post(ops::rotate_keys))
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .with_state(parts)
}
