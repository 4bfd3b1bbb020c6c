//! Opening the sockets of a listener: both loopback families for `localhost`, dual-stack for `[::]`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::Address;

/// How often a free port is looked for that is free in every family and protocol.
const PORT_ATTEMPTS: u32 = 32;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// What a UDP socket holds while the endpoint does not read it, in bytes: all clients share it. When an event goes to
/// 1,000 of them they all acknowledge it within some ten milliseconds, and the kernel counts at least 768 bytes for each
/// packet. Linux allows no more than `net.core.rmem_max`, which is 212,992 where nobody has raised it: 277 packets.
const RECEIVE_BYTES: usize = 4 * 1024 * 1024;

/// The open sockets of one listener, all on one port.
#[derive(Debug)]
pub struct Sockets {
    /// one for each address
    pub tcp: Vec<TcpListener>,
    /// one for each address, where the listener speaks QUIC
    pub udp: Vec<UdpSocket>,
    /// what the sockets are bound to
    pub addresses: Vec<SocketAddr>,
}

impl Sockets {
    /// What a UDP socket of them holds while nobody reads it, and what was asked for, both in bytes; `None` where
    /// there is no such socket, or the system does not say.
    #[must_use]
    pub fn receive_bytes(&self) -> Option<(usize, usize)> {
        let held = SockRef::from(self.udp.first()?).recv_buffer_size().ok()?;
        // Linux doubles what it is asked for, and tells that (socket(7), `SO_RCVBUF`).
        Some((if cfg!(target_os = "linux") { held / 2 } else { held }, RECEIVE_BYTES))
    }
}

/// Opens TCP sockets, and UDP ones beside them where `quic` says so. Port 0 takes one that is free for all.
///
/// # Errors
/// When the port is taken, or the address is not of this machine; the error names the address.
pub fn open(address: Address, quic: bool) -> anyhow::Result<Sockets> {
    let (ips, port): (Vec<IpAddr>, u16) = match address {
        Address::Localhost(port) => (vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()], port),
        Address::Socket(address) => (vec![address.ip()], address.port()),
    };
    let mut last = None;
    for _attempt in 0..PORT_ATTEMPTS {
        match on_port(&ips, port, quic) {
            Err(err) if port == 0 => last = Some(err),
            sockets => return sockets,
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no port was tried"))).context("find a free port")
}

fn on_port(ips: &[IpAddr], wanted: u16, quic: bool) -> anyhow::Result<Sockets> {
    let mut sockets = Sockets { tcp: Vec::new(), udp: Vec::new(), addresses: Vec::new() };
    let mut port = wanted;
    for ip in ips {
        let address = SocketAddr::new(*ip, port);
        let listener = match tcp(address) {
            // A machine without IPv6 still has the other loopback address.
            Err(err) if ips.len() > 1 && absent(&err) => {
                tracing::warn!(%address, "address family is not available");
                continue;
            }
            listener => listener.with_context(|| format!("listen on {address} (TCP)"))?,
        };
        let address = listener.local_addr().context("read the bound address")?;
        port = address.port();
        if quic {
            sockets.udp.push(udp(address).with_context(|| format!("listen on {address} (UDP)"))?);
        }
        sockets.tcp.push(listener);
        sockets.addresses.push(address);
    }
    if sockets.addresses.is_empty() {
        bail!("no loopback address is available");
    }
    Ok(sockets)
}

fn absent(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::AddrNotAvailable || err.kind() == io::ErrorKind::Unsupported
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server takes its port while old connections of it linger in the kernel.
    socket.set_reuse_address(true)?;
    prepare(&socket, address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel takes its own limit in place of a larger number.
    socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    prepare(&socket, address)?;
    Ok(socket.into())
}

fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_udp_socket_holds_as_much_as_the_kernel_allows() {
        let held = |socket: SockRef<'_>| socket.recv_buffer_size().unwrap();
        let fresh = UdpSocket::bind("127.0.0.1:0").unwrap();
        SockRef::from(&fresh).set_recv_buffer_size(RECEIVE_BYTES).unwrap();
        let sockets = open(Address::Socket(([127, 0, 0, 1], 0).into()), true).unwrap();
        assert_eq!(held(SockRef::from(&sockets.udp[0])), held(SockRef::from(&fresh)));
    }
}
