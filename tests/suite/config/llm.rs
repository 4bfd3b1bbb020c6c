//! The section of models, from the environment, and by the names of the predecessor.

use std::time::Duration;

use chatbox::{
    config::secret::Secret,
    llm::{
        Kind,
        config::{AfterText, Tokenizer, Verdict},
    },
};

use super::{STRONG, environment, from, refused};

/// Keys that are numbers with a point, lists and tables of tables, as only the environment of a container has them.
#[test]
fn models_are_configured_by_the_environment_alone() {
    let loaded = environment(&[
        ("CHATBOX_LLM__PROVIDERS__A__TYPE", "anthropic"),
        ("CHATBOX_LLM__PROVIDERS__A__ENDPOINT", "https://api.anthropic.com/v1"),
        ("CHATBOX_LLM__PROVIDERS__A__API_KEY", STRONG),
        ("CHATBOX_LLM__PROVIDERS__A__MODEL", "claude-haiku-4-5"),
        ("CHATBOX_LLM__PROVIDERS__A__PRICE_PROMPT", "0.15"),
        ("CHATBOX_LLM__PROVIDERS__A__PRICE_COMPLETION", "5"),
        ("CHATBOX_LLM__PROVIDERS__A__FALLBACK", "b, c"),
        ("CHATBOX_LLM__PROVIDERS__A__IMAGES", "true"),
        ("CHATBOX_LLM__PROVIDERS__A__IDLE_TIMEOUT", "1m 30s"),
        ("CHATBOX_LLM__PROVIDERS__B__TYPE", "demo"),
        ("CHATBOX_LLM__PROVIDERS__B__TOKENIZER", "o200k"),
        ("CHATBOX_LLM__PROVIDERS__C__TYPE", "demo"),
        ("CHATBOX_LLM__PROVIDERS__C__FALLBACK", "[]"),
        ("CHATBOX_LLM__RETRIES", "0"),
        ("CHATBOX_LLM__AFTER_TEXT", "interrupt"),
        ("CHATBOX_LLM__TOKENS_PER_USER_DAY", "250000"),
        ("CHATBOX_LLM__CURRENCY", "EUR"),
        ("CHATBOX_LLM__MODERATION__BEFORE", "http://moderator:8000/v1"),
        ("CHATBOX_LLM__MODERATION__TIMEOUT", "1500ms"),
        ("CHATBOX_LLM__MODERATION__ON_FAILURE", "refuse"),
        ("CHATBOX_LLM__TRANSCRIPTION__ENDPOINT", "https://api.openai.com/v1"),
        ("CHATBOX_LLM__TRANSCRIPTION__MODEL", "whisper-1"),
    ])
    .unwrap();
    let llm = &loaded.config.llm;
    let a = &llm.providers["a"];
    assert_eq!((a.price_prompt, a.price_completion, a.images), (Some(0.15), Some(5.0), true));
    assert_eq!(
        (a.fallback.as_slice(), a.idle_timeout),
        (["b".to_owned(), "c".to_owned()].as_slice(), Some(Duration::from_secs(90)))
    );
    assert_eq!((llm.providers["b"].tokenizer, llm.providers["c"].fallback.len()), (Some(Tokenizer::O200k), 0));
    assert_eq!((llm.retries, llm.after_text, llm.tokens_per_user_day), (0, AfterText::Interrupt, Some(250_000)));
    assert_eq!((llm.currency.as_str(), llm.moderation.on_failure), ("EUR", Verdict::Refuse));
    assert_eq!(llm.moderation.before.as_ref().map(ToString::to_string).as_deref(), Some("http://moderator:8000/v1"));
    assert_eq!((llm.moderation.timeout, &llm.moderation.after), (Duration::from_millis(1500), &None));
    assert_eq!(llm.transcription.as_ref().map(|made| made.model.as_str()), Some("whisper-1"));
}

// checklist 106
#[test]
fn the_predecessors_providers_may_be_numbered_with_gaps_and_be_of_any_vendor() {
    let loaded = environment(&[
        ("LLM_PROVIDER_7_TYPE", "dify"),
        ("LLM_PROVIDER_7_ENDPOINT", "https://api.dify.ai/v1"),
        ("LLM_PROVIDER_7_API_KEY", STRONG),
        ("LLM_PROVIDER_7_NAME", "The house's own"),
        ("LLM_PROVIDER_2_ID", "claude"),
        ("LLM_PROVIDER_2_TYPE", "anthropic"),
        ("LLM_PROVIDER_2_ENDPOINT", "https://api.anthropic.com/v1"),
        ("LLM_PROVIDER_2_API_KEY", STRONG),
        ("LLM_PROVIDER_2_MODEL", "claude-haiku-4-5"),
        ("LLM_PROVIDER_10_TYPE", "openai"),
        ("LLM_PROVIDER_10_ENDPOINT", "http://localhost:11434/v1"),
        ("LLM_PROVIDER_10_MODEL", "llama3"),
    ])
    .unwrap();
    let of: Vec<_> = loaded.config.llm.providers.iter().map(|(name, it)| (name.as_str(), it.r#type)).collect();
    assert_eq!(of, [("claude", Kind::Anthropic), ("provider_7", Kind::Dify), ("provider_10", Kind::Openai)]);
    assert_eq!(loaded.config.llm.providers["provider_7"].label.as_deref(), Some("The house's own"));
}

#[test]
fn keys_of_models_come_from_files_and_are_shown_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("key");
    std::fs::write(&path, format!("{STRONG}\n")).unwrap();
    let key = path.to_str().unwrap();
    let loaded = environment(&[
        ("CHATBOX_LLM__PROVIDERS__A__TYPE", "dify"),
        ("CHATBOX_LLM__PROVIDERS__A__ENDPOINT", "https://api.dify.ai/v1"),
        ("CHATBOX_LLM__PROVIDERS__A__API_KEY_FILE", key),
        ("CHATBOX_LLM__MODERATION__AFTER", "https://moderator.example/v1"),
        ("CHATBOX_LLM__MODERATION__API_KEY_FILE", key),
        ("CHATBOX_LLM__TRANSCRIPTION__ENDPOINT", "https://api.openai.com/v1"),
        ("CHATBOX_LLM__TRANSCRIPTION__MODEL", "whisper-1"),
        ("CHATBOX_LLM__TRANSCRIPTION__API_KEY_FILE", key),
    ])
    .unwrap();
    let llm = &loaded.config.llm;
    let keys = [
        llm.providers["a"].api_key.as_ref(),
        llm.moderation.api_key.as_ref(),
        llm.transcription.as_ref().and_then(|made| made.api_key.as_ref()),
    ];
    assert_eq!(keys.map(|key| key.map(Secret::expose)), [Some(STRONG); 3]);
    let shown = loaded.effective().unwrap();
    for table in [&shown["llm"]["providers"]["a"], &shown["llm"]["moderation"], &shown["llm"]["transcription"]] {
        assert_eq!(table["api_key"].as_str(), Some("***"));
    }
    assert!(!format!("{shown} {:?}", loaded.config).contains(STRONG));
}

#[test]
fn what_is_wrong_with_models_is_told_by_key() {
    for (key, value, told) in [
        ("llm.providers.x", r#"{"type": "demo", "price_prompt": "0,15"}"#, "price_prompt"),
        ("llm.providers.x", r#"{"type": "demo", "price_prompt": -1.0, "price_completion": 1.0}"#, "from 0 to 1000000"),
        ("llm.providers.x", r#"{"type": "demo", "fallback": ["y"]}"#, "model `y` is not configured"),
        ("llm.tokens_per_user_day", "0", "at least 1"),
        ("llm.tokens_per_user_day", "1.5", "1.5"),
        ("llm.currency", "euro", "three capital letters"),
        ("llm.after_text", "panic", "expected `continue` or `interrupt`"),
        ("llm.moderation.before", "http://moderator.example/v1", "must be https"),
        ("llm.moderation.before", "https://moderator.example/v1?key=1", "must end with its path"),
        ("llm.moderation.on_failure", "maybe", "expected `allow` or `refuse`"),
    ] {
        let (keys, text) = refused(from("", &[], &[(key, value)]));
        assert!(keys[0].starts_with(key) && text.contains(told), "`{key}` = `{value}`: {text}");
    }
    let (keys, text) =
        refused(from("", &[], &[("llm.providers.x", r#"{"type": "demo", "fallback": ["y", "x", "z"]}"#)]));
    assert_eq!(keys, ["llm.providers.x.fallback"; 3]);
    for told in ["model `y` is not configured", "names the provider itself", "model `z` is not configured"] {
        assert!(text.contains(told), "all of them at once: {text}");
    }
    let slow = [("llm.moderation.after", "https://moderator.example/v1"), ("sessions.turn_lease", "5s")];
    let (keys, text) = refused(from("", &[], &slow));
    assert_eq!(keys, ["llm.moderation.timeout"]);
    assert!(text.contains("must be at most half of `sessions.turn_lease`: `2s 500ms`"), "{text}");
}

/// What the README tells operators to write, put together.
#[test]
fn the_readmes_models_are_accepted() {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<_> = blocks.filter(|block| block.starts_with("[llm")).collect();
    assert_eq!(blocks.len(), 4, "three vendors, and moderation");
    let key = |name: &str| (format!("CHATBOX_LLM__PROVIDERS__{name}__API_KEY"), STRONG);
    let keys = ["FAST", "CLAUDE", "HOUSE"].map(key);
    let env = keys.each_ref().map(|(name, key)| (name.as_str(), *key));
    let loaded = from(&blocks.join("\n"), &env, &[]).unwrap();
    assert_eq!(loaded.warnings.len(), 0);
    let llm = &loaded.config.llm;
    let kinds: Vec<_> = llm.providers.iter().map(|(name, it)| (name.as_str(), it.r#type)).collect();
    assert_eq!(kinds, [("fast", Kind::Openai), ("claude", Kind::Anthropic), ("house", Kind::Dify)]);
    assert_eq!((llm.default.as_deref(), llm.tokens_per_user_day), (Some("fast"), Some(200_000)));
    assert_eq!(llm.moderation.on_failure, Verdict::Allow);
}
