//! Finding what a node that went away left behind: its running turns end as `interrupted`, queued ones start.

use tracing::{error, info};

use super::Router;
use crate::{
    chat::{NodeId, Turn, TurnId, TurnState},
    store::{EndTurn, Result},
};

/// Turns and sessions that one look takes on; the next one finds the rest.
const SWEEP_MAX: u32 = 100;

impl Router {
    /// Looks for abandoned turns once, as a node does before its first request.
    ///
    /// # Errors
    /// What the store says.
    pub async fn recover(&self) -> Result<()> {
        let lost = self.0.parts.store.lost(self.0.node, SWEEP_MAX).await?;
        for turn in &lost.turns {
            self.interrupt(turn).await?;
        }
        for session_id in lost.sessions {
            if let Some(taken) = self.next_queued(session_id).await {
                self.spawn_runner(taken);
            }
        }
        Ok(())
    }

    /// Looks once in every lease time, at moments of this node's own, until the server drains.
    pub async fn sweep(&self) {
        let lease = self.0.parts.config.turn_lease;
        loop {
            // The last bits of a fresh id are random.
            let random = u32::try_from(NodeId::new().0.as_u64_pair().1 & 0xFFFF).unwrap_or_default();
            tokio::select! {
                biased;
                () = self.0.parts.lifecycle.draining() => return,
                () = tokio::time::sleep(lease / 2 + lease / 2 * random / 0x1_0000) => {}
            }
            if let Some(Err(err)) = self.contained(self.recover()).await {
                error!(error = &err as &dyn std::error::Error, "abandoned turns are not found");
            }
        }
    }

    /// Ends a turn whose node is gone with what its log holds; one that had shown nothing is asked again.
    async fn interrupt(&self, turn: &Turn) -> Result<()> {
        let (only_lost, again) = (Some(self.0.node), Some(TurnId::new()));
        let end = EndTurn { only_lost, again, ..EndTurn::of(turn.id, TurnState::Interrupted) };
        if self.end(end).await?.is_none() {
            return Ok(());
        }
        info!(turn_id = %turn.id, session_id = %turn.session_id, "abandoned turn ended");
        if let Some(taken) = self.next_queued(turn.session_id).await {
            self.spawn_runner(taken);
        }
        Ok(())
    }
}
