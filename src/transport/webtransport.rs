//! WebTransport sessions over HTTP/3 (draft-ietf-webtrans-http3-02 as browsers speak it): who may open one, its
//! streams, and how it ends on either side.
//!
//! It knows nothing of frames or chats: a [`Host`] says whether a session is welcome and serves it.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use h3::{error::Code, ext::Protocol, server::RequestStream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tokio::time::timeout;

use super::{
    datagrams::Datagrams,
    demux::{Peeled, Receive, Send, varint},
    http3::{Connect, Event, Http3},
    wire::{self, Capsules, Close},
};
use crate::woken::Bell;

/// How long the answer to a CONNECT, or a CLOSE capsule, may take to leave.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// How long the client may take to close its side after the CLOSE capsule.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Browsers look for the draft that the server speaks.
const DRAFT: (HeaderName, HeaderValue) =
    (HeaderName::from_static("sec-webtransport-http3-draft"), HeaderValue::from_static("draft02"));

/// Where sessions are served and who may open one.
#[derive(Clone)]
pub struct Rules {
    /// the path of the CONNECT request
    pub path: String,
    /// whether pages of this origin may connect; not asked when there is no `Origin`, as native clients send none
    pub origin_allowed: Arc<dyn Fn(&str) -> bool + std::marker::Send + Sync>,
}

/// Takes the sessions of a listener.
pub trait Host: std::marker::Send + Sync + 'static {
    /// What [`Self::open`] made for a session.
    type Connection: std::marker::Send;

    /// Decides, before the CONNECT is accepted, whether there is room; `token` is what `Authorization: Bearer`
    /// carried.
    ///
    /// # Errors
    /// The status of the refusal.
    fn open(&self, address: IpAddr, token: Option<String>) -> Result<Self::Connection, StatusCode>;

    /// Serves a session until it ends. The QUIC connection is closed afterwards.
    fn serve(&self, session: Session, connection: Self::Connection) -> impl Future<Output = ()> + std::marker::Send;
}

impl Rules {
    /// Checks a CONNECT and finds the token that it carries.
    ///
    /// # Errors
    /// The status of the refusal: 501 for another protocol, 404 for another path, 403 for a foreign origin.
    pub(crate) fn check(&self, request: &Request<()>) -> Result<Option<String>, StatusCode> {
        if request.extensions().get::<Protocol>() != Some(&Protocol::WEB_TRANSPORT) {
            return Err(StatusCode::NOT_IMPLEMENTED);
        }
        if request.uri().path() != self.path {
            return Err(StatusCode::NOT_FOUND);
        }
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        if !origins.all(|origin| origin.to_str().is_ok_and(|origin| (self.origin_allowed)(origin))) {
            return Err(StatusCode::FORBIDDEN);
        }
        Ok(request.headers().get(header::AUTHORIZATION).and_then(bearer))
    }
}

fn bearer(value: &HeaderValue) -> Option<String> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// One WebTransport session, and the connection that it has for itself. A pointer to its state: futures that hold
/// a session are copied as they are built, and stay as large as their largest stage.
pub struct Session(Box<State>);

struct State {
    http3: Box<Http3>,
    id: u64,
    send: RequestStream<Send, Bytes>,
    receive: RequestStream<Receive, Bytes>,
    capsules: Capsules,
    credit: Credit,
    /// rings for everything but streams
    rest: Bell,
}

/// What happens on a session.
pub enum Incoming {
    /// The client opened a stream.
    Stream(SendStream, RecvStream),
    /// The session is over; nothing else comes.
    Ended(End),
}

/// How a session ended without us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The client closed it: with this code and reason, or with 0 and none if it only finished its side.
    Closed(Close),
    /// The connection is lost, or the client broke the protocol.
    Lost,
}

impl Session {
    /// Accepts a CONNECT that was found welcome.
    pub(crate) async fn accept(mut http3: Box<Http3>, connect: Connect) -> Option<Self> {
        http3.chat();
        let mut stream = connect.stream;
        let mut response = Response::new(());
        response.headers_mut().insert(DRAFT.0, DRAFT.1);
        timeout(SEND_DEADLINE, stream.send_response(response)).await.ok()?.ok()?;
        let id = stream.send_id().into_inner();
        let credit = Credit(Arc::new((http3.quic_conn().clone(), Mutex::new(0))));
        let (send, receive) = stream.split();
        let (capsules, rest) = (Capsules::default(), Bell::new());
        Some(Self(Box::new(State { http3, id, send, receive, capsules, credit, rest })))
    }

    /// How many streams the client may have open; for the tasks that serve them.
    #[must_use]
    pub fn credit(&self) -> Credit {
        self.0.credit.clone()
    }

    /// Sends datagrams to the client; to be asked for once, before the first one.
    #[must_use]
    pub fn datagrams(&self) -> Datagrams {
        Datagrams::new(self.0.http3.quic_conn().clone(), self.0.id)
    }

    /// The next stream, or the end. Serves what else is asked on the connection meanwhile. Cancel safe. Must not
    /// be called again after the end.
    pub async fn next(&mut self) -> Incoming {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Streams come with each exchange, and everything else hardly ever: it is asked when it has rung.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        let State { http3, id, receive, capsules, rest, .. } = &mut *self.0;
        loop {
            let mut event = Poll::Pending;
            if rest.rung(cx) || http3.streams().holds_requests() {
                let cx = &mut Context::from_waker(rest.waker());
                if let Poll::Ready(end) = pin!(read_capsules(receive, capsules)).poll(cx) {
                    return Poll::Ready(Incoming::Ended(end));
                }
                event = pin!(http3.next()).poll(cx);
                if event.is_ready() {
                    rest.waker().wake_by_ref();
                }
            }
            if event.is_pending() {
                event = http3.streams().poll_peeled(cx).map(|stream| stream.map_or(Event::Over, Event::Stream));
            }
            match event {
                Poll::Ready(Event::Stream(Peeled { session, send, receive })) if session == *id => {
                    let send = SendStream { stream: send, ended: false };
                    return Poll::Ready(Incoming::Stream(send, RecvStream { stream: receive, ended: false }));
                }
                Poll::Ready(Event::Stream(stream)) => stream.reject(),
                // Http3 hands out no CONNECT on a chat connection.
                Poll::Ready(Event::Connect(_) | Event::Over) => return Poll::Ready(Incoming::Ended(End::Lost)),
                Poll::Pending => {
                    // h3 is asked for it in the task's next turn: in this one its budget may be used up.
                    if http3.streams().holds_requests() {
                        rest.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Ends the session: sends the CLOSE capsule, gives the client two seconds to take note, and closes the
    /// connection. What is still open on it ends then.
    pub async fn close(self, code: u32, reason: &str) {
        let State { http3, mut send, mut receive, .. } = *self.0;
        let capsule = Close { code, reason: reason.to_owned() }.encode();
        let sent = async {
            send.send_data(capsule).await?;
            send.finish().await
        };
        if let Ok(Ok(())) = timeout(SEND_DEADLINE, sent).await {
            let ended = async { while matches!(receive.recv_data().await, Ok(Some(_))) {} };
            drop(timeout(CLOSE_DEADLINE, ended).await);
        }
        http3.close(reason);
    }

    /// Follows the client out: finishes our side and closes the connection.
    pub async fn leave(self) {
        let State { http3, mut send, .. } = *self.0;
        drop(timeout(SEND_DEADLINE, send.finish()).await);
        http3.close("session over");
    }
}

/// Reads the CONNECT stream to its end. Cancel safe.
async fn read_capsules(receive: &mut RequestStream<Receive, Bytes>, capsules: &mut Capsules) -> End {
    loop {
        let mut data = match receive.recv_data().await {
            Ok(Some(data)) => data,
            Ok(None) => return End::Closed(Close { code: 0, reason: String::new() }),
            Err(_) => return End::Lost,
        };
        match capsules.push(&data.copy_to_bytes(data.remaining())) {
            Ok(None) => {}
            Ok(Some(close)) => return End::Closed(close),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "WebTransport session broken");
                receive.stop_sending(Code::H3_MESSAGE_ERROR);
                return End::Lost;
            }
        }
    }
}

/// From so many streams on, CONNECT included, quinn tells of several at once what is free again.
const TOLD_TOGETHER: u32 = 8;

/// The stream credit of a session's connection. Cheap to clone.
#[derive(Clone)]
pub struct Credit(Arc<(quinn::Connection, Mutex<u32>)>);

impl Credit {
    /// Lets the client have `streams` bidirectional streams at a time beside the CONNECT. Only ever raises: what
    /// has been granted cannot be taken back.
    pub fn raise(&self, streams: u32) {
        let mut granted = self.granted();
        if *granted < streams {
            *granted = streams;
            self.set(streams.saturating_add(1));
        }
    }

    /// Whether it was ever raised.
    #[must_use]
    pub fn raised(&self) -> bool {
        *self.granted() > 0
    }

    /// Finishes a stream, and gives its credit back at once where there is little. Otherwise that would follow when the
    /// client has acknowledged the end, in a packet of its own, with an acknowledgement of its own. Only one stream is
    /// ahead at a time, so a client that acknowledges nothing gains one.
    pub fn finish(&self, stream: &mut SendStream) {
        stream.finish();
        let granted = self.granted();
        let streams = granted.saturating_add(1);
        if (2..TOLD_TOGETHER).contains(&streams) {
            // The second takes nothing back: the next stream that is free then is not granted again.
            self.set(streams + 1);
            self.set(streams);
        }
    }

    fn set(&self, streams: u32) {
        self.0.0.set_max_concurrent_bi_streams(streams.into());
    }

    fn granted(&self) -> MutexGuard<'_, u32> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a stream cannot be used further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// The client reset it, or asked us to stop, with this code, if it is one of an application.
    #[error("stream was ended by the client")]
    Ended(Option<u32>),
    /// The connection is lost, or we ended the stream ourselves.
    #[error("stream is gone")]
    Gone,
}

/// The sending half of a WebTransport stream. Dropped before it is finished, it is reset with code 0.
pub struct SendStream {
    stream: quinn::SendStream,
    ended: bool,
}

impl SendStream {
    /// Writes some of the chunks, at least one byte, and takes what was written out of them. Cancel safe. Returns
    /// how many chunks are written whole.
    ///
    /// # Errors
    /// When the client does not want more, or is gone.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<usize, StreamError> {
        let written = self.stream.write_chunks(chunks).await.map_err(|error| match error {
            quinn::WriteError::Stopped(code) => StreamError::Ended(wire::from_http3(code.into_inner())),
            _ => StreamError::Gone,
        })?;
        Ok(written.chunks)
    }

    /// Says that nothing more comes. The client still gets what was written.
    pub fn finish(&mut self) {
        self.ended = true;
        // Fails only when the client has stopped the stream.
        drop(self.stream.finish());
    }

    /// Drops what the client has not got yet.
    pub fn reset(&mut self, code: u32) {
        self.ended = true;
        drop(self.stream.reset(varint(wire::to_http3(code))));
    }

    /// Resolves when the client wants nothing more, with its code; or, with none, when it has everything and the
    /// stream is finished, or is gone.
    pub fn stopped(&self) -> impl Future<Output = Option<StreamError>> + std::marker::Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) => Some(StreamError::Ended(wire::from_http3(code.into_inner()))),
                Ok(None) => None,
                Err(_) => Some(StreamError::Gone),
            }
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(0);
        }
    }
}

/// The receiving half of a WebTransport stream. Dropped before its end, it is stopped with code 0.
pub struct RecvStream {
    stream: quinn::RecvStream,
    ended: bool,
}

impl RecvStream {
    /// The next bytes, at most `bytes_max`; none at the end. Cancel safe.
    ///
    /// # Errors
    /// When the client reset the stream or is gone.
    pub async fn read(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StreamError> {
        let chunk = self.stream.read_chunk(bytes_max, true).await;
        self.ended = !matches!(chunk, Ok(Some(_)));
        match chunk {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(quinn::ReadError::Reset(code)) => Err(StreamError::Ended(wire::from_http3(code.into_inner()))),
            Err(_) => Err(StreamError::Gone),
        }
    }

    /// Asks the client to send no more.
    pub fn stop(&mut self, code: u32) {
        self.ended = true;
        drop(self.stream.stop(varint(wire::to_http3(code))));
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.ended {
            self.stop(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { path: "/chatbox/wt".to_owned(), origin_allowed: Arc::new(|origin| origin == "https://a.example") }
    }

    fn connect(path: &str) -> Request<()> {
        let mut request = Request::connect(format!("https://a.example{path}")).body(()).unwrap();
        request.extensions_mut().insert(Protocol::WEB_TRANSPORT);
        request
    }

    #[test]
    fn connect_is_checked_for_protocol_path_and_origin() {
        assert_eq!(rules().check(&connect("/chatbox/wt")), Ok(None));
        assert_eq!(rules().check(&connect("/chatbox/ws")), Err(StatusCode::NOT_FOUND));

        let mut other = connect("/chatbox/wt");
        other.extensions_mut().insert(Protocol::CONNECT_UDP);
        assert_eq!(rules().check(&other), Err(StatusCode::NOT_IMPLEMENTED));

        let mut page = connect("/chatbox/wt");
        page.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("https://a.example"));
        assert_eq!(rules().check(&page), Ok(None));
        page.headers_mut().append(header::ORIGIN, HeaderValue::from_static("https://b.example"));
        assert_eq!(rules().check(&page), Err(StatusCode::FORBIDDEN));
    }

    #[test]
    fn token_of_a_native_client_is_found() {
        for (value, token) in [("Bearer a.b.c", Some("a.b.c")), ("bearer x", Some("x")), ("Basic x", None)] {
            let mut request = connect("/chatbox/wt");
            request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            assert_eq!(rules().check(&request), Ok(token.map(str::to_owned)));
        }
    }
}
