//! What becomes of the connection: dialling, back-off, renewal of the token, drain, and the watch for a dead path.

use std::{sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, SelectAll};
use tokio::time::Instant;

use super::{Asked, Dialed, Engine, Key, Live};
use crate::{
    chat::{ErrorCode, RequestId},
    client::{
        Closed, Error, Transport,
        error::chain,
        race::{Attached, race},
        status::State,
        token,
    },
    protocol::{ClientFrame, CloseCode, ErrorBody},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// The least that a client waits that was one too many.
const CROWDED: Duration = Duration::from_secs(5);

/// A connection that lasted this long was a good one: the next failure counts as the first.
const STABLE: Duration = Duration::from_secs(10);

/// A token is renewed this long before it expires, or at four fifths of a shorter life.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Nothing is due.
const FAR: Duration = Duration::from_secs(3600);

/// What the refusal of a watch is about.
enum Refused {
    Token,
    Watch,
    /// the moment; and how long to wait at least
    ForNow(Duration),
}

impl Refused {
    fn by(error: &ErrorBody) -> Self {
        use ErrorCode::{
            ExpiredToken, InsufficientPermissions, InvalidFormat, InvalidToken, MissingField, NotFound, SessionEnded,
            Unauthorized,
        };
        match error.code {
            InvalidToken | ExpiredToken | Unauthorized => Self::Token,
            NotFound | SessionEnded | InsufficientPermissions | InvalidFormat | MissingField => Self::Watch,
            _ => Self::ForNow(Duration::from_millis(error.retry_after.unwrap_or_default())),
        }
    }
}

impl Engine {
    /// When there is something to do without a word from anybody.
    pub(super) fn due(&self) -> Instant {
        let watchdog = (self.live.is_some() && self.busy()).then(|| match self.ping {
            Some((_, at)) => at + self.options.heartbeat.mul_f32(0.7),
            None => self.proved + self.options.heartbeat.mul_f32(0.3),
        });
        let asked = self.asked.values().map(|asked| asked.due).min();
        let postponed = self.postponed.values().min().copied();
        let renew = self.renew_at.filter(|_| self.renewing.is_none());
        let retry = self.retry_at.filter(|_| self.dialing.is_none());
        let dues = [watchdog, asked, postponed, renew, retry];
        dues.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + FAR)
    }

    /// Does what is due.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let late: Vec<RequestId> = self.asked.iter().filter(|(_, asked)| asked.due <= now).map(|(id, _)| *id).collect();
        for Asked { answer, .. } in late.iter().filter_map(|id| self.asked.remove(id)).collect::<Vec<_>>() {
            drop(answer.send(Err(Error::Timeout("the answer"))));
        }
        let again: Vec<RequestId> = self.postponed.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in again {
            self.postponed.remove(&id);
            self.outbox.unsend(id);
        }
        if self.renew_at.is_some_and(|at| at <= now) && self.renewing.is_none() {
            self.renew_at = None;
            let tokens = self.options.tokens.clone();
            self.renewing = Some(Box::pin(async move { tokens.get(true).await }));
        }
        if self.retry_at.is_some_and(|at| at <= now) && self.dialing.is_none() {
            self.dial();
        }
        if self.live.is_some() && self.busy() {
            self.watch_path(now);
        }
    }

    /// Asks for a sign of life while something is unanswered; a path that gives none is left.
    fn watch_path(&mut self, now: Instant) {
        match self.ping {
            Some((_, at)) if now >= at + self.options.heartbeat.mul_f32(0.7) => {
                self.silent = self.live.as_ref().map(|live| live.link.transport());
                self.resume(&Error::Timeout("a sign of life"));
            }
            None if now >= self.proved + self.options.heartbeat.mul_f32(0.3) => {
                let Some(key) = self.live.as_ref().and_then(|live| live.requests.keys().next().copied()) else {
                    return;
                };
                let id = RequestId::now_v7();
                let (answer, _nobody) = tokio::sync::oneshot::channel();
                let asked = Asked { key, frame: ClientFrame::Ping, answer, due: now + FAR, sent: false };
                self.asked.insert(id, asked);
                self.ping = Some((id, now));
            }
            _ => {}
        }
    }

    /// Begins to connect.
    pub(super) fn dial(&mut self) {
        self.retry_at = None;
        let Some((key, conversation)) = self.watches.iter().next() else { return };
        let key = *key;
        let session = conversation.attaching();
        let order = self.memory.order(self.options.transport, self.silent.take());
        let (options, known) = (self.options.clone(), self.known.clone());
        let held = self.token.clone().filter(|token| !self.token_refused && token::life(token) != Some(Duration::ZERO));
        let refresh = self.token_refused;
        self.dialing = Some(Box::pin(async move {
            let fresh = known.dialer().is_none();
            let found = async {
                let token = match held {
                    Some(token) => token,
                    None => options.tokens.get(refresh).await?,
                };
                Ok((known.find(&options).await?, token))
            };
            match found.await {
                Ok((dialer, token)) => {
                    let attach = |transport| session.frame(&token, transport == Transport::WebTransport);
                    Dialed { attached: race(&dialer, &order, attach).await, token: Some(token), key, fresh }
                }
                Err(err) => Dialed { attached: Err(err), token: None, key, fresh },
            }
        }));
        let state = if self.attempts == 0 && self.status.borrow().reconnects == 0 {
            State::Connecting
        } else {
            State::Reconnecting
        };
        self.tell_status(state, None);
    }

    pub(super) fn dialed(&mut self, Dialed { attached, token, key, fresh }: Dialed) {
        self.dialing = None;
        self.token = token.or(self.token.take());
        match attached {
            Ok(attached) => self.adopt(attached, key),
            Err(err) => self.failed(&err, key, fresh),
        }
    }

    fn adopt(&mut self, Attached { link, watch, status }: Attached, key: u64) {
        self.drop_link();
        self.retry_at = None;
        self.memory.won(link.transport());
        self.token_refused = false;
        self.proved = Instant::now();
        self.live = Some(Live {
            link: Arc::new(link),
            requests: std::collections::HashMap::new(),
            limits: status.limits,
            since: Instant::now(),
            leaving: false,
            exchanges: 0,
        });
        self.follow(key, watch);
        self.begin(key, status);
        for other in self.watches.keys().copied().filter(|other| *other != key).collect::<Vec<_>>() {
            self.attach(other, Duration::ZERO);
        }
        self.schedule_renewal();
        self.tell_status(State::Connected, None);
    }

    /// What to do when no connection came about.
    fn failed(&mut self, err: &Error, key: u64, fresh: bool) {
        // The address or the pinned certificate may be another one by now.
        self.known.forget();
        match err {
            Error::Answered(error) => match Refused::by(error) {
                Refused::Token => self.unauthorized(err),
                Refused::Watch => {
                    self.forget(key, err);
                    if !self.watches.is_empty() {
                        self.retry(Duration::ZERO);
                    }
                }
                Refused::ForNow(told) => {
                    let wait = self.backoff(CROWDED).max(told);
                    self.retry(wait);
                }
            },
            Error::NoToken | Error::Document { .. } | Error::Lacking(_) => self.end(err),
            Error::Certificate { .. } if fresh => self.end(err),
            Error::Refused { status, .. } if fresh && matches!(status.as_u16(), 400..=404) => self.end(err),
            Error::Closed(closed) => self.proceed(closed.clone()),
            _ => {
                let wait = self.backoff(Duration::ZERO);
                self.retry(wait);
            }
        }
        // While a server drains, what runs there goes on, and there is nothing to be told.
        if self.ended.is_none() && self.retry_at.is_some() && self.live.is_none() {
            self.tell_status(State::Reconnecting, Some(chain(err)));
        }
    }

    /// What to do when a further watch is refused. One that has begun outlasts what passes.
    pub(super) fn unattached(&mut self, key: Key, error: ErrorBody) {
        self.unfollow(key);
        let begins = self.begun.contains_key(&key);
        match Refused::by(&error) {
            Refused::Token if !begins => self.unauthorized(&Error::Answered(error)),
            Refused::ForNow(told) if !begins => {
                let wait = self.backoff(Duration::ZERO).max(told);
                self.attach(key, wait);
            }
            _ => self.forget(key, &Error::Answered(error)),
        }
    }

    fn unauthorized(&mut self, err: &Error) {
        if self.options.tokens.renewable() && !self.token_refused {
            self.token_refused = true;
            self.retry(Duration::ZERO);
        } else {
            self.end(err);
        }
    }

    /// The connection has ended.
    pub(super) fn lost(&mut self, end: Closed) {
        if self.live.as_ref().is_some_and(|live| live.since.elapsed() > STABLE) {
            self.attempts = 0;
        }
        self.drop_link();
        // A drain has said when to come back.
        if self.retry_at.is_none() && self.dialing.is_none() {
            self.proceed(end);
        } else {
            self.tell_status(State::Reconnecting, Some(end.to_string()));
        }
    }

    /// What to do after an end, by its code (the contract, 1.3).
    fn proceed(&mut self, end: Closed) {
        match end.code {
            Some(CloseCode::Done | CloseCode::ProtocolError | CloseCode::FrameTooLarge) => {
                self.end(&Error::Closed(end))
            }
            Some(CloseCode::Unauthorized | CloseCode::TokenExpired) => self.unauthorized(&Error::Closed(end)),
            Some(CloseCode::TooManyConnections) => {
                let wait = self.backoff(CROWDED);
                self.retry(wait);
            }
            _ => {
                let wait = self.backoff(Duration::ZERO);
                self.retry(wait);
                self.tell_status(State::Reconnecting, Some(end.to_string()));
            }
        }
    }

    /// The server drains: what runs goes on here until a new connection, on another node maybe, has it.
    pub(super) fn drain(&mut self, retry_after: u64) {
        if let Some(live) = &mut self.live {
            live.leaving = true;
        }
        self.known.forget();
        let wait = Duration::from_millis(retry_after).max(Duration::from_millis(1));
        self.retry(wait);
    }

    /// Attaches anew, from where everything stands.
    pub(super) fn resume(&mut self, why: &Error) {
        let Some(live) = &self.live else { return };
        // At once, but not again and again.
        let wait = if live.since.elapsed() > STABLE { Duration::ZERO } else { self.backoff(Duration::ZERO) };
        self.drop_link();
        self.retry(wait);
        self.tell_status(State::Reconnecting, Some(why.to_string()));
    }

    fn drop_link(&mut self) {
        let Some(live) = self.live.take() else { return };
        live.link.close(CloseCode::Done);
        self.incoming = SelectAll::new();
        self.opening = FuturesUnordered::new();
        self.attaching.clear();
        self.answering.clear();
        self.outbox.unsend_all();
        self.postponed.clear();
        let ping = self.ping.take();
        // A request that outlasts a link is sent again over the next one, under the same id.
        self.asked.retain(|id, asked| {
            asked.sent = false;
            ping.is_none_or(|(ping, _)| ping != *id)
        });
        if self.ended.is_none() {
            self.status.send_modify(|status| status.reconnects += 1);
        }
    }

    fn retry(&mut self, wait: Duration) {
        self.retry_at = Some(Instant::now() + wait);
        if self.live.is_none() {
            self.tell_status(State::Reconnecting, None);
        }
    }

    /// A doubling delay with jitter; the first try after a good connection comes nearly at once.
    fn backoff(&mut self, least: Duration) -> Duration {
        let ceiling = BACKOFF_FIRST.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_LAST);
        let share = if self.attempts == 0 { 0.4 } else { 1.0 };
        self.attempts += 1;
        // Sixteen random bits: a fraction between a half and one.
        let (_, random) = RequestId::new_v4().as_u64_pair();
        let jitter = f32::from(u16::try_from(random & 0xFFFF).unwrap_or_default()) / 65536.0;
        least + ceiling.mul_f32(share * (0.5 + jitter / 2.0))
    }

    fn schedule_renewal(&mut self) {
        let life = self.token.as_deref().and_then(token::life).filter(|_| self.options.tokens.renewable());
        self.renew_at = life.map(|life| Instant::now() + life.saturating_sub(RENEW_BEFORE).max(life.mul_f32(0.8)));
    }

    pub(super) fn renewed(&mut self, renewed: Result<String, Error>) {
        self.renewing = None;
        // Without a new one the old identity holds until it expires, and the end of the connection asks once more.
        let Ok(token) = renewed else { return };
        self.token = Some(token.clone());
        self.schedule_renewal();
        let Some(key) = self.live.as_ref().and_then(|live| live.requests.keys().next().copied()) else { return };
        let (answer, _nobody) = tokio::sync::oneshot::channel();
        let due = Instant::now() + super::ANSWER_DEADLINE;
        let asked = Asked { key, frame: ClientFrame::Auth { token }, answer, due, sent: false };
        self.asked.insert(RequestId::now_v7(), asked);
    }

    /// There is no point in going on.
    pub(super) fn end(&mut self, err: &Error) {
        self.ended = Some(err.clone());
        (self.retry_at, self.renew_at, self.dialing, self.renewing) = (None, None, None, None);
        self.drop_link();
        for key in self.watches.keys().copied().collect::<Vec<_>>() {
            self.forget(key, err);
        }
        self.outbox.fail(None, err);
        for (_, Asked { answer, .. }) in self.asked.drain() {
            drop(answer.send(Err(err.clone())));
        }
        self.tell_status(State::Closed, Some(chain(err)));
    }

    pub(super) fn tell_status(&self, state: State, reason: Option<String>) {
        let transport = self.live.as_ref().map(|live| live.link.transport());
        let state = if transport.is_some() && state != State::Closed { State::Connected } else { state };
        self.status.send_if_modified(|status| {
            let reason = reason.or_else(|| status.reason.take().filter(|_| state == State::Reconnecting));
            let changed = (status.state, status.transport) != (state, transport) || status.reason != reason;
            (status.state, status.transport, status.reason) = (state, transport, reason);
            changed
        });
    }
}
