//! Medians and their confidence intervals: pure functions.

/// An estimate with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The interval's lower end.
    pub lower: f64,
    /// The interval's upper end.
    pub upper: f64,
}

/// How often a sample is drawn anew.
const RESAMPLES: usize = 1_000;

/// The median of a sample with a bootstrapped 95 % interval.
///
/// The draws come from a generator with a fixed seed: the same sample gives the same interval.
///
/// # Panics
///
/// When the sample is empty or holds a NaN.
pub fn estimate(sample: &[f64]) -> Estimate {
    let mut sorted = sample.to_vec();
    let middle = median(&mut sorted);
    let mut random = SplitMix(sample.len() as u64);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut draw: Vec<f64> = sample.iter().map(|_| sample[random.below(sample.len())]).collect();
            median(&mut draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Estimate { median: middle, lower: quantile(&medians, 0.025), upper: quantile(&medians, 0.975) }
}

fn median(values: &mut [f64]) -> f64 {
    assert!(!values.is_empty() && values.iter().all(|value| !value.is_nan()), "nothing to take the median of");
    values.sort_by(f64::total_cmp);
    quantile(values, 0.5)
}

/// The value below which this share of a sorted sample lies, interpolated.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * at.fract()
}

/// A small generator for resampling and for the order of turns.
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`. The bias is far below what any of this can see.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    /// Puts things into a random order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            things.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 0.5), 2.5);
        assert_eq!(quantile(&sorted, 1.0), 4.0);
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_samples() {
        let mut random = SplitMix(1);
        let mut sample = |n: usize| -> Vec<f64> { (0..n).map(|_| random.below(1_000) as f64).collect() };
        let (few, many) = (estimate(&sample(10)), estimate(&sample(1_000)));
        for estimate in [few, many] {
            assert!(estimate.lower <= estimate.median && estimate.median <= estimate.upper);
        }
        assert!(many.upper - many.lower < few.upper - few.lower);
        assert!((many.median - 500.0).abs() < 60.0, "{many:?}");
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let mut sample = vec![10.0; 20];
        sample.push(1e9);
        assert_eq!(estimate(&sample), Estimate { median: 10.0, lower: 10.0, upper: 10.0 });
    }

    #[test]
    fn shuffling_keeps_everything() {
        let mut things: Vec<_> = (0..100).collect();
        SplitMix(7).shuffle(&mut things);
        assert_ne!(things, (0..100).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..100).collect::<Vec<_>>());
    }
}
