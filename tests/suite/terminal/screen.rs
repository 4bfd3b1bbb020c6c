//! The client in a terminal, which `script` (util-linux) makes.

use std::process::Stdio;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::{flood, repeating};
use crate::harness::{
    Server,
    client::PATIENCE,
    eventually, openai,
    provider::{Gate, Provider, Script},
    server::Target,
};

/// What ends the alternate screen (xterm, control sequences): the terminal is given back.
const GIVEN_BACK: &str = "\u{1b}[?1049l";

struct Terminal {
    child: Child,
    keys: Option<ChildStdin>,
    screen: ChildStdout,
    shown: String,
}

impl Terminal {
    /// Runs a command line of a shell in which `$CHAT` is the client.
    fn run(server: &Target, line: &str) -> Self {
        let url = server.url.join("/chatbox").unwrap();
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]).env_clear().kill_on_drop(true);
        command.env("CHAT", format!("{} chat --url {url}", env!("CARGO_BIN_EXE_chatbox")));
        command.env("CHATBOX_TOKEN", server.token("ann")).env("TERM", "xterm").env("PATH", "/usr/bin:/bin");
        command.env("SHELL", "/bin/sh");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, screen) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, keys, screen, shown: String::new() }
    }

    async fn press(&mut self, keys: &str) {
        self.keys.as_mut().unwrap().write_all(keys.as_bytes()).await.unwrap();
    }

    /// Reads until something is drawn. Cells that stay as they are, blanks too, are not drawn again.
    async fn shows(&mut self, what: &str) {
        self.shown.clear();
        while !self.shown.contains(what) {
            let mut bytes = [0; 4096];
            let read = timeout(PATIENCE, self.screen.read(&mut bytes)).await;
            let read = read.unwrap_or_else(|_elapsed| panic!("no {what:?} in {:?}", self.shown)).unwrap();
            assert!(read > 0, "the end, and no {what:?} in {:?}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    async fn ends(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("an end in time").unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_conversation_has_nothing_to_be_answered_anew() {
    let gate = Gate::new();
    let provider = Provider::start(Script::answer(["half ", "never"]).gated(&gate)).await;
    let server = Server::with(|config| {
        openai(config, &provider);
        config.sessions.active_per_user = 4;
    });
    let server = server.await;
    let mut terminal = Terminal::run(&server, "stty rows 24 cols 80; exec $CHAT");
    terminal.shows(" connected ").await;
    terminal.press("hello\r").await;
    gate.release(1);
    terminal.shows("half").await;
    terminal.press("\u{1b}").await;
    terminal.shows("stopped").await;
    terminal.press("\u{12}").await;
    eventually("the model is asked anew", async || provider.requests() == 2).await;
    terminal.press("\u{e}").await;
    terminal.shows("conversation").await;
    terminal.press("\u{12}again\r").await;
    eventually("the model is asked", async || provider.requests() == 3).await;
    gate.open();
    terminal.shows("never").await;
    assert_eq!(provider.requests(), 3, "there was nothing to be answered anew");
    terminal.press("\u{4}").await;
    terminal.shows(GIVEN_BACK).await;
    assert_eq!(terminal.ends().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_told_to_end_gives_the_terminal_back() {
    let provider = repeating().await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let mut terminal = Terminal::run(&server, "stty rows 24 cols 80; sh -c 'echo pid=$$.; exec $CHAT'; echo ended=$?.");
    terminal.shows(" connected ").await;
    let pid = terminal.shown.split_once("pid=").and_then(|(_, rest)| rest.split_once('.')).unwrap().0.to_owned();
    terminal.press("hello\r").await;
    terminal.shows("re:").await;
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    terminal.shows("ended=0.").await;
    assert!(terminal.shown.contains(GIVEN_BACK), "{:?}", terminal.shown);
}

/// It shows what happened meanwhile when it is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_stands_still_shows_the_whole_answer_later() {
    let gate = Gate::new();
    // Lines that differ, so that the terminal has much to draw, and an end that shares no cell with them.
    let lines: Vec<_> = (0..8000).map(|line| format!("line {line:020}\n")).collect();
    let pieces = lines.iter().map(String::as_str).chain(["THE-END"]);
    let provider = Provider::start(Script::answer(pieces).gated(&gate)).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let mut terminal = Terminal::run(&server, "stty rows 24 cols 80; exec $CHAT");
    terminal.shows(" connected ").await;
    terminal.press("hello\r").await;
    terminal.shows("model").await;
    let pid = terminal.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-STOP", &pid]).status().await.unwrap().success());
    flood(&server, &gate).await;
    assert!(Command::new("kill").args(["-CONT", &pid]).status().await.unwrap().success());
    terminal.shows("THE-END").await;
    terminal.press("\u{4}").await;
    terminal.shows(GIVEN_BACK).await;
    assert_eq!(terminal.ends().await, Some(0));
}

/// Of a model that is not trusted, through a pipe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_does_not_steer_the_terminal() {
    let provider = Provider::start(Script::answer(["re\u{1b}[2Jd\u{9b}31m", "\tb\u{7}lue\n"])).await;
    let server = Server::with(|config| openai(config, &provider)).await;
    let mut terminal = Terminal::run(&server, "echo go | $CHAT; $CHAT </dev/null | wc -l");
    terminal.shows("0\r\n").await;
    assert_eq!(terminal.shown, "re[2Jd31m\tblue\r\n\r\n0\r\n");
    assert_eq!(terminal.ends().await, Some(0));
}
