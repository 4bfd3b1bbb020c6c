//! What tests start: real processes, sockets and files, never stand-ins for our own traits.

pub(crate) mod provider;
