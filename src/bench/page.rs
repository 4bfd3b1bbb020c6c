//! A report as one HTML file: tables and plots, for light and dark, wide and narrow screens. It refers to nothing
//! outside itself and needs no script.

use super::{
    plot::{self, SERIES},
    report::{Report, Row},
    table::{about, figure, name, push, scenarios},
};

/// The whole page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(report: &Report) -> anyhow::Result<String> {
    let mut page = String::new();
    push(
        &mut page,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>chatbox bench</title>\n<style>{STYLE}{}</style>\n</head>\n<body>\n<main>\n",
            colours()
        ),
    );
    head(&mut page, report);
    for scenario in scenarios(report) {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.scenario == scenario).collect();
        section(&mut page, scenario, &rows)?;
    }
    comparisons(&mut page, report);
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

fn head(page: &mut String, report: &Report) {
    let machine = &report.machine;
    push(page, format_args!("<h1>chatbox bench</h1>\n<p><code>{}</code></p>\n<dl>\n", escaped(&report.command)));
    let gibibytes = machine.memory_bytes >> 30;
    let facts = [
        ("chatbox", format!("{}, {} build", report.version, report.build)),
        ("machine", format!("{} cores, {}, {gibibytes} GiB", machine.cores, machine.cpu)),
        ("kernel", format!("{}, TCP congestion control {}", machine.kernel, machine.tcp_congestion_control)),
        ("load average", format!("{} before, {} after", report.load_before, report.load_after)),
    ];
    let settings = report.settings.iter().map(|(key, value)| (key.as_str(), value.clone()));
    for (key, value) in facts.into_iter().chain(settings) {
        push(page, format_args!("<dt>{}</dt><dd>{}</dd>\n", escaped(key), escaped(&value)));
    }
    page.push_str("</dl>\n");
    if report.stopped {
        page.push_str("<p class=\"bad\">The run was ended before its time.</p>\n");
    }
    if report.build == "debug" {
        page.push_str("<p class=\"bad\">A debug build: its numbers say nothing about speed.</p>\n");
    }
}

fn section(page: &mut String, scenario: &str, rows: &[&Row]) -> anyhow::Result<()> {
    push(page, format_args!("<section>\n<h2>{}</h2>\n", escaped(scenario)));
    if let Some(about) = about(scenario) {
        push(page, format_args!("<p>{}.</p>\n", escaped(&about.replace('`', ""))));
    }
    table(page, rows);
    page.push_str("<div class=\"plots\">\n");
    let unit = rows.first().map(|row| row.unit.to_string()).unwrap_or_default();
    for (title, value) in [
        (format!("server CPU, µs for each {unit}"), (|row: &Row| row.cpu_us) as fn(&Row) -> Option<f64>),
        (format!("server memory, bytes for each {unit}"), |row| row.bytes),
        ("all of it, ms".to_owned(), |row| row.total_ms),
    ] {
        let bars: Vec<_> =
            rows.iter().enumerate().filter_map(|(place, row)| Some((label(row), value(row)?, place))).collect();
        figure_of(page, &title, &plot::bars(&bars)?, &[]);
    }
    let curves = plot::curves(rows);
    let names: Vec<_> = curves.iter().map(|curve| curve.name.as_str()).collect();
    figure_of(page, "latency by percentile", &plot::latencies(&curves)?, &names);
    page.push_str("</div>\n</section>\n");
    Ok(())
}

fn label(row: &Row) -> String {
    let parts = [row.variant.as_str(), &row.transport].into_iter();
    let parts = parts.chain((row.server != "chatbox").then_some(&*row.server));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// A plot with a title, and a legend of its curves; nothing where there is nothing to see.
fn figure_of(page: &mut String, title: &str, svg: &str, legend: &[&str]) {
    if svg.is_empty() {
        return;
    }
    push(page, format_args!("<figure>\n<figcaption>{}</figcaption>\n{svg}\n", escaped(title)));
    if !legend.is_empty() {
        page.push_str("<ul class=\"legend\">");
        for (place, name) in legend.iter().enumerate() {
            push(page, format_args!("<li class=\"s{}\">{}</li>", place % SERIES.len(), escaped(name)));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</figure>\n");
}

fn table(page: &mut String, rows: &[&Row]) {
    page.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th>variant</th><th>n</th><th>failed</th><th>CPU µs</th>\
         <th>bytes</th><th>per s</th><th>p50 ms</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr></thead>\n\
         <tbody>\n",
    );
    for row in rows {
        let bad = if row.failures > 0 { " class=\"bad\"" } else { "" };
        let title = row.settings.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", ");
        push(page, format_args!("<tr{bad}><th title=\"{}\">{}</th>", escaped(&title), escaped(&label(row))));
        push(page, format_args!("<td>{}</td><td>{}</td>", row.n, row.failures));
        let latency = row.latency.as_ref();
        let times: [fn(&super::report::Latency) -> f64; 5] =
            [|of| of.p50, |of| of.p90, |of| of.p99, |of| of.p999, |of| of.max];
        let values = [row.cpu_us, row.bytes, row.per_second].into_iter();
        for value in values.chain(times.into_iter().map(|time| latency.map(time))) {
            push(page, format_args!("<td>{}</td>", value.map(figure).unwrap_or_default()));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
    for row in rows.iter().filter(|row| !row.reasons.is_empty()) {
        push(
            page,
            format_args!("<p class=\"bad\">{}: {}</p>\n", escaped(&name(row)), escaped(&row.reasons.join("; "))),
        );
    }
}

fn comparisons(page: &mut String, report: &Report) {
    if report.comparisons.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>Compared in the same run</h2>\n<div class=\"wide\"><table>\n<thead><tr><th>what</th>\
         <th>with</th><th>ratio</th><th>must</th><th>moonshot</th></tr></thead>\n<tbody>\n",
    );
    for compared in &report.comparisons {
        let bar = |bar: Option<f64>| bar.map(|bar| format!("≤ {bar}")).unwrap_or_default();
        let class = if compared.met() { "" } else { " class=\"bad\"" };
        push(
            page,
            format_args!(
                "<tr{class}><th>{}</th><td>{}</td><td>{:.2}</td><td>{}</td><td>{}</td></tr>\n",
                escaped(&compared.name),
                escaped(&compared.peer),
                compared.ratio,
                bar(compared.must),
                bar(compared.moonshot),
            ),
        );
    }
    page.push_str("</tbody></table></div>\n</section>\n");
}

/// What the plots draw in stands for the page's colours: as fill, as line, and in legends.
fn colours() -> String {
    let mut css = String::new();
    for (place, colour) in SERIES.iter().enumerate() {
        let hex = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
        push(
            &mut css,
            format_args!(
                "[fill=\"{hex}\"]{{fill:var(--s{place})}}[stroke=\"{hex}\"]{{stroke:var(--s{place})}}\
                 .s{place}::before{{background:var(--s{place})}}\n"
            ),
        );
    }
    css
}

fn escaped(text: &str) -> String {
    let escape = |c| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

const STYLE: &str = r##"
:root{color-scheme:light dark;--fg:#1b1f24;--soft:#59636e;--line:#d5dae0;--bg:#fff;--bad:#b3261e;
--s0:#0b62c4;--s1:#c2410c;--s2:#157347;--s3:#7b2fbf;--s4:#a8690a;--s5:#0b7a84}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ee;--soft:#9da7b3;--line:#363d47;--bg:#14171c;--bad:#ff8a80;
--s0:#6db3ff;--s1:#ff9b63;--s2:#5fd098;--s3:#c99bff;--s4:#f0bd5b;--s5:#56cfd9}}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2rem 0 .25rem}p{margin:.25rem 0 .75rem}
code{font-size:.9rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:.5rem 0;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{text-align:left;font-weight:500}thead th{color:var(--soft);font-weight:500}
.bad,.bad th{color:var(--bad)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:16px;margin-top:12px;align-items:start}
figure{margin:0;border:1px solid var(--line);border-radius:8px;padding:10px;min-width:0;max-width:520px}
figcaption{font-size:.85rem;color:var(--soft);margin-bottom:6px}
svg{width:100%;height:auto;display:block}
svg text{font-family:system-ui,sans-serif}
[fill="#000001"]{fill:var(--fg)}[stroke="#000002"]{stroke:var(--line)}[fill="#000002"]{fill:var(--line)}
.legend{list-style:none;margin:8px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.8rem}
.legend li::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
"##;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Comparison, Latency, sample};

    #[test]
    fn the_page_refers_to_nothing_outside_itself_and_has_no_script() {
        let mut report = sample();
        let curve = (1..20).map(|at| (f64::from(at) / 20.0, f64::from(at))).collect();
        report.rows[0].latency = Some(Latency { p50: 1.0, curve, ..Latency::default() });
        report.rows[0].reasons = vec!["<script>alert(1)</script>".to_owned()];
        let moonshot = Some(1.2);
        let (name, peer) = ("a & b".to_owned(), "echo".to_owned());
        report.comparisons.push(Comparison { name, peer, ratio: 2.0, must: Some(1.5), moonshot });
        let page = html(&report).unwrap();
        assert_eq!(page.matches("<svg").count(), 2, "{page}");
        assert!(page.contains("a &amp; b") && page.contains("&lt;script&gt;"), "{page}");
        let without_namespace = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
            assert!(!without_namespace.contains(outside), "{outside}");
        }
    }
}
