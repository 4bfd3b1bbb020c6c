//! Peer servers in Rust, each in a process of its own: this binary started as `peers serve NAME`.
//!
//! Each does what its library's own example does and nothing more, on a runtime of one thread. Its first line on
//! standard output is its port and, where it speaks TLS, its certificate in hex. It ends when its input does.

mod axum;
mod fastwebsockets;
mod sqlite;
mod tungstenite;
mod web_transport;

use std::io::Write;

use ::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

/// Connections that the kernel may hold until they are accepted.
const BACKLOG: u32 = 1024;

/// Serves until standard input ends.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        tokio::select! {
            served = serve(name) => served,
            _ = ended => Ok(()),
        }
    });
    runtime.shutdown_background();
    result
}

async fn serve(name: &str) -> anyhow::Result<()> {
    match name {
        "fastwebsockets" => fastwebsockets::serve(listen(None)?).await,
        "SQLite" => sqlite::serve(listen(None)?).await,
        "axum" => axum::serve(listen(None)?).await,
        "tungstenite-tls" => {
            let identity = Identity::new()?;
            tungstenite::serve(listen(Some(&identity))?, identity).await
        }
        "web-transport-quinn" => web_transport::serve(Identity::new()?).await,
        other => anyhow::bail!("peer `{other}` is not one of ours"),
    }
}

fn listen(identity: Option<&Identity>) -> anyhow::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let listener = socket.listen(BACKLOG)?;
    announce(listener.local_addr()?.port(), identity)?;
    Ok(listener)
}

/// Tells whoever started this process where it is.
fn announce(port: u16, identity: Option<&Identity>) -> anyhow::Result<()> {
    let certificate = identity.map(|identity| hex::encode(&identity.certificate)).unwrap_or_default();
    Ok(writeln!(std::io::stdout(), "{port} {certificate}")?)
}

/// A self-signed certificate for loopback, ECDSA P-256, as chatbox makes itself one.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Self { certificate: made.cert.der().clone(), key })
    }
}
