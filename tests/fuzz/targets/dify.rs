//! Answers of Dify. Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz dify`.

#![no_main]

use chatbox::llm::{Chunk, dify::read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // However the stream is cut, the answer is the same, and has one end, which comes last.
    let whole = read([input]);
    assert_eq!(whole, read(input.chunks(1)));
    let ends = |next: &Result<Chunk, _>| matches!(next, Ok(Chunk::Done) | Err(_));
    assert_eq!(whole.iter().position(ends), Some(whole.len() - 1));
});
