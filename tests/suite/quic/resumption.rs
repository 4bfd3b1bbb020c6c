use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Request, StatusCode};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::site::{Http3Client, Site, Start};

/// Looks at a certificate only to tell that it was shown one: a connection that is resumed shows none.
#[derive(Debug)]
struct Looks {
    provider: Arc<CryptoProvider>,
    count: AtomicUsize,
}

impl ServerCertVerifier for Looks {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that keeps its tickets, and would send early data.
struct Visitor {
    endpoint: quinn::Endpoint,
    looks: Arc<Looks>,
}

impl Visitor {
    fn new() -> Self {
        let looks = Arc::new(Looks { provider: Arc::new(default_provider()), count: AtomicUsize::new(0) });
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&looks.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Looks>::clone(&looks))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls.enable_early_data = true;
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
        Self { endpoint, looks }
    }

    /// Makes a request over a connection of its own. How many certificates this client was shown until then.
    async fn visit(&self, site: &Site) -> usize {
        let connecting = self.endpoint.connect(site.address, "localhost").unwrap();
        // The server has not offered to take early data.
        let connecting = connecting.into_0rtt().map(|_early| ()).unwrap_err();
        let mut client = Http3Client::over(connecting.await.unwrap()).await;
        let (parts, _) = client.fetch(Request::get(site.url("/").as_str()).body(()).unwrap()).await;
        assert_eq!(parts.status, StatusCode::NOT_FOUND);
        self.looks.count.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn client_resumes_also_after_a_restart_and_has_no_early_data() {
    let visitor = Visitor::new();
    let site = Site::start();
    assert_eq!(visitor.visit(&site).await, 1);
    assert_eq!(visitor.visit(&site).await, 1, "the second connection is resumed");
    let restarted = Start { dir: site.dir(), ..Start::default() }.site();
    drop(site);
    assert_eq!(visitor.visit(&restarted).await, 1, "also by the server that was started after it");
}

#[tokio::test]
async fn client_is_shown_a_certificate_that_was_replaced() {
    let visitor = Visitor::new();
    let site = Site::start();
    assert_eq!(visitor.visit(&site).await, 1);
    site.replace_certificate();
    assert_eq!(visitor.visit(&site).await, 2);
    assert_eq!(visitor.visit(&site).await, 2, "and resumes with that from then on");
}
