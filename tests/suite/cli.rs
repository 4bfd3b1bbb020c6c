//! The binary: commands, output, exit codes.

mod doctor; // what `check-config` and `doctor` find, and what they say about it

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use chatbox::{
    auth::{Role, Verifier},
    config::{Config, generated::Secrets},
};

/// The binary in an empty directory, with no environment but what a test adds.
fn chatbox(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbox"));
    command.args(arguments).current_dir(home).env_clear().stdin(Stdio::null());
    command
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

#[test]
fn a_token_without_any_configuration_is_one_that_the_server_accepts() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["token", "--user", "ada", "--role", "chat_admin", "--name", "Ada L.", "--ttl", "5m"];
    let ended = run(&mut chatbox(home.path(), &arguments));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let config = Config { data_dir: home.path().join("data"), ..Config::default() };
    let secrets = Secrets::provide(&config).unwrap();
    let principal = Verifier::new(&config.auth, &secrets.jwt).verify(ended.stdout.trim_end()).unwrap();
    assert_eq!((principal.user_id.as_str(), principal.name.as_str(), principal.role), ("ada", "Ada L.", Role::Staff));

    let ended = run(&mut chatbox(home.path(), &["--json", "token", "--user", "bob"]));
    let printed: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let principal = Verifier::new(&config.auth, &secrets.jwt).verify(printed["token"].as_str().unwrap()).unwrap();
    assert_eq!((principal.user_id.as_str(), principal.role), ("bob", Role::User));
}

#[test]
fn bad_usage_ends_with_64_and_help_with_0() {
    let home = tempfile::tempdir().unwrap();
    for arguments in [
        &["nonsense"][..],
        &["--nonsense"],
        &["token"],
        &["token", "--user", ""],
        &["token", "--user", "ada", "--ttl", "soon"],
        &["token", "--user", "ada", "--ttl", "0s"],
        &["token", "--user", "ada", "--role", "king"],
        &["--set", "limits.streams", "check-config"],
        &["--set", "limits.streams=0", "check-config"],
        &["--config", "missing.toml", "serve"],
        &["--config", "missing.toml"],
        &["--log", "a=b=c", "check-config"],
    ] {
        let ended = run(&mut chatbox(home.path(), arguments));
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(ended.stderr.starts_with("error: "), "{arguments:?}: {}", ended.stderr);
    }
    assert!(!home.path().join("data").exists(), "a bad start leaves nothing behind");
    let help = run(&mut chatbox(home.path(), &["--help"]));
    assert_eq!(help.code, Some(0));
    for command in ["serve", "token", "check-config", "doctor", "healthcheck"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
    }
    let version = run(&mut chatbox(home.path(), &["--version"]));
    assert_eq!((version.code, version.stdout.trim_end()), (Some(0), concat!("chatbox ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn check_config_prints_what_is_in_effect_and_it_can_be_read_again() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["check-config", "--set", "auth.jwt_secret=9b1c7f60a4d2e8835d0f6ab7c2e49d11"];
    let ended =
        run(chatbox(home.path(), &arguments).env("CHATBOX_LLM__PROVIDERS__FAST__TYPE", "demo").env("RATE_LIMIT", "55"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for line in [
        "# warning: RATE_LIMIT is read as `limits.messages_per_minute`: set CHATBOX_LIMITS__MESSAGES_PER_MINUTE instead",
        "jwt_secret = \"***\"",
        "messages_per_minute = 55",
        "http = \"localhost:8080\"",
        "[llm.providers.fast]",
        "url = \"sqlite:\"",
        "timeout = \"2m 5s\"",
    ] {
        assert!(ended.stdout.lines().any(|it| it == line), "`{line}` is not in:\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("9b1c7f60"), "{}", ended.stdout);

    let again = home.path().join("again.toml");
    std::fs::write(&again, ended.stdout.replace("jwt_secret = \"***\"\n", "")).unwrap();
    let reread = run(&mut chatbox(home.path(), &["check-config", "--config", "again.toml"]));
    assert_eq!(reread.code, Some(0), "{}", reread.stderr);
    assert!(reread.stdout.contains("messages_per_minute = 55"), "{}", reread.stdout);
    assert!(!home.path().join("data").exists(), "checking writes nothing");
}

#[test]
fn every_fault_of_a_bad_file_is_reported_with_its_key() {
    let home = tempfile::tempdir().unwrap();
    let file = "path_prefix = '/x/'\ntypo = 1\n[limits]\nstreams = 0\n[drain]\ntimeout = 'x'\n[bus]\nurl = 'kafka:'\n";
    std::fs::write(home.path().join("bad.toml"), file).unwrap();
    let ended = run(&mut chatbox(home.path(), &["--config", "bad.toml", "--json", "check-config"]));
    assert_eq!(ended.code, Some(64));
    let printed: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    let mut keys: Vec<_> = printed["faults"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["bus.url", "drain.timeout", "limits.streams", "path_prefix", "typo"], "{}", ended.stderr);
}

#[test]
fn a_setting_that_is_no_text_is_refused_and_a_foreign_one_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let bytes = OsStr::from_bytes(b"/chat\xff");
    for (name, code) in [("CHATBOX_PATH_PREFIX", 64), ("JWT_SECRET", 64), ("PATH_PREFIX", 0)] {
        let ended = run(chatbox(home.path(), &["check-config", "--offline"]).env(name, bytes));
        assert_eq!(ended.code, Some(code), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr.contains(&format!("{name} is not UTF-8")), code != 0, "{}", ended.stderr);
    }
}

#[test]
fn a_reader_that_went_away_is_no_crash() {
    let home = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = chatbox(home.path(), &["check-config"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn healthcheck_tells_ready_from_not_ready_and_from_absent() {
    let home = tempfile::tempdir().unwrap();
    let check = |address: &str| {
        let ops = format!("listen.ops={address}");
        run(&mut chatbox(home.path(), &["healthcheck", "--set", &ops]))
    };
    for (answer, code, said) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, "ready"),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "/readyz answered 503"),
        ("SSH-2.0-OpenSSH\r\n", 1, "the answer is not HTTP"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let ended = check(&address);
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(said), "{}{}", ended.stdout, ended.stderr);
        assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));
    }
    let free = crate::harness::ports::reserve().to_string();
    assert_eq!(check(&free).code, Some(1));
}

/// A running `chatbox serve` on free ports; killed if a test fails.
struct Serving(Child);

impl Serving {
    fn start(home: &Path) -> (Self, String) {
        let mut command = chatbox(home, &["serve"]);
        for listener in ["HTTP", "QUIC", "OPS"] {
            command.env(format!("CHATBOX_LISTEN__{listener}"), "localhost:0");
        }
        let mut child = Self(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, line)
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn serve_prints_one_url_and_ends_well_at_a_signal() {
    for signal in ["TERM", "INT"] {
        let home = tempfile::tempdir().unwrap();
        let (mut serving, line) = Serving::start(home.path());
        assert!(line.starts_with("http://") && line.contains("#code="), "got `{line}`");
        serving.signal(signal);
        assert_eq!(serving.0.wait().unwrap().code(), Some(0), "after SIG{signal}");
    }
}

#[test]
fn a_taken_port_ends_the_start_with_1() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("listen.http={}", taken.local_addr().unwrap());
    let arguments = ["--set", &http, "--set", "listen.quic=localhost:0", "--set", "listen.ops=localhost:0"];
    let ended = run(&mut chatbox(home.path(), &arguments));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("listen.http"), "{}", ended.stderr);
}

#[test]
fn a_database_that_does_not_open_is_named() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("notes.db"), "these are notes, and no database at all".repeat(100)).unwrap();
    std::fs::write(home.path().join("file"), "").unwrap();
    for (set, named) in [
        ("store.url=sqlite:notes.db", "open the store `notes.db`: the database cannot be used"),
        ("data_dir=file", "open the store `file/chatbox.db`: the database's files cannot be used"),
    ] {
        let ended = run(&mut chatbox(home.path(), &["--set", set]));
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains(named), "{}", ended.stderr);
    }
}
