//! Health, metrics, and what operators have a running server do.

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

use super::{Parts, input::Caller, problem::Problem};
use crate::{
    auth::Role,
    chat::{ErrorCode, Timestamp},
    clock::now,
    router::{Progress, Router},
};

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
    /// whether a model is configured, and which ones can be used
    llm: ModelsCheck,
    /// whether other nodes are reached; without them, what happens there is seen some seconds later
    bus: Check,
    /// whether the server goes on
    lifecycle: Check,
}

/// One of the things that readiness depends on.
#[derive(Clone, Serialize, JsonSchema)]
struct Check {
    /// `ok`, `degraded`, `failed` or `draining`
    status: &'static str,
    /// why not
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Check {
    const OK: Self = Self { status: "ok", reason: None };

    const fn failed(reason: &'static str) -> Self {
        Self { status: "failed", reason: Some(reason) }
    }

    const fn degraded(reason: &'static str) -> Self {
        Self { status: "degraded", reason: Some(reason) }
    }
}

/// What is known of the models from the requests that were made. None is made for this.
#[derive(Serialize, JsonSchema)]
struct ModelsCheck {
    /// `ok`, `degraded` while one of them keeps failing, `failed` when none is configured
    status: &'static str,
    /// why not
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// configured models
    providers_count: usize,
    /// each of them, in configured order
    models: Vec<ModelState>,
}

/// Whether one model can be used.
#[derive(Serialize, JsonSchema)]
struct ModelState {
    /// its id
    id: String,
    /// `usable`; `left_alone` after it kept failing; `trying` when the next request, or one that runs, tries it again
    state: &'static str,
}

impl ModelsCheck {
    /// A model that is down leaves the node ready: other nodes are no better off, and people can still answer.
    fn of(router: &Router) -> Self {
        let state = |id: &str, state| ModelState { id: id.to_owned(), state };
        let models: Vec<_> =
            router.models().iter().map(|model| state(&model.id, model.breaker.status().name())).collect();
        let usable = models.iter().filter(|model| model.state == "usable").count();
        let (status, reason) = match usable {
            _ if models.is_empty() => ("failed", Some("no model is configured")),
            usable if usable == models.len() => ("ok", None),
            0 => ("degraded", Some("every model keeps failing")),
            _ => ("degraded", Some("a model keeps failing")),
        };
        Self { status, reason, providers_count: models.len(), models }
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
    let llm = ModelsCheck::of(&parts.router);
    // A node without the bus serves as well as the others do, which miss it too.
    let bus = if parts.router.hears_others() { Check::OK } else { Check::degraded("the bus is not connected") };
    let leaves = parts.lifecycle.leaves();
    let lifecycle = if leaves { Check { status: "draining", reason: None } } else { Check::OK };
    let ready = !leaves && llm.status != "failed" && store.reason.is_none();
    let checks = Checks { mongodb: store.clone(), store, llm, bus, lifecycle };
    let (code, status) = match ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
    };
    (code, Json(Readiness { status, timestamp: now(), checks }))
}

pub(super) async fn metrics(State(parts): State<Arc<Parts>>) -> impl IntoResponse {
    for model in parts.router.models().iter() {
        let state = parts.metrics.model_breaker_state.with_label_values(&[&model.id]);
        state.set(model.breaker.status().number());
    }
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    std::future::ready((headers, parts.metrics.text())).await
}

/// How far the rotation of keys is.
pub(super) async fn rotation(caller: Caller, State(parts): State<Arc<Parts>>) -> Result<Json<Progress>, Problem> {
    operator(&caller)?;
    std::future::ready(Ok(Json(parts.router.rotation()))).await
}

/// Begins it, unless it goes on.
pub(super) async fn rotate_keys(caller: Caller, State(parts): State<Arc<Parts>>) -> Result<Json<Progress>, Problem> {
    operator(&caller)?;
    std::future::ready(Ok(Json(parts.router.rotate_keys()))).await
}

/// Whoever reaches this listener may read it; what costs something is for staff.
fn operator(Caller(principal): &Caller) -> Result<(), Problem> {
    match principal.role {
        Role::Staff => Ok(()),
        Role::User => Err(Problem::new(StatusCode::FORBIDDEN, ErrorCode::InsufficientPermissions)),
    }
}
