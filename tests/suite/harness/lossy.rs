//! A path that loses and delays UDP datagrams as a test says, and counts them.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::server::Target;

/// Carries one client's datagrams until it is dropped.
pub(crate) struct Lossy {
    pub(crate) address: SocketAddr,
    far: Arc<UdpSocket>,
    rules: Arc<Mutex<Rules>>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Rules {
    delay: Duration,
    /// one in so many towards the client is lost; 0: none
    one_in: u32,
    /// the next one towards the client whose size is within is lost
    next: Option<RangeInclusive<usize>>,
    /// once the server has answered, nothing of the client passes
    mute: bool,
    random: u32,
    passed: u64,
    lost: u64,
}

struct Held {
    due: Instant,
    bytes: Vec<u8>,
    down: bool,
}

impl Lossy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let far = UdpSocket::bind(if server.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).await.expect("a free port");
        far.connect(server).await.expect("a route");
        let address = near.local_addr().expect("an address");
        let rules = Arc::new(Mutex::new(Rules { random: 1, ..Rules::default() }));
        let far = Arc::new(far);
        let mut task = JoinSet::new();
        task.spawn(carry(near, Arc::clone(&far), Arc::clone(&rules)));
        Self { address, far, rules, _task: task }
    }

    /// From now on leads to another server of the same family.
    pub(crate) async fn turn_to(&self, server: SocketAddr) {
        self.far.connect(server).await.expect("a route");
    }

    /// A server, as it is seen through this path.
    pub(crate) async fn before(server: &Target) -> (Self, Target) {
        let port = server.quic_url.port().expect("a port");
        let path = Self::to(SocketAddr::from(([127, 0, 0, 1], port))).await;
        let mut target = server.clone();
        target.quic_url.set_host(Some("127.0.0.1")).expect("a host");
        target.quic_url.set_port(Some(path.address.port())).expect("a port");
        (path, target)
    }

    /// Holds every datagram back for so long, in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.rules().delay = delay;
    }

    /// Loses one in so many towards the client, at random from a fixed seed; 0: none.
    pub(crate) fn lose_one_in(&self, one_in: u32) {
        self.rules().one_in = one_in;
    }

    /// Loses the next datagram towards the client whose size is within.
    pub(crate) fn lose_next(&self, size: RangeInclusive<usize>) {
        self.rules().next = Some(size);
    }

    /// Passes nothing of the client on once the server has answered.
    pub(crate) fn mute(&self) {
        self.rules().mute = true;
    }

    /// Whether what `lose_next` waits for is still to come.
    pub(crate) fn waits(&self) -> bool {
        self.rules().next.is_some()
    }

    /// Datagrams towards the client: that passed, and that were lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let rules = self.rules();
        (rules.passed, rules.lost)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().expect("no panic")
    }
}

impl Rules {
    /// Whether a datagram towards the client passes.
    fn pass(&mut self, size: usize) -> bool {
        // xorshift: the same losses in every run that sends the same.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let chosen = self.next.take_if(|sizes| sizes.contains(&size)).is_some();
        let lost = chosen || (self.one_in > 0 && self.random.is_multiple_of(self.one_in));
        if lost {
            self.lost += 1
        } else {
            self.passed += 1
        }
        !lost
    }
}

async fn carry(near: UdpSocket, far: Arc<UdpSocket>, rules: Arc<Mutex<Rules>>) {
    let (mut sent, mut received) = (vec![0; 65536], vec![0; 65536]);
    let (mut client, mut answered) = (None, false);
    let mut held: VecDeque<Held> = VecDeque::new();
    loop {
        let due = held.front().map(|held| held.due);
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let Held { bytes, down, .. } = held.pop_front().expect("one is due");
                match client.filter(|_| down) {
                    Some(client) => drop(near.send_to(&bytes, client).await),
                    None => drop(far.send(&bytes).await),
                }
            }
            Ok((length, from)) = near.recv_from(&mut sent) => {
                client = Some(from);
                let rules = rules.lock().expect("no panic");
                if !(rules.mute && answered) {
                    held.push_back(Held { due: Instant::now() + rules.delay, bytes: sent[..length].to_vec(), down: false });
                }
            }
            Ok(length) = far.recv(&mut received) => {
                answered = true;
                let mut rules = rules.lock().expect("no panic");
                if rules.pass(length) {
                    let bytes = received[..length].to_vec();
                    held.push_back(Held { due: Instant::now() + rules.delay, bytes, down: true });
                }
            }
        }
    }
}
