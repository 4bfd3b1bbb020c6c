//! Commands that a MongoDB server fails, as a test wants it: those of one client's connections, and of nobody else's.

use mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// A fail point is the whole server's: one test at a time sets one.
static FAULTS: Semaphore = Semaphore::const_new(1);

/// What a server does to the next commands of those who call themselves by a name (`appName`).
pub(crate) struct Fault {
    admin: Database,
    data: Document,
    _alone: SemaphorePermit<'static>,
}

impl Fault {
    /// `mode` is `{ times: N }`, `{ skip: N }`, or `"alwaysOn"`; the last two until [`Self::end`].
    pub(crate) async fn set(server: &Client, name: &str, mut data: Document, mode: impl Into<Bson>) -> Self {
        let alone = FAULTS.acquire().await.unwrap();
        data.insert("appName", name);
        let fault = Self { admin: server.database("admin"), data, _alone: alone };
        fault.arm(mode.into()).await;
        fault
    }

    async fn arm(&self, mode: Bson) {
        let set = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": self.data.clone() };
        self.admin.run_command(set).await.unwrap();
    }

    /// The next two commands.
    pub(crate) async fn twice(&self) {
        self.arm(doc! { "times": 2 }.into()).await;
    }

    pub(crate) async fn end(self) {
        let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        self.admin.run_command(off).await.unwrap();
    }
}
