//! What tests start: real servers, clients and providers, never stand-ins for our own traits.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod fault;
pub(crate) mod lossy;
pub(crate) mod mongo;
pub(crate) mod nats;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod provider;
pub(crate) mod proxy;
pub(crate) mod road;
pub(crate) mod server;
pub(crate) mod stopwatch;
pub(crate) mod wire;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub(crate) use client::{Client, Via, id};
pub(crate) use server::{Server, gate, openai};

/// Runs each behaviour over both transports.
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod webtransport {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::harness::ends(super::$name(crate::harness::Via::WebTransport)).await
            })+
        }
        mod websocket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::harness::ends(super::$name(crate::harness::Via::WebSocket)).await
            })+
        }
    };
}
pub(crate) use over_both;

/// Runs a test to its end: one that hangs is told by its name, and the others go on.
pub(crate) async fn ends(test: impl Future<Output = ()>) {
    // Other tests may have the machine for themselves before.
    let most = Duration::from_secs(20 * 60);
    tokio::time::timeout(most, Box::pin(test)).await.expect("a test that ends");
}

/// Held by each test that keeps the machine busy or measures it: two of them at a time would tell of each other.
pub(crate) static ALONE: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);

/// Waits until that holds, with a look every 10 ms.
///
/// # Panics
/// It does not hold within [`client::PATIENCE`].
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let held = async {
        while !holds().await {
            look.tick().await;
        }
    };
    tokio::time::timeout(client::PATIENCE, held).await.unwrap_or_else(|_late| panic!("not in time: {what}"));
}

/// A server that tests need and do not bring along: where `variable` says, below the target directory, or on the
/// `PATH`.
///
/// # Panics
/// There is none, and `CHATBOX_TEST_STRICT` is 1: the whole suite was asked for.
pub(crate) fn installed(name: &str, variable: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        |dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir),
    );
    let named = std::env::var_os(variable).map(PathBuf::from);
    let fetched = target.join("tests-servers").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>();
    let found = named.into_iter().chain([fetched]).chain(on_path).find(|path| path.is_file());
    let strict = std::env::var("CHATBOX_TEST_STRICT").is_ok_and(|strict| strict == "1");
    assert!(found.is_some() || !strict, "no {name} is installed");
    found
}
