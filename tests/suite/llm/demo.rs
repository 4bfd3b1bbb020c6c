//! The provider that needs no network.

use std::time::{Duration, Instant};

use chatbox::llm::{
    Chunk, Config, Message, Provider as _, Role,
    demo::{self, Demo},
};
use futures_util::StreamExt;

use super::{collect, prompt};

#[tokio::test]
async fn the_demo_streams_the_same_words_at_its_pace() {
    let asked = prompt("What is chatbox?");
    let expected = demo::answer(&asked);
    let pieces = u32::try_from(expected.split_inclusive([' ', '\n']).count()).unwrap();
    let start = Instant::now();
    let (text, usage, end) = collect(Demo::new(Duration::from_millis(1), None).stream(&asked).await).await;
    assert!(start.elapsed() >= Duration::from_millis(1) * pieces, "{pieces} pieces took {:?}", start.elapsed());
    assert_eq!(text, expected);
    let usage = usage.unwrap();
    assert!(usage.estimated && usage.prompt_tokens == 4 && usage.completion_tokens > 100, "{usage:?}");
    end.unwrap();
    assert_eq!(collect(Demo::new(Duration::ZERO, None).stream(&asked).await).await.0, expected);
}

#[tokio::test]
async fn a_fixed_answer_of_the_demo_is_one_piece() {
    let demo = Demo::new(Duration::ZERO, Some("All of it."));
    let answer = demo.stream(&prompt("count to 3")).await.unwrap();
    let chunks: Vec<_> = answer.map(|chunk| chunk.unwrap()).collect().await;
    let texts: Vec<_> = chunks.iter().filter(|chunk| matches!(chunk, Chunk::Text(_))).collect();
    assert_eq!(texts, [&Chunk::Text("All of it.".to_owned())]);
    assert_eq!(chunks.last(), Some(&Chunk::Done));
}

#[test]
fn the_demo_answers_what_is_asked_and_says_what_it_is() {
    for (question, heading) in [
        ("What is chatbox?", "## What chatbox is"),
        ("Why WebTransport, why not WebSocket?", "## WebTransport first"),
        ("What if I lose the network?", "## When the network goes away"),
        ("How do I configure a real model in production?", "## Running it with a real model"),
        ("Is my data encrypted?", "## Where conversations live"),
        ("Which limits are there?", "## Limits"),
        ("Where are conversations stored, and who can read them?", "## Where conversations live"),
        ("What is QUIC?", "## WebTransport first"),
        ("Which limits does chatbox have?", "## Limits"),
        ("<script>alert(1)</script> ![x](y)", "## Hello from chatbox"),
        ("", "## Hello from chatbox"),
    ] {
        let answer = demo::answer(&prompt(question));
        assert!(answer.starts_with(heading), "{question}: {answer}");
        assert!(answer.contains("This is the demo provider"), "{question}");
        assert!(!answer.contains("script>"), "{question}");
    }
}

#[test]
fn the_demo_remembers_what_was_asked() {
    let mut asked = prompt("Which limits are there?");
    asked.messages.to_mut().push(Message::text(Role::Assistant, "Many."));
    asked.messages.to_mut().push(Message::text(Role::User, "And WebTransport?"));
    let answer = demo::answer(&asked);
    assert!(
        answer.starts_with("Earlier you asked about **limits**; this is message 2 of our conversation."),
        "{answer}"
    );
}

#[test]
fn the_demo_counts_on_request() {
    assert_eq!(demo::answer(&prompt("Please count to 3.")), "1. line\n2. line\n3. line\n");
    for (request, lines) in [("count to 0", 1), ("COUNT TO 99999999999999", 1000), ("count to 1000", 1000)] {
        assert_eq!(demo::answer(&prompt(request)).lines().count(), lines, "{request}");
    }
}

/// The default deadline leaves room for everything that the demo can say at its default pace.
#[test]
fn the_longest_demo_answer_fits_the_deadline() {
    let pieces = demo::answer(&prompt("count to 1000")).split_inclusive([' ', '\n']).count();
    assert!(demo::PACE * u32::try_from(pieces).unwrap() < Config::default().timeout);
}
