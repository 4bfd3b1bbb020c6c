//! [`Origins`]: the pages that may talk to this server, for WebSocket, WebTransport, CORS and framing alike.

use std::{collections::BTreeSet, net::SocketAddr};

use url::Url;

use super::Config;

/// The origins that are accepted, compared as scheme, host and port (RFC 6454, section 5). Anything else is
/// refused, `null` included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origins {
    exact: BTreeSet<String>,
    parents: BTreeSet<String>,
    any: bool,
}

impl Origins {
    /// Accepts what `config` lists, the public URLs, and the names under which a browser on this machine reaches
    /// the bound addresses in `listeners`. A listed `*` counts only while every listener is on loopback.
    #[must_use]
    pub fn new(config: &Config, listeners: &[SocketAddr], public: &[&Url]) -> Self {
        let listed = config.allowed_origins.as_deref().unwrap_or_default();
        let any = listed.iter().any(|origin| origin == "*") && listeners.iter().all(|it| it.ip().is_loopback());
        let own = listeners.iter().flat_map(reached_as);
        let public = public.iter().map(ToString::to_string);
        let exact = listed.iter().cloned().chain(own).chain(public);
        Self {
            exact: exact.filter_map(|origin| normalise(&origin)).collect(),
            parents: listed.iter().filter_map(|origin| normalise(origin)).collect(),
            any,
        }
    }

    /// Whether a page of this origin, as its browser states it, may talk to this server.
    #[must_use]
    pub fn allows(&self, origin: &str) -> bool {
        self.any || (bare(origin) && normalise(origin).is_some_and(|origin| self.exact.contains(&origin)))
    }

    /// The accepted origins in their normal form, sorted; empty does not mean that nothing is accepted if a `*`
    /// is. For `frame-ancestors`.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.exact.iter().map(String::as_str)
    }

    /// The origins that are listed, in their normal form, sorted: the pages that may frame ours and talk to them.
    /// A listed `*` names nobody.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.parents.iter().map(String::as_str)
    }
}

/// Longest origin that is looked at: scheme, a host name of 253 bytes, port.
const ORIGIN_BYTES_MAX: usize = 300;

/// A browser sends no path, not even `/`, and nobody else is taken at their word.
fn bare(origin: &str) -> bool {
    origin.len() <= ORIGIN_BYTES_MAX && !origin.ends_with('/')
}

/// The origin of a URL that holds nothing but scheme, host, port and at most a path; `None` for anything else.
/// Apps have schemes of their own, such as `capacitor://localhost`.
fn normalise(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let host = url.host_str().filter(|host| !host.is_empty() && plain && url.fragment().is_none())?;
    let origin = url.origin();
    if origin.is_tuple() {
        return Some(origin.ascii_serialization());
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{}://{}{port}", url.scheme(), host.to_ascii_lowercase()))
}

/// Checks an origin as an operator writes it: `*`, or scheme, host and port, a `/` at the end allowed.
pub(crate) fn well_formed(origin: &str) -> bool {
    let bare = origin.strip_suffix('/').unwrap_or(origin);
    let path_free = bare.split_once("://").is_some_and(|(_, rest)| !rest.contains(['/', '?', '#', '*', '@']));
    origin == "*" || (path_free && normalise(origin).is_some())
}

fn reached_as(listener: &SocketAddr) -> Vec<String> {
    let port = listener.port();
    let host = match listener {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    let local = listener.ip().is_loopback() || listener.ip().is_unspecified();
    let names = if local { vec!["localhost", "127.0.0.1", "[::1]"] } else { vec![host.as_str()] };
    names.iter().flat_map(|name| [format!("http://{name}:{port}"), format!("https://{name}:{port}")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(listed: &[&str], listeners: &[&str]) -> Origins {
        let listed = listed.iter().map(ToString::to_string).collect();
        let config = Config { allowed_origins: Some(listed), ..Config::default() };
        let listeners: Vec<SocketAddr> = listeners.iter().map(|it| it.parse().unwrap()).collect();
        Origins::new(&config, &listeners, &[&"https://chat.example.org/base".parse().unwrap()])
    }

    // checklist 10
    #[test]
    fn only_the_exact_scheme_host_and_port_are_allowed() {
        let origins = origins(&["https://App.Example.com/", "capacitor://localhost"], &["127.0.0.1:8080"]);
        for allowed in [
            "https://app.example.com",
            "https://app.example.com:443",
            "https://chat.example.org",
            "capacitor://localhost",
            "http://localhost:8080",
            "http://127.0.0.1:8080",
            "https://[::1]:8080",
        ] {
            assert!(origins.allows(allowed), "{allowed}");
        }
        for refused in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.test",
            "https://evil.test/https://app.example.com",
            "https://app.example.com@evil.test",
            "https://user@app.example.com",
            "https://app.example.com/",
            "http://localhost:8081",
            "http://localhost",
            "null",
            "",
            "*",
            "file://",
            "https://",
        ] {
            assert!(!origins.allows(refused), "{refused}");
        }
    }

    // checklist 10
    #[test]
    fn a_star_counts_on_loopback_only() {
        assert!(origins(&["*"], &["127.0.0.1:1", "[::1]:1"]).allows("https://anything.test"));
        assert!(!origins(&["*"], &["127.0.0.1:1", "0.0.0.0:1"]).allows("https://anything.test"));
    }

    #[test]
    fn a_public_listener_is_reached_by_its_own_address() {
        let origins = origins(&[], &["192.0.2.7:80", "[2001:db8::7]:443"]);
        assert!(origins.allows("http://192.0.2.7"));
        assert!(origins.allows("https://[2001:db8::7]"));
        assert!(!origins.allows("http://localhost"));
    }

    #[test]
    fn operators_write_origins_without_path_and_wildcard() {
        for good in ["*", "https://a.example", "https://a.example/", "http://localhost:3000", "ionic://localhost"] {
            assert!(well_formed(good), "{good}");
        }
        for bad in ["", "a.example", "https://a.example/x", "https://*.a.example", "https://", "null", "a://b@c"] {
            assert!(!well_formed(bad), "{bad}");
        }
    }
}
