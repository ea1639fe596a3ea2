//! Numbers whose shares fall with their rank.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Draws ranks from 0 on: the chance of rank `r` is in proportion to `1 / (r + 1)^exponent`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    /// At least one rank.
    pub(super) fn new(count: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count.max(1)).map(|rank| {
            sum += f64::from(rank).powf(-exponent);
            sum
        });
        Self { sums: sums.collect() }
    }

    pub(super) fn draw(&self, random: &mut StdRng) -> u32 {
        let last = self.sums.len() - 1;
        let point = random.random::<f64>() * self.sums[last];
        // Rounding may put a point behind the last sum.
        self.sums.partition_point(|&sum| sum <= point).min(last) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::terms;
    use super::*;

    #[test]
    fn the_first_rank_has_its_share_and_the_last_one_comes_too() {
        const DRAWS: usize = 200_000;
        let (zipf, mut random) = (Zipf::new(100, 1.0), terms().random());
        let draws: Vec<u32> = (0..DRAWS).map(|_| zipf.draw(&mut random)).collect();
        let first = draws.iter().filter(|&&rank| rank == 0).count() as f64 / DRAWS as f64;
        // 1 over the hundredth harmonic number.
        assert!((first - 1.0 / 5.187).abs() < 0.005, "{first}");
        assert!(draws.contains(&99) && draws.iter().all(|&rank| rank < 100));
    }
}
