//! `chatbox rotate-keys`: seals everything that is stored with the first of the configured keys. Opens the store itself
//! where that is possible, beside other processes or without any; else has the process do it that has the store open.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{BadUsage, Global, ops};
use crate::{
    auth::{Role, issuer::Issuer},
    chat::UserId,
    config::{Config, generated::Secrets},
    metrics::Metrics,
    store::{
        self, OpenError, Store,
        rotation::{self, Progress, State},
        seal::PLAIN,
    },
};

/// How often the process that does it is asked how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often a line says how far it is, where nobody looks at a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Life of the token of one request.
const TOKEN_TTL: Duration = Duration::from_secs(60);

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.load_and_warn()?;
    let Some(key) = config.store.encryption_keys.first().map(|key| key.id) else {
        let advice = "put a key into `store.encryption_keys`, such as {id = 1, key = \"...\"} with what `openssl rand -base64 32` prints";
        return Err(BadUsage(format!("no encryption key is configured: {advice}")).into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let progress = runtime.block_on(async {
        match store::open(&config.store, &config.data_dir, Metrics::new()).await {
            Ok(store) => here(&*store).await,
            Err(OpenError::Locked) => there(&config, key).await,
            Err(err) => Err(anyhow::Error::from(err).context("open the store")),
        }
    })?;
    super::print(&if global.json { serde_json::to_string(&progress)? } else { text(&progress) })?;
    ensure!(progress.state == State::Done, "values of other keys are left, and those keys must stay configured");
    Ok(())
}

/// In this process.
async fn here(store: &dyn Store) -> anyhow::Result<Progress> {
    let mut shown = Shown::new();
    let rotated = rotation::rotate(store, &Metrics::new(), |progress| shown.show(progress)).await;
    shown.bar.finish_and_clear();
    store.close().await;
    rotated.context("rotate the keys")
}

/// In the process that has the store open.
async fn there(config: &Config, key: u32) -> anyhow::Result<Progress> {
    let secrets = Secrets::provide(config)?;
    let issuer = Issuer::new(&config.auth, &secrets.jwt);
    let operator = UserId::parse("rotate-keys").context("name the operator")?;
    let ask = async |method| {
        let token = issuer.issue(&operator, Role::Staff, None, TOKEN_TTL)?;
        let request = ops::Request { method, path: "/rotate-keys", token: Some(&token) };
        let answer = ops::ask(config.listen.ops, request).await.context("ask the process that has the store open")?;
        ensure!(answer.status == 200, "the process that has the store open answered {}", answer.status);
        serde_json::from_slice::<Progress>(&answer.body).context("the answer is not one of this version")
    };
    let mut shown = Shown::new();
    let mut progress = ask("POST").await?;
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    while progress.state == State::Running {
        look.tick().await;
        progress = ask("GET").await?;
        shown.show(&progress);
    }
    shown.bar.finish_and_clear();
    ensure!(progress.state != State::Failed, "the server did not rotate the keys; its log says why");
    if progress.key != key && progress.state == State::Done {
        bail!("the server seals with key {}, not with key {key}: start it again with this configuration", progress.key);
    }
    Ok(progress)
}

/// What is told while it goes on: a bar on a terminal, else a line from time to time.
struct Shown {
    bar: ProgressBar,
    told: Option<Instant>,
}

impl Shown {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(4));
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} rows {per_sec} {eta}");
        Self { bar: bar.with_style(style.unwrap_or_else(|_template| ProgressStyle::default_bar())), told: None }
    }

    fn show(&mut self, progress: &Progress) {
        self.bar.set_length(progress.rows_about.max(progress.rows));
        self.bar.set_position(progress.rows);
        self.bar.set_message(format!("pass {}", progress.pass));
        if self.bar.is_hidden() && self.told.is_none_or(|told| told.elapsed() >= LINE_INTERVAL) {
            self.told = Some(Instant::now());
            let Progress { key, pass, rows, rows_about, renewed, failed, .. } = progress;
            tracing::info!(key, pass, rows, rows_about, renewed, failed, "sealing with the current key");
        }
    }
}

fn text(progress: &Progress) -> String {
    let mut lines = vec![match progress.state {
        State::Done => format!("everything is sealed with key {}; other keys are not needed any more", progress.key),
        _ => format!("not everything is sealed with key {}", progress.key),
    }];
    lines.push(format!("values sealed anew: {}", progress.renewed));
    lines.extend(progress.values.iter().map(|(key, values)| match *key {
        PLAIN => format!("plain values: {values}"),
        key => format!("values of key {key}: {values}"),
    }));
    if progress.failed > 0 {
        lines.push(format!("values that do not open: {} (the log says which)", progress.failed));
    }
    lines.join("\n")
}
