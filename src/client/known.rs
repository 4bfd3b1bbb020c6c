//! Where the server was found last. The connection and the calls over HTTP share it, so that what one of them learns
//! the other knows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Dialer, Error, Options, Site, Transport};

/// A dialer, once the server was found. Cheap to clone.
#[derive(Clone, Default, Debug)]
pub(super) struct Known(Arc<Mutex<Option<Dialer>>>);

impl Known {
    fn held(&self) -> MutexGuard<'_, Option<Dialer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dialer, if the server was found.
    pub(super) fn dialer(&self) -> Option<Dialer> {
        self.held().clone()
    }

    /// The server may be elsewhere by now, or have another certificate.
    pub(super) fn forget(&self) {
        *self.held() = None;
    }

    /// The dialer; finds the server first where that is to be done.
    pub(super) async fn find(&self, options: &Options) -> Result<Dialer, Error> {
        if let Some(dialer) = self.dialer() {
            return Ok(dialer);
        }
        let dialer = Dialer::new(Site::discover_pinned(&options.base, options.certificate_sha256).await?);
        if options.transport == Some(Transport::WebSocket) {
            dialer.avoid_quic();
        }
        Ok(self.held().insert(dialer).clone())
    }
}
