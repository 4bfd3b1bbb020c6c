//! `chatbox check-config`: prints the configuration in effect, and asks its endpoints whether they can be used.

use anyhow::{Context, bail};
use clap::Args;

use super::Global;
use crate::{config::Loaded, llm::probe::Finding, server};

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// Ask no endpoint whether it can be used
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    let loaded = global.load()?;
    let findings = if ask.offline { Vec::new() } else { endpoints(&loaded)? };
    super::print(&if global.json { json(&loaded, &findings)? } else { text(&loaded, &findings)? })?;
    let unusable = findings.iter().filter(|finding| finding.result.is_err()).count();
    if unusable > 0 {
        bail!("{unusable} of {} endpoints cannot be used; --offline leaves them out", findings.len());
    }
    Ok(())
}

fn endpoints(loaded: &Loaded) -> anyhow::Result<Vec<Finding>> {
    let models = server::models(&loaded.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    Ok(runtime.block_on(models.probe()))
}

fn text(loaded: &Loaded, findings: &[Finding]) -> anyhow::Result<String> {
    let mut text = String::new();
    for warning in &loaded.warnings {
        text.push_str(&format!("# warning: {warning}\n"));
    }
    for finding in findings {
        text.push_str(&format!("# {finding}\n"));
    }
    let effective = loaded.effective().context("write the configuration as TOML")?;
    text.push_str(&toml::to_string(&effective).context("write the configuration as TOML")?);
    text.truncate(text.trim_end().len());
    Ok(text)
}

fn json(loaded: &Loaded, findings: &[Finding]) -> anyhow::Result<String> {
    let effective = loaded.effective().context("write the configuration as TOML")?;
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let endpoints: Vec<_> = findings
        .iter()
        .map(|finding| {
            let (endpoint, usable) = (finding.subject.to_string(), finding.result.is_ok());
            serde_json::json!({ "endpoint": endpoint, "usable": usable, "said": finding.said() })
        })
        .collect();
    Ok(serde_json::json!({ "config": effective, "warnings": warnings, "endpoints": endpoints }).to_string())
}
