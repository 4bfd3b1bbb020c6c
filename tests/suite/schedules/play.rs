//! One schedule at work: a user with a few devices, against the shared server.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    held::{Entry, Fault, Held, Position},
    link::Link,
    outbox::Outbox,
    plan::{Answer, DEVICES, Rng, Step, Through},
    plant::{Plant, Planted},
    world::{QUIET, World},
};
use crate::harness::{Via, id};

/// How long a reader waits for a frame before it does something else.
const MOMENT: Duration = Duration::from_millis(30);

/// How often a device comes back whose connection the server closed because it took too long.
const ATTEMPTS: usize = 5;

pub(super) struct Play {
    world: Arc<World>,
    user: String,
    session: Option<String>,
    devices: Vec<Device>,
    outbox: Outbox,
    rng: Rng,
    plant: Option<Plant>,
    restarted: bool,
    /// steps so far
    played: usize,
}

#[derive(Default)]
struct Device {
    held: Held,
    link: Option<Link>,
    /// it has been connected before
    resumes: bool,
    /// the server closed its connection, and may have had to wait too long
    late: bool,
}

/// The log of a session as the store has it.
pub(super) struct Log {
    pub(super) session: String,
    pub(super) entries: BTreeMap<u64, Entry>,
}

impl Log {
    /// Whether an answer was cut by a server's end.
    pub(super) fn interrupted(&self) -> bool {
        let cut = |entry: &Entry| matches!(entry, Entry::Reply { state, text, .. } if state == "interrupted" && !text.is_empty());
        self.entries.values().any(cut)
    }
}

impl Play {
    pub(super) fn new(world: &Arc<World>, seed: u64, plant: Option<Plant>) -> Self {
        Self {
            world: Arc::clone(world),
            user: id(),
            session: None,
            devices: (0..DEVICES).map(|_| Device::default()).collect(),
            outbox: Outbox::default(),
            rng: Rng::new(!seed),
            plant,
            restarted: false,
            played: 0,
        }
    }

    pub(super) async fn run(&mut self, steps: &[Step]) -> Result<(), Fault> {
        for step in steps {
            let number = self.played;
            self.step(*step).await.map_err(|fault| format!("step {number}, {step:?}: {fault}"))?;
            self.played += 1;
        }
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), Fault> {
        match step {
            Step::Connect { device, via, through } => self.connect(device, via, through).await,
            Step::Attach { device } => {
                self.status(device).await?;
                self.attach(device, None).await
            }
            Step::Say { device, answer } => self.say(device, &answer).await,
            Step::SayPart { device, answer, bytes } => {
                self.present(device).await?;
                let (frame, _) = self.message(&answer);
                if let Some(link) = self.devices[device].link.take() {
                    link.send_part(&frame, bytes).await;
                }
                Ok(())
            }
            Step::Repeat { device, pick } => {
                self.present(device).await?;
                let Some(message) = self.outbox.pick(pick).cloned() else { return Ok(()) };
                self.send(device, &self.frame(&message.id, &message.content)).await
            }
            Step::Read { device, frames } => self.read(device, frames).await,
            Step::Cut { device, bytes } => {
                if let Some(link) = &mut self.devices[device].link {
                    link.cut_after(bytes);
                }
                self.read(device, usize::MAX).await?;
                self.vanish(device);
                Ok(())
            }
            Step::Leave { device, politely } => {
                match self.devices[device].link.take() {
                    Some(link) if politely => link.leave().await,
                    Some(link) => link.vanish(),
                    None => {}
                }
                Ok(())
            }
            Step::GiveUp { device, pick } => self.give_up(device, pick).await,
            Step::Stop { device, pick } => {
                let turns = self.outbox.turns();
                let Some(turn) = turns.get(pick % turns.len().max(1)) else { return Ok(()) };
                self.send(device, &json!({"type": "stop", "id": id(), "turn_id": turn})).await
            }
        }
    }

    /// The server goes away: what had arrived by then is read, the rest is not.
    pub(super) async fn cut_off(&mut self) -> Result<(), Fault> {
        for device in 0..DEVICES {
            let held = &mut self.devices[device].held;
            (held.restarted, held.refused) = (true, true);
            self.read_within(device, usize::MAX, Duration::ZERO).await?;
            self.vanish(device);
        }
        self.restarted = true;
        Ok(())
    }

    fn vanish(&mut self, device: usize) {
        if let Some(link) = self.devices[device].link.take() {
            link.vanish();
        }
    }

    async fn present(&mut self, device: usize) -> Result<(), Fault> {
        if self.devices[device].link.is_some() {
            return Ok(());
        }
        let via = self.rng.via();
        self.connect(device, via, Through::Direct).await
    }

    async fn connect(&mut self, device: usize, via: Via, through: Through) -> Result<(), Fault> {
        self.vanish(device);
        self.devices[device].late = false;
        let (order, place) = (Rng::new(self.rng.next()), self.world.place(&mut self.rng));
        let Some(mut link) = Link::open(&place, via, through, order).await else { return Ok(()) };
        let Device { held, link: slot, resumes, .. } = &mut self.devices[device];
        if let Some(plant) = self.plant
            && std::mem::replace(resumes, true)
        {
            link.plant(Planted::new(plant));
        }
        held.connected();
        *slot = Some(link);
        let named = self.position(device);
        self.attach(device, named).await?;
        // Without its session a message would not know where it belongs.
        if self.session.is_none() { self.status(device).await } else { Ok(()) }
    }

    /// Reads until the device is attached. Two that attach at once on streams of their own come in any order.
    async fn status(&mut self, device: usize) -> Result<(), Fault> {
        while self.devices[device].link.is_some() && self.devices[device].held.last_seq.is_none() {
            let wait = self.devices[device].link.as_ref().map_or(Duration::ZERO, Link::patience);
            if !self.read_within(device, 1, wait).await? {
                return self.stuck(device, "no status");
            }
        }
        Ok(())
    }

    /// A network that is dead is left, and so is a server that waited too long; others must not stand still.
    fn stuck(&mut self, device: usize, what: &str) -> Result<(), Fault> {
        if self.devices[device].link.as_ref().is_some_and(|link| !link.doubtful && !link.late()) {
            return Err(format!("the connection is gone, or stuck: {what}"));
        }
        self.vanish(device);
        Ok(())
    }

    /// A turn that the device holds in part, mostly where it is, sometimes a little before.
    fn position(&mut self, device: usize) -> Option<Position> {
        let parts = self.devices[device].held.parts();
        let part = parts.get(self.rng.below(parts.len()))?.clone();
        self.rng.chance(85).then_some(part)
    }

    async fn attach(&mut self, device: usize, named: Option<Position>) -> Result<(), Fault> {
        if self.devices[device].link.is_none() {
            return Ok(());
        }
        let token = self.world.place(&mut self.rng).token(&self.user);
        let held = &mut self.devices[device].held;
        let after = held.after_seq();
        let mut frame = json!({"type": "attach", "id": id(), "token": token, "after_seq": after});
        if let Some(session) = &self.session
            && self.rng.chance(50)
        {
            frame["session_id"] = json!(session);
        }
        if let Some(Position { turn, offset }) = &named {
            (frame["turn_id"], frame["offset"]) = (json!(turn), json!(offset));
        }
        held.attaching(frame["id"].as_str().unwrap(), after, named);
        self.send(device, &frame).await
    }

    async fn give_up(&mut self, device: usize, pick: usize) -> Result<(), Fault> {
        let Device { held, link, .. } = &mut self.devices[device];
        let open = held.exchanges();
        let Some((exchange, turn)) = open.get(pick % open.len().max(1)).cloned() else { return Ok(()) };
        if !link.as_mut().is_some_and(|link| link.give_up(&exchange)) {
            return Ok(());
        }
        let Some(turn) = turn else {
            // Nobody knows what to ask for: a new connection shows it.
            self.vanish(device);
            return Ok(());
        };
        held.gave_up(&exchange);
        self.status(device).await?;
        let held = &self.devices[device].held;
        let offset = held.parts().into_iter().find(|part| part.turn == turn).map_or(0, |part| part.offset);
        self.attach(device, Some(Position { turn, offset })).await
    }

    fn message(&mut self, answer: &Answer) -> (Value, String) {
        let message = self.outbox.add(answer);
        (self.frame(&message.id, &message.content), message.id)
    }

    fn frame(&self, id: &str, content: &str) -> Value {
        json!({"type": "user_message", "id": id, "session_id": self.session, "content": content})
    }

    async fn say(&mut self, device: usize, answer: &Answer) -> Result<(), Fault> {
        self.present(device).await?;
        let (frame, _) = self.message(answer);
        self.send(device, &frame).await
    }

    async fn send(&mut self, device: usize, frame: &Value) -> Result<(), Fault> {
        let Device { held, link, .. } = &mut self.devices[device];
        let Some(open) = link else { return Ok(()) };
        if frame["type"] == "user_message" {
            held.asking(frame["id"].as_str().unwrap());
        }
        if open.send(frame).await { Ok(()) } else { self.stuck(device, &frame.to_string()) }
    }

    async fn read(&mut self, device: usize, frames: usize) -> Result<(), Fault> {
        self.read_within(device, frames, MOMENT).await.map(drop)
    }

    /// Reads so many frames; `false` when none has come for a while, and more are awaited.
    async fn read_within(&mut self, device: usize, frames: usize, wait: Duration) -> Result<bool, Fault> {
        for _ in 0..frames {
            let Device { held, link: Some(link), late, .. } = &mut self.devices[device] else { return Ok(true) };
            let Ok(came) = timeout(wait, link.next()).await else { return Ok(false) };
            let Some((frame, stream)) = came else {
                *late = link.late();
                self.vanish(device);
                return Ok(true);
            };
            if frame["type"] == "connection_status" {
                self.session = frame["session_id"].as_str().map(str::to_owned);
            }
            if link.late() && frame["error"]["code"] == "DATABASE_ERROR" {
                held.denied(frame["re"].as_str().unwrap_or_default());
                continue;
            }
            held.overtaken = self.world.overtaken();
            held.hear(&frame, stream.as_deref(), &mut self.outbox)?;
        }
        Ok(true)
    }

    /// Has everything that was sent acknowledged, waits until all is quiet, and compares what every device holds
    /// with what the store holds.
    pub(super) async fn finish(&mut self) -> Result<Option<Log>, Fault> {
        for message in self.outbox.unanswered() {
            self.acknowledged(&message.id, &message.content).await.map_err(|fault| format!("at the end: {fault}"))?;
        }
        let Some(session) = self.session.clone() else { return Ok(None) };
        if !self.world.quiet(&session).await {
            return Err(format!("a turn of session {session} does not end"));
        }
        let entries = self.truth().await.map_err(|fault| format!("a fresh attach: {fault}"))?;
        self.outbox.judge(&entries, self.restarted)?;
        for device in 0..DEVICES {
            self.converges(device, &entries).await.map_err(|fault| format!("device {device} at the end: {fault}"))?;
        }
        Ok(Some(Log { session, entries }))
    }

    async fn acknowledged(&mut self, id: &str, content: &str) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            let device = self.rng.below(DEVICES);
            if self.devices[device].link.as_ref().is_some_and(|link| link.doubtful) {
                self.vanish(device);
            }
            self.present(device).await?;
            let open = |play: &Self| play.outbox.unanswered().iter().any(|message| message.id == id);
            if open(self) && !self.devices[device].held.waits_for(id) {
                self.send(device, &self.frame(id, content)).await?;
            }
            if self.until(device, |play| !open(play)).await? {
                return Ok(());
            }
        }
        Err(format!("the server closed {ATTEMPTS} connections"))
    }

    /// Reads until something holds; `false` when the server has closed the connection, and may have had to wait for too
    /// long.
    async fn until(&mut self, device: usize, holds: impl Fn(&Self) -> bool + Send + Sync) -> Result<bool, Fault> {
        let reading = async {
            while !holds(self) {
                if self.devices[device].link.is_none() {
                    return if self.devices[device].late {
                        Ok(false)
                    } else {
                        Err("the connection is gone".to_owned())
                    };
                }
                self.read_within(device, 1, QUIET).await?;
            }
            Ok(true)
        };
        timeout(QUIET, reading).await.unwrap_or_else(|_elapsed| Err("it does not come".to_owned()))
    }

    /// What a device holds that has held nothing before.
    async fn truth(&mut self) -> Result<BTreeMap<u64, Entry>, Fault> {
        for _ in 0..ATTEMPTS {
            self.devices.push(Device::default());
            self.devices[DEVICES].held.restarted = self.restarted;
            let via = self.rng.via();
            self.connect(DEVICES, via, Through::Direct).await?;
            let holds = |held: &Held| held.last_seq.is_some_and(|last| held.after_seq() >= last);
            let whole = self.until(DEVICES, |play| holds(&play.devices[DEVICES].held)).await?;
            let fresh = self.devices.pop().unwrap_or_default();
            if let Some(link) = fresh.link {
                link.leave().await;
            }
            if whole {
                return Ok(fresh.held.log().clone());
            }
        }
        Err(format!("the server closed {ATTEMPTS} connections"))
    }

    /// A device that is connected comes to hold what the store holds without any more ado; another one when it comes
    /// back with its position.
    async fn converges(&mut self, device: usize, entries: &BTreeMap<u64, Entry>) -> Result<(), Fault> {
        let last = entries.keys().last().copied().unwrap_or_default();
        for _ in 0..ATTEMPTS {
            let here = self.devices[device].link.as_ref().is_some_and(|link| !link.doubtful);
            if !here {
                let via = self.rng.via();
                self.connect(device, via, Through::Direct).await?;
            }
            let whole = self.until(device, |play| play.devices[device].held.after_seq() >= last).await;
            if whole.map_err(|fault| self.missing(device, entries, &fault))? {
                break;
            }
        }
        // What comes after that came twice, and would be found.
        self.send(device, &json!({"type": "ping", "id": id()})).await?;
        self.read_within(device, usize::MAX, Duration::from_millis(2)).await?;
        let held = self.devices[device].held.log();
        match held == entries {
            true => Ok(()),
            false => Err(format!("it holds {held:?}, and the store {entries:?}")),
        }
    }

    /// What a device lacks that the store has.
    fn missing(&self, device: usize, entries: &BTreeMap<u64, Entry>, fault: &str) -> Fault {
        let Device { held, link, .. } = &self.devices[device];
        let via = link.as_ref().map(Link::via);
        let missing: Vec<_> = entries.iter().filter(|(seq, _)| !held.log().contains_key(seq)).collect();
        format!("{fault} over {via:?}: {missing:?}, of {} entries, while {held:?}", entries.len())
    }
}
