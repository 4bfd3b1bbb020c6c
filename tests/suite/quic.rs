//! The QUIC listener with nothing above it: sessions are served by an echo, requests by a few handlers.

mod listener; // admission, reset after a restart, drain
mod requests; // ordinary HTTP/3
mod resumption; // session tickets
mod sessions; // WebTransport: who gets in, streams, credit, codes
mod site;
