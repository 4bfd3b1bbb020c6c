//! Certificates.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Certificates.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// PEM chain; absent: a self-signed one in `dir`, on loopback only
    pub cert_file: Option<PathBuf>,
    /// PEM key
    pub key_file: Option<PathBuf>,
    /// where the self-signed certificate is kept
    pub dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { cert_file: None, key_file: None, dir: PathBuf::from("certs") }
    }
}
