//! What no vendor does on purpose: panics of an interface's code, and callers that give up at every moment.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::stream;

use super::*;
use crate::{
    chat::UserId,
    llm::{Config, Message, Models, Provider, Role, Usable},
};

/// An interface whose code panics: before it answers, or after so many pieces.
#[derive(Debug)]
struct Panics(Option<usize>);

#[async_trait]
impl Provider for Panics {
    async fn stream(&self, _prompt: &Prompt) -> Result<Answer, Error> {
        let pieces = self.0.expect("planted");
        let piece = move |nth| if nth == pieces { panic!("planted") } else { Ok(Chunk::Text("x".to_owned())) };
        Ok(stream::iter(0..).then(move |nth| async move { piece(nth) }).boxed())
    }

    async fn probe(&self) -> Result<Usable, Error> {
        std::future::ready(Ok(Usable::default())).await
    }
}

fn chain(first: Option<Panics>, metrics: &Arc<Metrics>) -> Chain {
    let toml = "[providers.a]\ntype = \"demo\"\npace = \"0s\"\nfallback = [\"b\"]\n\
                [providers.b]\ntype = \"demo\"\npace = \"0s\"\n";
    let models = Models::new(&toml::from_str::<Config>(toml).unwrap()).unwrap();
    let mut chain: Vec<Model> = models.chain("a").into_iter().cloned().collect();
    if let Some(panics) = first {
        chain[0].provider = Arc::new(panics);
    }
    let user_id = UserId::parse("ann").unwrap();
    let messages = vec![Message::text(Role::User, "count to 3")];
    let conversation = Conversation { messages: messages.into(), user_id, threads: HashMap::new() };
    Chain::new(chain, models.policy, conversation, Arc::clone(metrics))
}

async fn text(chain: &mut Chain) -> (String, Step) {
    let mut said = String::new();
    loop {
        match chain.next().await {
            Step::Text { text, .. } => said.push_str(&text),
            end => return (said, end),
        }
    }
}

/// checklist 95, 96
#[tokio::test]
async fn a_panic_is_contained_and_counted_and_the_next_model_answers() {
    for (panics, expected) in [(None, "1. line\n2. line\n3. line\n".to_owned()), (Some(2), format!("xx{MARK}"))] {
        let metrics = Metrics::new();
        let mut chain = chain(Some(Panics(panics)), &metrics);
        let (said, end) = text(&mut chain).await;
        assert_eq!(end, Step::Complete);
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(metrics.panics_total.get(), 1);
        assert_eq!(metrics.model_requests_total.with_label_values(&["a", "broken"]).get(), 1);
        let made = chain.finish();
        assert_eq!(made.segments.last().unwrap().model_id, "b");
        assert_eq!(made.spent.len(), 1 + usize::from(panics.is_some()), "what was accepted may be billed");
    }
}

/// checklist 95: with nobody left, whoever waits gets an end.
#[tokio::test]
async fn a_panic_of_the_last_model_ends_the_answer() {
    let metrics = Metrics::new();
    let mut chain = chain(Some(Panics(Some(1))), &metrics);
    chain.waiting.truncate(1);
    assert_eq!(text(&mut chain).await, ("x".to_owned(), Step::Failed(Failure::Broken)));
    assert_eq!(chain.next().await, Step::Failed(Failure::Broken), "the end comes again");
}

#[tokio::test]
async fn nothing_is_lost_when_the_caller_gives_up_waiting() {
    let metrics = Metrics::new();
    let mut chain = chain(None, &metrics);
    let mut said = String::new();
    loop {
        let Some(step) = chain.next().now_or_never() else {
            tokio::task::yield_now().await;
            continue;
        };
        match step {
            Step::Text { text, .. } => said.push_str(&text),
            end => break assert_eq!((said.as_str(), end), ("1. line\n2. line\n3. line\n", Step::Complete)),
        }
    }
    let usage = chain.finish().usage().unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 6));
}
