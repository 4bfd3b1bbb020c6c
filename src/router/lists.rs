//! Watching a user's list of sessions: which are new, which have changed, which are gone.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{RETRY_PAUSE, Refusal, Router, watch::whole_update};
use crate::{
    bus::{Delivery, Subscription, Topic},
    chat::{Event, SessionId, SessionUpdate, UserId},
    store,
};

/// Sessions of a list that are kept in view; changes of older ones are told when they happen, and not made up for
/// when the bus loses them.
const SESSIONS_MAX: u32 = 100;

/// A watcher of a user's list.
#[derive(Debug)]
pub struct ListWatch {
    router: Router,
    subscription: Subscription,
    user: UserId,
    /// at most [`SESSIONS_MAX`] after every look
    revs: HashMap<SessionId, u64>,
    ready: VecDeque<Arc<SessionUpdate>>,
}

impl Router {
    /// Starts to watch a list. What it holds already is read over HTTP, after this.
    ///
    /// # Errors
    /// `DATABASE_ERROR`.
    pub async fn watch_list(&self, user: UserId) -> Result<ListWatch, Refusal> {
        let subscription = self.0.parts.bus.subscribe(Topic::User(user.clone())).await;
        let mut watch =
            ListWatch { router: self.clone(), subscription, user, revs: HashMap::new(), ready: VecDeque::new() };
        watch.revs = watch.look().await?;
        Ok(watch)
    }
}

impl ListWatch {
    /// Waits for the next change. Cancel safe.
    pub async fn next(&mut self) -> Arc<SessionUpdate> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return update;
            }
            match self.subscription.next().await {
                Delivery::Event(event) => self.apply(&event),
                Delivery::Word(_) => {}
                Delivery::Lagged => {
                    while let Err(err) = Box::pin(self.resync()).await {
                        tracing::warn!(error = &err as &dyn std::error::Error, "missed changes are not read yet");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            }
        }
    }

    fn apply(&mut self, event: &Event) {
        let Event::Session { rev, update } = event else { return };
        if update.deleted {
            self.revs.remove(&update.session_id);
        } else {
            let known = self.revs.entry(update.session_id).or_default();
            *known = (*known).max(*rev);
        }
        self.ready.push_back(Arc::clone(update));
    }

    async fn look(&self) -> store::Result<HashMap<SessionId, u64>> {
        let found = self.router.0.parts.store.user_revs(std::slice::from_ref(&self.user), SESSIONS_MAX).await?;
        Ok(found.into_iter().flat_map(|(_, revs)| revs).collect())
    }

    /// Tells all of what is other than it was, once.
    async fn resync(&mut self) -> store::Result<()> {
        let store = Arc::clone(&self.router.0.parts.store);
        let found = self.look().await?;
        let changed = found.iter().filter(|(id, rev)| self.revs.get(id).is_none_or(|known| known < *rev));
        let gone = self.revs.keys().filter(|id| !found.contains_key(id));
        for id in changed.chain(gone.map(|id| (id, &0))).map(|(id, _)| *id).collect::<Vec<_>>() {
            let update = match store.session(id).await? {
                // Only behind the others now.
                Some(_) if !found.contains_key(&id) => continue,
                Some(session) => {
                    let (last_activity, message_count) = (session.last_activity, session.counters.entries);
                    SessionUpdate {
                        last_activity: Some(last_activity),
                        message_count: Some(message_count),
                        ..whole_update(session)
                    }
                }
                None => SessionUpdate { deleted: true, ..SessionUpdate::of(id) },
            };
            self.ready.push_back(Arc::new(update));
        }
        self.revs = found;
        Ok(())
    }
}
