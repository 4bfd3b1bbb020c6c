//! The plain echo that everything is held against, and the noise gauge of a run: fastwebsockets over hyper.

use std::sync::Arc;

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

pub(super) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let tasks = Arc::new(TaskTracker::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sockets = Arc::clone(&tasks);
        tasks.spawn(async move {
            let answer = service_fn(|request| std::future::ready(accept(request, &sockets)));
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades().await
        });
    }
}

fn accept(mut request: Request<Incoming>, tasks: &TaskTracker) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tasks.spawn(echo(upgraded));
    Ok(response)
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
