//! How clients reach the server: QUIC and TCP listeners, WebTransport and WebSocket.

pub mod bind;
pub mod tcp;
pub mod tls;
pub mod websocket;
