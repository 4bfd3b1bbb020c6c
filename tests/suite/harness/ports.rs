//! Ports that stay a test's own while nobody listens on them: the kernel gives none of them to a connection, and no
//! other test of this process takes them.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::net::TcpStream;

/// Below those that the kernel gives away where nothing else is configured (ip(7), `ip_local_port_range`).
const FIRST: u32 = 15_000;
const COUNT: u32 = 15_000;

/// Takes one of loopback on which nobody listens, over TCP or UDP.
pub(crate) fn reserve() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes begin at places of their own.
    let first = std::process::id().wrapping_mul(997);
    for _ in 0..COUNT {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % COUNT).expect("a port");
        if free(port) {
            return (Ipv4Addr::LOCALHOST, port).into();
        }
    }
    panic!("no port is free");
}

/// Waits until nobody has the ports, so that a server can be started on them again. A process that another test starts in
/// the moment of an end has the sockets until it is another program.
pub(crate) async fn vacant(addresses: [SocketAddr; 2]) {
    super::eventually("the ports are free", async || addresses.iter().all(|address| free(address.port()))).await;
}

/// Waits until nobody listens there, which takes as long.
pub(crate) async fn deserted(address: SocketAddr) {
    let refused = async || match TcpStream::connect(address).await {
        Ok(_taken) => false,
        Err(err) => err.kind() == ErrorKind::ConnectionRefused,
    };
    super::eventually("nobody listens", refused).await;
}

fn free(port: u16) -> bool {
    let (v4, v6) = ((Ipv4Addr::LOCALHOST, port), (Ipv6Addr::LOCALHOST, port));
    TcpListener::bind(v4).is_ok() && UdpSocket::bind(v4).is_ok() && {
        // Where there is no IPv6, nobody listens there.
        let taken = |err: std::io::Error| err.kind() == ErrorKind::AddrInUse;
        !TcpListener::bind(v6).is_err_and(taken) && !UdpSocket::bind(v6).is_err_and(taken)
    }
}
