//! The published descriptions of routes and frames, held against the running server: every route is called, and
//! every kind of answer that is described is provoked and is as it is described.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use chatbox::config::Config;
use jsonschema::Draft;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    api::{Api, Reply},
    client::http,
    id, openai,
    provider::{Gate, Provider, Script},
};

/// The description of a server, and what of it was seen.
struct Contract {
    document: Value,
    seen: BTreeSet<(String, String, u16)>,
}

impl Contract {
    async fn of(server: &Server) -> Self {
        let document = Api::with_token(server, None).get("/openapi.json").await.body;
        assert_eq!(document["openapi"], "3.1.0");
        Self { document, seen: BTreeSet::new() }
    }

    /// Everything that is described: path, method, status.
    fn described(&self) -> BTreeSet<(String, String, u16)> {
        let mut described = BTreeSet::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    described.insert((path.clone(), method.clone(), status.parse().unwrap()));
                }
            }
        }
        described
    }

    /// Asserts that an answer is one that its operation describes.
    #[track_caller]
    fn holds(&mut self, method: &Method, template: &str, reply: &Reply) {
        let method = method.as_str().to_lowercase();
        let (status, shown) = (reply.status.as_u16(), &reply.text);
        let response = &self.document["paths"][template][&method]["responses"][status.to_string()];
        assert!(response.is_object(), "{method} {template} does not describe {status}: {shown}");
        self.seen.insert((template.to_owned(), method.clone(), status));
        let content_type = reply.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().to_owned();
        let Some(content) = response.get("content") else {
            assert!(shown.is_empty(), "{method} {template} describes no content: {shown}");
            return;
        };
        assert!(content[&content_type].is_object(), "{method} {template} {status} is `{content_type}`");
        if content_type.contains("json") {
            let path = [template, &content_type].map(|part| part.replace('/', "~1"));
            let pointer = format!("/paths/{}/{method}/responses/{status}/content/{}/schema", path[0], path[1]);
            self.is(&pointer, &reply.body);
        }
    }

    #[track_caller]
    fn is(&self, pointer: &str, value: &Value) {
        let mut schema = self.document.clone();
        // A reference is a URI, where braces are escaped.
        schema["$ref"] = format!("#{}", pointer.replace('{', "%7B").replace('}', "%7D")).into();
        let options = jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        let validator = options.build(&schema).expect("a schema");
        let faults: Vec<String> =
            validator.iter_errors(value).map(|fault| format!("{fault} at {}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{pointer}: {faults:?} in {value}");
    }

    async fn call(&mut self, api: &Api, call: &Call) -> Reply {
        let body = call.body.as_ref().map(|body| body.clone().into_bytes());
        let path = call.template.replace("{id}", &call.name).replace("{token}", &call.name) + call.query;
        let headers: &[_] = if call.key.is_empty() { &[] } else { &[("idempotency-key", call.key)] };
        let reply = api.bytes(call.method.clone(), &path, body, headers).await;
        self.holds(&call.method, call.template, &reply);
        reply
    }
}

#[derive(Clone)]
struct Call {
    method: Method,
    template: &'static str,
    name: String,
    query: &'static str,
    body: Option<String>,
    key: &'static str,
}

fn call(method: Method, template: &'static str, name: &str) -> Call {
    Call { method, template, name: name.to_owned(), query: "", body: None, key: "" }
}

/// One good call of every operation that needs a token, in an order in which all of them succeed.
fn good_calls(session: &str) -> Vec<Call> {
    let one = |method, template| call(method, template, session);
    vec![
        one(Method::GET, "/sessions"),
        Call { query: "?limit=3", ..one(Method::GET, "/sessions") },
        Call { query: "?q=hello", ..one(Method::GET, "/sessions") },
        one(Method::GET, "/usage"),
        one(Method::GET, "/sessions/{id}"),
        Call { query: "?after_seq=0", ..one(Method::GET, "/sessions/{id}") },
        one(Method::GET, "/sessions/{id}/export"),
        Call { query: "?format=md", ..one(Method::GET, "/sessions/{id}/export") },
        Call { body: Some(r#"{"name": "x"}"#.to_owned()), ..one(Method::PATCH, "/sessions/{id}") },
        Call { body: Some(r#"{"expires_in": 60}"#.to_owned()), ..one(Method::POST, "/sessions/{id}/share") },
        one(Method::DELETE, "/sessions/{id}/share"),
        one(Method::POST, "/sessions"),
        one(Method::POST, "/sessions/{id}/end"),
        one(Method::DELETE, "/sessions/{id}"),
    ]
}

/// A session with a message, its reply and one link.
async fn session(server: &Server, user: &str) -> (String, String) {
    let (mut client, _watch, status) = Client::attached(server, Via::WebSocket, user, json!({"new": true})).await;
    client.say("hello").await.reply().await;
    let session = status["session_id"].as_str().unwrap().to_owned();
    let link = Api::new(server, user).post(&format!("/sessions/{session}/share"), json!({})).await;
    (session, link.body["share_token"].as_str().expect("a link").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_that_is_described_is_given_and_none_other() {
    let server = Server::start().await;
    let mut contract = Contract::of(&server).await;
    successes(&server, &mut contract).await;
    faults_of_the_caller(&server, &mut contract).await;
    too_many(&mut contract).await;
    faults_of_the_store(&mut contract).await;
    not_ready(&mut contract).await;
    let missed: Vec<_> = contract.described().difference(&contract.seen).cloned().collect();
    assert!(missed.is_empty(), "described and never seen: {missed:?}");
}

async fn successes(server: &Server, contract: &mut Contract) {
    let (name, link) = session(server, "ann").await;
    let (ann, nobody) = (Api::new(server, "ann"), Api::with_token(server, None));
    let shared = contract.call(&nobody, &call(Method::GET, "/shared/{token}", &link)).await;
    assert_eq!(shared.status, StatusCode::OK);
    for call in good_calls(&name) {
        let reply = contract.call(&ann, &call).await;
        assert!(reply.status.is_success(), "{} {}: {}", call.method, call.template, reply.text);
    }
    for template in ["/healthz", "/readyz", "/.well-known/chatbox", "/openapi.json", "/asyncapi.json"] {
        assert_eq!(contract.call(&nobody, &call(Method::GET, template, "")).await.status, StatusCode::OK);
    }
    let code = json!({"code": server.code.clone().expect("a code")}).to_string();
    let sign_in = Call { body: Some(code), ..call(Method::POST, "/dev/session", "") };
    assert_eq!(contract.call(&nobody, &sign_in).await.status, StatusCode::OK);
    assert_eq!(contract.call(&nobody, &sign_in).await.status, StatusCode::UNAUTHORIZED);
}

/// checklist 58
async fn faults_of_the_caller(server: &Server, contract: &mut Contract) {
    let (name, _link) = session(server, "ann").await;
    let (ann, bob, staff) = (Api::new(server, "ann"), Api::new(server, "bob"), Api::staff(server, "eve"));
    let nobody = Api::with_token(server, None);
    let large = "x".repeat(16 * 1024 + 1);
    for good in good_calls(&name) {
        assert_eq!(contract.call(&nobody, &good).await.status, StatusCode::UNAUTHORIZED);
        if good.template.contains("{id}") {
            assert_eq!(contract.call(&bob, &good).await.status, StatusCode::NOT_FOUND, "{}", good.template);
            if good.method != Method::GET {
                assert_eq!(contract.call(&staff, &good).await.status, StatusCode::FORBIDDEN, "{}", good.template);
            }
        }
        let described = contract.described();
        let takes =
            |status| described.contains(&(good.template.to_owned(), good.method.as_str().to_lowercase(), status));
        if takes(413) {
            let call = Call { body: Some(large.clone()), ..good.clone() };
            assert_eq!(contract.call(&ann, &call).await.status, StatusCode::PAYLOAD_TOO_LARGE);
            let call = Call { body: Some("{".to_owned()), ..good.clone() };
            assert_eq!(contract.call(&ann, &call).await.status, StatusCode::BAD_REQUEST);
        } else if takes(400) {
            let query = match good.template {
                "/usage" => "?days=0",
                template if template.ends_with("export") => "?format=pdf",
                _ => "?limit=0",
            };
            assert_eq!(contract.call(&ann, &Call { query, ..good }).await.status, StatusCode::BAD_REQUEST);
        }
    }
    let ended = contract.call(&ann, &call(Method::POST, "/sessions/{id}/end", &name)).await;
    assert_eq!(ended.status, StatusCode::OK);
    let model = Some(r#"{"model_id": "demo"}"#.to_owned());
    let change = Call { body: model, ..call(Method::PATCH, "/sessions/{id}", &name) };
    assert_eq!(contract.call(&ann, &change).await.status, StatusCode::CONFLICT);
    let forged = contract.call(&nobody, &call(Method::GET, "/shared/{token}", "forged")).await;
    assert_eq!(forged.status, StatusCode::NOT_FOUND);
    for (body, status) in [(large, StatusCode::PAYLOAD_TOO_LARGE), ("[1]".to_owned(), StatusCode::BAD_REQUEST)] {
        let sign_in = Call { body: Some(body), ..call(Method::POST, "/dev/session", "") };
        assert_eq!(contract.call(&nobody, &sign_in).await.status, status);
    }
    let foreign = [("origin", "https://evil.example")];
    let refused = nobody.bytes(Method::POST, "/dev/session", None, &foreign).await;
    contract.holds(&Method::POST, "/dev/session", &refused);
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
}

async fn too_many(contract: &mut Contract) {
    let limited = Server::with(|config| {
        config.limits.requests_per_minute = 1;
        config.limits.public_per_minute = 1;
    })
    .await;
    let (ann, nobody) = (Api::new(&limited, "ann"), Api::with_token(&limited, None));
    ann.get("/sessions").await;
    nobody.get("/healthz").await;
    let public = [(Method::GET, "/healthz"), (Method::GET, "/readyz"), (Method::GET, "/shared/{token}")];
    let sign_in = call(Method::POST, "/dev/session", "");
    let public = public.map(|(method, template)| call(method, template, "x")).into_iter().chain([sign_in]);
    let calls = good_calls(&id()).into_iter().map(|call| (&ann, call)).chain(public.map(|call| (&nobody, call)));
    let mut refused = 0;
    for (api, call) in calls {
        let reply = contract.call(api, &call).await;
        reply.problem(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", "wait");
        assert!(reply.header(header::RETRY_AFTER).parse::<u64>().unwrap() >= 1);
        refused += 1;
    }
    let counted = |reason| limited.metrics.refusals_total.with_label_values(&[reason]).get();
    assert_eq!(counted("request_rate") + counted("public_rate"), refused);
}

/// A store whose rows do not open fails every call that reads one. checklist 34, 58
async fn faults_of_the_store(contract: &mut Contract) {
    let dir = tempfile::tempdir().unwrap();
    let mut config: Config = Server::config(dir.path());
    let key = json!([{"id": 1, "key": STANDARD.encode([1; 32])}]);
    config.store.encryption_keys = serde_json::from_value(key).expect("a key");
    let server = Server::run(config.clone()).await;
    let (name, link) = session(&server, "ann").await;
    server.drain();
    server.ended().await.expect("clean end");
    let server = Server::run(config).await;
    let (ann, nobody) = (Api::new(&server, "ann"), Api::with_token(&server, None));
    let shared = call(Method::GET, "/shared/{token}", &link);
    let file = rusqlite::Connection::open(dir.path().join("data/chatbox.db")).unwrap();
    let broken = "UPDATE sessions SET name = x'0000000900'; UPDATE entries SET content = x'0000000900';
        UPDATE shares SET name = x'0000000900'";
    // Numbers are not sealed.
    file.execute_batch(&format!("{broken}; DROP TABLE usage_daily")).unwrap();
    let calls = good_calls(&name).into_iter().map(|call| (&ann, call)).chain([(&nobody, shared)]);
    for (api, call) in calls {
        let reply = contract.call(api, &call).await;
        reply.problem(StatusCode::SERVICE_UNAVAILABLE, "DATABASE_ERROR", "the store did not do what it was asked for");
        assert!(!reply.text.contains("key") && !reply.text.contains("sessions/"), "{}", reply.text);
    }
}

async fn not_ready(contract: &mut Contract) {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["held"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let (mut client, mut watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    client.say("hello").await.until("loading").await;
    server.drain();
    watch.until("going_away").await;
    let answer = http().get(format!("http://{}/readyz", server.ops)).send().await.expect("an answer");
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    contract.holds(&Method::GET, "/readyz", &Reply { status, headers, text: String::new(), body });
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn what_is_not_described_is_refused_and_told_what_is() {
    let server = Server::start().await;
    let contract = Contract::of(&server).await;
    let ann = Api::new(&server, "ann");
    let every = ["get", "post", "put", "patch", "delete"];
    for (path, methods) in contract.document["paths"].as_object().unwrap() {
        for method in every.iter().filter(|method| methods.get(**method).is_none()) {
            let name: Method = method.to_uppercase().parse().unwrap();
            let reply = ann.send(name, &path.replace(['{', '}'], ""), None, &[]).await;
            reply.problem(StatusCode::METHOD_NOT_ALLOWED, "INVALID_FORMAT", "is not accepted at");
            let mut allowed: Vec<String> = reply.header(header::ALLOW).split(',').map(str::to_lowercase).collect();
            allowed.retain(|method| method != "head");
            let described: Vec<&String> = methods.as_object().unwrap().keys().collect();
            assert_eq!(BTreeSet::from_iter(&allowed), BTreeSet::from_iter(described), "{path}");
        }
    }
    ann.get("/session").await.problem(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at `/chatbox/session`");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named_with_what_is_accepted() {
    let server = Server::start().await;
    let ann = Api::new(&server, "ann");
    let path = format!("/sessions/{}", session(&server, "ann").await.0);
    let long = format!("/sessions?q={}", "x".repeat(256));
    for (query, told) in [
        // checklist 19, 25
        ("/sessions?limit=0", "query: limit: `0` is not a whole number from 1 to 100"),
        ("/sessions?limit=-1", "limit: `-1` is not a whole number"),
        ("/sessions?limit=ten", "limit: `ten` is not a whole number"),
        ("/sessions?limit=", "limit: `` is not a whole number"),
        ("/sessions?limit=1&limit=2", "duplicate field `limit`"),
        ("/sessions?cursor=%3Cx%3E", "`cursor`: `<x>` is not the `next_cursor` of a list"),
        (long.as_str(), "query: q: 256 characters, at most 255 are accepted"),
        (&format!("{path}?limit=201"), "limit: `201` is not a whole number from 1 to 200"),
        (&format!("{path}?after_seq=1&before_seq=2"), "`after_seq` and `before_seq` exclude each other"),
        (&format!("{path}?after_seq=99999999999999999999"), "after_seq: `99999999999999999999` is not a whole number"),
        (&format!("{path}/export?format=pdf"), "query: format is `pdf`, `json` or `md` is accepted"),
    ] {
        ann.get(query).await.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", told);
    }
    for (body, told) in [
        ("{", "the body is not JSON: EOF while parsing"),
        ("nonsense", "the body is not JSON: expected"),
        (r#"{"expires_in": 59}"#, "expires_in: `59`; 60 to 31536000 seconds are accepted"),
        (r#"{"expires_in": 31536001}"#, "60 to 31536000 seconds"),
        (r#"{"expires_in": "60"}"#, "field `expires_in` is the string \"60\", a whole number"),
        (r#"{"expires_in": 60} trailing"#, "trailing characters"),
    ] {
        let reply = ann.bytes(Method::POST, &format!("{path}/share"), Some(body.into()), &[]).await;
        reply.problem(StatusCode::BAD_REQUEST, "INVALID_FORMAT", told);
    }
    let largest = format!(r#"{{"name": "x"{}}}"#, " ".repeat(16 * 1024 - 13));
    let fits = ann.bytes(Method::PATCH, &path, Some(largest.clone().into_bytes()), &[]).await;
    assert_eq!((largest.len(), fits.status), (16 * 1024, StatusCode::OK), "checklist 18: the limit itself passes");
    let refused = ann.bytes(Method::PATCH, &path, Some(format!("{largest} ").into_bytes()), &[]).await;
    refused.problem(StatusCode::PAYLOAD_TOO_LARGE, "FRAME_TOO_LARGE", "larger than 16384 bytes");
}

#[tokio::test]
async fn only_a_valid_token_comes_in() {
    let server = Server::start().await;
    let expired = server.expired_token("ann");
    for (token, code) in [(None, "UNAUTHORIZED"), (Some("x.y.z"), "INVALID_TOKEN"), (Some(&*expired), "EXPIRED_TOKEN")]
    {
        let reply = Api::with_token(&server, token.map(str::to_owned)).get("/sessions").await;
        reply.problem(StatusCode::UNAUTHORIZED, code, "");
        assert_eq!(reply.header(header::WWW_AUTHENTICATE), "Bearer");
    }
    // checklist 7: a token in the query is none
    let path = format!("/sessions?token={}", server.token("ann"));
    Api::with_token(&server, None).get(&path).await.problem(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "");
    // checklist 15: nobody believes an address that the caller claims
    let limited = Server::with(|config| config.limits.public_per_minute = 1).await;
    let nobody = Api::with_token(&limited, None);
    let from = |address| [("x-forwarded-for", address), ("x-real-ip", address)];
    let first = nobody.send(Method::GET, "/healthz", None, &from("192.0.2.1")).await;
    let second = nobody.send(Method::GET, "/healthz", None, &from("192.0.2.2")).await;
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS));
}

/// checklist 13
#[tokio::test]
async fn errors_have_the_headers_that_every_answer_has() {
    let server = Server::start().await;
    let nobody = Api::with_token(&server, None);
    for path in ["/sessions", "/nothing", "/shared/x", "/openapi.json"] {
        let reply = nobody.get(path).await;
        assert_eq!(reply.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff", "{path}");
        assert_eq!(reply.header(header::REFERRER_POLICY), "no-referrer", "{path}");
        assert!(reply.header(header::CONTENT_SECURITY_POLICY).contains("frame-ancestors"), "{path}");
        assert!(!reply.header(header::ALT_SVC).is_empty(), "{path}");
        assert_eq!(reply.header(header::STRICT_TRANSPORT_SECURITY), "", "{path}: this one is plain");
    }
    // checklist 16: what operators read is on a listener of its own
    for path in ["/metrics", "/metrics/prometheus"] {
        nobody.get(path).await.problem(StatusCode::NOT_FOUND, "NOT_FOUND", "there is nothing at");
    }
}

/// checklist 14
#[tokio::test]
async fn a_deployment_that_is_reached_by_https_says_so_for_a_year() {
    let server = Server::with(|config| config.public_url = Some("https://chat.example".parse().unwrap())).await;
    drop(http());
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().expect("client");
    let answer = client.get(server.quic_url.join("/chatbox/nothing").unwrap()).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(answer.headers()[header::STRICT_TRANSPORT_SECURITY], "max-age=31536000");
}

#[tokio::test]
async fn frames_are_described_with_the_addresses_of_this_server() {
    let server = Server::start().await;
    let document = Api::with_token(&server, None).get("/asyncapi.json").await.body;
    assert_eq!(document["asyncapi"], "3.0.0");
    let port = server.url.port().unwrap();
    assert_eq!(document["servers"]["websocket"]["host"], format!("localhost:{port}"));
    assert_eq!(document["servers"]["websocket"]["pathname"], "/chatbox/ws");
    let messages = document["components"]["messages"].as_object().unwrap();
    for name in ["client.attach", "client.feedback", "server.ai_response", "server.session_update", "server.error"] {
        assert!(messages.contains_key(name), "{name} is missing among {:?}", messages.keys());
    }
    let named = document.pointer("/operations/frame/messages").unwrap().as_array().unwrap();
    for message in named {
        let pointer = message["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        let refers = document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} leads nowhere"));
        let to = refers["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert!(document.pointer(to).is_some(), "{to} leads nowhere");
    }
    let mut published = chatbox::http::document::frames();
    published["servers"] = document["servers"].clone();
    assert_eq!(document, published, "what the suite checks frames against is what is served");
}
