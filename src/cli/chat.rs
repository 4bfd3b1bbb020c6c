//! `chatbox chat`: a conversation in the terminal, or line by line through pipes.

mod composer;
mod lines;
mod screen;
mod terminal;
mod transcript;

use std::{io::IsTerminal, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};
use url::{Host, Url};

use super::{BadUsage, Global, variables};
use crate::{
    auth::{Role, issuer::Issuer},
    chat::{SessionId, UserId},
    client::{Client, Open, Options, Session, Tokens, Transport},
    config::{Address, Config, environment, generated::Secrets},
};

/// How long a pipe waits for a connection. A person in a terminal sees what is going on, and leaves.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// How long a token is valid that is made here; the next one is made before it expires.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

#[derive(Args, Debug)]
pub(super) struct Ask {
    /// Where the server's routes begin, such as `https://chat.example/chatbox`; without it, the server of this
    /// configuration
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// The token to sign in with; also CHATBOX_TOKEN. Without one, a server on loopback is signed in to with the secret
    /// of this configuration
    #[arg(long)]
    token: Option<String>,
    /// Who to be, where the token is made here
    #[arg(long, value_name = "ID", default_value = "terminal", conflicts_with = "token")]
    user: String,
    /// The session to open; without it, the active one, else a new one
    #[arg(long, value_name = "ID")]
    session: Option<uuid::Uuid>,
    /// Begin another session
    #[arg(long, conflicts_with = "session")]
    new: bool,
    /// What carries the conversation
    #[arg(long, value_enum, default_value_t = Carrier::Auto)]
    transport: Carrier,
    /// SHA-256 of the server's certificate in hex, where no authority vouches for it
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    certificate_sha256: Option<[u8; 32]>,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Carrier {
    Auto,
    #[value(name = "webtransport")]
    WebTransport,
    #[value(name = "websocket")]
    WebSocket,
}

pub(super) fn run(global: &Global, ask: &Ask) -> anyhow::Result<()> {
    let options = options(global, ask)?;
    let in_terminal = !global.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let open = Open { session_id: ask.session.map(SessionId), new: ask.new, ..Open::default() };
    let result = runtime.block_on(async {
        let client = Client::new(options);
        let talked = if in_terminal {
            Box::pin(terminal::run(&client, open)).await
        } else {
            Box::pin(lines::run(&client, open, global.json)).await
        };
        client.close().await;
        talked
    });
    // A thread that waits for a key or a line must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Opens a session with a deadline.
async fn opened(client: &Client, open: Open) -> anyhow::Result<Session> {
    let session = tokio::time::timeout(CONNECT_DEADLINE, client.open(open)).await;
    session
        .map_err(|_elapsed| {
            let reason = client.status().borrow().reason.clone();
            let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            anyhow::anyhow!("no connection within {} s{why}", CONNECT_DEADLINE.as_secs())
        })?
        .context("open the session")
}

fn options(global: &Global, ask: &Ask) -> anyhow::Result<Options> {
    let given = variables().find(|(name, _)| name == environment::TOKEN).map(|(_, token)| token);
    let token = ask.token.clone().or(given).filter(|token| !token.is_empty());
    let base = match &ask.url {
        Some(url) => url.clone(),
        None => base_of(&global.load_and_warn()?)?,
    };
    if !matches!(base.scheme(), "http" | "https") {
        return Err(BadUsage(format!("`{base}` is not an address such as https://chat.example/chatbox")).into());
    }
    let tokens = match token {
        Some(token) => Tokens::fixed(token),
        None if on_loopback(&base) => own_tokens(&global.load_and_warn()?, &ask.user)?,
        None => return Err(BadUsage(format!("`{base}` wants a token: --token, or {}", environment::TOKEN)).into()),
    };
    let mut options = Options::new(base, tokens);
    options.certificate_sha256 = ask.certificate_sha256;
    options.transport = match ask.transport {
        Carrier::Auto => None,
        Carrier::WebTransport => Some(Transport::WebTransport),
        Carrier::WebSocket => Some(Transport::WebSocket),
    };
    Ok(options)
}

/// Signs tokens with the secret of this configuration, as `chatbox token` does.
fn own_tokens(config: &Config, user: &str) -> anyhow::Result<Tokens> {
    let user =
        UserId::parse(user).ok_or_else(|| BadUsage(format!("user id `{user}` is empty or longer than 255 bytes")))?;
    if !Secrets::can_sign(config) {
        let dir = config.data_dir.display();
        let message = format!("there is no secret in `{dir}` to sign a token with: run this where the server keeps it");
        return Err(BadUsage(format!("{message}, or give a --token")).into());
    }
    let secrets = Secrets::provide(config)?;
    let auth = config.auth.clone();
    // Fails here rather than in the middle of a conversation.
    Issuer::new(&auth, &secrets.jwt).issue(&user, Role::User, None, TOKEN_TTL)?;
    Ok(Tokens::from_fn(move |_refresh| {
        let token = Issuer::new(&auth, &secrets.jwt).issue(&user, Role::User, None, TOKEN_TTL).ok();
        Box::pin(std::future::ready(token))
    }))
}

fn base_of(config: &Config) -> anyhow::Result<Url> {
    if let Some(url) = &config.public_url {
        return url.join(&config.path_prefix).context("make the server's address");
    }
    let authority = match config.listen.http {
        Address::Socket(address) if !address.ip().is_unspecified() => address.to_string(),
        Address::Socket(address) => format!("localhost:{}", address.port()),
        Address::Localhost(port) => format!("localhost:{port}"),
    };
    Url::parse(&format!("http://{authority}{}", config.path_prefix)).context("make the server's address")
}

fn on_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn sha256(text: &str) -> Result<[u8; 32], BadUsage> {
    let mut sha256 = [0; 32];
    hex::decode_to_slice(text, &mut sha256)
        .map_err(|err| BadUsage(format!("`{text}` is not 64 digits of hex: {err}")))?;
    Ok(sha256)
}
