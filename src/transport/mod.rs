//! How clients reach the server: QUIC and TCP listeners, WebTransport and WebSocket.

pub mod bind;
mod congestion;
pub mod datagrams;
mod demux;
mod http3;
pub mod lines;
mod loss;
pub mod quic;
pub mod streams;
pub mod tcp;
pub mod tls;
pub mod websocket;
pub mod webtransport;
pub mod wire;
