//! [`Config`]: how nodes hear of each other.

use std::{fmt, fs::File, path::PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use crate::config::secret::{REDACTED, Secret};

/// How nodes hear of each other.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `local`: within this process; `nats://HOST:PORT`, or several with `,` between them: over NATS. With `tls://`
    /// the connection is refused where the server has no TLS
    #[serde(serialize_with = "redacted")]
    pub url: String,
    /// nodes with other prefixes are not heard: 1 to 64 letters, digits, `-`, `_`
    pub prefix: String,
    /// the server's token
    pub token: Option<Secret>,
    /// a user of the server, with `password`
    pub user: Option<String>,
    /// its password
    pub password: Option<Secret>,
    /// a file with a JWT and an NKEY, as `nsc` writes it; read once, at the start
    pub credentials: Option<PathBuf>,
    /// who signs the server's certificate, in PEM; absent: those whom the system trusts
    pub tls_ca: Option<PathBuf>,
    /// the certificate that this node shows, in PEM, with `tls_key`
    pub tls_cert: Option<PathBuf>,
    /// its key, in PEM
    pub tls_key: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: LOCAL.to_owned(),
            prefix: "default".to_owned(),
            token: None,
            user: None,
            password: None,
            credentials: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

const LOCAL: &str = "local";

/// Longest `prefix`, in bytes.
const PREFIX_BYTES_MAX: usize = 64;

/// Who the node is to the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Login {
    Nobody,
    Token(Secret),
    User(String, Secret),
    Credentials(PathBuf),
}

impl Config {
    /// Whether everything stays within this process.
    #[must_use]
    pub fn local(&self) -> bool {
        self.url == LOCAL
    }

    /// What is wrong with it: the key, and what is accepted.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if !self.local() {
            problems.extend(self.servers().err().map(|problem| ("bus.url", problem)));
            problems.extend(self.login().err());
        }
        let letters = self.prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if !letters || !(1..=PREFIX_BYTES_MAX).contains(&self.prefix.len()) {
            let have = format!("1 to {PREFIX_BYTES_MAX} letters, digits, `-`, `_`");
            problems.push(("bus.prefix", format!("`{}` is not accepted (have {have})", self.prefix)));
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            let missing = if self.tls_cert.is_some() { "bus.tls_key" } else { "bus.tls_cert" };
            problems.push((missing, "is missing: certificate and key go together".to_owned()));
        }
        let files = [
            ("bus.credentials", &self.credentials),
            ("bus.tls_ca", &self.tls_ca),
            ("bus.tls_cert", &self.tls_cert),
            ("bus.tls_key", &self.tls_key),
        ];
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            let unreadable = File::open(path).err();
            problems.extend(unreadable.map(|err| (key, format!("cannot open `{}`: {err}", path.display()))));
        }
        problems
    }

    /// What is odd about it.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Ok(servers) = self.servers() else { return Vec::new() };
        let open = servers.iter().find(|server| !loopback(server));
        let anybody = open.filter(|_| self.login() == Ok(Login::Nobody) && self.tls_cert.is_none());
        let warning = anybody.map(|_| "`bus.url` has no credentials: whoever reaches the bus can read and write chats");
        warning.map(str::to_owned).into_iter().collect()
    }

    /// The servers, without users and passwords.
    ///
    /// # Errors
    /// What is wrong with `url`, and what is accepted.
    pub(super) fn servers(&self) -> Result<Vec<Url>, String> {
        self.urls()?.into_iter().map(|url| without_login(url).ok_or_else(not_a_bus)).collect()
    }

    /// Who the node is to the servers: from the keys, or from the first URL that names somebody.
    ///
    /// # Errors
    /// The key that is wrong, and why.
    pub(super) fn login(&self) -> Result<Login, (&'static str, String)> {
        let named = self.urls().unwrap_or_default().into_iter().find(|url| !url.username().is_empty());
        let given = [self.token.is_some(), self.user.is_some(), self.credentials.is_some(), named.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            let have = "`bus.token`, `bus.user` with `bus.password`, `bus.credentials`, or a user in `bus.url`";
            return Err(("bus.url", format!("more than one login is given (have one of {have})")));
        }
        if self.user.is_some() != self.password.is_some() {
            let missing = if self.user.is_some() { "bus.password" } else { "bus.user" };
            return Err((missing, "is missing: user and password go together".to_owned()));
        }
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            return Ok(Login::User(user.clone(), password.clone()));
        }
        if let Some(url) = named {
            let user = plain(url.username());
            return Ok(match url.password() {
                Some(password) => Login::User(user, Secret::new(plain(password))),
                None => Login::Token(Secret::new(user)),
            });
        }
        let token = self.token.clone().map(Login::Token);
        Ok(token.or_else(|| self.credentials.clone().map(Login::Credentials)).unwrap_or(Login::Nobody))
    }

    fn urls(&self) -> Result<Vec<Url>, String> {
        let parsed = |text: &str| {
            let url = Url::parse(text.trim()).ok()?;
            let accepted =
                matches!(url.scheme(), "nats" | "tls") && url.host_str().is_some_and(|host| !host.is_empty());
            (accepted && matches!(url.path(), "" | "/") && url.query().is_none()).then_some(url)
        };
        self.url.split(',').map(|text| parsed(text).ok_or_else(not_a_bus)).collect()
    }
}

fn not_a_bus() -> String {
    let have = "`local`, `nats://HOST:PORT`, `tls://HOST:PORT`, or several with `,` between them";
    format!("is not a bus of this version (have {have})")
}

fn without_login(mut url: Url) -> Option<Url> {
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

/// A user or password of a URL without its percent-encoding. Of what forms treat otherwise, URLs encode all but these.
fn plain(text: &str) -> String {
    let escaped = text.replace('+', "%2B").replace('&', "%26");
    url::form_urlencoded::parse(escaped.as_bytes()).map(|(name, _)| name.into_owned()).collect()
}

fn loopback(url: &Url) -> bool {
    match url.host() {
        // The host of a URL whose scheme is not a browser's is not parsed as an address.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The URLs without what must not be shown.
fn shown(urls: &str) -> String {
    let shown = |text: &str| match Url::parse(text.trim()) {
        Ok(url) if url.username().is_empty() && url.password().is_none() => text.to_owned(),
        Ok(url) => without_login(url)
            .map_or_else(|| REDACTED.to_owned(), |url| url.as_str().replacen("://", &format!("://{REDACTED}@"), 1)),
        Err(_) if text.contains('@') => REDACTED.to_owned(),
        Err(_) => text.to_owned(),
    };
    urls.split(',').map(shown).collect::<Vec<_>>().join(",")
}

fn redacted<S: Serializer>(urls: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(urls))
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("url", &shown(&self.url)).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
