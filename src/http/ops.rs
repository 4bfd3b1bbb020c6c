//! Health and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde_json::json;
use tokio::time::timeout;

use super::Parts;
use crate::clock::now;

/// How long the store may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(2);

pub(super) async fn healthz() -> impl IntoResponse {
    std::future::ready(Json(json!({"status": "ok", "timestamp": now()}))).await
}

pub(super) async fn readyz(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let store = match timeout(READY_DEADLINE, parts.router.ready()).await {
        Ok(Ok(())) => json!({"status": "ok"}),
        Ok(Err(err)) => {
            tracing::warn!(error = &err as &dyn std::error::Error, "store is not ready");
            json!({"status": "failed", "reason": "the store does not answer as it should"})
        }
        Err(_late) => json!({"status": "failed", "reason": "the store does not answer in time"}),
    };
    let models = parts.router.models().iter().len();
    let drains = parts.lifecycle.drains();
    let ready = !drains && models > 0 && store.get("reason").is_none();
    let body = json!({
        "status": if ready { "ready" } else { "not_ready" },
        "timestamp": now(),
        "checks": {
            "store": store,
            "llm": {"status": if models > 0 { "ok" } else { "failed" }, "providers_count": models},
            "lifecycle": {"status": if drains { "draining" } else { "ok" }},
        },
    });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

pub(super) async fn metrics(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    std::future::ready((headers, parts.metrics.text())).await
}
