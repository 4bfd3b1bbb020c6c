//! Limits: one typed method for each limited action, and how many connections there may be.
//!
//! Everything is in memory and bounded: a newcomer is never refused because others came before. What must hold for
//! several nodes together they tell each other ([`cluster`]).

pub mod cluster;
mod connections;
mod rate;

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::clock::DefaultClock;
use serde::{Deserialize, Serialize};

use crate::{
    chat::{
        UserId,
        word::{Action, Key},
    },
    metrics::Metrics,
};
use cluster::Notes;
use connections::Connections;
use rate::Rate;

/// How much anyone may use. Rates, and the connections of one user or address, are those of all nodes together.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// exchanges and watches of one user's connection at a time
    pub streams: u32,
    /// the same for staff
    pub staff_streams: u32,
    /// connections of one user
    pub connections_per_user: u32,
    /// connections from one address
    pub connections_per_address: u32,
    /// connections of everyone together, on one node
    pub connections: u32,
    /// messages of one user in a minute
    pub messages_per_minute: u32,
    /// requests of one user that are no messages, in a minute
    pub requests_per_minute: u32,
    /// requests of one member of staff in a minute
    pub admin_per_minute: u32,
    /// unauthenticated requests from one address in a minute
    pub public_per_minute: u32,
    /// largest frame in bytes
    pub frame_bytes: usize,
    /// turns that wait behind the running one of their session
    pub queued_turns: u32,
    /// how long a client may leave what waits for it unread before it counts as gone
    #[serde(with = "crate::config::duration")]
    pub write_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            streams: 4,
            staff_streams: 64,
            connections_per_user: 10,
            connections_per_address: 256,
            connections: 10_000,
            messages_per_minute: 100,
            requests_per_minute: 600,
            admin_per_minute: 120,
            public_per_minute: 60,
            frame_bytes: 1024 * 1024,
            queued_turns: 16,
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// When the same action will be allowed again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too many requests: again in {ms} ms")]
pub struct RetryAfter {
    /// milliseconds from now; at least 1
    pub ms: u64,
}

/// Which number of connections was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TooMany {
    /// `limits.connections`
    #[error("too many connections")]
    Total,
    /// `limits.connections_per_address`
    #[error("too many connections from one address")]
    Address,
    /// `limits.connections_per_user`
    #[error("too many connections of one user")]
    User,
}

/// Decides what is too much. Every refusal is counted in `refusals_total`.
#[derive(Debug)]
pub struct Limiter {
    messages: Rate<UserId, DefaultClock>,
    requests: Rate<UserId, DefaultClock>,
    admin: Rate<UserId, DefaultClock>,
    public: Rate<IpAddr, DefaultClock>,
    connections: Arc<Mutex<Connections>>,
    notes: Arc<Notes>,
    config: Config,
    metrics: Arc<Metrics>,
}

impl Limiter {
    /// Starts with everything unused.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self {
            messages: Rate::per_minute(config.messages_per_minute, DefaultClock::default()),
            requests: Rate::per_minute(config.requests_per_minute, DefaultClock::default()),
            admin: Rate::per_minute(config.admin_per_minute, DefaultClock::default()),
            public: Rate::per_minute(config.public_per_minute, DefaultClock::default()),
            connections: Arc::default(),
            notes: Arc::default(),
            config: config.clone(),
            metrics,
        }
    }

    /// One message of a user: `limits.messages_per_minute`.
    ///
    /// # Errors
    /// When the next one is allowed.
    pub fn message(&self, user: &UserId) -> Result<(), RetryAfter> {
        self.messages.take(user).inspect_err(|_| self.refused("message_rate"))?;
        self.notes.admitted(Action::Message, || Key::User(user.clone()));
        Ok(())
    }

    /// One request of a user that is no message: `limits.requests_per_minute`.
    ///
    /// # Errors
    /// When the next one is allowed.
    pub fn request(&self, user: &UserId) -> Result<(), RetryAfter> {
        self.requests.take(user).inspect_err(|_| self.refused("request_rate"))?;
        self.notes.admitted(Action::Request, || Key::User(user.clone()));
        Ok(())
    }

    /// One request of a member of staff: `limits.admin_per_minute`.
    ///
    /// # Errors
    /// When the next one is allowed.
    pub fn admin(&self, user: &UserId) -> Result<(), RetryAfter> {
        self.admin.take(user).inspect_err(|_| self.refused("admin_rate"))?;
        self.notes.admitted(Action::Admin, || Key::User(user.clone()));
        Ok(())
    }

    /// One unauthenticated request from an address: `limits.public_per_minute`.
    ///
    /// # Errors
    /// When the next one is allowed.
    pub fn public(&self, address: IpAddr) -> Result<(), RetryAfter> {
        let address = network(address);
        self.public.take(&address).inspect_err(|_| self.refused("public_rate"))?;
        self.notes.admitted(Action::Public, || Key::Address(address));
        Ok(())
    }

    /// Takes off what another node has admitted.
    fn owe(&self, action: Action, key: &Key, count: u32) {
        match (action, key) {
            (Action::Message, Key::User(user)) => self.messages.owe(user, count),
            (Action::Request, Key::User(user)) => self.requests.owe(user, count),
            (Action::Admin, Key::User(user)) => self.admin.owe(user, count),
            (Action::Public, Key::Address(address)) => self.public.owe(address, count),
            // No node of this version says so.
            (Action::Public, Key::User(_)) | (_, Key::Address(_)) => {}
        }
    }

    /// Counts a connection from an address, before anything is known of its user, until the permit is dropped.
    ///
    /// # Errors
    /// When there are too many, in total or from this address; nothing is counted then.
    pub fn connection(&self, address: IpAddr) -> Result<ConnectionPermit, TooMany> {
        let key = Key::Address(network(address));
        let mut connections = self.connections();
        if connections.total() >= self.config.connections {
            drop(connections);
            self.refused("connections");
            return Err(TooMany::Total);
        }
        let raised = connections.raise(&key, self.config.connections_per_address);
        drop(connections);
        if !raised {
            self.refused("connections_per_address");
            return Err(TooMany::Address);
        }
        Ok(ConnectionPermit { _counted: self.counted(key) })
    }

    /// Counts a connection of a user, once its token was accepted, until the permit is dropped.
    ///
    /// # Errors
    /// When the user has too many; nothing is counted then.
    pub fn user_connection(&self, user: &UserId) -> Result<UserPermit, TooMany> {
        let key = Key::User(user.clone());
        if !self.connections().raise(&key, self.config.connections_per_user) {
            self.refused("connections_per_user");
            return Err(TooMany::User);
        }
        Ok(UserPermit { _counted: self.counted(key) })
    }

    fn counted(&self, key: Key) -> Counted {
        self.notes.changed(|| key.clone());
        Counted { connections: Arc::clone(&self.connections), notes: Arc::clone(&self.notes), key }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, reason: &str) {
        self.metrics.refusals_total.with_label_values(&[reason]).inc();
    }
}

/// One counted connection; its drop ends the count, on every path.
#[derive(Debug)]
#[must_use = "the connection is counted only while the permit lives"]
pub struct ConnectionPermit {
    _counted: Counted,
}

/// One counted connection of a user; its drop ends the count, on every path.
#[derive(Debug)]
#[must_use = "the connection is counted only while the permit lives"]
pub struct UserPermit {
    _counted: Counted,
}

#[derive(Debug)]
struct Counted {
    connections: Arc<Mutex<Connections>>,
    notes: Arc<Notes>,
    key: Key,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).lower(&self.key);
        self.notes.changed(|| self.key.clone());
    }
}

/// What one subscriber holds: an IPv4 address, or the first 64 bits of an IPv6 address (RFC 6177, section 2).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(config: &Config) -> Limiter {
        Limiter::new(config, Metrics::new())
    }

    fn refusals(limiter: &Limiter, reason: &str) -> u64 {
        limiter.metrics.refusals_total.with_label_values(&[reason]).get()
    }

    fn user(name: &str) -> UserId {
        UserId::parse(name).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_user_is_limited_alone_and_refusals_are_counted() {
        let limiter = limiter(&Config { messages_per_minute: 2, ..Config::default() });
        assert_eq!([limiter.message(&user("ada")), limiter.message(&user("ada"))], [Ok(()), Ok(())]);
        let RetryAfter { ms } = limiter.message(&user("ada")).unwrap_err();
        assert!((29_000..=30_000).contains(&ms), "got {ms} ms, expected about 30000");
        assert_eq!(limiter.message(&user("bob")), Ok(()));
        assert_eq!(refusals(&limiter, "message_rate"), 1);
    }

    #[test]
    fn the_addresses_of_one_network_share_their_limit() {
        let limiter = limiter(&Config { public_per_minute: 1, ..Config::default() });
        assert_eq!(limiter.public(address("2001:db8:1:2::1")), Ok(()));
        assert_ne!(limiter.public(address("2001:db8:1:2:ffff::9")), Ok(()));
        assert_eq!(limiter.public(address("2001:db8:1:3::1")), Ok(()));
        assert_eq!(limiter.public(address("192.0.2.1")), Ok(()));
        assert_ne!(limiter.public(address("::ffff:192.0.2.1")), Ok(()));
        assert_eq!(limiter.public(address("192.0.2.2")), Ok(()));
    }

    #[test]
    fn connections_are_counted_in_total_by_address_and_by_user_until_their_permit_drops() {
        let limiter = limiter(&Config {
            connections: 3,
            connections_per_address: 2,
            connections_per_user: 1,
            ..Config::default()
        });
        let first = limiter.connection(address("192.0.2.1")).unwrap();
        let second = limiter.connection(address("192.0.2.1")).unwrap();
        assert_eq!(limiter.connection(address("192.0.2.1")).unwrap_err(), TooMany::Address);
        let third = limiter.connection(address("192.0.2.2")).unwrap();
        assert_eq!(limiter.connection(address("192.0.2.3")).unwrap_err(), TooMany::Total);
        drop((first, third));
        let fourth = limiter.connection(address("192.0.2.1")).unwrap();

        let held = limiter.user_connection(&user("ada")).unwrap();
        assert_eq!(limiter.user_connection(&user("ada")).unwrap_err(), TooMany::User);
        drop(held);
        drop(limiter.user_connection(&user("ada")).unwrap());
        drop((second, fourth));
        let connections = limiter.connections();
        assert_eq!((connections.total(), connections.all()), (0, Vec::new()));
        assert_eq!(refusals(&limiter, "connections_per_address"), 1);
    }

    // checklist W24
    #[test]
    fn refused_attempts_lock_nobody_out() {
        let limiter = limiter(&Config { connections_per_address: 1, ..Config::default() });
        let held = limiter.connection(address("192.0.2.1")).unwrap();
        for _ in 0..100 {
            assert_eq!(limiter.connection(address("192.0.2.1")).unwrap_err(), TooMany::Address);
        }
        drop(held);
        drop(limiter.connection(address("192.0.2.1")).unwrap());
        assert_eq!(limiter.connections().total(), 0);
    }
}
