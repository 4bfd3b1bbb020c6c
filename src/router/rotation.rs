//! The rotation of keys, in the background of a node: one at a time, cut by a drain.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Router;
use crate::store::rotation::{self, Progress, State};

/// How far the rotation of this node is.
#[derive(Debug, Default)]
pub(super) struct Rotation(Mutex<Progress>);

impl Rotation {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Router {
    /// Begins to seal everything that is stored with the current key, unless that goes on already. A drain cuts it, and
    /// whoever asks again goes on with what is left. Gives how far it is.
    pub fn rotate_keys(&self) -> Progress {
        let mut progress = self.0.rotation.progress();
        if progress.state == State::Running {
            return progress.clone();
        }
        *progress = Progress { state: State::Running, ..Progress::default() };
        let router = self.clone();
        self.0.parts.lifecycle.spawn(async move { router.run_rotation().await });
        progress.clone()
    }

    /// How far the rotation is that was begun last.
    #[must_use]
    pub fn rotation(&self) -> Progress {
        self.0.rotation.progress().clone()
    }

    async fn run_rotation(&self) {
        let parts = &self.0.parts;
        let rotated = rotation::rotate(&*parts.store, &parts.metrics, |progress| {
            *self.0.rotation.progress() = progress.clone();
        });
        let ended = tokio::select! {
            biased;
            () = parts.lifecycle.draining() => return self.rotation_ended(State::Incomplete),
            ended = self.contained(rotated) => ended,
        };
        match ended {
            Some(Ok(progress)) => {
                tracing::info!(state = ?progress.state, key = progress.key, renewed = progress.renewed, "keys rotated");
                *self.0.rotation.progress() = progress;
            }
            Some(Err(err)) => {
                tracing::error!(error = &err as &dyn std::error::Error, "keys are not rotated");
                self.rotation_ended(State::Failed);
            }
            None => self.rotation_ended(State::Failed),
        }
    }

    fn rotation_ended(&self, state: State) {
        self.0.rotation.progress().state = state;
    }
}
