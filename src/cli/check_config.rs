//! `chatbox check-config`: prints the configuration in effect.

use anyhow::Context;

use super::Global;

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let loaded = global.load()?;
    let effective = loaded.effective().context("write the configuration as TOML")?;
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    if global.json {
        return super::print(&serde_json::json!({ "config": effective, "warnings": warnings }).to_string());
    }
    let mut text = String::new();
    for warning in warnings {
        text.push_str(&format!("# warning: {warning}\n"));
    }
    text.push_str(&toml::to_string(&effective).context("write the configuration as TOML")?);
    super::print(text.trim_end())
}
