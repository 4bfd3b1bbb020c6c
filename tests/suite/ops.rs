//! Pages, discovery, local sign-in, health and metrics, as a browser and an operator ask for them.

use reqwest::{Response, StatusCode, header};
use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    client::http,
    openai,
    provider::{Gate, Provider, Script},
};

async fn get(server: &Server, path: &str) -> Response {
    http().get(server.url.join(path).unwrap()).send().await.expect("an answer")
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn header_of(response: &Response, name: header::HeaderName) -> String {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn page_comes_with_a_policy_that_names_the_advertised_addresses() {
    let server = Server::start().await;
    for path in ["/", "/chatbox"] {
        let response = get(&server, path).await;
        assert_eq!(
            (response.status(), header_of(&response, header::LOCATION).as_str()),
            (StatusCode::TEMPORARY_REDIRECT, "/chatbox/")
        );
    }
    let response = get(&server, "/chatbox/").await;
    assert_eq!(response.status(), StatusCode::OK);
    let policy = header_of(&response, header::CONTENT_SECURITY_POLICY);
    assert!(!policy.contains("unsafe"), "{policy}");
    for address in [&server.url, &server.quic_url] {
        let address = address.origin().ascii_serialization();
        assert!(policy.contains(&format!(" {address} ")), "{policy} lacks {address}");
    }
    let port = server.quic_url.port().unwrap();
    assert_eq!(header_of(&response, header::ALT_SVC), format!("h3=\":{port}\"; ma=3600"));
    assert_eq!(header_of(&response, header::X_CONTENT_TYPE_OPTIONS), "nosniff");
    let tag = header_of(&response, header::ETAG);
    assert!(response.text().await.unwrap().contains("<html"));
    let again = http().get(server.url.join("/chatbox/sdk.js").unwrap()).header(header::IF_NONE_MATCH, &tag);
    assert_eq!(again.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn discovery_says_what_a_client_needs() {
    let server = Server::start().await;
    let known = json_of(get(&server, "/chatbox/.well-known/chatbox").await).await;
    let (http, quic) = (server.url.port().unwrap(), server.quic_url.port().unwrap());
    assert_eq!(known["webtransport"], format!("https://localhost:{quic}/chatbox/wt"));
    assert_eq!(known["websocket"], format!("ws://localhost:{http}/chatbox/ws"));
    assert_eq!(known["http"], format!("http://localhost:{http}/chatbox/"));
    assert_eq!(known["certificate_sha256"], server.certificate_sha256);
    assert_eq!(known["limits"]["streams"], 4);
    assert_eq!(known["parents"], json!([]), "nobody is listed");
}

/// checklist 32
#[tokio::test]
async fn discovery_names_the_pages_that_may_frame_ours_and_never_everybody() {
    let listed = ["*", "https://App.example/", "https://app.example:8443"].map(str::to_owned);
    let server = Server::with(|config| config.auth.allowed_origins = Some(listed.to_vec())).await;
    let known = json_of(get(&server, "/chatbox/.well-known/chatbox").await).await;
    assert_eq!(known["parents"], json!(["https://app.example", "https://app.example:8443"]));
}

#[tokio::test]
async fn public_addresses_are_advertised_as_configured() {
    let server = Server::with(|config| {
        config.public_url = Some("https://chat.example".parse().unwrap());
        config.public_quic_url = Some("https://quic.example:4433".parse().unwrap());
    })
    .await;
    let known =
        chatbox::http::Addresses { http: server.url.clone(), quic: server.quic_url.clone(), certificate_sha256: None };
    assert_eq!((known.http.as_str(), known.quic.as_str()), ("https://chat.example/", "https://quic.example:4433/"));
}

#[tokio::test]
async fn nothing_there_is_a_problem_document() {
    let server = Server::start().await;
    for path in ["/chatbox/nothing", "/nothing"] {
        let response = get(&server, path).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(header_of(&response, header::CONTENT_TYPE), "application/problem+json");
        let problem = json_of(response).await;
        assert_eq!((&problem["code"], &problem["status"]), (&json!("NOT_FOUND"), &json!(404)));
        assert_eq!(problem["error"], problem["detail"], "old clients read `error`");
    }
}

#[tokio::test]
async fn code_signs_in_once_and_its_cookie_goes_on() {
    let server = Server::start().await;
    let session = server.url.join("/chatbox/dev/session").unwrap();
    let ask = |body: Value, cookie: Option<String>, origin: Option<&'static str>| {
        let mut request = http().post(session.clone()).body(body.to_string());
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.send()
    };
    let code = server.code.clone().expect("a code is printed");
    let first = ask(json!({"code": code}), None, None).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    let cookie = header_of(&first, header::SET_COOKIE);
    for part in ["HttpOnly", "SameSite=Strict", "Path=/chatbox/dev/session"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(json_of(first).await["token"].as_str().unwrap().starts_with("ey"));
    let again = ask(json!({"code": code}), None, None).await.unwrap();
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED, "a code is valid once");
    let cookie = cookie.split(';').next().map(str::to_owned);
    let reload = ask(json!({}), cookie.clone(), None).await.unwrap();
    assert_eq!(reload.status(), StatusCode::OK);
    let foreign = ask(json!({}), cookie, Some("https://evil.example")).await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let garbage = ask(json!([1]), None, None).await.unwrap();
    assert_eq!(garbage.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn configured_secret_has_no_local_sign_in() {
    let secret = chatbox::config::secret::Secret::random();
    let server = Server::with(|config| config.auth.jwt_secret = Some(secret)).await;
    assert_eq!(server.code, None);
    let session = server.url.join("/chatbox/dev/session").unwrap();
    let answer = http().post(session).body("{}").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_ends_with_the_drain_and_liveness_does_not() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["held"]).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let ops = server.ops;
    let ops = |path: &str| http().get(format!("http://{ops}{path}")).send();
    let ready = ops("/readyz").await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    let checks = json_of(ready).await["checks"].clone();
    assert_eq!((&checks["store"]["status"], &checks["llm"]["providers_count"]), (&json!("ok"), &json!(1)));
    let metrics = ops("/metrics").await.unwrap().text().await.unwrap();
    assert!(metrics.contains("# HELP chatbox_turns_running "), "{metrics}");
    assert_eq!(ops("/chatbox/").await.unwrap().status(), StatusCode::NOT_FOUND, "nothing else is there");

    let (mut client, mut watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let mut exchange = client.say("hello").await;
    exchange.until("loading").await;
    server.drain();
    watch.until("going_away").await;
    let draining = ops("/readyz").await.unwrap();
    assert_eq!(draining.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(json_of(draining).await["checks"]["lifecycle"]["status"], "draining");
    assert_eq!(ops("/healthz").await.unwrap().status(), StatusCode::OK);
    gate.open();
    exchange.reply().await;
    server.ended().await.expect("clean end");
    assert!(ops("/healthz").await.is_err(), "the listener is closed at the end");
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_when_to_come_back() {
    let server = Server::with(|config| config.limits.public_per_minute = 2).await;
    for _ in 0..2 {
        assert_eq!(get(&server, "/chatbox/healthz").await.status(), StatusCode::OK);
    }
    let refused = get(&server, "/chatbox/healthz").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(header_of(&refused, header::RETRY_AFTER).parse::<u64>().unwrap() >= 1);
    assert_eq!(json_of(refused).await["code"], "TOO_MANY_REQUESTS");
    assert_eq!(get(&server, "/chatbox/sdk.js").await.status(), StatusCode::OK, "pages are not limited");
}

// checklist 12
#[tokio::test]
async fn pages_of_allowed_origins_may_read_answers_and_others_may_not() {
    let host = "https://host.example";
    let server = Server::with(|config| config.auth.allowed_origins = Some(vec![host.to_owned()])).await;
    let discovery = server.url.join("/chatbox/.well-known/chatbox").unwrap();
    for (origin, allowed) in [(host, host), ("https://evil.example", "")] {
        let answer = http().get(discovery.clone()).header(header::ORIGIN, origin).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header_of(&answer, header::ACCESS_CONTROL_ALLOW_ORIGIN), allowed);
        let preflight = http()
            .request(reqwest::Method::OPTIONS, discovery.clone())
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization");
        let preflight = preflight.send().await.unwrap();
        assert_eq!(header_of(&preflight, header::ACCESS_CONTROL_ALLOW_ORIGIN), allowed);
        assert!(header_of(&preflight, header::ACCESS_CONTROL_ALLOW_HEADERS).contains("authorization"));
    }
}
