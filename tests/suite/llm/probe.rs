//! Whether a provider can be used, without a token of its.

use std::time::{Duration, SystemTime};

use chatbox::llm::{Config, Failure, Models, Provider as _, Usable, VendorModel, openai::OpenAi};

use futures_util::future::join_all;

use super::{Vendor, impatient, nowhere, settings, vendor_model};
use crate::harness::provider::{Provider, Request, Script};

const OTHERS: &str = r#"{"object":"list","data":[{"id":"vendor-2","object":"model"}]}"#;
const LISTED: &str = r#"{"object":"list","data":[{"id":"vendor-2"},{"id":"vendor-1","object":"model"}]}"#;

fn json(status: u16, body: &str) -> Script {
    Script::status(status, "application/json", body)
}

fn unknown() -> Script {
    json(404, r#"{"error":{"code":"not_found"}}"#)
}

/// Answers by route.
fn routes(routes: &[(&'static str, Script)]) -> impl Fn(&Request) -> Script + Send + Sync + 'static {
    let routes = routes.to_vec();
    move |request| {
        let found = routes.iter().find(|(route, _)| request.target == format!("GET /v1{route}"));
        found.map_or_else(unknown, |(_, script)| script.clone())
    }
}

async fn probe(vendor: Vendor, answers: &[(&'static str, Script)]) -> Result<Usable, (Failure, String)> {
    let provider = Provider::start_by(routes(answers)).await;
    let probed = vendor.provider(settings(&provider)).probe().await;
    for index in 0..provider.requests() {
        assert!(provider.request(index).await.bytes.is_empty(), "a probe sends nothing that is billed");
    }
    probed.map_err(|err| (err.failure, err.reason))
}

#[tokio::test]
async fn a_model_that_the_vendor_knows_is_usable() {
    for (vendor, answers) in [
        (Vendor::OpenAi, vec![("/models", json(200, LISTED))]),
        // Together's list has nothing around it.
        (Vendor::OpenAi, vec![("/models", json(200, r#"[{"id":"vendor-1"}]"#))]),
        // Ollama's has another name in it than it takes.
        (
            Vendor::OpenAi,
            vec![("/models", json(200, OTHERS)), ("/models/vendor-1", json(200, "{\"id\":\"vendor-2\"}"))],
        ),
        (Vendor::OpenAi, vec![("/models/vendor-1", json(200, "{}"))]),
        // A server that has neither route still answers.
        (Vendor::OpenAi, vec![]),
        (Vendor::Anthropic, vec![("/models/vendor-1", json(200, r#"{"type":"model","id":"vendor-1"}"#))]),
        (Vendor::Dify, vec![("/info", json(200, r#"{"name":"Help","mode":"advanced-chat"}"#))]),
        (Vendor::Dify, vec![("/info", json(200, r#"{"name":"Help"}"#))]),
        (Vendor::Dify, vec![("/parameters", json(200, r#"{"opening_statement":""}"#))]),
    ] {
        assert_eq!(probe(vendor, &answers).await, Ok(Usable::default()), "{vendor:?}");
    }
}

#[tokio::test]
async fn a_probe_tells_the_vendors_clock() {
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    for (vendor, route) in
        [(Vendor::OpenAi, "/models"), (Vendor::Anthropic, "/models/vendor-1"), (Vendor::Dify, "/info")]
    {
        let script = json(200, LISTED).header("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(probe(vendor, &[(route, script)]).await, Ok(Usable { date: Some(date) }), "{vendor:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_an_endpoint_is_named() {
    let unknown_model = "does not know the model `vendor-1`";
    let html = Script::status(200, "text/html", "<html>sk-secret</html>");
    let huge = format!("{{\"data\":\"{}\"}}", "x".repeat(9 << 20));
    for (vendor, answers, told) in [
        (Vendor::OpenAi, vec![("/models", json(200, OTHERS))], unknown_model),
        (Vendor::OpenAi, vec![("/models", json(200, &huge))], "sent an answer that is larger than 8388608 bytes"),
        (Vendor::Anthropic, vec![], unknown_model),
        (
            Vendor::Dify,
            vec![("/info", json(200, r#"{"mode":"workflow"}"#))],
            "is an application of the type `workflow`, which does not chat",
        ),
        (Vendor::Dify, vec![], "is no Dify: it knows neither /info nor /parameters"),
    ] {
        let (_, reason) = probe(vendor, &answers).await.unwrap_err();
        assert_eq!(reason, told, "{vendor:?}");
    }
    let refused = json(401, r#"{"error":{"type":"authentication_error","message":"sk-secret"}}"#);
    for (vendor, route) in
        [(Vendor::OpenAi, "/models"), (Vendor::Anthropic, "/models/vendor-1"), (Vendor::Dify, "/info")]
    {
        let end = probe(vendor, &[(route, refused.clone())]).await;
        let told = "refused with status 401 (authentication_error)".to_owned();
        assert_eq!(end, Err((Failure::Denied, told)), "{vendor:?}");
        let end = probe(vendor, &[(route, html.clone())]).await;
        assert_eq!(end, Err((Failure::Broken, "answered a probe with something else".to_owned())), "{vendor:?}");
    }
}

#[tokio::test]
async fn a_probe_is_over_in_time() {
    let stalls = async |vendor: Vendor| {
        let provider = Provider::start(Script::silent()).await;
        let asked = vendor.provider(impatient(&provider));
        for (script, told) in [
            (Script::silent(), "sent no answer in time"),
            (json(200, "{").stall_after(0), "did not finish its answer in time"),
        ] {
            provider.script(script);
            let err = asked.probe().await.unwrap_err();
            assert_eq!((err.failure, err.reason.as_str()), (Failure::Late, told), "{vendor:?}");
        }
    };
    join_all(Vendor::ALL.map(stalls)).await;
}

#[tokio::test]
async fn a_name_with_a_slash_is_one_segment_of_the_path() {
    let provider = Provider::start(unknown()).await;
    let model = VendorModel { name: "meta/llama 3?".to_owned(), ..vendor_model() };
    assert_eq!(OpenAi::new(settings(&provider), model).probe().await.unwrap(), Usable::default());
    assert_eq!(provider.request(1).await.target, "GET /v1/models/meta%2Fllama%203%3F");
}

#[tokio::test]
async fn every_endpoint_is_asked_and_told_of_in_order() {
    let model = json(200, LISTED);
    let provider = Provider::start_by(routes(&[("/models", model)])).await;
    let hook = Provider::start(Script::status(405, "text/plain", "")).await;
    let closed = Provider::start(Script::status(401, "text/plain", "")).await;
    let gone = nowhere();
    let endpoint = provider.endpoint();
    let models: Config = toml::from_str(&format!(
        "[providers.try]\ntype = \"demo\"\n\
         [providers.fast]\ntype = \"openai\"\nendpoint = \"{endpoint}\"\nmodel = \"vendor-1\"\n\
         [providers.slow]\ntype = \"openai\"\nendpoint = \"{endpoint}\"\nmodel = \"vendor-9\"\n\
         [providers.gone]\ntype = \"anthropic\"\nendpoint = \"{gone}\"\nmodel = \"m\"\napi_key = \"k\"\n\
         [transcription]\nendpoint = \"{endpoint}\"\nmodel = \"vendor-2\"\n\
         [moderation]\nbefore = \"{}/judge\"\nafter = \"{}/judge\"\n",
        hook.endpoint(),
        closed.endpoint(),
    ))
    .unwrap();
    let findings = Models::new(&models).unwrap().probe().await;
    assert_eq!(
        findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "model try: usable",
            "model fast: usable",
            "model slow: does not know the model `vendor-9`",
            "model gone: cannot be reached: Connection refused (os error 111)",
            "transcription: usable",
            "moderation before: usable",
            "moderation after: refused with status 401",
        ]
    );
    assert_eq!(hook.request(0).await.target, "HEAD /v1/judge");
}
