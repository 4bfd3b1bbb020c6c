//! What a model is shown of the files that ride with a message.
//!
//! Images go to models that look at them; what is text goes as text, under its name; of everything else, and of what is
//! too large, the model is told the name, the type and the size.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{File, Message, Role};

/// Most bytes of a text file that are shown: some 8,000 tokens of English.
pub const TEXT_BYTES_MAX: usize = 32 << 10;

/// Largest image that is shown, in bytes: what Anthropic takes
/// (<https://docs.anthropic.com/en/docs/build-with-claude/vision>); OpenAI takes larger ones.
pub const IMAGE_BYTES_MAX: usize = 5_000_000;

/// The types of images that all three vendors take.
const IMAGES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/// Text, although it is not called so.
const TEXTS: [&str; 9] = [
    "application/json",
    "application/xml",
    "application/yaml",
    "application/x-yaml",
    "application/toml",
    "application/csv",
    "application/javascript",
    "application/x-sh",
    "application/sql",
];

/// A message as a model sees it.
pub(super) struct Shown<'a> {
    /// what was said, and what is text of its files
    pub(super) text: Cow<'a, str>,
    /// the files that go as images
    pub(super) images: Vec<&'a File>,
}

/// Divides a message into text and images; `images` says whether the model looks at them. Only people's go to it: no
/// vendor takes images that a model is said to have sent.
pub(super) fn show(message: &Message, images: bool) -> Shown<'_> {
    let looks = images && message.role == Role::User;
    let (images, others): (Vec<_>, Vec<_>) = message.files.iter().partition(|file| looks && image(file));
    if others.is_empty() {
        return Shown { text: Cow::Borrowed(&message.content), images };
    }
    let mut parts: Vec<_> = others.into_iter().map(describe).collect();
    if !message.content.is_empty() {
        parts.push(message.content.to_string());
    }
    Shown { text: Cow::Owned(parts.join("\n\n")), images }
}

/// The bytes of a file as vendors take them within JSON.
pub(super) fn base64(file: &File) -> String {
    STANDARD.encode(&file.bytes)
}

fn image(file: &File) -> bool {
    IMAGES.contains(&&*file.media_type) && (1..=IMAGE_BYTES_MAX).contains(&file.bytes.len())
}

fn describe(file: &File) -> String {
    let File { name, media_type, bytes } = file;
    let plain = media_type.starts_with("text/") || media_type.ends_with("+json") || media_type.ends_with("+xml");
    if !plain && !TEXTS.contains(&&**media_type) {
        return format!("[File `{name}`, {media_type}, {} bytes: its content is not shown]", bytes.len());
    }
    let shown = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    // A character that the limit cuts apart is left out; other bytes that are no UTF-8 are replaced.
    let whole = shown.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    });
    let cut = shown.len() < bytes.len();
    let text = if cut { whole.trim_end_matches(char::REPLACEMENT_CHARACTER) } else { &whole };
    let end = if cut {
        format!("[End of what is shown of `{name}`: {} of {} bytes]", shown.len(), bytes.len())
    } else {
        format!("[End of `{name}`]")
    };
    format!("[File `{name}`, {media_type}]\n{}\n{end}", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, media_type: &str, bytes: &[u8]) -> File {
        File { name: name.into(), media_type: media_type.into(), bytes: bytes.to_vec().into() }
    }

    fn message(files: Vec<File>) -> Message {
        Message { files, ..Message::text(Role::User, "What is it?") }
    }

    #[test]
    fn images_go_to_models_that_look_and_others_are_told_their_names() {
        let images = vec![file("a.png", "image/png", b"p"), file("b.svg", "image/svg+xml", b"<svg/>")];
        let message = message(images);
        let shown = show(&message, true);
        assert_eq!(shown.images.iter().map(|file| &*file.name).collect::<Vec<_>>(), ["a.png"]);
        assert_eq!(shown.text, "[File `b.svg`, image/svg+xml]\n<svg/>\n[End of `b.svg`]\n\nWhat is it?");
        let shown = show(&message, false);
        assert!(shown.images.is_empty());
        assert!(shown.text.starts_with("[File `a.png`, image/png, 1 bytes: its content is not shown]\n\n"));
        assert!(show(&Message { role: Role::Assistant, ..message.clone() }, true).images.is_empty());
    }

    #[test]
    fn an_image_that_is_empty_or_too_large_is_told_by_name() {
        let large = vec![0; IMAGE_BYTES_MAX + 1];
        let message = message(vec![file("a.png", "image/png", &large), file("b.png", "image/png", b"")]);
        let shown = show(&message, true);
        assert!(shown.images.is_empty());
        assert!(shown.text.contains("`a.png`, image/png, 5000001 bytes") && shown.text.contains("`b.png`"));
    }

    #[test]
    fn text_is_shown_up_to_its_limit_and_says_so() {
        let mut long = "ö".repeat(TEXT_BYTES_MAX).into_bytes();
        long.insert(0, b'x');
        for (media_type, bytes, text) in [
            ("text/plain", b"a\nb\n".as_slice(), "[File `f`, text/plain]\na\nb\n[End of `f`]".to_owned()),
            ("application/json", b"{}", "[File `f`, application/json]\n{}\n[End of `f`]".to_owned()),
            ("text/csv", b"1,\xff,2", "[File `f`, text/csv]\n1,\u{fffd},2\n[End of `f`]".to_owned()),
            (
                "text/plain",
                &long,
                format!(
                    "[File `f`, text/plain]\nx{}\n[End of what is shown of `f`: 32768 of 65537 bytes]",
                    "ö".repeat((TEXT_BYTES_MAX - 1) / 2)
                ),
            ),
            ("application/pdf", b"%PDF", "[File `f`, application/pdf, 4 bytes: its content is not shown]".to_owned()),
        ] {
            assert_eq!(describe(&file("f", media_type, bytes)), text);
        }
    }

    #[test]
    fn a_message_without_files_is_what_was_said() {
        let message = message(Vec::new());
        assert!(matches!(show(&message, true).text, Cow::Borrowed("What is it?")));
    }
}
