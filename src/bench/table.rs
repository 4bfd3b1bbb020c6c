//! A report as text: a table for a terminal, and the tables of the README.

use std::fmt::Write;

use clap::ValueEnum;

use super::{
    plan::Scenario,
    report::{Report, Row},
};

/// Where the generated section of a document begins.
pub const MARK_BEGIN: &str = "<!-- bench:begin (made by `chatbox bench --markdown .github/bench.json`) -->";

/// Where it ends.
pub const MARK_END: &str = "<!-- bench:end -->";

const HEAD: [&str; 11] =
    ["scenario", "variant", "transport", "n", "failed", "CPU µs", "bytes", "per s", "p50 ms", "p99 ms", "p99.9 ms"];

/// How many of the columns are text, and go to the left.
const TEXTS: usize = 3;

/// The column of failures.
const FAILED: usize = 4;

/// One line for each row, in columns.
#[must_use]
pub fn terminal(report: &Report) -> String {
    let rows: Vec<_> = report.rows.iter().map(cells).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(HEAD.get(column).map(|head| head.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < TEXTS { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = line(&HEAD.map(str::to_owned)) + "\n";
    for row in &rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    for row in report.rows.iter().filter(|row| row.failures > 0) {
        let reasons = row.reasons.join("; ");
        push(&mut text, format_args!("{} failures of {}: {reasons}\n", row.failures, name(row)));
    }
    for compared in &report.comparisons {
        let verdict = if compared.met() { "met" } else { "NOT met" };
        let bar = compared.must.map(|must| format!(", must be at most {must}: {verdict}")).unwrap_or_default();
        let (name, peer, ratio) = (&compared.name, &compared.peer, compared.ratio);
        push(&mut text, format_args!("{name}: {ratio:.2} x {peer}{bar}\n"));
    }
    text
}

/// The tables of the README: one for each scenario, and what they were measured on.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = String::new();
    push(
        &mut text,
        format_args!(
            "`{}` on {} cores ({}), {}, TCP congestion control {}, chatbox {} ({} build). Each number is the median of \
             its rounds; CPU is that of the server's process.\n\n",
            report.command,
            machine.cores,
            machine.cpu,
            machine.kernel,
            machine.tcp_congestion_control,
            report.version,
            report.build,
        ),
    );
    for scenario in scenarios(report) {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.scenario == scenario).collect();
        let about = about(scenario).map(|about| format!(": {about}")).unwrap_or_default();
        push(&mut text, format_args!("**{scenario}**{about}\n\n"));
        scenario_table(&mut text, &rows);
        text.push('\n');
    }
    if report.comparisons.is_empty() {
        return text;
    }
    text.push_str(
        "\n| compared in the same run | with | ratio | must | moonshot |\n| --- | --- | ---: | ---: | ---: |\n",
    );
    for compared in &report.comparisons {
        let bar = |bar: Option<f64>| bar.map(|bar| format!("≤ {bar}")).unwrap_or_default();
        let (must, moonshot) = (bar(compared.must), bar(compared.moonshot));
        let (name, peer, ratio) = (&compared.name, &compared.peer, compared.ratio);
        push(&mut text, format_args!("| {name} | {peer} | {ratio:.2} | {must} | {moonshot} |\n"));
    }
    text
}

/// The scenarios that a report has rows of, in its order.
pub(super) fn scenarios(report: &Report) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !found.contains(&row.scenario.as_str()) {
            found.push(&row.scenario);
        }
    }
    found
}

/// What a scenario is about; `None` for those of other benches.
pub(super) fn about(scenario: &str) -> Option<String> {
    let value = Scenario::ALL.into_iter().find(|known| known.name() == scenario)?.to_possible_value()?;
    value.get_help().map(ToString::to_string)
}

/// One scenario's rows. Columns without any value are left out, and so is that of failures when nothing failed.
fn scenario_table(text: &mut String, rows: &[&Row]) {
    let cells: Vec<_> = rows.iter().map(|row| cells(row)).collect();
    let says = |column: usize| {
        let empty = if column == FAILED { "0" } else { "" };
        cells.iter().filter_map(|row| row.get(column)).any(|cell| cell != empty)
    };
    let others = rows.iter().any(|row| row.server != "chatbox");
    let shown: Vec<_> = (0..HEAD.len()).filter(|column| if *column == 0 { others } else { says(*column) }).collect();
    let line = |cells: &[String]| {
        let cells = shown.iter().filter_map(|column| cells.get(*column));
        cells.map(String::as_str).collect::<Vec<_>>().join(" | ")
    };
    let rules: Vec<_> = shown.iter().map(|column| if *column < TEXTS { "---" } else { "---:" }).collect();
    push(text, format_args!("| {} |\n| {} |\n", line(&HEAD.map(str::to_owned)), rules.join(" | ")));
    for row in &cells {
        push(text, format_args!("| {} |\n", line(row)));
    }
}

/// A row's name for people.
pub(super) fn name(row: &Row) -> String {
    let parts = [row.scenario.as_str(), &row.variant, &row.transport];
    let named = parts.into_iter().chain((row.server != "chatbox").then_some(&*row.server));
    named.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn cells(row: &Row) -> Vec<String> {
    let number = |value: Option<f64>| value.map(figure).unwrap_or_default();
    let latency = |of: fn(&super::report::Latency) -> f64| number(row.latency.as_ref().map(of));
    let scenario =
        if row.server == "chatbox" { row.scenario.clone() } else { format!("{}: {}", row.scenario, row.server) };
    vec![
        scenario,
        row.variant.clone(),
        row.transport.clone(),
        row.n.to_string(),
        row.failures.to_string(),
        number(row.cpu_us),
        number(row.bytes),
        number(row.per_second),
        latency(|latency| latency.p50),
        latency(|latency| latency.p99),
        latency(|latency| latency.p999),
    ]
}

/// Three significant digits; more says nothing on a machine that is shared.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[expect(clippy::expect_used, reason = "writing to a String has no error")]
pub(super) fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes what is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Comparison, Latency, sample};

    #[test]
    fn the_table_has_a_line_for_each_row_and_tells_failures() {
        let mut report = sample();
        report.rows[0].failures = 2;
        report.rows[0].reasons = vec!["no answer within 10s".to_owned()];
        let text = terminal(&report);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("scenario") && lines[0].ends_with("p99.9 ms"), "{text}");
        assert!(lines[1].starts_with("relay") && lines[1].contains("12.5"), "{text}");
        assert!(text.contains("2 failures of relay, paced, websocket: no answer within 10s"), "{text}");
    }

    #[test]
    fn markdown_has_a_table_for_each_scenario_without_empty_columns() {
        let mut report = sample();
        report.rows[0].latency = Some(Latency { p50: 0.4567, p99: 12.34, p999: 123.4, ..Latency::default() });
        let text = markdown(&report);
        assert!(text.contains(&format!("`{}`", report.command)), "{text}");
        assert!(text.contains("**relay**: `typing_indicator` from one device to another"), "{text}");
        let table: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        let head = "| variant | transport | n | CPU µs | p50 ms | p99 ms | p99.9 ms |";
        let row = "| paced | websocket | 100 | 12.5 | 0.457 | 12.3 | 123 |";
        assert_eq!(table, [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |", row]);
        report.rows[0].failures = 1;
        assert!(markdown(&report).contains("| n | failed |"));
        let bar = Comparison {
            name: "relay".to_owned(),
            peer: "echo".to_owned(),
            ratio: 1.6,
            must: Some(1.5),
            moonshot: None,
        };
        report.comparisons.push(bar);
        assert!(markdown(&report).contains("| relay | echo | 1.60 | ≤ 1.5 |"));
        assert!(terminal(&report).contains("relay: 1.60 x echo, must be at most 1.5: NOT met"));
    }
}
