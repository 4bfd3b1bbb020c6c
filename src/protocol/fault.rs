//! What is wrong with JSON that a client sent, in the contract's words: which field, what came, what is accepted.

use serde::de::DeserializeOwned;

/// Characters of a client's own text that a sentence about it shows.
const SHOWN_CHARS_MAX: usize = 40;

/// What the reader calls things, by the beginning, and what the contract does.
const WORDS: [(&str, &str); 13] = [
    ("string ", "the string "),
    ("integer ", "the number "),
    ("floating point ", "the number "),
    ("boolean ", "the boolean "),
    ("map", "an object"),
    ("sequence", "a list"),
    ("a map", "an object"),
    ("a sequence", "a list"),
    ("struct ", "an object"),
    ("u32", "a whole number that is not negative"),
    ("u64", "a whole number that is not negative"),
    ("i64", "a whole number"),
    ("a formatted UUID string", "a UUID"),
];

/// Reads one JSON object, which sentences call `whole`; unknown fields are passed over.
///
/// # Errors
/// A sentence for the client, about one field or the whole. Texts of the client are shortened.
pub(crate) fn read<T: DeserializeOwned>(whole: &str, json: &[u8]) -> Result<T, String> {
    // A list would be read as the fields in their order.
    if json.trim_ascii_start().starts_with(b"[") {
        return Err(format!("{whole} is a list, an object is accepted"));
    }
    let not_json = |err: &serde_json::Error| format!("{whole} is not JSON: {err}");
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|err| {
        if !err.inner().is_data() {
            return not_json(err.inner());
        }
        let cause = err.inner().to_string();
        let cause = cause.rsplit_once(" at line ").map_or(&*cause, |(cause, _position)| cause);
        match err.path().iter().next() {
            Some(_) => tell(&format!("field `{}`", shortened(&err.path().to_string())), cause),
            None => tell(whole, cause),
        }
    })?;
    reader.end().map_err(|err| not_json(&err))?;
    Ok(value)
}

/// What serde says about `subject`, as a sentence.
pub(crate) fn tell(subject: &str, cause: &str) -> String {
    if let Some(why) = cause.strip_prefix("UUID parsing failed") {
        return format!("{subject} is not a UUID{why}");
    }
    let Some((came, accepted)) = cause.rsplit_once(", expected ") else { return format!("{subject}: {cause}") };
    let kinds = ["invalid type: ", "invalid value: ", "unknown variant "];
    let came = kinds.iter().find_map(|kind| came.strip_prefix(kind)).unwrap_or(came);
    format!("{subject} is {}, {} is accepted", shortened(&plain(came)), plain(accepted))
}

fn plain(text: &str) -> String {
    let known = WORDS.iter().find_map(|(beginning, word)| Some((*word, text.strip_prefix(beginning)?)));
    match known {
        Some((word, value)) if word.ends_with(' ') => format!("{word}{value}"),
        Some((word, _name)) => word.to_owned(),
        None => text.to_owned(),
    }
}

/// The beginning of a client's text, as a sentence shows it.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", text.split_at(end).0),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode_text;

    #[test]
    fn a_field_of_a_wrong_type_is_told_in_the_contracts_words() {
        for (frame, told) in [
            (r#"{"type":7}"#, "field `type` is the number `7`, a string is accepted"),
            (r#"{"content":true}"#, "field `content` is the boolean `true`, a string is accepted"),
            (r#"{"token":{}}"#, "field `token` is an object, a string is accepted"),
            (r#"{"new":null}"#, "field `new` is null, a boolean is accepted"),
            (
                r#"{"after_seq":"x"}"#,
                "field `after_seq` is the string \"x\", a whole number that is not negative is accepted",
            ),
            (
                r#"{"after_seq":-1}"#,
                "field `after_seq` is the number `-1`, a whole number that is not negative is accepted",
            ),
            (r#"{"seq":1.5}"#, "field `seq` is the number `1.5`, a whole number that is not negative is accepted"),
            (r#"{"type":"attach","last":5000000000}"#, "field `last` is 5000000000, 1 to 1000 are accepted"),
            (r#"{"id":7}"#, "field `id` is the number `7`, a UUID is accepted"),
            (r#"{"turn_id":"x"}"#, "field `turn_id` is not a UUID: invalid character: found `x` at 0"),
            (r#"{"scope":7}"#, "field `scope` is the number `7`, a string is accepted"),
            (r#"{"scope":{"session":1}}"#, "field `scope` is an object, a string is accepted"),
            (r#"{"scope":"moon"}"#, "field `scope` is `moon`, one of `session`, `user`, `desk` is accepted"),
            (r#"{"files":"a"}"#, "field `files` is the string \"a\", a list is accepted"),
            (r#"{"files":[1]}"#, "field `files[0]` is the number `1`, a string is accepted"),
            (r#"{"timestamp":"x"}"#, "field `timestamp` is the string \"x\", an RFC 3339 time is accepted"),
            (r#"{"metadata":[]}"#, "field `metadata` is a list, an object is accepted"),
            (
                r#"{"metadata":{"a":{}}}"#,
                "field `metadata.a` is an object, a string, a number or a boolean is accepted",
            ),
            ("null", "the frame is null, an object is accepted"),
            ("[1]", "the frame is a list, an object is accepted"),
            ("[]", "the frame is a list, an object is accepted"),
            (r#"{"type":"a","type":"b"}"#, "the frame: duplicate field `type`"),
            ("{", "the frame is not JSON: EOF while parsing an object at line 1 column 1"),
        ] {
            assert_eq!(decode_text(frame).unwrap_err().message, told, "{frame}");
        }
    }

    #[test]
    fn a_long_text_is_told_by_its_beginning() {
        let (long, shown) = ("ü".repeat(5000), "ü".repeat(20));
        for frame in [format!(r#"{{"metadata":{{"{long}":[]}}}}"#), format!(r#"{{"after_seq":"{long}"}}"#)] {
            let message = decode_text(&frame).unwrap_err().message;
            assert!(message.contains(&shown) && message.contains('…') && message.chars().count() < 200, "{message}");
        }
    }
}
