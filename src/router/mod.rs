//! The use cases.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sessions of a user.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// active sessions of one user at a time
    pub active_per_user: u32,
    /// idle time after which a session ends
    #[serde(with = "crate::config::duration")]
    pub idle_end: Duration,
    /// how long a turn's lease holds without a sign of life
    #[serde(with = "crate::config::duration")]
    pub turn_lease: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { active_per_user: 1, idle_end: Duration::from_secs(24 * 3600), turn_lease: Duration::from_secs(10) }
    }
}
