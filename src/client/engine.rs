//! The one task of a client: keeps a connection alive, and what it carries in order.
//!
//! It owns everything that changes. `frames` says what a frame means, `life` what becomes of the connection.

mod frames;
mod life;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Closed, Error, Exchange, Link, Open, Options, Requests, Status,
    conversation::Conversation,
    event::{Event, Reply},
    http::Http,
    known::Known,
    outbox::{Outbox, Pending},
    race::{Attached, Memory},
};
use crate::{
    chat::{RequestId, SessionId, TurnId, ask::Scope},
    protocol::{ClientFrame, CloseCode, ConnectionStatus, ErrorBody, Limits, Request, ServerFrame, encode_request},
};

/// Names a watch within a client.
pub(super) type Key = u64;

/// How long a request beside the messages may go unanswered.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// Watches of one client; more than any server grants a user.
pub(super) const WATCHES_MAX: usize = 64;

/// Requests beside the messages that wait for their answer.
const ASKED_MAX: usize = 256;

/// What a client is asked to do.
pub(super) enum Command {
    /// begin a watch; answered once it is attached
    Watch { scope: Scope, open: Open, events: mpsc::Sender<Event>, answer: oneshot::Sender<Result<Begun, Error>> },
    /// send a message
    Send(Pending),
    /// send a request that has one answer
    Ask { key: Key, frame: ClientFrame, answer: oneshot::Sender<Result<ServerFrame, Error>> },
    /// send what nobody answers
    Tell { key: Key, frame: ClientFrame },
}

/// A watch that is attached.
pub(super) type Begun = (Key, ConnectionStatus);

/// Where a frame came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Watch(Key),
    /// of a message or another request, which belongs to a watch
    Exchange(RequestId, Key),
}

enum Item {
    Frame(Bytes),
    Over,
    Failed(Error),
}

/// The connection of the moment.
struct Live {
    link: Arc<Link>,
    /// the ways up of the watches, each with what ends its way down when it is dropped
    requests: HashMap<Key, (Requests, oneshot::Sender<()>)>,
    limits: Limits,
    since: Instant,
    /// the server drains: it takes no more messages
    leaving: bool,
    /// exchanges that have begun and not ended
    exchanges: usize,
}

struct Asked {
    key: Key,
    frame: ClientFrame,
    answer: oneshot::Sender<Result<ServerFrame, Error>>,
    due: Instant,
    sent: bool,
}

/// What came of dialling: the connection, and the token that it was made with.
struct Dialed {
    attached: Result<Attached, Error>,
    token: Option<String>,
    /// the watch that it was made for
    key: Key,
    /// the server was looked for anew
    fresh: bool,
}

/// Everything that a client holds.
pub(super) struct Engine {
    options: Options,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    stop: CancellationToken,
    http: Http,
    memory: Memory,
    known: Known,
    token: Option<String>,
    token_refused: bool,
    live: Option<Live>,
    dialing: Option<BoxFuture<'static, Dialed>>,
    silent: Option<super::Transport>,
    attempts: u32,
    retry_at: Option<Instant>,
    renew_at: Option<Instant>,
    renewing: Option<BoxFuture<'static, Result<String, Error>>>,
    ping: Option<(RequestId, Instant)>,
    proved: Instant,
    next_key: Key,
    watches: BTreeMap<Key, Conversation>,
    /// watches that nobody has been told of yet
    begun: HashMap<Key, oneshot::Sender<Result<Begun, Error>>>,
    attaching: HashMap<RequestId, Key>,
    outbox: Outbox,
    asked: HashMap<RequestId, Asked>,
    /// messages that the server told to come back later
    postponed: HashMap<RequestId, Instant>,
    /// exchanges that bring a reply
    answering: HashMap<RequestId, TurnId>,
    incoming: SelectAll<BoxStream<'static, (Source, Item)>>,
    opening: FuturesUnordered<BoxFuture<'static, (Source, Result<Exchange, Error>)>>,
    rereads: FuturesUnordered<BoxFuture<'static, Reply>>,
    /// why there is no point in going on
    ended: Option<Error>,
}

/// What a client hands to its task.
pub(super) struct Parts {
    pub(super) options: Options,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) status: watch::Sender<Status>,
    pub(super) stop: CancellationToken,
    pub(super) http: Http,
    pub(super) known: Known,
}

impl Engine {
    pub(super) fn new(Parts { options, commands, status, stop, http, known }: Parts) -> Self {
        Self {
            options,
            commands,
            status,
            stop,
            http,
            memory: Memory::default(),
            known,
            token: None,
            token_refused: false,
            live: None,
            dialing: None,
            silent: None,
            attempts: 0,
            retry_at: None,
            renew_at: None,
            renewing: None,
            ping: None,
            proved: Instant::now(),
            next_key: 0,
            watches: BTreeMap::new(),
            begun: HashMap::new(),
            attaching: HashMap::new(),
            outbox: Outbox::default(),
            asked: HashMap::new(),
            postponed: HashMap::new(),
            answering: HashMap::new(),
            incoming: SelectAll::new(),
            opening: FuturesUnordered::new(),
            rereads: FuturesUnordered::new(),
            ended: None,
        }
    }

    /// Runs until it is told to stop, or nobody holds the client any more.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.due();
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some((source, item)) = self.incoming.next(), if !self.incoming.is_empty() => {
                    self.arrived(source, item);
                }
                Some((source, opened)) = self.opening.next(), if !self.opening.is_empty() => self.opened(source, opened),
                Some(reply) = self.rereads.next(), if !self.rereads.is_empty() => {
                    let key = self.of_session(Some(reply.session_id));
                    if let Some(conversation) = key.and_then(|key| self.watches.get_mut(&key)) {
                        conversation.conclude(reply);
                    }
                }
                dialed = now_or_never(self.dialing.as_mut()) => self.dialed(dialed),
                renewed = now_or_never(self.renewing.as_mut()) => self.renewed(renewed),
                copy = copies(self.live.as_ref()) => self.copied(&copy),
                end = ends(self.live.as_ref()) => self.lost(end),
                () = sleep_until(due) => self.tick(),
            }
            self.flush().await;
        }
        self.end(&Error::Closed(Closed::by(CloseCode::Done)));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Watch { scope, open, events, answer } => self.watch(scope, open, events, answer),
            Command::Send(pending) => match &self.ended {
                Some(err) => pending.fail(&err.clone()),
                None if self.watches.contains_key(&pending.key) => self.outbox.add(pending),
                None => pending.fail(&Error::Closed(Closed::lost("the session is not watched any more"))),
            },
            Command::Ask { key, frame, answer } => {
                if let Some(err) = &self.ended {
                    drop(answer.send(Err(err.clone())));
                } else if self.asked.len() < ASKED_MAX {
                    let due = Instant::now() + ANSWER_DEADLINE;
                    self.asked.insert(RequestId::now_v7(), Asked { key, frame, answer, due, sent: false });
                } else {
                    drop(answer.send(Err(Error::Full(ASKED_MAX))));
                }
            }
            Command::Tell { key, frame } => {
                // What comes of it is nobody's concern: typing that is not seen is no loss.
                let (answer, _nobody) = oneshot::channel();
                if self.live.is_some() && self.asked.len() < ASKED_MAX {
                    let asked = Asked { key, frame, answer, due: Instant::now(), sent: false };
                    self.asked.insert(RequestId::now_v7(), asked);
                }
            }
        }
    }

    fn watch(
        &mut self,
        scope: Scope,
        open: Open,
        events: mpsc::Sender<Event>,
        answer: oneshot::Sender<Result<Begun, Error>>,
    ) {
        if let Some(err) = &self.ended {
            return drop(answer.send(Err(err.clone())));
        }
        if self.watches.len() >= WATCHES_MAX {
            return drop(answer.send(Err(Error::Full(WATCHES_MAX))));
        }
        let key = self.next_key;
        self.next_key += 1;
        self.watches.insert(key, Conversation::new(scope, open, events));
        self.begun.insert(key, answer);
        if self.live.is_some() {
            self.attach(key, Duration::ZERO);
        } else if self.dialing.is_none() && self.retry_at.is_none() {
            self.dial();
        }
    }

    /// Attaches a further watch to the connection, after a while.
    fn attach(&mut self, key: Key, wait: Duration) {
        let (Some(live), Some(conversation)) = (&self.live, self.watches.get(&key)) else { return };
        let datagrams = live.link.transport() == super::Transport::WebTransport;
        let attaching = conversation.attaching();
        let frame = attaching.frame(self.token.as_deref().unwrap_or_default(), datagrams);
        self.attaching.insert(attaching.id, key);
        let link = Arc::clone(&live.link);
        self.opening.push(Box::pin(async move {
            sleep(wait).await;
            (Source::Watch(key), link.exchange(frame).await)
        }));
    }

    fn opened(&mut self, source: Source, opened: Result<Exchange, Error>) {
        match opened {
            Ok(exchange) => match source {
                Source::Watch(key) => self.follow(key, exchange),
                Source::Exchange(..) => self.incoming.push(frames_of(source, exchange)),
            },
            Err(err) => self.resume(&err),
        }
    }

    /// Reads what a watch brings, until it is forgotten.
    fn follow(&mut self, key: Key, mut watch: Exchange) {
        let (Some(live), true) = (&mut self.live, self.watches.contains_key(&key)) else { return };
        let (ends, ended) = oneshot::channel();
        if let Some(requests) = watch.requests() {
            live.requests.insert(key, (requests, ends));
        }
        self.incoming.push(frames_of(Source::Watch(key), watch).take_until(ended).boxed());
    }

    /// Sends what can be sent.
    async fn flush(&mut self) {
        self.leave();
        if self.live.is_none() {
            return;
        }
        for key in self.watches.keys().copied().collect::<Vec<_>>() {
            self.send_message(key);
        }
        let unsent: Vec<RequestId> = self.asked.iter().filter(|(_, asked)| !asked.sent).map(|(id, _)| *id).collect();
        for id in unsent {
            self.send_request(id).await;
        }
    }

    fn send_message(&mut self, key: Key) {
        let Some(session_id) = self.ready(key) else { return };
        let room = self.room();
        let (Some(live), Some(pending)) = (&mut self.live, self.outbox.next(key)) else { return };
        if !room || live.leaving {
            return;
        }
        pending.sent = true;
        live.exchanges += 1;
        let (id, frame, link) = (pending.id, pending.frame(session_id), Arc::clone(&live.link));
        self.opening.push(Box::pin(async move { (Source::Exchange(id, key), link.exchange(frame).await) }));
        self.proved = Instant::now();
    }

    /// The session of a watch that is attached.
    fn ready(&self, key: Key) -> Option<SessionId> {
        let attached = self.live.as_ref().is_some_and(|live| live.requests.contains_key(&key));
        let conversation = self.watches.get(&key).filter(|_| attached && !self.begun.contains_key(&key))?;
        conversation.session_id
    }

    /// Whether an exchange may begin now: the watches take some of the streams.
    fn room(&self) -> bool {
        let Some(live) = &self.live else { return false };
        let watches = live.requests.len() + self.attaching.len();
        live.exchanges + watches < usize::try_from(live.limits.streams).unwrap_or(usize::MAX)
    }

    async fn send_request(&mut self, id: RequestId) {
        let room = self.room();
        let (Some(live), Some(asked)) = (&mut self.live, self.asked.get_mut(&id)) else { return };
        let key = asked.key;
        let inline = matches!(
            asked.frame,
            ClientFrame::Stop { .. } | ClientFrame::Typing { .. } | ClientFrame::Auth { .. } | ClientFrame::Ping
        );
        let frame: Bytes = encode_request(&Request { id: Some(id), frame: asked.frame.clone() }).into();
        if !inline {
            if room {
                asked.sent = true;
                live.exchanges += 1;
                let link = Arc::clone(&live.link);
                let exchange = async move { (Source::Exchange(id, key), link.exchange(frame).await) };
                self.opening.push(Box::pin(exchange));
            }
            return;
        }
        let watch = if live.requests.contains_key(&key) { Some(key) } else { live.requests.keys().next().copied() };
        let Some((requests, _)) = watch.and_then(|watch| live.requests.get_mut(&watch)) else { return };
        asked.sent = true;
        if let Err(err) = requests.send(frame).await {
            self.resume(&err);
        }
    }

    /// Forgets the watches that nobody reads any more.
    fn leave(&mut self) {
        if self.watches.values().any(Conversation::left) {
            // What was sent just before a session was dropped may not have been seen yet.
            while let Ok(command) = self.commands.try_recv() {
                self.command(command);
            }
        }
        let left: Vec<Key> = self
            .watches
            .iter()
            .filter(|(key, conversation)| conversation.left() && !conversation.turns.any() && !self.outbox.waits(**key))
            .map(|(key, _)| *key)
            .collect();
        for key in left {
            self.forget(key, &Error::Closed(Closed::by(CloseCode::Done)));
        }
    }

    /// Reads no more of what a watch brings.
    fn unfollow(&mut self, key: Key) {
        if let Some(live) = &mut self.live {
            live.requests.remove(&key);
        }
    }

    /// Ends a watch, and whatever waits for it.
    fn forget(&mut self, key: Key, err: &Error) {
        if let Some(answer) = self.begun.remove(&key) {
            drop(answer.send(Err(err.clone())));
        }
        if let Some(mut conversation) = self.watches.remove(&key) {
            conversation.turns.abandon(err);
        }
        self.outbox.fail(Some(key), err);
        self.unfollow(key);
        self.attaching.retain(|_, attaching| *attaching != key);
    }

    /// Tells a watch that a request of nobody's was refused.
    fn refused(&mut self, key: Option<Key>, error: ErrorBody) {
        let key = key.or_else(|| self.watches.keys().next().copied());
        if let Some(conversation) = key.and_then(|key| self.watches.get_mut(&key)) {
            conversation.tell(Event::Refused(error));
        }
    }
}

/// The frames of an exchange, and how they end.
fn frames_of(source: Source, exchange: Exchange) -> BoxStream<'static, (Source, Item)> {
    let frames = stream::unfold(Some(exchange), move |exchange| async move {
        let mut exchange = exchange?;
        Some(match exchange.next().await {
            Ok(Some(frame)) => ((source, Item::Frame(frame)), Some(exchange)),
            Ok(None) => ((source, Item::Over), None),
            Err(err) => ((source, Item::Failed(err)), None),
        })
    });
    frames.boxed()
}

async fn now_or_never<T>(future: Option<&mut BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn copies(live: Option<&Live>) -> Bytes {
    match live {
        Some(live) => live.link.datagram().await,
        None => std::future::pending().await,
    }
}

async fn ends(live: Option<&Live>) -> Closed {
    match live {
        Some(live) => live.link.closed().await,
        None => std::future::pending().await,
    }
}
