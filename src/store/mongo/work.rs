//! A write on its way through a lane: what it decides, and who waits for its answer.

use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{Error, Result, TurnText, seal::Seal},
    head::Head,
    link::Table,
    requests::Request,
    rows::{Due, How, Row},
};
use crate::chat::{Entry, SessionId, TurnId};

/// A session document that a write changes, and what that implies.
pub(super) struct Draft {
    pub(super) head: Head,
    pub(super) rows: Vec<Row>,
    /// by the database's clock, in milliseconds since 1970
    pub(super) now: i64,
    /// the log of the running turn, if it was asked for
    pub(super) log: Option<TurnText>,
    /// what the document carries for now is to be written
    pub(super) settles: bool,
}

impl Draft {
    /// Adds a row.
    pub(super) fn row(&mut self, table: Table, how: How, row: &impl serde::Serialize) -> Result<()> {
        self.rows.push(Row::new(table, how, row)?);
        Ok(())
    }

    /// Adds a row that the document carries for now: most turns end without its being written.
    pub(super) fn row_for_now(&mut self, table: Table, row: &impl serde::Serialize) -> Result<()> {
        self.rows.push(Row { due: Due::Later, ..Row::new(table, How::Insert, row)? });
        Ok(())
    }
}

/// What one write comes to.
pub(super) enum Step {
    /// the draft is to be committed
    Keep(Box<Draft>),
    /// nothing changes
    Same,
    /// the log of a turn is needed first
    Log(TurnId),
}

/// What a write decides, with its answer.
pub(super) enum Decided<T> {
    Keep(T, Box<Draft>),
    Same(T),
    Log(TurnId),
}

/// A write, its answer's type left out.
pub(super) trait Work: Send + Sync {
    fn session(&self) -> SessionId;

    fn deadline(&self) -> Instant;

    /// The request whose name it needs.
    fn request(&self) -> Option<&Request>;

    /// The same, for who notes something about it.
    fn request_mut(&mut self) -> Option<&mut Request>;

    /// Decides; may be asked any number of times, and the last answer counts.
    fn decide(&mut self, draft: Box<Draft>, seal: &Seal) -> Result<Step>;

    /// It cannot be done.
    fn refuse(&mut self, err: Error);

    /// Whether the last decision was that it cannot be done.
    fn refused(&self) -> bool;

    /// Answers with the last decision.
    fn answer(self: Box<Self>);

    /// Answers that there is no such session.
    fn missing(self: Box<Self>);

    /// Answers that its request has made this entry before.
    fn made(self: Box<Self>, entry: Entry, rev: u64);

    /// Answers that the slot is taken, if it wanted one; otherwise it is still to be done.
    fn without_slot(self: Box<Self>) -> Option<Box<dyn Work>>;

    /// Answers with a failure of the whole batch.
    fn fail(self: Box<Self>, err: &Error);
}

/// What answers when a request has made its entry before.
type Made<T> = Box<dyn Fn(Entry, u64) -> Result<T> + Send + Sync>;

/// A write that asks a function.
pub(super) struct Ask<T, D> {
    pub(super) session: SessionId,
    pub(super) deadline: Instant,
    request: Option<(Request, Made<T>)>,
    decide: D,
    /// the answer when there is no such session
    missing: fn() -> Result<T>,
    /// the answer when the slot that it wants is taken
    without_slot: Option<T>,
    result: Option<Result<T>>,
    waiting: Option<oneshot::Sender<Result<T>>>,
}

impl<T, D> Ask<T, D> {
    /// A write of one session, until a deadline.
    pub(super) fn new(session: SessionId, deadline: Instant, missing: fn() -> Result<T>, decide: D) -> Self {
        let (request, without_slot, result, waiting) = (None, None, None, None);
        Self { session, deadline, request, decide, missing, without_slot, result, waiting }
    }

    /// It makes the entry of a request.
    pub(super) fn by(
        mut self,
        request: Request,
        made: impl Fn(Entry, u64) -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        self.request = Some((request, Box::new(made)));
        self
    }

    /// It wants a slot; the answer when that is taken.
    pub(super) fn or_without_slot(mut self, answer: T) -> Self {
        self.without_slot = Some(answer);
        self
    }

    /// Where its answer arrives.
    pub(super) fn answered(&mut self) -> oneshot::Receiver<Result<T>> {
        let (waiting, answered) = oneshot::channel();
        self.waiting = Some(waiting);
        answered
    }

    fn tell(self, result: Result<T>) {
        // A caller that went away is not told; what it wrote stays.
        drop(self.waiting.map(|waiting| waiting.send(result)));
    }
}

impl<T, D> Work for Ask<T, D>
where
    T: Send + Sync + 'static,
    D: Fn(Box<Draft>, &Seal) -> Result<Decided<T>> + Send + Sync + 'static,
{
    fn session(&self) -> SessionId {
        self.session
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn request(&self) -> Option<&Request> {
        self.request.as_ref().map(|(request, _made)| request)
    }

    fn request_mut(&mut self) -> Option<&mut Request> {
        self.request.as_mut().map(|(request, _made)| request)
    }

    fn decide(&mut self, draft: Box<Draft>, seal: &Seal) -> Result<Step> {
        let (result, step) = match (self.decide)(draft, seal)? {
            Decided::Keep(answer, draft) => (Some(Ok(answer)), Step::Keep(draft)),
            Decided::Same(answer) => (Some(Ok(answer)), Step::Same),
            Decided::Log(turn) => (None, Step::Log(turn)),
        };
        self.result = result;
        Ok(step)
    }

    fn refuse(&mut self, err: Error) {
        self.result = Some(Err(err));
    }

    fn refused(&self) -> bool {
        matches!(self.result, Some(Err(_)))
    }

    fn answer(mut self: Box<Self>) {
        let result = self.result.take();
        self.tell(result.unwrap_or_else(|| Err(Error::Database("a write was left out of its commit".into()))));
    }

    fn missing(self: Box<Self>) {
        let missing = (self.missing)();
        self.tell(missing);
    }

    fn made(mut self: Box<Self>, entry: Entry, rev: u64) {
        if let Some((_request, made)) = self.request.take() {
            self.tell(made(entry, rev));
        }
    }

    fn without_slot(mut self: Box<Self>) -> Option<Box<dyn Work>> {
        match self.without_slot.take() {
            Some(answer) => {
                self.tell(Ok(answer));
                None
            }
            None => Some(self),
        }
    }

    fn fail(self: Box<Self>, err: &Error) {
        self.tell(Err(copied(err)));
    }
}

/// A failure that many writes share.
fn copied(err: &Error) -> Error {
    match err {
        Error::Sealed { what, why } => Error::Sealed { what: what.clone(), why: *why },
        Error::Database(source) => Error::Database(source.to_string().into()),
        _ => Error::Overloaded,
    }
}
