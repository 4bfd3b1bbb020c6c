//! What was said, as it is shown. Pure: events in, lines out.

use std::collections::HashMap;

use ratatui::{
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::composer::wrap;
use crate::{
    chat::{Segment, Sender, TurnId, TurnState},
    client::{Event, Reply},
    protocol::{AiResponse, EntryFrame, ServerFrame},
};

/// Entries that are kept; older ones are read again.
const ITEMS_MAX: usize = 2000;

/// One thing that was said.
#[derive(Debug)]
struct Item {
    /// its place in the log, once it has one
    seq: Option<u64>,
    /// which message of this terminal it is
    own: Option<u64>,
    who: Who,
    text: String,
    /// what is said about it, such as how it ended
    note: String,
    /// all of it as it is shown; empty after a change
    lines: Vec<Line<'static>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Me,
    Model,
    Staff,
}

/// The conversation from some entry on.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    items: Vec<Item>,
    running: HashMap<TurnId, usize>,
    /// messages of this terminal, here and in conversations before
    said: u64,
    /// of the lines
    width: usize,
}

impl Transcript {
    /// The first entry that is shown.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.items.iter().find_map(|item| item.seq)
    }

    /// The turn that runs, if one does.
    pub(super) fn running(&self) -> Option<TurnId> {
        self.running.keys().next().copied()
    }

    /// Adds a message of this terminal, and says which it is.
    pub(super) fn say(&mut self, text: &str) -> u64 {
        self.said += 1;
        let own = Some(self.said);
        self.push(Item { own, text: text.to_owned(), note: "waits".to_owned(), ..Item::new(None, Who::Me) });
        self.said
    }

    /// What became of a message of this terminal, if it is shown.
    pub(super) fn note(&mut self, own: u64, seq: Option<u64>, note: &str) {
        if let Some(item) = self.items.iter_mut().rfind(|item| item.own == Some(own)) {
            item.seq = seq.or(item.seq);
            note.clone_into(&mut item.note);
            item.lines.clear();
        }
    }

    pub(super) fn take(&mut self, event: &Event) {
        match event {
            Event::Reset => *self = Self { said: self.said, ..Self::default() },
            Event::Entry(entry) => drop(self.push(message(entry))),
            Event::Turn { turn_id, seq } => {
                if let Some(item) = self.reply(*turn_id) {
                    item.seq = Some(*seq);
                }
            }
            Event::Piece { turn_id, content, .. } => {
                if let Some(item) = self.reply(*turn_id) {
                    item.text.push_str(content);
                    item.note.clear();
                }
            }
            Event::Reply(reply) => self.end(reply),
            _ => {}
        }
    }

    fn end(&mut self, reply: &Reply) {
        let Some(item) = self.reply(reply.turn_id) else { return };
        item.seq = Some(reply.seq);
        item.text.clone_from(&reply.text);
        item.note = match reply.state {
            TurnState::Complete if reply.verified => writers(&reply.segments),
            TurnState::Complete => "could not be verified".to_owned(),
            state => {
                let why = reply.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
                format!("{}{why}", format!("{state:?}").to_lowercase())
            }
        };
        self.running.remove(&reply.turn_id);
    }

    /// Puts older entries before what is shown.
    pub(super) fn older(&mut self, entries: Vec<ServerFrame>) {
        let older: Vec<Item> = entries
            .into_iter()
            .filter_map(|entry| match entry {
                ServerFrame::UserMessage(entry) => Some(message(&entry)),
                ServerFrame::AiResponse(response) => Some(ended(&response)),
                _ => None,
            })
            .collect();
        for at in self.running.values_mut() {
            *at += older.len();
        }
        self.items.splice(0..0, older);
    }

    fn push(&mut self, item: Item) -> usize {
        if self.items.len() >= ITEMS_MAX && self.running.is_empty() {
            self.items.drain(..ITEMS_MAX / 2);
        }
        self.items.push(item);
        self.items.len() - 1
    }

    /// The reply of a turn, which begins here if it is new, to be changed.
    fn reply(&mut self, turn_id: TurnId) -> Option<&mut Item> {
        let at = self.running.get(&turn_id).copied().unwrap_or_else(|| {
            let at = self.push(Item { note: "thinks".to_owned(), ..Item::new(None, Who::Model) });
            self.running.insert(turn_id, at);
            at
        });
        let item = self.items.get_mut(at)?;
        item.lines.clear();
        Some(item)
    }

    /// Everything in lines of a width. Only what has changed since the last time is wrapped.
    pub(super) fn lines(&mut self, width: usize) -> Vec<&Line<'static>> {
        let all = std::mem::replace(&mut self.width, width) != width;
        for item in self.items.iter_mut().filter(|item| all || item.lines.is_empty()) {
            item.lines = item.wrapped(width);
        }
        self.items.iter().flat_map(|item| &item.lines).collect()
    }
}

impl Item {
    const fn new(seq: Option<u64>, who: Who) -> Self {
        Self { seq, own: None, who, text: String::new(), note: String::new(), lines: Vec::new() }
    }

    fn wrapped(&self, width: usize) -> Vec<Line<'static>> {
        let (name, colour) = match self.who {
            Who::Me => ("you", Color::Cyan),
            Who::Model => ("model", Color::Green),
            Who::Staff => ("staff", Color::Magenta),
        };
        let head = Span::styled(name, Style::new().fg(colour).add_modifier(Modifier::BOLD));
        let note = Span::styled(format!("  {}", self.note), Style::new().fg(Color::DarkGray));
        let mut lines = vec![Line::from(vec![head, note])];
        let text = wrap(&self.text, width.saturating_sub(2).max(1));
        lines.extend(text.into_iter().map(|line| Line::from(format!("  {line}"))));
        lines.push(Line::default());
        lines
    }
}

fn message(entry: &EntryFrame) -> Item {
    let who = match entry.sender {
        Sender::User => Who::Me,
        Sender::Ai => Who::Model,
        Sender::Admin | Sender::System => Who::Staff,
    };
    Item { text: entry.content.clone(), ..Item::new(Some(entry.seq), who) }
}

fn ended(response: &AiResponse) -> Item {
    let reply = response.reply.as_ref();
    let note = match reply.map(|reply| (reply.state, &reply.segments)) {
        Some((TurnState::Complete, segments)) => writers(segments),
        Some((state, _)) => format!("{state:?}").to_lowercase(),
        None => String::new(),
    };
    let text = response.content.clone().into_owned();
    Item { text, note, ..Item::new(reply.map(|reply| reply.seq), Who::Model) }
}

/// Who wrote a reply, when several models did.
fn writers(segments: &[Segment]) -> String {
    segments.iter().map(|segment| segment.model_id.as_str()).collect::<Vec<_>>().join(", then ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(transcript: &mut Transcript) -> Vec<String> {
        let lines = transcript.lines(80);
        lines.iter().map(|line| line.to_string().trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn what_became_of_a_message_is_noted_at_it_wherever_it_is_by_then() {
        let entry = |seq: u64, content: &str| {
            let frame = serde_json::json!({
                "type": "user_message", "entry_id": "01a21579-79c2-70e9-afe1-f85fef28a5ce",
                "session_id": "01a21579-63cf-77f9-8d53-a904e2c57f36", "seq": seq, "content": content,
                "sender": "user", "timestamp": "2026-01-02T03:04:05.678Z",
            });
            serde_json::from_value::<ServerFrame>(frame).unwrap()
        };
        let mut transcript = Transcript::default();
        let first = transcript.say("first");
        transcript.older(vec![entry(1, "one"), entry(2, "two")]);
        transcript.note(first, Some(3), "");
        assert_eq!(shown(&mut transcript), ["you", "one", "you", "two", "you", "first"]);
        let before = transcript.say("before");
        transcript.take(&Event::Reset);
        transcript.say("in another conversation");
        transcript.note(before, Some(4), "");
        assert_eq!(shown(&mut transcript), ["you  waits", "in another conversation"]);
        assert_eq!(transcript.oldest(), None);
    }

    #[test]
    fn only_what_changes_is_wrapped_anew() {
        let turn_id = serde_json::from_value(serde_json::json!("01a21579-79c2-70e9-afe1-f85fef28a5ce")).unwrap();
        let piece = |content: &str| Event::Piece { turn_id, offset: 0, content: content.to_owned() };
        let mut transcript = Transcript::default();
        let said = transcript.say("what was said");
        transcript.take(&piece("one "));
        let place = |transcript: &mut Transcript| transcript.lines(80)[1].spans[0].content.as_ptr();
        let before = place(&mut transcript);
        transcript.take(&piece("two"));
        assert_eq!(shown(&mut transcript), ["you  waits", "what was said", "model", "one two"]);
        assert_eq!(place(&mut transcript), before, "it is kept while another entry grows");
        transcript.note(said, Some(1), "");
        assert_eq!(shown(&mut transcript), ["you", "what was said", "model", "one two"]);
        let narrow: Vec<_> = transcript.lines(9).into_iter().map(ToString::to_string).collect();
        assert_eq!(narrow, ["you  ", "  what ", "  was ", "  said", "", "model  ", "  one two", ""]);
    }
}
