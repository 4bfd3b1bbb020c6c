//! What a model is sent of a conversation: as much as its budget of tokens takes, in whole exchanges.

use std::{borrow::Cow, collections::HashMap, ops::Deref, sync::Arc};

use super::{Message, Model, Prompt, Role};
use crate::chat::UserId;

/// Tokens that vendors' formats put around each message: its role and its limits.
const MESSAGE_TOKENS: u64 = 4;

/// What a model is asked that goes on with another one's answer.
const GO_ON: &str = "Your answer broke off there. Go on with it exactly where it stopped, in its language and format. \
                     Repeat nothing of it, and say nothing about the interruption.";

/// The same, behind it, when a code block was open.
const OPEN_AGAIN: &str = " It stopped inside a code block, which was closed: open it again first.";

/// Messages in their order, or the end of others. A copy shares them: a conversation is long, and each model of a chain
/// is sent nearly the same.
#[derive(Clone, Default, Debug)]
pub struct Messages {
    all: Arc<Vec<Message>>,
    from: usize,
}

impl Messages {
    /// To change them, as a copy of one's own where others hold them too.
    pub fn to_mut(&mut self) -> &mut Vec<Message> {
        let all = Arc::make_mut(&mut self.all);
        all.drain(..std::mem::take(&mut self.from));
        all
    }

    fn since(&self, start: usize) -> Self {
        Self { all: Arc::clone(&self.all), from: self.from + start }
    }
}

impl Deref for Messages {
    type Target = [Message];

    fn deref(&self) -> &[Message] {
        self.all.get(self.from..).unwrap_or_default()
    }
}

impl From<Vec<Message>> for Messages {
    fn from(messages: Vec<Message>) -> Self {
        Arc::new(messages).into()
    }
}

impl From<Arc<Vec<Message>>> for Messages {
    fn from(all: Arc<Vec<Message>>) -> Self {
        Self { all, from: 0 }
    }
}

impl PartialEq for Messages {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// A conversation that is to be answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Conversation {
    /// oldest first; the last one is to be answered. A message of a person begins an exchange, and what was answered
    /// to it ends that
    pub messages: Messages,
    /// the user whom it answers
    pub user_id: UserId,
    /// by model id: what a provider that keeps conversations itself calls this one, where it holds all of it but the
    /// last message
    pub threads: HashMap<String, String>,
}

/// The beginning of an answer, which another model is to go on with.
pub(super) struct Begun<'a> {
    /// its text, with code blocks closed
    pub(super) text: &'a str,
    /// one was open
    pub(super) in_code: bool,
}

impl Model {
    /// What this model is sent so that it answers.
    pub(super) fn prompt(&self, conversation: &Conversation) -> Prompt {
        Prompt {
            system: self.system_prompt.clone(),
            messages: conversation.messages.since(self.fit(&conversation.messages, 0)),
            user_id: conversation.user_id.clone(),
            thread: conversation.threads.get(&*self.id).filter(|_thread| self.threads).cloned(),
        }
    }

    /// What this model is sent so that it goes on with another one's answer.
    pub(super) fn prompt_to_go_on(&self, conversation: &Conversation, begun: &Begun<'_>) -> Prompt {
        let ask = if begun.in_code { Cow::Owned(format!("{GO_ON}{OPEN_AGAIN}")) } else { Cow::Borrowed(GO_ON) };
        let last = [Message::text(Role::Assistant, begun.text), Message::text(Role::User, &*ask)];
        let reserved = last.iter().map(|message| self.message_tokens(message)).sum();
        let mut messages = conversation.messages.since(self.fit(&conversation.messages, reserved));
        messages.to_mut().extend(last);
        // What the provider keeps holds neither the question nor this beginning of an answer.
        let (system, user_id) = (self.system_prompt.clone(), conversation.user_id.clone());
        Prompt { system, messages, user_id, thread: None }
    }

    /// Tokens of a whole prompt.
    pub(super) fn prompt_tokens(&self, prompt: &Prompt) -> u64 {
        let system = prompt.system.as_deref().map_or(0, |system| self.tokens(system));
        system + prompt.messages.iter().map(|message| self.message_tokens(message)).sum::<u64>()
    }

    fn message_tokens(&self, message: &Message) -> u64 {
        self.tokens(&message.content) + MESSAGE_TOKENS
    }

    /// From which message on the newest exchanges fit what the context has beside the answer, the system prompt and
    /// `reserved` tokens. The last one always stays: only the provider can say that it is too much.
    fn fit(&self, messages: &[Message], reserved: u64) -> usize {
        let context = self.context_tokens;
        let answer = self.max_tokens.map_or(context / 4, |tokens| tokens.min(context / 2));
        let room = u64::from(context - answer).saturating_sub(reserved);
        let system = self.system_prompt.as_deref().unwrap_or_default();
        // A token has at least one byte, so what fits by bytes need not be counted.
        let most = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
        let all = messages.iter().map(|message| most(&message.content) + MESSAGE_TOKENS).sum::<u64>();
        if all + most(system) <= room {
            return 0;
        }
        let budget = room.saturating_sub(self.tokens(system));
        let mut tokens = 0;
        let mut kept: &[Message] = &[];
        let begins = |(_, message): &(usize, &Message)| message.role == Role::User;
        for (start, _) in messages.iter().enumerate().rev().filter(begins) {
            let (Some(with), exchange) = (messages.get(start..), messages.len() - start - kept.len()) else { break };
            tokens += with.iter().take(exchange).map(|message| self.message_tokens(message)).sum::<u64>();
            if tokens > budget && !kept.is_empty() {
                break;
            }
            kept = with;
        }
        messages.len() - kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{Config, Models};

    fn model(change: &str) -> Model {
        let toml = format!("[providers.a]\ntype = \"demo\"\n{change}");
        let config: Config = toml::from_str(&toml).unwrap();
        Models::new(&config).unwrap().iter().next().unwrap().clone()
    }

    fn exchanges(count: usize, bytes: usize) -> Conversation {
        let text = |nth: usize| format!("{nth:04}").repeat(bytes / 4);
        let messages = (0..count)
            .flat_map(|nth| [Message::text(Role::User, text(nth)), Message::text(Role::Assistant, text(nth))])
            .take(2 * count - 1);
        Conversation {
            messages: messages.collect::<Vec<_>>().into(),
            user_id: UserId::parse("ann").unwrap(),
            threads: HashMap::from([("a".to_owned(), "thread".to_owned())]),
        }
    }

    fn beginnings(prompt: &Prompt) -> Vec<&str> {
        prompt.messages.iter().map(|message| message.content.split_at(4).0).collect()
    }

    #[test]
    fn what_fits_is_sent_whole() {
        let conversation = exchanges(3, 40);
        let prompt = model("").prompt(&conversation);
        assert_eq!((&prompt.messages, &prompt.thread), (&conversation.messages, &None));
    }

    /// 400 tokens, of which 300 are the prompt's; an exchange takes 2 × (25 + 4).
    #[test]
    fn oldest_exchanges_go_as_a_whole() {
        let prompt = model("context_tokens = 400").prompt(&exchanges(10, 100));
        let kept = ["0005", "0005", "0006", "0006", "0007", "0007", "0008", "0008", "0009"];
        assert_eq!(beginnings(&prompt), kept, "29 + 4 × 58 = 261 of 300 tokens, and no room for 58 more");
    }

    #[test]
    fn the_message_to_be_answered_always_stays() {
        let prompt = model("context_tokens = 40").prompt(&exchanges(3, 4000));
        assert_eq!(beginnings(&prompt), ["0002"]);
    }

    #[test]
    fn the_system_prompt_takes_its_part() {
        let mut model = model("context_tokens = 400");
        model.system_prompt = Some(Arc::from("x".repeat(400)));
        let prompt = model.prompt(&exchanges(10, 100));
        assert_eq!(beginnings(&prompt), ["0007", "0007", "0008", "0008", "0009"]);
        assert_eq!(model.prompt_tokens(&prompt), 100 + 29 + 2 * 58);
    }

    #[test]
    fn who_goes_on_is_told_the_beginning_and_no_thread() {
        let mut model = model("context_tokens = 400");
        model.threads = true;
        let conversation = exchanges(10, 100);
        assert_eq!(model.prompt(&conversation).thread.as_deref(), Some("thread"));
        let text = "1000".repeat(25);
        let prompt = model.prompt_to_go_on(&conversation, &Begun { text: &text, in_code: true });
        assert_eq!(beginnings(&prompt), ["0006", "0006", "0007", "0007", "0008", "0008", "0009", "1000", "Your"]);
        assert_eq!((prompt.messages[7].role, prompt.thread), (Role::Assistant, None));
        assert!(prompt.messages[8].content.ends_with("open it again first."), "{:?}", prompt.messages[8]);
    }
}
