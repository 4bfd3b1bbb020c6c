//! Which store there is, and why one does not open.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Inspected, Store,
    seal::{self, KeyError},
    sqlite::{self, Sqlite},
};
use crate::metrics::Metrics;

/// Why a database does not open. Each text says what to do about it, or what was found.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// not a store that there is
    #[error("store url `{0}` is not `sqlite:PATH`")]
    Url(String),
    /// the keys cannot be used
    #[error(transparent)]
    Key(#[from] KeyError),
    /// the keys can be used, and are not those that the store is sealed with
    #[error(transparent)]
    Sealed(#[from] seal::check::Unreadable),
    /// the lock file is held
    #[error("database `{}` is open in another process", .0.display())]
    Locked(PathBuf),
    /// written by a later version of chatbox
    #[error("the database has version {found}, this chatbox knows versions up to {known}")]
    Newer {
        /// version of the file
        found: usize,
        /// newest version that can be opened
        known: usize,
    },
    /// a database, but not ours
    #[error("the file is the database of another program")]
    Foreign,
    /// the file system refuses
    #[error("the database's files cannot be used")]
    Io(#[source] io::Error),
    /// the database fails
    #[error("the database cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where the store is.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:PATH`, relative to the working directory; `sqlite:` alone is `chatbox.db` in the data directory
    pub url: String,
    /// the keys that people's words are sealed with: the first one closes, all of them open. Empty: plain text
    pub encryption_keys: Vec<seal::Key>,
    /// a server that other machines can reach may keep people's words as plain text
    pub allow_plain_text: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: "sqlite:".to_owned(), encryption_keys: Vec::new(), allow_plain_text: false }
    }
}

impl Config {
    /// Where the file is.
    ///
    /// # Errors
    /// The URL names no file.
    pub fn path(&self, data_dir: &Path) -> Result<PathBuf, OpenError> {
        match self.url.strip_prefix("sqlite:") {
            Some("") => Ok(data_dir.join("chatbox.db")),
            Some(path) if !path.starts_with(':') && !path.ends_with('/') => Ok(PathBuf::from(path)),
            _ => Err(OpenError::Url(self.url.clone())),
        }
    }
}

/// Opens the configured store. `data_dir` is where it lies unless its URL says otherwise.
///
/// # Errors
/// The URL or a key is wrong, or the database does not open: another process has it, it is from a newer version,
/// or the file system refuses.
pub async fn open(config: &Config, data_dir: &Path, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>, OpenError> {
    let path = config.path(data_dir)?;
    let seal = seal::Seal::new(&config.encryption_keys)?;
    Ok(Arc::new(Sqlite::open(&path, seal, &sqlite::Options::default(), metrics)?))
}

/// Looks at the configured store, and changes nothing.
///
/// # Errors
/// Those of [`open`], but for another process that has it.
pub fn inspect(config: &Config, data_dir: &Path) -> Result<Inspected, OpenError> {
    let seal = seal::Seal::new(&config.encryption_keys)?;
    sqlite::inspect::inspect(&config.path(data_dir)?, &seal)
}
