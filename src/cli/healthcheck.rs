//! `chatbox healthcheck`: asks the server of this configuration, over its ops listener, whether it is ready.
//! For containers, whose image holds no other client.

use anyhow::{Context, bail};

use super::{Global, ops};

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.load_and_warn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let request = ops::Request { method: "GET", path: "/readyz", token: None };
    let status = runtime.block_on(ops::ask(config.listen.ops, request))?.status;
    if status != 200 {
        bail!("the server is not ready: /readyz answered {status}");
    }
    super::print(if global.json { r#"{"ready":true}"# } else { "ready" })
}
