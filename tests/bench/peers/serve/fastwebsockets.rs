//! The plain echo that everything is held against, and the noise gauge of a run: fastwebsockets over hyper.
//! On `/between/N` what one of two connections says is sent to the other one, by one task for both.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

pub(super) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let tasks = Arc::new(TaskTracker::new());
    let alone = Arc::new(Alone::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (sockets, alone) = (Arc::clone(&tasks), Arc::clone(&alone));
        tasks.spawn(async move {
            let answer = service_fn(|request| std::future::ready(accept(request, &sockets, &alone)));
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades().await
        });
    }
}

/// Connections that wait for their other half, by path.
type Alone = Mutex<HashMap<String, upgrade::UpgradeFut>>;

fn accept(
    mut request: Request<Incoming>,
    tasks: &TaskTracker,
    alone: &Alone,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    let path = request.uri().path();
    if path.starts_with("/between/") {
        let mut alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
        match alone.remove(path) {
            Some(other) => drop(tasks.spawn(between(other, upgraded))),
            None => drop(alone.insert(path.to_owned(), upgraded)),
        }
    } else {
        tasks.spawn(echo(upgraded));
    }
    Ok(response)
}

/// Frames of this load are small and come whole: what is read when the other one speaks first was not begun.
async fn between(one: upgrade::UpgradeFut, other: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let (mut one, mut other) = (FragmentCollector::new(one.await?), FragmentCollector::new(other.await?));
    loop {
        let (frame, to) = tokio::select! {
            frame = one.read_frame() => (frame?, &mut other),
            frame = other.read_frame() => (frame?, &mut one),
        };
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => to.write_frame(frame).await?,
            OpCode::Ping | OpCode::Pong | OpCode::Continuation => {}
        }
    }
}

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            OpCode::Ping | OpCode::Pong | OpCode::Continuation => {}
        }
    }
}
