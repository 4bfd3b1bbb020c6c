//! `chatbox serve`: runs the server until it is told to end.

use anyhow::Context;

use super::Global;
use crate::{config::Config, lifecycle, server::Server};

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.load_and_warn()?;
    lifecycle::log_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let served = runtime.block_on(serve(config, global.json));
    // What the drain left behind was told to stop, and is dropped here without waiting for it.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config, json: bool) -> anyhow::Result<()> {
    let server = Server::bind(config).await.context("start the server")?;
    let url = server.url();
    // The one line that a person or a script waits for. Nobody has to read it for the server to run.
    drop(super::print(&if json { serde_json::json!({ "url": url }).to_string() } else { url }));
    server.run().await
}
