//! Server-sent events, as the WHATWG HTML standard parses them (section 9.2.6, "Interpreting an event stream").
//!
//! A pure state machine over bytes: however the network cuts them, the events are the same.

use std::collections::VecDeque;

/// Most bytes that one event may hold before it ends, its unfinished line included.
pub(crate) const EVENT_BYTES_MAX: usize = 1 << 20;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// One dispatched event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    /// the `event` field; empty when the stream names none
    pub(crate) name: String,
    /// the `data` lines, joined by line feeds
    pub(crate) data: String,
}

/// An event is larger than [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event exceeds {EVENT_BYTES_MAX} bytes")]
pub(crate) struct TooLarge;

/// Turns bytes into events. What it holds is bounded by [`EVENT_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// bytes of the line that has not ended
    line: Vec<u8>,
    name: String,
    /// every line of data followed by a line feed, as the standard's buffer has it
    data: String,
    /// the last byte was a CR, so that an LF right after it belongs to the same line end
    after_cr: bool,
    /// a line has ended, so that a byte order mark is data
    started: bool,
}

impl Decoder {
    /// Takes the next bytes and appends the events that they complete.
    ///
    /// An event that the end of the stream cuts off before its blank line is never dispatched, as the standard
    /// says: there is no way to end the stream here.
    ///
    /// # Errors
    /// When an event exceeds [`EVENT_BYTES_MAX`]. The events before it are in `events`; the decoder is of no
    /// further use.
    pub(crate) fn push(&mut self, mut bytes: &[u8], events: &mut VecDeque<Event>) -> Result<(), TooLarge> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + self.name.len() + self.data.len() + text.len() > EVENT_BYTES_MAX {
                return Err(TooLarge);
            }
            self.line.extend_from_slice(text);
            let Some((&terminator, rest)) = rest.split_first() else { break };
            self.after_cr = terminator == b'\r';
            events.extend(self.end_line());
            bytes = rest;
        }
        Ok(())
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line =
            if std::mem::replace(&mut self.started, true) { &line } else { line.strip_prefix(BOM).unwrap_or(&line) };
        if line.is_empty() {
            return self.dispatch();
        }
        // A line end never splits a character, so decoding by lines replaces what decoding the whole would.
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.name),
            // A comment has an empty field name. `id` and `retry` serve reconnection, which a prompt must not do.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = std::mem::take(&mut self.name);
        let mut data = std::mem::take(&mut self.data);
        data.pop().map(|_| Event { name, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, Result<(), TooLarge>) {
        let mut decoder = Decoder::default();
        let mut events = VecDeque::new();
        let result = chunks.into_iter().try_for_each(|chunk| decoder.push(chunk, &mut events));
        (events.into(), result)
    }

    fn data(stream: &str) -> Vec<String> {
        let (events, result) = decode([stream.as_bytes()]);
        assert_eq!(result, Ok(()));
        events.into_iter().map(|event| event.data).collect()
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for stream in
            ["data: a\ndata: b\n\n", "data: a\r\ndata: b\r\n\r\n", "data: a\rdata: b\r\r", "data: a\r\ndata: b\n\r"]
        {
            assert_eq!(data(stream), ["a\nb"], "{stream:?}");
        }
    }

    #[test]
    fn examples_of_the_standard_give_the_events_it_names() {
        assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        assert_eq!(
            data(": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"),
            ["first event", "second event"]
        );
        assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
    }

    #[test]
    fn an_event_has_the_last_name_given_and_loses_it_when_dispatched() {
        let (events, _) = decode([b"event: a\nevent: b\ndata: 1\n\nevent: gone\n\ndata: 2\n\n".as_slice()]);
        assert_eq!(
            events,
            [Event { name: "b".to_owned(), data: "1".to_owned() }, Event { name: String::new(), data: "2".to_owned() }]
        );
    }

    #[test]
    fn a_byte_order_mark_counts_only_at_the_start() {
        assert_eq!(data("\u{feff}data: a\n\n\u{feff}data: b\n\ndata: c\n\n"), ["a", "c"]);
    }

    #[test]
    fn an_event_without_its_blank_line_is_not_dispatched() {
        assert_eq!(data("data: whole\n\ndata: cut\n"), ["whole"]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        let (events, _) = decode([b"data: a\xffb\xe2\x82\n\n".as_slice()]);
        assert_eq!(events.first().map(|event| event.data.as_str()), Some("a\u{fffd}b\u{fffd}"));
    }

    #[test]
    fn an_event_over_the_limit_is_an_error_and_one_at_the_limit_is_not() {
        let fits = format!("data: {}\n\n", "x".repeat(EVENT_BYTES_MAX - "data: ".len()));
        assert_eq!(data(&fits).first().map(String::len), Some(EVENT_BYTES_MAX - "data: ".len()));
        let (events, result) = decode([format!("data: first\n\nx{fits}").as_bytes()]);
        assert_eq!((events.len(), result), (1, Err(TooLarge)));
        // Many short lines of one event add up, and so does a comment that never ends.
        assert_eq!(decode(std::iter::repeat_n(b"data: abc\n".as_slice(), EVENT_BYTES_MAX / 4 + 1)).1, Err(TooLarge));
        assert_eq!(decode(std::iter::repeat_n(b":::::::::::::".as_slice(), EVENT_BYTES_MAX / 13 + 1)).1, Err(TooLarge));
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let token = prop_oneof![
            Just("data".as_bytes().to_vec()),
            Just("event".as_bytes().to_vec()),
            Just("\u{feff}".as_bytes().to_vec()),
            Just("😀ö".as_bytes().to_vec()),
            Just(b": ".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_the_bytes_are_cut(stream in stream(), cuts in proptest::collection::vec(1_usize..7, 1..80)) {
            let whole = decode([stream.as_slice()]);
            prop_assert_eq!(&decode(stream.chunks(1)), &whole);
            let mut rest = stream.as_slice();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = tail;
            }
            pieces.push(rest);
            prop_assert_eq!(&decode(pieces), &whole);
        }
    }
}
