//! `chatbox doctor`: looks for what keeps a configuration from running on this machine. Changes nothing, and says of
//! each thing that it finds what to do about it.

mod here;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::Global;
use crate::{bus, config::Loaded, llm::Failure, server};

/// How far this clock may be off those of the endpoints, in seconds: theirs tell whole seconds, and some came earlier.
const CLOCK_OFF_MAX: u64 = 60;

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// Ask no endpoint, and leave the clock out, which is compared with theirs
    #[arg(long)]
    offline: bool,
}

/// How it stands with one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// it runs, less well than it could
    Warning,
    /// it does not run
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    status: Status,
    found: String,
    /// what to do about it
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), status: Status::Ok, found: found.into(), advice: None }
    }

    fn warning(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Warning, advice: Some(advice.into()), ..Self::ok(subject, found) }
    }

    fn wrong(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Wrong, ..Self::warning(subject, found, advice) }
    }

    fn line(&self) -> String {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Wrong => "WRONG",
        };
        let advice = self.advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!("{status:<8} {}: {}{advice}", self.subject, self.found)
    }
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    let findings = examine(global, ask)?;
    let wrong = findings.iter().filter(|finding| finding.status == Status::Wrong).count();
    super::print(&if global.json {
        serde_json::json!({ "healthy": wrong == 0, "findings": findings }).to_string()
    } else {
        findings.iter().map(Finding::line).collect::<Vec<_>>().join("\n")
    })?;
    if wrong > 0 {
        bail!("{wrong} of {} things are wrong", findings.len());
    }
    Ok(())
}

fn examine(global: &Global, ask: &Ask) -> anyhow::Result<Vec<Finding>> {
    let loaded = match global.load() {
        Ok(loaded) => loaded,
        // Without a configuration there is nothing else to look at.
        Err(faults) => {
            let wrong = faults.0.iter().map(|fault| Finding::wrong("configuration", fault.to_string(), "correct it"));
            return Ok(wrong.collect());
        }
    };
    let mut findings = configuration(&loaded);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    findings.extend(runtime.block_on(here::examine(&loaded.config)));
    if !ask.offline {
        findings.extend(runtime.block_on(endpoints(&loaded))?);
    }
    Ok(findings)
}

fn configuration(loaded: &Loaded) -> Vec<Finding> {
    let warning = |warning: &crate::config::fault::Warning| {
        Finding::warning("configuration", warning.to_string(), "it works until then")
    };
    let warnings: Vec<_> = loaded.warnings.iter().map(warning).collect();
    if warnings.is_empty() { vec![Finding::ok("configuration", "no fault")] } else { warnings }
}

async fn endpoints(loaded: &Loaded) -> anyhow::Result<Vec<Finding>> {
    let models = server::models(&loaded.config)?;
    let (asked, bus) = tokio::join!(models.probe(), bus::probe(&loaded.config.bus));
    let mut findings: Vec<_> = bus.into_iter().map(bus_finding).collect();
    for finding in &asked {
        let (subject, said) = (finding.subject.to_string(), finding.said());
        findings.push(match &finding.result {
            Ok(_) => Finding::ok(subject, said),
            Err(err) => Finding::wrong(subject, said, advice(err.failure)),
        });
    }
    let dates = asked.iter().filter_map(|finding| finding.result.as_ref().ok()?.date);
    findings.extend(dates.map(here::clock_off).max_by_key(|off| off.unsigned_abs()).map(clock));
    Ok(findings)
}

fn bus_finding(probed: Result<Duration, bus::nats::Error>) -> Finding {
    match probed {
        Ok(took) => Finding::ok("bus", format!("a message came back in {:.1} ms", took.as_secs_f64() * 1000.0)),
        Err(err) => Finding::warning(
            "bus",
            format!("{:#}", anyhow::Error::from(err)),
            "until it is reached, nodes see some seconds later what happens on others",
        ),
    }
}

const fn advice(failure: Failure) -> &'static str {
    match failure {
        Failure::Unreachable => "check its endpoint, the names that this machine resolves, and what it lets out",
        Failure::Busy { .. } => "ask again later, or look at its vendor's status",
        Failure::Late => "check what is between here and there, or ask again later",
        Failure::Broken => "check that its endpoint and type belong together",
        _ => "check its endpoint, api_key and model",
    }
}

/// What the difference to an endpoint's clock means; positive: this clock is ahead.
fn clock(off: i64) -> Finding {
    let seconds = off.unsigned_abs();
    let found = match off {
        0 => "as that of the endpoints".to_owned(),
        1.. => format!("{seconds} s ahead of that of an endpoint"),
        _ => format!("{seconds} s behind that of an endpoint"),
    };
    if seconds <= CLOCK_OFF_MAX {
        return Finding::ok("clock", found);
    }
    Finding::wrong("clock", found, "set it by NTP: tokens and certificates are judged by it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_a_minute_off() {
        for (off, line) in [
            (0, "ok       clock: as that of the endpoints"),
            (60, "ok       clock: 60 s ahead of that of an endpoint"),
            (
                -61,
                "WRONG    clock: 61 s behind that of an endpoint; set it by NTP: tokens and certificates are judged by it",
            ),
        ] {
            assert_eq!(clock(off).line(), line);
        }
    }
}
