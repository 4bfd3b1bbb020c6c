//! The events of an answer, as Dify's API reference lists them under `ChunkChatCompletionResponse`.

use serde::Deserialize;
use serde_json::Value;

use super::Stop;
use crate::{
    chat::Usage,
    llm::{
        sse::Event,
        stream::{self, Dialect, Fault, Progress},
    },
};

#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    event: String,
    #[serde(default)]
    task_id: Option<String>,
    #[serde(default)]
    conversation_id: Option<String>,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    metadata: Value,
    #[serde(default)]
    data: Value,
}

/// The events of one answer. It is complete with `message_end`. Thoughts, files, steps of a workflow, speech and kinds
/// that are not known are passed over.
#[derive(Default)]
pub(super) struct Events {
    /// until the answer has ended of itself
    stop: Option<Stop>,
    conversation: Option<String>,
}

impl Events {
    pub(super) fn new(stop: Stop) -> Self {
        Self { stop: Some(stop), conversation: None }
    }

    /// It has ended of itself, so nothing is left to be stopped.
    fn ended(&mut self) {
        if let Some(mut stop) = self.stop.take() {
            stop.task_id = None;
        }
    }
}

impl Dialect for Events {
    fn event(&mut self, event: &Event, answer: &mut Progress) -> Result<(), Fault> {
        let piece: Piece = stream::json(event)?;
        if let (Some(stop), Some(task_id)) = (&mut self.stop, piece.task_id.filter(|id| !id.is_empty())) {
            stop.task_id = Some(task_id);
        }
        self.conversation = piece.conversation_id.filter(|id| !id.is_empty()).or(self.conversation.take());
        match piece.event.as_str() {
            "message" | "agent_message" => answer.text(piece.answer.unwrap_or_default()),
            // A moderator took back what was said, and says something else instead.
            "message_replace" => return Err(Fault::withheld("message_replace")),
            "workflow_finished" => {
                let finished = finished(&piece.data);
                if finished.is_err() {
                    self.ended();
                }
                return finished;
            }
            "message_end" => {
                self.ended();
                if let Some(usage) = usage(&piece.metadata) {
                    answer.usage(usage);
                }
                if let Some(conversation) = self.conversation.take() {
                    answer.thread(conversation);
                }
                answer.done();
            }
            "error" => {
                self.ended();
                return Err(Fault::reported(&stream::json(event)?));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A workflow that did not do what it should; one that did is followed by `message_end`.
fn finished(data: &Value) -> Result<(), Fault> {
    match data.get("status").and_then(Value::as_str) {
        Some("failed") => Err(Fault::broken("failed in a step of its workflow")),
        Some("stopped") => Err(Fault::broken("was stopped by somebody else")),
        _ => Ok(()),
    }
}

fn usage(metadata: &Value) -> Option<Usage> {
    let usage = metadata.get("usage")?;
    Some(Usage {
        prompt_tokens: usage.get("prompt_tokens")?.as_u64()?,
        completion_tokens: usage.get("completion_tokens")?.as_u64()?,
        estimated: false,
    })
}
