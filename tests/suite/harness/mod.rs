//! What tests start: real servers, clients and providers, never stand-ins for our own traits.

pub(crate) mod client;
pub(crate) mod provider;
pub(crate) mod server;

pub(crate) use client::{Client, Lines, Via, id};
pub(crate) use server::Server;
