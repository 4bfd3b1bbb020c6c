//! Event streams of providers. Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz sse`.

#![no_main]

#[path = "../../../src/llm/sse.rs"]
mod sse;

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // However the stream is cut, the events are the same.
    let (mut whole, mut cut) = (VecDeque::new(), VecDeque::new());
    let fits = sse::Decoder::default().push(input, &mut whole).is_ok();
    let mut decoder = sse::Decoder::default();
    let pieces = input.iter().try_for_each(|byte| decoder.push(&[*byte], &mut cut));
    if fits && pieces.is_ok() {
        assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
    }
});
