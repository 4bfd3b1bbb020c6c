//! `chatbox check-config`: prints the configuration in effect, asks its endpoints whether they can be used, and the store
//! whether its keys are configured.

use anyhow::{Context, bail};
use clap::Args;

use super::Global;
use crate::{
    bus,
    config::Loaded,
    server,
    store::{self, OpenError},
};

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// Ask no endpoint whether it can be used, and do not look at the store
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    let loaded = global.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let findings = if ask.offline { Vec::new() } else { runtime.block_on(endpoints(&loaded))? };
    let sealed = if ask.offline { None } else { runtime.block_on(sealed(&loaded)) };
    let told = sealed.as_deref();
    super::print(&if global.json { json(&loaded, &findings, told)? } else { text(&loaded, &findings, told)? })?;
    if let Some(sealed) = sealed {
        bail!("the store does not open: {sealed}; --offline leaves it out");
    }
    let unusable = findings.iter().filter(|finding| !finding.usable).count();
    if unusable > 0 {
        bail!("{unusable} of {} endpoints cannot be used; --offline leaves them out", findings.len());
    }
    Ok(())
}

/// One endpoint, and whether it can be used.
struct Finding {
    endpoint: String,
    usable: bool,
    said: String,
}

async fn endpoints(loaded: &Loaded) -> anyhow::Result<Vec<Finding>> {
    let models = server::models(&loaded.config)?;
    let (models, bus) = tokio::join!(models.probe(), bus::probe(&loaded.config.bus));
    let models = models.iter().map(|model| Finding {
        endpoint: model.subject.to_string(),
        usable: model.result.is_ok(),
        said: model.said(),
    });
    let bus = bus.map(|probed| Finding {
        endpoint: "bus".to_owned(),
        usable: probed.is_ok(),
        said: probed.map_or_else(|err| format!("{:#}", anyhow::Error::from(err)), |_took| "usable".to_owned()),
    });
    Ok(models.chain(bus).collect())
}

/// Why the store cannot be read with the configured keys. What else is wrong with it, or whether there is one, is
/// `doctor`'s to say.
async fn sealed(loaded: &Loaded) -> Option<String> {
    match store::inspect(&loaded.config.store, &loaded.config.data_dir).await {
        Err(err @ OpenError::Sealed(_)) => Some(err.to_string()),
        _ => None,
    }
}

fn text(loaded: &Loaded, findings: &[Finding], sealed: Option<&str>) -> anyhow::Result<String> {
    let mut text = String::new();
    for warning in &loaded.warnings {
        text.push_str(&format!("# warning: {warning}\n"));
    }
    for finding in findings {
        text.push_str(&format!("# {}: {}\n", finding.endpoint, finding.said));
    }
    if let Some(sealed) = sealed {
        text.push_str(&format!("# store: {sealed}\n"));
    }
    let effective = loaded.effective().context("write the configuration as TOML")?;
    text.push_str(&toml::to_string(&effective).context("write the configuration as TOML")?);
    text.truncate(text.trim_end().len());
    Ok(text)
}

fn json(loaded: &Loaded, findings: &[Finding], sealed: Option<&str>) -> anyhow::Result<String> {
    let effective = loaded.effective().context("write the configuration as TOML")?;
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    let endpoints: Vec<_> = findings
        .iter()
        .map(|Finding { endpoint, usable, said }| {
            serde_json::json!({ "endpoint": endpoint, "usable": usable, "said": said })
        })
        .collect();
    let shown = serde_json::json!({
        "config": effective, "warnings": warnings, "endpoints": endpoints, "store": sealed
    });
    Ok(shown.to_string())
}
