//! The server under test: in this process on free ports, or as the real binary that can be killed.

use std::{net::SocketAddr, ops::Deref, sync::Arc, time::Duration};

use chatbox::{
    auth::{Role, Verifier, issuer::Issuer},
    bus::{Bus, Local},
    chat::UserId,
    config::{Address, Config, secret::Secret},
    connection::Gate,
    lifecycle::Lifecycle,
    limit::Limiter,
    llm::{Kind, Models, ProviderConfig},
    metrics::Metrics,
    router::{self, Budget, Router},
    store::{
        seal::Seal,
        sqlite::{Options, Sqlite},
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use url::Url;

/// Where a server is, and what its tokens are signed with.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) quic_url: Url,
    pub(crate) certificate_sha256: String,
    pub(crate) secret: Secret,
}

/// A server in this process. It ends when this is dropped.
pub(crate) struct Server {
    pub(crate) ops: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    /// what the printed URL signs in with
    pub(crate) code: Option<String>,
    target: Target,
    lifecycle: Lifecycle,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    _dir: Option<TempDir>,
}

impl Deref for Server {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

impl Server {
    /// Starts on free ports with a data directory of its own and a demo model without pauses.
    pub(crate) async fn start() -> Self {
        Self::with(|_config| {}).await
    }

    /// Starts with a changed configuration.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut config = Self::config(dir.path());
        change(&mut config);
        let mut server = Self::run(config).await;
        server._dir = Some(dir);
        server
    }

    /// What a test server is configured with, before a test changes it.
    pub(crate) fn config(dir: &std::path::Path) -> Config {
        let mut config = Config::default();
        config.listen.http = Address::Localhost(0);
        config.listen.quic = Address::Localhost(0);
        config.listen.ops = Address::Localhost(0);
        config.data_dir = dir.join("data");
        config.tls.dir = dir.join("certs");
        config.store.url = format!("sqlite:{}", dir.join("data/chatbox.db").display());
        config.limits.messages_per_minute = 10_000;
        config.limits.requests_per_minute = 100_000;
        config.limits.connections_per_user = 1_000;
        config.limits.public_per_minute = 100_000;
        // The machine may stand still for seconds; where leases are the point, the test sets its own.
        config.sessions.turn_lease = Duration::from_secs(60);
        let mut demo = ProviderConfig::new(Kind::Demo);
        demo.pace = Some(Duration::ZERO);
        config.llm.providers.insert("demo".to_owned(), demo);
        config
    }

    /// Starts with exactly this configuration.
    pub(crate) async fn run(config: Config) -> Self {
        Self::of(chatbox::server::Server::bind(config).await.expect("bind"))
    }

    /// The same with a bus of the test's own.
    pub(crate) async fn run_with_bus(config: Config, bus: impl FnOnce(Arc<Metrics>) -> Arc<dyn Bus>) -> Self {
        Self::of(chatbox::server::Server::bind_with_bus(config, bus).await.expect("bind"))
    }

    /// The same over a store and a bus that other servers share.
    pub(crate) async fn run_over(config: Config, shared: chatbox::server::Shared) -> Self {
        Self::of(chatbox::server::Server::bind_over(config, shared).await.expect("bind"))
    }

    fn of(server: chatbox::server::Server) -> Self {
        let addresses = server.addresses().clone();
        Self {
            ops: server.ops_address().expect("ops listener"),
            metrics: Arc::clone(server.metrics()),
            code: server.url().split_once("#code=").map(|(_, code)| code.to_owned()),
            target: Target {
                url: addresses.http,
                quic_url: addresses.quic,
                certificate_sha256: addresses.certificate_sha256.unwrap_or_default(),
                secret: server.secrets().jwt.clone(),
            },
            lifecycle: server.lifecycle().clone(),
            task: Some(tokio::spawn(server.run())),
            _dir: None,
        }
    }

    /// Connections that the server holds open.
    pub(crate) fn open_connections(&self) -> i64 {
        let open = |via| self.metrics.connections_open.with_label_values(&[via]).get();
        open("webtransport") + open("websocket")
    }

    /// Waits until fewer are open.
    pub(crate) async fn connections_fall_below(&self, open: i64) {
        super::eventually("a connection ends", async || self.open_connections() < open).await;
    }

    /// Begins to end, as the first signal does.
    pub(crate) fn leave(&self) {
        self.lifecycle.leave();
    }

    /// Begins to drain, as it does by itself `drain.delay` later.
    pub(crate) fn drain(&self) {
        self.lifecycle.drain();
    }

    /// Ends at once, as the second signal has it.
    pub(crate) fn stop(&self) {
        self.lifecycle.stop();
    }

    /// Where it is.
    pub(crate) fn target(&self) -> Target {
        self.target.clone()
    }

    /// Waits until the server has ended by itself.
    pub(crate) async fn ended(mut self) -> anyhow::Result<()> {
        self.task.take().expect("runs").await.expect("no panic")
    }
}

impl Target {
    /// A token of an hour.
    pub(crate) fn token(&self, user: &str) -> String {
        self.token_for(user, Role::User, Duration::from_secs(3600))
    }

    pub(crate) fn token_for(&self, user: &str, role: Role, ttl: Duration) -> String {
        let user = UserId::parse(user).expect("user id");
        Issuer::new(&chatbox::auth::Config::default(), &self.secret).issue(&user, role, None, ttl).expect("token")
    }

    /// A token with a valid signature that ended an hour ago.
    pub(crate) fn expired_token(&self, user: &str) -> String {
        chatbox::auth::hmac::install();
        let ended = i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap() - 3600;
        let claims = serde_json::json!({"user_id": user, "exp": ended});
        let key = jsonwebtoken::EncodingKey::from_secret(self.secret.expose().as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("token")
    }

    pub(crate) fn websocket_url(&self) -> Url {
        let mut url = self.url.join("/chatbox/ws").unwrap();
        url.set_scheme("ws").unwrap();
        url
    }

    pub(crate) fn webtransport_url(&self) -> Url {
        self.quic_url.join("/chatbox/wt").unwrap()
    }

    /// A WebTransport client from the registry, which pins the server's certificate.
    pub(crate) fn webtransport(&self) -> web_transport_quinn::Client {
        let hash = hex::decode(&self.certificate_sha256).unwrap();
        web_transport_quinn::ClientBuilder::new().with_server_certificate_hashes(vec![hash]).expect("client")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

/// Has a scripted provider answer, as the only model. It is not asked for names.
pub(crate) fn openai(config: &mut Config, provider: &super::provider::Provider) {
    let mut model = ProviderConfig::new(Kind::Openai);
    model.endpoint = Some(provider.endpoint().parse().expect("endpoint"));
    model.model = Some("scripted".to_owned());
    config.sessions.model_names = false;
    config.llm.providers.clear();
    config.llm.providers.insert("scripted".to_owned(), model);
}

/// What makes connections, without a listener: over a store of its own that lives as long as the process.
pub(crate) fn gate(metrics: &Arc<Metrics>, lifecycle: &Lifecycle) -> Arc<Gate> {
    let dir = tempfile::tempdir().expect("temporary directory").keep();
    let config = Server::config(&dir);
    let limiter = Arc::new(Limiter::new(&config.limits, Arc::clone(metrics)));
    let path = config.store.path(&dir).expect("a file");
    let sqlite = Sqlite::open(&path, Seal::new(&[]).expect("no keys"), &Options::default(), Arc::clone(metrics));
    let router = Router::new(router::Parts {
        store: Arc::new(sqlite.expect("store")),
        bus: Arc::new(Local::new(Arc::clone(metrics))),
        models: Models::new(&config.llm).expect("models"),
        budget: Budget::new(&config.llm),
        limiter: Arc::clone(&limiter),
        lifecycle: lifecycle.clone(),
        metrics: Arc::clone(metrics),
        config: config.sessions.clone(),
        queued_turns: config.limits.queued_turns,
    });
    Arc::new(Gate {
        router,
        verifier: Arc::new(Verifier::new(&config.auth, &Secret::random())),
        limiter,
        lifecycle: lifecycle.clone(),
        metrics: Arc::clone(metrics),
        limits: config.limits,
    })
}
