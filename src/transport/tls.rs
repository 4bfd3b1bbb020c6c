//! Certificates: loads them, makes one for loopback where none is configured, and replaces them while running.
//!
//! Every listener's TLS configuration comes from here, so that one reload reaches QUIC and TCP alike. It knows
//! nothing of connections.

mod tickets;
pub mod validity;

use std::{
    fmt, fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use serde::{Deserialize, Serialize};

use self::tickets::Tickets;
use crate::{lifecycle::Lifecycle, metrics::Metrics};

/// Browsers accept a certificate by its hash only if it is valid for at most 14 days
/// (W3C WebTransport, "custom certificate requirements").
const VALIDITY: Duration = Duration::from_secs(13 * 24 * 3600);

/// A self-signed certificate with less than this left is replaced.
const RENEW_BEFORE: Duration = Duration::from_secs(24 * 3600);

/// How often the files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(60);

/// Certificates.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// PEM chain; absent: a self-signed one in `dir`, on loopback only
    pub cert_file: Option<PathBuf>,
    /// PEM key
    pub key_file: Option<PathBuf>,
    /// where the self-signed certificate is kept
    pub dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { cert_file: None, key_file: None, dir: PathBuf::from("certs") }
    }
}

/// The certificate of one server and the TLS configurations that use it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls {
    source: Arc<Source>,
    current: Arc<Current>,
    quic: Arc<ServerConfig>,
    tcp: Arc<ServerConfig>,
    metrics: Arc<Metrics>,
}

/// What a look at the files found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reload {
    /// the certificate in use is still the right one
    Unchanged,
    /// new handshakes get another certificate
    Replaced,
}

impl Tls {
    /// Loads the configured certificate, or the self-signed one in `config.dir`, which it makes when there is
    /// none, or none with a day left.
    ///
    /// # Errors
    /// When a file cannot be read, holds no certificate or no key, or when the key does not fit; when only one
    /// of the two files is configured; when none is and the listener is not on loopback.
    pub fn load(config: &Config, loopback: bool, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let source = Source::new(config, loopback)?;
        let provider = Arc::new(default_provider());
        source.renew(&provider)?;
        let seen = source.files.stamp();
        let current = Arc::new(Current(RwLock::new(Loaded { key: source.files.read(&provider)?, seen })));
        let ticketer = rustls::crypto::ring::Ticketer::new().context("make session ticket keys")?;
        let config =
            |versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]| -> anyhow::Result<Arc<ServerConfig>> {
                let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                    .with_protocol_versions(versions)
                    .context("select TLS versions")?
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::<Current>::clone(&current));
                config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
                config.ticketer = Arc::clone(&ticketer);
                Ok(Arc::new(config))
            };
        let quic = config(&[&TLS13], &[b"h3"])?;
        let tcp = config(&[&TLS13, &TLS12], &[b"h2", b"http/1.1"])?;
        Ok(Self { source: Arc::new(source), current, quic, tcp, metrics })
    }

    /// TLS for QUIC: version 1.3, ALPN `h3`, no early data; session tickets that every server with the same cluster
    /// secret and certificate takes, for 12 to 24 hours.
    ///
    /// # Errors
    /// Never with the cipher suites of `ring`; carried on for the caller's start-up error.
    pub fn quic(&self, cluster_secret: &str) -> anyhow::Result<Arc<QuicServerConfig>> {
        let mut config = ServerConfig::clone(&self.quic);
        config.ticketer = Arc::new(Tickets::new(cluster_secret, Arc::clone(&self.current)));
        // A page has one connection at a time, and gets the next ticket with it.
        config.send_tls13_tickets = 1;
        let config = QuicServerConfig::try_from(config).context("use TLS for QUIC")?;
        Ok(Arc::new(config))
    }

    /// TLS for TCP: versions 1.3 and 1.2, ALPN `h2` and `http/1.1`, session tickets of this process alone: with
    /// version 1.2 they hold what a recorded connection is read with, so their keys must not outlast it.
    #[must_use]
    pub fn tcp(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tcp)
    }

    /// SHA-256 of the certificate in DER, in hex, for `serverCertificateHashes`; only of a self-signed one, which
    /// clients cannot verify otherwise. Changes when the certificate is renewed.
    #[must_use]
    pub fn certificate_sha256(&self) -> Option<String> {
        let key = self.current.key();
        let certificate = key.cert.first().filter(|_| self.source.self_signed)?;
        Some(hex::encode(ring::digest::digest(&ring::digest::SHA256, certificate)))
    }

    /// Looks at the files once: renews a self-signed certificate that is about to expire, and takes over files
    /// that changed. New handshakes use the new certificate, open connections go on. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`]; the certificate in use stays. Counted in `certificate_reloads_total`.
    pub fn reload(&self) -> anyhow::Result<Reload> {
        let reloaded = self.try_reload();
        let outcome = match &reloaded {
            Ok(Reload::Unchanged) => return reloaded,
            Ok(Reload::Replaced) => "replaced",
            Err(_) => "failed",
        };
        self.metrics.certificate_reloads_total.with_label_values(&[outcome]).inc();
        reloaded
    }

    fn try_reload(&self) -> anyhow::Result<Reload> {
        let provider = self.quic.crypto_provider();
        self.source.renew(provider)?;
        let seen = self.source.files.stamp();
        if seen == self.current.seen() {
            return Ok(Reload::Unchanged);
        }
        let key = self.source.files.read(provider)?;
        self.current.replace(Loaded { key, seen });
        Ok(Reload::Replaced)
    }

    /// Calls [`Self::reload`] once a minute until the server stops. The owner spawns it on the [`Lifecycle`].
    pub async fn watch(self, lifecycle: Lifecycle) {
        loop {
            tokio::select! {
                biased;
                () = lifecycle.closing() => return,
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
            }
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.reload()).await {
                Ok(Ok(Reload::Unchanged)) => {}
                Ok(Ok(Reload::Replaced)) => tracing::info!("certificate replaced"),
                Ok(Err(error)) => {
                    let error: &(dyn std::error::Error + 'static) = error.as_ref();
                    tracing::warn!(error, "certificate not replaced, the old one stays");
                }
                Err(panic) => {
                    self.metrics.panics_total.inc();
                    tracing::error!(error = &panic as &dyn std::error::Error, "certificate reload failed");
                }
            }
        }
    }
}

/// Where the certificate comes from.
#[derive(Debug)]
struct Source {
    files: Files,
    self_signed: bool,
}

impl Source {
    fn new(config: &Config, loopback: bool) -> anyhow::Result<Self> {
        match (&config.cert_file, &config.key_file) {
            (Some(cert), Some(key)) => Ok(Self { files: Files::new(cert, key), self_signed: false }),
            (None, None) if loopback => Ok(Self { files: Files::inside(&config.dir), self_signed: true }),
            (None, None) => anyhow::bail!("`tls.cert_file` and `tls.key_file` are needed off loopback"),
            _ => anyhow::bail!("`tls.cert_file` and `tls.key_file` go together"),
        }
    }

    /// Makes a certificate if it is ours to make and there is none that lasts.
    fn renew(&self, provider: &Arc<CryptoProvider>) -> anyhow::Result<()> {
        if !self.self_signed || self.files.read(provider).is_ok_and(|key| lasts(&key, provider)) {
            return Ok(());
        }
        self.files.write_self_signed()
    }
}

/// Whether a self-signed certificate is for loopback and will still be valid [`RENEW_BEFORE`] from now. It is
/// verified as a client would, with itself as the only root, so nothing here parses X.509.
fn lasts(key: &CertifiedKey, provider: &Arc<CryptoProvider>) -> bool {
    let Some(certificate) = key.cert.first() else { return false };
    let mut roots = RootCertStore::empty();
    if roots.add(certificate.clone()).is_err() {
        return false;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let Ok(verifier) = verifier else { return false };
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + RENEW_BEFORE);
    let valid = |name: ServerName<'_>| verifier.verify_server_cert(certificate, &[], &name, &[], soon).is_ok();
    let localhost = ServerName::try_from("localhost").is_ok_and(&valid);
    localhost && LOOPBACK.into_iter().all(|address| valid(ServerName::from(address)))
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// Time of change and size of both files; equal stamps mean equal files.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Files {
    fn new(certificate: &Path, key: &Path) -> Self {
        Self { certificate: certificate.to_owned(), key: key.to_owned() }
    }

    fn inside(dir: &Path) -> Self {
        Self::new(&dir.join("cert.pem"), &dir.join("key.pem"))
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    fn read(&self, provider: &CryptoProvider) -> anyhow::Result<Arc<CertifiedKey>> {
        let certificate = self.certificate.display();
        let chain: Vec<_> = CertificateDer::pem_file_iter(&self.certificate)
            .with_context(|| format!("read certificate chain `{certificate}`"))?
            .collect::<Result<_, _>>()
            .with_context(|| format!("read certificate chain `{certificate}`"))?;
        anyhow::ensure!(!chain.is_empty(), "`{certificate}` holds no certificate");
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("read private key `{}`", self.key.display()))?;
        let key = CertifiedKey::from_der(chain, key, provider)
            .with_context(|| format!("use `{}` with `{certificate}`", self.key.display()))?;
        Ok(Arc::new(key))
    }

    /// Writes beside the files and renames, so that a reader never sees half a file. Between the two renames the
    /// pair does not fit together; whoever reads then tries again later.
    fn write_self_signed(&self) -> anyhow::Result<()> {
        let (certificate, key) = self_signed().context("make a self-signed certificate")?;
        for (path, pem) in [(&self.key, key), (&self.certificate, certificate)] {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir).with_context(|| format!("create `{}`", dir.display()))?;
            }
            let new = path.with_extension("new");
            write_private(&new, &pem).with_context(|| format!("write `{}`", new.display()))?;
            fs::rename(&new, path).with_context(|| format!("write `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// A P-256 certificate for loopback and its key, in PEM.
fn self_signed() -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut names = vec!["localhost".to_owned()];
    names.extend(LOOPBACK.map(|address| address.to_string()));
    let mut params = rcgen::CertificateParams::new(names)?;
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now;
    params.not_after = now + VALIDITY;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Writes a file that only its owner can read.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The certificate that new handshakes get.
struct Current(RwLock<Loaded>);

struct Loaded {
    key: Arc<CertifiedKey>,
    seen: Stamp,
}

impl Current {
    fn key(&self) -> Arc<CertifiedKey> {
        let loaded = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(&loaded.key)
    }

    fn seen(&self) -> Stamp {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).seen
    }

    fn replace(&self, loaded: Loaded) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = loaded;
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(config: &Config) -> anyhow::Result<Tls> {
        Tls::load(config, true, Metrics::new())
    }

    fn in_dir(dir: &Path) -> Config {
        Config { dir: dir.to_owned(), ..Config::default() }
    }

    #[test]
    fn self_signed_certificate_is_kept_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = load(&in_dir(dir.path())).unwrap().certificate_sha256().unwrap();
        let second = load(&in_dir(dir.path())).unwrap().certificate_sha256().unwrap();
        assert_eq!(first, second);
        assert_eq!(first.len(), 64);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(dir.path().join("key.pem")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn certificate_that_is_about_to_expire_is_replaced_while_running() {
        let dir = tempfile::tempdir().unwrap();
        let tls = load(&in_dir(dir.path())).unwrap();
        let first = tls.certificate_sha256().unwrap();
        assert_eq!(tls.reload().unwrap(), Reload::Unchanged);

        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = time::OffsetDateTime::now_utc() - VALIDITY;
        params.not_after = time::OffsetDateTime::now_utc() + RENEW_BEFORE / 2;
        let old = params.self_signed(&key).unwrap().pem();
        fs::write(dir.path().join("cert.pem"), &old).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();

        assert_eq!(tls.reload().unwrap(), Reload::Replaced);
        assert_ne!(tls.certificate_sha256().unwrap(), first);
        assert_ne!(fs::read_to_string(dir.path().join("cert.pem")).unwrap(), old);
        assert_eq!(tls.reload().unwrap(), Reload::Unchanged);
    }

    #[test]
    fn configured_files_that_change_are_taken_over_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::inside(dir.path());
        files.write_self_signed().unwrap();
        let config = Config {
            cert_file: Some(files.certificate.clone()),
            key_file: Some(files.key.clone()),
            ..Config::default()
        };
        let tls = load(&config).unwrap();
        assert_eq!(tls.certificate_sha256(), None);
        let first = tls.current.key().cert.clone();

        fs::write(&files.certificate, "not a certificate").unwrap();
        assert_eq!(
            tls.reload().unwrap_err().to_string(),
            format!("`{}` holds no certificate", files.certificate.display())
        );
        assert_eq!(tls.current.key().cert, first);

        files.write_self_signed().unwrap();
        assert_eq!(tls.reload().unwrap(), Reload::Replaced);
        assert_ne!(tls.current.key().cert, first);
        let count = |outcome| tls.metrics.certificate_reloads_total.with_label_values(&[outcome]).get();
        assert_eq!((count("failed"), count("replaced")), (1, 1));
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, _) = self_signed().unwrap();
        let (_, key) = self_signed().unwrap();
        let files = Files::inside(dir.path());
        fs::write(&files.certificate, certificate).unwrap();
        fs::write(&files.key, key).unwrap();
        let config =
            Config { cert_file: Some(files.certificate.clone()), key_file: Some(files.key), ..Config::default() };
        let error = load(&config).unwrap_err().to_string();
        assert!(error.starts_with("use `"), "got {error}");
    }

    #[test]
    fn certificate_must_be_configured_off_loopback() {
        let error = Tls::load(&Config::default(), false, Metrics::new()).unwrap_err().to_string();
        assert_eq!(error, "`tls.cert_file` and `tls.key_file` are needed off loopback");
    }

    #[test]
    fn listeners_offer_their_protocols() {
        let dir = tempfile::tempdir().unwrap();
        let tls = load(&in_dir(dir.path())).unwrap();
        assert_eq!(tls.tcp().alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(tls.quic.alpn_protocols, [b"h3".to_vec()]);
        assert_eq!(tls.quic.max_early_data_size, 0);
        assert!(tls.quic("secret").is_ok_and(|config| Arc::strong_count(&config) == 1));
    }
}
