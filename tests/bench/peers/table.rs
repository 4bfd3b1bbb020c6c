//! The report for people.

use chatbox::bench::report::{Comparison, Report, Row};

/// One sample, as it comes in.
pub(crate) fn line(row: &Row, round: usize) -> String {
    format!("round {round}: {}", columns(row))
}

/// Rows, then ratios with their bars.
pub(crate) fn print(report: &Report) {
    println!("\n{}, {} build, {}, {}", report.machine.cpu, report.build, report.machine.kernel, settings(report));
    println!("{:<12} {:<14} {:<20} {:>9} {:>9} {:>10}", "scenario", "transport", "server", "n", "CPU us", "bytes");
    for row in &report.rows {
        println!("{}", columns(row));
    }
    println!("\n{:<46} {:<20} {:>6} {:>6} {:>9}", "chatbox / peer", "peer", "ratio", "must", "moonshot");
    for comparison in &report.comparisons {
        println!("{}", verdict(comparison));
    }
}

fn settings(report: &Report) -> String {
    let all: Vec<_> = report.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("TCP {}, {}", report.machine.tcp_congestion_control, all.join(" "))
}

fn columns(row: &Row) -> String {
    let number = |value: Option<f64>, digits| value.map_or_else(String::new, |value| format!("{value:.digits$}"));
    let mut line = format!(
        "{:<12} {:<14} {:<20} {:>9} {:>9} {:>10}",
        row.scenario,
        row.transport,
        row.server,
        row.n,
        number(row.cpu_us, 2),
        number(row.bytes, 0)
    );
    if let Some(latency) = &row.latency {
        line += &format!("  p50 {:.2} ms, p99 {:.2} ms", latency.p50, latency.p99);
    }
    for (key, value) in &row.settings {
        line += &format!("  {key}={value}");
    }
    if row.failures > 0 {
        line += &format!("  {} FAILED: {}", row.failures, row.reasons.join("; "));
    }
    line
}

fn verdict(comparison: &Comparison) -> String {
    let Comparison { name, peer, ratio, must, moonshot } = comparison;
    let bar = |bar: &Option<f64>| bar.map_or_else(String::new, |bar| format!("{bar:.2}"));
    let met = match (must, moonshot) {
        (_, Some(moonshot)) if ratio <= moonshot => "moonshot met",
        (Some(_), _) if comparison.met() => "met",
        (Some(_), _) => "NOT MET",
        (None, Some(_)) => "moonshot not met",
        (None, None) => "",
    };
    format!("{name:<46} {peer:<20} {ratio:>6.2} {:>6} {:>9}  {met}", bar(must), bar(moonshot))
}
