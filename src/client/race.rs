//! Finds a transport that works: the likelier one first, the other beside it when that takes long. The first that
//! attaches wins.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};

use super::{Dialer, Error, Exchange, Link, Transport};
use crate::protocol::{ConnectionStatus, ServerFrame};

/// The second transport starts this long after the first.
const HEAD_START: Duration = Duration::from_millis(1500);

/// From the first packet to the answer of `attach`.
const ATTEMPT: Duration = Duration::from_secs(10);

/// For so long a WebSocket that won goes first.
const REMEMBER: Duration = Duration::from_secs(600);

/// How WebTransport fared on this network.
#[derive(Debug, Default)]
pub(super) struct Memory {
    avoid_until: Option<Instant>,
}

impl Memory {
    /// In which order transports are tried. `silent` is one that just went dead.
    pub(super) fn order(&self, forced: Option<Transport>, silent: Option<Transport>) -> Vec<Transport> {
        if let Some(forced) = forced {
            return vec![forced];
        }
        let avoided = self.avoid_until.is_some_and(|until| Instant::now() < until);
        let socket_first = match silent {
            Some(silent) => silent == Transport::WebTransport,
            None => avoided,
        };
        if socket_first {
            vec![Transport::WebSocket, Transport::WebTransport]
        } else {
            vec![Transport::WebTransport, Transport::WebSocket]
        }
    }

    /// A transport has attached.
    pub(super) fn won(&mut self, transport: Transport) {
        self.avoid_until = (transport == Transport::WebSocket).then(|| Instant::now() + REMEMBER);
    }
}

/// A link that is attached.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) link: Link,
    pub(super) watch: Exchange,
    pub(super) status: ConnectionStatus,
}

/// Tries the transports in their order.
pub(super) async fn race(
    dialer: &Dialer,
    order: &[Transport],
    attach: impl Fn(Transport) -> Bytes + Send + Sync,
) -> Result<Attached, Error> {
    let mut waiting = order.iter().copied();
    let mut attempts: FuturesUnordered<BoxFuture<'_, Result<Attached, Error>>> = FuturesUnordered::new();
    let mut begin = |attempts: &mut FuturesUnordered<_>| {
        if let Some(transport) = waiting.next() {
            attempts.push(Box::pin(attempt(dialer, transport, attach(transport))) as BoxFuture<'_, _>);
        }
    };
    begin(&mut attempts);
    let mut failure = Error::Lacking(Transport::WebTransport);
    let late = sleep(HEAD_START);
    tokio::pin!(late);
    let mut head_start = true;
    loop {
        tokio::select! {
            biased;
            attempted = attempts.next() => match attempted {
                Some(Ok(attached)) => return Ok(attached),
                // A server that answers with a refusal refuses the other transport too.
                Some(Err(err @ Error::Answered(_))) => return Err(err),
                Some(Err(err)) => {
                    // A certificate that is not trusted says more than the silence of the other transport.
                    if !matches!(failure, Error::Certificate { .. }) {
                        failure = err;
                    }
                    begin(&mut attempts);
                    if attempts.is_empty() {
                        return Err(failure);
                    }
                }
                None => return Err(failure),
            },
            () = &mut late, if head_start => {
                head_start = false;
                begin(&mut attempts);
            }
        }
    }
}

async fn attempt(dialer: &Dialer, transport: Transport, attach: Bytes) -> Result<Attached, Error> {
    let attached = async {
        let link = dialer.open(transport).await?;
        let mut watch = link.exchange(attach).await?;
        let Some(frame) = watch.next().await? else { return Err(Error::Protocol("`attach` has no answer")) };
        match serde_json::from_slice(&frame) {
            Ok(ServerFrame::ConnectionStatus(status)) => Ok(Attached { link, watch, status: *status }),
            Ok(ServerFrame::Error { error, .. }) => Err(Error::Answered(error)),
            _ => Err(Error::Protocol("`attach` has another answer")),
        }
    };
    timeout(ATTEMPT, attached).await.map_err(|_elapsed| Error::Timeout(transport.name()))?
}
