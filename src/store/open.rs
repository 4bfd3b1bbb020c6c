//! Which store there is, and why one does not open.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Inspected, Store,
    mongo::{self, Mongo},
    seal::{self, KeyError},
    sqlite::{self, Sqlite},
};
use crate::{config::secret::REDACTED, metrics::Metrics};

/// How the URL of a shared database begins.
const MONGODB: &str = "mongodb://";
const SRV: &str = "mongodb+srv://";

/// What a URL may be.
const ACCEPTED: &str = "`sqlite:PATH`, `sqlite:` (`chatbox.db` in `data_dir`) or `mongodb://HOST[,HOST…]/DATABASE`";

/// Why a database does not open. Each text says what to do about it, or what was found.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// not a store that there is; the URL without what is secret in it
    #[error("store url `{0}` is not {ACCEPTED}")]
    Url(String),
    /// the driver does not understand the URL
    #[error("store url `{0}` is not {ACCEPTED}: {1}")]
    Mongo(String, String),
    /// names that only a DNS resolver could make hosts of
    #[error(
        "store url begins with `{SRV}`, which needs a resolver that is not built in: name the hosts, as in \
             `mongodb://HOST,HOST/DATABASE?replicaSet=NAME`"
    )]
    Srv,
    /// no server of the database answers
    #[error("no server of the database answers within {} s", .0.as_secs())]
    Silent(Duration),
    /// the keys cannot be used
    #[error(transparent)]
    Key(#[from] KeyError),
    /// the keys can be used, and are not those that the store is sealed with
    #[error(transparent)]
    Sealed(#[from] seal::check::Unreadable),
    /// the lock file is held
    #[error("it is open in another process")]
    Locked,
    /// written by a later version of chatbox
    #[error("the database has version {found}, this chatbox knows versions up to {known}")]
    Newer {
        /// version of the file
        found: usize,
        /// newest version that can be opened
        known: usize,
    },
    /// a database, but not ours
    #[error("it is the database of another program")]
    Foreign,
    /// the file system refuses
    #[error("the database's files cannot be used")]
    Io(#[source] io::Error),
    /// the database fails
    #[error("the database cannot be used")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where the store is.
#[derive(Clone, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:PATH`, relative to the working directory; `sqlite:` alone is `chatbox.db` in the data directory. Or a
    /// database that nodes share: `mongodb://HOST[,HOST…]/DATABASE`, with the driver's options
    #[serde(serialize_with = "without_secrets")]
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

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { encryption_keys, .. } = self;
        f.debug_struct("Config").field("url", &self.shown()).field("encryption_keys", encryption_keys).finish()
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
            _ if self.url.starts_with(SRV) => Err(OpenError::Srv),
            _ => Err(OpenError::Url(self.shown())),
        }
    }

    /// Where it is, for people: the file, or else the URL without what is secret in it.
    #[must_use]
    pub fn place(&self, data_dir: &Path) -> String {
        self.path(data_dir).map_or_else(|_no_file| self.shown(), |path| path.display().to_string())
    }

    /// Whether nodes share the store.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.url.starts_with(MONGODB)
    }

    /// The URL for people: who logs in, and with which password, is left out.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.url.rsplit_once('@').filter(|_login| !self.url.starts_with("sqlite:")) {
            Some((before, hosts)) => {
                let scheme = before.split_once("://").map_or("", |(scheme, _login)| scheme);
                format!("{scheme}://{REDACTED}@{hosts}")
            }
            None => self.url.clone(),
        }
    }

    /// What is wrong with the URL.
    ///
    /// # Errors
    /// It is of no store that there is.
    pub fn check(&self) -> Result<(), OpenError> {
        if self.shared() {
            mongo::check(&self.url).map_err(|why| OpenError::Mongo(self.shown(), why))
        } else {
            self.path(Path::new("")).map(drop)
        }
    }

    /// Whether the database is on another machine and takes whoever reaches it.
    #[must_use]
    pub fn without_login(&self) -> bool {
        let Some(rest) = self.url.strip_prefix(MONGODB) else { return false };
        let hosts = rest.split(['/', '?']).next().unwrap_or_default();
        let local = |host: &str| ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local));
        !hosts.contains('@') && !rest.contains("authMechanism=") && !hosts.split(',').all(local)
    }
}

fn without_secrets<S: serde::Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let config = Config { url: url.to_owned(), ..Config::default() };
    serializer.serialize_str(&config.shown())
}

/// Opens the configured store. `data_dir` is where it lies unless its URL says otherwise.
///
/// # Errors
/// The URL or a key is wrong, or the database does not open: another process has it, it is from a newer version,
/// or the file system refuses.
pub async fn open(config: &Config, data_dir: &Path, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>, OpenError> {
    let seal = seal::Seal::new(&config.encryption_keys)?;
    if config.shared() {
        return Ok(Arc::new(Mongo::open(&config.url, seal, &mongo::Options::default(), metrics).await?));
    }
    let path = config.path(data_dir)?;
    Ok(Arc::new(Sqlite::open(&path, seal, &sqlite::Options::default(), metrics)?))
}

/// Looks at the configured store, and changes nothing.
///
/// # Errors
/// Those of [`open`], but for another process that has it.
pub async fn inspect(config: &Config, data_dir: &Path) -> Result<Inspected, OpenError> {
    let seal = seal::Seal::new(&config.encryption_keys)?;
    if config.shared() {
        return mongo::inspect(&config.url, &seal).await;
    }
    sqlite::inspect::inspect(&config.path(data_dir)?, &seal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config { url: url.to_owned(), ..Config::default() }
    }

    #[test]
    fn login_is_shown_nowhere() {
        let config = config("mongodb://ada:p%40ss@db1,db2/chat?replicaSet=rs");
        for shown in [config.shown(), format!("{config:?}"), serde_json::to_string(&config).unwrap()] {
            assert!(shown.contains("mongodb://***@db1,db2/chat?replicaSet=rs"), "{shown}");
        }
        assert_eq!(Config { url: "sqlite:a@b".to_owned(), ..config }.shown(), "sqlite:a@b");
    }

    #[test]
    fn url_of_no_store_is_refused_with_what_is_accepted() {
        let refused = |url: &str| config(url).check().unwrap_err().to_string();
        assert_eq!(refused("mysql://ada:secret@db"), format!("store url `mysql://***@db` is not {ACCEPTED}"));
        assert!(refused("mongodb+srv://db").contains("name the hosts"));
        for (url, why) in [
            ("mongodb://", "the hostname cannot be empty"),
            ("mongodb:///chat", "the hostname cannot be empty"),
            ("mongodb://ada:p%40ss@", "the hostname cannot be empty"),
            ("mongodb://db:0/chat", "port"),
            ("mongodb://db/chat?tls=maybe", "tls"),
            ("mongodb://ada:p/ss@db/chat", "must be URL encoded"),
        ] {
            let told = refused(url);
            assert!(told.contains(ACCEPTED) && told.contains(why) && !told.contains("ss@"), "{told}");
        }
        assert!(config("mongodb://db/chat").check().is_ok_and(|()| config("sqlite:").check().is_ok()));
    }

    // checklist 91
    #[test]
    fn database_elsewhere_that_asks_for_no_login_is_noticed() {
        for (url, open) in [
            ("sqlite:", false),
            ("mongodb://localhost/chat", false),
            ("mongodb://127.0.0.1:1,[::1]:2/chat", false),
            ("mongodb://127.0.0.1,db/chat", true),
            ("mongodb://db", true),
            ("mongodb://ada:x@db/chat", false),
            ("mongodb://db/?authMechanism=MONGODB-X509", false),
        ] {
            assert_eq!(config(url).without_login(), open, "{url}");
        }
    }
}
