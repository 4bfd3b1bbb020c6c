//! A user with two devices on different nodes, who says things, and judges everything that either of them is shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    device::{Device, News},
    world::Front,
};
use crate::{
    harness::Via,
    schedules::{
        held::{Entry, Fault},
        outbox::{Message, Outbox},
        plan::{Answer, Rng},
    },
};

/// How long anything may take, with any fault.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// How long a user reads at most before a message.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The pause before a refused message is sent again.
const AGAIN: Duration = Duration::from_millis(250);

pub(super) struct User {
    front: Arc<Front>,
    pub(super) number: usize,
    name: String,
    pub(super) session: Option<String>,
    outbox: Outbox,
    devices: [Device; 2],
    rng: Rng,
    asking: Option<Asking>,
    /// what was refused, by its code
    pub(super) errors: BTreeMap<String, usize>,
    pieces: HashMap<(usize, String), Instant>,
    /// the longest time between two pieces of a text on one device
    pub(super) gap: Duration,
    /// answers that it has had while it talked
    pub(super) answered: usize,
    /// when it was answered after a fault
    pub(super) recovered: Option<Instant>,
}

/// A message that is not known to be stored.
struct Asking {
    message: Message,
    /// the device that sends it
    by: usize,
    /// it was sent on the present connection, and not refused
    sent: bool,
    not_before: Instant,
}

impl User {
    pub(super) fn new(front: &Arc<Front>, number: usize) -> Self {
        let via = |number: usize| if number.is_multiple_of(2) { Via::WebTransport } else { Via::WebSocket };
        let nodes = front.nodes();
        let device = |nth: usize| Device::new((number + nth) % nodes, via(number / nodes + nth));
        Self {
            front: Arc::clone(front),
            number,
            name: format!("user-{number}"),
            session: None,
            outbox: Outbox::default(),
            devices: [device(0), device(1)],
            rng: Rng::new(u64::try_from(number).unwrap()),
            asking: None,
            errors: BTreeMap::new(),
            pieces: HashMap::new(),
            gap: Duration::ZERO,
            answered: 0,
            recovered: None,
        }
    }

    /// One whose devices hold on to a node that says nothing, as browsers do while nothing is unanswered.
    pub(super) fn patient(front: &Arc<Front>, number: usize) -> Self {
        let mut user = Self::new(front, number);
        user.devices.iter_mut().for_each(Device::wait_long);
        user
    }

    /// Connects both devices.
    pub(super) async fn arrive(&mut self) -> Result<(), Fault> {
        self.until(|user| user.devices.iter().all(Device::attached)).await
    }

    /// Says something, and waits until the answer has begun on both devices.
    pub(super) async fn begin(&mut self) -> Result<(), Fault> {
        self.read(&CancellationToken::new()).await?;
        let answer = Answer::long(&mut self.rng);
        let id = self.ask(&answer);
        self.until(|user| {
            user.devices.iter().all(|device| !device.held.parts().is_empty() || user.settled(&id).is_some())
        })
        .await
    }

    /// Says things until one was answered in full, and shown in full on both devices.
    pub(super) async fn recover(&mut self) -> Result<Instant, Fault> {
        loop {
            let answer = Answer::quick(&mut self.rng);
            let id = self.ask(&answer);
            self.until(|user| user.settled(&id).is_some()).await?;
            match self.settled(&id).as_deref() {
                Some("complete") => return Ok(Instant::now()),
                Some("interrupted") => {}
                state => return Err(format!("a turn ended as {state:?}")),
            }
        }
    }

    /// Goes on talking until it is told to end; counts the answers.
    pub(super) async fn talk(&mut self, end: &CancellationToken) -> Result<usize, Fault> {
        let mut answered = 0;
        while !end.is_cancelled() {
            let answer = Answer::long(&mut self.rng);
            let id = self.ask(&answer);
            self.until(|user| user.settled(&id).is_some()).await?;
            answered += 1;
            self.read(end).await?;
        }
        Ok(answered)
    }

    /// Reads for a while, unless it is told to end: nobody writes at the same moment as everybody else.
    async fn read(&mut self, end: &CancellationToken) -> Result<(), Fault> {
        let until = Instant::now() + PAUSE_MAX * u32::try_from(self.rng.below(100)).unwrap() / 100;
        while !end.is_cancelled() && Instant::now() < until {
            self.step(async {
                tokio::select! { () = end.cancelled() => {}, () = sleep_until(until) => {} }
            })
            .await?;
        }
        Ok(())
    }

    /// Looks on until it is told to end.
    pub(super) async fn listen(&mut self, end: &CancellationToken) -> Result<(), Fault> {
        while !end.is_cancelled() {
            self.step(end.cancelled()).await?;
        }
        Ok(())
    }

    /// How the answer to a message ended, if both devices hold its end. One that was interrupted before its first
    /// byte is asked again by itself.
    fn settled(&self, id: &str) -> Option<String> {
        let (seq, _) = self.outbox.find(id)?.accepted.as_ref()?;
        let ends = self.devices.each_ref().map(|device| {
            let replies = device.held.log().values().rev();
            let mut of_it = replies.filter_map(|entry| match entry {
                Entry::Reply { reply_to, state, text, .. } if reply_to == seq => Some((state, text)),
                _ => None,
            });
            of_it.next().filter(|(state, text)| *state != "interrupted" || !text.is_empty())
        });
        match ends {
            [Some(one), Some(other)] if one == other => Some(one.0.clone()),
            _ => None,
        }
    }

    /// Waits until both devices hold the same log with an answer to every message, and judges it.
    pub(super) async fn converge(&mut self) -> Result<(), Fault> {
        self.until(|user| {
            let [one, other] = user.devices.each_ref().map(|device| device.held.log());
            user.asking.is_none() && one == other && user.outbox.ids().all(|id| user.settled(id).is_some())
        })
        .await?;
        self.outbox.judge(self.log(), true)
    }

    /// What its first device holds.
    pub(super) const fn log(&self) -> &BTreeMap<u64, Entry> {
        self.devices[0].held.log()
    }

    /// Whether an answer was cut.
    pub(super) fn interrupted(&self) -> bool {
        self.log().values().any(|entry| matches!(entry, Entry::Reply { state, .. } if state == "interrupted"))
    }

    fn ask(&mut self, answer: &Answer) -> String {
        let message = self.outbox.add(answer);
        let (id, by) = (message.id.clone(), self.rng.below(2));
        self.asking = Some(Asking { message, by, sent: false, not_before: Instant::now() });
        id
    }

    async fn until(&mut self, holds: impl Fn(&Self) -> bool + Send + Sync) -> Result<(), Fault> {
        let reading = async {
            while !holds(self) {
                self.step(std::future::pending()).await?;
            }
            Ok(())
        };
        let outcome = timeout(RECOVERY_MAX, reading).await;
        outcome.unwrap_or_else(|_elapsed| Err("it does not come".to_owned())).map_err(|fault| {
            let devices = self.devices.each_ref().map(|device| format!("{}: {:?}", device.doing(), device.held));
            format!("{} in {:?}: {fault}; {devices:#?}; refused: {:?}", self.name, self.session, self.errors)
        })
    }

    /// Does whatever is next, if it is next before the end.
    async fn step(&mut self, end: impl Future<Output = ()>) -> Result<(), Fault> {
        let ready = self.ready_to_send();
        let [one, other] = &mut self.devices;
        let (device, news) = tokio::select! {
            () = end => return Ok(()),
            news = one.news() => (0, news),
            news = other.news() => (1, news),
            () = sleep_until(ready.unwrap_or_else(Instant::now)), if ready.is_some() => return self.say().await,
        };
        let Self { front, rng, .. } = self;
        let it = &mut self.devices[device];
        match news {
            News::Due => it.open(front, rng),
            News::Opened(Some(link)) => {
                front.came_back();
                let token = front.token(&self.name);
                it.attach(link, &token, self.session.as_deref()).await;
            }
            News::Silent => {
                if !it.ping().await {
                    self.leave(device);
                }
            }
            News::Opened(None) | News::Leaves | News::Gone => self.leave(device),
            News::Frame((frame, stream)) => self.hear(device, &frame, stream.as_deref())?,
        }
        Ok(())
    }

    fn leave(&mut self, device: usize) {
        self.devices[device].elsewhere(&self.front, &mut self.rng);
        if let Some(asking) = self.asking.as_mut().filter(|asking| asking.by == device) {
            (asking.by, asking.sent) = (1 - device, false);
        }
    }

    /// When the message that is to be stored can be sent.
    fn ready_to_send(&mut self) -> Option<Instant> {
        let asking = self.asking.as_mut().filter(|asking| !asking.sent)?;
        // Without its session a message would not know where it belongs.
        self.session.as_ref()?;
        if !self.devices[asking.by].attached() {
            asking.by = 1 - asking.by;
        }
        self.devices[asking.by].attached().then_some(asking.not_before)
    }

    async fn say(&mut self) -> Result<(), Fault> {
        let Some(asking) = &mut self.asking else { return Ok(()) };
        asking.sent = true;
        let Message { id, content, .. } = &asking.message;
        let frame = json!({"type": "user_message", "id": id, "session_id": self.session, "content": content});
        self.devices[asking.by].send(&frame).await;
        Ok(())
    }

    fn hear(&mut self, device: usize, frame: &Value, stream: Option<&str>) -> Result<(), Fault> {
        let usable = self.devices[device].note(frame);
        if frame["type"] == "connection_status" {
            self.session = frame["session_id"].as_str().map(str::to_owned);
        }
        if frame["type"] == "error" && frame["turn_id"].is_null() {
            let code = frame["error"]["code"].as_str().unwrap_or_default();
            *self.errors.entry(code.to_owned()).or_default() += 1;
            let asked = self.asking.as_mut().filter(|asking| frame["re"].as_str() == Some(&asking.message.id));
            if let Some(asking) = asked {
                let wish = frame["error"]["retry_after"].as_u64().map_or(AGAIN, Duration::from_millis);
                (asking.sent, asking.not_before) = (false, Instant::now() + wish.max(AGAIN));
            }
        }
        self.time(device, frame);
        let held = &mut self.devices[device].held;
        held.hear(frame, stream, &mut self.outbox).map_err(|fault| format!("device {device}: {fault}"))?;
        let stored =
            |asking: &Asking| self.outbox.find(&asking.message.id).is_some_and(|message| message.accepted.is_some());
        if self.asking.as_ref().is_some_and(stored) {
            self.asking = None;
        }
        if !usable {
            self.leave(device);
        }
        Ok(())
    }

    /// Takes the time between the pieces of a text.
    fn time(&mut self, device: usize, frame: &Value) {
        let (Some(turn), "ai_response") = (frame["turn_id"].as_str(), frame["type"].as_str().unwrap_or_default())
        else {
            return;
        };
        let (key, now) = ((device, turn.to_owned()), Instant::now());
        let before = match frame["metadata"]["done"] == "true" {
            true => self.pieces.remove(&key),
            false => self.pieces.insert(key, now),
        };
        self.gap = before.map_or(self.gap, |before| self.gap.max(now - before));
    }
}
