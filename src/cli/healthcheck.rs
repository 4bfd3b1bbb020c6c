//! `chatbox healthcheck`: asks the server of this configuration, over its ops listener, whether it is ready.
//! For containers, whose image holds no other client.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::Global;
use crate::config::Address;

/// How long one address may take to answer; an orchestrator's own deadline is longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Enough for the status line.
const ANSWER_BYTES_MAX: u64 = 1024;

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.load_and_warn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let status = runtime.block_on(first_answer(config.listen.ops))?;
    if status != 200 {
        bail!("the server is not ready: /readyz answered {status}");
    }
    super::print(if global.json { r#"{"ready":true}"# } else { "ready" })
}

async fn first_answer(ops: Address) -> anyhow::Result<u16> {
    let mut failure = None;
    for address in reached_at(ops) {
        let asked = timeout(DEADLINE, ask(address)).await;
        match asked.unwrap_or_else(|_| bail!("no answer within {} s", DEADLINE.as_secs())) {
            Ok(status) => return Ok(status),
            Err(err) => failure = Some(err.context(format!("ask http://{address}/readyz"))),
        }
    }
    Err(failure.context("the ops listener has no address")?)
}

/// Where this machine reaches a listener: one on all addresses is asked over loopback.
fn reached_at(ops: Address) -> Vec<SocketAddr> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    match ops {
        Address::Socket(address) if !address.ip().is_unspecified() => vec![address],
        Address::Socket(address) => loopback.map(|ip| SocketAddr::new(ip, address.port())).to_vec(),
        Address::Localhost(port) => loopback.map(|ip| SocketAddr::new(ip, port)).to_vec(),
    }
}

/// One HTTP/1.1 request; of the answer only the status matters (RFC 9112, section 4).
async fn ask(address: SocketAddr) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("send the request")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.context("read the answer")?;
    let status = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    status.context("the answer is not HTTP")
}
