//! Requests and answers of one socket, each of which is asked when it was woken.

use std::task::{Context, Poll};

use futures_util::StreamExt;

use crate::{
    connection::Answers,
    protocol::{ClientFrame, Encoded, Rejection, Request},
    woken::{Board, Hung},
};

/// What a client has sent.
pub(super) type Incoming = Result<Request, Rejection>;

/// Something that is polled when it was woken, and not whenever something else in its task was.
pub(super) struct Asked<T> {
    pub(super) what: T,
    pub(super) bell: Hung,
}

impl<T> Asked<T> {
    /// What is asked for the first time.
    pub(super) fn new(what: T, board: &mut Board) -> Self {
        Self { what, bell: board.hang() }
    }
}

/// The next frame of any of them; whoever gave one comes last from then on, and whoever has ended goes.
pub(super) fn next(all: &mut Vec<Asked<Answers>>, board: &mut Board) -> Option<Encoded> {
    let mut at = 0;
    while let Some(Asked { what, bell }) = all.get_mut(at) {
        if !board.rang(bell) {
            at += 1;
            continue;
        }
        match what.poll_next_unpin(&mut Context::from_waker(bell.waker())) {
            Poll::Ready(Some(frame)) => {
                board.again(bell);
                all.rotate_left(at + 1);
                return Some(frame);
            }
            Poll::Ready(None) => {
                board.take_down(bell);
                drop(all.remove(at));
            }
            Poll::Pending => at += 1,
        }
    }
    None
}

/// What is answered beside the exchanges: they would otherwise wait for the very thing they are about.
pub(super) fn never_waits(request: &Incoming) -> bool {
    match request {
        Err(_) => true,
        Ok(request) => match &request.frame {
            ClientFrame::Ping
            | ClientFrame::Auth { .. }
            | ClientFrame::Stop { .. }
            | ClientFrame::Detach { .. }
            | ClientFrame::Typing { .. } => true,
            ClientFrame::Attach(_)
            | ClientFrame::UserMessage(_)
            | ClientFrame::Regenerate { .. }
            | ClientFrame::ModelSelect { .. }
            | ClientFrame::Help { .. }
            | ClientFrame::Feedback(_)
            | ClientFrame::Unsupported { .. } => false,
        },
    }
}
