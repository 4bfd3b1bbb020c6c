//! Applications of Dify.

use std::time::Duration;

use chatbox::{
    chat::UserId,
    llm::{
        Chunk, Failure, File, Message, Prompt, Provider as _, Role,
        dify::{Application, Dify},
        http::Settings,
    },
};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use super::{collect, impatient, prompt, settings};
use crate::harness::provider::{
    Gate, Provider, Script,
    dify::{CONVERSATION, TASK, answer, ending, event, message, opening, stoppable},
};

fn dify(settings: Settings) -> Dify {
    Dify::new(settings, Application { images: true })
}

fn conversation(thread: Option<&str>) -> Prompt {
    Prompt {
        system: Some("Be brief.".into()),
        messages: vec![
            Message::text(Role::User, "My name is Ada."),
            Message::text(Role::Assistant, "Hello, Ada."),
            Message::text(Role::User, "What is my name?"),
        ]
        .into(),
        user_id: UserId::parse("alice").unwrap(),
        thread: thread.map(str::to_owned),
    }
}

const TRANSCRIPT: &str = "The conversation so far:\n\nUser: My name is Ada.\n\nAssistant: Hello, Ada.\n\n\
                          The message to answer:\n\nWhat is my name?";

fn body(query: &str, thread: &str) -> serde_json::Value {
    json!({ "inputs": {}, "query": query, "response_mode": "streaming", "conversation_id": thread, "user": "alice",
        "auto_generate_name": false })
}

// checklist 102
#[tokio::test]
async fn a_conversation_that_dify_holds_goes_on_and_another_is_told_it() {
    let provider = Provider::start(answer(["ok"])).await;
    let dify = dify(settings(&provider));
    for (index, (thread, query)) in
        [(Some(CONVERSATION), "What is my name?"), (None, TRANSCRIPT)].into_iter().enumerate()
    {
        let chunks: Vec<_> = dify.stream(&conversation(thread)).await.unwrap().map(Result::unwrap).collect().await;
        assert!(chunks.contains(&Chunk::Thread(CONVERSATION.to_owned())), "{chunks:?}");
        assert_eq!(chunks.last(), Some(&Chunk::Done));
        let request = provider.request(index).await;
        assert_eq!(request.target, "POST /v1/chat-messages");
        assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
        assert_eq!(request.body, body(query, thread.unwrap_or_default()));
    }
    collect(dify.stream(&prompt("Hi")).await).await.2.unwrap();
    assert_eq!(provider.request(2).await.body, body("Hi", ""));
    dify.close().await;
    assert_eq!(provider.requests(), 3, "what has ended is not stopped");
}

#[tokio::test]
async fn a_conversation_that_dify_has_lost_begins_anew() {
    let lost = r#"{"code":"not_found","message":"Conversation Not Exists.","status":404}"#;
    let over = r#"{"code":"conversation_completed","message":"The conversation has ended.","status":400}"#;
    for (status, refusal) in [(404, lost), (400, over)] {
        let provider = Provider::start_by(move |request| match request.body["conversation_id"].as_str() {
            Some("") => answer(["ok"]),
            _ => Script::status(status, "application/json", refusal),
        })
        .await;
        let (text, _, end) = collect(dify(settings(&provider)).stream(&conversation(Some("gone"))).await).await;
        assert_eq!(text, "ok");
        end.unwrap();
        assert_eq!((provider.requests(), provider.request(1).await.body), (2, body(TRANSCRIPT, "")));
    }
    // Other refusals are not asked about again, and neither is a new conversation's.
    for (thread, status, refusal) in [(Some("gone"), 400, "{\"code\":\"invalid_param\"}"), (None, 404, lost)] {
        let provider = Provider::start(Script::status(status, "application/json", refusal)).await;
        let err = dify(settings(&provider)).stream(&conversation(thread)).await.err().unwrap();
        assert_eq!((err.failure, provider.requests()), (Failure::Refused, 1), "{err}");
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_is_stopped_for_its_user() {
    let gate = Gate::new();
    let provider = Provider::start_by(stoppable(answer(["one", "two"]).gated(&gate))).await;
    let dify = dify(settings(&provider));
    let mut running = dify.stream(&prompt("Hi")).await.unwrap();
    gate.release(1);
    assert_eq!(running.next().await.unwrap().unwrap(), Chunk::Text("one".to_owned()));
    drop(running);
    dify.close().await;
    let request = provider.request(1).await;
    assert_eq!(request.target, format!("POST /v1/chat-messages/{TASK}/stop"));
    assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
    assert_eq!(request.body, json!({ "user": "alice" }));
}

#[tokio::test]
async fn an_answer_that_is_late_is_stopped_and_one_that_dify_ended_is_not() {
    for (script, stops) in [
        (answer(["one"]).stall_after(1), 1),
        (answer(["one"]).cut_after(1), 1),
        (Script::events([opening()]).stall_after(1), 1),
        (Script::events([opening(), event("error", &json!({ "code": "invalid_param", "status": 400 }))]), 0),
        (Script::events([opening(), event("workflow_finished", &json!({ "data": { "status": "failed" } }))]), 0),
    ] {
        let provider = Provider::start_by(stoppable(script)).await;
        let dify = dify(impatient(&provider));
        collect(dify.stream(&prompt("Hi")).await).await.2.unwrap_err();
        dify.close().await;
        assert_eq!(provider.requests(), 1 + stops);
    }
}

#[tokio::test]
async fn a_dify_that_does_not_stop_is_not_waited_for_long() {
    let provider = Provider::start_by(|request| match request.target.as_str() {
        "POST /v1/chat-messages" => answer(["one"]).stall_after(1),
        _ => Script::silent(),
    })
    .await;
    let dify = dify(settings(&provider));
    let mut running = dify.stream(&prompt("Hi")).await.unwrap();
    running.next().await.unwrap().unwrap();
    drop(running);
    provider.request(1).await;
    tokio::time::pause();
    timeout(Duration::from_secs(6), dify.close()).await.expect("it ends within its deadline");
    assert_eq!(provider.requests(), 2);
}

#[tokio::test]
async fn agents_workflows_and_moderators_are_understood() {
    let thought = event("agent_thought", &json!({ "id": "t1", "thought": "hm", "tool": "search", "position": 1 }));
    let picture =
        event("message_file", &json!({ "id": "f1", "type": "image", "url": "https://x", "belongs_to": "assistant" }));
    let said = event("agent_message", &json!({ "id": "m1", "answer": "ok" }));
    let speech = event("tts_message", &json!({ "audio": "qqqq" }));
    let fresh = event("something_new", &json!({ "answer": "no" }));
    let provider = Provider::start(Script::silent()).await;
    let dify = dify(settings(&provider));
    provider.script(Script::events([thought, picture, said, speech, fresh, ending()]));
    let (text, _, end) = collect(dify.stream(&prompt("Hi")).await).await;
    assert_eq!(text, "ok");
    end.unwrap();
    for (last, failure, told) in [
        (
            event("message_replace", &json!({ "answer": "I cannot say that." })),
            Failure::Withheld,
            "withheld the rest of its answer (message_replace)",
        ),
        (
            event("workflow_finished", &json!({ "data": { "status": "failed", "error": "sk-secret" } })),
            Failure::Broken,
            "failed in a step of its workflow",
        ),
        (
            event("workflow_finished", &json!({ "data": { "status": "stopped" } })),
            Failure::Broken,
            "was stopped by somebody else",
        ),
    ] {
        provider.script(Script::events([opening(), message("x"), last, ending()]));
        let (text, _, end) = collect(dify.stream(&prompt("Hi")).await).await;
        let err = end.unwrap_err();
        assert_eq!((text.as_str(), err.failure, err.reason.as_str()), ("x", failure, told));
    }
}

#[tokio::test]
async fn images_are_uploaded_and_named_in_the_request() {
    let provider = Provider::start_by(|request| match request.target.as_str() {
        "POST /v1/files/upload" => Script::status(201, "application/json", "{\"id\":\"upload-1\",\"name\":\"a.png\"}"),
        _ => answer(["ok"]),
    })
    .await;
    let mut asked = prompt("What is it?");
    let file = |name: &str, media_type: &str, bytes: &'static [u8]| File {
        name: name.into(),
        media_type: media_type.into(),
        bytes: bytes.into(),
    };
    asked.messages.to_mut()[0].files =
        vec![file("a.png", "image/png", b"\x89PNG"), file("b.csv", "text/csv", b"1,2\n")];
    collect(dify(settings(&provider)).stream(&asked).await).await.2.unwrap();
    let upload = provider.request(0).await;
    assert_eq!(upload.header("authorization"), Some("Bearer sk-secret"));
    let form = String::from_utf8_lossy(&upload.bytes);
    for part in [
        "name=\"user\"\r\n\r\nalice\r\n",
        "name=\"file\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n\u{fffd}PNG\r\n",
    ] {
        assert!(form.contains(part), "{part} is not in {form}");
    }
    let mut expected = body("[File `b.csv`, text/csv]\n1,2\n[End of `b.csv`]\n\nWhat is it?", "");
    expected["files"] = json!([{ "type": "image", "transfer_method": "local_file", "upload_file_id": "upload-1" }]);
    assert_eq!(provider.request(1).await.body, expected);

    let refusal = Script::status(413, "application/json", "{\"code\":\"file_too_large\"}");
    provider.script(refusal);
    let err = dify(settings(&provider)).stream(&asked).await.err().unwrap();
    assert_eq!((err.failure, err.reason.as_str()), (Failure::Refused, "refused with status 413 (file_too_large)"));
}
