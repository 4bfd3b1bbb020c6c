//! The command line: parses, sets up the log, runs one command, and maps its error to an exit code.
//!
//! Results go to standard output, everything else to standard error.

mod bench;
mod chat;
mod check_config;
mod doctor;
mod healthcheck;
mod log;
mod ops;
mod rotate_keys;
mod serve;
mod token;

use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::config::{self, Loaded, environment, fault::Faults};

/// Real-time AI chat server: WebTransport over QUIC first, WebSocket beside it.
#[derive(Parser, Debug)]
#[command(name = "chatbox", version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Args, Debug)]
struct Global {
    /// Configuration file (TOML); also CHATBOX_CONFIG
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key over file and environment, such as limits.streams=8; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
    /// Print results and the log as JSON, for machines
    #[arg(long, global = true)]
    json: bool,
    /// Filter of the log, such as debug or chatbox=debug,warn; also CHATBOX_LOG. A release build has nothing below debug
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the server (what happens without a command)
    Serve(serve::Ask),
    /// Print a token that this deployment accepts
    Token(token::Ask),
    /// Talk to a server: in the terminal, or line by line through pipes
    Chat(chat::Ask),
    /// Check the configuration, print what is in effect, without secrets, and try the endpoints of models
    CheckConfig(check_config::Ask),
    /// Look for what keeps this configuration from running here, and say what to do about it
    Doctor(doctor::Ask),
    /// Ask the running server of this configuration whether it is ready
    Healthcheck,
    /// Seal everything that is stored with the first configured key, so that the others can be taken away
    RotateKeys,
    /// Load a server, one of its own unless told otherwise, and report what it costs
    Bench(Box<bench::Ask>),
}

/// Parses the arguments, runs the command and maps its error to an exit code: 0 done, 1 failed, 64 bad usage or
/// configuration (`EX_USAGE` of sysexits.h).
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version go to standard output and are no errors. A reader that went away is none either.
            drop(err.print());
            return if err.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if broken_pipe(&err) => ExitCode::SUCCESS,
        Err(err) => {
            complain(cli.global.json, &err);
            let usage = err.chain().any(|cause| cause.is::<Faults>() || cause.is::<BadUsage>());
            if usage { Exit::Usage.into() } else { Exit::Failed.into() }
        }
    }
}

/// Exit codes other than 0.
#[derive(Clone, Copy)]
enum Exit {
    Failed = 1,
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Failed => Self::from(1),
            Exit::Usage => Self::from(64),
        }
    }
}

/// A mistake in an argument that only a command can notice.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadUsage(String);

fn run(cli: &Cli) -> anyhow::Result<()> {
    let usual = match cli.command {
        // A log would be written across what people read and type.
        Some(Command::Chat(_)) => "off",
        // Thousands of connections are ended at a time, and WebTransport's client has a line for each.
        Some(Command::Bench(_)) => "warn,web_transport_quinn=error",
        // What the client of NATS has to say is said by the bus.
        _ => "info,async_nats=off",
    };
    all_text()?;
    let log = log::Log::start(&cli.global, usual)?;
    let Some(command) = &cli.command else { return serve::run(&cli.global, &serve::Ask::default(), log.dropped()) };
    match command {
        Command::Serve(ask) => serve::run(&cli.global, ask, log.dropped()),
        Command::Token(ask) => token::run(&cli.global, ask),
        Command::Chat(ask) => chat::run(&cli.global, ask),
        Command::CheckConfig(ask) => check_config::run(&cli.global, ask),
        Command::Doctor(ask) => doctor::run(&cli.global, ask),
        Command::Healthcheck => healthcheck::run(&cli.global),
        Command::RotateKeys => rotate_keys::run(&cli.global),
        Command::Bench(ask) => bench::run(&cli.global, ask),
    }
}

impl Global {
    /// Reads the configuration of this process.
    fn load(&self) -> Result<Loaded, Faults> {
        config::load(self.config.as_deref(), variables(), &self.overrides)
    }

    /// Reads the configuration, and logs what the operator should know.
    fn load_and_warn(&self) -> Result<config::Config, Faults> {
        let loaded = self.load()?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(loaded.config)
    }
}

/// Refuses a setting that is no text: it would count as not set.
fn all_text() -> Result<(), BadUsage> {
    for (name, value) in std::env::vars_os() {
        if let Some(name) = name.to_str().filter(|name| environment::ours(name) && value.to_str().is_none()) {
            return Err(BadUsage(format!("{name} is not UTF-8")));
        }
    }
    Ok(())
}

/// The environment of this process. A variable that is not UTF-8 is none of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn key_value(text: &str) -> Result<(String, String), BadUsage> {
    let (key, value) = text.split_once('=').ok_or_else(|| BadUsage(format!("`{text}` is not KEY=VALUE")))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Prints a command's result.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("write the result")
}

fn broken_pipe(err: &anyhow::Error) -> bool {
    err.downcast_ref::<std::io::Error>().is_some_and(|err| err.kind() == ErrorKind::BrokenPipe)
}

/// Says on standard error why the command failed. If nobody reads it, the exit code has to do.
fn complain(json: bool, err: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    let written = if json {
        let faults = err.downcast_ref::<Faults>().map(|faults| {
            let fault = |fault: &config::fault::Fault| {
                serde_json::json!({ "key": fault.key, "origin": fault.origin, "problem": fault.problem })
            };
            faults.0.iter().map(fault).collect::<Vec<_>>()
        });
        writeln!(out, "{}", serde_json::json!({ "error": format!("{err:#}"), "faults": faults }))
    } else {
        writeln!(out, "error: {err:#}")
    };
    drop(written);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
        let names: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert_eq!(names, ["serve", "token", "chat", "check-config", "doctor", "healthcheck", "rotate-keys", "bench"]);
    }
}
