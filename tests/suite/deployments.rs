//! What `deployments/` and the Dockerfile say of the program, held against the program: keys, defaults, ports, commands,
//! times; and what they must not hold: secrets, moving versions.

mod image; // the Dockerfile, and its image as far as one can be had without a builder

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use chatbox::{
    config::{Config, secret::Secret},
    lifecycle,
};
use serde_json::json;
use tokio::time::timeout;
use toml::{Table, Value};

use crate::harness::{Client, Server, Via, client::PATIENCE, lossy::Lossy, stopwatch::Stopwatch};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The binary, with nothing in its environment but these variables.
fn check_config(variables: &[(String, String)], arguments: &[&str]) -> (Option<i32>, String) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    command.args(["check-config", "--offline"]).args(arguments).current_dir(home.path()).env_clear();
    let output = command.envs(variables.iter().cloned()).output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Lines of a file with a mark before them, without it, among those that have none.
fn unmarked(text: &str, marks: &[&str]) -> String {
    let line = |line: &str| {
        let key = |rest: &str| rest.starts_with(|first: char| first.is_ascii_lowercase()) && rest.contains(" = ");
        let set = marks.iter().find_map(|mark| line.strip_prefix(mark).filter(|rest| key(rest)));
        set.unwrap_or(line).to_owned() + "\n"
    };
    text.lines().map(line).collect()
}

fn flat(table: &Table, path: &str, into: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let path = format!("{path}{key}");
        match value {
            Value::Table(table) => flat(table, &format!("{path}."), into),
            value => drop(into.insert(path, value.clone())),
        }
    }
}

// checklist 126
#[test]
fn annotated_configuration_shows_every_default_as_it_is() {
    let text = read("deployments/chatbox.toml");
    let (mut shown, mut real) = (BTreeMap::new(), BTreeMap::new());
    flat(&unmarked(&text, &["#"]).parse().unwrap(), "", &mut shown);
    flat(&Table::try_from(Config::default()).unwrap(), "", &mut real);
    assert_eq!(shown, real);
    flat(&text.parse().unwrap(), "", &mut shown);
    assert_eq!(shown, real, "nothing is set in it");
}

#[test]
fn examples_of_the_annotated_configuration_are_accepted() {
    let home = tempfile::tempdir().unwrap();
    let text = read("deployments/chatbox.toml").replace("\"…\"", "\"9b1c7f60a4d2e8835d0f6ab7c2e49d11\"");
    let file = home.path().join("pem");
    std::fs::write(&file, "").unwrap();
    let text = unmarked(&text, &["#? ", "#"]).replace("/run/secrets/tls_cert", file.to_str().unwrap());
    let path = home.path().join("chatbox.toml");
    std::fs::write(&path, text.replace("/run/secrets/tls_key", file.to_str().unwrap())).unwrap();
    let (code, said) = check_config(&[], &["--config", path.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("audience = \"chatbox\"") && !said.contains("warning"), "{said}");
}

/// What a line of YAML sets.
fn settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(": ")).map(|(key, value)| (key, value.trim_matches('"')))
}

/// The environment of a node, as Compose gives it with these files for secrets.
fn environment(secrets: &Path) -> Vec<(String, String)> {
    let text = read("deployments/compose/compose.yaml");
    let value = |value: &str| match value.strip_prefix("${CHATBOX_PUBLIC_URL:?") {
        Some(_) => "https://chat.example.com".to_owned(),
        None => value.replace("/run/secrets", secrets.to_str().unwrap()),
    };
    let ours = settings(&text).filter(|(key, _)| key.starts_with("CHATBOX_"));
    ours.map(|(key, text)| (key.to_owned(), value(text))).collect()
}

const HEX: &str = "9b1c7f60a4d2e8835d0f6ab7c2e49d11";
const SECRETS: [(&str, &str); 7] = [
    ("store_url", "mongodb://chatbox:9b1c7f60a4d2@mongo-1,mongo-2,mongo-3/chatbox?replicaSet=chatbox&authSource=admin"),
    ("encryption_keys", r#"[{"id": 1, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]"#),
    ("bus_password", HEX),
    ("jwt_secret", HEX),
    ("cluster_secret", "c0ffee11c0de22beef3377aa5e99d00d"),
    ("tls_cert", ""),
    ("tls_key", ""),
];

/// checklist 118, 127
#[test]
fn a_node_of_the_compose_file_is_configured_without_a_fault_and_waited_for() {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in SECRETS {
        std::fs::write(home.path().join(name), text).unwrap();
    }
    let variables = [environment(home.path()), image::environment()].concat();
    assert!(variables.len() > 15, "{variables:?}");
    let (code, said) = check_config(&variables, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("# warning"), "{said}");
    let drain = said.parse::<Table>().unwrap()["drain"].clone().try_into::<lifecycle::Config>().unwrap();
    let text = read("deployments/compose/compose.yaml");
    let (_, grace) = settings(&text).find(|(key, _)| *key == "stop_grace_period").unwrap();
    let grace = humantime::parse_duration(grace).unwrap();
    assert!(grace >= drain.ends_within() && drain.delay >= Duration::from_secs(5), "{grace:?} for {drain:?}");
}

/// checklist 120, 121, 123, 146
#[test]
fn the_compose_file_holds_no_secret_and_no_moving_version() {
    let text = read("deployments/compose/compose.yaml");
    let images: Vec<_> = settings(&text).filter(|(key, _)| *key == "image").collect();
    assert_eq!(images.len(), 5, "{images:?}");
    for (_, image) in images {
        let tag = image.split_once(':').unwrap().1.trim_start_matches("${CHATBOX_VERSION:-");
        assert!(tag.starts_with(|first: char| first.is_ascii_digit()) && tag.matches('.').count() == 2, "{image}");
    }
    for (key, value) in settings(&text) {
        let secret = ["PASSWORD", "SECRET", "_KEY", "_KEYS", "TOKEN", "PASS"].iter().any(|end| key.ends_with(end));
        assert!(!secret || value.starts_with("${"), "{key}: {value}");
        let by_file = ["SECRET_FILE", "KEYS_FILE", "PASSWORD_FILE", "URL_FILE"].iter().any(|end| key.ends_with(end));
        assert!(!by_file || value.starts_with("/run/secrets/"), "{key}: {value}");
    }
    let made: Vec<_> = text.lines().skip_while(|line| *line != "secrets:").skip(1).map(str::trim).collect();
    assert_eq!(made.len(), 10, "{made:?}");
    assert!(made.iter().all(|line| line.contains("{ environment: CHATBOX_") || line.contains("{ file: \"${CHATBOX_")));
    for used in text.split("/run/secrets/").skip(1) {
        let name: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        assert!(made.iter().any(|line| line.starts_with(&format!("{name}: "))), "nothing makes {name}");
    }
}

/// Each server of the load balancer is a service, and each port one that the image serves.
#[test]
fn the_load_balancer_knows_the_nodes() {
    let (compose, nginx) = (read("deployments/compose/compose.yaml"), read("deployments/compose/nginx.conf"));
    let servers: Vec<_> = nginx.lines().filter_map(|line| line.trim().strip_prefix("server ")).collect();
    let servers: Vec<_> = servers.into_iter().filter_map(|line| line.split_once(':')).collect();
    assert_eq!(servers.len(), 3);
    for (name, rest) in servers {
        assert!(compose.contains(&format!("\n  {name}:\n")), "{name} is no service");
        assert!(rest.starts_with("8443 "), "{name}:{rest}");
    }
}

/// What the runbook says of a client whose address changes behind a load balancer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_whose_packets_reach_another_node_learns_at_once_that_its_connection_is_gone() {
    let node = async || Server::with(|config| config.cluster_secret = Some(Secret::new(HEX))).await;
    let (one, other) = (node().await, node().await);
    let (path, seen) = Lossy::before(&one).await;
    let (mut client, _watch, _status) = Client::attached(&seen, Via::WebTransport, "ann", json!({})).await;
    client.say("count to 3").await.reply().await;
    let port = other.quic_url.port().unwrap();
    path.turn_to(std::net::SocketAddr::from(([127, 0, 0, 1], port))).await;
    let turned = Stopwatch::start();
    client.say("count to 3").await;
    let Client::WebTransport(session) = client else { unreachable!("it was opened so") };
    let ended = timeout(PATIENCE, session.closed()).await.expect("long before the idle timeout");
    // Nobody has closed it with a code: its packets were answered by a reset, a minute before its idle timeout.
    assert!(matches!(&ended, web_transport_quinn::SessionError::ConnectionError(_)), "{ended}");
    println!("it learns it after {:?}", turned.elapsed());
    assert!(turned.elapsed() < Duration::from_secs(20), "{:?}", turned.elapsed());
    println!("told after {:?}", turned.elapsed());
}
