//! The client: frames to a server and back, over WebTransport or a WebSocket.
//!
//! [`Site`] is where a server is, [`Dialer`] opens a [`Link`] to it, and a link carries [`Exchange`]s: a request and
//! its answers. A link knows frames as bytes, and has no policy: nothing is repeated, resumed or remembered here.

mod dial;
mod error;
mod lines;
mod link;
mod site;
mod trust;
mod websocket;
mod webtransport;

pub use dial::Dialer;
pub use error::{Closed, Error};
pub use link::{Exchange, Link, Stats, Transport};
pub use site::Site;
