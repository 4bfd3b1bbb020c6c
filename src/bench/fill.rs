//! A store that is full before a server starts on it.

use std::{os::unix::fs::DirBuilderExt, path::Path, sync::Arc};

use anyhow::Context;
use tokio::task::JoinSet;

use crate::{
    chat::{EntryId, EntryKind, Metadata, RequestId, Sender, Session, SessionId, UserId},
    metrics::Metrics,
    store::{self, NewEntry, Open, OpenSession, Store},
};

/// Messages that are committed together.
const BATCH: usize = 500;

/// Bytes of each message.
const BODY_BYTES: usize = 200;

/// Opens the store of a server whose data is in `data_dir`, which is made.
///
/// # Errors
/// When it cannot be made or opened.
pub(super) async fn open(data_dir: &Path) -> anyhow::Result<Arc<dyn Store>> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(data_dir).context("make the data directory")?;
    store::open(&store::Config::default(), data_dir, Metrics::new()).await.context("open the store")
}

/// Gives a person a session with so many messages that nobody answers.
///
/// # Errors
/// When the store fails.
pub(super) async fn session(store: &Arc<dyn Store>, person: &str, messages: usize) -> anyhow::Result<()> {
    let user_id = UserId::parse(person).context("a user's name has 1 to 255 bytes")?;
    let ask = OpenSession { user_id, open: Open::Current, id: SessionId::new(), active_max: 1 };
    let session = store.open_session(ask).await.context("open a session")?.session;
    let mut left = messages;
    while left > 0 {
        let batch = left.min(BATCH);
        let mut appending = JoinSet::new();
        for _ in 0..batch {
            let (store, message) = (Arc::clone(store), message(&session));
            appending.spawn(async move { store.append(message).await.map(drop) });
        }
        for appended in appending.join_all().await {
            appended.context("append a message")?;
        }
        left -= batch;
    }
    Ok(())
}

fn message(session: &Session) -> NewEntry {
    NewEntry {
        session_id: session.id,
        owner: session.user_id.clone(),
        id: EntryId::new(),
        client_id: Some(RequestId::now_v7()),
        user_id: session.user_id.clone(),
        sender: Sender::User,
        kind: EntryKind::Text,
        content: super::device::text(BODY_BYTES),
        files: Vec::new(),
        metadata: Metadata::new(),
        turn: None,
        session_name: None,
    }
}
