//! OpenAI's chat completions.

use std::time::{Duration, Instant};

use chatbox::{
    chat::{ErrorCode, Usage, UserId},
    llm::{Chunk, Error, Message, Prompt, Provider as _, Role, VendorModel, http::Settings, openai::OpenAi},
};
use futures_util::StreamExt;
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{collect, impatient, prompt, reason, settings, vendor_model};
use crate::harness::provider::{DONE, Gate, Provider, Script, delta, event};

fn openai(settings: Settings) -> OpenAi {
    OpenAi::new(settings, vendor_model())
}

async fn ask(script: Script) -> (String, Option<Usage>, Result<(), Error>) {
    let provider = Provider::start(script).await;
    collect(openai(settings(&provider)).stream(&prompt("Hi")).await).await
}

#[tokio::test]
async fn an_answer_streams_with_its_usage() {
    let (text, usage, end) = ask(Script::answer(["Hel", "lo, ", "wörld 😀"]).usage(12, 7)).await;
    assert_eq!(text, "Hello, wörld 😀");
    assert_eq!(usage, Some(Usage { prompt_tokens: 12, completion_tokens: 7, estimated: false }));
    end.unwrap();
}

#[tokio::test]
async fn each_piece_arrives_when_it_is_sent() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one", "two"]).gated(&gate)).await;
    let mut answer = openai(settings(&provider)).stream(&prompt("Hi")).await.unwrap();
    for piece in ["one", "two"] {
        gate.release(1);
        assert_eq!(answer.next().await.unwrap().unwrap(), Chunk::Text(piece.to_owned()));
    }
    assert!(futures_util::poll!(answer.next()).is_pending());
    gate.open();
    assert_eq!(answer.next().await.unwrap().unwrap(), Chunk::Done);
}

#[tokio::test]
async fn the_model_is_sent_the_system_prompt_and_the_whole_conversation() {
    let provider = Provider::start(Script::answer(["ok"])).await;
    let message = |role, content: &str| Message::text(role, content);
    let asked = Prompt {
        system: Some("Be brief.".into()),
        messages: vec![
            message(Role::User, "My name is \"Ada\"\n"),
            message(Role::Assistant, "Hello, Ada."),
            message(Role::User, "What is my name?"),
        ],
        user_id: UserId::parse("alice").unwrap(),
        thread: None,
    };
    let openai = OpenAi::new(settings(&provider), VendorModel { max_tokens: Some(50), ..vendor_model() });
    collect(openai.stream(&asked).await).await.2.unwrap();
    let request = provider.request(0).await;
    assert_eq!(request.target, "POST /v1/chat/completions");
    assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(
        request.body,
        json!({
            "model": "vendor-1",
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "My name is \"Ada\"\n" },
                { "role": "assistant", "content": "Hello, Ada." },
                { "role": "user", "content": "What is my name?" },
            ],
            "stream": true,
            "stream_options": { "include_usage": true },
            "max_tokens": 50,
        })
    );
    assert_eq!(request.messages().last(), Some(&("user", "What is my name?")));
}

#[tokio::test]
async fn a_server_without_keys_gets_none_and_a_connection_serves_again() {
    let provider = Provider::start(Script::answer(["ok"])).await;
    let endpoint = format!("{}/", provider.endpoint()).parse().unwrap();
    let openai = openai(Settings { api_key: None, endpoint, ..settings(&provider) });
    for text in ["one", "two"] {
        provider.script(Script::answer([text]));
        assert_eq!(collect(openai.stream(&prompt("Hi")).await).await.0, text);
    }
    let request = provider.request(1).await;
    assert_eq!((request.target.as_str(), request.header("authorization")), ("POST /v1/chat/completions", None));
    assert_eq!((provider.requests(), provider.hang_ups()), (2, 0));
}

/// Cuts a whole stream behind each of its bytes, in the middle of HTTP's body and at its end: the text that came is
/// always a prefix, and the answer counts as finished only when its `finish_reason` has come.
#[tokio::test]
async fn a_stream_cut_at_any_byte_never_counts_as_finished() {
    let whole = Script::answer(["Hel", "lo, wö", "rld 😀"]).usage(3, 5);
    let bytes = whole.bytes();
    let complete = 2 + bytes.windows(2).enumerate().filter(|(_, pair)| pair == b"\n\n").nth(4).unwrap().0;
    let provider = Provider::start(whole.clone()).await;
    let openai = openai(settings(&provider));
    let mut seen = String::new();
    for count in 0..bytes.len() {
        for cut in [true, false] {
            provider.script(whole.first_bytes(count, cut));
            let (text, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
            assert!("Hello, wörld 😀".starts_with(&text) && text.len() >= seen.len(), "{count}: {text}");
            seen = text;
            assert_eq!(end.is_ok(), count >= complete, "cut behind byte {count} of {}: {end:?}", bytes.len());
            assert_eq!(
                end.map_err(|err| err.failure.code()),
                if count >= complete { Ok(()) } else { Err(ErrorCode::LlmUnavailable) }
            );
        }
    }
    assert_eq!(seen, "Hello, wörld 😀");
}

/// One byte in each TCP segment and HTTP chunk.
#[tokio::test]
async fn the_answer_does_not_depend_on_how_it_is_cut_up() {
    let whole = Script::answer(["Hel", "lo, wö", "rld 😀"]).usage(3, 5).bytes();
    let (text, usage, end) = ask(Script::events(whole.into_iter().map(|byte| vec![byte]))).await;
    assert_eq!(text, "Hello, wörld 😀");
    assert_eq!(usage, Some(Usage { prompt_tokens: 3, completion_tokens: 5, estimated: false }));
    end.unwrap();
}

#[tokio::test]
async fn a_stream_may_end_without_done_once_it_has_finished() {
    for script in [Script::answer(["x"]).end_after(2), Script::answer(["x"]).cut_after(2)] {
        let (text, _, end) = ask(script).await;
        assert_eq!(text, "x");
        end.unwrap();
    }
    let provider = Provider::start(Script::answer(["x"]).stall_after(2)).await;
    let openai = openai(impatient(&provider));
    let (text, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
    assert_eq!(text, "x");
    end.unwrap();
}

#[tokio::test]
async fn finish_reasons_say_how_an_answer_ended() {
    for reason in ["stop", "length", "eos"] {
        let (text, _, end) = ask(Script::answer(["x"]).finish(reason)).await;
        assert_eq!(text, "x");
        end.unwrap();
    }
    for (word, code, told) in [
        (
            "content_filter",
            ErrorCode::ContentRefused,
            "provider `fast`: withheld the rest of its answer (content_filter)",
        ),
        ("tool_calls", ErrorCode::LlmUnavailable, "provider `fast`: called a tool, and none was offered"),
    ] {
        let (text, _, end) = ask(Script::answer(["x"]).finish(word)).await;
        assert_eq!(text, "x");
        assert_eq!(reason(end), (code, told.to_owned()));
    }
}

#[tokio::test]
async fn a_provider_that_stalls_times_out() {
    let provider = Provider::start(Script::answer(["Hel", "lo"]).stall_after(1)).await;
    let openai = openai(impatient(&provider));
    let (text, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
    assert_eq!(text, "Hel");
    let told = "provider `fast`: fell silent in the middle of its answer";
    assert_eq!(reason(end), (ErrorCode::LlmTimeout, told.to_owned()));
    provider.hung_up(1).await;

    let told = "provider `fast`: sent no text in time";
    provider.script(Script::events([]).stall_after(0));
    assert_eq!(reason(collect(openai.stream(&prompt("Hi")).await).await.2), (ErrorCode::LlmTimeout, told.to_owned()));

    provider.script(Script::silent());
    let (_, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
    assert_eq!(reason(end), (ErrorCode::LlmTimeout, "provider `fast`: sent no answer in time".to_owned()));
    provider.hung_up(3).await;
}

#[tokio::test]
async fn a_provider_that_talks_for_ever_meets_the_deadline() {
    let provider = Provider::start(Script::endless("x")).await;
    let openai = openai(Settings { timeout: Duration::from_millis(200), ..settings(&provider) });
    let (text, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
    assert_eq!(text.trim_matches('x'), "");
    let told = "provider `fast`: did not finish its answer in time";
    assert_eq!(reason(end), (ErrorCode::LlmTimeout, told.to_owned()));
    provider.hung_up(1).await;
}

// checklist 34, 35
#[tokio::test]
async fn refusals_name_the_status_and_the_code_and_quote_nothing() {
    let vendor = r#"{"error":{"message":"Incorrect API key provided: sk-secret","type":"invalid_request_error","code":"invalid_api_key"}}"#;
    let limited = r#"{"error":{"message":"Slow down, sk-secret","type":"requests","param":null,"code":null}}"#;
    let odd = r#"{"error":{"message":"","type":"sk-secret is wrong","code":500}}"#;
    let big = format!("{{\"error\":{{\"message\":\"{}\",\"type\":\"x\"}}}}", "sk-secret".repeat(100_000));
    for (status, content_type, body, told) in [
        (401, "application/json", vendor, "refused with status 401 (invalid_api_key)"),
        (429, "application/json", limited, "refused with status 429 (requests)"),
        (500, "application/json", odd, "refused with status 500 (500)"),
        (502, "text/html", "<html>sk-secret</html>", "refused with status 502"),
        (503, "text/plain", "", "refused with status 503"),
        (400, "application/json", &big, "refused with status 400"),
        (302, "text/html", "moved", "refused with status 302"),
        (200, "text/html", "<html>sign in</html>", "answered with `text/html` instead of `text/event-stream`"),
    ] {
        let (text, _, end) = ask(Script::status(status, content_type, body)).await;
        let err = end.unwrap_err();
        assert_eq!((text.as_str(), err.failure.code(), err.reason.as_str()), ("", ErrorCode::LlmUnavailable, told));
        assert!(!format!("{err:?}").contains("sk-secret"), "{err:?}");
    }
    let (_, _, end) = ask(Script::status(504, "text/html", "")).await;
    assert_eq!(end.unwrap_err().failure.code(), ErrorCode::LlmTimeout);
}

#[tokio::test]
async fn a_refusal_whose_body_never_ends_is_told_all_the_same() {
    let provider = Provider::start(Script::status(500, "text/plain", "x").stall_after(1)).await;
    let openai = openai(Settings { idle_timeout: Duration::from_millis(200), ..settings(&provider) });
    let (_, _, end) = collect(openai.stream(&prompt("Hi")).await).await;
    assert_eq!(end.unwrap_err().reason, "refused with status 500");
}

#[tokio::test]
async fn faults_in_the_stream_end_it_after_the_text_before_them() {
    let giant = format!("data: {}\n\n", "x".repeat(2 << 20)).into_bytes();
    for (fault, told) in [
        (event("{\"choices\":[{\"delta\":"), "sent an event that is no completion"),
        (event("[1,2]"), "sent an event that is no completion"),
        (event("not json, sk-secret"), "sent an event that is no completion"),
        (
            event(r#"{"error":{"message":"overloaded sk-secret","type":"server_error"}}"#),
            "reported an error in the middle of its answer (server_error)",
        ),
        (b"event: error\ndata: {}\n\n".to_vec(), "reported an error in the middle of its answer (no type)"),
        (giant, "sent an event that is too large"),
    ] {
        let (text, _, end) = ask(Script::events([delta("before"), fault, delta("after"), DONE.to_vec()])).await;
        let err = end.unwrap_err();
        assert_eq!(
            (text.as_str(), err.failure.code(), err.reason.as_str()),
            ("before", ErrorCode::LlmUnavailable, told)
        );
        assert!(!format!("{err:?}").contains("sk-secret"), "{err:?}");
    }
}

#[tokio::test]
async fn what_vendors_add_is_passed_over() {
    let (text, usage, end) = ask(Script::events([
        b": OPENROUTER PROCESSING\n\n".to_vec(),
        b"event: ping\ndata: {\"type\":\"ping\"}\n\n".to_vec(),
        event(r#"{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#),
        event(r#"{"choices":null,"x_groq":{"id":"1"}}"#),
        event(r#"{"choices":[{"delta":{"reasoning_content":"hm","content":null},"finish_reason":""}]}"#),
        event(r#"{"choices":[{"index":1,"delta":{"content":"other"}},{"index":0,"delta":{"content":"text"}}],"usage":{"prompt_tokens":1}}"#),
        event(r#"{"choices":[{"delta":{"refusal":", sorry"},"finish_reason":"stop"}],"usage":{"prompt_tokens":4,"completion_tokens":2}}"#),
        DONE.to_vec(),
    ]))
    .await;
    assert_eq!(text, "text, sorry");
    assert_eq!(usage, Some(Usage { prompt_tokens: 4, completion_tokens: 2, estimated: false }));
    end.unwrap();
}

#[tokio::test]
async fn an_empty_finish_reason_finishes_nothing() {
    let piece = event(r#"{"choices":[{"delta":{"content":"x"},"finish_reason":""}]}"#);
    let (text, _, end) = ask(Script::events([piece])).await;
    let told = "provider `fast`: ended its answer without finishing it";
    assert_eq!((text.as_str(), reason(end)), ("x", (ErrorCode::LlmUnavailable, told.to_owned())));
}

#[tokio::test]
async fn dropping_the_answer_closes_the_socket_at_once() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["one", "two"]).gated(&gate)).await;
    let openai = openai(settings(&provider));
    let mut answer = openai.stream(&prompt("Hi")).await.unwrap();
    gate.release(1);
    assert_eq!(answer.next().await.unwrap().unwrap(), Chunk::Text("one".to_owned()));
    let dropped = Instant::now();
    drop(answer);
    let taken = provider.hung_up(1).await - dropped;
    assert!(taken < Duration::from_millis(100), "{taken:?}");

    // The same before the provider has said a word.
    provider.script(Script::silent());
    let asked = prompt("Hi");
    let waiting = openai.stream(&asked);
    tokio::select! {
        _ = waiting => unreachable!("the provider is silent"),
        _ = provider.request(1) => {}
    }
    let dropped = Instant::now();
    let taken = provider.hung_up(2).await.saturating_duration_since(dropped);
    assert!(taken < Duration::from_millis(100), "{taken:?}");
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_unavailable() {
    let provider = Provider::start(Script::silent()).await;
    let gone = settings(&provider);
    drop(provider);
    let err = openai(gone).stream(&prompt("Hi")).await.err().unwrap();
    assert_eq!((err.failure.code(), err.reason.as_str()), (ErrorCode::LlmUnavailable, "cannot be reached"));
}

#[tokio::test]
async fn an_https_provider_is_spoken_to_in_tls_only() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
    let provider = Provider::start(Script::silent()).await;
    let openai = openai(Settings { endpoint, ..settings(&provider) });
    let first_byte = async { listener.accept().await.unwrap().0.read_u8().await.unwrap() };
    let asked = prompt("Hi");
    let asking = openai.stream(&asked);
    tokio::pin!(asking, first_byte);
    let err = tokio::select! {
        // A handshake record (RFC 8446, section 5.1), and then the connection closes.
        byte = &mut first_byte => {
            assert_eq!(byte, 0x16);
            asking.await.err().unwrap()
        }
        refused = &mut asking => refused.err().unwrap(),
    };
    if err.reason == "the HTTP client cannot be made" {
        return eprintln!("skipped: this machine has no certificates of authorities");
    }
    assert_eq!((err.failure.code(), err.reason.as_str()), (ErrorCode::LlmUnavailable, "cannot be reached"));
}
