//! What Anthropic's messages look like on the wire, in the order in which they come.

use serde_json::{Value, json};

use super::Script;

/// The pieces, with everything that the vendor sends around them; 25 tokens of prompt, 5 of them from its cache.
pub(crate) fn answer<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Script {
    let mut steps = vec![opening()];
    steps.extend(pieces.into_iter().map(delta));
    steps.push(ending("end_turn", 7));
    Script::events(steps)
}

/// What comes before the text.
pub(crate) fn opening() -> Vec<u8> {
    let usage = json!({ "input_tokens": 17, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5,
        "output_tokens": 1, "service_tier": "standard" });
    let message = json!({ "id": "msg_1", "type": "message", "role": "assistant", "model": "scripted", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage });
    [
        event("message_start", &json!({ "message": message })),
        event("content_block_start", &json!({ "index": 0, "content_block": { "type": "text", "text": "" } })),
        event("ping", &json!({})),
    ]
    .concat()
}

/// One piece of text.
pub(crate) fn delta(text: &str) -> Vec<u8> {
    event("content_block_delta", &json!({ "index": 0, "delta": { "type": "text_delta", "text": text } }))
}

/// What comes after the text.
pub(crate) fn ending(stop_reason: &str, output_tokens: u64) -> Vec<u8> {
    [
        event("content_block_stop", &json!({ "index": 0 })),
        event(
            "message_delta",
            &json!({ "delta": { "stop_reason": stop_reason, "stop_sequence": null },
                "usage": { "output_tokens": output_tokens } }),
        ),
        event("message_stop", &json!({})),
    ]
    .concat()
}

/// An event of that type; its data name the type again.
pub(crate) fn event(kind: &str, data: &Value) -> Vec<u8> {
    let mut data = data.clone();
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n").into_bytes()
}
