//! A network between client and server that goes dead: nothing more arrives, and nobody is told.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// Every datagram of this number is lost, and every one of the other comes after its successor.
const LOST: usize = 23;
const LATE: usize = 7;

/// Carries one connection for so many bytes towards the client, and then nothing, in neither direction. It stays
/// silent until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn tcp(server: SocketAddr, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (client, _) = listener.accept().await.expect("the client comes");
            let server = TcpStream::connect(server).await.expect("the server listens");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            // Its end cuts the other direction too.
            let down = async {
                let mut some = (&mut from_server).take(bytes.try_into().expect("a length"));
                drop(tokio::io::copy(&mut some, &mut to_client).await);
            };
            tokio::select! {
                () = down => {}
                _ = tokio::io::copy(&mut from_client, &mut to_server) => drop(to_server.shutdown().await),
            }
            std::future::pending::<()>().await
        });
        Self { address, _tasks: tasks }
    }

    /// Before it goes dead it loses some datagrams, and swaps some.
    pub(crate) async fn udp(server: SocketAddr, bytes: usize) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let far = UdpSocket::bind(if server.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).await.expect("a free port");
        far.connect(server).await.expect("a route");
        let address = near.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut up, mut down) = (Path::default(), Path::default());
            let (mut sent, mut received) = (vec![0; 65536], vec![0; 65536]);
            let mut client = None;
            let mut left = bytes;
            while left > 0 {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut sent) => {
                        client = Some(from);
                        for datagram in up.pass(&sent[..length]) {
                            drop(far.send(&datagram).await);
                        }
                    }
                    Ok(length) = far.recv(&mut received) => {
                        left = left.saturating_sub(length);
                        for datagram in down.pass(&received[..length]) {
                            if let Some(client) = client {
                                drop(near.send_to(&datagram, client).await);
                            }
                        }
                    }
                    else => break,
                }
            }
            std::future::pending::<()>().await
        });
        Self { address, _tasks: tasks }
    }
}

/// One direction.
#[derive(Default)]
struct Path {
    passed: usize,
    late: Option<Vec<u8>>,
}

impl Path {
    /// What goes on when a datagram comes.
    fn pass(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        self.passed += 1;
        if self.passed.is_multiple_of(LOST) {
            return Vec::new();
        }
        if self.passed.is_multiple_of(LATE) && self.late.is_none() {
            self.late = Some(datagram.to_vec());
            return Vec::new();
        }
        std::iter::once(datagram.to_vec()).chain(self.late.take()).collect()
    }
}
