//! What every connection shares, and the decision whether there is room for one more.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use tokio::sync::Notify;

use super::{Connection, Shared, Transport};
use crate::{
    auth::Verifier,
    chat::{ConnectionId, RequestId},
    lifecycle::Lifecycle,
    limit::{self, Limiter},
    metrics::Metrics,
    protocol::{CloseCode, Encoded, ErrorBody, ServerFrame},
    router::{Refusal, Router},
};

/// Makes connections; shared by all listeners.
#[derive(Debug)]
pub struct Gate {
    /// the use cases
    pub router: Router,
    /// who is calling
    pub verifier: Arc<Verifier>,
    /// how much anyone may use
    pub limiter: Arc<Limiter>,
    /// when it ends
    pub lifecycle: Lifecycle,
    /// what is counted
    pub metrics: Arc<Metrics>,
    /// the numbers that clients are told
    pub limits: limit::Config,
}

/// What a transport knows of a client before its first frame.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// the token that the transport carried, if it did
    pub token: Option<String>,
    /// speaks the protocol of the predecessor
    pub old: bool,
}

impl Gate {
    /// Opens a connection, not yet authenticated.
    ///
    /// # Errors
    /// The close code when the server drains or has too many connections, in total or from this address.
    pub fn open(
        self: &Arc<Self>,
        transport: Transport,
        address: IpAddr,
        hello: Hello,
    ) -> Result<Connection, CloseCode> {
        if self.lifecycle.drains() {
            self.metrics.refusals_total.with_label_values(&["drain"]).inc();
            return Err(CloseCode::GoingAway);
        }
        // The limiter has counted the refusal.
        let permit = self.limiter.connection(address).map_err(|_too_many| CloseCode::TooManyConnections)?;
        self.metrics.connections_open.with_label_values(&[transport.name()]).inc();
        let shared = Shared {
            gate: Arc::clone(self),
            id: ConnectionId::new(),
            transport,
            presented: hello.token,
            old: hello.old,
            copies: AtomicBool::new(false),
            asked: Arc::default(),
            state: Mutex::default(),
            renewed: Notify::new(),
            _permit: permit,
        };
        Ok(Connection(Arc::new(shared), transport))
    }

    /// Largest frame that a transport reads, in bytes.
    #[must_use]
    pub const fn frame_bytes_max(&self) -> usize {
        self.limits.frame_bytes
    }

    /// How long a client may leave what waits for it unread.
    #[must_use]
    pub const fn write_timeout(&self) -> Duration {
        self.limits.write_timeout
    }

    pub(super) fn error(&self, re: Option<RequestId>, refusal: &Refusal, recoverable: bool) -> Encoded {
        self.metrics.errors_total.with_label_values(&[refusal.code.name()]).inc();
        let retry_after = refusal.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let error = ErrorBody { code: refusal.code, message: refusal.message.to_string(), recoverable, retry_after };
        Encoded::new(&ServerFrame::Error { re, turn_id: None, error })
    }
}
