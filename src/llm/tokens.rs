//! Tokens of a text before a provider has counted them: exactly for OpenAI's models, else guessed.
//!
//! The vocabularies are those of the crate `tiktoken`, which carries them compressed: 2 MB of the binary. They are
//! unpacked when something is first counted with them: `o200k` in 140 ms into 24 MB of memory, `cl100k` in 35 ms into
//! 9 MB. Prose is counted at 200 MB/s; the slowest text, one word of random letters, at 1.5 MB/s.

use tiktoken::CoreBpe;

use super::config::Tokenizer;

/// Models whose name begins so have that vocabulary. The first that fits counts; sources:
/// <https://github.com/openai/tiktoken/blob/main/tiktoken/model.py>.
const VOCABULARIES: [(&str, Tokenizer); 13] = [
    ("gpt-4o", Tokenizer::O200k),
    ("gpt-4.", Tokenizer::O200k),
    ("gpt-5", Tokenizer::O200k),
    ("gpt-oss", Tokenizer::O200k),
    ("chatgpt-4o", Tokenizer::O200k),
    ("o1", Tokenizer::O200k),
    ("o3", Tokenizer::O200k),
    ("o4", Tokenizer::O200k),
    ("gpt-4", Tokenizer::Cl100k),
    ("gpt-3.5", Tokenizer::Cl100k),
    // As Azure writes it.
    ("gpt-35", Tokenizer::Cl100k),
    ("text-embedding-3", Tokenizer::Cl100k),
    ("text-embedding-ada", Tokenizer::Cl100k),
];

impl Tokenizer {
    /// What counts the tokens of a model of that name; [`Tokenizer::Estimate`] for names that are not OpenAI's.
    ///
    /// What OpenRouter puts in front of a name (`openai/`), and OpenAI of a fine-tuned one (`ft:`), is no part of it.
    #[must_use]
    pub fn of_model(name: &str) -> Self {
        let name = name.strip_prefix("openai/").unwrap_or(name);
        let name = name.strip_prefix("ft:").unwrap_or(name);
        let found = VOCABULARIES.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map_or(Self::Estimate, |(_, tokenizer)| *tokenizer)
    }

    /// Whether what it counts is what the provider will count, but for what a message has around its text: a handful
    /// of tokens.
    #[must_use]
    pub const fn exact(self) -> bool {
        !matches!(self, Self::Estimate)
    }

    /// Tokens of a text.
    #[must_use]
    pub fn count(self, text: &str) -> u64 {
        let vocabulary = match self {
            Self::O200k => tiktoken::get_encoding("o200k_base"),
            Self::Cl100k => tiktoken::get_encoding("cl100k_base"),
            Self::Estimate => None,
        };
        let count = |vocabulary: &CoreBpe| u64::try_from(vocabulary.count(text)).unwrap_or(u64::MAX);
        vocabulary.map_or_else(|| estimate(text), count)
    }
}

/// Tokens of a text, guessed: four bytes each, as most tokenizers come to for English.
#[must_use]
pub fn estimate(text: &str) -> u64 {
    u64::try_from(text.len().div_ceil(4)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_openai_have_their_vocabulary_and_others_are_guessed() {
        for (name, tokenizer) in [
            ("gpt-4o-mini", Tokenizer::O200k),
            ("gpt-4.1", Tokenizer::O200k),
            ("gpt-5-nano", Tokenizer::O200k),
            ("o3-mini", Tokenizer::O200k),
            ("openai/gpt-4o", Tokenizer::O200k),
            ("ft:gpt-4o-mini-2024-07-18:org::id", Tokenizer::O200k),
            ("gpt-4", Tokenizer::Cl100k),
            ("gpt-4-turbo", Tokenizer::Cl100k),
            ("gpt-3.5-turbo", Tokenizer::Cl100k),
            ("gpt-35-turbo", Tokenizer::Cl100k),
            ("claude-sonnet-4-5", Tokenizer::Estimate),
            ("llama3:8b", Tokenizer::Estimate),
            ("opus", Tokenizer::Estimate),
        ] {
            assert_eq!(Tokenizer::of_model(name), tokenizer, "{name}");
        }
    }

    /// Numbers of tiktoken for the same texts.
    #[test]
    fn tokens_are_counted_as_the_vendor_counts_them() {
        for (text, o200k, cl100k, estimate) in [
            ("", 0, 0, 0),
            ("hello world", 2, 2, 3),
            ("tiktoken is great!", 6, 6, 5),
            ("antidisestablishmentarianism", 6, 6, 7),
            ("2 + 2 = 4", 7, 7, 3),
        ] {
            let counted = [Tokenizer::O200k, Tokenizer::Cl100k, Tokenizer::Estimate].map(|it| it.count(text));
            assert_eq!(counted, [o200k, cl100k, estimate], "{text}");
        }
        assert!(Tokenizer::O200k.exact() && Tokenizer::Cl100k.exact() && !Tokenizer::Estimate.exact());
    }
}
