//! What tests start: real servers, clients and providers, never stand-ins for our own traits.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod process;
pub(crate) mod provider;
pub(crate) mod proxy;
pub(crate) mod road;
pub(crate) mod server;

pub(crate) use client::{Client, Via, id};
pub(crate) use server::{Server, gate, openai};

/// Runs each behaviour over both transports.
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod webtransport {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::harness::Via::WebTransport).await
            })+
        }
        mod websocket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::harness::Via::WebSocket).await
            })+
        }
    };
}
pub(crate) use over_both;

/// Held by each test that keeps the machine busy or measures it: two of them at a time would tell of each other.
pub(crate) static ALONE: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(1);
