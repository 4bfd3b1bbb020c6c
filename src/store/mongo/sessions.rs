//! The write that finds or makes a session: the one that is about a user, and not about one document.
//!
//! A unique index of user and slot bounds the active sessions. Who meets a taken slot looks again.

use mongodb::bson::doc;
use tokio::time::Instant;

use super::{
    super::{Change, Error, Open, OpenSession, Opened, Result},
    Mongo, changes,
    head::Head,
    link::{self, Attempt, DUPLICATE, Find, Pause, Table},
    reads, schema, values,
    work::Ask,
};
use crate::chat::{Session, SessionId, UserId};

/// An active session, as the choice of a slot sees it. Sorted by age of the latest activity.
#[derive(PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
struct Active {
    last_activity: i64,
    created_at: i64,
    #[serde(rename = "_id")]
    id: SessionId,
    active_slot: u32,
}

/// Finds or makes the session that is asked for.
pub(super) async fn open(store: &Mongo, ask: &OpenSession, deadline: Instant) -> Result<Opened> {
    let mut pause = Pause::new(deadline);
    let (mut ended, mut tried) = (Vec::new(), false);
    loop {
        let opened = match ask.open {
            Open::Reopen(id) => reopen(store, ask, id, &mut ended, deadline).await?,
            Open::New | Open::Current => make(store, ask, (&mut ended, &mut tried), deadline).await?,
        };
        if let Some((head, changed)) = opened {
            return Ok(Opened { session: head.session(&store.shared.seal)?, changed, ended });
        }
        pause.wait().await?;
    }
}

/// `None`: somebody else was faster.
async fn make(
    store: &Mongo,
    ask: &OpenSession,
    (ended, tried): (&mut Vec<Session>, &mut bool),
    deadline: Instant,
) -> Result<Option<(Head, bool)>> {
    let shared = &store.shared;
    let found = shared.link.find_one(Table::Sessions, doc! { "_id": values::id(ask.id.0) }, deadline).await?;
    if let Some(found) = found {
        let head = Head::read(&found)?;
        if head.user_id != ask.user_id || head.gone_at.is_some() {
            return Err(Error::NotFound);
        }
        // An attempt whose answer was lost is this call's own.
        return Ok(Some((head, *tried)));
    }
    let active = active(store, &ask.user_id, deadline).await?;
    // An attempt whose answer was lost can be seen from now on: it is not to make room for itself.
    if active.iter().any(|active| active.id == ask.id) {
        return Ok(None);
    }
    if ask.open == Open::Current
        && let Some(latest) = active.last()
    {
        return Ok(reads::head(shared, latest.id, deadline).await?.filter(Head::active).map(|head| (head, false)));
    }
    let slot = free_slot(store, ask, active, ended, deadline).await?;
    let mut head = Head::new(ask.id, ask.user_id.clone(), slot, shared.clock.now());
    head.v = 1;
    let rows = [values::document(&head)?].into_iter().collect();
    *tried = true;
    match shared.link.write_once(link::insert(Table::Sessions, rows), deadline).await {
        Attempt::Done(written) => match written.failed.first() {
            None => Ok(Some((head, true))),
            Some((_at, DUPLICATE)) => Ok(None),
            Some((_at, code)) => Err(Error::Database(format!("a session is not made: {code}").into())),
        },
        Attempt::Again => Ok(None),
        Attempt::Failed(err) => Err(err),
    }
}

/// `None`: somebody else was faster.
async fn reopen(
    store: &Mongo,
    ask: &OpenSession,
    id: SessionId,
    ended: &mut Vec<Session>,
    deadline: Instant,
) -> Result<Option<(Head, bool)>> {
    let head = reads::head(&store.shared, id, deadline).await?.filter(|head| head.user_id == ask.user_id);
    let head = head.ok_or(Error::NotFound)?;
    if head.active() {
        return Ok(Some((head, false)));
    }
    let active = active(store, &ask.user_id, deadline).await?;
    if active.iter().any(|active| active.id == id) {
        return Ok(None);
    }
    let slot = free_slot(store, ask, active, ended, deadline).await?;
    let owner = ask.user_id.clone();
    let missing = || Err(Error::NotFound);
    let reopen = Ask::new(id, deadline, missing, move |draft, _seal: &_| changes::reopen(draft, &owner, slot));
    store.submit(reopen.or_without_slot(None)).await
}

/// Active sessions, the one with the oldest activity first.
async fn active(store: &Mongo, user: &UserId, deadline: Instant) -> Result<Vec<Active>> {
    let find = Find {
        filter: doc! { "user_id": user.as_str(), "active_slot": { "$exists": true } },
        projection: Some(doc! { "last_activity": 1, "created_at": 1, "active_slot": 1 }),
        hint: Some(schema::ACTIVE),
        ..Find::default()
    };
    let found = store.shared.link.find(Table::Sessions, &find, deadline).await?;
    let mut active = found.iter().map(values::row).collect::<Result<Vec<Active>>>()?;
    active.sort();
    Ok(active)
}

/// Ends the oldest active sessions until a slot is free, and gives the lowest one that is.
async fn free_slot(
    store: &Mongo,
    ask: &OpenSession,
    mut active: Vec<Active>,
    ended: &mut Vec<Session>,
    deadline: Instant,
) -> Result<u32> {
    let active_max = ask.active_max.max(1);
    let surplus = (active.len() + 1).saturating_sub(usize::try_from(active_max).unwrap_or(usize::MAX));
    for oldest in active.drain(..surplus) {
        let change = store.change(oldest.id, Some(ask.user_id.clone()), Change::End, deadline).await;
        match change {
            Ok(change) => ended.extend(Some(change).filter(|change| change.changed).map(|change| change.session)),
            Err(Error::NotFound) => {}
            Err(err) => return Err(err),
        }
    }
    let free = (0..active_max).find(|slot| active.iter().all(|active| active.active_slot != *slot));
    free.ok_or_else(|| Error::Database("more sessions are active than there are slots".into()))
}
