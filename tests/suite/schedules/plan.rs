//! What a schedule consists of, and how one is made of a seed. The same seed gives the same steps.

use crate::harness::{
    Via,
    provider::{Request, Script},
};

use serde_json::{Value, json};
use std::time::Duration;

/// Devices of one user.
pub(super) const DEVICES: usize = 3;

/// Numbers that depend on their seed alone (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap();
        usize::try_from(self.next() % bound).unwrap()
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn via(&mut self) -> Via {
        if self.chance(50) { Via::WebTransport } else { Via::WebSocket }
    }
}

/// What the model says to a message. The message's text describes it, so that the provider can follow it, and the
/// checker can tell the right answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    seed: u64,
    pieces: usize,
    piece_chars: usize,
    pace_us: u64,
    pub(crate) broken: bool,
}

impl Answer {
    fn random(rng: &mut Rng) -> Self {
        // Some are longer than one frame carries.
        let large = rng.chance(3);
        Self {
            seed: rng.next() >> 16,
            pieces: if large { 40 } else { rng.below(40) + 1 },
            piece_chars: if large { 2500 } else { 12 },
            pace_us: if rng.chance(25) { 0 } else { rng.next() % 4000 },
            broken: rng.chance(8),
        }
    }

    /// A certain one: twenty pieces, a few milliseconds apart.
    pub(crate) const fn plain() -> Self {
        Self { seed: 1, pieces: 20, piece_chars: 12, pace_us: 2000, broken: false }
    }

    /// A short one, without pauses.
    pub(crate) fn quick(rng: &mut Rng) -> Self {
        Self { seed: rng.next() >> 16, pieces: 3, pace_us: 0, ..Self::plain() }
    }

    /// A long one: some seconds, a few pieces in each.
    pub(crate) fn slow(rng: &mut Rng) -> Self {
        let pieces = 8 + rng.below(9);
        Self { seed: rng.next() >> 16, pieces, pace_us: 300_000, ..Self::plain() }
    }

    /// One that goes on for six to nine seconds.
    pub(crate) fn long(rng: &mut Rng) -> Self {
        let pieces = 9 + rng.below(5);
        Self { seed: rng.next() >> 16, pieces, pace_us: 700_000, ..Self::plain() }
    }

    /// The message that asks for it.
    pub(crate) fn content(&self) -> String {
        let Self { seed, pieces, piece_chars, pace_us, broken } = self;
        let fields = [("seed", *seed), ("pace_us", *pace_us), ("broken", u64::from(*broken))];
        let mut content = json!({"pieces": pieces, "piece_chars": piece_chars});
        for (key, value) in fields {
            content[key] = value.into();
        }
        content.to_string()
    }

    /// The answer that a message asks for.
    pub(crate) fn of(content: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(content).ok()?;
        let number = |key: &str| value[key].as_u64();
        let size = |key: &str| number(key).and_then(|number| usize::try_from(number).ok());
        Some(Self {
            seed: number("seed")?,
            pieces: size("pieces")?,
            piece_chars: size("piece_chars")?,
            pace_us: number("pace_us")?,
            broken: number("broken")? > 0,
        })
    }

    fn pieces(&self) -> Vec<String> {
        let mut rng = Rng::new(self.seed);
        let mut piece = || (0..=rng.below(self.piece_chars)).map(|_| letter(&mut rng)).collect();
        (0..self.pieces).map(|_| piece()).collect()
    }

    /// All that the model says, if nobody stops it.
    pub(crate) fn text(&self) -> String {
        self.pieces().concat()
    }

    /// Follows the last message of a request.
    pub(crate) fn script(request: &Request) -> Script {
        let asked = request.messages().last().and_then(|(_, content)| Self::of(content)).expect("a message of ours");
        let pieces = asked.pieces();
        let script = Script::answer(pieces.iter().map(String::as_str)).paced(Duration::from_micros(asked.pace_us));
        if asked.broken { script.cut_after(asked.pieces / 2) } else { script }
    }
}

/// One to four bytes of UTF-8, so that an offset in characters would show.
fn letter(rng: &mut Rng) -> char {
    const LETTERS: [char; 12] = ['a', 'b', 'e', ' ', ' ', '\n', 'é', 'ß', '字', '—', '🙂', '"'];
    LETTERS[rng.below(LETTERS.len())]
}

/// How a device's connection reaches the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Through {
    Direct,
    /// a proxy that goes dead after so many bytes towards the client; it loses and reorders datagrams before
    Proxy(usize),
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// a device comes, or comes back, with the position that it holds
    Connect { device: usize, via: Via, through: Through },
    /// it attaches once more on the connection that it has
    Attach { device: usize },
    /// it sends a message
    Say { device: usize, answer: Answer },
    /// it sends so many bytes of a message, and vanishes
    SayPart { device: usize, answer: Answer, bytes: usize },
    /// it sends a message again that some device has sent
    Repeat { device: usize, pick: usize },
    /// it reads some frames, of its streams in any order
    Read { device: usize, frames: usize },
    /// it reads so many bytes, and vanishes
    Cut { device: usize, bytes: usize },
    /// it goes
    Leave { device: usize, politely: bool },
    /// it gives up reading an exchange, and asks to see its turn on the watch
    GiveUp { device: usize, pick: usize },
    /// it stops a turn that it knows of
    Stop { device: usize, pick: usize },
}

impl Step {
    fn random(rng: &mut Rng) -> Self {
        let device = rng.below(DEVICES);
        match rng.below(100) {
            0..16 => Self::Connect { device, via: rng.via(), through: through(rng) },
            16..20 => Self::Attach { device },
            20..38 => Self::Say { device, answer: Answer::random(rng) },
            38..43 => Self::SayPart { device, answer: Answer::random(rng), bytes: rng.below(260) },
            43..53 => Self::Repeat { device, pick: rng.below(100) },
            53..77 => Self::Read { device, frames: rng.below(30) + 1 },
            77..88 => Self::Cut { device, bytes: rng.below(6000) },
            88..91 => Self::Leave { device, politely: rng.chance(50) },
            91..94 => Self::GiveUp { device, pick: rng.below(100) },
            _ => Self::Stop { device, pick: rng.below(100) },
        }
    }
}

fn through(rng: &mut Rng) -> Through {
    if rng.chance(10) { Through::Proxy(rng.below(20_000) + 4000) } else { Through::Direct }
}

/// The steps of one schedule.
pub(super) fn random(seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let first = Step::Connect { device: 0, via: rng.via(), through: Through::Direct };
    let more = rng.below(14) + 3;
    std::iter::once(first).chain((0..more).map(|_| Step::random(&mut rng))).collect()
}
