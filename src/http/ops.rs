//! Health and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;

use super::Parts;
use crate::{chat::Timestamp, clock::now};

/// How long the store may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(2);

/// The process lives.
#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    /// always `ok`
    status: &'static str,
    /// the server's clock
    timestamp: Timestamp,
}

pub(super) async fn healthz() -> Json<Health> {
    std::future::ready(Json(Health { status: "ok", timestamp: now() })).await
}

/// Whether messages can be stored and answered.
#[derive(Serialize, JsonSchema)]
pub(super) struct Readiness {
    /// `ready` or `not_ready`
    status: &'static str,
    /// the server's clock
    timestamp: Timestamp,
    /// what it depends on
    checks: Checks,
}

/// What readiness depends on.
#[derive(Serialize, JsonSchema)]
struct Checks {
    /// whether messages can be stored
    store: Check,
    /// the same, by the name that the predecessor's readers know
    mongodb: Check,
    /// whether a model is configured
    llm: Check,
    /// whether the server goes on
    lifecycle: Check,
}

/// One of the things that readiness depends on.
#[derive(Clone, Serialize, JsonSchema)]
struct Check {
    /// `ok`, `failed` or `draining`
    status: &'static str,
    /// why not
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// configured models
    #[serde(skip_serializing_if = "Option::is_none")]
    providers_count: Option<usize>,
}

impl Check {
    const OK: Self = Self { status: "ok", reason: None, providers_count: None };

    const fn failed(reason: &'static str) -> Self {
        Self { status: "failed", reason: Some(reason), ..Self::OK }
    }
}

pub(super) async fn readyz(State(parts): State<Arc<Parts>>) -> (StatusCode, Json<Readiness>) {
    let store = match timeout(READY_DEADLINE, parts.router.ready()).await {
        Ok(Ok(())) => Check::OK,
        Ok(Err(err)) => {
            tracing::warn!(error = &err as &dyn std::error::Error, "store is not ready");
            Check::failed("the store does not answer as it should")
        }
        Err(_late) => Check::failed("the store does not answer in time"),
    };
    let models = parts.router.models().iter().len();
    let llm = if models > 0 { Check::OK } else { Check::failed("no model is configured") };
    let drains = parts.lifecycle.drains();
    let lifecycle = if drains { Check { status: "draining", ..Check::OK } } else { Check::OK };
    let ready = !drains && models > 0 && store.reason.is_none();
    let llm = Check { providers_count: Some(models), ..llm };
    let checks = Checks { mongodb: store.clone(), store, llm, lifecycle };
    let (code, status) = match ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    (code, Json(Readiness { status, timestamp: now(), checks }))
}

pub(super) async fn metrics(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    std::future::ready((headers, parts.metrics.text())).await
}
