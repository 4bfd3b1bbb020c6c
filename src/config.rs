//! The configuration: load, merge, validate, redact. Each section's type lives beside its user.
//!
//! One TOML file, over it the environment, over that the flags ([`load()`]); every fault is reported, not only the
//! first. Nothing else in this package reads the environment.

mod check;
pub mod duration;
pub(crate) mod environment;
pub mod fault;
pub mod generated;
mod load;
pub mod secret;
mod value;

pub use load::{Loaded, load};

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::{auth, bus, lifecycle, limit, llm, router, store, transport::tls};

/// Everything that an operator can set. `Config::default()` is a working server on loopback.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// where clients and operators connect
    pub listen: Listen,
    /// what every path of the product starts with; begins with `/`, has none at its end
    pub path_prefix: String,
    /// how clients reach `listen.http`, behind whatever stands in front; absent: from the listener
    pub public_url: Option<url::Url>,
    /// how clients reach `listen.quic`; absent: from the listener
    pub public_quic_url: Option<url::Url>,
    /// the same on all nodes and after a restart; absent: generated into `data_dir`
    pub cluster_secret: Option<secret::Secret>,
    /// where generated secrets and the embedded database live
    pub data_dir: PathBuf,
    /// who may come in
    pub auth: auth::Config,
    /// where sessions are kept
    pub store: store::Config,
    /// how nodes hear of each other
    pub bus: bus::Config,
    /// the models
    pub llm: llm::Config,
    /// how much anyone may use
    pub limits: limit::Config,
    /// certificates
    pub tls: tls::Config,
    /// sessions of a user
    pub sessions: router::Config,
    /// how the server ends
    pub drain: lifecycle::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            path_prefix: "/chatbox".to_owned(),
            public_url: None,
            public_quic_url: None,
            cluster_secret: None,
            data_dir: PathBuf::from("data"),
            auth: auth::Config::default(),
            store: store::Config::default(),
            bus: bus::Config::default(),
            llm: llm::Config::default(),
            limits: limit::Config::default(),
            tls: tls::Config::default(),
            sessions: router::Config::default(),
            drain: lifecycle::Config::default(),
        }
    }
}

impl Config {
    /// Whether only this machine can connect to any of the listeners.
    #[must_use]
    pub fn loopback(&self) -> bool {
        self.listen.each().iter().all(|(_, address)| address.loopback())
    }
}

/// The three listeners.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// plain HTTP/1.1 and HTTP/2
    pub http: Address,
    /// UDP for HTTP/3 and WebTransport, TCP for HTTP/1.1 and HTTP/2 over TLS
    pub quic: Address,
    /// health and metrics
    pub ops: Address,
}

impl Default for Listen {
    fn default() -> Self {
        Self { http: Address::Localhost(8080), quic: Address::Localhost(8443), ops: Address::Localhost(8081) }
    }
}

impl Listen {
    /// Each listener with its key.
    pub(crate) fn each(&self) -> [(&'static str, Address); 3] {
        [("listen.http", self.http), ("listen.quic", self.quic), ("listen.ops", self.ops)]
    }
}

/// Where a listener is bound. Port 0 takes any free port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// `localhost:PORT`: `[::1]` and `127.0.0.1`, on the same port
    Localhost(u16),
    /// one address; `[::]:PORT` is dual-stack
    Socket(SocketAddr),
}

impl Address {
    /// Whether only this machine can connect.
    #[must_use]
    pub fn loopback(self) -> bool {
        match self {
            Self::Localhost(_) => true,
            Self::Socket(address) => address.ip().is_loopback(),
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Localhost(port) => port,
            Self::Socket(address) => address.port(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            Self::Socket(address) => address.fmt(f),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let address = match text.strip_prefix("localhost:") {
            Some(port) => port.parse().ok().map(Self::Localhost),
            None => text.parse().ok().map(Self::Socket),
        };
        address.ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not an address (have `localhost:PORT`, `IP:PORT`, `[IP]:PORT`)"
            ))
        })
    }
}
