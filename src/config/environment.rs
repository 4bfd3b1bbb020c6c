//! The environment: `CHATBOX_SECTION__KEY`, `…_FILE` for secrets, and the names of the predecessor.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use super::fault::{Fault, Warning};

/// One setting of the environment.
pub(super) struct Setting {
    /// the name of the variable
    pub(super) variable: String,
    /// where it belongs: `CHATBOX_LIMITS__STREAMS` is `limits`, `streams`
    pub(super) path: Vec<String>,
    /// the text, not yet typed
    pub(super) text: String,
}

/// Everything that the environment says.
#[derive(Default)]
pub(super) struct Environment {
    /// by path, so that a table comes before what is in it
    pub(super) settings: Vec<Setting>,
    /// under the names of the predecessor; they count where nothing else says anything
    pub(super) former: Vec<Setting>,
    pub(super) warnings: Vec<Warning>,
    pub(super) faults: Vec<Fault>,
    /// `CHATBOX_CONFIG`
    pub(super) file: Option<String>,
}

/// Names the file when no flag does.
const FILE: &str = "CHATBOX_CONFIG";

/// The filter of the log, read by the command line.
pub(crate) const LOG: &str = "CHATBOX_LOG";

/// The token of `chatbox chat`, read by the command line.
pub(crate) const TOKEN: &str = "CHATBOX_TOKEN";

const PREFIX: &str = "CHATBOX_";

/// Names of the predecessor for a server of MongoDB, and for the database on it.
const MONGO: &str = "MONGO_URI";
const DATABASE: &str = "MONGO_DATABASE";

/// The predecessor's key for what is stored: text of 32 bytes, each of which is one of the key.
const KEY: &str = "ENCRYPTION_KEY";

/// Largest file that a `…_FILE` variable may name, in bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Reads the variables. An empty one counts as not set, as templates with unset parts produce it.
pub(super) fn read(variables: impl IntoIterator<Item = (String, String)>) -> Environment {
    let mut environment = Environment::default();
    let mut former = BTreeMap::new();
    for (name, text) in variables {
        if text.is_empty() {
            continue;
        }
        if name == FILE {
            environment.file = Some(text);
        } else if let Some(key) = name.strip_prefix(PREFIX) {
            if name != LOG && name != TOKEN && !service_link(key, &text) {
                environment.own(&name, key, text);
            }
        } else if known(&name) {
            former.insert(name, text);
        }
    }
    environment.aliases(&former);
    environment.settings.sort_by(|one, other| one.path.cmp(&other.path));
    environment
}

impl Environment {
    fn own(&mut self, name: &str, key: &str, text: String) {
        let path: Vec<String> = key.to_ascii_lowercase().split("__").map(str::to_owned).collect();
        let Some(secret) = secret_in_file(&path) else { return self.put(name, path, text) };
        match read_secret(Path::new(&text)) {
            Ok(text) => self.put(name, secret, text),
            Err(problem) => self.faults.push(Fault::new(secret.join("."), problem).set_by(name)),
        }
    }

    fn put(&mut self, variable: &str, path: Vec<String>, text: String) {
        if let Some(other) = self.settings.iter().find(|setting| setting.path == path) {
            let problem = format!("is set twice: by {} and by {variable}", other.variable);
            return self.faults.push(Fault::new(path.join("."), problem));
        }
        self.settings.push(Setting { variable: variable.to_owned(), path, text });
    }

    fn aliases(&mut self, former: &BTreeMap<String, String>) {
        let mut names: Vec<&String> = former.keys().collect();
        names.sort_by_key(|name| provider(name).map(|(number, _)| number));
        for name in names {
            let Some(text) = former.get(name) else { continue };
            let Some(path) = alias(name, former) else {
                // The id of a provider is part of the path of its other settings, the database part of its server's URL.
                if provider(name).is_none() && !(name == DATABASE && former.contains_key(MONGO)) {
                    self.warnings.push(Warning(format!("{name} is not used by this version")));
                }
                continue;
            };
            let origins = name.ends_with("_ALLOWED_ORIGINS");
            match self.former.iter_mut().find(|setting| setting.path == path) {
                Some(earlier) if origins => {
                    earlier.text = format!("{},{text}", earlier.text);
                    earlier.variable = format!("{} and {name}", earlier.variable);
                }
                _ => self.former.push(Setting {
                    variable: name.clone(),
                    path,
                    text: match name.as_str() {
                        "SERVER_PORT" => format!("localhost:{text}"),
                        MONGO => former.get(DATABASE).map_or_else(|| text.clone(), |name| in_database(text, name)),
                        KEY => keys(text),
                        _ => text.clone(),
                    },
                }),
            }
        }
    }
}

/// The name that a setting has in this version.
pub(super) fn variable(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("__").to_uppercase())
}

/// Whether a variable is a setting of this product, or of its predecessor.
pub(crate) fn ours(name: &str) -> bool {
    name.starts_with(PREFIX) || known(name)
}

/// Whether the predecessor knew this variable.
fn known(name: &str) -> bool {
    const NAMES: [&str; 25] = [
        "JWT_SECRET",
        KEY,
        MONGO,
        DATABASE,
        "SERVER_PORT",
        "S3_REGION",
        "S3_BUCKET",
        "S3_ENDPOINT",
        "S3_ACCESS_KEY_ID",
        "S3_SECRET_ACCESS_KEY",
        "SMTP_HOST",
        "SMTP_PORT",
        "SMTP_USER",
        "SMTP_PASS",
        "EMAIL_FROM",
        "ADMIN_EMAILS",
        "ADMIN_PHONES",
        "WS_ALLOWED_ORIGINS",
        "CORS_ALLOWED_ORIGINS",
        "ADMIN_PANEL_URL",
        "ADMIN_RATE_LIMIT",
        "RATE_LIMIT",
        "MAX_CONNECTIONS",
        "MAX_MESSAGE_SIZE",
        "LLM_STREAM_TIMEOUT",
    ];
    NAMES.contains(&name) || name == "RECONNECT_TIMEOUT" || name.starts_with("SMS_") || provider(name).is_some()
}

/// Where a variable of the predecessor belongs; `None` when this version has no such setting.
fn alias(name: &str, all: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let key = match name {
        "JWT_SECRET" => "auth.jwt_secret",
        MONGO => "store.url",
        KEY => "store.encryption_keys",
        "SERVER_PORT" => "listen.http",
        "WS_ALLOWED_ORIGINS" | "CORS_ALLOWED_ORIGINS" => "auth.allowed_origins",
        "ADMIN_RATE_LIMIT" => "limits.admin_per_minute",
        "RATE_LIMIT" => "limits.messages_per_minute",
        "MAX_CONNECTIONS" => "limits.connections",
        "MAX_MESSAGE_SIZE" => "limits.frame_bytes",
        "LLM_STREAM_TIMEOUT" => "llm.timeout",
        _ => {
            let (number, field) = provider(name)?;
            let id = all.get(&format!("LLM_PROVIDER_{number}_ID")).cloned();
            let id = id.unwrap_or_else(|| format!("provider_{number}"));
            return Some(vec!["llm".to_owned(), "providers".to_owned(), id, field?.to_owned()]);
        }
    };
    Some(key.split('.').map(str::to_owned).collect())
}

/// The predecessor's key as the only one, under the id 1; any other text as it is, for whoever reads keys to judge.
fn keys(text: &str) -> String {
    let key = if text.len() == 32 { hex::encode(text) } else { text.to_owned() };
    serde_json::json!([{"id": 1, "key": key}]).to_string()
}

/// The URL of a database on a server. Whoever logs in there does so by the database that the server's URL names, or by
/// `admin`, which is what the URL means without a database (MongoDB, connection string options, `authSource`).
fn in_database(server: &str, database: &str) -> String {
    let (address, options) = server.split_once('?').unwrap_or((server, ""));
    let Some((scheme, rest)) = address.split_once("://") else { return server.to_owned() };
    let (hosts, named) = rest.split_once('/').unwrap_or((rest, ""));
    let named = if named.is_empty() { "admin" } else { named };
    let login = hosts.contains('@') && !options.contains("authSource=");
    let options = [options.to_owned(), if login { format!("authSource={named}") } else { String::new() }];
    let options = options.into_iter().filter(|option| !option.is_empty()).collect::<Vec<_>>().join("&");
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{scheme}://{hosts}/{database}{mark}{options}")
}

/// The number and the key in `LLM_PROVIDER_2_MODEL`; `ID` is no key: it names the provider.
fn provider(name: &str) -> Option<(u32, Option<&'static str>)> {
    let (number, field) = name.strip_prefix("LLM_PROVIDER_")?.split_once('_')?;
    let field = match field {
        "ID" => None,
        "NAME" => Some("label"),
        "TYPE" => Some("type"),
        "ENDPOINT" => Some("endpoint"),
        "API_KEY" => Some("api_key"),
        "MODEL" => Some("model"),
        _ => return None,
    };
    Some((number.parse().ok()?, field))
}

/// Whether Kubernetes made the variable, for a service whose name starts with `chatbox`: an address, not a setting.
fn service_link(key: &str, text: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    let part = |name: &str| key == name || key.ends_with(&format!("_{name}"));
    let ported = key.split('_').rev().any(|part| matches!(part, "TCP" | "UDP" | "SCTP")) && key.contains("PORT_");
    !key.contains("__")
        && (part("SERVICE_HOST")
            || part("SERVICE_PORT")
            || key.contains("SERVICE_PORT_")
            || (part("PORT") && address)
            || ported)
}

/// Whether the value at a path is never shown.
pub(super) fn secret(path: &[String]) -> bool {
    path.last().is_some_and(|key| {
        let secret = key == "token" || ["_secret", "password", "_key", "_keys"].iter().any(|end| key.ends_with(end));
        // These are no secrets: a key that all may see, and the name of a file.
        secret && key != "public_key" && key != "tls_key"
    })
}

/// The path of the secret whose file this one names. A URL may hold a password, so it may come from a file too.
fn secret_in_file(path: &[String]) -> Option<Vec<String>> {
    let (last, parents) = path.split_last()?;
    let mut path = parents.to_vec();
    path.push(last.strip_suffix("_file")?.to_owned());
    let url = matches!(path.as_slice(), [section, key] if (section == "store" || section == "bus") && key == "url");
    (url || secret(&path)).then_some(path)
}

fn read_secret(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut text = String::new();
    let file = File::open(path).map_err(|err| format!("cannot open `{shown}`: {err}"))?;
    file.take(SECRET_FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|err| format!("cannot read `{shown}`: {err}"))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > SECRET_FILE_BYTES_MAX) {
        return Err(format!("`{shown}` is larger than 64 KiB"));
    }
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("`{shown}` is empty")) } else { Ok(text.to_owned()) }
}
