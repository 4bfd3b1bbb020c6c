//! Writes that change, share and delete whole sessions.

use uuid::Uuid;

use super::{
    super::{Change, Changed, Error, NewShare, Result, Share, seal::Seal},
    head::{Head, Help, NamedBy, ShareRow},
    link::Table,
    rows::{DropSession, How},
    values,
    work::{Decided, Draft},
};
use crate::chat::{SessionState, Timestamp, UserId};

/// Changes a session, if anything is to be other than it is.
pub(super) fn change(
    mut draft: Box<Draft>,
    owner: Option<&UserId>,
    change: &Change,
    seal: &Seal,
) -> Result<Decided<Changed>> {
    let now = draft.now;
    let head = &mut draft.head;
    owned(head, owner)?;
    let active = head.active();
    let mut noted = false;
    let changed = match change {
        Change::Name(name) => {
            noted = head.name_by != Some(NamedBy::User);
            rename(head, name, NamedBy::User, seal)?
        }
        Change::BetterName(_) if head.name_by.is_some() => false,
        Change::BetterName(name) => {
            noted = true;
            rename(head, name, NamedBy::Model, seal)?
        }
        Change::Model(_) | Change::Help(_) if !active => return Err(Error::Ended),
        Change::Model(model) => set_model(head, model),
        Change::Help(wanted) => help(head, owner, *wanted, now),
        Change::End => active && end(head, now),
        Change::EndIdle { since } => {
            let silent = active && Timestamp(head.last_activity) <= *since && head.open.is_empty();
            silent && end(head, now)
        }
    };
    let open_turns = if *change == Change::End { head.open_turns() } else { Vec::new() };
    let answer = Changed { session: head.session(seal)?, changed, open_turns };
    Ok(if changed || noted { Decided::Keep(answer, draft) } else { Decided::Same(answer) })
}

/// Its owner, if anyone is named.
pub(super) fn owned(head: &Head, owner: Option<&UserId>) -> Result<()> {
    if owner.is_none_or(|owner| head.user_id == *owner) { Ok(()) } else { Err(Error::NotFound) }
}

/// Whether the name is another one; who gave it is noted in any case.
fn rename(head: &mut Head, name: &str, by: NamedBy, seal: &Seal) -> Result<bool> {
    head.name_by = Some(by);
    let id = head.id;
    let place = values::session_place(&id, "name");
    let before = values::open_text(seal, place, head.name.as_ref())?;
    if before.as_deref().unwrap_or_default() == name {
        return Ok(false);
    }
    head.name = values::close_text(seal, place, name)?;
    head.rev += 1;
    Ok(true)
}

fn set_model(head: &mut Head, model: &str) -> bool {
    let other = head.model_id.as_deref() != Some(model);
    if other {
        head.model_id = Some(model.to_owned());
        head.rev += 1;
    }
    other
}

fn help(head: &mut Head, owner: Option<&UserId>, wanted: bool, now: i64) -> bool {
    if head.help.is_some() == wanted {
        return false;
    }
    let by = owner.unwrap_or(&head.user_id).clone();
    head.help = wanted.then_some(Help { requested_at: now, by });
    head.rev += 1;
    true
}

fn end(head: &mut Head, now: i64) -> bool {
    head.end(now);
    true
}

/// Makes an ended session active again in a slot; an active one stays as it is. Tells whether it did.
pub(super) fn reopen(mut draft: Box<Draft>, owner: &UserId, slot: u32) -> Result<Decided<Option<(Head, bool)>>> {
    let now = draft.now;
    let head = &mut draft.head;
    owned(head, Some(owner))?;
    if head.active() {
        return Ok(Decided::Same(Some((head.clone(), false))));
    }
    (head.state, head.active_slot, head.ended_at) = (SessionState::Active, Some(slot), None);
    head.rev += 1;
    head.active_at(now);
    Ok(Decided::Keep(Some((head.clone(), true)), draft))
}

/// Deletes a session: what is left of it holds no words, and its rows go.
pub(super) fn delete(mut draft: Box<Draft>, owner: &UserId, seal: &Seal) -> Result<Decided<Changed>> {
    let now = draft.now;
    let head = &mut draft.head;
    owned(head, Some(owner))?;
    let answer = Changed { session: head.session(seal)?, changed: true, open_turns: head.open_turns() };
    let turns = head.open.iter().map(|open| open.id).collect();
    let gone = DropSession { session: head.id, turns };
    // The owner's name stays out of it too.
    let nobody = UserId::parse("-").ok_or(Error::NotFound)?;
    let mut left = Head::new(head.id, nobody, 0, now);
    (left.v, left.commits) = (head.v, std::mem::take(&mut head.commits));
    left.end(now);
    left.gone_at = Some(now);
    *head = left;
    draft.row(Table::Sessions, How::DropSession, &gone)?;
    Ok(Decided::Keep(answer, draft))
}

/// Makes a share of what the session is now; a repeated call finds the first one.
pub(super) fn share(mut draft: Box<Draft>, new: &NewShare, seal: &Seal) -> Result<Decided<Share>> {
    let now = draft.now;
    let head = &mut draft.head;
    owned(head, Some(&new.owner))?;
    if let Some(made) = head.shares.iter().find(|share| share.id == new.id) {
        return Ok(Decided::Same(made.open(head.id, seal)?));
    }
    head.shares.retain(|share| share.lasts(now));
    let older_max = usize::try_from(new.shares_max.saturating_sub(1)).unwrap_or(usize::MAX);
    let surplus = head.shares.len().saturating_sub(older_max);
    head.shares.drain(..surplus);
    let place = values::session_place(&head.id, "name");
    let name = values::open_text(seal, place, head.name.as_ref())?.unwrap_or_default();
    let share = ShareRow {
        id: new.id,
        name: values::close_text(seal, values::share_place(&new.id), &name)?,
        last_seq: head.last_seq,
        running_seq: head.running().map(|(_open, running)| running.reply_seq),
        created_at: now,
        expires_at: new.expires_at.map(|expires_at| expires_at.0),
    };
    let answer = share.open(head.id, seal)?;
    head.shares.push(share);
    Ok(Decided::Keep(answer, draft))
}

/// Revokes all shares.
pub(super) fn unshare(mut draft: Box<Draft>, owner: &UserId) -> Result<Decided<u64>> {
    owned(&draft.head, Some(owner))?;
    let revoked = u64::try_from(draft.head.shares.len()).unwrap_or(u64::MAX);
    draft.head.shares.clear();
    Ok(if revoked > 0 { Decided::Keep(revoked, draft) } else { Decided::Same(revoked) })
}

/// A share's id among those of a session.
pub(super) fn share_of(head: &Head, id: Uuid, now: i64) -> Option<&ShareRow> {
    head.shares.iter().find(|share| share.id == id && share.lasts(now))
}
