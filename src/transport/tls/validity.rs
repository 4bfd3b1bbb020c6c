//! Until when a certificate is valid.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{Config, Source};

/// Later than any certificate lasts: the year 9999 (RFC 5280, section 4.1.2.5).
const FAR: Duration = Duration::from_secs(253_402_300_800);

/// Until when the certificate lasts that a start would use, and whether it is a self-signed one of ours, which is
/// replaced in time; `None` when there is none yet, and the start makes it. Makes nothing itself. Blocks on the disk.
///
/// # Errors
/// Those of [`super::Tls::load`]; when the certificate does not say when it ends.
pub fn valid_until(config: &Config, loopback: bool) -> anyhow::Result<Option<(SystemTime, bool)>> {
    let Source { files, self_signed } = Source::new(config, loopback)?;
    if self_signed && !files.certificate.exists() {
        return Ok(None);
    }
    let key = files.read(&default_provider())?;
    let end = key.cert.first().and_then(end);
    let end = end.ok_or_else(|| anyhow::anyhow!("`{}` does not say when it ends", files.certificate.display()))?;
    Ok(Some((end, self_signed)))
}

/// Verifies a certificate in the far future, with itself as the only root, and is told since when it is over: nothing
/// here parses X.509.
fn end(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned()).ok()?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider())).build();
    let name = ServerName::try_from("localhost").ok()?;
    let far = UnixTime::since_unix_epoch(FAR);
    match verifier.ok()?.verify_server_cert(certificate, &[], &name, &[], far) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::VALIDITY, *};
    use crate::{metrics::Metrics, transport::tls::Tls};

    #[test]
    fn the_end_of_a_certificate_is_read_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { dir: dir.path().join("certs"), ..Config::default() };
        assert_eq!(valid_until(&config, true).unwrap(), None);
        assert!(!config.dir.exists(), "looking makes nothing");
        Tls::load(&config, true, Metrics::new()).unwrap();
        let (end, self_signed) = valid_until(&config, true).unwrap().unwrap();
        let made = config.dir.join("cert.pem").metadata().unwrap().modified().unwrap();
        let off = end.duration_since(made).unwrap().abs_diff(VALIDITY);
        assert!(self_signed && off < Duration::from_secs(60), "{off:?}");
    }

    /// One that an authority signed is no root, which is not what decides here.
    #[test]
    fn a_certificate_of_an_authority_has_an_end_too() {
        let dir = tempfile::tempdir().unwrap();
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["chat.example.com".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 2, 3);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let files = [("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())];
        for (name, pem) in files {
            std::fs::write(dir.path().join(name), pem).unwrap();
        }
        let file = |name: &str| Some(dir.path().join(name));
        let config = Config { cert_file: file("cert.pem"), key_file: file("key.pem"), ..Config::default() };
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_580_688_000);
        assert_eq!(valid_until(&config, false).unwrap(), Some((end, false)));
        let missing = Config { key_file: None, ..config };
        assert_eq!(
            valid_until(&missing, false).unwrap_err().to_string(),
            "`tls.cert_file` and `tls.key_file` go together"
        );
    }
}
