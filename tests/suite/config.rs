//! File, environment and flags together; what refuses the start.

mod llm;

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use chatbox::config::{Address, Loaded, fault::Faults, load};

const STRONG: &str = "9b1c7f60a4d2e8835d0f6ab7c2e49d11";
const KEYS: &str = r#"[{"id": 1, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]"#;

fn from(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, Faults> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("chatbox.toml");
    std::fs::write(&path, file).unwrap();
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    load(Some(&path), owned(env), &owned(flags))
}

fn environment(env: &[(&str, &str)]) -> Result<Loaded, Faults> {
    load(None, env.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())), &[])
}

/// The keys of the faults, in order, and the whole text.
fn refused(result: Result<Loaded, Faults>) -> (Vec<String>, String) {
    let faults = result.expect_err("the configuration was accepted");
    (faults.0.iter().map(|fault| fault.key.clone()).collect(), faults.to_string())
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_at_all_is_a_working_configuration_on_loopback() {
    let loaded = environment(&[]).unwrap();
    assert_eq!(warnings(&loaded), Vec::<String>::new());
    assert_eq!(loaded.config.listen.http, Address::Localhost(8080));
    assert_eq!(loaded.config.path_prefix, "/chatbox");
    assert!(loaded.config.loopback());
}

#[test]
fn flags_go_over_the_environment_and_that_over_the_file() {
    let file = "[limits]\nstreams = 5\nstaff_streams = 50\nqueued_turns = 7\n[drain]\ntimeout = '3m'\n";
    let env = [
        ("CHATBOX_LIMITS__STREAMS", "6"),
        ("CHATBOX_LIMITS__STAFF_STREAMS", "60"),
        ("CHATBOX_DRAIN__TIMEOUT", "4m 5s"),
    ];
    let config = from(file, &env, &[("limits.streams", "8")]).unwrap().config;
    assert_eq!((config.limits.streams, config.limits.staff_streams, config.limits.queued_turns), (8, 60, 7));
    assert_eq!(config.drain.timeout, Duration::from_secs(245));
}

#[test]
fn the_environment_holds_lists_numbers_and_truths() {
    let config = environment(&[
        ("CHATBOX_AUTH__ALLOWED_ORIGINS", "https://a.example, https://b.example"),
        ("CHATBOX_AUTH__ALLOW_QUERY_TOKEN", "true"),
        ("CHATBOX_AUTH__ALGORITHMS", r#"["HS512"]"#),
        ("CHATBOX_AUTH__ISSUER", "12345"),
        ("CHATBOX_LISTEN__HTTP", "127.0.0.1:9000"),
        ("CHATBOX_PATH_PREFIX", "/x/y"),
        ("CHATBOX_TLS__DIR", "/run/certs"),
        ("CHATBOX_LOG", "debug"),
        ("CHATBOX_AUTH__AUDIENCE", ""),
        ("PATH", "/bin"),
    ])
    .unwrap()
    .config;
    assert_eq!(config.auth.allowed_origins.unwrap(), ["https://a.example", "https://b.example"]);
    assert!(config.auth.allow_query_token);
    assert_eq!(config.auth.algorithms, Some(vec![chatbox::auth::Algorithm::Hs512]));
    assert_eq!(config.auth.issuer.as_deref(), Some("12345"), "a text stays a text");
    assert_eq!(config.auth.audience, None, "an empty variable is not set");
    assert_eq!(config.listen.http, Address::Socket("127.0.0.1:9000".parse().unwrap()));
    assert_eq!(config.path_prefix, "/x/y");
    assert_eq!(config.tls.dir, PathBuf::from("/run/certs"));
}

#[test]
fn providers_keep_the_order_of_the_file_and_then_of_their_names() {
    let file = "[llm]\ndefault = 'zeta'\n[llm.providers.zeta]\ntype = 'demo'\n[llm.providers.Mid]\ntype = 'demo'\n";
    let env = [
        ("CHATBOX_LLM__PROVIDERS__SLOW__TYPE", "demo"),
        ("CHATBOX_LLM__PROVIDERS__FAST__TYPE", "demo"),
        ("CHATBOX_LLM__PROVIDERS__MID__TYPE", "demo"),
    ];
    let config = from(file, &env, &[]).unwrap().config;
    assert_eq!(config.llm.providers.keys().collect::<Vec<_>>(), ["zeta", "Mid", "fast", "slow"]);
    let config = environment(&[("CHATBOX_LLM__PROVIDERS", r#"{"b": {"type": "demo"}, "a": {"type": "demo"}}"#)]);
    let loaded = config.unwrap();
    let shown = loaded.effective().unwrap();
    assert_eq!(shown["llm"]["providers"].as_table().unwrap().keys().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(loaded.config.llm.providers.keys().collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn five_faults_are_five_reports() {
    let file = "path_prefix = 'chatbox/'\nunknown = 1\n[limits]\nstreams = 'many'\n[listen]\nhttp = 'localhost:70000'\n[store]\nurl = 'mysql://db'\n";
    let (keys, text) = refused(from(file, &[], &[]));
    assert_eq!(keys.len(), 5, "{text}");
    assert_eq!(
        keys.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
        ["limits.streams", "listen.http", "path_prefix", "store.url", "unknown"]
    );
    for part in [
        "chatbox.toml): unknown field `unknown`, expected one of `listen`,",
        "invalid type: string \"many\", expected a whole number",
        "`localhost:70000` is not an address (have `localhost:PORT`, `IP:PORT`, `[IP]:PORT`)",
        "`chatbox/` is not a path prefix such as `/chatbox`",
        "store url `mysql://db` is not `sqlite:PATH`, `sqlite:` (`chatbox.db` in `data_dir`) or `mongodb://HOST",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

#[test]
fn unknown_variables_are_named_and_those_of_kubernetes_are_not_ours() {
    let (keys, text) = refused(environment(&[
        ("CHATBOX_LIMITS__STREEMS", "4"),
        ("CHATBOX_LLM__PROVIDERS", r#"{"x": {"type": "demo", "tipe": 1}}"#),
        ("CHATBOX_PORT_NUMBER", "1"),
        ("CHATBOX_SESSIONS__IDLE_END", "soon"),
    ]));
    let keys: BTreeSet<_> = keys.iter().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["limits.streems", "llm.providers.x.tipe", "port_number", "sessions.idle_end"]));
    assert!(text.contains("`limits.streems` (set by CHATBOX_LIMITS__STREEMS): unknown field"), "{text}");
    let loaded = environment(&[
        ("CHATBOX_SERVICE_HOST", "10.0.0.1"),
        ("CHATBOX_SERVICE_PORT", "8080"),
        ("CHATBOX_SERVICE_PORT_HTTP", "8080"),
        ("CHATBOX_PORT", "tcp://10.0.0.1:8080"),
        ("CHATBOX_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("CHATBOX_QUIC_PORT_8443_UDP_ADDR", "10.0.0.1"),
    ]);
    assert_eq!(warnings(&loaded.unwrap()), Vec::<String>::new());
}

#[test]
fn an_open_listener_needs_secrets_and_a_certificate() {
    let open = [("listen.http", "0.0.0.0:8080"), ("listen.quic", "[::]:8443")];
    let (keys, text) = refused(from("", &[], &open));
    assert_eq!(
        keys,
        ["auth.jwt_secret", "cluster_secret", "store.encryption_keys", "tls.cert_file", "tls.key_file"],
        "{text}"
    );
    assert!(
        text.contains("set it, CHATBOX_AUTH__JWT_SECRET or CHATBOX_AUTH__JWT_SECRET_FILE to at least 32"),
        "{text}"
    );

    let home = tempfile::tempdir().unwrap();
    let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    std::fs::write(&cert, "").unwrap();
    std::fs::write(&key, "").unwrap();
    let env = [
        ("CHATBOX_AUTH__JWT_SECRET", STRONG),
        ("CHATBOX_CLUSTER_SECRET", "c0ffee11c0de22beef3377aa5e99d00d"),
        ("CHATBOX_TLS__CERT_FILE", cert.to_str().unwrap()),
        ("CHATBOX_TLS__KEY_FILE", key.to_str().unwrap()),
        ("CHATBOX_PUBLIC_URL", "https://chat.example.org"),
    ];
    let (keys, text) = refused(from("", &env, &open));
    assert_eq!(keys, ["store.encryption_keys"], "{text}");
    for consent in [("store.allow_plain_text", "true"), ("store.encryption_keys", KEYS)] {
        let loaded = from("", &env, &[&open[..], &[consent]].concat()).unwrap();
        assert_eq!((warnings(&loaded), loaded.config.loopback()), (vec![], false));
    }
}

// checklist 9
#[test]
fn weak_and_left_over_secrets_refuse_the_start_whatever_their_source() {
    let home = tempfile::tempdir().unwrap();
    for weak in [
        "hunter2",
        "your-256-bit-secret-your-256-bit-secret",
        "a-string-secret-at-least-256-bits-long",
        "secretsecretsecretsecretsecretsecret",
        "REPLACE_WITH_9b1c7f60a4d2e8835d0f6ab7c2e49d11",
        "change-me-9b1c7f60a4d2e8835d0f6ab7c2e49d11",
    ] {
        let path = home.path().join("secret");
        std::fs::write(&path, format!("{weak}\n")).unwrap();
        let file = format!("[auth]\njwt_secret = '{weak}'\n");
        for (source, result) in [
            ("file", from(&file, &[], &[])),
            ("variable", environment(&[("CHATBOX_AUTH__JWT_SECRET", weak)])),
            ("file of a variable", environment(&[("CHATBOX_AUTH__JWT_SECRET_FILE", path.to_str().unwrap())])),
            ("former name", environment(&[("JWT_SECRET", weak)])),
        ] {
            let (keys, text) = refused(result);
            assert_eq!(keys, ["auth.jwt_secret"], "{weak} by {source}");
            assert!(!text.contains(weak), "shown: {text}");
        }
    }
}

// checklist 11
#[test]
fn a_placeholder_in_any_setting_refuses_the_start() {
    for (key, value) in [
        ("CHATBOX_PUBLIC_URL", "https://your-domain.example"),
        ("CHATBOX_AUTH__ALLOWED_ORIGINS", "https://a.example,https://REPLACE_WITH_ORIGIN"),
        ("CHATBOX_STORE__URL", "sqlite:placeholder.db"),
        ("CHATBOX_AUTH__ISSUER", "Change_Me"),
        ("CHATBOX_LLM__PROVIDERS__X__TYPE", "CHANGE-ME"),
        ("CHATBOX_DATA_DIR", "/srv/YOUR-COMPANY"),
    ] {
        let (keys, text) = refused(environment(&[(key, value)]));
        assert_eq!(keys.len(), 1, "{text}");
        assert!(text.contains("holds the placeholder `") && text.contains(key), "{key}: {text}");
    }
    let prompt = "Never answer with a placeholder.";
    assert_eq!(
        environment(&[("CHATBOX_LLM__SYSTEM_PROMPT", prompt)]).unwrap().config.llm.system_prompt.unwrap(),
        prompt
    );
}

// checklist 19
#[test]
fn values_out_of_range_name_their_key() {
    for (key, value) in [
        ("limits.streams", "1"),
        ("limits.staff_streams", "0"),
        ("limits.connections", "0"),
        ("limits.connections_per_user", "-1"),
        ("limits.connections_per_address", "4294967296"),
        ("limits.messages_per_minute", "0"),
        ("limits.admin_per_minute", "0"),
        ("limits.public_per_minute", "1.5"),
        ("limits.frame_bytes", "1024"),
        ("limits.queued_turns", "0"),
        ("sessions.active_per_user", "0"),
        ("sessions.idle_end", "0s"),
        ("sessions.turn_lease", "soon"),
        ("sessions.turn_lease", "999ms"),
        ("sessions.compare_interval", "0s"),
        ("drain.timeout", "0s"),
        ("drain.spread", "6m"),
        ("limits.write_timeout", "0s"),
        ("llm.timeout", "0s"),
        ("llm.idle_timeout", "5"),
        ("llm.default", "gpt-9"),
        ("path_prefix", ""),
        ("path_prefix", "/"),
        ("path_prefix", "/a/../b"),
        ("path_prefix", "/a b"),
        ("path_prefix", "/a//b"),
        ("listen.ops", "localhost:8080"),
        ("listen.http", "example.com:80"),
        ("public_url", "ftp://example.com"),
        ("public_url", "https://user:pw@example.com"),
        ("public_quic_url", "http://example.com"),
        ("public_quic_url", "https://example.com/?x"),
        ("bus.url", "redis://localhost"),
        ("bus.prefix", "a.b"),
        ("bus.tls_ca", "/does/not/exist"),
        ("auth.algorithms", "none"),
        ("auth.algorithms", "[]"),
        ("auth.issuer", " "),
        ("auth.allowed_origins", "https://*.example.com"),
        ("auth.allowed_origins", "example.com"),
        ("auth.allow_query_token", "maybe"),
        ("data_dir", ""),
        ("store.url", "sqlite"),
        ("store.encryption_keys", r#"[{"id": 0, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]"#),
        ("store.encryption_keys", r#"[{"id": 1, "key": "c2hvcnQ="}]"#),
        ("llm.providers.x", r#"{"type": "openai"}"#),
        ("tls.cert_file", "/does/not/exist"),
    ] {
        let (keys, text) = refused(from("", &[], &[(key, value)]));
        assert!(keys[0].starts_with(key), "`{key}` = `{value}`: {text}");
        assert!(text.contains("(set by a flag)"), "`{key}` = `{value}`: {text}");
    }
}

#[test]
fn a_value_of_another_kind_is_told_what_is_accepted() {
    for (file, told) in [
        ("sessions = 5", "`sessions` (set by FILE): invalid type: integer `5`, expected a table"),
        ("sessions.idle_end = 3600", "integer `3600`, expected a duration such as `2s` or `1h 30m`, as a text"),
        ("llm.timeout = true", "boolean `true`, expected a duration such as `2s` or `1h 30m`, as a text"),
        ("public_url = \"chat\"", "not a URL such as `https://chat.example.com`: \"chat\""),
        ("store.encryption_keys = \"hunter2\"", "is not a list such as `[{id = 1, key = \"...\"}]`"),
        ("store.encryption_keys = [{id = 1, key = \"hunter2\", old = 3}]", "is not a list such as"),
        ("cluster_secret = 7", "`cluster_secret` (set by FILE): is not a text (its value is not shown)"),
    ] {
        let (keys, text) = refused(from(file, &[], &[]));
        assert_eq!(keys.len(), 1, "{text}");
        let told = told.replace("FILE", text.split("(set by ").nth(1).unwrap().split(')').next().unwrap());
        assert!(text.contains(&told) && !text.contains("hunter2"), "`{file}`: {text}");
    }
    let (_keys, text) = refused(environment(&[("CHATBOX_STORE__ENCRYPTION_KEYS", "hunter2")]));
    assert!(text.contains(r#"`[{"id": 1, "key": "..."}]`"#) && !text.contains("hunter2"), "{text}");
}

// checklist 10
#[test]
fn a_star_origin_is_for_loopback() {
    let config = environment(&[("CHATBOX_AUTH__ALLOWED_ORIGINS", "*")]).unwrap().config;
    assert_eq!(config.auth.allowed_origins.unwrap(), ["*"]);
    let (keys, text) = refused(environment(&[
        ("CHATBOX_AUTH__ALLOWED_ORIGINS", "*"),
        ("CHATBOX_LISTEN__OPS", "0.0.0.0:8081"),
        ("CHATBOX_AUTH__JWT_SECRET", STRONG),
        ("CHATBOX_CLUSTER_SECRET", STRONG),
        ("CHATBOX_STORE__ENCRYPTION_KEYS", KEYS),
    ]));
    assert_eq!(keys, ["auth.allowed_origins"], "{text}");
}

#[test]
fn the_predecessors_names_are_read_with_a_warning() {
    let loaded = environment(&[
        ("JWT_SECRET", STRONG),
        ("SERVER_PORT", "9090"),
        ("WS_ALLOWED_ORIGINS", "https://a.example"),
        ("CORS_ALLOWED_ORIGINS", "https://b.example"),
        ("RATE_LIMIT", "7"),
        ("ADMIN_RATE_LIMIT", "8"),
        ("MAX_CONNECTIONS", "9"),
        ("MAX_MESSAGE_SIZE", "70000"),
        ("LLM_STREAM_TIMEOUT", "30s"),
        ("LLM_PROVIDER_1_ID", "zeta"),
        ("LLM_PROVIDER_1_TYPE", "demo"),
        ("LLM_PROVIDER_2_TYPE", "demo"),
        ("MONGO_URI", "mongodb://u:p@db,db2?replicaSet=rs"),
        ("MONGO_DATABASE", "chat"),
        ("ENCRYPTION_KEY", "thirty-two bytes of the old key."),
        ("SMS_AUTH_TOKEN", "x"),
        ("RECONNECT_TIMEOUT", "15m"),
    ])
    .unwrap();
    let config = &loaded.config;
    assert_eq!(config.auth.jwt_secret.as_ref().unwrap().expose(), STRONG);
    assert_eq!(config.listen.http, Address::Localhost(9090));
    assert_eq!(
        config.auth.allowed_origins.clone().unwrap().into_iter().collect::<BTreeSet<_>>(),
        ["https://a.example", "https://b.example"].map(str::to_owned).into()
    );
    let limits = &config.limits;
    assert_eq!((limits.messages_per_minute, limits.admin_per_minute), (7, 8));
    assert_eq!((limits.connections, limits.frame_bytes), (9, 70_000));
    assert_eq!(config.llm.timeout, Duration::from_secs(30));
    assert_eq!(config.llm.providers.keys().collect::<Vec<_>>(), ["zeta", "provider_2"]);
    assert_eq!(config.store.url, "mongodb://u:p@db,db2/chat?replicaSet=rs&authSource=admin");
    let [key] = &*config.store.encryption_keys else { panic!("one key") };
    assert_eq!((key.id, key.key.expose()), (1, &*hex::encode("thirty-two bytes of the old key.")));
    let said = warnings(&loaded);
    for warning in [
        "ENCRYPTION_KEY is read as `store.encryption_keys`: set CHATBOX_STORE__ENCRYPTION_KEYS instead",
        "JWT_SECRET is read as `auth.jwt_secret`: set CHATBOX_AUTH__JWT_SECRET instead",
        "MONGO_URI is read as `store.url`: set CHATBOX_STORE__URL instead",
        "SMS_AUTH_TOKEN is not used by this version",
        "RECONNECT_TIMEOUT is not used by this version",
    ] {
        assert!(said.iter().any(|it| it == warning), "`{warning}` is not in {said:#?}");
    }
    assert!(!said.join(" ").contains(STRONG) && !said.join(" ").contains("MONGO_DATABASE"), "{said:#?}");
    for (uri, database, url) in [
        ("mongodb://db:1", "", "mongodb://db:1"),
        ("mongodb://db/old", "chat", "mongodb://db/chat"),
        ("mongodb://u:p@db/old?tls=true", "chat", "mongodb://u:p@db/chat?tls=true&authSource=old"),
        ("mongodb://u:p@db/?authSource=$external", "chat", "mongodb://u:p@db/chat?authSource=$external"),
    ] {
        let loaded = environment(&[("MONGO_URI", uri), ("MONGO_DATABASE", database)]).unwrap();
        assert_eq!(loaded.config.store.url, url);
    }
}

// checklist 78
#[test]
fn a_key_of_the_predecessor_that_is_none_is_refused() {
    let (keys, text) = refused(environment(&[("ENCRYPTION_KEY", "hunter2")]));
    assert_eq!(keys, ["store.encryption_keys"], "{text}");
    assert!(text.contains("ENCRYPTION_KEY") && text.contains("is not exactly 32 bytes"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_former_name_yields_to_what_the_file_says() {
    let loaded = from("[listen]\nhttp = '[::1]:7000'\n", &[("SERVER_PORT", "9090")], &[]).unwrap();
    assert_eq!(loaded.config.listen.http, Address::Socket("[::1]:7000".parse().unwrap()));
    let said = warnings(&loaded).join("\n");
    assert!(
        said.starts_with("SERVER_PORT is ignored: `listen.http` is set by") && said.ends_with("chatbox.toml"),
        "{said}"
    );
}

// checklist 7, 35
#[test]
fn a_secret_is_shown_nowhere() {
    let loaded = environment(&[("CHATBOX_AUTH__JWT_SECRET", STRONG), ("CHATBOX_CLUSTER_SECRET", STRONG)]).unwrap();
    for shown in [format!("{:?}", loaded.config), format!("{loaded:?}"), loaded.effective().unwrap().to_string()] {
        assert!(!shown.contains(STRONG), "{shown}");
    }
    assert_eq!(loaded.effective().unwrap()["auth"]["jwt_secret"].as_str(), Some("***"));
    let secret = format!(r#"{{"x": {{"type": "demo", "api_key": "{STRONG}"}}}}"#);
    let shown = match environment(&[("CHATBOX_LLM__PROVIDERS", &secret)]) {
        Ok(loaded) => loaded.effective().unwrap().to_string(),
        Err(faults) => faults.to_string(),
    };
    assert!(!shown.contains(STRONG), "{shown}");
    let twice = [("CHATBOX_AUTH__JWT_SECRET", STRONG), ("CHATBOX_AUTH__JWT_SECRET_FILE", "/dev/null")];
    let (_, text) = refused(environment(&twice));
    assert!(!text.contains(STRONG), "{text}");
    let (_, text) = refused(from("[auth]\njwt_secret = 4815162342\n", &[], &[]));
    assert!(!text.contains("4815162342"), "{text}");
    let (_, text) = refused(from("[auth]\njwt_secret = 'hunter2\n", &[], &[]));
    assert!(text.contains("is not TOML: line 2") && !text.contains("hunter2"), "{text}");
    let (_, text) = refused(environment(&[("CHATBOX_STORE__URL", "mysql://u:hunter2@db")]));
    assert!(!text.contains("hunter2"), "{text}");
    let loaded = environment(&[("CHATBOX_STORE__URL", "mongodb://u:hunter2@db/chat")]).unwrap();
    for shown in [format!("{loaded:?}"), loaded.effective().unwrap().to_string()] {
        assert!(shown.contains("mongodb://***@db/chat") && !shown.contains("hunter2"), "{shown}");
    }
    let (_, text) = refused(environment(&[("CHATBOX_PUBLIC_URL", "u:hunter2@db:x:y")]));
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let (keys, text) = refused(environment(&[("CHATBOX_CONFIG", "/does/not/exist.toml")]));
    assert_eq!(keys, ["--config"]);
    assert!(text.contains("cannot open `/does/not/exist.toml`"), "{text}");
}
