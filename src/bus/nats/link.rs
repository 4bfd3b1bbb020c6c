//! The connection: how it is made, who the node is to the server, and whether it can be used at all.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::wire::Subjects;
use crate::{
    bus::config::{Config, Login},
    config::secret::random_bytes,
};

/// Why the bus cannot be opened or reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the configuration is wrong
    #[error("`{key}` {problem}")]
    Config {
        /// which key
        key: &'static str,
        /// what is wrong with it
        problem: String,
    },
    /// the file with the credentials does not hold any
    #[error("`bus.credentials` = `{0}` cannot be used")]
    Credentials(PathBuf, #[source] std::io::Error),
    /// no server lets the node in
    #[error("no server of the bus lets this node in")]
    Refused(#[source] async_nats::ConnectError),
    /// the connection ended while it was tried
    #[error("the bus ended the connection")]
    Ended,
    /// what was sent did not come back
    #[error("the bus carries nothing below `{0}.`: look at the permissions of its user")]
    Silent(String),
}

/// How long a server may take to let the node in.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long the message of a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// A server that has said nothing is asked this often; the third question without an answer ends the connection.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Longest pause between two attempts.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The pause before the first attempt, at most, so that not all nodes come back at once.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Commands that wait for the connection. Each may hold a payload.
const COMMANDS: usize = 256;

/// Messages of one topic that wait for its listener.
pub(super) const TOPIC_MESSAGES: usize = 256;

/// A connection that is made in the background, and made again for ever. `told` hears what becomes of it.
///
/// # Errors
/// When the configuration cannot be used; not when no server is reached.
pub(super) async fn open<F>(config: &Config, told: impl Fn(Event) -> F + Send + Sync + 'static) -> Result<Client, Error>
where
    F: Future<Output = ()> + Send + Sync + 'static,
{
    let options = options(config).await?.no_echo().retry_on_initial_connect().event_callback(told);
    options.connect(servers(config)?).await.map_err(Error::Refused)
}

/// Connects once and sends itself a message; how long that took.
///
/// # Errors
/// When no server lets the node in, or the message does not come back.
pub(super) async fn probe(config: &Config) -> Result<Duration, Error> {
    let client = options(config).await?.connect(servers(config)?).await.map_err(Error::Refused)?;
    let subject = format!("{}.{}", Subjects::new(&config.prefix).inbox(), uuid::Uuid::now_v7());
    let mut subscriber = client.subscribe(subject.clone()).await.map_err(|_gone| Error::Ended)?;
    let sent = Instant::now();
    client.publish(subject, "probe".into()).await.map_err(|_gone| Error::Ended)?;
    match timeout(PROBE_DEADLINE, subscriber.next()).await {
        Ok(Some(_)) => Ok(sent.elapsed()),
        Ok(None) => Err(Error::Ended),
        Err(_late) => Err(Error::Silent(format!("chatbox.{}", config.prefix))),
    }
}

async fn options(config: &Config) -> Result<ConnectOptions, Error> {
    // Fails when the process has one already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut options = ConnectOptions::new()
        .name("chatbox")
        .connection_timeout(CONNECT_DEADLINE)
        .ping_interval(PING_INTERVAL)
        .client_capacity(COMMANDS)
        .subscription_capacity(TOPIC_MESSAGES)
        .reconnect_delay_callback(pause);
    options = match config.login().map_err(|(key, problem)| Error::Config { key, problem })? {
        Login::Nobody => options,
        Login::Token(token) => options.token(token.expose().to_owned()),
        Login::User(user, password) => options.user_and_password(user, password.expose().to_owned()),
        Login::Credentials(path) => {
            options.credentials_file(&path).await.map_err(|err| Error::Credentials(path, err))?
        }
    };
    if let Some(ca) = &config.tls_ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

fn servers(config: &Config) -> Result<Vec<ServerAddr>, Error> {
    let wrong = |problem| Error::Config { key: "bus.url", problem };
    let servers = config.servers().map_err(wrong)?;
    servers.into_iter().map(|url| ServerAddr::from_url(url).map_err(|err| wrong(err.to_string()))).collect()
}

/// Doubles from attempt to attempt, and is half or more of what it may be.
fn pause(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let most = (RECONNECT_PAUSE_MIN * 2_u32.pow(doublings)).min(RECONNECT_PAUSE_MAX);
    let [random] = random_bytes::<1>();
    let least = if attempts <= 1 { Duration::ZERO } else { most / 2 };
    least + (most - least) * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_and_stay_there() {
        for (attempts, least, most) in [(0, 0, 100), (1, 0, 100), (2, 100, 200), (4, 400, 800), (6, 1000, 2000)] {
            for _ in 0..64 {
                let pause = pause(attempts).as_millis();
                assert!((least..=most).contains(&pause), "attempt {attempts}: {pause} ms");
            }
        }
        assert!((1000..=2000).contains(&pause(usize::MAX).as_millis()));
    }
}
