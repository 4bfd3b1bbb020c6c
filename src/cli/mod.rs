//! The command line.

use std::process::ExitCode;

/// Parses the arguments, runs the command and maps its error to an exit code.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
