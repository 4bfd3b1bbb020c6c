//! What a chat flow of Dify looks like on the wire, in the order in which it comes.

use serde_json::{Value, json};

use super::{Request, Script};

pub(crate) const TASK: &str = "900bbd43-dc0b-4383-a372-aa6e6c414227";
pub(crate) const CONVERSATION: &str = "45701982-8118-4bc5-8e9b-64562b4555f2";

/// The pieces, with everything that the vendor sends around them.
pub(crate) fn answer<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Script {
    let mut steps = vec![opening()];
    steps.extend(pieces.into_iter().map(message));
    steps.push(ending());
    Script::events(steps)
}

/// What comes before the text.
pub(crate) fn opening() -> Vec<u8> {
    [
        b"event: ping\n\n".to_vec(),
        event("workflow_started", &json!({ "workflow_run_id": "run-1", "data": { "id": "run-1", "inputs": {} } })),
        event("node_started", &json!({ "data": { "node_id": "llm", "node_type": "llm", "title": "LLM" } })),
    ]
    .concat()
}

/// One piece of text.
pub(crate) fn message(text: &str) -> Vec<u8> {
    event("message", &json!({ "id": "msg-1", "answer": text, "from_variable_selector": ["llm", "text"] }))
}

/// What comes after the text: 12 tokens of prompt, 7 of the answer.
pub(crate) fn ending() -> Vec<u8> {
    let usage = json!({ "prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19, "currency": "USD",
        "total_price": "0.0001", "latency": 1.25 });
    [
        event("node_finished", &json!({ "data": { "node_id": "llm", "status": "succeeded" } })),
        event("workflow_finished", &json!({ "data": { "id": "run-1", "status": "succeeded", "total_tokens": 19 } })),
        event("message_end", &json!({ "id": "msg-1", "metadata": { "usage": usage, "retriever_resources": [] } })),
        event("tts_message_end", &json!({ "audio": "" })),
    ]
    .concat()
}

/// An event of that kind, with what each event has.
pub(crate) fn event(kind: &str, data: &Value) -> Vec<u8> {
    let mut data = data.clone();
    for (key, value) in [("event", kind), ("task_id", TASK), ("conversation_id", CONVERSATION), ("message_id", "msg-1")]
    {
        data[key] = value.into();
    }
    super::event(&data.to_string())
}

/// Answers messages with `script`, and says of everything else that it is done.
pub(crate) fn stoppable(script: Script) -> impl Fn(&Request) -> Script + Send + Sync + 'static {
    let done = Script::status(200, "application/json", "{\"result\":\"success\"}");
    move |request| if request.target == "POST /v1/chat-messages" { script.clone() } else { done.clone() }
}
