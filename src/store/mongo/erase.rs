//! What goes: logs of ended turns, and everything of a deleted session.

use mongodb::bson::{RawArrayBuf, doc, rawdoc};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    super::Result,
    link::{self, Find, Link, Table},
    requests,
    rows::DropSession,
    values,
};
use crate::chat::{EntryId, RequestId, TurnId, UserId};

/// Names of requests that go with one command.
const REQUESTS_MAX: usize = 1000;

/// Deletes the logs of turns: the texts of ended ones are their replies' contents.
pub(super) async fn logs(link: &Link, turns: &[TurnId], deadline: Instant) -> Result<()> {
    if turns.is_empty() {
        return Ok(());
    }
    let name = |turn: TurnId, offset| values::binary(&values::chunk_row(turn, offset));
    let statements: RawArrayBuf = turns
        .iter()
        .map(|turn| {
            let range = rawdoc! { "$gte": name(*turn, 0), "$lte": name(*turn, u64::MAX) };
            rawdoc! { "q": { "_id": range }, "limit": 0 }
        })
        .collect();
    link.write(link::delete(Table::TurnChunks, statements), deadline).await.map(drop)
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "_id")]
    id: EntryId,
    user_id: UserId,
    #[serde(default)]
    client_id: Option<RequestId>,
}

/// Deletes what belongs to a session, and takes the user out of what its requests took. What is left of its document
/// says that it was deleted.
pub(super) async fn session(link: &Link, session: &DropSession, deadline: Instant) -> Result<()> {
    let id = values::id(session.session.0);
    logs(link, &session.turns, deadline).await?;
    let find =
        Find { projection: Some(doc! { "user_id": 1, "client_id": 1 }), ..Find::of(doc! { "session_id": id.clone() }) };
    let named = link.find(Table::Entries, &find, deadline).await?;
    let named = named.iter().map(values::row::<Named>).collect::<Result<Vec<_>>>()?;
    for named in named.chunks(REQUESTS_MAX) {
        let keys: Vec<_> = named.iter().map(key).collect();
        let keys = mongodb::bson::RawDocumentBuf::try_from(doc! { "_id": { "$in": keys } }).map_err(values::failed)?;
        let statements = [rawdoc! { "q": keys, "limit": 0 }].into_iter().collect();
        link.write(link::delete(Table::Requests, statements), deadline).await?;
    }
    for table in [Table::Entries, Table::Turns] {
        let statements = [rawdoc! { "q": { "session_id": id.clone() }, "limit": 0 }].into_iter().collect();
        link.write(link::delete(table, statements), deadline).await?;
    }
    let unset = rawdoc! { "$unset": { "user_id": "", "session_id": "", "turn_id": "" } };
    let statements = [rawdoc! { "q": { "session_id": id }, "u": unset, "multi": true }].into_iter().collect();
    link.write(link::update(Table::Usage, statements), deadline).await.map(drop)
}

fn key(named: &Named) -> String {
    match named.client_id {
        Some(client_id) => requests::key_of(&named.user_id, client_id),
        None => requests::key_of_entry(named.id),
    }
}
