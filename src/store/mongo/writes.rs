//! Writes that read before they are queued.

use mongodb::bson::rawdoc;
use tokio::time::Instant;

use super::{
    super::{Appended, Change, Changed, Error, NewEntry, Rate, Regenerate, Regenerated, Result, seal::Seal},
    Mongo,
    again::{self, Again},
    append::{self, Append},
    beside, changes,
    link::{self, Table},
    reads,
    requests::Request,
    values,
    work::{Ask, Draft},
};
use crate::chat::{SessionId, UserId};

impl Mongo {
    /// Changes a session.
    pub(super) async fn change(
        &self,
        id: SessionId,
        owner: Option<UserId>,
        change: Change,
        deadline: Instant,
    ) -> Result<Changed> {
        let decide = move |draft: Box<Draft>, seal: &Seal| changes::change(draft, owner.as_ref(), &change, seal);
        self.submit(Ask::new(id, deadline, || Err(Error::NotFound), decide)).await
    }

    /// Asks for a reply once more.
    pub(super) async fn again(&self, ask: Regenerate, deadline: Instant) -> Result<Regenerated> {
        let shared = &self.shared;
        let old = reads::turn(shared, ask.turn_id, deadline).await?.ok_or(Error::NotFound)?;
        let of = (old.session_id, old.message_seq);
        let message = reads::entry_at(shared, of.0, of.1, deadline).await?.ok_or(Error::NotFound)?;
        let head = reads::head(shared, of.0, deadline).await?;
        head.filter(|head| head.user_id == ask.owner).ok_or(Error::NotFound)?;
        let made = reads::ended_turn(shared, ask.new, deadline).await?;
        if let Some(made) = made.filter(|made| (made.session_id, made.message_seq) == of) {
            let (session_id, turn_id, reply_seq) = (of.0, made.id, made.reply_seq);
            return Ok(Regenerated { session_id, turn_id, reply_seq, started: None });
        }
        let user_id = message.user_id;
        let reply_id = ask.lease.reply_id;
        let request = ask.client_id.map(|client_id| Request::of_reply(&user_id, client_id, of.0, reply_id));
        let new = ask.new;
        let again = Again { ask, message_seq: of.1, user_id };
        let decide = move |draft: Box<Draft>, _seal: &Seal| again.decide(draft);
        let write = Ask::new(of.0, deadline, || Err(Error::NotFound), decide);
        let made = match request {
            Some(request) => self.submit(write.by(request, move |entry, _rev| again::repeated(entry, of))).await?,
            None => self.submit(write).await?,
        };
        if made.turn_id == new {
            self.remember(new, of.0);
        }
        Ok(made)
    }

    /// Adds an entry.
    pub(super) async fn add(&self, entry: NewEntry, deadline: Instant) -> Result<Appended> {
        let (session, turn) = (entry.session_id, entry.turn.as_ref().map(|turn| turn.id));
        let request = Request::of(&entry);
        let append = Append::prepare(entry, &self.shared.seal)?;
        let decide = move |draft: Box<Draft>, seal: &Seal| append.decide(draft, seal);
        let write = Ask::new(session, deadline, || Err(Error::NotFound), decide).by(request, append::repeated);
        let appended = self.submit(write).await?;
        if let Some(turn) = turn.filter(|_turn| !appended.duplicate) {
            self.remember(turn, session);
        }
        Ok(appended)
    }

    /// Notes what somebody thinks of a reply, if it is settled.
    pub(super) async fn note_rating(&self, rate: Rate, deadline: Instant) -> Result<()> {
        let Rate { session_id, seq, owner, rating, why } = rate;
        let shared = &self.shared;
        let head = reads::head(shared, session_id, deadline).await?.filter(|head| head.user_id == owner);
        let head = head.ok_or(Error::NotFound)?;
        let reply = reads::entry_at(shared, session_id, seq, deadline).await?.ok_or(Error::NotFound)?;
        if reply.reply_to.is_none() || !reply.settled() {
            return Err(Error::NotFound);
        }
        // The row has to be there to take it.
        beside::apply(&shared.link, &head.redo, beside::Turnout::Again, deadline).await?;
        let why = match why {
            Some(why) => values::close_text(&shared.seal, values::entry_place(&reply.id, "rating_why"), &why)?,
            None => None,
        };
        let rating = serde_json::to_value(rating).map_err(values::failed)?;
        let rating = rating.as_str().unwrap_or_default();
        let update = match why {
            Some(why) => rawdoc! { "$set": { "rating": rating, "rating_why": why } },
            None => rawdoc! { "$set": { "rating": rating }, "$unset": { "rating_why": "" } },
        };
        let statement = rawdoc! { "q": { "_id": values::id(reply.id.0) }, "u": update };
        let written = link::update(Table::Entries, [statement].into_iter().collect());
        match shared.link.write(written, deadline).await?.n {
            0 => Err(Error::NotFound),
            _ => Ok(()),
        }
    }
}
