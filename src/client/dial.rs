//! Opens links: addresses, TLS, QUIC, and what is asked for on top.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use http::StatusCode;
use quinn::{Endpoint, TransportConfig, VarInt, congestion::BbrConfig, crypto::rustls::QuicClientConfig};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use url::{Host, Url};
use web_transport_quinn::{ClientError, ConnectError};

use super::{Error, Link, Site, Transport, trust, websocket, webtransport};

/// From the first packet to the open session or socket.
const ATTEMPT: Duration = Duration::from_secs(10);

/// The next address is tried beside the one before after so long (RFC 8305, section 8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// As long as the server's, whose keep-alives hold the connection.
const IDLE_TIMEOUT_MS: u32 = 60_000;

/// The server opens three streams: control, QPACK encoder and decoder. The rest is for those that it may reserve.
const UNIDIRECTIONAL_STREAMS: u32 = 6;

const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_WINDOW: u64 = 1024 * 1024;

/// Some hundred copies of small frames, in case the reader is busy.
const DATAGRAM_BYTES: usize = 128 * 1024;

/// Opens links to one site. Holds one QUIC endpoint for each address family and the session tickets of TLS, which its
/// clones share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    site: Site,
    quic: OnceLock<quinn::ClientConfig>,
    tls: OnceLock<Arc<rustls::ClientConfig>>,
    ipv4: OnceLock<Endpoint>,
    ipv6: OnceLock<Endpoint>,
    /// whether QUIC is left alone: it failed the last time, or is not wished for
    quic_avoided: AtomicBool,
    /// drive the sockets, each until its link is closed
    sockets: TaskTracker,
}

impl Dialer {
    /// Opens nothing yet; certificates and sockets are made when a link needs them.
    #[must_use]
    pub fn new(site: Site) -> Self {
        Self(Arc::new(Shared {
            site,
            quic: OnceLock::new(),
            tls: OnceLock::new(),
            ipv4: OnceLock::new(),
            ipv6: OnceLock::new(),
            quic_avoided: AtomicBool::new(false),
            sockets: TaskTracker::new(),
        }))
    }

    /// Where it dials.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.0.site
    }

    /// Whether QUIC has not failed the last time.
    pub(super) fn quic_works(&self) -> bool {
        !self.0.quic_avoided.load(Ordering::Relaxed)
    }

    /// Leaves QUIC alone, except for links that are asked for.
    pub(super) fn avoid_quic(&self) {
        self.0.quic_avoided.store(true, Ordering::Relaxed);
    }

    /// Opens a link, which is not attached. To be called in a tokio runtime; the link lives as long as that does.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Certificate`], [`Error::Refused`], [`Error::Lacking`], and
    /// [`Error::Timeout`] after 10 seconds.
    pub async fn open(&self, transport: Transport) -> Result<Link, Error> {
        let opened = async {
            match transport {
                Transport::WebTransport => self.webtransport().await,
                Transport::WebSocket => self.websocket().await,
            }
        };
        timeout(ATTEMPT, opened).await.map_err(|_elapsed| Error::Timeout(transport.name()))?
    }

    async fn webtransport(&self) -> Result<Link, Error> {
        let url = self.0.site.webtransport.as_ref().ok_or(Error::Lacking(Transport::WebTransport))?;
        let quic_conn = self.quic(url).await?;
        let session = web_transport_quinn::Session::connect(quic_conn, url.clone()).await;
        let session = session.map_err(|err| match err {
            ClientError::HttpError(ConnectError::ErrorStatus(status)) => {
                Error::Refused { what: url.to_string(), status }
            }
            err => Error::unreachable(url, err),
        })?;
        Ok(Link::over_streams(webtransport::Session::new(session)))
    }

    async fn websocket(&self) -> Result<Link, Error> {
        let url = &self.0.site.websocket;
        let addresses = resolve(url).await?;
        let stream = first(url, addresses, |address| async move {
            let stream = TcpStream::connect(address).await.map_err(|err| Error::unreachable(address, err))?;
            // A frame is not to wait for the one before it to be acknowledged.
            stream.set_nodelay(true).map_err(|err| Error::unreachable(address, err))?;
            Ok(stream)
        });
        let stream = stream.await?;
        let socket = if url.scheme() == "wss" {
            let connector = TlsConnector::from(self.tls(url)?);
            let name =
                rustls::pki_types::ServerName::try_from(host(url)?).map_err(|err| Error::unreachable(url, err))?;
            let stream = connector.connect(name, stream).await.map_err(|err| Error::tls(url, err))?;
            websocket::Socket::open(url, stream, &self.0.sockets).await?
        } else {
            websocket::Socket::open(url, stream, &self.0.sockets).await?
        };
        Ok(Link::over_socket(socket))
    }

    /// A QUIC connection for HTTP/3.
    pub(super) async fn quic(&self, url: &Url) -> Result<quinn::Connection, Error> {
        let config = self.quic_config(url)?;
        let name = host(url)?;
        let (config, name) = (&config, name.as_str());
        let addresses = resolve(url).await?;
        let connected = first(url, addresses, |address| async move {
            let endpoint = self.endpoint(address)?;
            let connecting = endpoint.connect_with(config.clone(), address, name);
            let connecting = connecting.map_err(|err| Error::unreachable(address, err))?;
            connecting.await.map_err(|err| Error::quic(address, err))
        });
        let connected = connected.await;
        self.0.quic_avoided.store(connected.is_err(), Ordering::Relaxed);
        connected
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, Error> {
        let (place, any): (_, SocketAddr) = match address {
            SocketAddr::V4(_) => (&self.0.ipv4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (&self.0.ipv6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        if let Some(endpoint) = place.get() {
            return Ok(endpoint.clone());
        }
        let endpoint = Endpoint::client(any).map_err(|err| Error::unreachable(address, err))?;
        Ok(place.get_or_init(|| endpoint).clone())
    }

    fn quic_config(&self, url: &Url) -> Result<quinn::ClientConfig, Error> {
        if let Some(config) = self.0.quic.get() {
            return Ok(config.clone());
        }
        let tls =
            trust::config(self.0.site.certificate_sha256, &[b"h3"]).map_err(|err| Error::unreachable(url, err))?;
        let crypto = QuicClientConfig::try_from(tls).map_err(|err| Error::unreachable(url, err))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport()));
        Ok(self.0.quic.get_or_init(|| config).clone())
    }

    fn tls(&self, url: &Url) -> Result<Arc<rustls::ClientConfig>, Error> {
        if let Some(config) = self.0.tls.get() {
            return Ok(Arc::clone(config));
        }
        let config = trust::config(self.0.site.certificate_sha256, &[b"http/1.1"]);
        let config = Arc::new(config.map_err(|err| Error::unreachable(url, err))?);
        Ok(Arc::clone(self.0.tls.get_or_init(|| config)))
    }
}

/// What this side sends is small and seldom fills a window, so a controller that takes a lost packet for congestion
/// starves it: BBR does not.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(UNIDIRECTIONAL_STREAMS.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .congestion_controller_factory(Arc::new(BbrConfig::default()));
    transport
}

/// The host's name as TLS wants it: an IPv6 address without brackets.
fn host(url: &Url) -> Result<String, Error> {
    match url.host() {
        Some(Host::Domain(name)) => Ok(name.to_owned()),
        Some(Host::Ipv4(address)) => Ok(address.to_string()),
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        None => Err(nowhere(url)),
    }
}

async fn resolve(url: &Url) -> Result<Vec<SocketAddr>, Error> {
    let port = url.port_or_known_default().ok_or_else(|| nowhere(url))?;
    let found = lookup_host((host(url)?, port)).await.map_err(|err| Error::unreachable(url, err))?;
    let (ipv6, ipv4): (Vec<_>, Vec<_>) = found.partition(SocketAddr::is_ipv6);
    // The families take turns, so that one that does not work costs little (RFC 8305, section 4).
    let mut found = Vec::with_capacity(ipv6.len() + ipv4.len());
    let (mut ipv6, mut ipv4) = (ipv6.into_iter(), ipv4.into_iter());
    loop {
        let pair = [ipv6.next(), ipv4.next()];
        if pair == [None, None] {
            return Ok(found);
        }
        found.extend(pair.into_iter().flatten());
    }
}

/// Connects to the first address that answers; each has a head start over the next one.
async fn first<T, F>(url: &Url, addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut failure = nowhere(url);
    let mut addresses = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    if let Some(address) = addresses.next() {
        attempts.push(connect(address));
    }
    loop {
        let result = tokio::select! {
            result = attempts.next() => result,
            () = sleep(NEXT_ADDRESS), if addresses.len() > 0 => None,
        };
        match result {
            Some(Ok(connected)) => return Ok(connected),
            Some(Err(err)) => failure = err,
            None => {}
        }
        match addresses.next() {
            Some(address) => attempts.push(connect(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
    }
}

fn nowhere(url: &Url) -> Error {
    Error::unreachable(url, std::io::Error::new(std::io::ErrorKind::AddrNotAvailable, "it has no address"))
}

/// Reads a refusal of an upgrade.
pub(super) fn refused(url: &Url, status: StatusCode) -> Error {
    Error::Refused { what: url.to_string(), status }
}
