//! The text that is being typed. Pure: keys in, text and cursor out.

use ratatui::text::Span;
use unicode_segmentation::UnicodeSegmentation;

/// Most characters of a message (the contract, section 1).
pub(super) const CHARS_MAX: usize = 10_000;

/// A tab on the screen, where it would move the terminal's cursor.
const TAB: &str = "    ";

/// One text and the place in it where typing goes on, which is always between two characters as people see them.
#[derive(Debug, Default)]
pub(super) struct Composer {
    text: String,
    cursor: usize,
}

impl Composer {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Puts text in at the cursor; what is too long for a message is left out, and then it is `false`.
    pub(super) fn insert(&mut self, text: &str) -> bool {
        let room = CHARS_MAX.saturating_sub(self.text.chars().count());
        // A pasted carriage return is a new line; other controls would move the terminal's cursor.
        let clean = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut clean = clean.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control());
        let fits: String = clean.by_ref().take(room).collect();
        self.text.insert_str(self.cursor, &fits);
        self.cursor += fits.len();
        clean.next().is_none()
    }

    pub(super) fn backspace(&mut self) {
        let end = self.cursor;
        self.left();
        self.text.replace_range(self.cursor..end, "");
    }

    pub(super) fn delete(&mut self) {
        let end = self.after();
        self.text.replace_range(self.cursor..end, "");
    }

    pub(super) fn left(&mut self) {
        let before = self.text.get(..self.cursor).unwrap_or_default();
        self.cursor = before.grapheme_indices(true).next_back().map_or(0, |(at, _)| at);
    }

    pub(super) fn right(&mut self) {
        self.cursor = self.after();
    }

    pub(super) const fn home(&mut self) {
        self.cursor = 0;
    }

    pub(super) const fn end(&mut self) {
        self.cursor = self.text.len();
    }

    /// Takes the text out.
    pub(super) fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text)
    }

    fn after(&self) -> usize {
        let rest = self.text.get(self.cursor..).unwrap_or_default();
        self.cursor + rest.graphemes(true).next().map_or(0, str::len)
    }

    /// The text in lines of a width, and the cursor's column and line in them.
    pub(super) fn lines(&self, width: usize) -> (Vec<String>, (usize, usize)) {
        let mut lines = vec![String::new()];
        let (mut column, mut cursor) = (0, (0, 0));
        for (at, grapheme) in self.text.grapheme_indices(true) {
            let shown = if grapheme == "\t" { TAB } else { grapheme };
            let cells = if grapheme == "\n" { 0 } else { Span::raw(shown).width() };
            if grapheme != "\n" && column + cells > width {
                lines.push(String::new());
                column = 0;
            }
            if at == self.cursor {
                cursor = (column, lines.len() - 1);
            }
            if grapheme == "\n" {
                lines.push(String::new());
                column = 0;
            } else if let Some(line) = lines.last_mut() {
                line.push_str(shown);
                column += cells;
            }
        }
        if self.cursor == self.text.len() {
            cursor = (column, lines.len() - 1);
        }
        (lines, cursor)
    }
}

/// Breaks text into lines of at most `width` cells, between words where there are any.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.replace('\t', TAB).split('\n') {
        let (mut line, mut cells) = (String::new(), 0);
        for word in paragraph.split_word_bounds() {
            // A control character would move the terminal's cursor.
            let word: String = word.chars().filter(|c| !c.is_control()).collect();
            let wide = Span::raw(word.as_str()).width();
            if cells + wide > width && cells > 0 {
                lines.push(std::mem::take(&mut line));
                cells = 0;
                if word.trim().is_empty() {
                    continue;
                }
            }
            if wide <= width {
                line.push_str(&word);
                cells += wide;
                continue;
            }
            for grapheme in word.graphemes(true) {
                let wide = Span::raw(grapheme).width();
                if cells + wide > width && cells > 0 {
                    lines.push(std::mem::take(&mut line));
                    cells = 0;
                }
                line.push_str(grapheme);
                cells += wide;
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_and_emoji_are_moved_over_and_deleted_whole() {
        let mut composer = Composer::default();
        composer.insert("a漢👩‍👩‍👧é");
        assert_eq!(composer.lines(80), (vec!["a漢👩‍👩‍👧é".to_owned()], (6, 0)));
        composer.left();
        composer.backspace();
        assert_eq!(composer.text(), "a漢é");
        assert_eq!(composer.lines(80).1, (3, 0));
        composer.home();
        composer.delete();
        composer.right();
        assert_eq!((composer.text(), composer.lines(80).1), ("漢é", (2, 0)));
    }

    #[test]
    fn what_is_pasted_keeps_its_lines_and_no_controls() {
        let mut composer = Composer::default();
        assert!(composer.insert("one\r\ntwo\rthree\u{1b}[31m"));
        assert_eq!(composer.text(), "one\ntwo\nthree[31m");
        assert_eq!(composer.lines(80).1, (9, 2));
        assert!(!composer.insert(&"x".repeat(CHARS_MAX)), "the rest is told");
        assert_eq!(composer.take().chars().count(), CHARS_MAX);
        assert!(composer.insert("if\tx\n\ty"));
        assert_eq!(
            (composer.text(), composer.lines(80).0),
            ("if\tx\n\ty", vec!["if    x".to_owned(), "    y".to_owned()])
        );
        assert_eq!((composer.lines(80).1, wrap("a\tb", 80)), ((5, 1), vec!["a    b".to_owned()]));
    }

    #[test]
    fn text_breaks_between_words_and_no_line_is_too_wide() {
        assert_eq!(wrap("one two three", 8), ["one two ", "three"]);
        assert_eq!(wrap("漢字漢字", 5), ["漢字", "漢字"]);
        assert_eq!(wrap("aaaaaaaaaa", 4), ["aaaa", "aaaa", "aa"]);
        assert_eq!(wrap("a\n\nb", 4), ["a", "", "b"]);
        for width in 2..20 {
            let text = "Größe 漢字 👩‍👩‍👧 and a-very-long-word-without-a-break\nnext";
            assert!(wrap(text, width).iter().all(|line| Span::raw(line.as_str()).width() <= width), "at {width}");
        }
    }
}
