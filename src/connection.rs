//! One connection, whatever carries it: frames in, answers out, identity and its end.
//!
//! A transport reads frames, calls [`Connection::handle`], and writes what the [`Answers`] yield. Nothing in
//! here knows which transport it is; nothing in a transport knows what a frame means.

mod answers;
mod gate;
mod predecessor;
mod requests;
mod watches;

pub use answers::{Answers, html};
pub use gate::{Gate, Hello};

pub use crate::protocol::Transport;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    auth::{Denied, Principal},
    chat::{ConnectionId, ErrorCode, RequestId, SessionId, ask::Attach},
    clock::now,
    limit::{ConnectionPermit, UserPermit},
    protocol::{ClientFrame, CloseCode, Encoded, Rejection, Request, ServerFrame, decode},
    router::{Asked, Refusal},
};

/// How long a connection may take to attach.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(5);

/// How long the frame of a stream may take to arrive.
pub const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// How long requests that are being handled may go on when their client has left.
pub const HANDLE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection is kept for its watches to say that the server drains: with thousands of them, some wait for
/// their turn.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(2);

/// What a transport is to do with a frame that it handed in.
pub enum Outcome {
    /// There is nothing to write: finish the exchange.
    Nothing,
    /// Write these, then finish the exchange.
    Answers(Answers),
    /// The frame was an `attach` that succeeded: allow `streams` client streams at a time (the watch itself
    /// among them), then write these for as long as they come, then finish.
    Watch {
        /// the new cap; never lower than an earlier one of the connection
        streams: u32,
        /// the status, the replay and the live events
        answers: Answers,
    },
    /// Write the frame, if any, then close the connection.
    Close(Option<Encoded>, CloseCode),
}

/// One WebTransport session or WebSocket, and which of them it is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>, Transport);

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    id: ConnectionId,
    transport: Transport,
    presented: Option<String>,
    /// speaks the protocol of the predecessor
    old: bool,
    /// has asked for copies of frames as datagrams, which a WebSocket does not have
    copies: AtomicBool,
    asked: Arc<Asked>,
    state: Mutex<State>,
    /// wakes `over` when the identity changed, or the drain was announced
    renewed: Notify,
    _permit: ConnectionPermit,
}

#[derive(Debug, Default)]
struct State {
    caller: Option<Caller>,
    /// at most as many as `limits.streams`
    watches: Vec<Watching>,
    announced: bool,
}

#[derive(Debug)]
struct Caller {
    principal: Arc<Principal>,
    _permit: UserPermit,
}

#[derive(Debug)]
struct Watching {
    target: Target,
    ended: CancellationToken,
}

/// What a watch shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// a session; whether it is the caller's own
    Session(SessionId, bool),
    /// the caller's list of sessions
    List,
}

impl Target {
    const fn session_id(self) -> Option<SessionId> {
        match self {
            Self::Session(id, _) => Some(id),
            Self::List => None,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.gate.metrics.connections_open.with_label_values(&[self.transport.name()]).dec();
    }
}

impl Connection {
    /// Its name in logs and status frames.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.0.id
    }

    /// Whether the client has shown a token that was accepted.
    #[must_use]
    pub fn authenticated(&self) -> bool {
        self.state().caller.is_some()
    }

    /// Handles a frame that opens an exchange: the first of a stream, or any on a WebSocket. A panic in it is
    /// contained, counted and answered.
    pub async fn handle(&self, frame: &[u8]) -> Outcome {
        self.handle_request(decode(frame)).await
    }

    /// The same for a frame that the transport had to look into.
    pub async fn handle_request(&self, request: Result<Request, Rejection>) -> Outcome {
        let re = request.as_ref().map_or_else(|rejection| rejection.re, |request| request.id);
        match AssertUnwindSafe(self.dispatch(request)).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(_panic) => {
                self.0.gate.metrics.panics_total.inc();
                self.refuse(re, &Refusal::new(ErrorCode::ServiceError))
            }
        }
    }

    /// Handles a later frame of an attach stream: `auth`, `ping`, `stop`, `typing_indicator`, and whatever else is
    /// answered at once.
    pub async fn handle_inline(&self, frame: &[u8]) -> Outcome {
        match decode(frame) {
            Ok(Request {
                id,
                frame: ClientFrame::UserMessage(_) | ClientFrame::Regenerate { .. } | ClientFrame::Attach(_),
            }) => {
                let message = "this request needs a stream of its own".into();
                self.refuse(id, &Refusal { message, ..Refusal::new(ErrorCode::InvalidFormat) })
            }
            request => self.handle_request(request).await,
        }
    }

    /// The `error` frame for a frame above [`Gate::frame_bytes_max`]; `ends`: the connection is closed behind it.
    #[must_use]
    pub fn too_large(&self, ends: bool) -> Encoded {
        let message = format!("the frame is larger than {} bytes", self.0.gate.frame_bytes_max()).into();
        self.0.gate.error(None, &Refusal { message, ..Refusal::new(ErrorCode::FrameTooLarge) }, !ends)
    }

    /// Resolves when the connection has to end: its token expired, or the server's drain is over. Cancel safe.
    pub async fn over(&self) -> CloseCode {
        loop {
            let renewed = self.0.renewed.notified();
            let expiry = self.principal().map(|principal| remaining(&principal));
            tokio::select! {
                biased;
                () = self.0.gate.lifecycle.closing() => {
                    drop(timeout(ANNOUNCE_DEADLINE, self.told_of_drain()).await);
                    return CloseCode::GoingAway;
                }
                () = renewed => {}
                () = tokio::time::sleep(expiry.unwrap_or(Duration::MAX)), if expiry.is_some() => {
                    if self.principal().is_some_and(|principal| remaining(&principal).is_zero()) {
                        return CloseCode::TokenExpired;
                    }
                }
            }
        }
    }

    /// Resolves when a watch has told the client when to come back, or when there is none to tell it.
    async fn told_of_drain(&self) {
        loop {
            let changed = self.0.renewed.notified();
            let told = {
                let state = self.state();
                state.announced || state.watches.iter().all(|watch| watch.ended.is_cancelled())
            };
            if told {
                return;
            }
            changed.await;
        }
    }

    /// Counts the end of the connection and ends its watches.
    pub fn closed(&self, code: CloseCode) {
        let name = self.0.transport.name();
        self.0.gate.metrics.connections_closed_total.with_label_values(&[name, code.reason()]).inc();
        for watch in self.state().watches.drain(..) {
            watch.ended.cancel();
        }
        debug!(conn_id = %self.0.id, transport = name, code = code.reason(), "connection closed");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn principal(&self) -> Option<Arc<Principal>> {
        self.state().caller.as_ref().map(|caller| Arc::clone(&caller.principal))
    }

    fn refuse(&self, re: Option<RequestId>, refusal: &Refusal) -> Outcome {
        Outcome::Answers(answers::once(self.0.gate.error(re, refusal, true)))
    }

    fn close(&self, re: Option<RequestId>, refusal: &Refusal, code: CloseCode) -> Outcome {
        Outcome::Close(Some(self.0.gate.error(re, refusal, false)), code)
    }

    async fn dispatch(&self, request: Result<Request, Rejection>) -> Outcome {
        let metrics = &self.0.gate.metrics;
        let Request { id, frame } = match request {
            Ok(request) => request,
            Err(Rejection { re, code, message }) => {
                metrics.frames_received_total.with_label_values(&["invalid"]).inc();
                let refusal = Refusal { message: message.into(), ..Refusal::new(code) };
                return match self.principal() {
                    Some(_) => self.refuse(re, &refusal),
                    None => self.close(re, &refusal, CloseCode::ProtocolError),
                };
            }
        };
        metrics.frames_received_total.with_label_values(&[frame.name()]).inc();
        let Some(principal) = self.principal() else {
            return match frame {
                ClientFrame::Attach(attach) => Box::pin(self.authenticate(id, *attach)).await,
                _ => self.close(id, &Refusal::new(ErrorCode::Unauthorized), CloseCode::Unauthorized),
            };
        };
        let small = !matches!(frame, ClientFrame::Ping | ClientFrame::UserMessage(_) | ClientFrame::Regenerate { .. });
        if small && let Err(wait) = self.0.gate.limiter.request(&principal.user_id) {
            return self.refuse(
                id,
                &Refusal {
                    retry_after: Some(Duration::from_millis(wait.ms)),
                    ..Refusal::new(ErrorCode::TooManyRequests)
                },
            );
        }
        // Boxed, all but the least: a future is moved several times as it is built, with room for the largest of these.
        let outcome = match frame {
            ClientFrame::Attach(attach) => Box::pin(self.attach(&principal, id, *attach)).await,
            ClientFrame::UserMessage(message) if self.0.old => {
                Box::pin(self.old_message(&principal, id, *message)).await
            }
            ClientFrame::UserMessage(message) => Box::pin(self.user_message(&principal, id, *message)).await,
            ClientFrame::Regenerate { turn_id } => Box::pin(self.regenerate(&principal, id, turn_id)).await,
            ClientFrame::Auth { token } => return self.renew(&principal, id, &token),
            ClientFrame::Stop { turn_id } => Box::pin(self.stop(&principal, id, turn_id)).await,
            ClientFrame::ModelSelect { session_id, model_id } => {
                Box::pin(self.model_select(&principal, id, session_id.as_ref(), model_id)).await
            }
            ClientFrame::Help { session_id, wanted } => {
                Box::pin(self.help(&principal, id, session_id.as_ref(), wanted)).await
            }
            ClientFrame::Feedback(feedback) => Box::pin(self.feedback(&principal, id, *feedback)).await,
            ClientFrame::Typing { session_id, active } => self.typing(session_id.as_ref(), active).await,
            ClientFrame::Detach { session_id, scope } => self.detach(id, session_id.as_ref(), scope),
            ClientFrame::Ping => Ok(self.answer(&ServerFrame::Pong { re: id })),
            ClientFrame::Unsupported { name } => Err(Refusal {
                message: format!("type `{name}` is not served by this version").into(),
                ..Refusal::new(ErrorCode::InvalidFormat)
            }),
        };
        outcome.unwrap_or_else(|refusal| self.refuse(id, &refusal))
    }

    /// Encodes what may be told once more, if the client takes that.
    fn encode(&self, frame: ServerFrame) -> Encoded {
        match self.takes_copies() {
            true => Encoded::repeatable(frame),
            false => Encoded::new(&frame),
        }
    }

    /// The same for what others see as well: the first of them encodes it.
    fn encode_once(&self, kept: &OnceLock<Bytes>, frame: impl Fn() -> ServerFrame) -> Encoded {
        let made = || self.0.gate.metrics.frames_encoded_total.inc();
        Encoded::once(kept, self.takes_copies(), frame, made)
    }

    /// Asks what is shared only where it matters: on a WebSocket, many deliveries touch nothing of it.
    fn takes_copies(&self) -> bool {
        self.1 == Transport::WebTransport && self.0.copies.load(Ordering::Relaxed)
    }

    fn answer(&self, frame: &ServerFrame) -> Outcome {
        Outcome::Answers(answers::once(Encoded::new(frame)))
    }

    async fn authenticate(&self, id: Option<RequestId>, mut attach: Attach) -> Outcome {
        let gate = &self.0.gate;
        let token = attach.token.take();
        let Some(token) = token.as_deref().or(self.0.presented.as_deref()) else {
            let message = "field `token` is missing".into();
            let refusal = Refusal { message, ..Refusal::new(ErrorCode::MissingField) };
            return self.close(id, &refusal, CloseCode::Unauthorized);
        };
        let principal = match gate.verifier.verify(token) {
            Ok(principal) => Arc::new(principal),
            Err(Denied::Expired) => {
                return self.close(id, &Refusal::new(ErrorCode::ExpiredToken), CloseCode::TokenExpired);
            }
            Err(Denied::Invalid) => {
                return self.close(id, &Refusal::new(ErrorCode::InvalidToken), CloseCode::Unauthorized);
            }
        };
        let Ok(permit) = gate.limiter.user_connection(&principal.user_id) else {
            let refusal = Refusal::new(ErrorCode::ConnectionLimitExceeded);
            return self.close(id, &refusal, CloseCode::TooManyConnections);
        };
        self.state().caller = Some(Caller { principal: Arc::clone(&principal), _permit: permit });
        self.0.renewed.notify_one();
        match self.attach(&principal, id, attach).await {
            Ok(outcome) => outcome,
            Err(refusal) => self.close(id, &refusal, close_code(refusal.code)),
        }
    }
}

fn remaining(principal: &Principal) -> Duration {
    let left = principal.expires_at.0 - now().0;
    Duration::from_millis(u64::try_from(left).unwrap_or_default())
}

const fn close_code(code: ErrorCode) -> CloseCode {
    match code {
        ErrorCode::DatabaseError | ErrorCode::ServiceError => CloseCode::InternalError,
        ErrorCode::GoingAway => CloseCode::GoingAway,
        _ => CloseCode::ProtocolError,
    }
}
