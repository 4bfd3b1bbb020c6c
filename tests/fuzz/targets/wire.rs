//! The bytes of HTTP/3 and WebTransport that we read ourselves. Run:
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz wire`.

#![no_main]

use chatbox::transport::{lines::Lines, wire};
use libfuzzer_sys::fuzz_target;

const LINE_BYTES_MAX: usize = 64;

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    if let Some(value) = wire::get_varint(&mut rest) {
        let mut written = Vec::new();
        wire::put_varint(&mut written, value);
        assert_eq!(wire::get_varint(&mut written.as_slice()), Some(value));
    }
    let mut header = wire::Header::new(wire::BIDIRECTIONAL);
    for byte in input {
        assert!(header.wanted() > 0);
        if header.push(*byte).is_some() {
            break;
        }
    }
    // However the stream is cut, the verdict is the same.
    let whole = wire::FrameGuard::default().check(input);
    let mut guard = wire::FrameGuard::default();
    assert_eq!(whole, input.iter().try_for_each(|byte| guard.check(&[*byte])));
    drop(wire::Capsules::default().push(input));
    drop(wire::add_settings(input, &[(8, 1)]));
    let mut lines = Lines::new(LINE_BYTES_MAX);
    for chunk in input.chunks(7) {
        lines.push(chunk);
        while let Ok(Some(line)) = lines.next_line() {
            assert!(line.len() <= LINE_BYTES_MAX && !line.contains(&b'\n'));
        }
    }
});
