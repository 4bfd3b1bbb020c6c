//! A WebSocket over TLS 1.3: tokio-tungstenite with buffers of 4 KiB over tokio-rustls.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use rustls::version::TLS13;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::task::TaskTracker;

use super::Identity;

/// Of reads and of writes. The default of 128 KiB for reads is what a tuned server changes first.
const BUFFER_BYTES: usize = 4096;

pub(super) async fn serve(listener: TcpListener, identity: Identity) -> anyhow::Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate], identity.key)?;
    let tls = TlsAcceptor::from(Arc::new(tls));
    let tasks = TaskTracker::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tasks.spawn(echo(tls.clone(), stream));
    }
}

async fn echo(tls: TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let config = WebSocketConfig::default().read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
    let stream = tls.accept(stream).await?;
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
