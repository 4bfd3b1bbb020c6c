//! Writes that answer a message once more. Each runs inside one commit.

use rusqlite::{Connection, params};

use super::{
    super::{Error, Regenerate, Regenerated, Result, now, seal::Seal},
    queries, reads,
    sessions::Head,
    turns,
};
use crate::chat::{Entry, SessionState, Timestamp, Turn, TurnId, UserId};

/// Queues a new turn for the message of one that has just ended, in front of all that wait; tells whether it did. No
/// other turn of that message is open: none is made for it as long as one is.
pub(super) fn requeue(connection: &Connection, ended: &Turn, new: TurnId, now: Timestamp) -> Result<bool> {
    let mut queue = connection.prepare_cached(queries::TURN_QUEUE_FRONT)?;
    Ok(queue.execute(params![ended.session_id, new, ended.message_seq, now])? == 1)
}

/// Starts a new turn for the message of the last turn of a session, once for each request.
pub(super) fn regenerate(connection: &Connection, ask: &Regenerate, seal: &Seal) -> Result<Regenerated> {
    let old = reads::turn(connection, queries::TURN, ask.turn_id)?.ok_or(Error::NotFound)?;
    let Turn { session_id, message_seq, .. } = old;
    let head = Head::read(connection, session_id)?.filter(|head| head.user_id == ask.owner);
    let mut head = head.ok_or(Error::NotFound)?;
    let message = turns::entry_at(connection, session_id, message_seq, seal)?;
    if let Some(made) = made_before(connection, ask, &old, &message.user_id, seal)? {
        return Ok(made);
    }
    if head.state == SessionState::Ended {
        return Err(Error::Ended);
    }
    let last = reads::turn(connection, queries::TURN_LAST, session_id)?.is_some_and(|last| last.id == old.id);
    if !last || head.busy() {
        return Err(Error::NotFound);
    }
    let (now, before) = (now(), head.last_seq);
    let Regenerate { new: id, client_id, lease, .. } = ask;
    let (id, user_id, client_id) = (*id, message.user_id, *client_id);
    let queued = turns::Queued { waited: false, id, session_id, message_seq, user_id, client_id };
    let started = turns::begin(connection, queued, &mut head, lease, now)?;
    turns::grown(connection, session_id, &head, before, None)?;
    Ok(Regenerated { session_id, turn_id: id, reply_seq: started.reply_seq, started: Some(started) })
}

/// What an earlier call with the same request, or the same new turn, has made.
///
/// # Errors
/// `IdTaken` when the user has used the request's id for anything else than another reply to this message.
fn made_before(
    connection: &Connection,
    ask: &Regenerate,
    old: &Turn,
    user: &UserId,
    seal: &Seal,
) -> Result<Option<Regenerated>> {
    let made = match ask.client_id {
        Some(client_id) => reads::entry_of(connection, user, client_id, seal)?,
        None => None,
    };
    let made = match made {
        Some(Entry { session_id, seq, turn_id: Some(turn_id), reply_to, .. })
            if (session_id, reply_to) == (old.session_id, Some(old.message_seq)) =>
        {
            Some((turn_id, seq))
        }
        Some(_another) => return Err(Error::IdTaken),
        None => reads::turn(connection, queries::TURN, ask.new)?
            .filter(|made| (made.session_id, made.message_seq) == (old.session_id, old.message_seq))
            .and_then(|made| Some((made.id, made.reply_seq?))),
    };
    let session_id = old.session_id;
    Ok(made.map(|(turn_id, reply_seq)| Regenerated { session_id, turn_id, reply_seq, started: None }))
}
