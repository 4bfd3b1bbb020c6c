//! `chatbox check-config`: prints the configuration in effect.

use anyhow::Context;

use super::Global;

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let loaded = global.load()?;
    let mut effective = loaded.effective();
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    if global.json {
        return super::print(&serde_json::json!({ "config": effective, "warnings": warnings }).to_string());
    }
    without_nulls(&mut effective);
    let mut text = String::new();
    for warning in warnings {
        text.push_str(&format!("# warning: {warning}\n"));
    }
    text.push_str(&toml::to_string(&effective).context("write the configuration as TOML")?);
    super::print(text.trim_end())
}

/// TOML has no null: a key that is not set is not there.
fn without_nulls(value: &mut serde_json::Value) {
    if let Some(table) = value.as_object_mut() {
        table.retain(|_, value| !value.is_null());
        table.values_mut().for_each(without_nulls);
    }
}
