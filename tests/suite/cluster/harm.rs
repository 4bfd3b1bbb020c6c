//! What can happen to a node, the database or the bus, and how it ends.

use std::time::Duration;

use super::world::World;
use crate::harness::wire;

/// How long something is held still.
const HELD: Duration = Duration::from_secs(20);

/// How long something that was killed stays away, and a link is cut.
const AWAY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Harm {
    NodeKilled,
    PrimaryKilled,
    BusKilled,
    NodeCutFromBus,
    NodeHeld,
    PrimaryHeld,
    BusHeld,
}

impl Harm {
    pub(super) const ALL: [Self; 7] = [
        Self::NodeKilled,
        Self::PrimaryKilled,
        Self::BusKilled,
        Self::NodeCutFromBus,
        Self::NodeHeld,
        Self::PrimaryHeld,
        Self::BusHeld,
    ];

    /// Does it, and tells to whom.
    pub(super) async fn begin(self, world: &mut World) -> usize {
        let node = 0;
        match self {
            Self::NodeKilled => world.kill_node(node).await,
            Self::NodeHeld => world.signal_node(node, "STOP"),
            Self::NodeCutFromBus => world.wires[node].set(wire::State::Cut),
            Self::BusKilled => world.nats.kill(),
            Self::BusHeld => world.nats.freeze(),
            Self::PrimaryKilled | Self::PrimaryHeld => {
                let primary = world.mongo.primary().await;
                if self == Self::PrimaryKilled {
                    world.mongo.kill(primary)
                } else {
                    world.mongo.stop(primary)
                }
                return primary;
            }
        }
        node
    }

    /// Waits for as long as it lasts, and undoes it.
    pub(super) async fn end(self, world: &mut World, whom: usize) {
        let lasts = if matches!(self, Self::NodeHeld | Self::PrimaryHeld | Self::BusHeld) { HELD } else { AWAY };
        let mut lasted = tokio::time::interval(lasts);
        lasted.tick().await;
        lasted.tick().await;
        match self {
            Self::NodeKilled => world.start_node(whom).await,
            Self::NodeHeld => world.signal_node(whom, "CONT"),
            Self::NodeCutFromBus => world.wires[whom].set(wire::State::Whole),
            Self::BusKilled => world.nats.restart().await,
            Self::BusHeld => world.nats.thaw(),
            Self::PrimaryKilled => world.mongo.restart(whom).await,
            Self::PrimaryHeld => world.mongo.cont(whom),
        }
    }
}
