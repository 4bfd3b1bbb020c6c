//! Limits: one typed method for each limited action.

use serde::{Deserialize, Serialize};

/// How much anyone may use. Every number is per node.
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
    /// connections of everyone together
    pub connections: u32,
    /// messages of one user in a minute
    pub messages_per_minute: u32,
    /// requests of one member of staff in a minute
    pub admin_per_minute: u32,
    /// unauthenticated requests from one address in a minute
    pub public_per_minute: u32,
    /// largest frame in bytes
    pub frame_bytes: usize,
    /// turns that wait behind the running one of their session
    pub queued_turns: u32,
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
            admin_per_minute: 120,
            public_per_minute: 60,
            frame_bytes: 1024 * 1024,
            queued_turns: 16,
        }
    }
}

/// STUB
#[derive(Debug)]
pub struct Limiter;
/// STUB
#[derive(Debug)]
pub struct RetryAfter(pub std::time::Duration);
/// STUB
#[derive(Debug)]
pub struct ConnectionPermit;
/// STUB
#[derive(Debug)]
pub struct UserPermit;
impl Limiter {
    /// STUB
    pub fn message(&self, _u: &crate::chat::UserId) -> Result<(), RetryAfter> {
        Ok(())
    }
    /// STUB
    pub fn public(&self, _u: std::net::IpAddr) -> Result<(), RetryAfter> {
        Ok(())
    }
    /// STUB
    pub fn connection(&self, _u: std::net::IpAddr) -> Result<ConnectionPermit, ()> {
        Ok(ConnectionPermit)
    }
    /// STUB
    pub fn user_connection(&self, _u: &crate::chat::UserId) -> Result<UserPermit, ()> {
        Ok(UserPermit)
    }
}
