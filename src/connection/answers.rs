//! What a connection yields: the answers of an exchange, the events of a watch, as encoded frames.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_stream::stream;
use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio_util::sync::CancellationToken;

use super::Connection;
use crate::{
    auth::Principal,
    chat::{Entry, ErrorCode, RequestId, Sender, SessionId, TurnState, UserId},
    markdown,
    protocol::{AiResponse, Encoded, ErrorBody, Presented, ServerFrame},
    router::{Follow, ListWatch, Refusal, Shown, Watch},
    woken::Woken,
};

/// The answers of one exchange, or the events of one watch. Pulled: nothing is produced that is not asked for.
/// Dropping it only stops watching. A panic in it is contained and counted, and ends it with an `error` frame.
pub type Answers = BoxStream<'static, Encoded>;

/// One answer and no more.
pub(super) fn once(frame: Encoded) -> Answers {
    futures_util::stream::iter([frame]).boxed()
}

/// A frame behind the first one of a watch.
pub(super) fn after_first(answers: Answers, second: Encoded) -> Answers {
    let mut second = Some(second);
    answers.flat_map(move |frame| futures_util::stream::iter(std::iter::once(frame).chain(second.take()))).boxed()
}

/// `accepted`, then the turn from its queue to its end.
pub(super) fn exchange(
    connection: Connection,
    principal: Arc<Principal>,
    re: Option<RequestId>,
    accepted: Encoded,
    follow: Option<Follow>,
) -> Answers {
    contained(
        connection.clone(),
        re,
        stream! {
            yield accepted;
            if let Some(mut follow) = follow {
                let session_id = follow.session_id();
                while let Some(shown) = follow.next().await {
                    for frame in connection.frames(&shown, session_id, re, &principal) {
                        yield frame;
                    }
                }
            }
        },
    )
}

/// The status, what the client misses, then what happens, until the watch ends.
pub(super) fn watch(
    connection: Connection,
    principal: Arc<Principal>,
    status: Encoded,
    watch: Watch,
    ended: CancellationToken,
) -> Answers {
    // The first frame between the events is the status.
    let interruption = Woken::new(std::future::ready(Some(status)).boxed());
    let ends = EndsWatch(ended);
    contained(connection.clone(), None, Watched { watch, connection, principal, interruption, ends })
}

/// The frames of a watch. Written by hand: each delivery to each of many watchers comes through here. The fields lie as
/// they are written: what a delivery touches of the watch is its end.
#[repr(C)]
struct Watched {
    watch: Watch,
    connection: Connection,
    principal: Arc<Principal>,
    interruption: Woken<BoxFuture<'static, Option<Encoded>>>,
    ends: EndsWatch,
}

impl Stream for Watched {
    type Item = Encoded;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Encoded>> {
        let Self { watch, connection, principal, interruption, ends } = &mut *self;
        if let Poll::Ready(frame) = interruption.poll_unpin(cx) {
            *interruption = Woken::new(connection.clone().interruption(ends.0.clone()).boxed());
            return Poll::Ready(frame);
        }
        let shown = ready!(watch.poll_next(cx));
        Poll::Ready(shown.map(|shown| connection.told(&shown, watch.session_id(), &principal.user_id)))
    }
}

/// The status, then what changes in a list of sessions, until the watch ends.
pub(super) fn list(connection: Connection, status: Encoded, mut watch: ListWatch, ended: CancellationToken) -> Answers {
    contained(
        connection.clone(),
        None,
        stream! {
            let ends = EndsWatch(ended.clone());
            yield status;
            let mut interruption = Woken::new(connection.clone().interruption(ended.clone()).boxed());
            loop {
                tokio::select! {
                    biased;
                    frame = &mut interruption => {
                        let Some(frame) = frame else { break };
                        yield frame;
                        interruption = Woken::new(connection.clone().interruption(ended.clone()).boxed());
                    }
                    update = watch.next() => yield Encoded::new(&ServerFrame::SessionUpdate(update)),
                }
            }
            drop(ends);
        },
    )
}

/// A watch whose stream is dropped counts as ended, so that it makes room for another.
struct EndsWatch(CancellationToken);

impl Drop for EndsWatch {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn contained(
    connection: Connection,
    re: Option<RequestId>,
    frames: impl Stream<Item = Encoded> + Send + 'static,
) -> Answers {
    AssertUnwindSafe(frames)
        .catch_unwind()
        .map(move |frame| {
            frame.unwrap_or_else(|_panic| {
                connection.0.gate.metrics.panics_total.inc();
                connection.0.gate.error(re, &Refusal::new(ErrorCode::ServiceError), true)
            })
        })
        .boxed()
}

impl Connection {
    /// What comes between the events of a watch: the announcement of a drain, the first time; `None` at its end.
    async fn interruption(self, ended: CancellationToken) -> Option<Encoded> {
        tokio::select! {
            biased;
            () = ended.cancelled() => None,
            frame = self.drain_announced() => Some(frame),
        }
    }

    /// Resolves when the server begins to drain and nobody on this connection has said so: `going_away` with a delay
    /// of this connection's own.
    async fn drain_announced(&self) -> Encoded {
        self.0.gate.lifecycle.draining().await;
        if std::mem::replace(&mut self.state().announced, true) {
            std::future::pending().await
        }
        self.0.renewed.notify_one();
        // The id is random in its last bits.
        let after = self.0.gate.lifecycle.returns_after(self.0.id.0.as_u64_pair().1);
        let retry_after = u64::try_from(after.as_millis()).unwrap_or_default();
        Encoded::new(&ServerFrame::GoingAway { retry_after })
    }

    /// The frame that shows it to whoever has not asked for it.
    fn told(&self, shown: &Shown, session_id: SessionId, reader: &UserId) -> Encoded {
        let frame = || self.frame(shown, session_id, None, reader).1;
        if let Shown::Published(event) = shown {
            return self.encode_once(event.frame(reader), frame);
        }
        self.0.gate.metrics.frames_encoded_total.inc();
        self.encode(frame())
    }

    fn frames(
        &self,
        shown: &Shown,
        session_id: SessionId,
        re: Option<RequestId>,
        principal: &Principal,
    ) -> impl Iterator<Item = Encoded> + use<> {
        let reader = &principal.user_id;
        if re.is_none() {
            return None.into_iter().chain([self.told(shown, session_id, reader)]);
        }
        let (before, frame) = self.frame(shown, session_id, re, reader);
        self.0.gate.metrics.frames_encoded_total.inc_by(1 + u64::from(before.is_some()));
        before.map(|frame| Encoded::new(&frame)).into_iter().chain([self.encode(frame)])
    }

    /// The frame that shows it, and the one before it, if there is one.
    fn frame(
        &self,
        shown: &Shown,
        session_id: SessionId,
        re: Option<RequestId>,
        reader: &UserId,
    ) -> (Option<ServerFrame>, ServerFrame) {
        let mut before = None;
        let frame = match shown {
            Shown::Published(event) => return self.frame(&Shown::of(event), session_id, re, reader),
            Shown::Update(update) => ServerFrame::SessionUpdate(Arc::clone(update)),
            Shown::Typing { sender, active } => ServerFrame::typing(session_id, *sender, *active),
            Shown::Loading { turn_id, seq } => ServerFrame::Loading { re, session_id, turn_id: *turn_id, seq: *seq },
            Shown::Piece { turn_id, model_id, offset, content } => {
                let mut piece = AiResponse::piece(session_id, *turn_id, *offset, content.to_string());
                (piece.re, piece.model_id) = (re, model_id.as_deref().map(str::to_owned));
                ServerFrame::AiResponse(Box::new(piece))
            }
            Shown::Entry(entry) => {
                let html = html(entry);
                Presented { entry, re, reader, html }.whole()
            }
            Shown::End { entry, failure } => {
                let failed = entry.state == Some(TurnState::Failed);
                let code = failure.or(failed.then_some(ErrorCode::ServiceError));
                if let (Some(re), Some(code)) = (re, code) {
                    self.0.gate.metrics.errors_total.with_label_values(&[code.name()]).inc();
                    let message = code.sentence().to_owned();
                    let error = ErrorBody { code, message, recoverable: true, retry_after: None };
                    before = Some(ServerFrame::Error { re: Some(re), turn_id: entry.turn_id, error });
                }
                Presented { entry, re, reader, html: html(entry) }.end()
            }
        };
        (before, frame)
    }
}

/// Longest reply that is rendered, in bytes: its HTML must fit a frame beside it.
const HTML_SOURCE_BYTES_MAX: usize = 128 * 1024;

/// The text of a reply as safe HTML; `None` for what is no reply, empty or too long.
#[must_use]
pub fn html(entry: &Entry) -> Option<String> {
    let rendered = entry.sender == Sender::Ai && (1..=HTML_SOURCE_BYTES_MAX).contains(&entry.content.len());
    rendered.then(|| markdown::render(&entry.content))
}
