//! One address that leads to a TCP server by many connections, all of which can be cut, or held still, at once.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What becomes of the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// they pass
    Whole,
    /// connections are reset, and new ones too
    Cut,
    /// nothing passes, and nobody is told
    Still,
}

/// A link that can fail. Dropping it cuts it.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// A whole one, to whatever listens there when somebody comes.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = watch::Sender::new(State::Whole);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, state.subscribe()));
        Self { address, state, _tasks: tasks }
    }

    /// From now on.
    pub(crate) fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, state: watch::Receiver<State>) {
    let mut carried = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.expect("a client");
        let (mut cut, state) = (state.clone(), state.clone());
        carried.spawn(async move {
            tokio::select! {
                biased;
                _ = cut.wait_for(|state| *state == State::Cut) => drop(client.set_zero_linger()),
                () = carry(&mut client, server, state) => {}
            }
        });
        while carried.try_join_next().is_some() {}
    }
}

async fn carry(client: &mut TcpStream, server: SocketAddr, mut state: watch::Receiver<State>) {
    drop(state.wait_for(|state| *state != State::Still).await);
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pass(from_client, to_server, state.clone()) => {}
        () = pass(from_server, to_client, state) => {}
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        drop(state.wait_for(|state| *state != State::Still).await);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
