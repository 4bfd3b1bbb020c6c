//! The load generator: what `chatbox bench` runs, and what benches of other servers measure with.
//!
//! [`process`] reads what a server costs, [`load`] asks it, [`report`] holds what came of it. None of them knows the
//! protocol: whatever answers a [`load::Pair`] can be measured the same way, in the same run.

pub mod load;
pub mod process;
pub mod report;
