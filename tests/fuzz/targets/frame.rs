//! Frames of clients. Run: `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz frame`.

#![no_main]

use chatbox::protocol::{decode, encode_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    // What is accepted is understood: written again, it is the same request.
    if let Ok(request) = decode(frame) {
        let again = decode(&encode_request(&request));
        assert_eq!(again.as_ref(), Ok(&request));
    }
});
