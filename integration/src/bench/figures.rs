//! What was measured, beside what was aimed at.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::machine;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// It is there to compare with.
    None,
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {limit}"),
            Self::AtLeast(limit) => format!("≥ {limit}"),
            Self::None => "-".to_owned(),
        }
    }

    fn verdict(self, figure: f64) -> &'static str {
        match self {
            Self::AtMost(limit) if figure <= limit => "met",
            Self::AtLeast(limit) if figure >= limit => "met",
            Self::None => "-",
            Self::AtMost(_) | Self::AtLeast(_) => "missed",
        }
    }
}

/// One figure per round, under one name.
#[derive(Debug)]
struct Row {
    what: String,
    target: Target,
    figures: Vec<f64>,
}

/// Everything that a run measured, in the order in which it first appeared.
#[derive(Debug)]
pub(super) struct Figures {
    /// The key under which a line of JSON says what was measured.
    key: &'static str,
    rows: Vec<Row>,
}

impl Figures {
    /// None yet. Lines of JSON say under `key` what was measured.
    pub(super) const fn new(key: &'static str) -> Self {
        Self { key, rows: Vec::new() }
    }

    /// Prints a round as a line of JSON and keeps its figures.
    pub(super) fn round(&mut self, id: &str, round: u32, figures: &[(&str, Target, f64)]) {
        for &(what, target, figure) in figures {
            let what = format!("{id}: {what}");
            match self.rows.iter_mut().find(|row| row.what == what) {
                Some(row) => row.figures.push(figure),
                None => self.rows.push(Row { what, target, figures: vec![figure] }),
            }
        }
        println!("{}", line(self.key, id, round, figures));
    }

    /// Medians and ranges over all rounds, in Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = String::from("| figure | median (range) | target | |\n|---|---|---|---|\n");
        for Row { what, target, figures } in &self.rows {
            let middle = median(figures);
            let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
            let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {what} | {} ({}-{}) | {} | {} |",
                shown(middle),
                shown(least),
                shown(most),
                target.text(),
                target.verdict(middle)
            );
        }
        text
    }
}

fn line(key: &str, id: &str, round: u32, figures: &[(&str, Target, f64)]) -> String {
    let figures: serde_json::Map<String, Value> =
        figures.iter().map(|(what, _, figure)| ((*what).to_owned(), json!((figure * 1e4).round() / 1e4))).collect();
    json!({ key: id, "round": round + 1, "load_average": machine::load_average(), "figures": figures }).to_string()
}

fn shown(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1_000.0 => format!("{figure:.0}"),
        size if size >= 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.3}"),
    }
}

pub(super) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(&upper) if sorted.len() % 2 == 1 => upper,
        Some(&upper) => f64::midpoint(sorted[middle - 1], upper),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_with_its_median_and_whether_it_meets_its_target() {
        let mut figures = Figures::new("mesh");
        for (round, (cost, rate)) in [(9.0, 70_000.0), (12.0, 90_000.0), (9.5, 95_000.0)].into_iter().enumerate() {
            let round = round as u32;
            figures.round(
                "x",
                round,
                &[
                    ("cost", Target::AtMost(10.0), cost),
                    ("rate", Target::AtLeast(91_000.0), rate),
                    ("beside", Target::None, 1.0),
                ],
            );
        }
        let table = figures.table();
        assert!(table.contains("| x: cost | 9.500 (9.000-12.000) | ≤ 10 | met |"), "{table}");
        assert!(table.contains("| x: rate | 90000 (70000-95000) | ≥ 91000 | missed |"), "{table}");
        assert!(table.contains("| x: beside | 1.000 (1.000-1.000) | - | - |"), "{table}");
    }

    #[test]
    fn a_round_is_one_line_of_json() {
        let line = line("mesh", "storm", 2, &[("queries", Target::AtMost(1.0), 1.0)]);
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&parsed["round"], &parsed["figures"]["queries"]), (&json!(3), &json!(1.0)));
    }
}
