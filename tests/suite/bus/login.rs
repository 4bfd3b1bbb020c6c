//! Who a node is to the server, and what happens when the server disagrees.

use std::{path::Path, process::Stdio};

use chatbox::{
    bus::{self, Config},
    config::secret::Secret,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{fs::File, io::AsyncReadExt};

use super::Node;
use crate::harness::{
    client::http,
    eventually,
    nats::Nats,
    process::Process,
    provider::{Provider, Script},
};

fn at(server: &Nats) -> Config {
    Config { url: server.url(), ..Config::default() }
}

/// Whether the server lets it in; else what is said.
async fn said(config: &Config) -> Result<(), String> {
    let probed = bus::probe(config).await.expect("a network");
    probed.map(drop).map_err(|err| format!("{:#}", anyhow::Error::from(err)))
}

#[tokio::test]
async fn tokens_and_passwords_let_a_node_in() {
    let Some(token) = Nats::with("authorization { token: \"to+ken&1\" }").await else { return };
    let user = Nats::with("authorization { user: \"node@1\", password: \"p=ss/w+rd\" }").await.expect("a server");
    let secret = |text: &str| Some(Secret::new(text));
    let by_url = |server: &Nats, login: &str| server.url().replace("nats://", &format!("nats://{login}@"));
    let named = Config { user: Some("node@1".to_owned()), password: secret("p=ss/w+rd"), ..at(&user) };
    for config in [
        Config { token: secret("to+ken&1"), ..at(&token) },
        Config { url: by_url(&token, "to+ken&1"), ..Config::default() },
        named.clone(),
        Config { url: by_url(&user, "node%401:p%3Dss%2Fw+rd"), ..Config::default() },
    ] {
        assert_eq!(config.problems(), []);
        assert_eq!(said(&config).await, Ok(()), "{config:?}");
    }
    for config in [at(&token), Config { token: secret("other"), ..at(&token) }] {
        let refused = said(&config).await.unwrap_err();
        // What follows is the library's own.
        assert!(refused.starts_with("no server of the bus lets this node in: authorization violation"), "{refused}");
    }
    Node::of(&named).await.connected().await;
}

#[tokio::test]
async fn a_user_who_may_not_use_the_prefix_is_found_out() {
    let lines = "authorization { users: [{ user: a, password: b, permissions: { publish: \"chatbox.other.>\", \
                 subscribe: \"chatbox.other.>\" } }] }";
    let Some(server) = Nats::with(lines).await else { return };
    let config = Config { user: Some("a".to_owned()), password: Some(Secret::new("b")), ..at(&server) };
    let silent = "the bus carries nothing below `chatbox.default.`: look at the permissions of its user";
    assert_eq!(said(&config).await, Err(silent.to_owned()));
    assert_eq!(said(&Config { prefix: "other".to_owned(), ..config }).await, Ok(()));
}

/// A private authority, a certificate of the server, and one of a node.
fn authority(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    for name in ["server", "node"] {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn a_private_authority_and_a_certificate_let_a_node_in() {
    let lines = "tls { cert_file: \"$DIR/server.pem\", key_file: \"$DIR/server.key\", ca_file: \"$DIR/ca.pem\", \
                 verify: true }";
    let Some(server) = Nats::prepared(lines, authority).await else { return };
    let file = |name: &str| Some(server.dir().join(name));
    let trusting = Config { tls_ca: file("ca.pem"), ..at(&server) };
    let shown = Config { tls_cert: file("node.pem"), tls_key: file("node.key"), ..trusting.clone() };
    assert_eq!(shown.problems(), []);
    assert_eq!(said(&shown).await, Ok(()));
    let insisting = Config { url: server.url().replace("nats://", "tls://"), ..shown.clone() };
    assert_eq!(said(&insisting).await, Ok(()));
    let (here, there) = (Node::of(&shown).await.connected().await, Node::of(&insisting).await.connected().await);
    here.reaches(&there).await;
    // Without a certificate, and with an authority that nobody has heard of.
    assert!(said(&trusting).await.is_err());
    let stranger = tempfile::tempdir().unwrap();
    authority(stranger.path());
    let strange = said(&Config { tls_ca: Some(stranger.path().join("ca.pem")), ..shown }).await.unwrap_err();
    assert!(strange.contains("invalid peer certificate"), "{strange}");
}

/// checklist 7, and the log of a node that is not let in: what is wrong, no secret, and it goes on trying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_is_logged_without_its_secret_and_tried_again() {
    let admit = |dir: &Path, token: &str| {
        std::fs::write(dir.join("login.conf"), format!("authorization {{ token: \"{token}\" }}")).unwrap();
    };
    let prepared = Nats::prepared("include \"login.conf\"", |dir| admit(dir, "right-token")).await;
    let Some(mut server) = prepared else { return };
    let provider = Provider::start(Script::status(500, "text/plain", "")).await;
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let url = server.url().replace("nats://", "nats://wrong-token@");
    let to = Stdio::from(std::fs::File::create(&log).unwrap());
    let node = Process::start_logged(home.path(), &provider, &[("CHATBOX_BUS__URL", url.as_str())], to).await;
    let lines = async || {
        let mut text = String::new();
        File::open(&log).await.unwrap().read_to_string(&mut text).await.unwrap();
        text
    };
    let refused = "bus refuses the login of this node, which tries again";
    eventually(refused, async || lines().await.contains(refused)).await;
    // It serves meanwhile, and is let in as soon as the server thinks better of it.
    assert_eq!(http().get(node.url.clone()).send().await.unwrap().status(), 200);
    admit(server.dir(), "wrong-token");
    server.restart().await;
    eventually("it is let in", async || lines().await.contains("bus is connected")).await;
    let text = lines().await;
    assert!(!text.contains("wrong-token"), "{text}");
    assert_eq!(text.matches("bus refuses the login").count(), 1, "{text}");
}

#[test]
fn what_is_shown_of_a_configuration_holds_no_login() {
    let urls = "nats://user:hunter2@a:4222,tls://t0ken@b,nats://c:4222";
    let config = Config { url: urls.to_owned(), token: Some(Secret::new("hunter3")), ..Config::default() };
    for shown in [format!("{config:?}"), serde_json::to_string(&config).unwrap()] {
        assert!(shown.contains("nats://***@a:4222,tls://***@b,nats://c:4222"), "{shown}");
        assert!(!shown.contains("hunter") && !shown.contains("t0ken") && !shown.contains("user:"), "{shown}");
    }
}

#[test]
fn what_cannot_be_a_bus_is_refused() {
    let of = |change: fn(&mut Config)| {
        let mut config = Config { url: "nats://127.0.0.1:4222".to_owned(), ..Config::default() };
        change(&mut config);
        config.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(of(|_| {}), Vec::<&str>::new());
    assert_eq!(of(|it| it.url = "nats://a:1, tls://[::1]:2".to_owned()), Vec::<&str>::new());
    for url in ["", "nats:", "nats://", "redis://a", "nats://a,", "nats://a/path", "nats://a?x", "localhost:4222"] {
        let problems = Config { url: url.to_owned(), ..Config::default() }.problems();
        assert_eq!(problems.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["bus.url"], "{url}");
    }
    assert_eq!(of(|it| it.prefix = "a.b".to_owned()), ["bus.prefix"]);
    assert_eq!(of(|it| it.prefix = String::new()), ["bus.prefix"]);
    assert_eq!(of(|it| it.user = Some("a".to_owned())), ["bus.password"]);
    assert_eq!(of(|it| it.password = Some(Secret::new("a"))), ["bus.user"]);
    assert_eq!(of(|it| it.tls_ca = Some("/does/not/exist".into())), ["bus.tls_ca"]);
    assert_eq!(of(|it| it.tls_cert = Some("/dev/null".into())), ["bus.tls_key"]);
    assert_eq!(
        of(|it| {
            it.token = Some(Secret::new("a"));
            it.credentials = Some("/dev/null".into());
        }),
        ["bus.url"]
    );
}
