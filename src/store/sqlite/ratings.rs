//! What people think of replies.

use rusqlite::{Connection, params};

use super::{
    super::{Error, Result, seal::Seal},
    queries,
    sessions::Head,
    turns, values,
};
use crate::chat::{Rating, SessionId, UserId};

/// What the owner of a session thinks of one of its replies.
pub(super) struct Rate {
    pub(super) session: SessionId,
    pub(super) seq: u64,
    pub(super) owner: UserId,
    pub(super) rating: Rating,
    pub(super) why: Option<String>,
}

/// Notes it, if the reply is settled.
pub(super) fn rate(connection: &Connection, rate: &Rate, seal: &Seal) -> Result<()> {
    let Rate { session, seq, owner, rating, why } = rate;
    Head::read(connection, *session)?.filter(|head| head.user_id == *owner).ok_or(Error::NotFound)?;
    let seq = i64::try_from(*seq).map_err(|_beyond| Error::NotFound)?;
    let reply = turns::entry_at(connection, *session, seq, seal)?;
    let why = match why {
        Some(why) => values::close_text(seal, values::entry_place(&reply.id, "rating_why"), why)?,
        None => None,
    };
    let rated = connection.prepare_cached(queries::REPLY_RATE)?.execute(params![session, seq, rating, why])?;
    if rated == 0 { Err(Error::NotFound) } else { Ok(()) }
}
