//! `/.well-known/chatbox`: what a client needs to connect.

use std::sync::Arc;

use axum::{Json, extract::State, http::header, response::IntoResponse};
use schemars::JsonSchema;
use serde::Serialize;
use url::Url;

use super::{Addresses, Parts};
use crate::protocol::Limits;

/// What a client needs to connect.
#[derive(Serialize, JsonSchema)]
pub(super) struct Discovery {
    /// where WebTransport is
    webtransport: Url,
    /// where the WebSocket is
    websocket: Url,
    /// where pages and routes are
    http: Url,
    /// SHA-256 of the certificate in hex, when it is self-signed
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_sha256: Option<String>,
    /// what a connection may do at a time
    limits: Limits,
    /// the origins of pages that may frame ours and exchange messages with them
    parents: Vec<String>,
}

pub(super) async fn discover(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let Addresses { http, quic, certificate_sha256 } = &parts.addresses;
    let document = Discovery {
        webtransport: at(quic, quic.scheme(), &format!("{}/wt", parts.prefix)),
        websocket: at(http, if http.scheme() == "https" { "wss" } else { "ws" }, &format!("{}/ws", parts.prefix)),
        http: at(http, http.scheme(), &format!("{}/", parts.prefix)),
        certificate_sha256: certificate_sha256.clone(),
        limits: parts.limits,
        parents: parts.origins.parents().map(str::to_owned).collect(),
    };
    // A self-signed certificate changes within days.
    std::future::ready(([(header::CACHE_CONTROL, "no-cache")], Json(document))).await
}

fn at(base: &Url, scheme: &str, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(path);
    // `http` to `ws` and `https` to `wss` are the changes that the URL standard allows.
    if url.set_scheme(scheme).is_err() {
        tracing::warn!(scheme, "address keeps its scheme");
    }
    url
}
