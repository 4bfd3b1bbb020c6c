//! The look that finds what the bus has lost: every watched session's `rev` against the store's.

use tracing::warn;

use super::Router;
use crate::{bus::Topic, chat::SessionId, store::Result};

/// Sessions whose `rev` is read at once.
const CHUNK: usize = 4096;

impl Router {
    /// Compares once in every `sessions.compare_interval`, until the server stops. A watcher that was not told of the
    /// store's `rev` reads what it missed; a lost last event is found in no other way.
    pub async fn compare(&self) {
        let lifecycle = &self.0.parts.lifecycle;
        loop {
            tokio::select! {
                biased;
                () = lifecycle.closing() => return,
                () = tokio::time::sleep(self.0.parts.config.compare_interval) => {}
            }
            if let Some(Err(err)) = self.contained(self.compare_once()).await {
                warn!(error = &err as &dyn std::error::Error, "watches are not compared with the store");
            }
        }
    }

    async fn compare_once(&self) -> Result<()> {
        let bus = &self.0.parts.bus;
        let (mut sessions, mut users) = (Vec::new(), Vec::new());
        for topic in bus.topics() {
            match topic {
                Topic::Session(id) => sessions.push(id),
                Topic::User(_) => users.push(topic),
                // What nodes say to each other is not stored.
                Topic::Node(_) | Topic::Cluster => {}
            }
        }
        for chunk in sessions.chunks(CHUNK) {
            self.compare_sessions(chunk).await?;
        }
        // A list has no number of its own that would tell; its watchers look for themselves.
        for user in users {
            bus.compare(&user, 0);
        }
        Ok(())
    }

    async fn compare_sessions(&self, ids: &[SessionId]) -> Result<()> {
        let revs = self.0.parts.store.revs(ids).await?;
        for (id, rev) in &revs {
            self.0.parts.bus.compare(&Topic::Session(*id), *rev);
        }
        if revs.len() < ids.len() {
            // Those that are gone: whoever watches them is to see that.
            let known: std::collections::HashSet<_> = revs.iter().map(|(id, _)| id).collect();
            for id in ids.iter().filter(|id| !known.contains(id)) {
                self.0.parts.bus.compare(&Topic::Session(*id), u64::MAX);
            }
        }
        Ok(())
    }
}
