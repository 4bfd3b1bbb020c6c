//! The runs as one HTML page: for each a table and the share of arrivals that took longer than so many milliseconds.
//! It needs nothing else, and follows the reader's light or dark colours.

use std::fmt::Write as _;

use anyhow::Context as _;
use plotters::prelude::*;

use super::{
    experiment::Variant,
    report::{Latencies, Report, Run, milliseconds, ratio},
};

const SIZE: (u32, u32) = (640, 360);

/// The shares that are shown: one in a thousand is as far as some hundred samples tell.
const LEAST_SHARE: f64 = 0.001;

/// Latencies that are shown, in milliseconds.
const LEAST: f64 = 35.0;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem;max-width:84rem;\
color-scheme:light dark}pre{overflow-x:auto}figure{display:inline-block;margin:0 1rem 1rem 0;max-width:100%}\
svg{max-width:100%;height:auto}svg text{fill:currentColor}svg [stroke=\"#000000\"]{stroke:currentColor}";

/// Writes the page.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut page = String::from("<!doctype html><html lang=en><meta charset=utf-8>");
    page.push_str(
        "<meta name=viewport content=\"width=device-width,initial-scale=1\"><title>chatbox: loss lab</title>",
    );
    write!(page, "<style>{STYLE}</style><h1>Loss lab</h1><pre>{}\n{}</pre>", report.command, report.kernel)?;
    write!(page, "<p>{}</p>", report.absent)?;
    for run in &report.runs {
        write!(page, "<h2>{}</h2><pre>{run}</pre>", run.link)?;
        for (title, of) in [("Messages", messages as fn(&Run) -> Vec<Curve<'_>>), ("Pieces of answers", pieces)] {
            let drawn = draw(&of(run)).with_context(|| format!("draw {title}"))?;
            write!(
                page,
                "<figure>{drawn}<figcaption>{title}: share that took longer, by milliseconds</figcaption></figure>"
            )?;
        }
    }
    Ok(page)
}

type Curve<'a> = (Variant, &'a str, &'a Latencies);

fn messages(run: &Run) -> Vec<Curve<'_>> {
    run.rows.iter().map(|row| (row.variant, row.name.as_str(), &row.messages)).collect()
}

fn pieces(run: &Run) -> Vec<Curve<'_>> {
    run.rows.iter().map(|row| (row.variant, row.name.as_str(), &row.pieces)).collect()
}

/// Told apart in light and dark, and by readers who do not see red and green (Okabe and Ito, 2008).
const fn colour(variant: Variant) -> RGBColor {
    match variant {
        Variant::Bbr => RGBColor(213, 94, 0),
        Variant::Cubic => RGBColor(204, 121, 167),
        Variant::Streams => RGBColor(0, 114, 178),
        Variant::Copies => RGBColor(0, 158, 115),
    }
}

fn draw(curves: &[Curve<'_>]) -> anyhow::Result<String> {
    let mut svg = String::new();
    let most = curves.iter().map(|(.., latencies)| latencies.most).fold(LEAST * 4.0, f64::max);
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(56)
            .build_cartesian_2d(LEAST..most, (LEAST_SHARE..1.0).log_scale())?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(8)
            .x_label_formatter(&|ms| format!("{ms:.0} ms"))
            .y_label_formatter(&|share| format!("{:.1} %", share * 100.0))
            .draw()?;
        for (variant, name, latencies) in curves {
            let colour = colour(*variant);
            let line = LineSeries::new(tail(latencies), colour.stroke_width(2));
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2));
            chart.draw_series(line)?.label(*name).legend(legend);
        }
        chart.configure_series_labels().position(SeriesLabelPosition::UpperRight).draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// For each latency the share of arrivals that took longer.
fn tail(latencies: &Latencies) -> Vec<(f64, f64)> {
    let n = latencies.n;
    let points = latencies.sorted.iter().enumerate();
    points.map(|(index, latency)| (milliseconds(*latency), ratio(n - index - 1, n).max(LEAST_SHARE))).collect()
}
