//! What this node listens to: each topic while it has a subscriber here, once.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::bus::Topic;

/// The topics with a subscriber on this node. As many as there are subscriptions, at most.
#[derive(Debug, Default)]
pub(super) struct Interests(Mutex<HashMap<Topic, Interest>>);

#[derive(Debug)]
struct Interest {
    subscribers: usize,
    /// ends the listener when it is dropped; `None` until there is one
    listener: Option<Listening>,
}

/// Held while a listener shall go on.
pub(super) type Listening = oneshot::Sender<Infallible>;

impl Interests {
    /// Counts one more subscriber; whether it is the first.
    pub(super) fn hold(&self, topic: &Topic) -> bool {
        let mut interests = self.lock();
        match interests.get_mut(topic) {
            Some(interest) => interest.subscribers += 1,
            None => drop(interests.insert(topic.clone(), Interest { subscribers: 1, listener: None })),
        }
        interests.get(topic).is_some_and(|interest| interest.subscribers == 1)
    }

    /// Counts one less. With the last one the listener ends.
    pub(super) fn release(&self, topic: &Topic) {
        let mut interests = self.lock();
        if let Some(interest) = interests.get_mut(topic) {
            interest.subscribers -= 1;
            if interest.subscribers == 0 {
                interests.remove(topic);
            }
        }
    }

    /// Whether somebody subscribes, and nobody listens yet.
    pub(super) fn lacks(&self, topic: &Topic) -> bool {
        self.lock().get(topic).is_some_and(|interest| interest.listener.is_none())
    }

    /// Everything of which that is so.
    pub(super) fn lacking(&self) -> Vec<Topic> {
        let interests = self.lock();
        interests.iter().filter(|(_, interest)| interest.listener.is_none()).map(|(topic, _)| topic.clone()).collect()
    }

    /// Notes that somebody listens; `false` when that is not wanted, or done already.
    pub(super) fn listen(&self, topic: &Topic, listening: Listening) -> bool {
        match self.lock().get_mut(topic) {
            Some(interest) if interest.listener.is_none() => {
                interest.listener = Some(listening);
                true
            }
            _ => false,
        }
    }

    /// Ends all listeners.
    pub(super) fn end(&self) {
        self.lock().values_mut().for_each(|interest| interest.listener = None);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, Interest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
