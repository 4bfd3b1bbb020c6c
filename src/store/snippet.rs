//! How words are found in a text, and what is shown of it.

/// How long a snippet is, and how much of it stands before the hit, in characters.
const SNIPPET_CHARS: usize = 120;
const BEFORE_CHARS: usize = 40;

/// Letters without their case. A Greek word is written with another sigma at its end.
pub(super) fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).map(|letter| if letter == 'ς' { 'σ' } else { letter }).collect()
}

/// The text around the first hit of a folded text.
pub(super) fn snippet(text: &str, wanted: &str) -> Option<String> {
    let hit = folded(text).find(wanted)?;
    let mut end = 0;
    let until = |letter: &char| {
        end += letter.to_lowercase().map(char::len_utf8).sum::<usize>();
        end <= hit
    };
    let begin = text.chars().take_while(until).count().saturating_sub(BEFORE_CHARS);
    let mut rest = text.chars().skip(begin);
    let mut snippet: String = if begin > 0 { "…" } else { "" }.to_owned();
    snippet.extend(rest.by_ref().take(SNIPPET_CHARS));
    snippet.extend(rest.next().map(|_more| '…'));
    Some(snippet)
}

#[cfg(test)]
mod tests {
    use super::{folded, snippet};

    #[test]
    fn hit_is_found_whatever_the_case_of_its_letters() {
        let cases = [
            ("Große STRASSE", "strasse", true),
            ("ÄPFEL und Öl", "äpfel UND ö", true),
            ("ΟΔΟΣ", "οδος", true),
            ("οδος", "ΟΔΟΣ", true),
            ("ПРИВЕТ, мир", "привет, МИР", true),
            ("日本語", "本", true),
            ("one two", "two one", false),
            ("", "x", false),
        ];
        for (text, wanted, hit) in cases {
            assert_eq!(snippet(text, &folded(wanted)).is_some(), hit, "{wanted} in {text}");
        }
    }

    #[test]
    fn snippet_is_cut_at_characters_around_the_hit() {
        // The letter before the hit is longer in small letters than it is in capitals.
        let text = format!("{}İNeedle{}", "ä".repeat(99), "ö".repeat(200));
        let want = format!("…{}İNeedle{}…", "ä".repeat(39), "ö".repeat(74));
        assert_eq!(snippet(&text, "needle"), Some(want));
        assert_eq!(snippet("a Needle", "needle").as_deref(), Some("a Needle"));
        assert_eq!(snippet(&"n".repeat(120), "n").map(|snippet| snippet.chars().count()), Some(120));
        assert_eq!(snippet(&"n".repeat(121), "n").map(|snippet| snippet.chars().count()), Some(121));
    }
}
