//! Answers that hold a whole log. They are written as it is read, page by page, whatever its length.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;

use crate::{
    chat::{Entry, Sender, Session, Timestamp, TurnState, UserId},
    clock::now,
    connection, markdown,
    protocol::{Presented, ServerFrame},
    router::Log,
};

/// What an array of an answer holds of each entry, as JSON; `None` leaves it out.
pub(super) type Write = Box<dyn Fn(Entry) -> Option<Vec<u8>> + Send>;

/// An object: the fields of `head`, then an array for each of `sections`.
pub(super) fn json(head: &impl Serialize, sections: Vec<(&'static str, Log, Write)>) -> serde_json::Result<Body> {
    let mut text = serde_json::to_vec(head)?;
    // The brace that closes it comes at the end.
    text.pop();
    Ok(body(async_stream::try_stream! {
        for (name, mut log, write) in sections {
            text.extend_from_slice(format!(",\"{name}\":[").as_bytes());
            let mut separator: &[u8] = b"";
            while let Some(entries) = log.next().await {
                for written in entries.map_err(io::Error::other)?.into_iter().filter_map(&write) {
                    text.extend_from_slice(separator);
                    text.extend_from_slice(&written);
                    separator = b",";
                }
                yield Bytes::from(std::mem::take(&mut text));
            }
            text.push(b']');
        }
        text.push(b'}');
        yield Bytes::from(std::mem::take(&mut text));
    }))
}

fn body(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    Body::from_stream(pieces)
}

/// What the section holds of an entry is what `of` makes of it.
pub(super) fn values<T: Serialize>(of: impl Fn(Entry) -> Option<T> + Send + 'static) -> Write {
    Box::new(move |entry| of(entry).and_then(|value| serde_json::to_vec(&value).ok()))
}

/// An entry as the frame that `attach` replays.
pub(super) fn frame(entry: &Entry, reader: &UserId) -> ServerFrame {
    let html = connection::html(entry);
    Presented { entry, re: None, reader, html }.whole()
}

/// The same for whoever has a link: without what is between a user and their client.
pub(super) fn public_frame(entry: Entry) -> ServerFrame {
    let entry = Entry { client_id: None, rating: None, ..entry };
    frame(&entry, &entry.user_id)
}

/// A conversation for people: a heading for each entry, its text as it is.
pub(super) fn markdown(session: &Session, mut log: Log) -> Body {
    let name = session.name.as_deref().unwrap_or(UNNAMED);
    let mut text = format!("# {name}\n\nSession {}, exported {}.\n", session.id, now());
    body(async_stream::try_stream! {
        while let Some(entries) = log.next().await {
            for entry in entries.map_err(io::Error::other)? {
                section(&entry, &mut text);
            }
            yield Bytes::from(std::mem::take(&mut text));
        }
        yield Bytes::from(std::mem::take(&mut text));
    })
}

/// The file name of a session without a name.
pub(super) const UNNAMED: &str = "Conversation";

fn section(entry: &Entry, out: &mut String) {
    let who = match entry.sender {
        Sender::User => "User",
        Sender::Ai => "Assistant",
        Sender::Admin => "Staff",
        Sender::System => "System",
    };
    let how = match entry.state {
        Some(TurnState::Stopped) => ", stopped",
        Some(TurnState::Interrupted) => ", interrupted",
        Some(TurnState::Failed) => ", failed",
        _ => "",
    };
    let model = entry.model_id.as_deref().map(|id| format!(" ({id})")).unwrap_or_default();
    out.push_str(&format!("\n## {who}{model}, {}{how}\n\n", readable(entry.created_at)));
    out.push_str(&entry.content);
    out.push('\n');
    if let Some(fence) = markdown::open_fence(&entry.content) {
        // The next heading is not part of this code.
        out.push_str(&fence);
        out.push('\n');
    }
    for file in &entry.files {
        out.push_str(&format!("\n- File `{file}`\n"));
    }
}

/// To the second: `2026-11-24 07:05:45 UTC`.
fn readable(at: Timestamp) -> String {
    let text = at.to_string().replacen('T', " ", 1);
    format!("{} UTC", text.split('.').next().unwrap_or(&text))
}

/// The header that has a browser save an answer as a file (RFC 6266, section 4.3; RFC 8187, section 3.2.1).
pub(super) fn attachment(name: Option<&str>, extension: &str) -> String {
    let clean: String = name
        .unwrap_or(UNNAMED)
        .chars()
        .map(|c| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c })
        .collect();
    let encoded = clean.trim_matches(['.', ' ']).bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    });
    format!("attachment; filename*=UTF-8''{encoded}.{extension}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_after_its_session_whatever_that_is_called() {
        for (name, expected) in [
            (Some("Parcel 7"), "Parcel%207"),
            (Some("../..\\etc\"\n"), "_.._etc__"),
            (Some("日本"), "%E6%97%A5%E6%9C%AC"),
            (None, "Conversation"),
        ] {
            assert_eq!(attachment(name, "md"), format!("attachment; filename*=UTF-8''{expected}.md"), "{name:?}");
        }
    }
}
