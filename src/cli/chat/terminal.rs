//! The conversation in a terminal: keys in, screen out. The terminal is given back as it was, at a panic too.

use std::{io::stdout, time::Duration};

use anyhow::Context;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use ratatui::crossterm::{
    event::{
        self, DisableBracketedPaste, EnableBracketedPaste, Event as Input, KeyCode, KeyEvent, KeyEventKind,
        KeyModifiers,
    },
    execute,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{composer::CHARS_MAX, screen::Screen};
use crate::{
    chat::TurnId,
    client::{Client, Error, Event, Message, Open, Page, Session, State, Stored},
};

/// Entries that come at first, and with each look further back.
const HISTORY: u32 = 50;

/// How long typing is waited for before it is seen whether the conversation is over.
const LOOK: Duration = Duration::from_millis(100);

/// The screen is drawn this often at most.
const FRAME: Duration = Duration::from_millis(33);

/// What is said of a conversation that was deleted elsewhere.
const GONE: &str = "this conversation is not there any more · ^N new";

/// Keys that wait to be handled.
const KEYS: usize = 256;

/// What came of something that takes a while.
enum Done {
    /// of the message that has this number in the transcript
    Stored(u64, Box<Message>, Result<Stored, Error>),
    Older(Result<Page, Error>),
    Opened(Result<Session, Error>),
    /// of what has nothing to show but a failure
    Asked(Result<(), Error>),
}

struct Chat<'a> {
    client: &'a Client,
    session: Option<Session>,
    screen: Screen,
    doing: FuturesUnordered<BoxFuture<'a, Done>>,
    reading: bool,
    /// the last turn that ended, to be answered anew
    last_turn: Option<TurnId>,
    /// Ctrl-C was pressed with nothing to stop
    leaving: bool,
    over: bool,
}

/// Talks until the person leaves.
///
/// # Errors
/// When the terminal cannot be used, and why the client gave up, if it did.
pub(super) async fn run(client: &Client, open: Open) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("use the terminal")?;
    let pasting = execute!(stdout(), EnableBracketedPaste).context("use the terminal");
    let talked = match pasting {
        Ok(()) => Box::pin(talk(client, open, &mut terminal)).await,
        Err(err) => Err(err),
    };
    // What cannot be given back has gone away.
    drop(execute!(stdout(), DisableBracketedPaste));
    ratatui::restore();
    talked
}

async fn talk(client: &Client, open: Open, terminal: &mut ratatui::DefaultTerminal) -> anyhow::Result<()> {
    let (keys, mut pressed) = mpsc::channel(KEYS);
    let reader = std::thread::spawn(move || read_keys(&keys));
    let mut chat = Chat {
        client,
        session: None,
        screen: Screen::default(),
        doing: FuturesUnordered::new(),
        reading: false,
        last_turn: None,
        leaving: false,
        over: false,
    };
    chat.open(open);
    let mut status = client.status();
    let mut frame = tokio::time::interval(FRAME);
    frame.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Whoever is told to end gives the terminal back first.
    let mut terminated = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut dirty = true;
    while !chat.over {
        tokio::select! {
            _ = terminated.recv() => break,
            input = pressed.recv() => match input {
                Some(input) => chat.input(input),
                None => break,
            },
            event = next(chat.session.as_mut()) => chat.event(event),
            Some(done) = chat.doing.next(), if !chat.doing.is_empty() => chat.done(done),
            changed = status.changed() => {
                changed.context("the client is gone")?;
                chat.screen.status = status.borrow_and_update().clone();
            }
            _ = frame.tick(), if dirty => {
                terminal.draw(|frame| chat.screen.draw(frame)).context("draw")?;
                dirty = false;
                continue;
            }
        }
        dirty = true;
    }
    drop(pressed);
    drop(reader.join());
    let status = client.status().borrow().clone();
    anyhow::ensure!(status.state != State::Closed, "{}", status.reason.unwrap_or_default());
    Ok(())
}

async fn next(session: Option<&mut Session>) -> Option<Event> {
    match session {
        Some(session) => session.next().await,
        None => std::future::pending().await,
    }
}

/// Reads the terminal until nobody waits for it.
fn read_keys(keys: &mpsc::Sender<Input>) {
    while !keys.is_closed() {
        match event::poll(LOOK) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(input) = event::read() else { return };
                if keys.blocking_send(input).is_err() {
                    return;
                }
            }
            Err(_gone) => return,
        }
    }
}

impl<'a> Chat<'a> {
    fn open(&mut self, open: Open) {
        let client = self.client;
        let open = Open { history: Some(HISTORY), ..open };
        self.doing.push(Box::pin(async move { Done::Opened(client.open(open).await) }));
    }

    fn event(&mut self, event: Option<Event>) {
        let Some(event) = event else {
            self.session = None;
            let status = self.client.status().borrow().clone();
            let closed = status.reason.filter(|_reason| status.state == State::Closed);
            self.screen.notice = Some(closed.unwrap_or_else(|| GONE.to_owned()));
            return;
        };
        match &event {
            Event::Session(status) => self.screen.session = Some(status.as_ref().clone()),
            Event::Update(update) => {
                if let Some(session) = &mut self.screen.session {
                    session.name = update.name.clone().or_else(|| session.name.take());
                    session.model_id = update.model_id.clone().or_else(|| session.model_id.take());
                    session.state = update.state.or(session.state);
                }
            }
            Event::Reply(reply) => self.last_turn = Some(reply.turn_id),
            Event::Refused(error) => self.screen.notice = Some(error.message.clone()),
            // The terminal took nothing for a while: the conversation is read again.
            Event::Missed => {
                let session_id = self.session.as_ref().map(Session::id);
                self.open(Open { session_id, ..Open::default() });
            }
            _ => {}
        }
        self.screen.transcript.take(&event);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Stored(item, _message, Ok(stored)) => self.screen.transcript.note(item, stored.seq, ""),
            Done::Stored(item, _message, Err(err)) => {
                self.screen.transcript.note(item, None, &format!("failed: {err}"))
            }
            Done::Older(Ok(page)) => {
                self.reading = false;
                self.screen.transcript.older(page.entries);
                self.screen.counted = (0, 0);
            }
            Done::Opened(Ok(session)) => {
                self.session = Some(session);
                self.last_turn = None;
                self.screen.transcript.take(&Event::Reset);
                self.screen.scroll = 0;
            }
            Done::Asked(Ok(())) => {}
            Done::Older(Err(err)) | Done::Opened(Err(err)) | Done::Asked(Err(err)) => {
                self.reading = false;
                self.screen.notice = Some(err.to_string());
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Key(key) if key.kind != KeyEventKind::Release => self.key(key),
            Input::Paste(text) => self.insert(&text),
            _ => {}
        }
    }

    fn insert(&mut self, text: &str) {
        if !self.screen.composer.insert(text) {
            self.screen.notice = Some(format!("a message has {CHARS_MAX} characters at most: the rest is left out"));
        }
    }

    fn key(&mut self, key: KeyEvent) {
        self.screen.notice = None;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            return self.interrupt();
        }
        self.leaving = false;
        if self.screen.choice.is_some() {
            return self.choose(key.code);
        }
        match key.code {
            KeyCode::Char(c) if control => self.command(c),
            KeyCode::Enter if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SHIFT) => {
                self.insert("\n");
            }
            KeyCode::Enter => self.send(),
            KeyCode::Esc => drop(self.stop()),
            KeyCode::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Backspace => self.screen.composer.backspace(),
            KeyCode::Delete => self.screen.composer.delete(),
            KeyCode::Left => self.screen.composer.left(),
            KeyCode::Right => self.screen.composer.right(),
            KeyCode::Home => self.screen.composer.home(),
            KeyCode::End => self.screen.composer.end(),
            KeyCode::PageUp => self.look_back(),
            KeyCode::PageDown => self.screen.scroll = self.screen.scroll.saturating_sub(self.screen.page),
            _ => {}
        }
    }

    fn command(&mut self, c: char) {
        match c {
            'd' if self.screen.composer.text().is_empty() => self.over = true,
            'j' => self.insert("\n"),
            'a' => self.screen.composer.home(),
            'e' => self.screen.composer.end(),
            'u' => drop(self.screen.composer.take()),
            'n' => self.open(Open { new: true, ..Open::default() }),
            'o' if !self.screen.models().is_empty() => self.screen.choice = Some(0),
            'r' => self.regenerate(),
            _ => {}
        }
    }

    /// The first Ctrl-C stops what runs; with nothing to stop, or nobody to tell, the second leaves.
    fn interrupt(&mut self) {
        if self.screen.status.state == State::Connected && self.stop() {
            return;
        }
        self.over = self.leaving;
        self.leaving = true;
        self.screen.notice = Some("Ctrl-C once more leaves".to_owned());
    }

    /// Ends the running turn; `false`: there is none.
    fn stop(&mut self) -> bool {
        let (Some(turn_id), Some(session)) = (self.screen.transcript.running(), &self.session) else { return false };
        let stopped = session.stop(turn_id);
        self.doing.push(Box::pin(async move { Done::Asked(stopped.await) }));
        true
    }

    fn send(&mut self) {
        let Some(session) = &self.session else {
            let gone = self.screen.session.is_some();
            self.screen.notice = Some(if gone { GONE } else { "there is no conversation yet" }.to_owned());
            return;
        };
        if self.screen.composer.text().trim().is_empty() {
            return;
        }
        match session.send(self.screen.composer.text()) {
            Ok(mut message) => {
                let item = self.screen.transcript.say(&self.screen.composer.take());
                self.screen.scroll = 0;
                self.doing.push(Box::pin(async move {
                    let stored = message.stored().await;
                    Done::Stored(item, Box::new(message), stored)
                }));
            }
            Err(err) => self.screen.notice = Some(err.to_string()),
        }
    }

    fn regenerate(&mut self) {
        let (Some(turn_id), Some(session)) = (self.last_turn, &self.session) else { return };
        match session.regenerate(turn_id) {
            Ok(mut message) => self.doing.push(Box::pin(async move { Done::Asked(message.stored().await.map(drop)) })),
            Err(err) => self.screen.notice = Some(err.to_string()),
        }
    }

    fn choose(&mut self, code: KeyCode) {
        let (Some(choice), last) = (self.screen.choice, self.screen.models().len().saturating_sub(1)) else { return };
        match code {
            KeyCode::Up => self.screen.choice = Some(choice.saturating_sub(1)),
            KeyCode::Down => self.screen.choice = Some((choice + 1).min(last)),
            KeyCode::Enter => {
                self.screen.choice = None;
                let model = self.screen.models().get(choice).map(|model| model.id.clone());
                if let (Some(model_id), Some(session)) = (model, &self.session) {
                    let chosen = session.select_model(model_id);
                    self.doing.push(Box::pin(async move { Done::Asked(chosen.await) }));
                }
            }
            _ => self.screen.choice = None,
        }
    }

    /// Scrolls up, and reads what is before the first entry.
    fn look_back(&mut self) {
        self.screen.scroll += self.screen.page;
        let (Some(session), Some(oldest)) = (&self.session, self.screen.transcript.oldest()) else { return };
        if !self.screen.at_top || self.reading || oldest <= 1 {
            return;
        }
        self.reading = true;
        let older = session.older(oldest, HISTORY);
        self.doing.push(Box::pin(async move { Done::Older(older.await) }));
    }
}
