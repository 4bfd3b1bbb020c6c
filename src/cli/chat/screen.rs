//! What the terminal shows: the conversation, what is being typed, and how the connection is.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Position, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Clear, List, ListItem, ListState, Paragraph},
};

use super::{composer::Composer, transcript::Transcript};
use crate::{
    client::{State, Status},
    protocol::{ConnectionStatus, Model},
};

/// Lines that the text being typed takes at most.
const COMPOSER_LINES_MAX: usize = 6;

/// The end is not seen in a narrow terminal.
const KEYS: &str = "^D leave · Enter send · Esc stop · ^N new · ^O model · ^R again · Alt-Enter line · PgUp/PgDn";

/// Everything that is shown.
#[derive(Default)]
pub(super) struct Screen {
    pub(super) transcript: Transcript,
    pub(super) composer: Composer,
    pub(super) status: Status,
    pub(super) session: Option<ConnectionStatus>,
    /// a sentence about what went wrong, until the next key
    pub(super) notice: Option<String>,
    /// the model that is pointed at, while one is chosen
    pub(super) choice: Option<usize>,
    /// lines from the end; 0: the newest is seen
    pub(super) scroll: usize,
    /// whether the beginning of what is loaded is seen
    pub(super) at_top: bool,
    /// lines of the conversation that are seen at a time
    pub(super) page: usize,
    /// width and number of the lines that the place in them was counted in; 0 when it is not to move with them
    pub(super) counted: (usize, usize),
}

impl Screen {
    pub(super) fn models(&self) -> &[Model] {
        self.session.as_ref().map_or(&[], |session| &session.models)
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let width = usize::from(area.width.saturating_sub(2)).max(1);
        let (lines, cursor) = self.composer.lines(width);
        let shown = lines.len().min(COMPOSER_LINES_MAX);
        let height = u16::try_from(shown).unwrap_or(1) + 2;
        let rows = [Constraint::Length(1), Constraint::Min(1), Constraint::Length(height), Constraint::Length(1)];
        let [title, log, composer, status] = Layout::vertical(rows).areas(area);
        frame.render_widget(self.title(), title);
        self.draw_log(frame, log);
        self.draw_composer(frame, composer, &lines, cursor);
        frame.render_widget(self.status_line(), status);
        self.draw_choice(frame, log);
    }

    fn title(&self) -> Paragraph<'_> {
        let name = self.session.as_ref().and_then(|session| session.name.as_deref()).unwrap_or("new conversation");
        let model = self.session.as_ref().and_then(|session| session.model_id.as_deref()).unwrap_or("");
        let ended =
            self.session.as_ref().is_some_and(|session| session.state == Some(crate::chat::SessionState::Ended));
        let spans = vec![
            Span::styled(format!(" {name} "), Style::new().add_modifier(Modifier::BOLD)),
            Span::styled(format!(" {model}"), Style::new().fg(Color::DarkGray)),
            Span::raw(if ended { "  (ended)" } else { "" }),
        ];
        Paragraph::new(Line::from(spans)).style(Style::new().add_modifier(Modifier::REVERSED))
    }

    fn draw_log(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.page = usize::from(area.height);
        let width = usize::from(area.width);
        let lines = self.transcript.lines(width);
        if self.scroll > 0 && self.counted.0 == width {
            // Who reads further up keeps the place while text comes below.
            self.scroll += lines.len().saturating_sub(self.counted.1);
        }
        self.counted = (width, lines.len());
        let beyond = lines.len().saturating_sub(self.page);
        self.scroll = self.scroll.min(beyond);
        self.at_top = self.scroll == beyond;
        let seen: Vec<_> = lines.into_iter().skip(beyond - self.scroll).take(self.page).cloned().collect();
        frame.render_widget(Paragraph::new(seen), area);
    }

    fn draw_composer(&self, frame: &mut Frame<'_>, area: Rect, lines: &[String], (column, line): (usize, usize)) {
        let block = Block::new().borders(Borders::ALL).border_style(Style::new().fg(Color::DarkGray));
        let inner = block.inner(area);
        let first = (line + 1).saturating_sub(usize::from(inner.height).max(1));
        let seen: Vec<_> = lines.iter().skip(first).map(|line| Line::from(line.as_str())).collect();
        frame.render_widget(Paragraph::new(seen).block(block), area);
        let x = inner.x.saturating_add(u16::try_from(column).unwrap_or(0)).min(inner.right());
        let y = inner.y.saturating_add(u16::try_from(line - first).unwrap_or(0));
        frame.set_cursor_position(Position { x, y });
    }

    fn status_line(&self) -> Paragraph<'_> {
        let (state, colour) = match self.status.state {
            State::Connecting => ("connecting", Color::Yellow),
            State::Connected => ("connected", Color::Green),
            State::Reconnecting => ("reconnecting", Color::Yellow),
            State::Closed => ("closed", Color::Red),
        };
        let via = self.status.transport.map_or_else(String::new, |transport| format!(" {}", transport.name()));
        let again = if self.status.reconnects == 0 { String::new() } else { format!(" ↻{}", self.status.reconnects) };
        let rest = match (&self.notice, &self.status.reason) {
            (Some(notice), _) => notice.as_str(),
            (None, Some(reason)) => reason.as_str(),
            (None, None) => KEYS,
        };
        let spans = vec![
            Span::styled(format!(" {state}{via}{again} "), Style::new().fg(colour)),
            Span::styled(format!("│ {rest}"), Style::new().fg(Color::DarkGray)),
        ];
        Paragraph::new(Line::from(spans))
    }

    fn draw_choice(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(choice) = self.choice else { return };
        let items: Vec<ListItem<'_>> = self
            .models()
            .iter()
            .map(|model| {
                ListItem::new(format!("{} ({}){}", model.name, model.id, if model.images { " · images" } else { "" }))
            })
            .collect();
        let height = u16::try_from(items.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
        let width = 50.min(area.width);
        let place = Rect { x: area.x + (area.width - width) / 2, y: area.y, width, height };
        let list = List::new(items)
            .block(Block::new().borders(Borders::ALL).title(" model: ↑ ↓ Enter, Esc "))
            .highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_widget(Clear, place);
        frame.render_stateful_widget(list, place, &mut ListState::default().with_selected(Some(choice)));
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::client::Event;

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let cells: Vec<_> = terminal.backend().buffer().content().iter().map(|cell| cell.symbol().to_owned()).collect();
        cells.chunks(usize::from(width)).map(|row| row.concat().trim_end().to_owned()).collect()
    }

    #[test]
    fn a_terminal_may_be_of_any_size() {
        let mut screen = Screen::default();
        screen.transcript.say("Größe 漢字 👩‍👩‍👧");
        screen.composer.insert("Größe 漢字\n👩‍👩‍👧");
        screen.choice = Some(0);
        for width in 1..12 {
            for height in 1..12 {
                assert_eq!(drawn(&mut screen, width, height).len(), usize::from(height), "{width} x {height}");
            }
        }
    }

    #[test]
    fn whoever_reads_further_up_keeps_the_place() {
        let mut screen = Screen::default();
        for line in 0..40 {
            screen.transcript.say(&format!("line {line}"));
        }
        drawn(&mut screen, 40, 14);
        screen.scroll = 30;
        let before = drawn(&mut screen, 40, 14);
        let turn_id = serde_json::from_value(serde_json::json!("01a21579-79c2-70e9-afe1-f85fef28a5ce")).unwrap();
        screen.transcript.take(&Event::Piece { turn_id, offset: 0, content: "one\ntwo\nthree".to_owned() });
        assert_eq!(drawn(&mut screen, 40, 14), before);
        screen.scroll = 0;
        assert!(drawn(&mut screen, 40, 14).iter().any(|line| line.contains("three")));
    }
}
