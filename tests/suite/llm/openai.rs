//! OpenAI's chat completions.

use chatbox::{
    chat::{ErrorCode, Usage, UserId},
    llm::{Error, File, Message, Prompt, Provider as _, Role, VendorModel, http::Settings, openai::OpenAi},
};
use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{collect, impatient, prompt, reason, settings, vendor_model};
use crate::harness::provider::{DONE, Provider, Script, delta, event};

fn openai(settings: Settings) -> OpenAi {
    OpenAi::new(settings, vendor_model())
}

async fn ask(script: Script) -> (String, Option<Usage>, Result<(), Error>) {
    let provider = Provider::start(script).await;
    collect(openai(settings(&provider)).stream(&prompt("Hi")).await).await
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
        ]
        .into(),
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
async fn an_error_among_the_events_ends_the_answer_however_it_is_marked() {
    for (fault, told) in [
        (
            event(r#"{"error":{"message":"overloaded sk-secret","type":"server_error"}}"#),
            "reported an error in the middle of its answer (server_error)",
        ),
        // OpenRouter's, vLLM's, and one whose words are not plain.
        (
            event(r#"{"choices":[],"error":{"code":502,"message":"sk-secret"}}"#),
            "reported an error in the middle of its answer (502)",
        ),
        (
            event(r#"{"error":{"message":"","type":"sk-secret is wrong","code":""}}"#),
            "reported an error in the middle of its answer (no type)",
        ),
        (b"event: error\ndata: {}\n\n".to_vec(), "reported an error in the middle of its answer (no type)"),
    ] {
        let (text, _, end) = ask(Script::events([delta("before"), fault, delta("after"), DONE.to_vec()])).await;
        assert_eq!(text, "before");
        assert_eq!(reason(end), (ErrorCode::LlmUnavailable, format!("provider `fast`: {told}")));
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

#[tokio::test]
async fn images_go_as_parts_and_text_as_text() {
    let provider = Provider::start(Script::answer(["ok"])).await;
    let mut asked = prompt("What is it?");
    let file = |name: &str, media_type: &str, bytes: &'static [u8]| File {
        name: name.into(),
        media_type: media_type.into(),
        bytes: bytes.into(),
    };
    asked.messages.to_mut()[0].files =
        vec![file("a.png", "image/png", b"\x89PNG"), file("b.csv", "text/csv", b"1,2\n")];
    let looks = OpenAi::new(settings(&provider), VendorModel { images: true, ..vendor_model() });
    collect(looks.stream(&asked).await).await.2.unwrap();
    let text = "[File `b.csv`, text/csv]\n1,2\n[End of `b.csv`]\n\nWhat is it?";
    assert_eq!(
        provider.request(0).await.body["messages"],
        json!([{ "role": "user", "content": [
            { "type": "text", "text": text },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBORw==" } },
        ]}])
    );
    // A model that does not look is told of it, in plain text.
    collect(openai(settings(&provider)).stream(&asked).await).await.2.unwrap();
    let told = format!("[File `a.png`, image/png, 4 bytes: its content is not shown]\n\n{text}");
    assert_eq!(provider.request(1).await.messages(), [("user", told.as_str())]);
}
