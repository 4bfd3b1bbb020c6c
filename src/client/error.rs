//! What goes wrong between a client and a server, by what the caller does about it.

use std::{error::Error as StdError, fmt, sync::Arc};

use http::StatusCode;
use rustls::Error as TlsError;

use super::Transport;
use crate::protocol::{CloseCode, ErrorBody};

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closed {
    /// what the server or this side said; `None`: it broke without a word
    pub code: Option<CloseCode>,
    /// for people who read logs
    pub reason: String,
}

impl Closed {
    /// A connection that broke.
    pub(super) fn lost(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }

    /// One that an endpoint ended.
    pub(super) fn by(code: CloseCode) -> Self {
        Self { code: Some(code), reason: code.reason().to_owned() }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) if self.reason.is_empty() => f.write_str(code.reason()),
            _ => f.write_str(&self.reason),
        }
    }
}

/// What keeps a cause; cheap to clone, because one failure is told to every exchange.
type Source = Arc<dyn StdError + Send + Sync>;

/// Why something of a link failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// no connection came about: nobody listens, the network is down, or something in between refuses
    #[error("{what} cannot be reached")]
    Unreachable {
        /// which address
        what: String,
        /// why
        #[source]
        source: Source,
    },
    /// the server's certificate is not the one that was named, or not one of a known authority
    #[error("{what} has a certificate that is not trusted")]
    Certificate {
        /// which address
        what: String,
        /// why
        #[source]
        source: Source,
    },
    /// the server answered the request for a connection, or discovery, with another status than success
    #[error("{what} answered {status}")]
    Refused {
        /// which address
        what: String,
        /// 403, 404, 421, 429 and 503 are usual
        status: StatusCode,
    },
    /// the discovery document is not one
    #[error("{what} is no address of a chatbox server")]
    Document {
        /// which address
        what: String,
        /// why
        #[source]
        source: Source,
    },
    /// the server does not offer this transport
    #[error("the server offers no {}", .0.name())]
    Lacking(Transport),
    /// no answer came in time
    #[error("{0} took too long")]
    Timeout(&'static str),
    /// the connection is over
    #[error("the connection is closed: {0}")]
    Closed(Closed),
    /// the server refused a request
    #[error("{}", .0.message)]
    Answered(ErrorBody),
    /// the outbox holds as many messages as it takes
    #[error("{0} messages wait to be sent already")]
    Full(usize),
    /// nobody is signed in
    #[error("there is no token")]
    NoToken,
    /// what the server sent is no sequence of frames
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

impl Error {
    pub(super) fn unreachable(what: impl fmt::Display, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Unreachable { what: what.to_string(), source: Arc::new(source) }
    }

    /// Sorts what came of a TLS handshake over TCP.
    pub(super) fn tls(what: impl fmt::Display, source: std::io::Error) -> Self {
        let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        if matches!(inner, Some(TlsError::InvalidCertificate(_))) {
            Self::untrusted(what, &source.to_string())
        } else {
            Self::unreachable(what, source)
        }
    }

    /// A certificate that is not trusted, and what TLS says of it. What our own check says is shown there within the
    /// names of the library's types, and people are to read it without them.
    pub(super) fn untrusted(what: impl fmt::Display, tls: &str) -> Self {
        let own = tls.split_once("Other(OtherError(").and_then(|(_, own)| own.strip_suffix("))"));
        let source = std::io::Error::other(own.unwrap_or(tls).to_owned());
        Self::Certificate { what: what.to_string(), source: Arc::new(source) }
    }

    /// Sorts what came of a QUIC handshake.
    pub(super) fn quic(what: impl fmt::Display, source: quinn::ConnectionError) -> Self {
        match &source {
            quinn::ConnectionError::TransportError(error) if is_certificate_alert(error.code.into()) => {
                Self::untrusted(what, &error.reason)
            }
            _ => Self::unreachable(what, source),
        }
    }
}

/// An error with its causes, in one line for people.
pub(super) fn chain(err: &Error) -> String {
    let (mut told, mut next) = (err.to_string(), StdError::source(err));
    while let Some(cause) = next {
        told = format!("{told}: {cause}");
        next = cause.source();
    }
    told
}

/// Whether a QUIC transport error is a TLS alert about a certificate: `bad_certificate` to `access_denied`, 42 to 49
/// (RFC 8446, section 6.2), with 0x100 on top (RFC 9001, section 4.8).
const fn is_certificate_alert(code: u64) -> bool {
    matches!(code, 0x12A..=0x131)
}
