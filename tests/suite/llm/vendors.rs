//! What holds for each of the three vendors, each with its own recorded order of events.

mod faults; // what goes wrong, and what is told of it

use std::time::Duration;

use chatbox::{
    chat::ErrorCode,
    llm::{Chunk, Failure, http::Settings},
};
use futures_util::{StreamExt, future::join_all};
use proptest::prelude::*;

use super::{Vendor, collect, impatient, nowhere, prompt, reason, settings};
use crate::harness::{
    provider::{Gate, Provider, Script, anthropic, dify},
    stopwatch::Stopwatch,
};

const PIECES: [&str; 3] = ["Hel", "lo, wö", "rld 😀"];
const TEXT: &str = "Hello, wörld 😀";

#[tokio::test]
async fn an_answer_streams_with_its_usage() {
    for vendor in Vendor::ALL {
        let provider = Provider::start(vendor.answer(PIECES)).await;
        let asked = vendor.provider(settings(&provider));
        let (text, usage, end) = collect(asked.stream(&prompt("Hi")).await).await;
        assert_eq!((text.as_str(), usage), (TEXT, Some(vendor.usage())), "{vendor:?}");
        end.unwrap();
        assert_eq!(provider.hang_ups(), 0, "{vendor:?}");
    }
}

#[tokio::test]
async fn each_piece_arrives_when_it_is_sent() {
    for vendor in Vendor::ALL {
        let gate = Gate::new();
        let provider = Provider::start(vendor.answer(["one", "two"]).gated(&gate)).await;
        let mut answer = vendor.provider(settings(&provider)).stream(&prompt("Hi")).await.unwrap();
        for piece in ["one", "two"] {
            gate.release(1);
            assert_eq!(answer.next().await.unwrap().unwrap(), Chunk::Text(piece.to_owned()), "{vendor:?}");
        }
        assert!(futures_util::poll!(answer.next()).is_pending(), "{vendor:?}");
    }
}

/// The offset behind which an answer is complete: the end of the event that says so.
fn complete(vendor: Vendor, bytes: &[u8]) -> usize {
    let mark: &[u8] = match vendor {
        Vendor::OpenAi => b"\"finish_reason\":\"stop\"",
        Vendor::Anthropic => b"\"stop_reason\":\"end_turn\"",
        Vendor::Dify => b"\"event\":\"message_end\"",
    };
    let at = bytes.windows(mark.len()).position(|window| window == mark).expect("the mark is there");
    let end = bytes[at..].windows(2).position(|pair| pair == b"\n\n").expect("an event ends");
    at + end + 2
}

/// Cuts a whole stream behind each of its bytes, in the middle of HTTP's body and at its end: the text that came is
/// always a prefix, and the answer counts as finished only when the vendor has said so.
#[tokio::test]
async fn a_stream_cut_at_any_byte_never_counts_as_finished() {
    for vendor in Vendor::ALL {
        let whole = vendor.answer(PIECES);
        let bytes = whole.bytes();
        let complete = complete(vendor, &bytes);
        let provider = Provider::start(whole.clone()).await;
        let asked = vendor.provider(settings(&provider));
        let mut seen = String::new();
        for count in 0..bytes.len() {
            for cut in [true, false] {
                // Dify is asked to stop, and does not answer that: it is the same script.
                provider.script(whole.first_bytes(count, cut));
                let (text, usage, end) = collect(asked.stream(&prompt("Hi")).await).await;
                assert!(TEXT.starts_with(&text) && text.len() >= seen.len(), "{vendor:?} {count}: {text}");
                seen = text;
                let told = end.map_err(|err| err.failure);
                let expected = if count >= complete { Ok(()) } else { Err(Failure::Broken) };
                assert_eq!(told, expected, "{vendor:?}: cut behind byte {count} of {}", bytes.len());
                // OpenAI tells it after the end of the text.
                let counted = vendor == Vendor::OpenAi || usage == Some(vendor.usage());
                assert!(told.is_err() || counted, "{vendor:?} {count}: {usage:?}");
            }
        }
        assert_eq!(seen, TEXT);
    }
}

/// One byte in each TCP segment and HTTP chunk.
#[tokio::test]
async fn the_answer_does_not_depend_on_how_it_is_cut_up() {
    for vendor in Vendor::ALL {
        let bytes = vendor.answer(PIECES).bytes();
        let provider = Provider::start(Script::events(bytes.into_iter().map(|byte| vec![byte]))).await;
        let asked = vendor.provider(settings(&provider));
        let (text, usage, end) = collect(asked.stream(&prompt("Hi")).await).await;
        assert_eq!((text.as_str(), usage), (TEXT, Some(vendor.usage())), "{vendor:?}");
        end.unwrap();
    }
}

/// The bytes of an answer in which some are changed, left out or doubled.
fn mangled() -> impl Strategy<Value = (Vendor, Vec<u8>)> {
    let vendor = proptest::sample::select(Vendor::ALL.to_vec());
    let change = (any::<proptest::sample::Index>(), 0_usize..3, any::<u8>());
    (vendor, proptest::collection::vec(change, 0..4)).prop_map(|(vendor, changes)| {
        let mut bytes = vendor.answer(PIECES).bytes();
        for (at, change, byte) in changes {
            let at = at.index(bytes.len());
            match change {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        (vendor, bytes)
    })
}

proptest! {
    /// Whatever comes: cut anywhere it means the same, and it ends once, at its end.
    #[test]
    fn what_an_answer_means_does_not_depend_on_its_pieces((vendor, bytes) in mangled(), cuts in proptest::collection::vec(1_usize..90, 1..40)) {
        let whole = vendor.read(&[&bytes]);
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        pieces.push(rest);
        prop_assert_eq!(&vendor.read(&pieces), &whole);
        let ends = whole.iter().filter(|next| matches!(next, Ok(Chunk::Done) | Err(_))).count();
        prop_assert_eq!(ends, 1);
        prop_assert!(matches!(whole.last(), Some(Ok(Chunk::Done) | Err(_))));
    }
}

// checklist 97
#[tokio::test]
async fn dropping_the_answer_closes_the_socket_at_once() {
    for vendor in Vendor::ALL {
        let gate = Gate::new();
        let script = vendor.answer(["one", "two"]).gated(&gate);
        let provider = Provider::start_by(dify::stoppable(script.clone())).await;
        if vendor != Vendor::Dify {
            provider.script(script);
        }
        let asked = vendor.provider(settings(&provider));
        let mut answer = asked.stream(&prompt("Hi")).await.unwrap();
        gate.release(1);
        assert_eq!(answer.next().await.unwrap().unwrap(), Chunk::Text("one".to_owned()), "{vendor:?}");
        let dropped = Stopwatch::start();
        drop(answer);
        provider.hung_up(1).await;
        let taken = dropped.elapsed();
        println!("{vendor:?} is hung up on after {taken:?}");
        assert!(taken < Duration::from_secs(1), "{vendor:?}: {taken:?}");

        // The same before the provider has said a word.
        let before = if vendor == Vendor::Dify { 2 } else { 1 };
        provider.request(before - 1).await;
        provider.script(Script::silent());
        let hi = prompt("Hi");
        tokio::select! {
            _ = asked.stream(&hi) => unreachable!("the provider is silent"),
            _ = provider.request(before) => {}
        }
        let dropped = Stopwatch::start();
        provider.hung_up(2).await;
        let taken = dropped.elapsed();
        assert!(taken < Duration::from_secs(1), "{vendor:?}: {taken:?}");
    }
}

// checklist 100, 101
#[tokio::test]
async fn a_provider_that_stalls_is_late_wherever_it_does() {
    let stalls = async |vendor: Vendor| {
        let pings = match vendor {
            Vendor::OpenAi => b": OPENROUTER PROCESSING\n\n".to_vec(),
            Vendor::Anthropic => anthropic::event("ping", &serde_json::json!({})),
            Vendor::Dify => b"event: ping\n\n".to_vec(),
        };
        let provider = Provider::start(Script::silent()).await;
        let asked = vendor.provider(impatient(&provider));
        for (script, said, told) in [
            (Script::silent(), "", "sent no answer in time"),
            (Script::events([]).stall_after(0), "", "sent no text in time"),
            (vendor.answer(["one"]).stall_after(0), "", "sent no text in time"),
            // What keeps a connection alive is no text.
            (Script::events([pings]).repeated(), "", "sent no text in time"),
            (vendor.answer(["one", "two"]).stall_after(1), "one", "fell silent in the middle of its answer"),
        ] {
            provider.script(script);
            let (text, _, end) = collect(asked.stream(&prompt("Hi")).await).await;
            let told = format!("provider `fast`: {told}");
            assert_eq!((text.as_str(), reason(end)), (said, (ErrorCode::LlmTimeout, told)), "{vendor:?}");
        }
        let asked = vendor.provider(Settings { timeout: Duration::from_secs(1), ..settings(&provider) });
        provider.script(Script::events([vendor.piece("x")]).repeated());
        let (text, _, end) = collect(asked.stream(&prompt("Hi")).await).await;
        assert_eq!(text.trim_matches('x'), "");
        let told = "provider `fast`: did not finish its answer in time".to_owned();
        assert_eq!(reason(end), (ErrorCode::LlmTimeout, told), "{vendor:?}");
    };
    join_all(Vendor::ALL.map(stalls)).await;
}
