//! Names of sessions: the first one is taken from the first message.

use unicode_segmentation::UnicodeSegmentation;

/// Longest name that is taken from a message, in characters as people count them.
const NAME_GRAPHEMES_MAX: usize = 50;

/// The same in bytes: one such character can be of any length.
const NAME_BYTES_MAX: usize = 1000;

/// Takes a name from a message: its first line that is not blank, cut between words where that is possible and
/// never within a character. `None` when all of it is blank.
pub(super) fn from_message(content: &str) -> Option<String> {
    let line = content.lines().find_map(|line| {
        let words: Vec<&str> =
            line.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
        (!words.is_empty()).then(|| words.join(" "))
    })?;
    let fits = |end: usize, count: usize| end <= NAME_BYTES_MAX && count <= NAME_GRAPHEMES_MAX;
    let ends = || line.grapheme_indices(true).map(|(at, grapheme)| at + grapheme.len()).zip(1..);
    if ends().all(|(end, count)| fits(end, count)) {
        return Some(line);
    }
    // One character is the ellipsis'.
    let end = ends().take_while(|(end, count)| fits(*end, count + 1)).last().map_or(0, |(end, _)| end);
    let (kept, rest) = line.split_at(end);
    let whole = rest.starts_with(' ').then_some(kept).or_else(|| kept.rsplit_once(' ').map(|(words, _)| words));
    Some(format!("{}…", whole.unwrap_or(kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// checklist 70
    #[test]
    fn the_first_line_that_says_something_is_the_name() {
        for (message, name) in [
            ("Where is my parcel?", Some("Where is my parcel?")),
            ("\n \t\r\n  Parcel\tnumber  7 \nis late", Some("Parcel number 7")),
            ("<b>&amp;", Some("<b>&amp;")),
            (" \n\u{3000}\n", None),
            ("", None),
        ] {
            assert_eq!(from_message(message).as_deref(), name, "{message:?}");
        }
    }

    /// checklist 70
    #[test]
    fn a_long_line_is_cut_between_words() {
        let words = "one two three four five six seven eight nine ten eleven";
        assert_eq!(from_message(words).unwrap(), "one two three four five six seven eight nine ten…");
        let exact = "x".repeat(NAME_GRAPHEMES_MAX);
        assert_eq!(from_message(&exact).unwrap(), exact);
        assert_eq!(from_message(&format!("{exact}y")).unwrap(), format!("{}…", &exact[1..]));
        let ends_with_word = format!("{} y", "x".repeat(NAME_GRAPHEMES_MAX - 1));
        assert_eq!(from_message(&ends_with_word).unwrap(), format!("{}…", "x".repeat(NAME_GRAPHEMES_MAX - 1)));
    }

    /// checklist 70
    #[test]
    fn no_character_is_cut() {
        for character in ["é", "e\u{301}", "日", "👩‍👩‍👧‍👦", "🇩🇪", "क्षि"] {
            let name = from_message(&character.repeat(60)).unwrap();
            let kept = name.strip_suffix('…').expect("it is cut");
            assert!(kept.graphemes(true).all(|grapheme| grapheme == character), "{name}");
            assert!(kept.graphemes(true).count() <= NAME_GRAPHEMES_MAX - 1 && !kept.is_empty(), "{name}");
        }
        let one = format!("a{}", "\u{301}".repeat(5000));
        assert!(from_message(&one).unwrap().len() <= NAME_BYTES_MAX, "one character can be of any length");
    }
}
