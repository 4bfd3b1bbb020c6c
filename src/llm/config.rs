//! What an operator can say about models: the section `llm`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::config::secret::Secret;

/// Longest provider name, which is the `model_id` of the protocol, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// Slowest pace of the demo: an answer of a hundred words still ends within the default deadline.
const PACE_MAX: Duration = Duration::from_secs(1);

/// Longest `answer` of the demo: what fits a few frames.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The configured models.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// name of the provider that answers when a session has chosen none; absent: the first
    pub default: Option<String>,
    /// what every model is told before the conversation
    pub system_prompt: Option<String>,
    /// deadline of a whole answer
    #[serde(with = "crate::config::duration")]
    pub timeout: Duration,
    /// how long a provider may be silent: before its first byte, and between any two
    #[serde(with = "crate::config::duration")]
    pub idle_timeout: Duration,
    /// by name, in the order of the file; empty: one `demo` provider
    pub providers: IndexMap<String, ProviderConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default: None,
            system_prompt: None,
            timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(30),
            providers: IndexMap::new(),
        }
    }
}

/// One configured provider.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// what it speaks
    pub r#type: Kind,
    /// where it listens, version included: `https://…/v1`. Required by `openai`
    pub endpoint: Option<Url>,
    /// what it authenticates us by; absent for servers that want none
    pub api_key: Option<Secret>,
    /// the vendor's name of the model. Required by `openai`
    pub model: Option<String>,
    /// what people read in lists; absent: the provider's name
    pub label: Option<String>,
    /// tokens that prompt and answer may have together; absent: [`super::CONTEXT_TOKENS`]
    pub context_tokens: Option<u32>,
    /// tokens that an answer may have; absent: as the provider decides
    pub max_tokens: Option<u32>,
    /// deadline of a whole answer; absent: `llm.timeout`
    #[serde(default, with = "crate::config::duration::option")]
    pub timeout: Option<Duration>,
    /// how long it may be silent; absent: `llm.idle_timeout`
    #[serde(default, with = "crate::config::duration::option")]
    pub idle_timeout: Option<Duration>,
    /// of `demo`: the pause before each piece; `0s` for load tests. Absent: [`super::demo::PACE`]
    #[serde(default, with = "crate::config::duration::option")]
    pub pace: Option<Duration>,
    /// of `demo`: says this to everything, in one piece; for load tests. Absent: picks a text by keyword
    pub answer: Option<String>,
}

/// What a provider speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// OpenAI's chat completions, which many other servers speak too
    Openai,
    /// no network and no model; answers about chatbox
    Demo,
}

/// One thing that is wrong with the section.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct Problem {
    /// the key as the file has it, such as `llm.providers.fast.endpoint`
    pub key: String,
    /// what is wrong and what is accepted; holds no secret
    pub reason: String,
}

impl ProviderConfig {
    /// A provider of one kind with nothing else said about it.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            r#type: kind,
            endpoint: None,
            api_key: None,
            model: None,
            label: None,
            context_tokens: None,
            max_tokens: None,
            timeout: None,
            idle_timeout: None,
            pace: None,
            answer: None,
        }
    }

    fn check(&self, report: &mut impl FnMut(&str, &str)) {
        match self.r#type {
            Kind::Openai => self.check_openai(report),
            Kind::Demo => self.check_demo(report),
        }
        if self.label.as_ref().is_some_and(|label| label.trim().is_empty()) {
            report("label", "is empty");
        }
        for (key, value) in [("timeout", self.timeout), ("idle_timeout", self.idle_timeout)] {
            if value.is_some_and(|value| value.is_zero()) {
                report(key, "must be longer than `0s`");
            }
        }
        for (key, value) in [("context_tokens", self.context_tokens), ("max_tokens", self.max_tokens)] {
            if value == Some(0) {
                report(key, "must be at least 1");
            }
        }
        if self.max_tokens.unwrap_or(0) >= self.context_tokens.unwrap_or(super::CONTEXT_TOKENS) {
            report("max_tokens", "must be less than `context_tokens`, or no room is left for the prompt");
        }
    }

    fn check_openai(&self, report: &mut impl FnMut(&str, &str)) {
        match &self.endpoint {
            None => report("endpoint", "is missing, such as `https://api.openai.com/v1`"),
            Some(url) => {
                if let Err(reason) = check_endpoint(url) {
                    report("endpoint", reason);
                }
            }
        }
        if self.model.as_ref().is_none_or(|model| model.trim().is_empty()) {
            report("model", "is missing: the vendor's name of the model");
        }
        let sendable =
            |key: &Secret| !key.expose().is_empty() && key.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if self.api_key.as_ref().is_some_and(|key| !sendable(key)) {
            report("api_key", "must be visible ASCII characters; leave it out for a server that wants none");
        }
        if self.pace.is_some() {
            report("pace", "is of the type `demo`");
        }
        if self.answer.is_some() {
            report("answer", "is of the type `demo`");
        }
    }

    fn check_demo(&self, report: &mut impl FnMut(&str, &str)) {
        let foreign = [
            ("endpoint", self.endpoint.is_some()),
            ("api_key", self.api_key.is_some()),
            ("model", self.model.is_some()),
        ];
        for (key, _) in foreign.into_iter().filter(|(_, present)| *present) {
            report(key, "is of no use to the type `demo`, which asks nobody; did you mean `openai`?");
        }
        if self.pace.is_some_and(|pace| pace > PACE_MAX) {
            report("pace", "must be at most `1s`");
        }
        if self.answer.as_ref().is_some_and(|answer| answer.is_empty() || answer.len() > ANSWER_BYTES_MAX) {
            report("answer", "must be of 1 to 65536 bytes");
        }
    }
}

/// Shows neither the key nor what a mistaken endpoint may hold beside scheme, host and port.
impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderConfig")
            .field("type", &self.r#type)
            .field("endpoint", &self.endpoint.as_ref().map(|url| url.origin().ascii_serialization()))
            .field("api_key", &self.api_key)
            .field("model", &self.model)
            .field("label", &self.label)
            .field("context_tokens", &self.context_tokens)
            .field("max_tokens", &self.max_tokens)
            .field("timeout", &self.timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("pace", &self.pace)
            .field("answer", &self.answer)
            .finish()
    }
}

impl Config {
    /// Everything that is wrong, so that an operator mends it in one round; empty when nothing is.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |key: String, reason: &str| problems.push(Problem { key, reason: reason.to_owned() });
        if self.timeout.is_zero() {
            report("llm.timeout".to_owned(), "must be longer than `0s`");
        }
        if self.idle_timeout.is_zero() {
            report("llm.idle_timeout".to_owned(), "must be longer than `0s`");
        }
        for (name, provider) in &self.providers {
            let printable = name.chars().all(|c| !c.is_control() && !c.is_whitespace());
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !printable {
                report(format!("llm.providers.{name:?}"), "a name has 1 to 100 bytes, none of them a space");
            }
            provider.check(&mut |key, reason| report(format!("llm.providers.{name}.{key}"), reason));
        }
        if let Some(default) = &self.default {
            let names: Vec<_> = self.named().map(|(name, _)| format!("`{name}`")).collect();
            if !self.named().any(|(name, _)| name == default) {
                report(
                    "llm.default".to_owned(),
                    &format!("model `{default}` is not configured (have {})", names.join(", ")),
                );
            }
        }
        problems
    }

    /// The providers in order; one `demo` when none is configured.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, ProviderConfig)> {
        let demo = self.providers.is_empty().then(|| {
            let mut config = ProviderConfig::new(Kind::Demo);
            config.label = Some("Demo".to_owned());
            ("demo", config)
        });
        self.providers.iter().map(|(name, config)| (name.as_str(), config.clone())).chain(demo)
    }
}

/// Refuses what a prompt and a key must not be sent to: anything but https, except inside; and the addresses at
/// which clouds hand out credentials, whatever the scheme.
fn check_endpoint(url: &Url) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no user or password; use `api_key`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end with its path, such as `/v1`");
    }
    let Some(host) = url.host() else { return Err("has no host") };
    let (inside, metadata) = match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let local = [".local", ".internal", ".svc", ".cluster.local"].iter().any(|suffix| name.ends_with(suffix));
            let loopback = name == "localhost" || name.ends_with(".localhost");
            (local || loopback || !name.contains('.'), matches!(&*name, "metadata" | "metadata.google.internal"))
        }
        Host::Ipv4(address) => inside_and_metadata(IpAddr::V4(address)),
        Host::Ipv6(address) => inside_and_metadata(address.to_canonical()),
    };
    match url.scheme() {
        _ if metadata => Err("is an address at which a cloud hands out credentials, or of no single host"),
        "https" => Ok(()),
        "http" if inside => Ok(()),
        "http" => Err("must be https; http is for loopback, RFC 1918 addresses, names without a dot, \
                       `.local`, `.internal`, `.svc` and `.cluster.local`"),
        _ => Err("must begin with `https://`"),
    }
}

/// Whether plain http may go there, and whether nothing may.
fn inside_and_metadata(address: IpAddr) -> (bool, bool) {
    match address {
        IpAddr::V4(address) => {
            let odd = address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST;
            (address.is_loopback() || address.is_private(), odd)
        }
        IpAddr::V6(address) => {
            let aws = address.segments().starts_with(&[0xfd00, 0x0ec2]);
            let odd = aws || address.is_unicast_link_local() || address.is_unspecified() || address.is_multicast();
            (address.is_loopback(), odd)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        toml::from_str(text).map_err(|err| err.message().to_owned())
    }

    fn problems(text: &str) -> Vec<String> {
        parse(text).unwrap().problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            default = "fast"
            system_prompt = "Be brief."
            timeout = "90s"
            idle_timeout = "10s"
            [providers.slow]
            type = "demo"
            pace = "0s"
            answer = "Yes."
            label = "Slow one"
            [providers.fast]
            type = "openai"
            endpoint = "https://llm.example.com/v1"
            api_key = "sk-secret"
            model = "fast-1"
            context_tokens = 8000
            max_tokens = 500
            timeout = "1m"
            idle_timeout = "5s"
            "#,
        )
        .unwrap();
        assert_eq!(config.problems(), []);
        assert_eq!(config.providers.keys().collect::<Vec<_>>(), ["slow", "fast"]);
        assert_eq!((config.timeout, config.idle_timeout), (Duration::from_secs(90), Duration::from_secs(10)));
        assert_eq!(config.providers["slow"].pace, Some(Duration::ZERO));
        assert_eq!(config.providers["slow"].answer.as_deref(), Some("Yes."));
        let fast = &config.providers["fast"];
        assert_eq!((fast.timeout, fast.idle_timeout), (Some(Duration::from_secs(60)), Some(Duration::from_secs(5))));
        assert_eq!((fast.context_tokens, fast.max_tokens), (Some(8000), Some(500)));
        assert_eq!(fast.api_key.as_ref().map(Secret::expose), Some("sk-secret"));
    }

    #[test]
    fn an_unknown_type_names_what_is_accepted() {
        let err = parse("[providers.a]\ntype = \"anthropic\"").unwrap_err();
        assert_eq!(err, "unknown variant `anthropic`, expected `openai` or `demo`");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        assert_eq!(
            problems(
                r#"
                default = "large"
                timeout = "0s"
                [providers.a]
                type = "openai"
                api_key = "two words"
                max_tokens = 20000
                answer = "Yes."
                [providers.b]
                type = "demo"
                endpoint = "https://example.com/v1"
                pace = "1h"
                answer = ""
                "#
            ),
            [
                "llm.timeout: must be longer than `0s`",
                "llm.providers.a.endpoint: is missing, such as `https://api.openai.com/v1`",
                "llm.providers.a.model: is missing: the vendor's name of the model",
                "llm.providers.a.api_key: must be visible ASCII characters; leave it out for a server that wants none",
                "llm.providers.a.answer: is of the type `demo`",
                "llm.providers.a.max_tokens: must be less than `context_tokens`, or no room is left for the prompt",
                "llm.providers.b.endpoint: is of no use to the type `demo`, which asks nobody; did you mean `openai`?",
                "llm.providers.b.pace: must be at most `1s`",
                "llm.providers.b.answer: must be of 1 to 65536 bytes",
                "llm.default: model `large` is not configured (have `a`, `b`)",
            ]
        );
    }

    #[test]
    fn endpoints_are_https_or_inside() {
        for accepted in [
            "https://api.openai.com/v1",
            "https://203.0.113.7:8443/v1",
            "http://127.0.0.1:11434/v1",
            "http://[::1]/v1",
            "http://[::ffff:10.1.2.3]/v1",
            "http://10.0.0.1/v1",
            "http://172.16.0.1/v1",
            "http://192.168.1.1/v1",
            "http://localhost/v1",
            "http://ollama:11434/v1",
            "http://box.local/v1",
            "http://llm.corp.internal/v1",
            "http://vllm.models.svc/v1",
            "http://vllm.models.svc.cluster.local/v1",
        ] {
            assert_eq!(check_endpoint(&accepted.parse().unwrap()), Ok(()), "{accepted}");
        }
        for refused in [
            "http://api.openai.com/v1",
            "http://8.8.8.8/v1",
            "http://172.32.0.1/v1",
            "http://100.64.0.1/v1",
            "http://169.254.169.254/latest",
            "https://169.254.169.254/latest",
            "http://[::ffff:169.254.169.254]/latest",
            "http://2852039166/latest",
            "https://[fd00:ec2::254]/latest",
            "http://[fe80::1]/v1",
            "http://[fd12::1]/v1",
            "http://metadata.google.internal/v1",
            "http://METADATA.google.internal./v1",
            "http://0.0.0.0/v1",
            "http://evil.local.example.com/v1",
            "https://user:pass@api.openai.com/v1",
            "https://key@api.openai.com/v1",
            "https://api.openai.com/v1?key=1",
            "https://api.openai.com/v1#x",
            "ftp://10.0.0.1/v1",
            "file:///v1",
            "unix:/run/llm.sock",
        ] {
            assert_ne!(check_endpoint(&refused.parse().unwrap()), Ok(()), "{refused}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let config = parse(
            "[providers.a]\ntype = \"openai\"\napi_key = \"sk-secret\"\nmodel = \"m\"\n\
             endpoint = \"https://user:sk-secret@llm.example.com/v1?key=sk-secret\"",
        )
        .unwrap();
        let shown = format!("{config:?} {:?}", config.problems());
        assert!(shown.contains("https://llm.example.com"), "{shown}");
        assert!(!shown.contains("sk-secret"), "{shown}");
    }
}
