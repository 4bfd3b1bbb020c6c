//! Which addresses prompts, recordings and keys may be sent to.

use std::net::{IpAddr, Ipv4Addr};

use url::{Host, Url};

/// Refuses what a prompt and a key must not be sent to: anything but https, except inside; and the addresses at
/// which clouds hand out credentials, whatever the scheme.
pub(super) fn check(url: &Url) -> Result<(), &'static str> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no user or password; use `api_key`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must end with its path, such as `/v1`");
    }
    let Some(host) = url.host() else { return Err("has no host") };
    let (inside, metadata) = match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let local = [".local", ".internal", ".svc", ".cluster.local"].iter().any(|suffix| name.ends_with(suffix));
            let loopback = name == "localhost" || name.ends_with(".localhost");
            (local || loopback || !name.contains('.'), matches!(&*name, "metadata" | "metadata.google.internal"))
        }
        Host::Ipv4(address) => inside_and_metadata(IpAddr::V4(address)),
        Host::Ipv6(address) => inside_and_metadata(address.to_canonical()),
    };
    match url.scheme() {
        _ if metadata => Err("is an address at which a cloud hands out credentials, or of no single host"),
        "https" => Ok(()),
        "http" if inside => Ok(()),
        "http" => Err("must be https; http is for loopback, RFC 1918 addresses, names without a dot, \
                       `.local`, `.internal`, `.svc` and `.cluster.local`"),
        _ => Err("must begin with `https://`"),
    }
}

/// Whether plain http may go there, and whether nothing may.
fn inside_and_metadata(address: IpAddr) -> (bool, bool) {
    match address {
        IpAddr::V4(address) => {
            let odd = address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST;
            (address.is_loopback() || address.is_private(), odd)
        }
        IpAddr::V6(address) => {
            let aws = address.segments().starts_with(&[0xfd00, 0x0ec2]);
            let odd = aws || address.is_unicast_link_local() || address.is_unspecified() || address.is_multicast();
            (address.is_loopback(), odd)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// checklist 93
    #[test]
    fn endpoints_are_https_or_inside() {
        for accepted in [
            "https://api.openai.com/v1",
            "https://203.0.113.7:8443/v1",
            "http://127.0.0.1:11434/v1",
            "http://[::1]/v1",
            "http://[::ffff:10.1.2.3]/v1",
            "http://10.0.0.1/v1",
            "http://172.16.0.1/v1",
            "http://192.168.1.1/v1",
            "http://localhost/v1",
            "http://ollama:11434/v1",
            "http://box.local/v1",
            "http://llm.corp.internal/v1",
            "http://vllm.models.svc/v1",
            "http://vllm.models.svc.cluster.local/v1",
        ] {
            assert_eq!(check(&accepted.parse().unwrap()), Ok(()), "{accepted}");
        }
        for refused in [
            "http://api.openai.com/v1",
            "http://8.8.8.8/v1",
            "http://172.32.0.1/v1",
            "http://100.64.0.1/v1",
            "http://169.254.169.254/latest",
            "https://169.254.169.254/latest",
            "http://[::ffff:169.254.169.254]/latest",
            "http://2852039166/latest",
            "https://[fd00:ec2::254]/latest",
            "http://[fe80::1]/v1",
            "http://[fd12::1]/v1",
            "http://metadata.google.internal/v1",
            "http://METADATA.google.internal./v1",
            "http://0.0.0.0/v1",
            "http://evil.local.example.com/v1",
            "https://user:pass@api.openai.com/v1",
            "https://key@api.openai.com/v1",
            "https://api.openai.com/v1?key=1",
            "https://api.openai.com/v1#x",
            "ftp://10.0.0.1/v1",
            "file:///v1",
            "unix:/run/llm.sock",
        ] {
            assert_ne!(check(&refused.parse().unwrap()), Ok(()), "{refused}");
        }
    }
}
