//! `/openapi.json` and `/asyncapi.json`: what this version speaks, made from the types that are read and written.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};

use super::{
    Parts,
    api::{Access, Answer, Make, Route, table},
    input::KEY_CHARS_MAX,
    problem::Problem,
};
use crate::protocol::{ServerFrame, requests};

/// The documents, each written at its first request.
#[derive(Debug, Default)]
pub struct Documents {
    openapi: OnceLock<Bytes>,
    asyncapi: OnceLock<Bytes>,
}

pub(super) async fn openapi(State(parts): State<Arc<Parts>>) -> Response {
    let document = parts.documents.openapi.get_or_init(|| describe_routes(&parts).to_string().into());
    answer(document).await
}

pub(super) async fn asyncapi(State(parts): State<Arc<Parts>>) -> Response {
    let document = parts.documents.asyncapi.get_or_init(|| describe_frames(&parts).to_string().into());
    answer(document).await
}

async fn answer(document: &Bytes) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    std::future::ready((headers, document.clone()).into_response()).await
}

/// Schemas of what is written, and of what is read: the same type can have fields that are optional in one of them.
struct Schemas {
    written: SchemaGenerator,
    read: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || SchemaSettings::draft2020_12().with(|it| it.definitions_path = "/components/schemas".into());
        Self {
            written: settings().for_serialize().with_transform(RecursiveTransform(left_out)).into_generator(),
            read: settings().for_deserialize().into_generator(),
        }
    }

    fn components(mut self) -> Map<String, Value> {
        let mut components = self.read.take_definitions(true);
        components.extend(self.written.take_definitions(true));
        components
    }
}

fn info(title: &str, about: &str) -> Value {
    json!({"title": title, "version": env!("CARGO_PKG_VERSION"), "description": about})
}

fn describe_routes(parts: &Parts) -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in table(parts.dev.is_some()) {
        let operation = operation(&route, &mut schemas);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path.as_object_mut().map(|path| path.insert(route.method.to_owned(), operation));
    }
    let about = "Conversations over HTTP. Errors are problem details (RFC 9457). Frames: `asyncapi.json`.";
    json!({
        "openapi": "3.1.0",
        "info": info("chatbox", about),
        "servers": [{"url": parts.prefix}],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let mut responses: Map<String, Value> = Map::new();
    for answer in &route.answers {
        let response = responses.entry(answer.status.to_string()).or_insert_with(|| json!({"description": "done"}));
        let Some(content_type) = answer.content_type else { continue };
        let schema = content(answer, &mut schemas.written);
        // Two answers of one kind: either of them.
        match response.pointer_mut(&format!("/content/{}/schema", content_type.replace('/', "~1"))) {
            Some(other) => *other = json!({"anyOf": [other.take(), schema]}),
            None => {
                let contents = response.as_object_mut().map(|it| it.entry("content").or_insert_with(|| json!({})));
                let contents = contents.and_then(Value::as_object_mut);
                contents.map(|it| it.insert(content_type.to_owned(), json!({"schema": schema})));
            }
        }
    }
    let problem = schemas.written.subschema_for::<Problem>();
    for status in refusals(route) {
        let response = json!({"description": "refused", "content": {"application/problem+json": {"schema": problem}}});
        responses.entry(status.to_string()).or_insert(response);
    }
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "parameters": parameters(route, schemas),
        "responses": responses,
        "security": if route.access == Access::Caller { json!([{"token": []}]) } else { json!([]) },
    });
    if let (Some(body), Some(operation)) = (route.body, operation.as_object_mut()) {
        let schema = body(&mut schemas.read);
        let body = json!({"required": false, "content": {"application/json": {"schema": schema}}});
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

/// What a route refuses with: what its table row says, and what follows from what it takes.
fn refusals(route: &Route) -> BTreeSet<u16> {
    let named = route.path.contains('{');
    let every: &[(bool, &[u16])] = &[
        (route.access == Access::Caller, &[401, 429, 503]),
        (route.access == Access::Limited, &[429]),
        (route.query.is_some() || route.body.is_some() || route.key, &[400]),
        (route.body.is_some(), &[413]),
        (named, &[404]),
        (named && route.method != "get", &[403]),
    ];
    let follow = every.iter().filter(|(applies, _)| *applies).flat_map(|(_, statuses)| *statuses);
    follow.chain(&route.refusals).copied().collect()
}

fn content(answer: &Answer, written: &mut SchemaGenerator) -> Value {
    let Some(make) = answer.make else { return json!({"type": "string"}) };
    let head = Value::from(make(written));
    if answer.sections.is_empty() {
        return head;
    }
    let mut array = |make: &Make| json!({"type": "array", "items": make(written)});
    let properties: Map<String, Value> =
        answer.sections.iter().map(|(name, make)| ((*name).to_owned(), array(make))).collect();
    let required: Vec<&String> = properties.keys().collect();
    json!({"allOf": [head], "type": "object", "properties": properties, "required": required})
}

fn parameters(route: &Route, schemas: &mut Schemas) -> Vec<Value> {
    let in_path = route.path.split(['{', '}']).skip(1).step_by(2);
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    if route.key {
        let schema = json!({"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX});
        let about = "a repeated request with the same key is applied once";
        parameters.push(json!({"name": "Idempotency-Key", "in": "header", "description": about, "schema": schema}));
    }
    let query = route.query.map(|make| resolved(&make(&mut schemas.read), &mut schemas.read));
    for (name, mut schema) in query.into_iter().flatten() {
        let about = schema.get_mut("description").map(Value::take).unwrap_or_default();
        without_null(&mut schema);
        schema.as_object_mut().map(|schema| schema.remove("description"));
        let mut parameter = json!({"name": name, "in": "query", "schema": schema});
        if !about.is_null() {
            parameter.as_object_mut().map(|it| it.insert("description".to_owned(), about));
        }
        parameters.push(parameter);
    }
    parameters
}

/// The properties of a query's type. The type itself is no component: its properties are parameters.
fn resolved(schema: &Schema, generator: &mut SchemaGenerator) -> Map<String, Value> {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|it| it.rsplit('/').next()).map(str::to_owned);
    let object = name.and_then(|name| generator.definitions_mut().remove(&name)).unwrap_or_default();
    object.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// What has no value is left out of what is written: it is never null.
fn left_out(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    let required = object.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        if !required.iter().any(|required| required.as_str() == Some(name)) {
            without_null(property);
        }
    }
}

fn without_null(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(one) = object.get("type").and_then(Value::as_array).and_then(|types| types.first()).cloned() {
        object.insert("type".to_owned(), one);
    }
    let either = object.get("anyOf").and_then(Value::as_array).map(Vec::as_slice);
    if let Some([value, null]) = either
        && null.get("type").is_some_and(|kind| kind == "null")
    {
        let value = value.as_object().cloned().unwrap_or_default();
        object.remove("anyOf");
        object.extend(value);
    }
}

fn describe_frames(parts: &Parts) -> Value {
    let mut document = frames();
    document.as_object_mut().map(|document| document.insert("servers".to_owned(), servers(parts)));
    document
}

/// The frames in AsyncAPI 3, without the addresses of a server. What servers send is `ServerFrame` in its schemas.
#[must_use]
pub fn frames() -> Value {
    let mut schemas = Schemas::new();
    let mut messages: Map<String, Value> = Map::new();
    let (mut received, mut sent) = (Vec::new(), Vec::new());
    for request in requests(&mut schemas.read) {
        let name = format!("client.{}", request.name);
        received.push(json!({"$ref": format!("#/channels/chat/messages/{name}")}));
        messages.insert(name, json!({"name": request.name, "summary": request.summary, "payload": request.schema}));
    }
    schemas.written.subschema_for::<ServerFrame>();
    let mut components = schemas.components();
    for frame in split_frames(&mut components) {
        let Some(name) = frame.pointer("/properties/type/const").and_then(Value::as_str) else { continue };
        let about = frame.get("description").cloned().unwrap_or_default();
        let key = format!("server.{name}");
        sent.push(json!({"$ref": format!("#/channels/chat/messages/{key}")}));
        messages.insert(key, json!({"name": name, "summary": about, "payload": frame}));
    }
    let refs: Map<String, Value> =
        messages.keys().map(|name| (name.clone(), json!({"$ref": format!("#/components/messages/{name}")}))).collect();
    let about = "One JSON object a frame: one WebSocket text message, or one line of a WebTransport stream.";
    json!({
        "asyncapi": "3.0.0",
        "info": info("chatbox", about),
        "defaultContentType": "application/json",
        "channels": {"chat": {"address": null, "messages": refs}},
        "operations": {
            "request": {"action": "receive", "channel": {"$ref": "#/channels/chat"}, "messages": received},
            "frame": {"action": "send", "channel": {"$ref": "#/channels/chat"}, "messages": sent},
        },
        "components": {"messages": messages, "schemas": components},
    })
}

/// The variants of the server's frame, each a message of its own.
fn split_frames(components: &mut Map<String, Value>) -> Vec<Value> {
    let frame = components.get("ServerFrame").and_then(|frame| frame.get("oneOf"));
    frame.and_then(Value::as_array).cloned().unwrap_or_default()
}

fn servers(parts: &Parts) -> Value {
    let host = |url: &url::Url| {
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", url.host_str().unwrap_or_default())
    };
    let (http, quic) = (&parts.addresses.http, &parts.addresses.quic);
    let websocket = if http.scheme() == "https" { "wss" } else { "ws" };
    let prefix = &parts.prefix;
    json!({
        "webtransport": {"host": host(quic), "pathname": format!("{prefix}/wt"), "protocol": "webtransport"},
        "websocket": {"host": host(http), "pathname": format!("{prefix}/ws"), "protocol": websocket},
    })
}
