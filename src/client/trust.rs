//! Which certificates are trusted: one that was named by its hash, or what the operating system trusts.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// TLS of a client, with session tickets in memory and without early data.
///
/// # Errors
/// When the operating system's certificates cannot be read; never with a pin.
pub(super) fn config(pin: Option<[u8; 32]>, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match pin {
        Some(sha256) => {
            let pinned = Arc::new(Pinned { sha256, provider });
            builder.dangerous().with_custom_certificate_verifier(pinned)
        }
        None => builder.with_platform_verifier()?,
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Another certificate than the one that was named.
#[derive(thiserror::Error)]
#[error("it has the SHA-256 {came}, and {named} was named")]
struct Another {
    came: String,
    named: String,
}

/// What TLS shows of an error that is not its own.
impl fmt::Debug for Another {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Trusts the one certificate that has this hash, whatever else it says, as browsers do with
/// `serverCertificateHashes` (W3C WebTransport). The server still proves that it has the key.
#[derive(Debug)]
struct Pinned {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let sha256 = ring::digest::digest(&ring::digest::SHA256, end_entity);
        if sha256.as_ref() == self.sha256 {
            Ok(ServerCertVerified::assertion())
        } else {
            let another = Another { came: hex::encode(sha256), named: hex::encode(self.sha256) };
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(another)))))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
