//! What the nodes of a cluster say to each other. Nobody is shown it, and none of it is stored.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{NodeId, TurnId, UserId};

/// What one node says to another, or to all others. It may be lost, like everything that the bus carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// to the node that runs it: somebody wants this turn to end where it is
    Stop {
        /// the turn
        turn_id: TurnId,
    },
    /// to all nodes: what one of them has let pass
    Tally(Tally),
}

/// What one node has let pass, so that the others take it off what they may let pass.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tally {
    /// who let it pass
    pub node: NodeId,
    /// actions that it admitted since its last tally: which, whose, how many
    pub admitted: Vec<(Action, Key, u32)>,
    /// connections that are open on it: whose, how many; those that have changed since its last tally, 0 included
    pub connections: Vec<(Key, u32)>,
    /// `connections` are all that it has, and not only what has changed
    pub whole: bool,
}

/// What is counted for each minute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// a message of a user
    Message,
    /// a request of a user that is no message
    Request,
    /// a request of a member of staff
    Admin,
    /// an unauthenticated request
    Public,
}

/// Whom a limit is for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// one user
    User(UserId),
    /// one address
    Address(IpAddr),
}
