//! `chatbox serve`: runs the server until it is told to end.

use std::{
    backtrace::Backtrace,
    future,
    io::{self, sink, stdin},
};

use anyhow::Context;
use clap::Args;
use prometheus::IntCounter;

use super::Global;
use crate::{
    config::Config,
    lifecycle::{self, Lifecycle},
    server::Server,
};

#[derive(Args, Default, Debug)]
pub(super) struct Ask {
    /// Stop at once when standard input ends: whoever started the server is gone then, even when it was killed
    #[arg(long, hide = true)]
    until_input_ends: bool,
}

pub(super) fn run(global: &Global, ask: &Ask, dropped: &IntCounter) -> anyhow::Result<()> {
    let config = global.load_and_warn()?;
    log_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let served = runtime.block_on(serve(config, ask, global.json, dropped));
    // What the drain left behind was told to stop, and is dropped here without waiting for it.
    runtime.shutdown_background();
    served
}

async fn serve(config: Config, ask: &Ask, json: bool, dropped: &IntCounter) -> anyhow::Result<()> {
    let server = Server::bind(config).await.context("start the server")?;
    server.metrics().add(Box::new(dropped.clone()))?;
    if ask.until_input_ends {
        server.lifecycle().spawn(until_input_ends(server.lifecycle().clone()));
    }
    let signals = lifecycle::signals(server.lifecycle()).context("listen for signals")?;
    let url = server.url();
    // The one line that a person or a script waits for. Nobody has to read it for the server to run.
    drop(super::print(&if json { serde_json::json!({ "url": url }).to_string() } else { url }));
    tokio::select! {
        biased;
        served = server.run() => served,
        // After the second signal the server still has to close what it holds.
        served = async { signals.await; future::pending().await } => served,
    }
}

async fn until_input_ends(lifecycle: Lifecycle) {
    // It waits for ever when nothing ends; nobody waits for it.
    let read = tokio::task::spawn_blocking(|| io::copy(&mut stdin().lock(), &mut sink()));
    tokio::select! {
        biased;
        () = lifecycle.stopping() => {}
        _ended = read => lifecycle.stop(),
    }
}

/// From now on a panic is an error in the log, with place and stack. It still unwinds its task, which its owner
/// counts, and the process goes on. Its message is logged: ours come from code, not from clients.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("(no text)");
        let stack = Backtrace::force_capture();
        tracing::error!(place, message, %stack, "panic");
    }));
}
