//! What goes wrong, and what is told of it.

use std::{
    error::Error as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use chatbox::llm::{Error, Failure, http::Settings};
use tracing_subscriber::fmt::MakeWriter;

use super::{Vendor, collect, impatient, nowhere, prompt, settings};
use crate::harness::provider::{Provider, Script, event};

const BUSY: Failure = Failure::Busy { retry_after: None };

/// The error with everything that a log could say of it.
fn in_full(err: &Error) -> String {
    let mut text = format!("{err} {err:?}");
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    text
}

async fn failed(vendor: Vendor, provider: &Provider, script: Script) -> (String, Error) {
    provider.script(script);
    let (text, _, end) = collect(vendor.provider(settings(provider)).stream(&prompt("Hi")).await).await;
    (text, end.unwrap_err())
}

fn refusal(vendor: Vendor, status: u16, word: &str) -> String {
    match vendor {
        Vendor::OpenAi => format!(r#"{{"error":{{"message":"sk-secret","type":"t","param":null,"code":"{word}"}}}}"#),
        Vendor::Anthropic => format!(r#"{{"type":"error","error":{{"type":"{word}","message":"sk-secret"}}}}"#),
        Vendor::Dify => format!(r#"{{"code":"{word}","message":"sk-secret","status":{status}}}"#),
    }
}

// checklist 94
#[tokio::test]
async fn refusals_have_their_kind_name_their_code_and_quote_nothing() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::silent()).await;
        for (status, word, failure) in [
            (400, "invalid_request_error", Failure::Refused),
            (401, "authentication_error", Failure::Denied),
            (403, "permission_error", Failure::Denied),
            (404, "not_found_error", Failure::Refused),
            (408, "request_timeout", Failure::Late),
            (413, "request_too_large", Failure::Refused),
            (429, "rate_limit_error", BUSY),
            (429, "insufficient_quota", Failure::Denied),
            (400, "content_filter", Failure::Withheld),
            (400, "completion_request_error", Failure::Broken),
            (500, "api_error", BUSY),
            (501, "not_implemented", Failure::Refused),
            (502, "bad_gateway", BUSY),
            (503, "unavailable", BUSY),
            (504, "timeout_error", Failure::Late),
            (529, "overloaded_error", BUSY),
        ] {
            let body = refusal(vendor, status, word);
            let (text, err) = failed(vendor, &provider, Script::status(status, "application/json", &body)).await;
            assert_eq!((text.as_str(), err.failure), ("", failure), "{vendor:?} {status} {word}");
            assert_eq!(err.reason, format!("refused with status {status} ({word})"), "{vendor:?}");
            assert!(!in_full(&err).contains("sk-secret"), "{}", in_full(&err));
        }
    }
}

#[tokio::test]
async fn the_time_to_wait_comes_with_a_refusal() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::silent()).await;
        let body = refusal(vendor, 429, "rate_limit_error");
        for (name, value, wait) in [
            ("retry-after", "7", Some(Duration::from_secs(7))),
            ("retry-after-ms", "250", Some(Duration::from_millis(250))),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::ZERO)),
            ("retry-after", "later", None),
            ("x-other", "7", None),
        ] {
            let script = Script::status(429, "application/json", &body).header(name, value);
            let (_, err) = failed(vendor, &provider, script).await;
            assert_eq!(err.failure, Failure::Busy { retry_after: wait }, "{vendor:?} {name}: {value}");
        }
    }
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_what_it_is() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::silent()).await;
        let html = "<html>sk-secret</html>";
        let late = refusal(vendor, 200, "overloaded_error");
        for (script, failure, told) in [
            (
                Script::status(200, "text/html; charset=utf-8", html),
                Failure::Broken,
                "answered with `text/html` instead of `text/event-stream`",
            ),
            (
                Script::status(200, "application/json", &late),
                BUSY,
                "answered with an error instead of `text/event-stream` (overloaded_error)",
            ),
            (
                Script::status(200, "application/json", "{\"answer\":\"sk-secret\"}"),
                Failure::Broken,
                "answered with `application/json` instead of `text/event-stream`",
            ),
            (Script::status(502, "text/html", html), BUSY, "refused with status 502"),
            (
                Script::status(307, "text/html", "").header("location", &format!("{}/other", provider.endpoint())),
                Failure::Refused,
                "refused with status 307",
            ),
            (Script::gone(), Failure::Broken, "broke off before it answered"),
            (Script::status(200, "text/event-stream", html), Failure::Broken, "ended its answer without finishing it"),
        ] {
            let before = provider.requests();
            let (text, err) = failed(vendor, &provider, script).await;
            assert_eq!((text.as_str(), err.reason.as_str(), err.failure), ("", told, failure), "{vendor:?}");
            assert!(!in_full(&err).contains("sk-secret"), "{}", in_full(&err));
            assert_eq!(provider.requests() - before, 1, "{vendor:?}: {told}: nothing is repeated or followed");
        }
        let gone = Settings { endpoint: nowhere().parse().unwrap(), ..settings(&provider) };
        let err = vendor.provider(gone).stream(&prompt("Hi")).await.err().unwrap();
        assert_eq!((err.failure, err.reason.as_str()), (Failure::Unreachable, "cannot be reached"), "{vendor:?}");
    }
}

// checklist 98
#[tokio::test]
async fn faults_in_the_stream_come_after_the_text_before_them() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::silent()).await;
        let giant = format!("data: {}\n\n", "x".repeat(5 << 20)).into_bytes();
        for (fault, told) in [
            (event("{\"event\":\"message\",\"type\":"), "sent an event that is no completion"),
            (event("[1,2]"), "sent an event that is no completion"),
            (event("not json, sk-secret"), "sent an event that is no completion"),
            (giant, "sent an event that is too large"),
        ] {
            let script = Script::events([vendor.piece("before"), fault, vendor.piece("after")]);
            let (text, err) = failed(vendor, &provider, script).await;
            assert_eq!((text.as_str(), err.reason.as_str()), ("before", told), "{vendor:?}");
            assert_eq!(err.failure, Failure::Broken, "{vendor:?}");
            assert!(!in_full(&err).contains("sk-secret"), "{}", in_full(&err));
        }
    }
}

#[tokio::test]
async fn an_error_in_the_stream_has_its_kind() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::silent()).await;
        for (word, failure) in [
            ("overloaded_error", BUSY),
            ("rate_limit_error", BUSY),
            ("internal_server_error", BUSY),
            ("timeout_error", Failure::Late),
            ("invalid_request_error", Failure::Refused),
            ("provider_quota_exceeded", Failure::Denied),
            ("content_filter", Failure::Withheld),
            ("completion_request_error", Failure::Broken),
            ("529", BUSY),
            ("something_new", Failure::Broken),
        ] {
            let body = match vendor {
                Vendor::Dify => refusal(vendor, 400, word).replacen('{', "{\"event\":\"error\",", 1),
                _ => refusal(vendor, 400, word),
            };
            let (text, err) = failed(vendor, &provider, Script::events([event(&body), vendor.piece("after")])).await;
            assert_eq!((text.as_str(), err.failure), ("", failure), "{vendor:?} {word}");
            assert_eq!(err.reason, format!("reported an error in the middle of its answer ({word})"));
            assert!(!in_full(&err).contains("sk-secret"), "{}", in_full(&err));
        }
    }
}

/// A body that never ends stands for any that is too long: were it read, there would be no answer.
#[tokio::test]
async fn a_refusal_without_end_is_told_all_the_same_and_hung_up_on() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(Script::status(500, "text/plain", &"sk-secret".repeat(10_000)).repeated()).await;
        let (_, _, end) = collect(vendor.provider(settings(&provider)).stream(&prompt("Hi")).await).await;
        assert_eq!(end.unwrap_err().reason, "refused with status 500", "{vendor:?}");
        provider.hung_up(1).await;
        assert!(provider.sent() < 32 << 20, "{vendor:?}: {} bytes were read", provider.sent());

        let provider = Provider::start(Script::status(500, "text/plain", "x").stall_after(1)).await;
        let (_, _, end) = collect(vendor.provider(impatient(&provider)).stream(&prompt("Hi")).await).await;
        assert_eq!(end.unwrap_err().reason, "refused with status 500", "{vendor:?}");
        provider.hung_up(1).await;
    }
}

/// Everything that is logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logged {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// checklist 35
#[tokio::test]
async fn neither_keys_nor_what_is_said_are_logged() {
    let logged = Logged::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(logged.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    for vendor in Vendor::ALL {
        let provider = Provider::start(vendor.answer(["an-answer-4815"])).await;
        let asked = vendor.provider(settings(&provider));
        collect(asked.stream(&prompt("a-question-4815")).await).await.2.unwrap();
        provider.script(Script::status(401, "application/json", &refusal(vendor, 401, "invalid_api_key")));
        let err = asked.stream(&prompt("a-question-4815")).await.err().unwrap();
        tracing::warn!(error = &err as &dyn std::error::Error, provider = ?asked, "refused");
        let err = asked.probe().await.err().unwrap();
        tracing::warn!(error = &err as &dyn std::error::Error, "not usable");
    }
    drop(guard);
    let logged = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("refused with status 401 (invalid_api_key)"), "{logged}");
    for secret in ["sk-secret", "4815"] {
        assert!(!logged.contains(secret), "{secret} in {logged}");
    }
}
