//! The load generator: what `chatbox bench` runs, and what benches of other servers measure with.
//!
//! [`process`] reads what a server costs, [`load`] asks it, [`report`] holds what came of it. None of them knows the
//! protocol: whatever answers a [`load::Pair`] can be measured the same way, in the same run. [`scenario`] is what
//! is asked of chatbox; it speaks through [`crate::client`].

mod device;
mod fill;
pub mod load;
mod model;
mod page;
pub mod plan;
mod plot;
pub mod process;
pub mod report;
pub mod scenario;
mod table;
pub mod target;

pub use page::html;
pub use table::{MARK_BEGIN, MARK_END, markdown, terminal};

use std::{fmt, sync::Arc, time::Duration};

use load::Pace;
use plan::{Scenario, Via};
use report::Row;
use scenario::Bench;

/// How far a run is, for whoever watches it.
#[derive(Debug)]
pub enum Step<'a> {
    /// a scenario begins
    Begins {
        /// which
        scenario: Scenario,
        /// over what; `None`: it has no transport
        via: Option<Via>,
        /// which round, from 1
        round: u32,
        /// of how many
        of: u32,
    },
    /// connections are being opened
    Opened {
        /// that are open
        open: usize,
        /// of how many
        of: usize,
    },
    /// load is sent for a time
    Loads {
        /// how fast
        pace: Pace,
        /// how long
        takes: Duration,
    },
    /// a measurement is done
    Measured(&'a Row),
    /// a scenario was left out, or broke
    Left {
        /// which
        scenario: Scenario,
        /// why
        why: String,
    },
}

/// Who is told.
#[derive(Clone)]
pub struct Tell(Arc<dyn Fn(Step<'_>) + Send + Sync>);

impl Tell {
    /// Tells a function. It is called from many tasks, and must not block.
    #[must_use]
    pub fn new(told: impl Fn(Step<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    fn step(&self, step: Step<'_>) {
        (self.0)(step);
    }
}

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tell")
    }
}

/// What a run of scenarios gave.
#[derive(Debug, Default)]
pub struct Ran {
    /// a row for each measurement, the median of its rounds
    pub rows: Vec<Row>,
    /// scenarios that could not be measured, and why
    pub broken: Vec<String>,
}

impl Bench {
    /// Runs scenarios one after the other. Within one, the rounds of its transports take turns, so that all see the
    /// same machine. One that breaks is told, and the next one runs.
    /// What was measured is in `ran` at once, for whoever drops this in the middle.
    pub async fn run_all(&self, scenarios: &[Scenario], ran: &mut Ran) {
        for &scenario in scenarios {
            if self.stop.is_cancelled() {
                break;
            }
            if scenario.needs_own_server() && !matches!(self.place, scenario::Place::Own(_)) {
                let why = "needs a server of its own: leave out --url".to_owned();
                self.tell.step(Step::Left { scenario, why });
                continue;
            }
            let rounds = self.rounds(scenario, &mut ran.broken).await;
            for row in medians(rounds) {
                self.tell.step(Step::Measured(&row));
                ran.rows.push(row);
            }
        }
    }

    /// All rounds of a scenario over all its transports.
    async fn rounds(&self, scenario: Scenario, broken: &mut Vec<String>) -> Vec<Row> {
        let vias: Vec<_> = match scenario {
            Scenario::Start => vec![None],
            _ => self.sizes.vias.iter().copied().map(Some).collect(),
        };
        let mut rows = Vec::new();
        for round in 1..=self.sizes.rounds {
            for &via in &vias {
                if self.stop.is_cancelled() {
                    return rows;
                }
                self.tell.step(Step::Begins { scenario, via, round, of: self.sizes.rounds });
                match self.run(scenario, via.unwrap_or(Via::Webtransport)).await {
                    Ok(measured) => rows.extend(measured),
                    Err(err) => {
                        let over = via.map(|via| format!(" over {via}")).unwrap_or_default();
                        broken.push(format!("{}{over}: {err:#}", scenario.name()));
                        self.tell.step(Step::Left { scenario, why: format!("{err:#}") });
                    }
                }
            }
        }
        rows
    }
}

/// One row for each variant and transport, in the order of their first rounds.
fn medians(rows: Vec<Row>) -> Vec<Row> {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for row in rows {
        let same = |one: &&mut Vec<Row>| {
            one.first().is_some_and(|first| {
                (&first.scenario, &first.variant, &first.transport, &first.server)
                    == (&row.scenario, &row.variant, &row.transport, &row.server)
            })
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.into_iter().filter_map(Row::median).collect()
}
