//! `/.well-known/chatbox`: what a client needs to connect.

use std::sync::Arc;

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Serialize;
use url::Url;

use super::{Addresses, Parts};
use crate::protocol::Limits;

#[derive(Serialize)]
struct Discovery {
    webtransport: Url,
    websocket: Url,
    http: Url,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_sha256: Option<String>,
    limits: Limits,
}

pub(super) async fn discover(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let Addresses { http, quic, certificate_sha256 } = &parts.addresses;
    let document = Discovery {
        webtransport: at(quic, quic.scheme(), &format!("{}/wt", parts.prefix)),
        websocket: at(http, if http.scheme() == "https" { "wss" } else { "ws" }, &format!("{}/ws", parts.prefix)),
        http: at(http, http.scheme(), &format!("{}/", parts.prefix)),
        certificate_sha256: certificate_sha256.clone(),
        limits: parts.limits,
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
