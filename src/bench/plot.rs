//! Plots as SVG elements whose colours are the page's: every colour that is drawn stands for a class of the style sheet.
//!
//! They are drawn narrow, so that their text can be read where they fill a phone's width.

use std::ops::Range;

use plotters::{
    coord::combinators::IntoLogRange,
    prelude::*,
    style::{RGBColor, text_anchor::Pos},
};

use super::report::Row;

/// Size in units of the SVG; the page scales it.
const SIZE: (u32, u32) = (380, 260);

/// Colours that stand for those of the page, in the order of its `--series-…`. The page's style sheet names each.
pub(super) const SERIES: [RGBColor; 6] =
    [RGBColor(1, 0, 0), RGBColor(2, 0, 0), RGBColor(3, 0, 0), RGBColor(4, 0, 0), RGBColor(5, 0, 0), RGBColor(6, 0, 0)];

/// Stands for the colour of text.
const TEXT: RGBColor = RGBColor(0, 0, 1);

/// Stands for the colour of lines behind what is drawn.
const GRID: RGBColor = RGBColor(0, 0, 2);

/// What a curve is drawn of: a name, and points of quantile and milliseconds.
pub(super) struct Curve<'a> {
    pub(super) name: String,
    pub(super) points: &'a [(f64, f64)],
}

/// Latency by quantile, both logarithmic: how many nines a server keeps.
///
/// # Errors
/// When the library cannot draw it.
pub(super) fn latencies(curves: &[Curve<'_>]) -> anyhow::Result<String> {
    // The longest of all has no percentile of its own: it would be at infinity.
    let points = || curves.iter().flat_map(|curve| curve.points).filter(|point| point.1 > 0.0 && point.0 < 1.0);
    let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.1).fold(0.0, f64::max);
    if !low.is_finite() || high <= 0.0 {
        return Ok(String::new());
    }
    let nines = points().map(|point| nines(point.0)).fold(10.0, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let range = decade(low, high);
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(46)
            .build_cartesian_2d((1.0..nines * 1.2).log_scale(), range.log_scale())
            .map_err(drawn)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .x_labels(4)
            .x_label_formatter(&|nines| quantile(*nines))
            .x_desc("percentile")
            .y_desc("ms")
            .y_labels(6)
            .y_label_formatter(&|ms| plain(*ms))
            .label_style(text(14))
            .axis_desc_style(text(14))
            .draw()
            .map_err(drawn)?;
        for (curve, colour) in curves.iter().zip(SERIES.iter().cycle()) {
            let line = curve.points.iter().filter(|point| point.1 > 0.0 && point.0 < 1.0);
            let line = line.map(|(quantile, ms)| (self::nines(*quantile), *ms));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2))).map_err(drawn)?;
        }
        root.present().map_err(drawn)?;
    }
    Ok(svg)
}

/// One bar for each name, from left to right, with its value at its end.
///
/// # Errors
/// When the library cannot draw it.
pub(super) fn bars(bars: &[(String, f64, usize)]) -> anyhow::Result<String> {
    let high = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    let rows = u32::try_from(bars.len())?;
    if rows == 0 || high <= 0.0 {
        return Ok(String::new());
    }
    let mut svg = String::new();
    {
        let size = (SIZE.0, rows * 34 + 12);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let room = f64::from(SIZE.0) - 70.0;
        for ((name, value, series), row) in bars.iter().zip(0_i32..) {
            let top = row * 34 + 4;
            let colour = SERIES.get(series % SERIES.len()).copied().unwrap_or(TEXT);
            #[expect(clippy::cast_possible_truncation, reason = "at most the width of the plot")]
            let end = (room * value / high).max(2.0) as i32;
            root.draw(&Text::new(name.clone(), (0, top), text(14))).map_err(drawn)?;
            root.draw(&Rectangle::new([(0, top + 16), (end, top + 26)], colour.filled())).map_err(drawn)?;
            let shown = super::table::figure(*value);
            root.draw(&Text::new(shown, (end + 4, top + 15), text(14))).map_err(drawn)?;
        }
        root.present().map_err(drawn)?;
    }
    Ok(svg)
}

/// Rows of a scenario as curves.
pub(super) fn curves<'a>(rows: &[&'a Row]) -> Vec<Curve<'a>> {
    let curve = |row: &&'a Row| {
        let latency = row.latency.as_ref()?;
        let parts = [row.variant.as_str(), &row.transport].into_iter().filter(|part| !part.is_empty());
        Some(Curve { name: parts.collect::<Vec<_>>().join(", "), points: &latency.curve })
    };
    rows.iter().filter_map(curve).collect()
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT).pos(Pos::default())
}

fn nines(quantile: f64) -> f64 {
    1.0 / (1.0 - quantile).max(1e-6)
}

fn quantile(nines: f64) -> String {
    format!("{:.4}", 100.0 * (1.0 - 1.0 / nines)).trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn plain(value: f64) -> String {
    format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The decades that hold both.
fn decade(low: f64, high: f64) -> Range<f64> {
    10_f64.powf(low.log10().floor())..10_f64.powf(high.log10().ceil()).max(low * 10.0)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn drawn<E: std::error::Error + Send + Sync>(err: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow::anyhow!("cannot draw a plot: {err}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_in_the_colours_of_the_page() {
        let points: Vec<_> = (1..20).map(|at| (f64::from(at) / 20.0, f64::from(at))).collect();
        let svg = latencies(&[Curve { name: "paced".to_owned(), points: &points }]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("#010000") && svg.contains("<polyline"), "{svg}");
        assert_eq!(latencies(&[]).unwrap(), "");
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let svg = bars(&[("a".to_owned(), 10.0, 0), ("b".to_owned(), 5.0, 1)]).unwrap();
        assert!(svg.contains("width=\"310\"") && svg.contains("width=\"155\""), "{svg}");
        assert_eq!(bars(&[]).unwrap(), "");
    }

    #[test]
    fn nines_are_percentiles() {
        assert_eq!([1.0, 10.0, 100.0, 1000.0].map(quantile), ["0", "90", "99", "99.9"]);
    }
}
