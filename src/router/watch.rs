//! Watching one session: the entries and the text that a client misses, then what happens, in the log's order.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    RETRY_PAUSE, Refusal, Router,
    asked::Asked,
    cursor::{Cursor, Fit, Left, Shown, Waiting, whole},
    reader::Reader,
};
use crate::{
    bus::{Delivery, Published, Subscription, Topic},
    chat::{
        ConnectionId, Entry, Event, Sender, Session, SessionId, SessionState, SessionUpdate, TurnId, ask::Position,
    },
    protocol::REPLAY_ENTRIES_MAX,
    store::{self, Range},
};

/// A watcher of one session. The fields lie as they are written here: the end of `here` beside the others.
#[repr(C)]
pub struct Watch {
    /// absent while it reads
    here: Option<Watching>,
    /// gives it back when it has read what it was not told
    reads: Option<BoxFuture<'static, Watching>>,
    session_id: SessionId,
}

/// A watcher that is told. As its fields lie, an event that is shown as it is told touches the last ones only.
#[repr(C)]
struct Watching {
    router: Router,
    session_id: SessionId,
    /// What the watcher was told of the session itself, and the `rev` with which it was read.
    told: Told,
    rev: u64,
    origin: ConnectionId,
    asked: Arc<Asked>,
    /// Every entry up to here was shown, or the client did not ask for it.
    upto: u64,
    over: bool,
    /// boxed: most watches watch nothing that runs
    running: Option<Box<Running>>,
    ready: Waiting,
    subscription: Subscription,
}

/// The reply that is being written, and how much of it was shown.
#[derive(Clone, Debug)]
struct Running {
    reader: Reader,
    seq: u64,
    muted: bool,
}

impl Running {
    const fn turn_id(&self) -> TurnId {
        self.reader.cursor.turn_id
    }
}

/// What a watcher was told of its session: digests of the texts, as nearly all watchers never need them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Told {
    name: u64,
    model_id: u64,
    state: SessionState,
    help_requested: bool,
}

impl Told {
    fn of(session: &Session) -> Self {
        Self {
            name: digest(session.name.as_deref()),
            model_id: digest(session.model_id.as_deref()),
            state: session.state,
            help_requested: session.help_requested,
        }
    }

    fn note(&mut self, update: &SessionUpdate) {
        if update.name.is_some() {
            self.name = digest(update.name.as_deref());
        }
        if update.model_id.is_some() {
            self.model_id = digest(update.model_id.as_deref());
        }
        self.state = update.state.unwrap_or(self.state);
        self.help_requested = update.help_requested.unwrap_or(self.help_requested);
    }
}

fn digest(text: Option<&str>) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A watch that has begun.
#[derive(Debug)]
pub struct Start {
    /// the session as it was when the watch began
    pub session: Session,
    /// whether the client's position could be honoured; else what follows is a snapshot
    pub recovered: bool,
    /// what follows
    pub watch: Watch,
}

/// Whose watch it is, and from where it goes on.
#[derive(Debug)]
pub struct From {
    /// the connection, whose own messages are not shown to it again
    pub origin: ConnectionId,
    /// the turns that its own exchanges show
    pub asked: Arc<Asked>,
    /// every entry up to here is in its final state at the client
    pub after_seq: Option<u64>,
    /// without `after_seq`: how many of the last entries to show
    pub last: Option<u32>,
    /// where it left a turn
    pub position: Option<Position>,
}

impl Router {
    /// Starts a watch: subscribes first, reads the store second, and shows nothing twice.
    ///
    /// # Errors
    /// `NOT_FOUND` when the session is gone, `DATABASE_ERROR`.
    pub async fn watch(&self, session: Session, from: From) -> Result<Start, Refusal> {
        let store = &self.0.parts.store;
        if let Some(position) = from.position {
            // Whoever names a turn wants to see it here, although an exchange of the connection had shown it.
            from.asked.remove(position.turn_id);
        }
        let subscription = self.0.parts.bus.subscribe(Topic::Session(session.id)).await;
        let session = store.session(session.id).await?.ok_or(store::Error::NotFound)?;
        subscription.saw(session.rev);
        subscription.own(from.origin);
        let mut watching = Watching {
            told: Told::of(&session),
            rev: session.rev,
            over: false,
            router: self.clone(),
            subscription,
            origin: from.origin,
            asked: from.asked,
            upto: session.last_seq,
            session_id: session.id,
            running: None,
            ready: Waiting::default(),
        };
        let recovered = watching.replay(from.after_seq, from.last, from.position).await?;
        let watch = Watch { session_id: session.id, here: Some(watching), reads: None };
        Ok(Start { session, recovered, watch })
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

impl Watch {
    /// The session that is watched.
    #[must_use]
    pub const fn session_id(&self) -> SessionId {
        self.session_id
    }

    /// What is to be shown next, or a wake-up of this task when there is something; `None` once the session is deleted.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Shown>> {
        loop {
            if let Some(reads) = &mut self.reads {
                self.here = Some(ready!(reads.poll_unpin(cx)));
                self.reads = None;
            }
            let Some(watching) = &mut self.here else { return Poll::Ready(None) };
            let fit = match ready!(watching.poll_next(cx)) {
                Next::Shown(shown) => return Poll::Ready(Some(shown)),
                Next::Over => return Poll::Ready(None),
                Next::Hole => Fit::Hole,
                Next::Elsewhere => Fit::Seamless,
            };
            // Boxed, being rare: an idle watch keeps no room for it.
            self.reads = self.here.take().map(|watching| watching.read(fit).boxed());
        }
    }
}

/// What a watcher has come to.
enum Next {
    Shown(Shown),
    /// the session is deleted
    Over,
    /// it was not told all
    Hole,
    /// the running turn's text comes from another node's log too
    Elsewhere,
}

impl Watching {
    fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Next> {
        loop {
            if let Some(shown) = self.ready.next() {
                return Poll::Ready(Next::Shown(shown));
            }
            if self.over {
                return Poll::Ready(Next::Over);
            }
            if self.running.as_ref().is_some_and(|running| running.reader.reads()) {
                return Poll::Ready(Next::Elsewhere);
            }
            match ready!(self.subscription.poll_next(cx)) {
                Delivery::Event(event) if self.apply(&event) == Fit::Seamless => {}
                Delivery::Word(_) => {}
                Delivery::Event(_) | Delivery::Lagged => return Poll::Ready(Next::Hole),
            }
        }
    }

    /// Reads what it was not told: all that was missed, or else what comes next of a text that is read beside.
    async fn read(mut self, mut fit: Fit) -> Self {
        if fit == Fit::Seamless {
            let told = tokio::select! {
                biased;
                told = self.subscription.next() => Some(told),
                () = Reader::behind(self.running.as_ref().map(|running| &running.reader)) => None,
            };
            fit = match (told, &mut self.running) {
                (Some(Delivery::Event(event)), _) => self.apply(&event),
                (Some(Delivery::Lagged), _) => Fit::Hole,
                (None, Some(running)) => {
                    running.reader.grow(&mut self.ready);
                    Fit::Seamless
                }
                (Some(Delivery::Word(_)) | None, _) => Fit::Seamless,
            };
        }
        if fit == Fit::Hole {
            while let Err(err) = self.resync().await {
                tracing::warn!(error = &err as &dyn std::error::Error, "missed events are not read yet");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        self
    }

    /// Reads what the client misses. `false`: its position could not be honoured, and what is read is a snapshot.
    async fn replay(
        &mut self,
        after_seq: Option<u64>,
        last: Option<u32>,
        position: Option<Position>,
    ) -> store::Result<bool> {
        let store = Arc::clone(&self.router.0.parts.store);
        let mut left = match position {
            Some(position) => self.left(position).await?,
            None => Left::Nowhere,
        };
        let last_seq = self.upto;
        let gap = |after_seq: u64| last_seq.checked_sub(after_seq).and_then(|gap| u32::try_from(gap).ok());
        let range = match (&left, after_seq.map(gap)) {
            (Left::Unknown, _) | (_, Some(None)) => Some(Range::Last(REPLAY_ENTRIES_MAX)),
            (_, Some(Some(gap))) if gap > REPLAY_ENTRIES_MAX => Some(Range::Last(REPLAY_ENTRIES_MAX)),
            (_, Some(Some(gap))) => after_seq.map(|after_seq| Range::After(after_seq, gap)),
            (_, None) => last.map(Range::Last),
        };
        let recovered = after_seq.is_none() && !matches!(left, Left::Unknown) || !matches!(range, Some(Range::Last(_)));
        if let Some(range) = range {
            let entries = store.entries(self.session_id, range).await?;
            self.upto = entries.first().map_or(last_seq, |first| first.seq - 1);
            for entry in entries.into_iter().map(Arc::new) {
                left = left.after(&entry);
                match &left {
                    Left::Ended(named, _) if named.seq == entry.seq => self.upto = entry.seq,
                    _ => self.take(entry, after_seq.is_none()),
                }
            }
        }
        // Read after the entries: a turn that runs now was not among them with its end.
        let running = store.running_turn(self.session_id).await?;
        let left = match (left, position) {
            // No entry was asked for that could have shown its end, if that has come meanwhile.
            (Left::Running(..), Some(position)) if range.is_none() => self.left(position).await?,
            (left, _) => left,
        };
        if let Left::Ended(entry, cursor) = &left
            && entry.seq <= self.upto
        {
            cursor.clone().finish(entry, None, &mut self.ready);
        }
        // A turn that started later than the session was read is announced by an event that waits already.
        if let Some((turn, seq)) = running.and_then(|turn| turn.reply_seq.map(|seq| (turn, seq)))
            && seq <= self.upto
            && self.running.is_none()
        {
            let loading = Shown::Loading { turn_id: turn.id, seq };
            self.begin((turn.id, seq), turn.model_id.map(Into::into), loading);
        }
        if let Some(running) = &mut self.running
            && let Left::Running(turn_id, offset) = left
            && running.reader.cursor.turn_id == turn_id
        {
            running.reader.cursor.offset = offset;
        }
        self.catch_up();
        Ok(recovered)
    }

    /// Finds out what became of the turn that the client names.
    async fn left(&self, position: Position) -> store::Result<Left> {
        let store = &self.router.0.parts.store;
        let cursor = Cursor { offset: position.offset, ..Cursor::start(position.turn_id) };
        let turn = store.turn(position.turn_id).await?.filter(|turn| turn.session_id == self.session_id);
        Ok(match turn {
            Some(turn) if turn.state.ended() => {
                let after = turn.reply_seq.unwrap_or_default().saturating_sub(1);
                let reply = store.entries(self.session_id, Range::After(after, 1)).await?.into_iter().next();
                match reply.filter(|reply| reply.length.is_some_and(|length| position.offset <= length)) {
                    Some(reply) => Left::Ended(Arc::new(reply), cursor),
                    None => Left::Unknown,
                }
            }
            Some(_) => Left::Running(position.turn_id, position.offset),
            None => Left::Unknown,
        })
    }

    fn apply(&mut self, event: &Arc<Published>) -> Fit {
        match &***event {
            Event::Appended { origin, entry, .. } => {
                if *origin == Some(self.origin) && entry.seq == self.upto + 1 {
                    self.upto = entry.seq;
                    return Fit::Seamless;
                }
                self.in_order(entry, event)
            }
            Event::Loading { turn_id, seq, model_id, .. } => self.loading((*turn_id, *seq), model_id, event),
            Event::Piece { turn_id, .. } => match &mut self.running {
                Some(running) if running.turn_id() == *turn_id && running.muted => Fit::Seamless,
                Some(running) if running.turn_id() == *turn_id => running.reader.piece(event, &mut self.ready),
                // Of a turn whose end was read from the store before this event was: old news.
                _ => Fit::Seamless,
            },
            Event::Ended { entry, .. } => {
                match self.running.take_if(|running| Some(running.turn_id()) == entry.turn_id) {
                    Some(running) if running.muted => {}
                    Some(running) => running.reader.end(event, &mut self.ready),
                    None => return self.in_order(entry, event),
                }
                Fit::Seamless
            }
            // What was read from the store since needs not be told.
            Event::Session { rev, update } if *rev <= self.rev && !update.deleted => Fit::Seamless,
            Event::Session { update, .. } => {
                self.told.note(update);
                self.ready.push(Shown::Published(Arc::clone(event)));
                self.over |= update.deleted;
                Fit::Seamless
            }
            Event::Typing { .. } => {
                self.ready.push(Shown::Published(Arc::clone(event)));
                Fit::Seamless
            }
        }
    }

    fn in_order(&mut self, entry: &Arc<Entry>, event: &Arc<Published>) -> Fit {
        if entry.seq > self.upto + 1 {
            return Fit::Hole;
        }
        // A message that comes next is shown as it was told.
        if entry.sender != Sender::Ai && entry.seq == self.upto + 1 && !self.asked.has(entry.turn_id) {
            self.upto = entry.seq;
            self.ready.push(Shown::Published(Arc::clone(event)));
            return Fit::Seamless;
        }
        self.take(Arc::clone(entry), false);
        Fit::Seamless
    }

    fn loading(&mut self, (turn_id, seq): (TurnId, u64), model_id: &Arc<str>, event: &Arc<Published>) -> Fit {
        match &self.running {
            Some(running) if running.turn_id() == turn_id => {
                if !running.muted {
                    self.ready.push(Shown::Published(Arc::clone(event)));
                }
            }
            None if seq == self.upto + 1 => {
                self.upto = seq;
                let loading = Shown::Published(Arc::clone(event));
                self.begin((turn_id, seq), Some(Arc::clone(model_id)), loading);
            }
            None if seq <= self.upto => {}
            _ => return Fit::Hole,
        }
        Fit::Seamless
    }

    /// Begins to show a running reply from its first byte.
    fn begin(&mut self, (turn_id, seq): (TurnId, u64), model_id: Option<Arc<str>>, loading: Shown) {
        let muted = self.asked.has(Some(turn_id));
        if !muted {
            self.ready.push(loading);
        }
        let reader = Reader::new(Cursor { turn_id, model_id, offset: 0 });
        self.running = Some(Box::new(Running { reader, seq, muted }));
    }

    /// Shows an entry as the store has it, unless it was shown. What this connection's own exchanges show comes `again`
    /// where a view begins, and not where one goes on.
    fn take(&mut self, entry: Arc<Entry>, again: bool) {
        let known = entry.seq <= self.upto;
        self.upto = self.upto.max(entry.seq);
        if self.running.as_ref().is_some_and(|running| running.seq == entry.seq) {
            if let Some(running) = self.running.take_if(|_| entry.settled())
                && !running.muted
            {
                running.reader.finish(&entry, None, &mut self.ready);
            }
            return;
        }
        match (entry.sender, entry.settled(), entry.turn_id) {
            _ if known => {}
            (Sender::Ai, false, Some(turn_id)) => {
                let loading = Shown::Loading { turn_id, seq: entry.seq };
                self.begin((turn_id, entry.seq), entry.model_id.as_deref().map(Into::into), loading);
            }
            _ if !again && self.asked.has(entry.turn_id) => {}
            _ => whole(entry, &mut self.ready),
        }
    }

    /// Reads everything that may have been missed.
    async fn resync(&mut self) -> store::Result<()> {
        // First the session: what is read after it is at least as new as its `rev`.
        let Some(session) = self.router.0.parts.store.session(self.session_id).await? else {
            let update = SessionUpdate { deleted: true, ..SessionUpdate::of(self.session_id) };
            self.ready.push(Shown::Update(Arc::new(update)));
            self.over = true;
            return Ok(());
        };
        self.subscription.saw(session.rev);
        self.rev = session.rev;
        let told = std::mem::replace(&mut self.told, Told::of(&session));
        if told != self.told {
            self.ready.push(Shown::Update(Arc::new(whole_update(session))));
        }
        loop {
            let after = self.running.as_ref().map_or(self.upto, |running| running.seq - 1);
            let range = Range::After(after, REPLAY_ENTRIES_MAX);
            let entries = self.router.0.parts.store.entries(self.session_id, range).await?;
            let more = entries.len() >= usize::try_from(REPLAY_ENTRIES_MAX).unwrap_or(usize::MAX);
            for entry in entries {
                self.take(Arc::new(entry), false);
            }
            if !more {
                self.catch_up();
                return Ok(());
            }
        }
    }

    fn catch_up(&mut self) {
        if let Some(running) = self.running.as_mut().filter(|running| !running.muted) {
            running.reader.catch_up(&self.router, self.session_id, &mut self.ready);
        }
    }
}

/// All that a watcher may have missed of a session itself.
pub(super) fn whole_update(session: Session) -> SessionUpdate {
    SessionUpdate {
        name: session.name,
        model_id: session.model_id,
        state: Some(session.state),
        help_requested: Some(session.help_requested),
        ..SessionUpdate::of(session.id)
    }
}
