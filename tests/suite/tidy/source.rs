//! The repository's own files, as the tidy checks read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Made by tools, or fetched: not ours to judge.
const FOREIGN: [&str; 5] = ["target", "node_modules", "output", "corpus", "artifacts"];
const TEXT: [&str; 10] = ["rs", "js", "mjs", "css", "html", "py", "sh", "md", "toml", "yml"];

/// One text file.
pub(super) struct Source {
    /// its path from the root of the repository, with `/`
    pub(super) path: String,
    /// all of it
    pub(super) text: String,
    /// Rust without comments, strings and characters, which are blanked; lines stay where they are
    pub(super) code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { blank(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    /// The name below `src/` that the file belongs to: `http` for `src/http/ops.rs`.
    pub(super) fn module(&self) -> Option<&str> {
        let name = self.path.strip_prefix("src/")?.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name))
    }

    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.code.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file of ours below `src`, `tests`, `deployments` and `certs`, and those at the top.
pub(super) fn all() -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "deployments", "certs"] {
        walk(&root().join(folder), &mut paths);
    }
    paths.extend(["README.md", "Cargo.toml"].map(|name| root().join(name)).into_iter().filter(|path| path.exists()));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        Source::new(&name, &fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if path.is_dir() && !FOREIGN.contains(&name) {
            walk(&path, found);
        } else if kind.map_or(name == "run", |kind| TEXT.contains(&kind)) {
            found.push(path);
        }
    }
}

/// Identifiers of `code` and where they begin.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(part)?;
        let length = code[start..].find(|c| !part(c)).unwrap_or(code.len() - start);
        at = start + length;
        Some((start, &code[start..at]))
    })
}

/// Puts spaces in place of comments, strings and characters.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match rest {
            [b'/', b'/', ..] => at + find(rest, b"\n"),
            [b'/', b'*', ..] => at + find(rest, b"*/") + 2,
            [b'r', b'"' | b'#', ..] if at == 0 || !word(bytes[at - 1]) => raw_string(bytes, at),
            [b'"', ..] => quoted(bytes, at),
            [b'\'', b'\\', ..] => at + 3 + find(&rest[3..], b"'") + 1,
            [b'\'', _, b'\'', ..] => at + 3,
            // A character of several bytes; what is longer is a lifetime.
            [b'\'', first, ..] if *first >= 0x80 => at + 1 + find(&rest[1..], b"'") + 1,
            _ => at,
        };
        let end = end.min(bytes.len());
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

const fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `needle` is, or the length of all where it is not.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap_or(bytes.len())
}

fn quoted(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string(bytes: &[u8], start: usize) -> usize {
    let hashes = bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(start + 1 + hashes) != Some(&b'"') {
        return start;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    let body = start + 2 + hashes;
    body + find(&bytes[body..], &end) + end.len()
}

#[test]
fn comments_strings_and_characters_are_blanked_and_lines_stay() {
    let text = "a /* b\n c */ d // e\n\"f \\\" g\" h r#\"i \" j\"# k 'l' '\\n' '\\'' &'m x 'ä' n";
    let code = blank(text);
    let kept: Vec<_> = words(&code).map(|(_, word)| word).collect();
    assert_eq!(kept, ["a", "d", "h", "k", "m", "x", "n"]);
    assert_eq!(code.lines().count(), text.lines().count());
}
