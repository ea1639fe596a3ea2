//! A plot of ratios as SVG: one row per candidate, a bar to the median, a whisker over the range.

use std::fmt::Write as _;

use super::report::Role;
use super::spread::Spread;

/// Sizes in pixels. Names of candidates stand left of the bars, figures right of them.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 96.0;
const ROW: f64 = 34.0;
const BAR: f64 = 18.0;
const BOTTOM: f64 = 64.0;

/// Lines of the scale, at most.
const TICKS_MAX: f64 = 8.0;

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) ratio: Spread,
}

/// Draws the rows under a title and lines that say what was measured on what.
pub(super) fn svg(title: &str, lines: &[String], rows: &[Row]) -> String {
    let most = rows.iter().map(|row| row.ratio.most).filter(|most| most.is_finite()).fold(1.0, f64::max);
    let step = step(most);
    let end = (most / step).ceil() * step;
    let x = |ratio: f64| LEFT + ratio / end * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * rows.len() as f64;
    let height = bottom + BOTTOM;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    // Writing to a string cannot fail, here and below.
    for (at, line) in lines.iter().enumerate() {
        let y = 50.0 + 17.0 * at as f64;
        let _ = writeln!(svg, "<text x=\"16\" y=\"{y}\" font-size=\"12\" fill=\"#555\">{}</text>", escaped(line));
    }
    for tick in 0..=(end / step).round() as u32 {
        let ratio = f64::from(tick) * step;
        let x = x(ratio);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            bottom + 18.0,
            (ratio * 100.0).round() / 100.0
        );
    }
    let limit = x(1.0);
    let _ = writeln!(
        svg,
        "<line x1=\"{limit:.1}\" y1=\"{TOP}\" x2=\"{limit:.1}\" y2=\"{bottom}\" stroke=\"#222\" stroke-dasharray=\"4 3\"/>"
    );
    for (at, row) in rows.iter().enumerate() {
        draw(&mut svg, row, TOP + ROW * (at as f64 + 0.5), &x);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"12\" fill=\"#555\">CPU time per verified answer ÷ that of the bare echo in the \
         same round; bar: median, whisker: range</text>\n</svg>",
        bottom + 44.0
    );
    svg
}

fn draw(svg: &mut String, row: &Row, y: f64, x: &impl Fn(f64) -> f64) {
    let colour = match row.role {
        Role::Limit => "#9a9a9a",
        Role::Ours => "#2b6cb0",
        Role::Peer => "#d9a441",
        Role::Other => "#7aa37a",
    };
    let Spread { median, least, most } = row.ratio;
    let (name, edge) = (escaped(&row.name), y + 4.5);
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{edge:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 10.0);
    if !median.is_finite() {
        return;
    }
    let (zero, middle, from, to) = (x(0.0), x(median), x(least), x(most));
    let _ = writeln!(
        svg,
        "<rect x=\"{zero:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>",
        y - BAR / 2.0,
        middle - zero
    );
    let _ = writeln!(svg, "<line x1=\"{from:.1}\" y1=\"{y:.1}\" x2=\"{to:.1}\" y2=\"{y:.1}\" stroke=\"#222\"/>");
    for end in [from, to] {
        let (above, below) = (y - 5.0, y + 5.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{end:.1}\" y1=\"{above:.1}\" x2=\"{end:.1}\" y2=\"{below:.1}\" stroke=\"#222\"/>"
        );
    }
    let _ = writeln!(svg, "<circle cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#222\"/>");
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{edge:.1}\">{}</text>", to + 10.0, row.ratio);
}

/// The distance of two lines of a scale that ends at `most`: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let least = most / TICKS_MAX;
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least).unwrap_or(power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, role: Role, ratios: [f64; 3]) -> Row {
        Row { name: name.to_owned(), role, ratio: Spread::of(ratios) }
    }

    #[test]
    fn every_candidate_has_a_row_with_its_bar_whisker_and_figures() {
        let rows = [row("echo", Role::Limit, [1.0; 3]), row("a<b", Role::Ours, [2.0, 1.5, 3.0])];
        let svg = svg("Ratios & more", &["a machine".to_owned()], &rows);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for part in ["Ratios &amp; more", "a machine", ">echo<", "a&lt;b", "1.00 (1.00-1.00)", "2.00 (1.50-3.00)"] {
            assert!(svg.contains(part), "no {part} in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 2);
        // The scale ends at 3 and is 600 wide: the bar of a median of 2 is 400, and the whisker goes from 1.5 to 3.
        assert!(svg.contains("width=\"400.0\""), "{svg}");
        assert!(svg.contains("<line x1=\"450.0\" y1=\"147.0\" x2=\"750.0\" y2=\"147.0\""), "{svg}");
    }

    #[test]
    fn a_figure_that_is_none_draws_no_bar() {
        let svg = svg("t", &[], &[row("echo", Role::Limit, [f64::NAN; 3])]);
        assert!(!svg.contains("NaN") && !svg.contains("<circle"), "{svg}");
    }

    #[test]
    fn scales_have_round_steps() {
        for (most, expected) in [(1.0, 0.2), (1.7, 0.5), (3.0, 0.5), (5.0, 1.0), (15.0, 2.0), (40.0, 5.0)] {
            assert!((step(most) - expected).abs() < 1e-9, "{most}: {}", step(most));
        }
    }
}
