//! axum's WebSocket with its defaults: `/echo` sends back, `/publish` hands to every connection of `/topic`.

use axum::{
    Router,
    extract::{
        State,
        ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade},
    },
    response::Response,
    routing::get,
    serve::ListenerExt as _,
};
use tokio::{net::TcpListener, sync::broadcast};

/// Messages that a subscriber may be behind.
const BEHIND: usize = 64;

pub(super) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let (topic, _) = broadcast::channel::<Utf8Bytes>(BEHIND);
    let routes = Router::new()
        .route("/echo", get(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)))
        .route("/topic", get(subscribe))
        .route("/publish", get(publish))
        .with_state(topic);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    Ok(axum::serve(listener, routes).await?)
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn subscribe(State(topic): State<broadcast::Sender<Utf8Bytes>>, upgrade: WebSocketUpgrade) -> Response {
    let mut messages = topic.subscribe();
    std::future::ready(upgrade.on_upgrade(async move |mut socket| {
        loop {
            tokio::select! {
                message = messages.recv() => {
                    let Ok(text) = message else { return };
                    if socket.send(Message::Text(text)).await.is_err() {
                        return;
                    }
                }
                received = socket.recv() => match received {
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    }))
    .await
}

async fn publish(State(topic): State<broadcast::Sender<Utf8Bytes>>, upgrade: WebSocketUpgrade) -> Response {
    std::future::ready(upgrade.on_upgrade(async move |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(text) = message
                && topic.send(text).is_err()
            {
                return;
            }
        }
    }))
    .await
}
