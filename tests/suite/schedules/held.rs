//! What one device holds, by the contract's words: a log of entries, the texts of replies in progress, and for its
//! present connection what was shown where. Every frame is judged when it comes. It shares no type with the server.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::outbox::Outbox;
use crate::harness::client::sha256;

/// Why a frame, or a log, breaks the contract.
pub(crate) type Fault = String;

/// An entry in its final state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Message { id: String, content: String, turn: String },
    Reply { turn: String, reply_to: u64, state: String, text: String },
}

/// Where a device left a turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub(crate) turn: String,
    pub(crate) offset: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Held {
    log: BTreeMap<u64, Entry>,
    texts: HashMap<String, String>,
    /// the server was stopped at some time: text that was shown may be missing from a reply that it interrupted
    pub(crate) restarted: bool,
    /// a node did not stop an answer in time, and another one did it without it: the same holds for a stopped one
    pub(crate) overtaken: bool,
    /// the server is going away, and may refuse what was asked
    pub(crate) refused: bool,
    /// the last place that was taken when it attached, once it is
    pub(crate) last_seq: Option<u64>,
    seen: Seen,
}

/// What was shown on the present connection.
#[derive(Debug, Default)]
struct Seen {
    attaching: HashMap<String, Watch>,
    watch: Watch,
    exchanges: HashMap<String, Exchange>,
    turns: HashMap<String, Shown>,
}

#[derive(Clone, Debug, Default)]
struct Watch {
    after: u64,
    named: Option<Position>,
    /// the greatest place that was shown for the first time
    last: u64,
    places: HashSet<u64>,
}

/// A message that was sent on this connection, and its answers.
#[derive(Debug, Default)]
struct Exchange {
    sent: usize,
    accepted: usize,
    turn: Option<String>,
    /// its turn is shown here
    follows: bool,
    failed: bool,
}

/// How far a turn's text was shown on this connection, and by which exchange; by the watch, if by none.
#[derive(Debug)]
struct Shown {
    by: Option<String>,
    next: usize,
    ended: bool,
}

impl Held {
    /// The largest n for which it holds every entry up to n in its final state.
    pub(crate) fn after_seq(&self) -> u64 {
        (1..).take_while(|seq| self.log.contains_key(seq)).last().unwrap_or_default()
    }

    pub(crate) const fn log(&self) -> &BTreeMap<u64, Entry> {
        &self.log
    }

    /// Turns whose text it holds in part, and how much of it.
    pub(crate) fn parts(&self) -> Vec<Position> {
        let part = |(turn, text): (&String, &String)| Position { turn: turn.clone(), offset: text.len() };
        let mut parts: Vec<_> = self.texts.iter().map(part).collect();
        parts.sort_by(|one, other| one.turn.cmp(&other.turn));
        parts
    }

    /// Exchanges whose answers are still to come, with the turns that they are known to show.
    pub(crate) fn exchanges(&self) -> Vec<(String, Option<String>)> {
        let open = self.seen.exchanges.iter().filter(|(_, exchange)| exchange.follows || exchange.accepted == 0);
        let mut open: Vec<_> = open.map(|(id, exchange)| (id.clone(), exchange.turn.clone())).collect();
        open.sort();
        open
    }

    /// Whether an answer to this request is still to come here.
    pub(crate) fn waits_for(&self, id: &str) -> bool {
        self.seen.exchanges.get(id).is_some_and(|exchange| exchange.accepted < exchange.sent)
    }

    /// A new connection begins.
    pub(crate) fn connected(&mut self) {
        self.seen = Seen::default();
        self.refused = false;
    }

    /// An `attach` of this id was sent, with this position.
    pub(crate) fn attaching(&mut self, id: &str, after: u64, named: Option<Position>) {
        self.last_seq = None;
        let watch = Watch { after, last: after, named, places: HashSet::new() };
        self.seen.attaching.insert(id.to_owned(), watch);
    }

    /// A message of this id was sent.
    pub(crate) fn asking(&mut self, id: &str) {
        self.seen.exchanges.entry(id.to_owned()).or_default().sent += 1;
    }

    /// The store took longer over this request than it may, as on a machine that stands still: it may be sent again.
    pub(crate) fn denied(&mut self, id: &str) {
        if let Some(exchange) = self.seen.exchanges.get_mut(id) {
            exchange.sent -= 1;
        }
    }

    /// Its answers are not read any longer.
    pub(crate) fn gave_up(&mut self, id: &str) {
        self.seen.exchanges.remove(id);
    }

    /// Takes a frame in. `stream` is the request that opened the stream that it came on, where there are streams.
    pub(crate) fn hear(&mut self, frame: &Value, stream: Option<&str>, outbox: &mut Outbox) -> Result<(), Fault> {
        if self.refused && frame["type"] == "error" && frame["turn_id"].is_null() {
            return Ok(());
        }
        let re = frame["re"].as_str();
        let exchange = re.filter(|re| self.seen.exchanges.contains_key(*re));
        if let (Some(exchange), Some(stream)) = (exchange, stream)
            && exchange != stream
        {
            return Err(format!("an answer to {exchange} on the stream of {stream}"));
        }
        if let Some(exchange) = exchange {
            return self.answer(exchange, frame, outbox);
        }
        match text(frame, "type")? {
            "connection_status" => self.status(frame),
            "user_message" => self.message(frame),
            "loading" => self.loading(frame),
            "ai_response" if frame["metadata"]["streaming"] == "false" => self.whole(frame),
            "ai_response" if frame["metadata"]["done"] == "true" => self.end(None, frame),
            "ai_response" => self.piece(None, frame),
            // An answer to `stop` or `ping`.
            "accepted" if frame["seq"].is_null() => Ok(()),
            "error" if frame["error"]["code"] == "TURN_NOT_FOUND" => Ok(()),
            "pong" | "going_away" | "session_update" => Ok(()),
            _ => Err(format!("an unexpected frame: {frame}")),
        }
    }

    fn status(&mut self, frame: &Value) -> Result<(), Fault> {
        let id = text(frame, "re")?;
        let Some(watch) = self.seen.attaching.remove(id) else { return Err(format!("nobody attached: {frame}")) };
        self.seen.watch = watch;
        self.seen.turns.retain(|_, shown| shown.by.is_some());
        if let Some(named) = &self.seen.watch.named {
            self.seen.turns.remove(&named.turn);
        }
        let last_seq = number(frame, "last_seq")?;
        if frame["recovered"] == false {
            if !self.restarted {
                return Err(format!("an honest position was not honoured: {frame}"));
            }
            // The snapshot takes the place of what was held before; the exchanges of this connection may have been
            // read first.
            self.log.retain(|seq, _| *seq > last_seq);
            self.texts.retain(|turn, _| self.seen.turns.contains_key(turn));
            self.seen.watch = Watch::default();
        }
        self.last_seq = Some(last_seq);
        if last_seq < self.seen.watch.after {
            return Err(format!("the log has shrunk below {}: {frame}", self.seen.watch.after));
        }
        Ok(())
    }

    /// Something is shown on the watch for the first time: once, in the log's order, and not what is held already.
    fn first(&mut self, seq: u64, turn: Option<&str>) -> Result<(), Fault> {
        let watch = &mut self.seen.watch;
        if !watch.places.insert(seq) {
            return Err(format!("entry {seq} is shown twice"));
        }
        if watch.named.as_ref().is_some_and(|named| Some(named.turn.as_str()) == turn) {
            return Ok(());
        }
        if seq <= watch.after {
            return Err(format!("entry {seq} is shown to who holds {}", watch.after));
        }
        if seq <= watch.last {
            return Err(format!("entry {seq} is shown after entry {}", watch.last));
        }
        watch.last = seq;
        Ok(())
    }

    fn settle(&mut self, seq: u64, entry: Entry) -> Result<(), Fault> {
        match self.log.get(&seq) {
            Some(held) if *held != entry => Err(format!("entry {seq} was {held:?} and is {entry:?}")),
            Some(_) => Ok(()),
            None => {
                self.log.insert(seq, entry);
                Ok(())
            }
        }
    }

    fn message(&mut self, frame: &Value) -> Result<(), Fault> {
        let seq = number(frame, "seq")?;
        self.first(seq, None)?;
        let part = |key| text(frame, key).map(str::to_owned);
        self.settle(seq, Entry::Message { id: part("id")?, content: part("content")?, turn: part("turn_id")? })
    }

    fn loading(&mut self, frame: &Value) -> Result<(), Fault> {
        let (turn, seq) = (text(frame, "turn_id")?, number(frame, "seq")?);
        match self.seen.turns.get(turn) {
            Some(Shown { by: Some(exchange), .. }) => Err(format!("a turn of exchange {exchange} loads: {frame}")),
            Some(shown) if shown.ended => Err(format!("a turn loads after its end: {frame}")),
            Some(_) => Ok(()),
            None => {
                self.first(seq, Some(turn))?;
                self.begin(turn, None);
                Ok(())
            }
        }
    }

    /// A turn is shown on this connection from here on.
    fn begin(&mut self, turn: &str, by: Option<&str>) {
        let named = self.seen.watch.named.as_ref().filter(|named| by.is_none() && named.turn == turn);
        let next = named.map_or(0, |named| named.offset);
        self.seen.turns.insert(turn.to_owned(), Shown { by: by.map(str::to_owned), next, ended: false });
    }

    fn piece(&mut self, by: Option<&str>, frame: &Value) -> Result<(), Fault> {
        let (turn, content) = (text(frame, "turn_id")?, text(frame, "content")?);
        let offset = usize::try_from(number(frame, "offset")?).unwrap();
        if !self.seen.turns.contains_key(turn) {
            self.begin(turn, by);
        }
        let Some(shown) = self.seen.turns.get_mut(turn) else { return Err("a turn begins".to_owned()) };
        if shown.by.as_deref() != by {
            return Err(format!("a piece of {turn} by {by:?}, which {:?} shows", shown.by));
        }
        if shown.ended {
            return Err(format!("a piece after its turn's end: {frame}"));
        }
        if offset != shown.next {
            let what = if offset > shown.next { "a hole" } else { "an overlap" };
            return Err(format!("{what} at {} of {turn}: {frame}", shown.next));
        }
        shown.next += content.len();
        let held = self.texts.entry(turn.to_owned()).or_default();
        // What is held beyond the offset was shown by an earlier connection, and must be the same.
        let again = held.get(offset..).ok_or_else(|| format!("not held up to {offset}: {frame}"))?;
        if !common(again, content) {
            return Err(format!("another text at {offset} of {turn}: {frame}"));
        }
        if again.len() < content.len() {
            held.replace_range(offset.., content);
        }
        Ok(())
    }

    fn end(&mut self, by: Option<&str>, frame: &Value) -> Result<(), Fault> {
        let (turn, seq) = (text(frame, "turn_id")?.to_owned(), number(frame, "seq")?);
        if !self.seen.turns.contains_key(&turn) {
            self.begin(&turn, by);
        }
        if by.is_none() && !self.seen.watch.places.contains(&seq) {
            self.first(seq, Some(&turn))?;
        }
        let lost = self.loses(text(frame, "state")?);
        let Some(shown) = self.seen.turns.get_mut(&turn) else { return Err("a turn begins".to_owned()) };
        if shown.by.as_deref() != by {
            return Err(format!("the end of {turn} by {by:?}, which {:?} shows", shown.by));
        }
        if std::mem::replace(&mut shown.ended, true) {
            return Err(format!("a second end: {frame}"));
        }
        let length = usize::try_from(number(frame, "length")?).unwrap();
        // What another node ended has the length of its log, and more of it may have been shown.
        let beyond = shown.next > length && lost;
        if shown.next != length && !beyond {
            return Err(format!("the end at {length} of a text shown up to {}: {frame}", shown.next));
        }
        let held = self.texts.remove(&turn).unwrap_or_default();
        let text = held.get(..length).ok_or_else(|| format!("{} bytes are held: {frame}", held.len()))?;
        self.reply(seq, text.to_owned(), &held, frame)
    }

    fn whole(&mut self, frame: &Value) -> Result<(), Fault> {
        let (turn, seq) = (text(frame, "turn_id")?.to_owned(), number(frame, "seq")?);
        if number(frame, "offset")? != 0 {
            return Err(format!("a whole reply with an offset: {frame}"));
        }
        self.first(seq, Some(&turn))?;
        let shown = Shown { by: None, next: 0, ended: true };
        if let Some(earlier) = self.seen.turns.insert(turn.clone(), shown) {
            return Err(format!("a whole reply after {earlier:?}: {frame}"));
        }
        let held = self.texts.remove(&turn).unwrap_or_default();
        self.reply(seq, text(frame, "content")?.to_owned(), &held, frame)
    }

    /// Whether a reply that ended so may be shorter than what was shown of it.
    fn loses(&self, state: &str) -> bool {
        self.restarted && matches!(state, "interrupted" | "stopped") || self.overtaken && state == "stopped"
    }

    /// A reply has come to its end with this text, of which `held` was shown.
    fn reply(&mut self, seq: u64, whole: String, held: &str, frame: &Value) -> Result<(), Fault> {
        let state = text(frame, "state")?.to_owned();
        if number(frame, "length")? != u64::try_from(whole.len()).unwrap() || text(frame, "sha256")? != sha256(&whole) {
            return Err(format!("not {whole:?}: {frame}"));
        }
        if !common(&whole, held) || held.len() > whole.len() && !self.loses(&state) {
            return Err(format!("{held:?} was shown: {frame}"));
        }
        let turn = text(frame, "turn_id")?.to_owned();
        let reply_to = number(frame, "reply_to")?;
        self.settle(seq, Entry::Reply { turn, reply_to, state, text: whole })
    }

    /// A frame of an exchange.
    fn answer(&mut self, id: &str, frame: &Value, outbox: &mut Outbox) -> Result<(), Fault> {
        let Some(exchange) = self.seen.exchanges.get_mut(id) else { return Err(format!("{id} is not asked")) };
        if text(frame, "type")? != "accepted" && !exchange.follows {
            return Err(format!("nothing follows here: {frame}"));
        }
        match (text(frame, "type")?, exchange.turn.as_deref()) {
            ("accepted", _) if exchange.accepted < exchange.sent => {
                let (seq, turn) = (number(frame, "seq")?, text(frame, "turn_id")?.to_owned());
                let duplicate = frame["duplicate"] == true;
                exchange.accepted += 1;
                exchange.turn = Some(turn.clone());
                exchange.follows |= !duplicate;
                let content = outbox.accepted(id, seq, &turn, duplicate)?;
                self.settle(seq, Entry::Message { id: id.to_owned(), content, turn })
            }
            ("loading", Some(turn)) if frame["turn_id"] == turn => match self.seen.turns.get(turn) {
                Some(shown) if shown.ended || shown.by.as_deref() != Some(id) => {
                    Err(format!("loading after {shown:?}: {frame}"))
                }
                _ => Ok(()),
            },
            ("error", Some(turn)) if frame["turn_id"] == turn => match std::mem::replace(&mut exchange.failed, true) {
                true => Err(format!("a second error: {frame}")),
                false => Ok(()),
            },
            ("ai_response", Some(turn)) if frame["turn_id"] == turn => {
                if frame["metadata"]["done"] != "true" {
                    return self.piece(Some(id), frame);
                }
                // The end of the server interrupts answers, too, and tells of no error.
                let broken = frame["state"] == "failed" || frame["state"] == "interrupted" && exchange.failed;
                if broken != exchange.failed {
                    return Err(format!("an error comes before the end of a broken turn, and no other: {frame}"));
                }
                exchange.follows = false;
                self.end(Some(id), frame)
            }
            _ => Err(format!("not an answer to {id}, which has {exchange:?}: {frame}")),
        }
    }
}

/// Whether two texts are the same as far as both go.
fn common(one: &str, other: &str) -> bool {
    one.bytes().zip(other.bytes()).all(|(one, other)| one == other)
}

fn text<'a>(frame: &'a Value, key: &str) -> Result<&'a str, Fault> {
    frame[key].as_str().ok_or_else(|| format!("no `{key}` in {frame}"))
}

fn number(frame: &Value, key: &str) -> Result<u64, Fault> {
    frame[key].as_u64().ok_or_else(|| format!("no `{key}` in {frame}"))
}
