//! How far a bench is: bars on a terminal, lines elsewhere, nothing for machines. All of it on standard error.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::{Step, report::Row};

/// Between two turns of a bar.
const TICK: Duration = Duration::from_millis(100);

pub(super) struct Progress {
    form: Form,
    /// what is being measured, for the bar
    now: Mutex<String>,
}

enum Form {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    /// For machines nothing is shown.
    pub(super) fn new(json: bool) -> Self {
        let form = match (json, stderr().is_terminal()) {
            (true, _) => Form::Silent,
            (false, false) => Form::Lines,
            (false, true) => Form::Bar(ProgressBar::no_length()),
        };
        Self { form, now: Mutex::default() }
    }

    /// Shows one step.
    pub(super) fn show(&self, step: &Step<'_>) {
        match &self.form {
            Form::Silent => {}
            Form::Lines => {
                if let Some(line) = line(step) {
                    // Nobody has to read it for the bench to run.
                    drop(writeln!(stderr(), "{line}"));
                }
            }
            Form::Bar(bar) => self.turn(bar, step),
        }
    }

    fn turn(&self, bar: &ProgressBar, step: &Step<'_>) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Begins { .. } => {
                *now = line(step).unwrap_or_default();
                bar.set_style(ProgressStyle::default_spinner());
                bar.enable_steady_tick(TICK);
                bar.set_message(now.clone());
            }
            Step::Opened { open, of } => {
                bar.set_style(style("{msg}  [{bar:24}] {pos}/{len} connections"));
                bar.set_length(u64::try_from(*of).unwrap_or(u64::MAX));
                bar.set_position(u64::try_from(*open).unwrap_or(u64::MAX));
            }
            Step::Loads { pace, takes } => {
                bar.set_style(style("{spinner} {msg}  {elapsed}"));
                bar.reset_elapsed();
                bar.set_message(format!("{now}, {pace} for {:.1} s", takes.as_secs_f64()));
            }
            Step::Measured(_) | Step::Left { .. } => {
                bar.println(line(step).unwrap_or_default());
            }
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

/// A template of this file; the library's own if it has a fault.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// The line of a step; those that come often have none.
fn line(step: &Step<'_>) -> Option<String> {
    match step {
        Step::Begins { scenario, via, round, of } => {
            let over = via.map(|via| format!(" over {via}")).unwrap_or_default();
            let round = if *of > 1 { format!(", round {round} of {of}") } else { String::new() };
            Some(format!("{}{over}{round}", scenario.name()))
        }
        Step::Measured(row) => Some(format!("  {}", measured(row))),
        Step::Left { scenario, why } => Some(format!("  {} left out: {why}", scenario.name())),
        Step::Opened { .. } | Step::Loads { .. } => None,
    }
}

fn measured(row: &Row) -> String {
    let mut parts = vec![format!("{} {} {}: {} × {}", row.scenario, row.variant, row.transport, row.n, row.unit)];
    parts.extend(row.cpu_us.map(|cpu| format!("CPU {cpu:.1} µs each")));
    parts.extend(row.bytes.map(|bytes| format!("{bytes:.0} bytes each")));
    parts.extend(row.latency.as_ref().map(|latency| format!("p50 {:.2} ms, p99 {:.2} ms", latency.p50, latency.p99)));
    parts.extend(row.total_ms.map(|ms| format!("all in {ms:.0} ms")));
    parts.extend((row.failures > 0).then(|| format!("{} FAILED", row.failures)));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::{Scenario, Via};

    #[test]
    fn lines_say_what_was_measured() {
        let begins = Step::Begins { scenario: Scenario::Relay, via: Some(Via::Wss), round: 2, of: 3 };
        assert_eq!(line(&begins).unwrap(), "relay over wss, round 2 of 3");
        let row = Row { scenario: "relay".to_owned(), n: 10, cpu_us: Some(12.34), failures: 1, ..Row::default() };
        assert_eq!(line(&Step::Measured(&row)).unwrap(), "  relay  : 10 × message, CPU 12.3 µs each, 1 FAILED");
    }
}
