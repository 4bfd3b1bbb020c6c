//! The writes of a batch, put together by session.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::{super::Error, work::Work};
use crate::chat::SessionId;

/// The writes of one session in a batch.
pub(super) struct Group {
    pub(super) id: SessionId,
    pub(super) works: Vec<Box<dyn Work>>,
    /// the document was read for this batch
    pub(super) fresh: bool,
}

/// Puts the writes of each session together, in order. Those whose time is up are answered, and of two with one
/// request the second waits for the next batch.
pub(super) fn grouped(works: Vec<Box<dyn Work>>) -> (Vec<Group>, Vec<Box<dyn Work>>) {
    let (mut groups, mut again): (Vec<Group>, Vec<_>) = (Vec::new(), Vec::new());
    let mut places = HashMap::new();
    let mut requests = HashSet::new();
    let now = Instant::now();
    for work in works {
        if work.deadline() <= now {
            work.fail(&Error::Overloaded);
            continue;
        }
        if work.request().is_some_and(|request| !requests.insert(request.key.clone())) {
            again.push(work);
            continue;
        }
        let id = work.session();
        let at = *places.entry(id).or_insert_with(|| {
            groups.push(Group { id, works: Vec::new(), fresh: false });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(at) {
            group.works.push(work);
        }
    }
    (groups, again)
}
