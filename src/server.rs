//! Wires the parts together.

use crate::config::Config;

/// A server whose listeners are bound.
#[derive(Debug)]
pub struct Server {
    url: String,
}

impl Server {
    /// Binds the listeners.
    ///
    /// # Errors
    /// When a listener cannot be bound.
    #[expect(clippy::unused_async, reason = "the seam; the wiring replaces this file")]
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        Ok(Self { url: format!("http://{}{}", config.listen.http, config.path_prefix) })
    }

    /// Where the chat page is.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Serves until the drain has ended.
    ///
    /// # Errors
    /// When a part of the server fails for good.
    #[expect(clippy::unused_async, reason = "the seam; the wiring replaces this file")]
    pub async fn run(self) -> anyhow::Result<()> {
        Ok(())
    }
}
