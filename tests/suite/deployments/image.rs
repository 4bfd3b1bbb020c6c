use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::read;

/// What the image sets for whatever runs in it.
pub(super) fn environment() -> Vec<(String, String)> {
    let text = read("Dockerfile");
    let set = text.split_whitespace().filter_map(|word| word.strip_prefix("CHATBOX_")?.split_once('='));
    set.map(|(key, value)| (format!("CHATBOX_{key}"), value.to_owned())).collect()
}

/// What an instruction is given, continuation lines included.
fn instruction(name: &str) -> Vec<String> {
    let text = read("Dockerfile").replace("\\\n", " ");
    let given = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
    given.collect()
}

// checklist 122, 127, 140, 146
#[test]
fn the_image_says_what_the_program_is() {
    let from = instruction("FROM");
    let rust = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), ".0-slim-bookworm AS build");
    assert_eq!(from, [rust, "scratch"]);
    assert_eq!(instruction("USER"), ["10001:10001"], "no name is known in there");
    assert_eq!(
        (instruction("VOLUME"), instruction("ENTRYPOINT")),
        (vec!["/data".into()], vec!["[\"/chatbox\"]".into()])
    );
    let variables = environment();
    for (key, value) in &variables {
        assert!(!["SECRET", "KEY", "PASSWORD", "TOKEN"].iter().any(|word| key.contains(word)), "{key}={value}");
    }
    let port = |listener: &str| {
        let key = format!("CHATBOX_LISTEN__{listener}");
        let address = &variables.iter().find(|(name, _)| *name == key).unwrap().1;
        address.rsplit_once(':').unwrap().1.to_owned()
    };
    let (http, quic, ops) = (port("HTTP"), port("QUIC"), port("OPS"));
    assert_eq!(instruction("EXPOSE"), [format!("{http}/tcp {quic}/tcp {quic}/udp {ops}/tcp")]);
    let health = instruction("HEALTHCHECK").remove(0);
    assert!(health.ends_with("CMD [\"/chatbox\", \"healthcheck\"]"), "{health}");
    assert!(
        Command::new(env!("CARGO_BIN_EXE_chatbox")).args(["healthcheck", "--help"]).output().unwrap().status.success()
    );
}

/// Files that are compiled in must be among those that the image is built from.
#[test]
fn what_the_image_is_built_from_is_all_that_the_program_needs() {
    let copied: Vec<_> = instruction("COPY").into_iter().filter(|copy| !copy.starts_with("--from")).collect();
    assert_eq!(copied, ["Cargo.toml Cargo.lock ./", ".cargo .cargo", "src src"]);
    let allowed: Vec<_> =
        read(".dockerignore").lines().filter_map(|line| line.strip_prefix('!')).map(str::to_owned).collect();
    assert_eq!(allowed, ["Cargo.toml", "Cargo.lock", "src", ".cargo"]);
    let outside =
        Command::new("grep").args(["-rnE", r#"include_(str|bytes)!\(.*\.\./\.\./\.\./"#, "src"]).output().unwrap();
    assert_eq!(String::from_utf8(outside.stdout).unwrap(), "");
}

/// Copies the binary and the libraries that it names to where the image has them.
fn root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    let binary = env!("CARGO_BIN_EXE_chatbox");
    let named = String::from_utf8(Command::new("ldd").arg(binary).output().unwrap().stdout).unwrap();
    let libraries = named.split_whitespace().filter(|word| word.starts_with('/'));
    for (from, to) in libraries.map(|path| (path, path)).chain([(binary, "/chatbox")]) {
        let to = root.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
    for made in ["data", "dev", "tmp"] {
        std::fs::create_dir(root.join(made)).unwrap();
    }
    root
}

/// Runs the binary as the image does: nothing else in its root, which is read-only, as its user, without capabilities.
fn inside(root: &Path, command: &str) -> Output {
    let enter = format!(
        "set -eu; mount -o bind '{root}' '{root}'; mount -o bind '{root}/data' '{root}/data'; \
         mount -o remount,bind,ro '{root}'; {command}",
        root = root.display()
    );
    Command::new("unshare").args(["--mount", "--net", "sh", "-c", &enter]).output().unwrap()
}

// checklist 135
#[test]
fn the_program_runs_with_nothing_but_itself_in_a_read_only_root_as_another_user() {
    let home = tempfile::tempdir().unwrap();
    let may = Command::new("unshare").args(["--mount", "--net", "true"]).output().is_ok_and(|ran| ran.status.success());
    if !may {
        println!("skipped: no namespaces of our own");
        return;
    }
    let root = root(home.path());
    std::os::unix::fs::chown(root.join("data"), Some(10_001), Some(10_001)).unwrap();
    let run = format!(
        "ip link set lo up; run='env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin CHATBOX_DATA_DIR=/data CHATBOX_TLS__DIR=/data/certs chroot --userspec=10001:10001 \
         {root}'; $run /chatbox serve > {home}/url & server=$!; \
         for _ in $(seq 1000); do $run /chatbox healthcheck && break; kill -0 $server; done; \
         $run /chatbox doctor --offline; kill $server; wait $server; echo ended $?",
        root = root.display(),
        home = home.path().display()
    );
    let output = inside(&root, &run);
    let (said, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(said.contains("\nready\n") || said.starts_with("ready\n"), "{said}{log}");
    assert!(said.ends_with("ended 0\n"), "{said}{log}");
    let url = std::fs::read_to_string(home.path().join("url")).unwrap();
    assert!(url.starts_with("http://localhost:8080/chatbox/"), "{url}{log}");
    let kept = root.join("data/chatbox.db").metadata().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&kept), 10_001);
    assert!(said.contains("ok       data directory: `/data` can be written"), "{said}");
}
