//! The routes of the API, each with what is published of it: one table, from which requests are routed and the
//! document is made.

use std::sync::Arc;

use axum::{
    Router,
    handler::Handler,
    middleware,
    routing::{self, MethodRouter},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value};

use super::{
    Parts, dev, discovery, document, layers,
    meta::{Link, Message, Meta, SessionList},
    ops, sessions, usage,
};
use crate::protocol::ServerFrame;

/// Makes the schema of a type.
pub(super) type Make = fn(&mut SchemaGenerator) -> Schema;

/// Who may call a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// who has a token; the answer is for nobody else
    Caller,
    /// anybody, within `limits.public_per_minute`
    Limited,
    /// anybody: it is bytes in memory
    Open,
}

/// One operation of the API.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) access: Access,
    /// whether it takes `Idempotency-Key`
    pub(super) key: bool,
    pub(super) query: Option<Make>,
    pub(super) body: Option<Make>,
    pub(super) answers: Vec<Answer>,
    /// what it refuses with, beside what follows from the above
    pub(super) refusals: Vec<u16>,
    handler: MethodRouter<Arc<Parts>>,
}

/// One kind of answer that is no problem.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: Option<&'static str>,
    pub(super) make: Option<Make>,
    /// arrays that are written behind what `make` describes
    pub(super) sections: Vec<(&'static str, Make)>,
}

impl Route {
    fn get<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Parts>>) -> Self {
        Self::new("get", path, routing::get(handler))
    }

    fn post<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Parts>>) -> Self {
        Self::new("post", path, routing::post(handler))
    }

    fn patch<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Parts>>) -> Self {
        Self::new("patch", path, routing::patch(handler))
    }

    fn delete<T: 'static>(path: &'static str, handler: impl Handler<T, Arc<Parts>>) -> Self {
        Self::new("delete", path, routing::delete(handler))
    }

    fn new(method: &'static str, path: &'static str, handler: MethodRouter<Arc<Parts>>) -> Self {
        Self {
            method,
            path,
            id: "",
            summary: "",
            access: Access::Caller,
            key: false,
            query: None,
            body: None,
            answers: Vec::new(),
            refusals: Vec::new(),
            handler,
        }
    }

    fn named(self, id: &'static str, summary: &'static str) -> Self {
        Self { id, summary, ..self }
    }

    fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    fn key(self) -> Self {
        Self { key: true, ..self }
    }

    fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    fn body<T: JsonSchema>(self) -> Self {
        Self { body: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    fn json<T: JsonSchema>(self, status: u16) -> Self {
        self.log::<T>(status, Vec::new())
    }

    fn log<T: JsonSchema>(mut self, status: u16, sections: Vec<(&'static str, Make)>) -> Self {
        let make: Option<Make> = Some(SchemaGenerator::subschema_for::<T>);
        self.answers.push(Answer { status, content_type: Some("application/json"), make, sections });
        self
    }

    fn plain(mut self, status: u16, content_type: Option<&'static str>) -> Self {
        self.answers.push(Answer { status, content_type, make: None, sections: Vec::new() });
        self
    }

    fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend_from_slice(statuses);
        self
    }
}

/// Every operation; the local sign-in is there only where it exists.
pub(super) fn table(dev: bool) -> Vec<Route> {
    let mut table = of_sessions();
    table.extend(of_one_session());
    table.push(
        Route::get("/usage", usage::read)
            .named("readUsage", "Reads what the caller's requests to models took, and what is left of the day's budget")
            .query::<usage::UsageQuery>()
            .json::<usage::UsageReport>(200),
    );
    table.extend(public());
    if dev {
        table.push(
            Route::post("/dev/session", dev::session)
                .named("signIn", "Takes a printed code, or the cookie that it was exchanged for, and gives a token")
                .access(Access::Limited)
                .body::<dev::Ask>()
                .json::<dev::Grant>(200)
                .refuses(&[401, 403]),
        );
    }
    table
}

fn of_sessions() -> Vec<Route> {
    vec![
        Route::get("/sessions", sessions::list)
            .named("listSessions", "Lists the caller's sessions, or searches their names and texts")
            .query::<sessions::ListQuery>()
            .json::<SessionList>(200),
        Route::post("/sessions", sessions::create)
            .named("createSession", "Makes a session; the oldest active one ends when all places are taken")
            .key()
            .body::<sessions::Wish>()
            .json::<Meta>(201),
        Route::patch("/sessions/{id}", sessions::change)
            .named("changeSession", "Names a session, chooses its model, or both")
            .body::<sessions::Wish>()
            .json::<Meta>(200)
            .refuses(&[409]),
        Route::delete("/sessions/{id}", sessions::delete)
            .named("deleteSession", "Stops what runs in a session and deletes it with everything in it")
            .plain(204, None),
    ]
}

fn of_one_session() -> Vec<Route> {
    let messages: Make = SchemaGenerator::subschema_for::<Message>;
    let entries: Make = SchemaGenerator::subschema_for::<ServerFrame>;
    vec![
        Route::get("/sessions/{id}", sessions::read)
            .named(
                "readSession",
                "Reads a part of a session's log; without parameters the whole as old clients know it",
            )
            .query::<sessions::LogQuery>()
            .log::<sessions::Head>(200, vec![(sessions::MESSAGES, messages)])
            .json::<sessions::LogPage>(200),
        Route::post("/sessions/{id}/end", sessions::end)
            .named("endSession", "Ends a session and stops what runs in it; one that has ended stays so")
            .json::<sessions::Ended>(200),
        Route::get("/sessions/{id}/export", sessions::export)
            .named("exportSession", "Writes a session into a file")
            .query::<sessions::ExportQuery>()
            .log::<sessions::ExportHead>(200, vec![(sessions::ENTRIES, entries)])
            .plain(200, Some("text/markdown")),
        Route::post("/sessions/{id}/share", sessions::share)
            .named("shareSession", "Makes a link to a session as it is now")
            .key()
            .body::<sessions::ShareWish>()
            .json::<Link>(200),
        Route::delete("/sessions/{id}/share", sessions::unshare)
            .named("unshareSession", "Revokes every link to a session")
            .plain(204, None),
        Route::get("/shared/{token}", sessions::shared)
            .named("readShared", "Reads a session as it was when it was shared")
            .access(Access::Limited)
            .log::<sessions::SharedHead>(200, vec![(sessions::MESSAGES, messages), (sessions::ENTRIES, entries)])
            .refuses(&[503]),
    ]
}

fn public() -> Vec<Route> {
    vec![
        Route::get("/healthz", ops::healthz)
            .named("health", "Answers while the process lives")
            .access(Access::Limited)
            .json::<ops::Health>(200),
        Route::get("/readyz", ops::readyz)
            .named("readiness", "Tells whether messages can be stored and answered")
            .access(Access::Limited)
            .json::<ops::Readiness>(200)
            .json::<ops::Readiness>(503),
        Route::get("/.well-known/chatbox", discovery::discover)
            .named("discover", "Says what a client needs to connect")
            .access(Access::Open)
            .json::<discovery::Discovery>(200),
        Route::get("/openapi.json", document::openapi)
            .named("openapi", "This document")
            .access(Access::Open)
            .json::<Map<String, Value>>(200),
        Route::get("/asyncapi.json", document::asyncapi)
            .named("asyncapi", "The frames of the WebSocket and of WebTransport, in AsyncAPI 3")
            .access(Access::Open)
            .json::<Map<String, Value>>(200),
    ]
}

/// Routes requests by the table.
pub(super) fn routes(parts: &Arc<Parts>) -> Router<Arc<Parts>> {
    let [mut caller, mut limited, mut open] = [(); 3].map(|()| Router::new());
    for route in table(parts.dev.is_some()) {
        let router = match route.access {
            Access::Caller => &mut caller,
            Access::Limited => &mut limited,
            Access::Open => &mut open,
        };
        *router = std::mem::take(router).route(route.path, route.handler);
    }
    let limit = middleware::from_fn_with_state(Arc::clone(parts), layers::limit_public);
    caller
        .route_layer(middleware::map_response(layers::private))
        .merge(limited.route_layer(limit).route_layer(middleware::map_response(layers::private)))
        .merge(open)
}
