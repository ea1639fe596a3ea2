//! A figure of several rounds: its median and its range.

use std::fmt;

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// That of these figures; not a number without any.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.get(middle) {
            None => f64::NAN,
            Some(&upper) if sorted.len() % 2 == 1 => upper,
            Some(&upper) => f64::midpoint(sorted[middle - 1], upper),
        };
        let end = |figure: Option<&f64>| figure.copied().unwrap_or(f64::NAN);
        Self { median, least: end(sorted.first()), most: end(sorted.last()) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_the_two_in_the_middle() {
        for (figures, median, least, most) in [
            (vec![3.0], 3.0, 3.0, 3.0),
            (vec![3.0, 1.0], 2.0, 1.0, 3.0),
            (vec![3.0, 9.0, 1.0], 3.0, 1.0, 9.0),
            (vec![4.0, 1.0, 3.0, 9.0], 3.5, 1.0, 9.0),
        ] {
            assert_eq!(Spread::of(figures), Spread { median, least, most });
        }
        assert!(Spread::of([]).median.is_nan());
        assert_eq!(Spread::of([1.0, 1.256]).to_string(), "1.13 (1.00-1.26)");
    }
}
