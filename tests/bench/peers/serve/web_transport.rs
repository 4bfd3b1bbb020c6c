//! WebTransport by web-transport-quinn with its defaults. By path: `/one` sends back on the one stream that a client
//! opens, `/each` on each of its streams, `/publish` hands to a one-way stream of every session of `/topic`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;
use web_transport_quinn::{Request, ServerBuilder, Session};

use super::Identity;

/// Messages that a subscriber may be behind.
const BEHIND: usize = 64;
/// Longest message.
const MESSAGE_BYTES: usize = 64 * 1024;

pub(super) async fn serve(identity: Identity) -> anyhow::Result<()> {
    let (certificate, key) = (identity.certificate.clone(), identity.key.clone_key());
    let builder = ServerBuilder::new().with_addr(([127, 0, 0, 1], 0).into());
    let mut server = builder.with_certificate(vec![certificate], key)?;
    super::announce(server.local_addr()?.port(), Some(&identity))?;
    let (topic, _) = broadcast::channel(BEHIND);
    let topic = Arc::new(topic);
    let tasks = TaskTracker::new();
    while let Some(request) = server.accept().await {
        tasks.spawn(run(request, Arc::clone(&topic)));
    }
    Ok(())
}

async fn run(request: Request, topic: Arc<broadcast::Sender<Bytes>>) -> anyhow::Result<()> {
    let path = request.url.path().to_owned();
    let session = request.ok().await?;
    match path.as_str() {
        "/one" => echo_one(&session).await,
        "/each" => echo_each(&session).await,
        "/topic" => subscribe(&session, &topic).await,
        "/publish" => publish(&session, &topic).await,
        other => anyhow::bail!("nothing is at {other}"),
    }
}

async fn echo_one(session: &Session) -> anyhow::Result<()> {
    let (mut send, mut receive) = session.accept_bi().await?;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        send.write_chunk(chunk.bytes).await?;
    }
    Ok(())
}

async fn echo_each(session: &Session) -> anyhow::Result<()> {
    loop {
        let (mut send, mut receive) = session.accept_bi().await?;
        let message = receive.read_to_end(MESSAGE_BYTES).await?;
        send.write_all(&message).await?;
        send.finish()?;
    }
}

async fn subscribe(session: &Session, topic: &broadcast::Sender<Bytes>) -> anyhow::Result<()> {
    let mut messages = topic.subscribe();
    let mut send = session.open_uni().await?;
    // A stream is there for the other side with its first byte.
    send.write_all(b"\n").await?;
    loop {
        send.write_chunk(messages.recv().await?).await?;
    }
}

async fn publish(session: &Session, topic: &broadcast::Sender<Bytes>) -> anyhow::Result<()> {
    let (_send, mut receive) = session.accept_bi().await?;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        topic.send(chunk.bytes)?;
    }
    Ok(())
}
