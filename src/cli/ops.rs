//! One request to the ops listener of the server that runs with this configuration.

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

use crate::config::Address;

/// How long one address may take to answer; an orchestrator's own deadline is longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// More than any of its answers that are asked for here.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// What the listener is asked for.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) token: Option<&'a str>,
}

/// What it answers.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Asks the first of the listener's addresses that answers.
pub(super) async fn ask(ops: Address, request: Request<'_>) -> anyhow::Result<Answer> {
    let mut failure = None;
    for address in reached_at(ops) {
        let asked = timeout(DEADLINE, exchange(address, request)).await;
        match asked.unwrap_or_else(|_| bail!("no answer within {} s", DEADLINE.as_secs())) {
            Ok(answer) => return Ok(answer),
            Err(err) => failure = Some(err.context(format!("ask http://{address}{}", request.path))),
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

/// One HTTP/1.1 request (RFC 9112). The server closes behind its answer, so that its length need not be read.
async fn exchange(address: SocketAddr, Request { method, path, token }: Request<'_>) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{token}Content-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.context("send the request")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await.context("read the answer")?;
    let status = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|digits| str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = end.and_then(|end| answer.get(end + 4..)).unwrap_or_default().to_vec();
    Ok(Answer { status: status.context("the answer is not HTTP")?, body })
}
