//! How clients reach the server: QUIC and TCP listeners, WebTransport and WebSocket.

mod demux;
mod http3;
pub mod quic;
pub mod tls;
pub mod webtransport;
pub mod wire;
