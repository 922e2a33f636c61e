//! A plot of a few lines on logarithmic axes, as an SVG by hand.
//!
//! It follows the reader's light or dark scheme, and tells its lines apart by shape and label too, not by
//! colour alone.

use std::fmt::Write as _;

pub struct Axis {
    /// What it counts, with the unit.
    pub label: String,
}

pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 86.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 58.0;

/// Colours that are read on white and on black, and apart by those who see no red or green.
const STYLE: &str = "\
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-size: 15px; font-weight: 600 }
    .grid { stroke: #d1d9e0; stroke-width: 1 }
    .axis { stroke: #59636e; stroke-width: 1 }
    .line { fill: none; stroke-width: 2 }
    .s0 { stroke: #0969da; fill: #0969da } .s1 { stroke: #bc4c00; fill: #bc4c00 }
    .s2 { stroke: #1a7f64; fill: #1a7f64 } .s3 { stroke: #8250df; fill: #8250df }
    .d1 { stroke-dasharray: 7 4 } .d2 { stroke-dasharray: 2 4 } .d3 { stroke-dasharray: 9 3 2 3 }
    text.label { stroke: none }
    .line.s0, .line.s1, .line.s2, .line.s3 { fill: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .grid { stroke: #30363d } .axis { stroke: #9198a1 }
      .s0 { stroke: #58a6ff; fill: #58a6ff } .s1 { stroke: #f0883e; fill: #f0883e }
      .s2 { stroke: #3fb99a; fill: #3fb99a } .s3 { stroke: #b392f0; fill: #b392f0 }
    }";

impl Plot {
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|l| &l.points);
        let (x_low, x_high) = bounds(points().map(|p| p.0), 2.0);
        let (y_low, y_high) = decades(bounds(points().map(|p| p.1), 2.0));
        let x_at = |x: f64| LEFT + (x / x_low).ln() / (x_high / x_low).ln() * (WIDTH - LEFT - RIGHT);
        let y_at = |y: f64| HEIGHT - BOTTOM - (y / y_low).ln() / (y_high / y_low).ln() * (HEIGHT - TOP - BOTTOM);
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" role=\"img\" aria-label=\"{}\">\n<style>\n    {STYLE}\n</style>",
            escape(&self.title)
        );
        let _ = writeln!(out, "<text class=\"title\" x=\"{LEFT}\" y=\"24\">{}</text>", escape(&self.title));
        for y in ticks(y_low, y_high) {
            let at = y_at(y);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                short(y)
            );
        }
        let mut xs: Vec<f64> = points().map(|p| p.0).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        for x in xs {
            let at = x_at(x);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 18.0,
                short(x)
            );
        }
        let _ = writeln!(
            out,
            "<path class=\"axis\" fill=\"none\" d=\"M{LEFT} {TOP}V{:.1}H{:.1}\"/>",
            HEIGHT - BOTTOM,
            WIDTH - RIGHT
        );
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
            HEIGHT - 14.0,
            escape(&self.x.label)
        );
        let middle = TOP + (HEIGHT - TOP - BOTTOM) / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"20\" y=\"{middle:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 20 {middle:.1})\">{}</text>",
            escape(&self.y.label)
        );
        let ends: Vec<f64> = self.lines.iter().map(|l| l.points.last().map_or(TOP, |p| y_at(p.1))).collect();
        for (number, (line, label_y)) in self.lines.iter().zip(apart(&ends)).enumerate() {
            let class = number % 4;
            let path: Vec<String> =
                line.points.iter().map(|(x, y)| format!("{:.1} {:.1}", x_at(*x), y_at(*y))).collect();
            let _ = writeln!(out, "<path class=\"line s{class} d{class}\" d=\"M{}\"/>", path.join("L"));
            for (x, y) in &line.points {
                let _ = writeln!(
                    out,
                    "<circle class=\"s{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"/>",
                    x_at(*x),
                    y_at(*y)
                );
            }
            let _ = writeln!(
                out,
                "<text class=\"label s{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT + 10.0,
                label_y + 4.0,
                escape(&line.name)
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

/// The least and greatest, at least a factor apart; something drawable when there are none.
fn bounds(values: impl Iterator<Item = f64>, apart: f64) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for value in values.filter(|v| v.is_finite() && *v > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if high == 0.0 {
        return (1.0, 10.0);
    }
    (low, high.max(low * apart))
}

/// Widened to 1, 2 or 5 times a power of ten.
fn decades((low, high): (f64, f64)) -> (f64, f64) {
    let steps = [1.0, 2.0, 5.0, 10.0];
    let base = |v: f64| 10f64.powf(v.log10().floor());
    let down = steps.iter().rev().map(|s| s * base(low)).find(|v| *v <= low * 1.000_001).unwrap_or(low);
    let up = steps.iter().map(|s| s * base(high)).find(|v| *v >= high * 0.999_999).unwrap_or(high);
    (down, up.max(2.0 * down))
}

/// 1, 2 and 5 times each power of ten in between; the powers alone when those would be too many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let mut all = Vec::new();
    let steps: &[f64] = if high / low > 2_000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut base = 10f64.powf(low.log10().floor());
    while base <= high * 1.000_001 {
        all.extend(steps.iter().map(|s| s * base).filter(|v| *v >= low * 0.999_999 && *v <= high * 1.000_001));
        base *= 10.0;
    }
    all
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", v / 1e6),
        v if v >= 1e4 => format!("{} k", v / 1e3),
        v if v >= 1.0 => format!("{v:.0}"),
        v => format!("{}", (v * 1e6).round() / 1e6),
    }
}

/// Labels at these heights, moved so that none covers another.
fn apart(heights: &[f64]) -> Vec<f64> {
    const LINE: f64 = 17.0;
    let mut order: Vec<(usize, f64)> = heights.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut last = f64::NEG_INFINITY;
    for (_, height) in &mut order {
        *height = height.max(last + LINE);
        last = *height;
    }
    order.sort_by_key(|(at, _)| *at);
    order.into_iter().map(|(_, height)| height).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_its_labels_and_a_path_per_line() {
        let plot = Plot {
            title: "a < b".into(),
            x: Axis { label: "callers".into() },
            y: Axis { label: "per second".into() },
            lines: vec![
                Line { name: "one".into(), points: vec![(1.0, 10.0), (512.0, 5_000.0)] },
                Line { name: "two".into(), points: vec![(1.0, 10.0), (512.0, 5_010.0)] },
            ],
        };
        let svg = plot.svg();
        assert_eq!(svg.matches("<path class=\"line").count(), 2);
        for text in ["a &lt; b", ">callers<", ">per second<", ">one<", ">two<", ">512<", "prefers-color-scheme: dark"] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn a_plot_of_nothing_is_drawn_all_the_same() {
        let plot = Plot {
            title: String::new(),
            x: Axis { label: String::new() },
            y: Axis { label: String::new() },
            lines: vec![],
        };
        assert!(!plot.svg().contains("NaN"));
    }

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        assert_eq!(apart(&[100.0, 101.0, 50.0]), [100.0, 117.0, 50.0]);
    }

    #[test]
    fn ticks_stay_within_the_axis() {
        assert_eq!(ticks(2.0, 100.0), [2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(decades((3.0, 120.0)), (2.0, 200.0));
    }
}
