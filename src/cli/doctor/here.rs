//! What is looked at on this machine.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::Finding;
use crate::{
    clock,
    config::Config,
    store::{self, Inspected, OpenError},
    transport::{
        bind::{self, Sockets},
        tls::validity,
    },
};

/// A certificate that nobody renews in time should be seen this long before it ends.
const CERTIFICATE_LEFT_MIN: Duration = Duration::from_secs(14 * 24 * 3600);

/// Everything in the order in which a start needs it.
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let (store, held) = store(config).await;
    let mut findings = vec![data_dir(&config.data_dir), store];
    // Held until the end, so that two listeners on one port are seen.
    let mut open = Vec::new();
    for (key, address) in config.listen.each() {
        match bind::open(address, key == "listen.quic") {
            Ok(sockets) => {
                findings.push(Finding::ok(key, format!("{address} is free")));
                open.push(sockets);
            }
            // The one that runs has its ports.
            Err(err) if held => {
                findings.push(Finding::warning(key, format!("{err:#}"), "this is so while chatbox runs"));
            }
            Err(err) => {
                let advice = format!("end what has it, or set `{key}`");
                findings.push(Finding::wrong(key, format!("{err:#}"), advice));
            }
        }
    }
    findings.extend(open.iter().find_map(receive_buffer));
    findings.push(certificate(config));
    findings
}

fn data_dir(dir: &Path) -> Finding {
    const SUBJECT: &str = "data directory";
    let shown = dir.display();
    let there = dir.ancestors().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
    let there: Option<PathBuf> = there.into_iter().find(|above| above.exists()).map(Path::to_owned);
    let place = there.unwrap_or_else(|| PathBuf::from("."));
    // It has no name, and is gone when it is closed.
    match tempfile::tempfile_in(&place) {
        Ok(_) if place == dir => Finding::ok(SUBJECT, format!("`{shown}` can be written")),
        Ok(_) => Finding::ok(SUBJECT, format!("`{shown}` is made by the first start")),
        Err(err) => Finding::wrong(
            SUBJECT,
            format!("`{}` cannot be written: {err}", place.display()),
            "let the user that runs chatbox write there, or set `data_dir`",
        ),
    }
}

/// What the store is, and whether another chatbox has it.
async fn store(config: &Config) -> (Finding, bool) {
    const SUBJECT: &str = "store";
    let shown = match config.store.path(&config.data_dir) {
        Ok(path) => format!("`{}`", path.display()),
        Err(_no_file) if config.store.shared() => format!("`{}`", config.store.shown()),
        Err(err) => return (Finding::wrong(SUBJECT, err.to_string(), "set `store.url`"), false),
    };
    match store::inspect(&config.store, &config.data_dir).await {
        Ok(Inspected::Absent) => (Finding::ok(SUBJECT, format!("{shown} is made by the first start")), false),
        Ok(Inspected::Present { version, newest }) if version == newest => {
            (Finding::ok(SUBJECT, format!("{shown} opens, version {version}")), false)
        }
        Ok(Inspected::Present { version, newest }) => {
            let found = format!("{shown} opens, version {version}, which the next start makes {newest}");
            (Finding::warning(SUBJECT, found, "keep a copy: an older chatbox will not open it any more"), false)
        }
        Ok(Inspected::Held(process)) => {
            let by = process.map_or_else(|| "another process".to_owned(), |id| format!("process {id}"));
            (Finding::warning(SUBJECT, format!("{shown} is open in {by}"), "end it before you start another"), true)
        }
        Err(err @ OpenError::Sealed(_)) => {
            let found = format!("{shown} does not open: {err}");
            (Finding::wrong(SUBJECT, found, "keep every key until `chatbox rotate-keys` has run"), false)
        }
        Err(err) => {
            let found = format!("{shown} does not open: {:#}", anyhow::Error::from(err));
            (Finding::wrong(SUBJECT, found, "restore a backup, or set `store.url`"), false)
        }
    }
}

fn receive_buffer(sockets: &Sockets) -> Option<Finding> {
    const SUBJECT: &str = "UDP receive buffer";
    let (held, wanted) = sockets.receive_bytes()?;
    if held >= wanted {
        return Some(Finding::ok(SUBJECT, format!("{held} bytes")));
    }
    Some(Finding::warning(
        SUBJECT,
        format!("{held} bytes of {wanted}: packets are lost when many clients send at once"),
        format!("sysctl -w net.core.rmem_max={wanted}"),
    ))
}

fn certificate(config: &Config) -> Finding {
    const SUBJECT: &str = "certificate";
    let (end, self_signed) = match validity::valid_until(&config.tls, config.listen.quic.loopback()) {
        Ok(Some(found)) => found,
        Ok(None) => return Finding::ok(SUBJECT, "a self-signed one is made by the first start"),
        Err(err) => {
            return Finding::wrong(SUBJECT, format!("{err:#}"), "correct `tls.cert_file` and `tls.key_file`");
        }
    };
    let found = format!("valid until {}", humantime::format_rfc3339_seconds(end));
    if self_signed {
        return Finding::ok(SUBJECT, format!("self-signed, {found}, replaced in time"));
    }
    match end.duration_since(present()) {
        Err(_) => Finding::wrong(SUBJECT, format!("was {found}"), "renew it"),
        Ok(left) if left < CERTIFICATE_LEFT_MIN => {
            Finding::warning(SUBJECT, found, "renew it: it is read again while the server runs")
        }
        Ok(_) => Finding::ok(SUBJECT, found),
    }
}

/// How many seconds this clock is ahead of another one that showed `date` just now.
pub(super) fn clock_off(date: SystemTime) -> i64 {
    let since = |moment: SystemTime| {
        let passed = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(passed.as_secs()).unwrap_or(i64::MAX)
    };
    since(present()).saturating_sub(since(date))
}

fn present() -> SystemTime {
    let ms = u64::try_from(clock::now().0).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
