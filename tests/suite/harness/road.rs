//! The way to a server that clients know by one address: it can be cut, and lead to another server afterwards.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chatbox::config::Config;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
};

/// Where a road leads: the plain listener and the QUIC listener of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct End {
    http: SocketAddr,
    quic: SocketAddr,
}

/// Two addresses, for TCP and for UDP, that lead to one server at a time.
pub(crate) struct Road {
    tcp: SocketAddr,
    udp: SocketAddr,
    end: Arc<watch::Sender<Option<End>>>,
    garbled: Arc<Mutex<Option<Garbled>>>,
    _tasks: JoinSet<()>,
}

impl Road {
    /// Leads nowhere yet.
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let (tcp, udp) = (listener.local_addr().expect("an address"), socket.local_addr().expect("an address"));
        let end = Arc::new(watch::Sender::new(None));
        let mut tasks = JoinSet::new();
        let garbled = Arc::new(Mutex::new(None));
        tasks.spawn(carry_tcp(listener, end.subscribe(), Arc::clone(&garbled)));
        tasks.spawn(carry_udp(Arc::new(socket), end.subscribe()));
        Self { tcp, udp, end, garbled, _tasks: tasks }
    }

    /// Has a server's clients come this way.
    pub(crate) fn name(&self, config: &mut Config) {
        config.public_url = Some(format!("http://{}", self.tcp).parse().expect("a URL"));
        config.public_quic_url = Some(format!("https://{}", self.udp).parse().expect("a URL"));
    }

    /// Leads to a server. Connections to another one are cut.
    pub(crate) fn lead(&self, http: SocketAddr, quic: SocketAddr) {
        self.end.send_replace(Some(End { http, quic }));
    }

    /// Has one text of what comes next over TCP from the server arrive as another of the same length.
    pub(crate) fn garble(&self, text: &'static str, arrives: &'static str) {
        assert_eq!(text.len(), arrives.len());
        *self.garbled.lock().unwrap() = Some((text.as_bytes(), arrives.as_bytes()));
    }

    /// Whether that has happened.
    pub(crate) fn has_garbled(&self) -> bool {
        self.garbled.lock().unwrap().is_none()
    }

    /// Breaks every connection: TCP is reset, UDP is lost until the road leads somewhere again.
    pub(crate) fn cut(&self) {
        self.end.send_replace(None);
    }

    /// Breaks every connection, and lets new ones through.
    pub(crate) fn break_once(&self) {
        let end = *self.end.borrow();
        self.cut();
        self.end.send_replace(end);
    }
}

type Garbled = (&'static [u8], &'static [u8]);

async fn carry_tcp(listener: TcpListener, end: watch::Receiver<Option<End>>, garbled: Arc<Mutex<Option<Garbled>>>) {
    let mut carried = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.expect("a client");
        let (mut end, garbled) = (end.clone(), Arc::clone(&garbled));
        carried.spawn(async move {
            let Some(End { http, .. }) = *end.borrow_and_update() else { return };
            let Ok(mut server) = TcpStream::connect(http).await else { return };
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            tokio::select! {
                _ = end.changed() => {}
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                () = carry_down(&mut from_server, &mut to_client, &garbled) => {}
            }
        });
        while carried.try_join_next().is_some() {}
    }
}

async fn carry_down(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    garbled: &Mutex<Option<Garbled>>,
) {
    let mut buffer = vec![0; 65536];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 {
            return drop(to.shutdown().await);
        }
        let wish = *garbled.lock().unwrap();
        if let Some((text, arrives)) = wish
            && let Some(at) = buffer[..length].windows(text.len()).position(|bytes| bytes == text)
        {
            buffer[at..at + text.len()].copy_from_slice(arrives);
            *garbled.lock().unwrap() = None;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn carry_udp(near: Arc<UdpSocket>, mut end: watch::Receiver<Option<End>>) {
    let mut paths: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; 65536];
    loop {
        tokio::select! {
            changed = end.changed() => {
                if changed.is_err() {
                    return;
                }
                paths.clear();
                back.shutdown().await;
            }
            Ok((length, client)) = near.recv_from(&mut buffer) => {
                let Some(End { quic, .. }) = *end.borrow() else { continue };
                let far = match paths.entry(client) {
                    Entry::Occupied(path) => path.into_mut(),
                    Entry::Vacant(place) => {
                        let any = if quic.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
                        let far = Arc::new(UdpSocket::bind(any).await.expect("a free port"));
                        far.connect(quic).await.expect("a route");
                        back.spawn(carry_back(Arc::clone(&far), Arc::clone(&near), client));
                        place.insert(far)
                    }
                };
                drop(far.send(&buffer[..length]).await);
            }
        }
    }
}

async fn carry_back(far: Arc<UdpSocket>, near: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; 65536];
    while let Ok(length) = far.recv(&mut buffer).await {
        drop(near.send_to(&buffer[..length], client).await);
    }
}

/// Fixes the ports of a server, so that it can be started again on them: its plain listener and its QUIC listener.
pub(crate) fn fix_ports(config: &mut Config) -> (SocketAddr, SocketAddr) {
    let (http, quic) = (super::ports::reserve(), super::ports::reserve());
    config.listen.http = chatbox::config::Address::Socket(http);
    config.listen.quic = chatbox::config::Address::Socket(quic);
    (http, quic)
}
