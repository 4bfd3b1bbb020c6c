//! What people think of replies.

use rusqlite::{Connection, params};

use super::{
    super::{Error, Rate, Result, seal::Seal},
    queries,
    sessions::Head,
    turns, values,
};
/// Notes what somebody thinks of a reply, if it is settled.
pub(super) fn rate(connection: &Connection, rate: &Rate, seal: &Seal) -> Result<()> {
    let Rate { session_id, seq, owner, rating, why } = rate;
    Head::read(connection, *session_id)?.filter(|head| head.user_id == *owner).ok_or(Error::NotFound)?;
    let seq = i64::try_from(*seq).map_err(|_beyond| Error::NotFound)?;
    let reply = turns::entry_at(connection, *session_id, seq, seal)?;
    let why = match why {
        Some(why) => values::close_text(seal, values::entry_place(&reply.id, "rating_why"), why)?,
        None => None,
    };
    let rated = connection.prepare_cached(queries::REPLY_RATE)?.execute(params![session_id, seq, rating, why])?;
    if rated == 0 { Err(Error::NotFound) } else { Ok(()) }
}
