//! What hosted vendors really speak: TLS, and HTTP/2 in it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::{Request, Response, Version, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::provider::{Provider, Script, delta};
use crate::harness::{Client, Via, client::PATIENCE, id, process::Process, stopwatch::Stopwatch};

/// A vendor on HTTP/2 that says one piece to everybody, and then no more.
struct Vendor {
    port: u16,
    /// of the authority that the vendor's certificate is from
    authority: String,
    /// TLS connections so far
    accepted: Arc<AtomicUsize>,
    versions: mpsc::Receiver<Version>,
    /// an answer was no longer wanted
    dropped: mpsc::Receiver<()>,
    _tasks: JoinSet<()>,
}

struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.try_send(()).expect("room");
    }
}

fn certificates() -> (String, rustls::ServerConfig) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key.into()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (authority, config)
}

impl Vendor {
    async fn start() -> Self {
        let (authority, config) = certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let ((asked, versions), (told, dropped)) = (mpsc::channel(8), mpsc::channel(8));
        let count = Arc::clone(&accepted);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                let tls = acceptor.accept(socket).await.expect("a handshake");
                count.fetch_add(1, Ordering::Relaxed);
                let (asked, told) = (asked.clone(), told.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    asked.try_send(request.version()).expect("room");
                    let told = Told(told.clone());
                    let piece = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(delta("kept "))))]);
                    let silence = stream::once(async move {
                        let _told = told;
                        std::future::pending().await
                    });
                    let response = Response::builder().header("content-type", "text/event-stream");
                    let body = StreamBody::new(piece.chain(silence));
                    async move { Ok::<_, Infallible>(response.body(body).expect("an answer")) }
                });
                connections.spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(tls), service).await);
                });
            }
        });
        Self { port, authority, accepted, versions, dropped, _tasks: tasks }
    }
}

// checklist 97
#[tokio::test]
async fn answers_of_an_https_vendor_share_a_connection_and_are_cut_one_by_one() {
    let mut vendor = Vendor::start().await;
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("authority.pem");
    std::fs::write(&authority, &vendor.authority).unwrap();
    let endpoint = format!("https://localhost:{}/v1", vendor.port);
    let settings = [
        ("SSL_CERT_FILE", authority.to_str().unwrap()),
        ("CHATBOX_LLM__PROVIDERS__SCRIPTED__ENDPOINT", endpoint.as_str()),
    ];
    let server = Process::start_with(dir.path(), &Provider::start(Script::silent()).await, &settings).await;

    let mut askers = Vec::new();
    for user in ["ann", "bob"] {
        let (mut client, watch, _status) = Client::attached(&server, Via::WebSocket, user, json!({})).await;
        let mut exchange = client.say("hello").await;
        let piece = exchange.until("ai_response").await;
        assert_eq!(piece["content"], "kept ");
        assert_eq!(timeout(PATIENCE, vendor.versions.recv()).await.unwrap(), Some(Version::HTTP_2));
        askers.push((client, watch, exchange, piece["turn_id"].clone()));
    }
    assert_eq!(vendor.accepted.load(Ordering::Relaxed), 1, "one connection serves both");

    for (_client, watch, exchange, turn) in &mut askers {
        let asked = Stopwatch::start();
        watch.send(json!({"type": "stop", "id": id(), "turn_id": turn})).await;
        timeout(PATIENCE, vendor.dropped.recv()).await.unwrap().unwrap();
        let cut = asked.elapsed();
        println!("the answer was cut after {cut:?}");
        assert!(cut < Duration::from_secs(1), "the answer was cut after {cut:?}");
        assert!(vendor.dropped.try_recv().is_err(), "and no other with it");
        assert_eq!(exchange.reply_from("kept ".to_owned()).await.1["state"], "stopped");
    }
}
