//! The server under test, a client of the written contract, and a scripted provider.

pub mod client;
pub mod server;

pub use client::{Client, Lines, Via, id};
pub use server::Server;
