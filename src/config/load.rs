//! [`load`]: file, environment and flags become one [`Config`], or the list of everything that is wrong.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_path_to_error::Segment;

use super::{
    Config, check,
    environment::{self, Environment},
    fault::{Fault, Faults, Warning},
    secret::REDACTED,
    value::Value,
};

/// Largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is accepted as encryption keys; in the environment and in flags it is JSON.
const ENCRYPTION_KEYS: &str = "a list such as `[{id = 1, key = \"...\"}]`, in the environment and in flags \
                               `[{\"id\": 1, \"key\": \"...\"}]`, with what `openssl rand -base64 32` prints";

/// A configuration without faults.
#[derive(Debug)]
pub struct Loaded {
    /// what the server is started with
    pub config: Config,
    /// what the operator should know
    pub warnings: Vec<Warning>,
}

/// Reads the file (or else the one that `CHATBOX_CONFIG` in `env` names, or none), puts `env` over it and
/// `overrides`, dotted keys with their values, over both.
///
/// # Errors
/// Every fault at once. They name keys, where they were set, and values, but no secrets.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Loaded, Faults> {
    let mut env = environment::read(env);
    let file = file.map(Path::to_path_buf).or_else(|| env.file.take().map(PathBuf::from));
    let mut merged = Merged {
        tree: Value::table(),
        origins: BTreeMap::new(),
        file: file.as_deref().map(|path| path.display().to_string()),
        warnings: std::mem::take(&mut env.warnings),
        faults: std::mem::take(&mut env.faults),
    };
    if let Some(path) = &file {
        match read_file(path) {
            Ok(tree) => merged.tree = tree,
            // What else is wrong cannot be told without the file.
            Err(problem) => return Err(Faults(vec![Fault::new("--config", problem)])),
        }
    }
    merged.lay_over(env, overrides);
    merged.finish()
}

struct Merged {
    tree: Value,
    /// who set the value at a dotted path, where it was not the file
    origins: BTreeMap<String, String>,
    file: Option<String>,
    warnings: Vec<Warning>,
    faults: Vec<Fault>,
}

impl Merged {
    fn lay_over(&mut self, env: Environment, overrides: &[(String, String)]) {
        for setting in env.settings {
            self.set(&setting.path, &setting.text, &setting.variable);
        }
        for setting in env.former {
            let (key, name) = (setting.path.join("."), &setting.variable);
            if self.tree.find(&setting.path).is_some() {
                let by = self.origin(&key).unwrap_or_default();
                self.warnings.push(Warning(format!("{name} is ignored: `{key}` is set by {by}")));
            } else {
                let modern = environment::variable(&setting.path);
                self.warnings.push(Warning(format!("{name} is read as `{key}`: set {modern} instead")));
                self.set(&setting.path, &setting.text, name);
            }
        }
        for (key, text) in overrides {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            self.set(&path, text, "a flag");
        }
    }

    fn set(&mut self, path: &[String], text: &str, origin: &str) {
        let key = path.join(".");
        match self.tree.set(path, Value::Untyped(text.to_owned())) {
            Ok(()) => drop(self.origins.insert(key, origin.to_owned())),
            Err(blocked) => {
                let problem = format!("`{}` is not a table", blocked.join("."));
                self.faults.push(Fault::new(key, problem).set_by(origin));
            }
        }
    }

    fn finish(mut self) -> Result<Loaded, Faults> {
        self.placeholders();
        let config = self.typed();
        let findings = check::check(&config);
        // One key may have several faults, none of which follows from another.
        let apart: Vec<_> = findings.faults.into_iter().filter(|(key, _)| !self.told(key)).collect();
        for (key, problem) in apart {
            self.add(&key, &problem);
        }
        self.warnings.extend(findings.warnings.into_iter().map(Warning));
        if self.faults.is_empty() { Ok(Loaded { config, warnings: self.warnings }) } else { Err(Faults(self.faults)) }
    }

    /// A deployment template that was not filled in must not start, whichever setting it left.
    fn placeholders(&mut self) {
        let mut found = Vec::new();
        self.tree.each_text(&mut Vec::new(), &mut |path, text| {
            // Prose for a model may speak of placeholders.
            let prose = path.last().is_some_and(|key| key == "system_prompt");
            if let Some(mark) = check::placeholder(text).filter(|_| !prose) {
                found.push((path.join("."), format!("holds the placeholder `{mark}`: set a real value")));
            }
        });
        for (key, problem) in found {
            self.report(&key, &problem);
        }
    }

    /// Reads the tree as a [`Config`]: takes out what does not fit, reports it, and tries again.
    fn typed(&mut self) -> Config {
        loop {
            let err = match serde_path_to_error::deserialize::<_, Config>(self.tree.clone()) {
                Ok(config) => return config,
                Err(err) => err,
            };
            let path: Vec<String> = err
                .path()
                .iter()
                .map_while(|segment| match segment {
                    Segment::Map { key } => Some(key.clone()),
                    _ => None,
                })
                .collect();
            let problem = self.problem(&path, &err.inner().to_string());
            self.report(&path.join("."), &problem);
            // What lies within JSON goes with the whole of it.
            if !(1..=path.len()).rev().any(|depth| self.tree.remove(path.get(..depth).unwrap_or_default())) {
                return Config::default();
            }
        }
    }

    /// What is wrong with a value, with the value shown as far as it may be.
    fn problem(&self, path: &[String], message: &str) -> String {
        if environment::secret(path) {
            let keys = path.last().is_some_and(|key| key.ends_with("_keys"));
            let accepted = if keys { ENCRYPTION_KEYS } else { "a text" };
            return format!("is not {accepted} (its value is not shown)");
        }
        let message = ["u16", "u32", "u64", "usize"].iter().fold(message.to_owned(), |message, number| {
            message.replace(&format!("expected {number}"), "expected a whole number that is not negative")
        });
        let message = match message.split_once("expected struct ") {
            Some((before, _name)) => format!("{before}expected a table"),
            None => message.replace("relative URL without a base", "not a URL such as `https://chat.example.com`"),
        };
        match self.tree.find(path) {
            Some(Value::Text(text) | Value::Untyped(text)) if text.contains('@') => message.replace(text, REDACTED),
            _ => message,
        }
    }

    /// Adds a fault, unless its key has one, or something inside it: what follows from a fault is not another.
    fn report(&mut self, key: &str, problem: &str) {
        if !self.told(key) {
            self.add(key, problem);
        }
    }

    /// Whether a key, or something inside it, has a fault.
    fn told(&self, key: &str) -> bool {
        let inside = |fault: &Fault| fault.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        self.faults.iter().any(|fault| fault.key == key || inside(fault))
    }

    fn add(&mut self, key: &str, problem: &str) {
        let key = if key.is_empty() { "(the whole)" } else { key };
        let problem = without_credentials(problem);
        self.faults.push(Fault { origin: self.origin(key), ..Fault::new(key, problem) });
    }

    /// Who set a key, or the table that it is in, or something in it.
    fn origin(&self, key: &str) -> Option<String> {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let lower = key.to_ascii_lowercase();
        let under = |one: &str, other: &str| {
            one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut set = self.origins.iter().map(|(path, origin)| (path.to_ascii_lowercase(), origin));
        set.find(|(path, _)| under(&lower, path) || under(path, &lower))
            .map(|(_, origin)| origin.clone())
            .or_else(|| self.tree.find(&path).and(self.file.clone()))
    }
}

/// A problem without the values that may hold a user name and a password: those with an `@`.
fn without_credentials(problem: &str) -> String {
    let marks = ['`', '"', ' '];
    let words = problem.split_inclusive(marks).map(|word| match word.contains('@') {
        true => format!("{REDACTED}{}", word.chars().last().filter(|last| marks.contains(last)).unwrap_or(' ')),
        false => word.to_owned(),
    });
    words.collect()
}

fn read_file(path: &Path) -> Result<Value, String> {
    let shown = path.display();
    let file = File::open(path).map_err(|err| format!("cannot open `{shown}`: {err}"))?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|err| format!("cannot read `{shown}`: {err}"))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(format!("`{shown}` is larger than 1 MiB"));
    }
    let parsed = toml::de::Deserializer::parse(&text).and_then(Value::deserialize);
    // The error's own text shows the line, which may hold a secret.
    parsed.map_err(|err| {
        let before = err.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("`{shown}` is not TOML: line {}: {}", before.matches('\n').count() + 1, err.message())
    })
}

impl Loaded {
    /// The configuration in effect, defaults included and providers in their order: secrets are redacted, and
    /// passwords in URLs. What is not set is not there.
    ///
    /// # Errors
    /// When a value has no form in TOML, such as a number beyond 64 bits.
    pub fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        let mut shown = toml::Table::try_from(&self.config)?;
        shown.iter_mut().for_each(|(_, value)| without_passwords(value));
        Ok(shown)
    }
}

fn without_passwords(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => {
            let Ok(mut url) = url::Url::parse(text) else { return };
            if url.password().is_some() && url.set_password(Some(REDACTED)).is_ok() {
                *text = url.to_string();
            }
        }
        toml::Value::Array(values) => values.iter_mut().for_each(without_passwords),
        toml::Value::Table(values) => values.iter_mut().for_each(|(_, value)| without_passwords(value)),
        _ => {}
    }
}
