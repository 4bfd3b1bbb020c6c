//! Names that people read: what in a text shows nothing, or changes how the text around it is shown.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Letters and signs that are blank, though Unicode counts them as none: fillers of Hangul and Braille.
const BLANK: [char; 5] = ['\u{115f}', '\u{1160}', '\u{2800}', '\u{3164}', '\u{ffa0}'];

/// Whether a character shows something by itself: it is no space, control, format character or mark upon another one.
#[must_use]
pub fn visible(c: char) -> bool {
    use GeneralCategory::{EnclosingMark, Format, NonspacingMark};
    let hidden = |c: char| matches!(c.general_category(), Format | NonspacingMark | EnclosingMark);
    !c.is_whitespace() && !c.is_control() && (c.is_ascii() || !BLANK.contains(&c) && !hidden(c))
}

/// A text without format characters (Unicode `Cf`): they turn the direction of what follows, or make two names that
/// look the same. Joiners stay between two characters, as scripts and emoji need them.
#[must_use]
pub fn legible(text: &str) -> String {
    let joiner = |c: char| matches!(c, '\u{200c}' | '\u{200d}');
    let format = |c: char| !c.is_ascii() && c.general_category() == GeneralCategory::Format;
    let joined = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace() && !joiner(c));
    let mut kept = String::with_capacity(text.len());
    let mut chars = text.chars().filter(|&c| joiner(c) || !format(c)).peekable();
    while let Some(c) = chars.next() {
        if !joiner(c) || joined(kept.chars().next_back()) && joined(chars.peek().copied()) {
            kept.push(c);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_scripts_and_emoji_need_is_left_of_format_characters() {
        for (text, left) in [
            ("Parcel 7", "Parcel 7"),
            ("a\u{202e}cod.exe\u{2066}b\u{2069}\u{200f}", "acod.exeb"),
            ("pay\u{200b}pal\u{feff}\u{ad}\u{e0041}", "paypal"),
            ("👩‍👩‍👧 ❤️‍🔥", "👩‍👩‍👧 ❤️‍🔥"),
            ("می\u{200c}خواهم क्\u{200d}ष", "می\u{200c}خواهم क्\u{200d}ष"),
            ("\u{200d}a\u{200d}\u{200c}b\u{200d} c\u{200c}", "a\u{200c}b c"),
        ] {
            assert_eq!(legible(text), left, "{text:?}");
        }
    }

    #[test]
    fn what_shows_nothing_is_not_visible() {
        for c in [' ', '\u{7}', '\u{3000}', '\u{200b}', '\u{200d}', '\u{202e}', '\u{3164}', '\u{2800}', '\u{fe0f}'] {
            assert!(!visible(c), "{c:?}");
        }
        for c in ['a', '.', 'é', '漢', 'ा', '🇩', '👩', '\u{e000}'] {
            assert!(visible(c), "{c:?}");
        }
    }
}
