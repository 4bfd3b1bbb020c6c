//! The rules that types alone cannot hold. Each says what is wrong and what is accepted.

use std::{fs::File, path::Path, time::Duration};

use url::Url;

use super::{Config, secret::Secret};
use crate::{auth::origins, lifecycle, store::seal::Seal};

/// What [`check`] found: keys with what is wrong, and what is only odd.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) faults: Vec<(String, String)>,
    pub(super) warnings: Vec<String>,
}

type Report<'a> = &'a mut dyn FnMut(&str, String);

/// What the templates of deployments hold in place of values.
const PLACEHOLDERS: [&str; 5] = ["REPLACE_WITH", "PLACEHOLDER", "CHANGE-ME", "CHANGE_ME", "YOUR-"];

/// Smallest and largest frame that may be configured, in bytes: a message of the longest accepted text must fit.
const FRAME_BYTES: std::ops::RangeInclusive<usize> = 65_536..=16 * 1024 * 1024;

/// A shorter lease runs out between two writes of a turn's log, and its answer is lost.
const TURN_LEASE_MIN: Duration = Duration::from_secs(1);

/// The mark by which a text is known as a template's.
pub(super) fn placeholder(text: &str) -> Option<&'static str> {
    let upper = text.to_uppercase();
    PLACEHOLDERS.into_iter().find(|mark| upper.contains(mark))
}

/// Finds every fault with its key, and what is only odd.
pub(super) fn check(config: &Config) -> Findings {
    let mut found = Findings::default();
    let fault: Report<'_> = &mut |key, problem| found.faults.push((key.to_owned(), problem));
    listeners(config, fault);
    path_prefix(&config.path_prefix, fault);
    public_url("public_url", config.public_url.as_ref(), &["http", "https"], fault);
    public_url("public_quic_url", config.public_quic_url.as_ref(), &["https"], fault);
    secrets(config, fault);
    auth(config, fault);
    places(config, fault);
    models(config, fault);
    numbers(config, fault);
    tls(config, fault);
    if !config.listen.http.loopback() && config.public_url.is_none() {
        let refused = "pages of this server's public name are refused as a foreign origin";
        found.warnings.push(format!("`public_url` is not set: {refused}"));
    }
    if config.drain.spread > lifecycle::SPREAD_MAX {
        let (is, most) = (humantime::format_duration(config.drain.spread), lifecycle::SPREAD_MAX.as_secs());
        found.faults.push(("drain.spread".to_owned(), format!("`{is}` is not accepted: it must be at most {most}s")));
    }
    if config.drain.timeout < config.llm.timeout {
        found.warnings.push("`drain.timeout` is shorter than `llm.timeout`: a restart can cut an answer".to_owned());
    }
    if config.store.url.starts_with("mongodb") && config.bus.local() {
        found.warnings.push("`bus.url` is not set: what happens on another node is seen some seconds later".to_owned());
    }
    found.warnings.extend(config.bus.warnings());
    found
}

fn listeners(config: &Config, fault: Report<'_>) {
    let listeners = config.listen.each();
    for (at, (key, address)) in listeners.iter().enumerate() {
        if let Some((other, _)) = listeners.iter().take(at).find(|(_, other)| other == address && address.port() != 0) {
            fault(key, format!("`{address}` is the address of `{other}` already: choose another port"));
        }
    }
}

fn path_prefix(prefix: &str, fault: Report<'_>) {
    let safe = |part: &str| {
        let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
        !part.is_empty() && part != "." && part != ".." && letters
    };
    let accepted = prefix.strip_prefix('/').is_some_and(|rest| rest.split('/').all(safe));
    if !accepted {
        let rule = "a prefix begins with `/`, has none at its end, and is made of letters, digits, `-`, `.`, `_`, `~`";
        fault("path_prefix", format!("`{prefix}` is not a path prefix such as `/chatbox` ({rule})"));
    }
}

fn public_url(key: &str, url: Option<&Url>, schemes: &[&str], fault: Report<'_>) {
    let Some(url) = url else { return };
    let plain = url.username().is_empty() && url.password().is_none();
    if !plain {
        fault(key, "holds a user name or a password: everybody can read this URL".to_owned());
    } else if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        fault(key, format!("`{url}` is not accepted: it must start with `{}://`", schemes.join("://` or `")));
    } else if url.query().is_some() || url.fragment().is_some() {
        fault(key, format!("`{url}` is not accepted: it must have no `?` and no `#`"));
    }
}

fn secrets(config: &Config, fault: Report<'_>) {
    secret(config, "auth.jwt_secret", config.auth.jwt_secret.as_ref(), fault);
    secret(config, "cluster_secret", config.cluster_secret.as_ref(), fault);
}

fn secret(config: &Config, key: &str, secret: Option<&Secret>, fault: Report<'_>) {
    let advice = "at least 32 random characters, such as `openssl rand -hex 32` prints";
    match secret {
        Some(secret) => {
            if let Some(mark) = placeholder(secret.expose()) {
                fault(key, format!("holds the placeholder `{mark}`: set {advice}"));
            } else if let Some(weakness) = secret.weakness() {
                fault(key, format!("{weakness}: set {advice}"));
            }
        }
        None => {
            let open = config.listen.each().into_iter().find(|(_, address)| !address.loopback());
            if let Some((listener, address)) = open {
                let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                let variable = super::environment::variable(&path);
                fault(
                    key,
                    format!(
                        "is missing, and `{listener}` = `{address}` can be reached from other machines: \
                         set it, {variable} or {variable}_FILE to {advice}"
                    ),
                );
            }
        }
    }
}

fn auth(config: &Config, fault: Report<'_>) {
    for origin in config.auth.allowed_origins.iter().flatten() {
        if !origins::well_formed(origin) {
            let accepted = "scheme, host and port, such as `https://app.example.com`";
            fault("auth.allowed_origins", format!("`{origin}` is not an origin (have {accepted})"));
        } else if origin == "*" && !config.loopback() {
            let problem = "`*` is accepted only while every listener is on loopback: list the origins";
            fault("auth.allowed_origins", problem.to_owned());
        }
    }
    if config.auth.algorithms.as_ref().is_some_and(Vec::is_empty) {
        fault("auth.algorithms", "is empty: no token could be accepted (have HS256, HS384, HS512)".to_owned());
    }
    for (key, claim) in [("auth.issuer", &config.auth.issuer), ("auth.audience", &config.auth.audience)] {
        if claim.as_deref().is_some_and(|claim| claim.trim().is_empty()) {
            fault(key, "is empty: leave it out, or name what a token must carry".to_owned());
        }
    }
}

fn places(config: &Config, fault: Report<'_>) {
    if let Err(err) = config.store.check() {
        fault("store.url", err.to_string());
    }
    if let Err(err) = Seal::new(&config.store.encryption_keys) {
        fault("store.encryption_keys", err.to_string());
    }
    let open = config.listen.each().into_iter().find(|(_, address)| !address.loopback());
    if let Some((listener, address)) = open
        && config.store.encryption_keys.is_empty()
        && !config.store.allow_plain_text
    {
        let problem = format!(
            "is missing, and `{listener}` = `{address}` can be reached from other machines: set it to \
             `[{{id = 1, key = \"...\"}}]` with what `openssl rand -base64 32` prints, or `store.allow_plain_text` to \
             `true` to keep what people say as plain text"
        );
        fault("store.encryption_keys", problem);
    }
    for (key, problem) in config.bus.problems() {
        fault(key, problem);
    }
    if config.data_dir.as_os_str().is_empty() {
        fault("data_dir", "is empty: name a directory".to_owned());
    }
}

fn models(config: &Config, fault: Report<'_>) {
    for problem in config.llm.problems() {
        fault(&problem.key, problem.reason);
    }
    // The lease of a turn is not renewed while a hook is asked about its reply.
    let moderation = &config.llm.moderation;
    let most = config.sessions.turn_lease / 2;
    if moderation.after.is_some() && moderation.timeout > most {
        let most = humantime::format_duration(most);
        fault("llm.moderation.timeout", format!("must be at most half of `sessions.turn_lease`: `{most}`"));
    }
}

fn numbers(config: &Config, fault: Report<'_>) {
    let limits = &config.limits;
    for (key, value) in [
        ("limits.connections_per_user", limits.connections_per_user),
        ("limits.connections_per_address", limits.connections_per_address),
        ("limits.connections", limits.connections),
        ("limits.messages_per_minute", limits.messages_per_minute),
        ("limits.requests_per_minute", limits.requests_per_minute),
        ("limits.admin_per_minute", limits.admin_per_minute),
        ("limits.public_per_minute", limits.public_per_minute),
        ("limits.queued_turns", limits.queued_turns),
        ("sessions.active_per_user", config.sessions.active_per_user),
    ] {
        if value == 0 {
            fault(key, "`0` is not accepted: it must be at least 1".to_owned());
        }
    }
    // One stream is the attach stream's; without a second one nothing could be asked.
    for (key, value) in [("limits.streams", limits.streams), ("limits.staff_streams", limits.staff_streams)] {
        if value < 2 {
            fault(key, format!("`{value}` is not accepted: it must be at least 2"));
        }
    }
    if !FRAME_BYTES.contains(&limits.frame_bytes) {
        let (least, most) = (FRAME_BYTES.start(), FRAME_BYTES.end());
        fault("limits.frame_bytes", format!("`{}` is not within {least} to {most}", limits.frame_bytes));
    }
    for (key, value) in [
        ("sessions.idle_end", config.sessions.idle_end),
        ("sessions.compare_interval", config.sessions.compare_interval),
        ("drain.timeout", config.drain.timeout),
        ("limits.write_timeout", limits.write_timeout),
    ] {
        if value == Duration::ZERO {
            fault(key, "`0s` is not accepted: it must be longer".to_owned());
        }
    }
    if config.sessions.turn_lease < TURN_LEASE_MIN {
        let is = humantime::format_duration(config.sessions.turn_lease);
        fault("sessions.turn_lease", format!("`{is}` is not accepted: it must be at least 1s"));
    }
}

fn tls(config: &Config, fault: Report<'_>) {
    let files = [("tls.cert_file", &config.tls.cert_file), ("tls.key_file", &config.tls.key_file)];
    let given = files.iter().filter(|(_, path)| path.is_some()).count();
    for (key, path) in files {
        match path {
            Some(path) => readable(key, path, fault),
            None if given > 0 => fault(key, "is missing: certificate and key go together".to_owned()),
            None if !config.listen.quic.loopback() => {
                let address = config.listen.quic;
                let problem = format!(
                    "is missing, and `listen.quic` = `{address}` can be reached from other machines, \
                     which do not accept a self-signed certificate: name a PEM file"
                );
                fault(key, problem);
            }
            None => {}
        }
    }
}

fn readable(key: &str, path: &Path, fault: Report<'_>) {
    if let Err(err) = File::open(path) {
        fault(key, format!("cannot open `{}`: {err}", path.display()));
    }
}
