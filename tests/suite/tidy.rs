//! The repository's own rules, checked on its text: who imports whom, sizes, names, metrics, tests, words.
//!
//! Each rule is a function from files to faults, and has a test that plants a fault and finds it.

mod source;

use std::fmt;

use source::{Source, all, root, words};

/// Who may import whom. Everything may import [`EVERYWHERE`], and itself.
const IMPORTS: [(&str, &[&str]); 16] = [
    ("main", &["cli"]),
    ("cli", &["server", "client", "bench", "config", "auth", "protocol", "llm", "store", "bus", "transport"]),
    ("bench", &["client", "protocol", "auth", "config", "store"]),
    ("client", &["protocol"]),
    ("http", &["connection", "router", "protocol", "auth", "limit", "transport", "markdown"]),
    ("transport", &["connection", "router", "protocol", "auth", "limit"]),
    ("connection", &["router", "protocol", "auth", "limit", "markdown"]),
    ("router", &["protocol", "store", "bus", "llm", "uploads", "notify", "limit", "auth", "markdown"]),
    ("uploads", &["store", "bus"]),
    ("notify", &["store", "bus"]),
    ("auth", &["store", "bus"]),
    ("limit", &["store", "bus"]),
    ("store", &[]),
    ("bus", &[]),
    ("llm", &["markdown"]),
    ("protocol", &[]),
];
/// The vocabulary, and what has no dependencies of its own.
const EVERYWHERE: [&str; 5] = ["chat", "clock", "metrics", "lifecycle", "woken"];
/// How values look in a file. Whoever has such a value needs its form, and depends on no file.
const FORMS: [&str; 3] = ["config::secret", "config::duration", "config::Address"];
/// These import nothing of ours, not even the above.
const LEAVES: [&str; 5] = ["chat", "markdown", "metrics", "lifecycle", "woken"];
/// These wire or describe everything, except what stands above them.
const WIRING: [(&str, &[&str]); 2] =
    [("server", &["cli", "client", "bench"]), ("config", &["cli", "client", "bench", "server"])];

/// Crates that may be named in some places only, by the beginning of the path below `src/`.
const CRATES: [(&str, &[&str]); 8] = [
    ("quinn", &["transport", "client"]),
    ("h3", &["transport", "client"]),
    ("h3_quinn", &["transport", "client"]),
    ("axum", &["http", "transport", "server"]),
    ("rusqlite", &["store/sqlite"]),
    ("async_nats", &["bus/nats"]),
    ("mongodb", &["store/mongo"]),
    // Providers; the keys of an identity provider; the probe that a container runs; a client without QUIC.
    ("reqwest", &["llm/", "auth/jwks", "cli/healthcheck", "client", "bench/"]),
];

const LINES_MAX: usize = 500;
const NO_HOME: [&str; 10] =
    ["util", "helper", "common", "manager", "service", "types", "models", "core", "misc", "prelude"];
/// The layout that the customer fixed. Dot-files are there for tools; the last two are git-ignored.
const TOP: [&str; 10] =
    ["Cargo.toml", "Cargo.lock", "src", "certs", "tests", "deployments", "Dockerfile", "README.md", "target", "data"];
const LABELS: [&str; 13] = [
    "transport",
    "provider",
    "model",
    "outcome",
    "code",
    "reason",
    "type",
    "route",
    "method",
    "status",
    "operation",
    "state",
    "direction",
];
const PROMISES: [&str; 17] = [
    "robust",
    "blazing",
    "production-ready",
    "seamless",
    "cutting-edge",
    "world-class",
    "enterprise-grade",
    "state-of-the-art",
    "effortless",
    "best-in-class",
    "battle-tested",
    "high-performance",
    "next-generation",
    "bulletproof",
    "rock-solid",
    "lightning-fast",
    "revolutionary",
];

#[derive(PartialEq, Eq)]
struct Fault {
    path: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule, what } = self;
        write!(f, "{path}:{line}: {rule}: {what}")
    }
}

impl Fault {
    fn new(source: &Source, line: usize, rule: &'static str, what: impl Into<String>) -> Self {
        Self { path: source.path.clone(), line, rule, what: what.into() }
    }
}

fn judge(check: fn(&[Source]) -> Vec<Fault>) {
    let found: Vec<_> = check(&all()).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
}

/// Asserts that `check` finds exactly one fault in a planted file, at `line`, and names `what`.
fn finds(check: fn(&[Source]) -> Vec<Fault>, path: &str, text: &str, line: usize, what: &str) {
    let found = check(&[Source::new(path, text)]);
    let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "expected one fault, got {shown:?}");
    assert_eq!((found[0].path.as_str(), found[0].line), (path, line), "got {shown:?}");
    assert!(found[0].what.contains(what), "expected {what}, got {shown:?}");
}

/// The paths that begin with `crate::`, in `use` lists too: two names of each, or one where there is one.
fn imported(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in words(code).filter(|(_, word)| *word == "crate") {
        let Some(rest) = code[at..].strip_prefix("crate::") else { continue };
        let start = at + "crate::".len();
        let Some(list) = rest.strip_prefix('{') else {
            found.push((source.line_at(start), two_names(rest)));
            continue;
        };
        let mut depth = 0_usize;
        let mut first = true;
        for (offset, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                _ if first && (c.is_alphabetic() || c == '_') => {
                    first = false;
                    found.push((source.line_at(start + 1 + offset), two_names(&list[offset..])));
                }
                _ => {}
            }
        }
    }
    found
}

fn two_names(path: &str) -> String {
    let mut names = words(path);
    let Some((at, first)) = names.next() else { return String::new() };
    let second = names.next().filter(|(next, _)| path[at + first.len()..*next].trim_end() == "::");
    second.map_or_else(|| first.to_owned(), |(_, second)| format!("{first}::{second}"))
}

fn may_import(module: &str, path: &str) -> bool {
    let name = path.split("::").next().unwrap_or_default();
    if FORMS.contains(&path) {
        return true;
    }
    if module == name || module == "lib" || name.starts_with(char::is_uppercase) {
        return true;
    }
    if let Some((_, above)) = WIRING.iter().find(|(wiring, _)| *wiring == module) {
        return !above.contains(&name);
    }
    if LEAVES.contains(&module) {
        return false;
    }
    let listed = IMPORTS.iter().find(|(from, _)| *from == module).is_some_and(|(_, to)| to.contains(&name));
    listed || EVERYWHERE.contains(&name)
}

fn imports(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let Some(module) = source.module() else { continue };
        for (line, path) in imported(source) {
            if !may_import(module, &path) {
                faults.push(Fault::new(source, line, "imports", format!("`{module}` may not import `{path}`")));
            }
        }
    }
    faults
}

#[test]
fn modules_import_only_what_stands_below_them() {
    judge(imports);
}

#[test]
fn a_forbidden_import_is_found() {
    let text = "use std::fmt;\nuse crate::router::Router;\n";
    finds(imports, "src/store/mod.rs", text, 2, "`store` may not import `router::Router`");
    finds(imports, "src/http/ops.rs", "use crate::{\n    chat::{A, B},\n    store::Store,\n};\n", 3, "`store::Store`");
    finds(imports, "src/chat.rs", "fn f() { crate::metrics::X }\n", 1, "`metrics::X`");
    finds(imports, "src/config.rs", "use crate::server;\n", 1, "`server`");
}

fn crates(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let Some(path) = source.path.strip_prefix("src/") else { continue };
        for (name, places) in CRATES {
            if places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            let named = words(&source.code).filter(|(_, word)| *word == name);
            let paths = named.filter(|(at, _)| {
                let (before, after) = source.code.split_at(*at);
                after[name.len()..].starts_with("::") || before.ends_with("use ")
            });
            faults.extend(paths.map(|(at, _)| {
                Fault::new(source, source.line_at(at), "crates", format!("`{name}` belongs to {}", places.join(", ")))
            }));
        }
    }
    faults
}

#[test]
fn crates_are_named_only_where_they_belong() {
    judge(crates);
}

#[test]
fn a_crate_out_of_place_is_found() {
    finds(crates, "src/router/mod.rs", "\nuse axum::Router;\n", 2, "`axum`");
    finds(crates, "src/cli/serve.rs", "fn f(q: quinn::Endpoint) {}\n", 1, "`quinn`");
    finds(crates, "src/store/mod.rs", "use rusqlite::Connection;\n", 1, "`rusqlite`");
    finds(crates, "src/store/open.rs", "fn f(client: mongodb::Client) {}\n", 1, "`mongodb`");
}

fn sizes(sources: &[Source]) -> Vec<Fault> {
    let code = sources.iter().filter(|source| !source.path.ends_with(".md"));
    let long = code.filter(|source| source.text.lines().count() > LINES_MAX);
    long.map(|source| {
        let lines = source.text.lines().count();
        Fault::new(source, lines, "sizes", format!("{lines} lines, at most {LINES_MAX}"))
    })
    .collect()
}

#[test]
fn files_are_short() {
    judge(sizes);
}

#[test]
fn a_long_file_is_found() {
    finds(sizes, "src/ui/chat.js", &"x\n".repeat(LINES_MAX + 1), LINES_MAX + 1, "501 lines");
}

fn names(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let mut blame = |line, name: &str| {
            if NO_HOME.iter().any(|bad| name.starts_with(bad)) {
                faults.push(Fault::new(source, line, "names", format!("`{name}` is a grab-bag's name")));
            }
        };
        for part in source.path.split('/') {
            blame(1, part);
        }
        let after_mod = words(&source.code).zip(words(&source.code).skip(1)).filter(|((_, word), _)| *word == "mod");
        for (_, (at, name)) in after_mod {
            // The declaration of a file has been counted with the file.
            if source.code[at + name.len()..].trim_start().starts_with('{') {
                blame(source.line_at(at), name);
            }
        }
    }
    faults
}

#[test]
fn every_module_has_a_name_that_says_what_is_in_it() {
    judge(names);
}

#[test]
fn a_grab_bag_is_found() {
    finds(names, "src/http/utils.rs", "", 1, "`utils.rs`");
    finds(names, "src/bus/mod.rs", "\nmod helpers {}\n", 2, "`helpers`");
}

fn is_top(name: &str) -> bool {
    name.starts_with('.') || TOP.contains(&name)
}

#[test]
fn the_top_level_is_the_one_that_was_agreed() {
    let entries = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange: Vec<_> = entries.filter(|name| !is_top(name)).collect();
    assert!(strange.is_empty(), "layout: these do not belong at the top: {strange:?}");
}

#[test]
fn a_strange_entry_at_the_top_is_found() {
    assert!(is_top("src") && is_top(".gitignore"));
    assert!(!is_top("docs") && !is_top("scripts"));
}

fn metrics(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let Some(declared) = sources.iter().find(|source| source.path == "src/metrics.rs") else { return faults };
    let kinds = ["counter", "counters", "gauge", "gauges", "histogram", "histograms"];
    for (index, line) in declared.text.lines().enumerate() {
        let Some((name, kind)) = line.strip_prefix("    ").and_then(|line| line.strip_suffix(';')?.split_once(": "))
        else {
            continue;
        };
        let (kind, labels) = kind.split_once('[').unwrap_or((kind, ""));
        if !kinds.contains(&kind) {
            continue;
        }
        let users = sources.iter().filter(|source| source.path.starts_with("src/") && source.path != declared.path);
        if !users.flat_map(|source| words(&source.code)).any(|(_, word)| word == name) {
            faults.push(Fault::new(declared, index + 1, "metrics", format!("nothing counts `{name}`")));
        }
        for label in labels.split('"').skip(1).step_by(2).filter(|label| !LABELS.contains(label)) {
            faults.push(Fault::new(declared, index + 1, "metrics", format!("`{label}` is not a label of the list")));
        }
    }
    faults
}

// checklist 72
#[test]
fn every_metric_is_counted_and_its_labels_are_of_the_closed_list() {
    judge(metrics);
}

#[test]
fn a_metric_without_use_or_with_an_open_label_is_found() {
    finds(metrics, "src/metrics.rs", "metrics! {\n    open: gauge;\n}\n", 2, "`open`");
    let user = Source::new("src/bus/mod.rs", "fn f() { m.seen.inc() }");
    let found = metrics(&[Source::new("src/metrics.rs", "    seen: counters[\"code\", \"user_id\"];\n"), user]);
    assert_eq!(found.len(), 1);
    assert!(found[0].what.contains("`user_id`"), "got {}", found[0]);
}

/// Where the tests of a file begin: everything in `tests/`, and what follows `#[cfg(test)]` elsewhere.
fn tests_begin(source: &Source) -> Option<usize> {
    let whole = source.path.starts_with("tests/") || source.path.ends_with("/tests.rs");
    if whole { Some(0) } else { source.code.find("#[cfg(test)]") }
}

fn shortcuts(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.path.ends_with(".rs")) {
        let tests = tests_begin(source).unwrap_or(usize::MAX);
        for (at, word) in words(&source.code) {
            let (before, after) = (&source.code[..at], &source.code[at + word.len()..]);
            let attribute = before.ends_with("#[") || before.ends_with("#![");
            let bad = match word {
                "allow" | "ignore" => attribute,
                "should_panic" => true,
                "sleep" => at >= tests && after.starts_with('('),
                _ => false,
            };
            if bad {
                faults.push(Fault::new(source, source.line_at(at), "shortcuts", format!("`{word}` is not used here")));
            }
        }
    }
    faults
}

#[test]
fn no_lint_is_allowed_no_test_ignored_and_no_test_sleeps() {
    judge(shortcuts);
}

#[test]
fn a_shortcut_is_found() {
    finds(shortcuts, "src/chat.rs", "\n#[allow(dead_code)]\nfn f() {}\n", 2, "`allow`");
    finds(shortcuts, "tests/suite/a.rs", "#[test]\n#[ignore]\nfn f() {}\n", 2, "`ignore`");
    finds(shortcuts, "src/chat.rs", "#[should_panic]\n", 1, "`should_panic`");
    finds(shortcuts, "src/bus/mod.rs", "fn f() { sleep(x) }\n#[cfg(test)]\nmod tests { sleep(1); }", 3, "`sleep`");
}

/// The tests of a file: the offset of the name, the name, and the body.
fn tests_of(source: &Source) -> Vec<(usize, &str, &str)> {
    let code = source.code.as_str();
    let attributes = ["#[test]", "#[tokio::test"];
    let marked = attributes.iter().flat_map(|attribute| code.match_indices(attribute)).map(|(at, _)| at);
    // Behaviours that run over both transports, or over every store, are named in a list.
    let lists = [("over_both!", ')'), ("over_stores!", '}')].into_iter().flat_map(|(list, end)| {
        code.match_indices(list).filter_map(move |(at, _)| code[at..].split_once(end).map(|(list, _)| list))
    });
    let listed = lists.flat_map(words).filter_map(|(_, name)| code.find(&format!("async fn {name}(")));
    let tests = marked.chain(listed).filter_map(|at| {
        let keyword = at + code[at..].find("fn ")? + 3;
        // Within a macro the name, and the body with it, comes from elsewhere.
        let (_, name) = words(&code[keyword..]).next().filter(|(at, _)| *at == 0)?;
        let open = keyword + code[keyword..].find('{')?;
        let mut depth = 0_usize;
        let length = code[open..].find(|c| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        Some((keyword, name, &code[open..open + length]))
    });
    tests.collect()
}

fn assertions(sources: &[Source]) -> Vec<Fault> {
    let proofs = ["assert", "matches!", "expect_err", "judge(", "finds(", "check"];
    let mut faults = Vec::new();
    for source in sources {
        for (at, name, body) in tests_of(source) {
            if !proofs.iter().any(|proof| body.contains(proof)) {
                faults.push(Fault::new(source, source.line_at(at), "assertions", format!("`{name}` asserts nothing")));
            }
            if name.starts_with("test_") {
                faults.push(Fault::new(
                    source,
                    source.line_at(at),
                    "assertions",
                    format!("`{name}` says `test` twice"),
                ));
            }
        }
    }
    faults
}

#[test]
fn every_test_asserts_something() {
    judge(assertions);
}

#[test]
fn a_test_without_assertion_is_found() {
    let text = "#[test]\nfn good() { assert_eq!(1, 1); }\n\n#[tokio::test]\nasync fn idle() { if a { run() } }\n";
    finds(assertions, "tests/suite/a.rs", text, 5, "`idle`");
}

fn promises(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        let prose = |line: &str| match source.path.rsplit('.').next() {
            Some("md") => true,
            Some("rs") => line.trim_start().starts_with("//"),
            Some("toml") => line.starts_with("description"),
            _ => false,
        };
        for (index, line) in source.text.lines().enumerate().filter(|(_, line)| prose(line)) {
            let lower = line.to_lowercase();
            let promised = PROMISES.iter().find(|promise| lower.contains(**promise));
            faults.extend(promised.map(|promise| {
                Fault::new(source, index + 1, "promises", format!("`{promise}`: say what it does instead"))
            }));
        }
    }
    faults
}

#[test]
fn texts_say_what_is_and_promise_nothing() {
    judge(promises);
}

#[test]
fn a_promise_is_found() {
    finds(promises, "README.md", "# x\nA Blazing fast server.\n", 2, "`blazing`");
    finds(promises, "src/lib.rs", "//! A robust server.\n", 1, "`robust`");
}
