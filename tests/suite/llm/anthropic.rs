//! Anthropic's messages.

use chatbox::{
    chat::{Usage, UserId},
    llm::{Failure, File, Message, Prompt, Provider as _, Role, VendorModel, anthropic::Anthropic, http::Settings},
};
use serde_json::json;

use super::{collect, prompt, settings, vendor_model};
use crate::harness::provider::{
    Provider, Script,
    anthropic::{answer, delta, ending, event, opening},
};

fn anthropic(settings: Settings) -> Anthropic {
    Anthropic::new(settings, vendor_model())
}

async fn ask(script: Script) -> (String, Option<Usage>, Result<(), chatbox::llm::Error>) {
    let provider = Provider::start(script).await;
    collect(anthropic(settings(&provider)).stream(&prompt("Hi")).await).await
}

// checklist 103, 104
#[tokio::test]
async fn the_model_is_sent_the_system_prompt_and_the_whole_conversation() {
    let provider = Provider::start(answer(["ok"])).await;
    let asked = Prompt {
        system: Some("Be brief.".into()),
        messages: vec![
            Message::text(Role::User, "My name is \"Ada\"\n"),
            Message::text(Role::Assistant, "Hello, Ada."),
            Message::text(Role::Assistant, " \n"),
            Message::text(Role::User, "What is my name?"),
        ]
        .into(),
        user_id: UserId::parse("alice").unwrap(),
        thread: None,
    };
    let model = VendorModel { max_tokens: Some(50), ..vendor_model() };
    for (model, max_tokens) in [(vendor_model(), 4096), (model, 50)] {
        let before = provider.requests();
        collect(Anthropic::new(settings(&provider), model).stream(&asked).await).await.2.unwrap();
        let request = provider.request(before).await;
        assert_eq!(request.target, "POST /v1/messages");
        for (name, value) in [
            ("x-api-key", "sk-secret"),
            ("anthropic-version", "2023-06-01"),
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
        ] {
            assert_eq!(request.header(name), Some(value));
        }
        assert_eq!(request.header("authorization"), None);
        assert_eq!(
            request.body,
            json!({
                "model": "vendor-1",
                "max_tokens": max_tokens,
                "system": "Be brief.",
                "messages": [
                    { "role": "user", "content": "My name is \"Ada\"\n" },
                    { "role": "assistant", "content": "Hello, Ada." },
                    { "role": "user", "content": "What is my name?" },
                ],
                "stream": true,
            })
        );
    }
}

#[tokio::test]
async fn a_conversation_that_staff_began_still_begins_with_the_user() {
    let provider = Provider::start(answer(["ok"])).await;
    let mut asked = prompt("Hi");
    asked.messages.to_mut().insert(0, Message::text(Role::Assistant, "Can I help?"));
    collect(anthropic(settings(&provider)).stream(&asked).await).await.2.unwrap();
    let request = provider.request(0).await;
    let opening = ("user", "(The conversation begins.)");
    assert_eq!(request.messages(), [opening, ("assistant", "Can I help?"), ("user", "Hi")]);
    assert_eq!(request.body.get("system"), None);
}

#[tokio::test]
async fn images_go_as_blocks_and_text_as_text() {
    let provider = Provider::start(answer(["ok"])).await;
    let model = VendorModel { images: true, ..vendor_model() };
    let mut asked = prompt("What is it?");
    let file = |name: &str, media_type: &str, bytes: &'static [u8]| File {
        name: name.into(),
        media_type: media_type.into(),
        bytes: bytes.into(),
    };
    asked.messages.to_mut()[0].files =
        vec![file("a.png", "image/png", b"\x89PNG"), file("b.csv", "text/csv", b"1,2\n")];
    collect(Anthropic::new(settings(&provider), model).stream(&asked).await).await.2.unwrap();
    let text = "[File `b.csv`, text/csv]\n1,2\n[End of `b.csv`]\n\nWhat is it?";
    assert_eq!(
        provider.request(0).await.body["messages"],
        json!([{ "role": "user", "content": [
            { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "iVBORw==" } },
            { "type": "text", "text": text },
        ]}])
    );
    // A model that does not look is told of it.
    collect(anthropic(settings(&provider)).stream(&asked).await).await.2.unwrap();
    let told = format!("[File `a.png`, image/png, 4 bytes: its content is not shown]\n\n{text}");
    assert_eq!(provider.request(1).await.messages(), [("user", told.as_str())]);
}

#[tokio::test]
async fn stop_reasons_say_how_an_answer_ended() {
    for reason in ["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded", "something_new"] {
        let (text, _, end) = ask(Script::events([opening(), delta("x"), ending(reason, 2)])).await;
        assert_eq!(text, "x");
        end.unwrap();
    }
    for (word, failure, told) in [
        ("refusal", Failure::Withheld, "withheld the rest of its answer (refusal)"),
        ("tool_use", Failure::Broken, "called a tool, and none was offered"),
        ("pause_turn", Failure::Broken, "called a tool, and none was offered"),
    ] {
        let (text, usage, end) = ask(Script::events([opening(), delta("x"), ending(word, 2)])).await;
        let err = end.unwrap_err();
        assert_eq!((text.as_str(), err.failure, err.reason.as_str()), ("x", failure, told));
        assert_eq!(usage, Some(Usage { prompt_tokens: 25, completion_tokens: 2, estimated: false }), "it is billed");
    }
}

#[tokio::test]
async fn what_the_vendor_adds_is_passed_over() {
    let block = |kind: &str| json!({ "index": 0, "content_block": { "type": kind, "thinking": "", "text": null } });
    let part = |kind: &str, key: &str| json!({ "index": 0, "delta": { "type": kind, key: "hm" } });
    let (text, usage, end) = ask(Script::events([
        opening(),
        event("content_block_start", &block("thinking")),
        event("content_block_delta", &part("thinking_delta", "thinking")),
        event("content_block_delta", &part("signature_delta", "signature")),
        event("content_block_delta", &part("something_new", "text")),
        event("something_new", &json!({ "text": "no" })),
        delta("text"),
        event("content_block_start", &json!({ "index": 1, "content_block": { "type": "text", "text": ", more" } })),
        // Counts may be corrected at the end, those of the cache too.
        event(
            "message_delta",
            &json!({ "delta": { "stop_reason": "end_turn" }, "usage": {
            "input_tokens": 100, "cache_read_input_tokens": 20, "cache_creation_input_tokens": null,
            "output_tokens": 9 } }),
        ),
        event("message_stop", &json!({})),
    ]))
    .await;
    assert_eq!(text, "text, more");
    assert_eq!(usage, Some(Usage { prompt_tokens: 123, completion_tokens: 9, estimated: false }));
    end.unwrap();
}
