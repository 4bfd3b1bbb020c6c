//! Session tickets on TCP: they save the handshake while the server runs, and are worth nothing afterwards.

use std::sync::Arc;

use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::harness::{Server, client::PATIENCE};

/// Asks for discovery over a connection of its own, and reads until the server closes it.
async fn visit(server: &Server, tls: &TlsConnector) -> Option<HandshakeKind> {
    let visit = async {
        let port = server.quic_url.port().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let request = b"GET /chatbox/.well-known/chatbox HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&response));
        stream.get_ref().1.handshake_kind()
    };
    timeout(PATIENCE, visit).await.expect("an answer in time")
}

#[tokio::test]
async fn client_over_tcp_resumes_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    for version in [&TLS13, &TLS12] {
        let server = Server::run(Server::config(dir.path())).await;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.path().join("certs/cert.pem")).unwrap()).unwrap();
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(tls));
        assert_eq!(visit(&server, &tls).await, Some(HandshakeKind::Full));
        assert_eq!(visit(&server, &tls).await, Some(HandshakeKind::Resumed));

        server.stop();
        server.ended().await.unwrap();
        let restarted = Server::run(Server::config(dir.path())).await;
        assert_eq!(visit(&restarted, &tls).await, Some(HandshakeKind::Full), "its keys are its own");
        restarted.stop();
        restarted.ended().await.unwrap();
    }
}
