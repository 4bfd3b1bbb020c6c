//! The binary: parses, runs the command, maps the error to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    chatbox::cli::main()
}
