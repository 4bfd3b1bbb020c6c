//! What each request must and may carry, for the published description of the frames. What holds requests to it is
//! [`super::decode`].

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::client::Envelope;

/// A type of request as the published description has it.
#[derive(Clone, PartialEq, Debug)]
pub struct RequestType {
    /// its `type`
    pub name: &'static str,
    /// what it is for
    pub summary: &'static str,
    /// a frame of this type
    pub schema: Schema,
}

struct Row {
    name: &'static str,
    summary: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
    /// the key of `metadata` that must be there, and its words
    word: Option<(&'static str, [&'static str; 2])>,
}

const fn row(
    name: &'static str,
    summary: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
) -> Row {
    Row { name, summary, required, optional, word: None }
}

const ROWS: [Row; 12] = [
    row(
        "attach",
        "starts a watch; the first one authenticates the connection",
        &[],
        &["token", "scope", "session_id", "after_seq", "last", "turn_id", "offset", "new", "reopen", "datagrams"],
    ),
    row("detach", "ends a watch on a WebSocket", &[], &["session_id", "scope"]),
    row("auth", "renews the identity", &["token"], &[]),
    row("user_message", "says something in a session", &["content"], &["session_id", "files", "metadata", "timestamp"]),
    row("stop", "ends a turn; the text so far stays", &["turn_id"], &[]),
    row("regenerate", "has the last message answered once more", &["turn_id"], &[]),
    row("model_select", "has another model answer from here on", &["model_id"], &["session_id"]),
    row("help_request", "asks for a person", &[], &["session_id"]),
    row("help_cancel", "asks for no person any longer", &[], &["session_id"]),
    Row {
        word: Some(("state", ["start", "stop"])),
        ..row("typing_indicator", "tells that somebody types, or has stopped", &["metadata"], &["session_id"])
    },
    Row {
        word: Some(("rating", ["up", "down"])),
        ..row("feedback", "rates a reply", &["seq", "metadata"], &["session_id", "content"])
    },
    row("ping", "asks whether the server is there", &[], &[]),
];

/// Every type of request that is served, as the generator's schemas.
pub fn requests(generator: &mut SchemaGenerator) -> Vec<RequestType> {
    let envelope = Value::from(generator.root_schema_for::<Envelope>());
    let fields = envelope.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    ROWS.iter().map(|row| RequestType { name: row.name, summary: row.summary, schema: row.schema(&fields) }).collect()
}

impl Row {
    fn schema(&self, fields: &Map<String, Value>) -> Schema {
        let carried = ["id"].iter().chain(self.required).chain(self.optional);
        let mut properties: Map<String, Value> =
            carried.filter_map(|field| Some(((*field).to_owned(), fields.get(*field)?.clone()))).collect();
        properties.insert("type".to_owned(), json!({"const": self.name}));
        if let Some((key, words)) = self.word {
            let word = json!({"type": "object", "required": [key], "properties": {key: {"enum": words}}});
            properties.insert("metadata".to_owned(), word);
        }
        let required: Vec<&str> = ["type"].iter().chain(self.required).copied().collect();
        let schema = json!({
            "type": "object", "description": self.summary, "properties": properties, "required": required,
        });
        schema.try_into().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chat::ErrorCode, protocol::decode};

    fn sample(row: &Row, field: &str) -> Value {
        match field {
            "id" | "turn_id" | "session_id" => json!("01890a5d-ac96-774b-bcce-b302099a8057"),
            "seq" | "after_seq" | "last" | "offset" => json!(1),
            "new" | "datagrams" => json!(true),
            "reopen" => json!(false),
            "scope" => json!("session"),
            "files" => json!(["f"]),
            "timestamp" => json!("2026-01-02T03:04:05Z"),
            "metadata" => row.word.map_or(json!({"a": 1}), |(key, words)| json!({key: words[0]})),
            _ => json!("text"),
        }
    }

    fn frame(row: &Row, fields: &[&str]) -> Value {
        let mut frame = json!({"type": row.name});
        for field in fields {
            frame[*field] = sample(row, field);
        }
        frame
    }

    #[test]
    fn a_request_needs_what_the_catalogue_says_and_takes_what_it_lists() {
        for row in &ROWS {
            let read = |frame: &Value| decode(frame.to_string().as_bytes()).map(|request| request.frame.name());
            assert_eq!(read(&frame(row, row.required)), Ok(row.name));
            let all: Vec<&str> = row.required.iter().chain(row.optional).copied().collect();
            assert_eq!(read(&frame(row, &all)), Ok(row.name));
            for left_out in row.required {
                let rest: Vec<&str> = all.iter().copied().filter(|field| field != left_out).collect();
                let rejection = read(&frame(row, &rest)).unwrap_err();
                assert_eq!(rejection.code, ErrorCode::MissingField, "{} without {left_out}", row.name);
            }
        }
    }

    /// checklist 17
    #[test]
    fn an_array_is_no_frame_whatever_it_holds() {
        for frame in [r#"["ping"]"#, r#" [null, null]"#, "[]"] {
            let rejection = decode(frame.as_bytes()).unwrap_err();
            assert_eq!(rejection.code, ErrorCode::InvalidFormat, "{frame}");
            assert_eq!(rejection.message, "the frame is a list, an object is accepted", "{frame}");
        }
        assert_eq!(decode(b" \n{\"type\": \"ping\"}").unwrap().frame.name(), "ping");
    }

    #[test]
    fn every_field_of_the_catalogue_is_one_of_the_envelope() {
        let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
        for (request, row) in requests(&mut generator).iter().zip(&ROWS) {
            let properties = request.schema.get("properties").unwrap().as_object().unwrap();
            assert_eq!(properties.len(), 2 + row.required.len() + row.optional.len(), "{}", row.name);
        }
    }
}
