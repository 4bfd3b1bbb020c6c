//! What is wrong with the section, all of it at once, with what is accepted.

use std::time::Duration;

use super::{Config, Kind, Problem, ProviderConfig, endpoint};
use crate::config::secret::Secret;

/// Longest provider name, which is the `model_id` of the protocol, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// Slowest pace of the demo: an answer of a hundred words still ends within the default deadline.
const PACE_MAX: Duration = Duration::from_secs(1);

/// Longest `answer` of the demo: what fits a few frames.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Most repetitions of a request: each is a wait for the asker.
const RETRIES_MAX: u32 = 10;

impl Config {
    /// Everything that is wrong, so that an operator mends it in one round; empty when nothing is.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |key: String, reason: &str| problems.push(Problem { key, reason: reason.to_owned() });
        self.check_numbers(&mut report);
        for (key, url) in [("before", &self.moderation.before), ("after", &self.moderation.after)] {
            if let Some(Err(reason)) = url.as_ref().map(endpoint::check) {
                report(format!("llm.moderation.{key}"), reason);
            }
        }
        if let Some(transcription) = &self.transcription {
            if let Err(reason) = endpoint::check(&transcription.endpoint) {
                report("llm.transcription.endpoint".to_owned(), reason);
            }
            if transcription.model.trim().is_empty() {
                report("llm.transcription.model".to_owned(), "is empty: the vendor's name of the model");
            }
            if transcription.timeout.is_zero() {
                report("llm.transcription.timeout".to_owned(), "must be longer than `0s`");
            }
        }
        let keys = [
            ("llm.moderation.api_key", self.moderation.api_key.as_ref()),
            ("llm.transcription.api_key", self.transcription.as_ref().and_then(|made| made.api_key.as_ref())),
        ];
        for (key, _) in keys.into_iter().filter(|(_, key)| key.is_some_and(|key| !sendable(key))) {
            report(key.to_owned(), UNSENDABLE);
        }
        for (name, provider) in &self.providers {
            let printable = name.chars().all(|c| !c.is_control() && !c.is_whitespace());
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !printable {
                report(format!("llm.providers.{name:?}"), "a name has 1 to 100 bytes, none of them a space");
            }
            provider.check(&mut |key, reason| report(format!("llm.providers.{name}.{key}"), reason));
        }
        self.check_names(&mut report);
        problems
    }

    fn check_numbers(&self, report: &mut impl FnMut(String, &str)) {
        let durations = [
            ("timeout", self.timeout),
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("idle_timeout", self.idle_timeout),
            ("retry_pause", self.retry_pause),
            ("retry_pause_max", self.retry_pause_max),
            ("breaker_pause", self.breaker_pause),
            ("moderation.timeout", self.moderation.timeout),
        ];
        for (key, _) in durations.into_iter().filter(|(_, duration)| duration.is_zero()) {
            report(format!("llm.{key}"), "must be longer than `0s`");
        }
        if self.retry_pause > self.retry_pause_max {
            report("llm.retry_pause".to_owned(), "must be at most `llm.retry_pause_max`");
        }
        if self.retries > RETRIES_MAX {
            report("llm.retries".to_owned(), "must be at most 10");
        }
        if self.breaker_failures == 0 {
            report("llm.breaker_failures".to_owned(), "must be at least 1");
        }
        if self.tokens_per_user_day == Some(0) {
            report("llm.tokens_per_user_day".to_owned(), "must be at least 1; leave it out for any number");
        }
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            report("llm.currency".to_owned(), "must be three capital letters, such as `USD` (ISO 4217)");
        }
    }

    /// Checks the names by which providers are referred to.
    fn check_names(&self, report: &mut impl FnMut(String, &str)) {
        let names: Vec<_> = self.named().map(|(name, _)| name.to_owned()).collect();
        let have = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let unknown = |name: &str| format!("model `{name}` is not configured (have {have})");
        if let Some(default) = self.default.as_ref().filter(|default| !names.contains(default)) {
            report("llm.default".to_owned(), &unknown(default));
        }
        for (name, provider) in &self.providers {
            let key = || format!("llm.providers.{name}.fallback");
            for other in &provider.fallback {
                if other == name {
                    report(key(), "names the provider itself");
                } else if !names.contains(other) {
                    report(key(), &unknown(other));
                }
            }
        }
    }
}

/// Highest price of a million tokens, in any currency.
const PRICE_MAX: f64 = 1_000_000.0;

const UNSENDABLE: &str = "must be visible ASCII characters; leave it out for a server that wants none";

fn sendable(key: &Secret) -> bool {
    !key.expose().is_empty() && key.expose().bytes().all(|byte| byte.is_ascii_graphic())
}

impl ProviderConfig {
    fn check(&self, report: &mut impl FnMut(&str, &str)) {
        match self.r#type {
            Kind::Openai => self.check_remote(report, "https://api.openai.com/v1"),
            Kind::Anthropic => self.check_remote(report, "https://api.anthropic.com/v1"),
            Kind::Dify => self.check_remote(report, "https://api.dify.ai/v1"),
            Kind::Demo => self.check_demo(report),
        }
        if self.label.as_ref().is_some_and(|label| label.trim().is_empty()) {
            report("label", "is empty");
        }
        let durations = [
            ("timeout", self.timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("idle_timeout", self.idle_timeout),
        ];
        for (key, value) in durations {
            if value.is_some_and(|value| value.is_zero()) {
                report(key, "must be longer than `0s`");
            }
        }
        for (key, value) in [("context_tokens", self.context_tokens), ("max_tokens", self.max_tokens)] {
            if value == Some(0) {
                report(key, "must be at least 1");
            }
        }
        if self.max_tokens.unwrap_or(0) >= self.context_tokens.unwrap_or(super::super::CONTEXT_TOKENS) {
            report("max_tokens", "must be less than `context_tokens`, or no room is left for the prompt");
        }
        for (key, price) in [("price_prompt", self.price_prompt), ("price_completion", self.price_completion)] {
            if price.is_some_and(|price| !(0.0..=PRICE_MAX).contains(&price)) {
                report(key, "must be from 0 to 1000000 for a million tokens");
            }
        }
        if self.price_prompt.is_some() != self.price_completion.is_some() {
            report("price_prompt", "and `price_completion` are needed together");
        }
    }

    fn check_remote(&self, report: &mut impl FnMut(&str, &str), example: &str) {
        match &self.endpoint {
            None => report("endpoint", &format!("is missing, such as `{example}`")),
            Some(url) => {
                if let Err(reason) = endpoint::check(url) {
                    report("endpoint", reason);
                }
            }
        }
        match (self.r#type, &self.model) {
            (Kind::Dify, None) => {}
            (Kind::Dify, Some(_)) => report("model", "is of no use to the type `dify`: the application has its own"),
            (_, model) => {
                if model.as_ref().is_none_or(|model| model.trim().is_empty()) {
                    report("model", "is missing: the vendor's name of the model");
                }
            }
        }
        if self.r#type == Kind::Dify && self.system_prompt.is_some() {
            report("system_prompt", "is of no use to the type `dify`: the application has its own");
        }
        if self.api_key.is_none() && self.r#type != Kind::Openai {
            report("api_key", "is missing");
        }
        if self.api_key.as_ref().is_some_and(|key| !sendable(key)) {
            report("api_key", UNSENDABLE);
        }
        for (key, _) in
            [("pace", self.pace.is_some()), ("answer", self.answer.is_some())].iter().filter(|(_, set)| *set)
        {
            report(key, "is of the type `demo`");
        }
    }

    fn check_demo(&self, report: &mut impl FnMut(&str, &str)) {
        let foreign = [
            ("endpoint", self.endpoint.is_some()),
            ("api_key", self.api_key.is_some()),
            ("model", self.model.is_some()),
            ("system_prompt", self.system_prompt.is_some()),
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
        let err = parse("[providers.a]\ntype = \"gemini\"").unwrap_err();
        assert_eq!(err, "unknown variant `gemini`, expected one of `openai`, `anthropic`, `dify`, `demo`");
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
