//! chatbox: a real-time AI chat server, QUIC and HTTP/3 first.

pub mod auth;
pub mod bus;
pub mod chat;
pub mod cli;
pub mod config;
pub mod connection;
pub mod http;
pub mod lifecycle;
pub mod limit;
pub mod llm;
pub mod markdown;
pub mod metrics;
pub mod protocol;
pub mod router;
pub mod server;
pub mod store;
pub mod transport;
