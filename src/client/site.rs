//! Where a server is: what its discovery document says.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use serde::Deserialize;
use url::Url;

use super::{Error, trust};
use crate::protocol::Limits;

const DEADLINE: Duration = Duration::from_secs(10);

/// A discovery document is well below 1 KiB.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// Where a server is, and what it allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// where its routes begin, prefix included, without a slash at the end
    pub base: Url,
    /// where WebTransport is, if the server offers it
    pub webtransport: Option<Url>,
    /// where the WebSocket is
    pub websocket: Url,
    /// where its routes are for HTTP, with a slash at the end
    pub http: Url,
    /// SHA-256 of the certificate, when the server names it; trusted instead of authorities, on every TLS connection
    pub certificate_sha256: Option<[u8; 32]>,
    /// what a connection may do at a time
    pub limits: Limits,
}

#[derive(Deserialize)]
struct Document {
    webtransport: Option<Url>,
    websocket: Url,
    http: Url,
    certificate_sha256: Option<String>,
    limits: Limits,
}

impl Site {
    /// Reads `{base}/.well-known/chatbox`. `base` is where the server's routes begin, such as
    /// `https://chat.example/chatbox`.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Certificate`], [`Error::Refused`], [`Error::Document`], and
    /// [`Error::Timeout`] after 10 seconds.
    pub async fn discover(base: &Url) -> Result<Self, Error> {
        Self::discover_pinned(base, None).await
    }

    /// The same from a server whose certificate is named by its SHA-256 instead of being trusted by authorities.
    ///
    /// # Errors
    /// Those of [`Self::discover`].
    pub async fn discover_pinned(base: &Url, certificate_sha256: Option<[u8; 32]>) -> Result<Self, Error> {
        let read = read(base, certificate_sha256);
        let document = tokio::time::timeout(DEADLINE, read).await.map_err(|_elapsed| Error::Timeout("discovery"))??;
        let named = document.certificate_sha256.as_deref().map(|hex_digits| {
            let mut sha256 = [0; 32];
            hex::decode_to_slice(hex_digits, &mut sha256).map(|()| sha256)
        });
        let named =
            named.transpose().map_err(|err| Error::Document { what: base.to_string(), source: Arc::new(err) })?;
        Ok(Self {
            base: without_slash(base),
            webtransport: document.webtransport,
            websocket: document.websocket,
            http: document.http,
            certificate_sha256: certificate_sha256.or(named),
            limits: document.limits,
        })
    }
}

/// A client for HTTP over TCP that trusts what `pin` says and follows no redirect, which would carry a token to an
/// address that nobody named.
pub(super) fn http_client(url: &Url, pin: Option<[u8; 32]>) -> Result<reqwest::Client, Error> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("chatbox/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .timeout(DEADLINE);
    let tls = if url.scheme() == "https" {
        trust::config(pin, &[b"h2", b"http/1.1"])
    } else {
        // No certificate is looked at, so none need be there.
        trust::config(Some([0; 32]), &[])
    };
    let tls = tls.map_err(|err| Error::unreachable(url, err))?;
    builder.tls_backend_preconfigured(tls).build().map_err(|err| Error::unreachable(url, err))
}

async fn read(base: &Url, pin: Option<[u8; 32]>) -> Result<Document, Error> {
    let mut url = without_slash(base);
    url.set_path(&format!("{}/.well-known/chatbox", base.path().trim_end_matches('/')));
    let mut response = http_client(&url, pin)?.get(url.clone()).send().await.map_err(|err| sorted(&url, err))?;
    let what = url.to_string();
    if !response.status().is_success() {
        return Err(Error::Refused { what, status: response.status() });
    }
    let mut document = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|err| sorted(&url, err))? {
        if document.len() + bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(Error::Protocol("the discovery document has no end"));
        }
        document.extend_from_slice(&bytes);
    }
    serde_json::from_slice(&document).map_err(|err| Error::Document { what, source: Arc::new(err) })
}

/// Tells a certificate that is not trusted from a server that is not there.
pub(super) fn sorted(url: &Url, err: reqwest::Error) -> Error {
    match untrusted(&err) {
        Some(tls) => Error::untrusted(url, &tls.to_string()),
        None => Error::unreachable(url, err.without_url()),
    }
}

/// The certificate that was not trusted among the causes. An I/O error hides what it was made of from `source`.
fn untrusted<'a>(err: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = err.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_)).then_some(tls);
    }
    match err.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => untrusted(inner),
        None => err.source().and_then(untrusted),
    }
}

fn without_slash(base: &Url) -> Url {
    let mut base = base.clone();
    let path = base.path().trim_end_matches('/').to_owned();
    base.set_path(&path);
    base.set_query(None);
    base.set_fragment(None);
    base
}
