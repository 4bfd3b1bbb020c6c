//! The whole server as one value: bound, run, drained. The only file that wires parts together.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{error, info, warn};
use url::Url;

use crate::{
    auth::{Verifier, dev::DevSessions, origins::Origins},
    bus::{self, Bus},
    config::{Address, Config, generated::Secrets},
    connection::Gate,
    http::{self, Addresses, links::Links},
    lifecycle::Lifecycle,
    limit::Limiter,
    llm::Models,
    metrics::Metrics,
    protocol::{CONTENT_CHARS_MAX, Limits},
    router::{self, Budget, Router},
    store::{self, Store},
    transport::{
        bind::{self, Sockets},
        quic, tcp,
        tls::Tls,
        websocket,
    },
};

/// How long clients have to read `going_away` before their connection can be closed.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long the store has to make durable what was asked of it, and providers to be told to stop.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// How long turns that were cut have to store their end, and connections to close, before they are dropped.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What the nodes of one cluster share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// the truth
    pub store: Arc<dyn Store>,
    /// the hint
    pub bus: Arc<dyn Bus>,
}

/// A server whose sockets are open. Connections wait in the kernel until [`Server::run`].
pub struct Server {
    config: Config,
    secrets: Secrets,
    parts: Arc<http::Parts>,
    tls: Tls,
    tcp: tcp::Server,
    quic: quic::Listener,
    http_sockets: Sockets,
    quic_sockets: Sockets,
    ops_sockets: Sockets,
    code: Option<String>,
}

impl Server {
    /// Opens the store and every socket. When it returns, clients can connect.
    ///
    /// # Errors
    /// When a port is taken, the store does not open, or a certificate does not load; the error says which.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let bus = bus::open(&config.bus, Arc::clone(&metrics)).await?;
        Self::opened(config, metrics, bus).await
    }

    /// The same with a bus of the caller's own.
    ///
    /// # Errors
    /// Those of [`Self::bind`].
    pub async fn bind_with_bus(config: Config, bus: impl FnOnce(Arc<Metrics>) -> Arc<dyn Bus>) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let bus = bus(Arc::clone(&metrics));
        Self::opened(config, metrics, bus).await
    }

    /// The same over a store and a bus that the caller has opened, and may share between several nodes in one process.
    ///
    /// # Errors
    /// Those of [`Self::bind`].
    pub async fn bind_over(config: Config, shared: Shared) -> anyhow::Result<Self> {
        Self::assemble(config, Metrics::new(), shared).await
    }

    async fn opened(config: Config, metrics: Arc<Metrics>, bus: Arc<dyn Bus>) -> anyhow::Result<Self> {
        let store = store::open(&config.store, &config.data_dir, Arc::clone(&metrics)).await;
        let store = store.with_context(|| format!("open the store `{}`", config.store.place(&config.data_dir)))?;
        Self::assemble(config, metrics, Shared { store, bus }).await
    }

    async fn assemble(config: Config, metrics: Arc<Metrics>, shared: Shared) -> anyhow::Result<Self> {
        let secrets = Secrets::provide(&config)?;
        let lifecycle = Lifecycle::new(&config.drain);
        let gate = gate(&config, &secrets, shared, &metrics, &lifecycle).await?;
        let tls = Tls::load(&config.tls, config.listen.quic.loopback(), Arc::clone(&metrics))?;
        let http_sockets = bind::open(config.listen.http, false).context("open `listen.http`")?;
        let mut quic_sockets = bind::open(config.listen.quic, true).context("open `listen.quic`")?;
        let ops_sockets = bind::open(config.listen.ops, false).context("open `listen.ops`")?;
        gate.router.recover().await.context("end the turns that the last run left behind")?;
        let addresses = addresses(&config, &http_sockets, &quic_sockets, tls.certificate_sha256())?;
        let bound: Vec<SocketAddr> =
            [&http_sockets, &quic_sockets].into_iter().flat_map(|s| s.addresses.clone()).collect();
        let origins = Arc::new(Origins::new(&config.auth, &bound, &[&addresses.http, &addresses.quic]));
        let dev = secrets.jwt_generated.then(|| DevSessions::new(&config.auth, &secrets.jwt));
        let code = dev.as_ref().map(DevSessions::code);
        let parts = Arc::new(http::Parts {
            prefix: config.path_prefix.clone(),
            addresses,
            origins: Arc::clone(&origins),
            dev,
            verifier: Arc::clone(&gate.verifier),
            links: Links::new(&secrets.cluster),
            documents: http::document::Documents::default(),
            router: gate.router.clone(),
            limiter: Arc::clone(&gate.limiter),
            limits: Limits {
                streams: config.limits.streams,
                frame_bytes: config.limits.frame_bytes,
                content_chars: CONTENT_CHARS_MAX,
            },
            metrics: Arc::clone(&metrics),
            lifecycle: lifecycle.clone(),
        });
        let origin_allowed: Arc<dyn Fn(&str) -> bool + Send + Sync> = Arc::new(move |origin| origins.allows(origin));
        let websocket = websocket::Endpoint {
            gate: Arc::clone(&gate),
            origin_allowed: Arc::clone(&origin_allowed),
            allow_query_token: config.auth.allow_query_token,
            metrics: Arc::clone(&metrics),
            lifecycle: lifecycle.clone(),
        };
        let app = http::routes(Arc::clone(&parts), websocket.route("/ws"));
        let quic = quic::Listener::new(quic::Parts {
            sockets: std::mem::take(&mut quic_sockets.udp),
            tls: &tls,
            cluster_secret: secrets.cluster.expose(),
            gate,
            app: app.clone(),
            prefix: &config.path_prefix,
            origin_allowed,
            lifecycle: lifecycle.clone(),
            metrics: Arc::clone(&metrics),
            connections_max: config.limits.connections,
        })?;
        let permits =
            Arc::new(Semaphore::new(usize::try_from(config.limits.connections).unwrap_or(Semaphore::MAX_PERMITS)));
        let tcp = tcp::Server { router: app, tls: None, permits, metrics, lifecycle };
        Ok(Self { config, secrets, parts, tls, tcp, quic, http_sockets, quic_sockets, ops_sockets, code })
    }

    /// The address that opens the chat page; signed in, where the local sign-in exists.
    #[must_use]
    pub fn url(&self) -> String {
        let home = self.parts.addresses.http.join(&format!("{}/", self.parts.prefix));
        let home = home.map_or_else(|_err| self.parts.addresses.http.to_string(), Into::into);
        match &self.code {
            Some(code) => format!("{home}#code={code}"),
            None => home,
        }
    }

    /// How clients reach this server.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.parts.addresses
    }

    /// Where health and metrics are.
    ///
    /// # Panics
    /// Never: a listener has an address.
    #[must_use]
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.ops_sockets.addresses.first().copied()
    }

    /// What drains and stops it.
    #[must_use]
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.parts.lifecycle
    }

    /// The secrets that it runs with, for who issues tokens beside it.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.parts.metrics
    }

    /// Serves until a drain has ended: readiness off, after `drain.delay` nothing new accepted, clients told to come
    /// back, running turns finished or interrupted at `drain.timeout`, connections closed. Every step has a deadline.
    ///
    /// # Errors
    /// When a task outlived the drain, or the store did not close in time.
    pub async fn run(self) -> anyhow::Result<()> {
        let lifecycle = self.parts.lifecycle.clone();
        let router = self.parts.router.clone();
        let drain = self.config.drain.clone();
        // Probes are answered until the very end: a node that drains is alive, and not ready.
        let ops = Lifecycle::default();
        self.serve(&ops)?;
        lifecycle.leaving().await;
        info!(
            delay_ms = drain.delay.as_millis(),
            ends_within_ms = drain.ends_within().as_millis(),
            "not ready any more"
        );
        lifecycle.drain_after_delay().await;
        info!(timeout_ms = drain.timeout.as_millis(), "draining");
        tokio::select! {
            biased;
            () = lifecycle.stopping() => warn!("stopping at once"),
            () = async {
                tokio::time::sleep(FAREWELL).await;
                if timeout(drain.timeout, router.turns_ended()).await.is_err() {
                    warn!("turns still run at the end of the drain");
                }
            } => {}
        }
        router.interrupt_all();
        if timeout(END_DEADLINE, router.turns_ended()).await.is_err() {
            error!("turns did not end; the next start ends them");
        }
        lifecycle.close();
        let closed = timeout(END_DEADLINE, lifecycle.join()).await;
        lifecycle.stop();
        if closed.is_err() {
            timeout(END_DEADLINE, lifecycle.join()).await.context("a task outlived the drain")?;
        }
        let kept = timeout(CLOSE_DEADLINE, router.close()).await;
        ops.stop();
        timeout(END_DEADLINE, ops.join()).await.context("a probe outlived the drain")?;
        kept.context("the store did not close in time")?;
        info!("stopped");
        Ok(())
    }

    fn serve(self, ops: &Lifecycle) -> anyhow::Result<()> {
        let lifecycle = self.parts.lifecycle.clone();
        let router = http::ops_routes(Arc::clone(&self.parts));
        let ops = tcp::Server { router, lifecycle: ops.clone(), ..self.tcp.clone() };
        let secure = tcp::Server { tls: Some(self.tls.tcp()), ..self.tcp.clone() };
        let listeners = [(&self.tcp, self.http_sockets), (&secure, self.quic_sockets), (&ops, self.ops_sockets)];
        for (server, sockets) in listeners {
            for socket in sockets.tcp {
                server.serve(socket).context("hand a socket to the runtime")?;
            }
        }
        let quic = self.quic;
        lifecycle.spawn(async move { quic.run().await });
        let router = self.parts.router.clone();
        lifecycle.spawn(async move {
            tokio::join!(router.sweep(), router.sweep_idle(), router.compare(), router.hear(), router.share_limits());
        });
        lifecycle.spawn(self.tls.watch(lifecycle.clone()));
        Ok(())
    }
}

async fn gate(
    config: &Config,
    secrets: &Secrets,
    shared: Shared,
    metrics: &Arc<Metrics>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Arc<Gate>> {
    if config.store.encryption_keys.is_empty() && !config.loopback() {
        error!("no encryption key is configured: what people say is stored as plain text");
    }
    if config.store.without_login() {
        error!("`store.url` names no user: whoever reaches the database reads and changes everything");
    }
    let limiter = Arc::new(Limiter::new(&config.limits, Arc::clone(metrics)));
    let Shared { store, bus } = shared;
    metrics.store_plain_text.set(config.store.encryption_keys.is_empty().into());
    let sealed = store.sealed_with().await.context("ask the store for its keys")?;
    if sealed.keys != [sealed.current] {
        warn!(current = sealed.current, keys = ?sealed.keys, "other keys are needed until `chatbox rotate-keys` has run");
    }
    let router = Router::new(router::Parts {
        store,
        bus,
        models: models(config)?,
        budget: Budget::new(&config.llm),
        limiter: Arc::clone(&limiter),
        lifecycle: lifecycle.clone(),
        metrics: Arc::clone(metrics),
        config: config.sessions.clone(),
        queued_turns: config.limits.queued_turns,
    });
    Ok(Arc::new(Gate {
        router,
        verifier: Arc::new(Verifier::new(&config.auth, &secrets.jwt)),
        limiter,
        lifecycle: lifecycle.clone(),
        metrics: Arc::clone(metrics),
        limits: config.limits.clone(),
    }))
}

/// The configured models.
///
/// # Errors
/// Everything that is wrong with their configuration, one line each.
pub fn models(config: &Config) -> anyhow::Result<Models> {
    Models::new(&config.llm).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::Error::msg(lines.join("\n"))
    })
}

fn addresses(
    config: &Config,
    http: &Sockets,
    quic: &Sockets,
    certificate_sha256: Option<String>,
) -> anyhow::Result<Addresses> {
    let own = |scheme: &str, configured: Address, sockets: &Sockets| -> anyhow::Result<Url> {
        let bound = sockets.addresses.first().context("a listener has no address")?;
        let host = match configured {
            Address::Socket(address) if !address.ip().is_unspecified() => bound.to_string(),
            _ => format!("localhost:{}", bound.port()),
        };
        Url::parse(&format!("{scheme}://{host}")).context("make an address of a listener")
    };
    Ok(Addresses {
        http: config.public_url.clone().map_or_else(|| own("http", config.listen.http, http), Ok)?,
        quic: config.public_quic_url.clone().map_or_else(|| own("https", config.listen.quic, quic), Ok)?,
        certificate_sha256,
    })
}
