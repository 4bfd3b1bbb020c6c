//! Names of sessions that their owner has not named: the first one is taken from the first message, a better one is
//! asked for from the model that gave the first complete reply.

use std::time::Duration;

use futures_util::StreamExt;
use tracing::debug;
use unicode_segmentation::UnicodeSegmentation;
use uuid::Uuid;

use super::Router;
use crate::{
    chat::{
        Session, SessionUpdate, Usage,
        name::{legible, visible},
    },
    llm::{self, Chunk, Message, Model, Prompt, Role},
    store::{Change, Purpose, Range, Spend, Spent, StartedTurn},
};

/// Longest name that is taken from a message, in characters as people count them.
const NAME_GRAPHEMES_MAX: usize = 50;

/// The same of a model's name.
const BETTER_GRAPHEMES_MAX: usize = 60;

/// How long a model may take to name a session.
const NAME_DEADLINE: Duration = Duration::from_secs(20);

/// Bytes that a model's answer may have, of which the first line counts.
const ANSWER_BYTES_MAX: usize = 1000;

/// Bytes of message and reply, each, that a model is shown.
const SHOWN_BYTES_MAX: usize = 2000;

/// What the model is asked.
const QUESTION: &str = "Name this conversation in its own language, in at most six words. Answer with the name alone.";

/// The same in bytes: one such character can be of any length.
const NAME_BYTES_MAX: usize = 1000;

impl Router {
    /// Has the model that gave a complete reply name its session, if that was the first one. In a task of its own,
    /// once, and not while the server drains.
    pub(super) fn name_by_model(&self, started: &StartedTurn, reply: String) {
        let parts = &self.0.parts;
        let model = parts.models.get(&started.model_id);
        if !parts.config.model_names || parts.lifecycle.drains() || model.is_none_or(|model| model.demo) {
            return;
        }
        let (router, started) = (self.clone(), started.clone());
        drop(self.0.runners.spawn(async move {
            let named = tokio::select! {
                biased;
                () = router.0.parts.lifecycle.draining() => return,
                named = router.contained(router.better_name(&started, reply)) => named,
            };
            let outcome = match named {
                Some(Some(outcome)) => outcome,
                Some(None) => return,
                None => "failed",
            };
            debug!(session_id = %started.turn.session_id, outcome, "session named by its model");
            router.0.parts.metrics.session_names_total.with_label_values(&[outcome]).inc();
        }));
    }

    /// What became of it; `None` when nothing was asked, as there was no need, or no budget.
    async fn better_name(&self, started: &StartedTurn, reply: String) -> Option<&'static str> {
        let store = &self.0.parts.store;
        let session = store.session(started.turn.session_id).await.ok()??;
        if session.counters.responses != 1 {
            return None;
        }
        // A name is worth less than the user's next question.
        self.within_budget(&started.user_id).await.ok()?;
        let message = store.entries(session.id, Range::After(started.turn.message_seq - 1, 1)).await.ok()?.pop()?;
        let model = self.0.parts.models.get(&started.model_id)?;
        let asked = tokio::time::timeout(NAME_DEADLINE, self.ask_for_name(model, started, message.content, reply));
        match asked.await {
            Ok(Some(name)) => self.give_better_name(session, name).await,
            Ok(None) => Some("failed"),
            Err(_late) => Some("late"),
        }
    }

    /// Asks once, and repeats nothing. What it took is noted however it ends.
    async fn ask_for_name(
        &self,
        model: &Model,
        started: &StartedTurn,
        message: String,
        reply: String,
    ) -> Option<String> {
        let prompt = question(started, message, reply);
        let failed = |err: &llm::Error| debug!(error = err as &dyn std::error::Error, "session is not named");
        let mut answer = model.provider.stream(&prompt).await.inspect_err(failed).ok()?;
        let mut charge = Charge::new(self, model, started, &prompt);
        while charge.text.len() < ANSWER_BYTES_MAX {
            match answer.next().await?.inspect_err(failed).ok()? {
                Chunk::Text(piece) => charge.text.push_str(&piece),
                Chunk::Usage(usage) => charge.reported = Some(usage),
                Chunk::Thread(_) => {}
                Chunk::Done => break,
            }
        }
        from_model(&charge.text)
    }

    async fn give_better_name(&self, session: Session, name: String) -> Option<&'static str> {
        let change = Change::BetterName(name.clone());
        let Ok(changed) = self.0.parts.store.change_session(session.id, None, change).await else {
            return Some("failed");
        };
        if !changed.changed {
            return Some("unchanged");
        }
        self.tell(&changed.session, SessionUpdate { name: Some(name), ..SessionUpdate::of(session.id) }).await;
        Some("named")
    }
}

/// What a model is asked for a name with: the first message, its reply, and the question.
fn question(started: &StartedTurn, message: String, reply: String) -> Prompt {
    let said = |role, mut content: String| {
        content.truncate(super::boundary(&content, SHOWN_BYTES_MAX));
        Message::text(role, content)
    };
    let messages = vec![said(Role::User, message), said(Role::Assistant, reply), said(Role::User, QUESTION.to_owned())];
    Prompt { system: None, messages: messages.into(), user_id: started.user_id.clone(), thread: None }
}

/// What an accepted request took so far: noted when it is dropped, so that no way out of it is free.
struct Charge<'a> {
    router: &'a Router,
    model: &'a Model,
    started: &'a StartedTurn,
    prompt_tokens: u64,
    reported: Option<Usage>,
    text: String,
}

impl<'a> Charge<'a> {
    fn new(router: &'a Router, model: &'a Model, started: &'a StartedTurn, prompt: &Prompt) -> Self {
        let prompt_tokens = prompt.messages.iter().map(|message| model.tokenizer.count(&message.content)).sum();
        Self { router, model, started, prompt_tokens, reported: None, text: String::new() }
    }

    fn spent(&self) -> Spent {
        let usage = self.reported.unwrap_or_else(|| Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.model.tokenizer.count(&self.text),
            estimated: true,
        });
        Spent { model_id: self.model.id.to_string(), purpose: Purpose::Name, usage, cost: self.model.cost(&usage) }
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        let (router, spent) = (self.router.clone(), self.spent());
        let (user_id, session_id) = (self.started.user_id.clone(), self.started.turn.session_id);
        let spend = Spend { id: Uuid::now_v7(), user_id, session_id, spent };
        drop(self.router.0.runners.spawn(async move { router.spend(spend).await }));
    }
}

/// Takes a name from a message: its first line that is not blank, cut between words where that is possible and
/// never within a character. `None` when all of it is blank.
pub(super) fn from_message(content: &str) -> Option<String> {
    first_line(content).map(|line| cut(&line, NAME_GRAPHEMES_MAX))
}

/// Whether [`from_message`] finds a name in a message.
pub(super) fn says_something(content: &str) -> bool {
    content.chars().any(visible)
}

/// Takes a name from a model's answer: its first line without quotes, marks of Markdown and the point at its end.
fn from_model(answer: &str) -> Option<String> {
    let line = first_line(answer)?;
    let ornament = |c: char| c.is_whitespace() || "\"'`*_#„“”«»‘’「」『』".contains(c);
    let bare = line.trim_start_matches(ornament).trim_end_matches(|c| ornament(c) || ".。".contains(c));
    bare.chars().any(visible).then(|| cut(bare, BETTER_GRAPHEMES_MAX))
}

fn first_line(text: &str) -> Option<String> {
    let line = legible(text.lines().find(|line| says_something(line))?);
    let words = line.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    Some(words.collect::<Vec<_>>().join(" "))
}

fn cut(line: &str, graphemes_max: usize) -> String {
    let fits = |end: usize, count: usize| end <= NAME_BYTES_MAX && count <= graphemes_max;
    let ends = || line.grapheme_indices(true).map(|(at, grapheme)| at + grapheme.len()).zip(1..);
    if ends().all(|(end, count)| fits(end, count)) {
        return line.to_owned();
    }
    // One character is the ellipsis'.
    let end = ends().take_while(|(end, count)| fits(*end, count + 1)).last().map_or(0, |(end, _)| end);
    let (kept, rest) = line.split_at(end);
    let whole = rest.starts_with(' ').then_some(kept).or_else(|| kept.rsplit_once(' ').map(|(words, _)| words));
    format!("{}…", whole.unwrap_or(kept))
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
            (" \u{7}\0\n", None),
            ("\u{200b}\u{3164}\n\u{202e}Parcel\u{2069} \u{200b} 7\u{feff}", Some("Parcel 7")),
            ("\u{200b}\u{2060}\n\u{2800}", None),
            ("", None),
        ] {
            assert_eq!(from_message(message).as_deref(), name, "{message:?}");
            assert_eq!(says_something(message), name.is_some(), "{message:?}");
        }
    }

    /// checklist 70
    #[test]
    fn a_long_line_is_cut_between_words() {
        let words = "one two three four five six seven eight nine ten eleven";
        assert_eq!(from_message(words).unwrap(), "one two three four five six seven eight nine ten…");
        let exact = "x".repeat(NAME_GRAPHEMES_MAX);
        assert_eq!(from_message(&exact).unwrap(), exact);
        assert_eq!(from_message(&format!("{exact}y")).unwrap(), format!("{}…", "x".repeat(NAME_GRAPHEMES_MAX - 1)));
        let ends_with_word = format!("{} y", "x".repeat(NAME_GRAPHEMES_MAX - 1));
        assert_eq!(from_message(&ends_with_word).unwrap(), format!("{}…", "x".repeat(NAME_GRAPHEMES_MAX - 1)));
    }

    #[test]
    fn a_models_name_is_its_first_line_without_ornaments() {
        for (answer, name) in [
            ("Late parcel", Some("Late parcel")),
            ("\n\"**Late parcel.**\"\nBecause it is late.", Some("Late parcel")),
            ("“Spätes Paket”", Some("Spätes Paket")),
            ("# Late parcel.", Some("Late parcel")),
            ("\"\"", None),
            ("\"\u{202e}Late\u{202c} parcel\"", Some("Late parcel")),
            ("\"\u{200b}\u{3164}\"", None),
            ("", None),
        ] {
            assert_eq!(from_model(answer).as_deref(), name, "{answer:?}");
        }
        assert!(from_model(&"word ".repeat(40)).unwrap().graphemes(true).count() <= BETTER_GRAPHEMES_MAX);
    }

    /// checklist 70
    #[test]
    fn no_character_is_cut() {
        for character in ["é", "e\u{301}", "日", "👩‍👩‍👧‍👦", "🇩🇪", "क्षि"] {
            let name = from_message(&character.repeat(60)).unwrap();
            let kept = name.strip_suffix('…').expect("it is cut");
            assert!(kept.graphemes(true).all(|grapheme| grapheme == character), "{name}");
            assert!(kept.graphemes(true).count() < NAME_GRAPHEMES_MAX && !kept.is_empty(), "{name}");
        }
        let one = format!("a{}", "\u{301}".repeat(5000));
        assert!(from_message(&one).unwrap().len() <= NAME_BYTES_MAX, "one character can be of any length");
    }
}
