//! Medians, quantiles and bootstrapped intervals: pure functions.

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

/// The median of what several processes measured, with a bootstrapped 95 % interval.
///
/// What one process measures has one layout of memory in common, so that its samples are not independent: processes are
/// drawn first, and then samples within each. The draws come from a generator with a fixed seed: the same samples give
/// the same interval.
///
/// # Panics
///
/// When there is no process, a process without samples, or a NaN.
pub fn estimate(processes: &[Vec<f64>]) -> Estimate {
    let middle = median(processes.concat());
    let mut random = SplitMix(processes.iter().map(Vec::len).sum::<usize>() as u64);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut drawn = Vec::new();
            for _ in 0..processes.len() {
                let process = &processes[random.below(processes.len())];
                drawn.extend((0..process.len()).map(|_| process[random.below(process.len())]));
            }
            median(drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    Estimate { median: middle, lower: quantile(&medians, 0.025), upper: quantile(&medians, 0.975) }
}

/// The middle value.
///
/// # Panics
///
/// When there is none, or a NaN.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty() && values.iter().all(|value| !value.is_nan()), "nothing to take the median of");
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// The value below which this share of a sorted sample lies, interpolated.
///
/// # Panics
///
/// When the sample is empty.
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
        let (few, many) = (estimate(&[sample(10)]), estimate(&[sample(1_000)]));
        for estimate in [few, many] {
            assert!(estimate.lower <= estimate.median && estimate.median <= estimate.upper);
        }
        assert!(many.upper - many.lower < few.upper - few.lower);
        assert!((many.median - 500.0).abs() < 60.0, "{many:?}");
    }

    #[test]
    fn processes_that_disagree_widen_the_interval_however_sure_each_is_of_itself() {
        let sure = |middle: f64| (0..100).map(|n| middle + f64::from(n % 3) * 0.01).collect::<Vec<_>>();
        let apart = estimate(&[sure(10.0), sure(11.0), sure(12.0)]);
        assert!(apart.lower < 10.5 && apart.upper > 11.5, "{apart:?}");
        let together = estimate(&[sure(11.0), sure(11.0), sure(11.0)]);
        assert!(together.upper - together.lower < 0.1, "{together:?}");
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let mut sample = vec![10.0; 20];
        sample.push(1e9);
        assert_eq!(estimate(&[sample]), Estimate { median: 10.0, lower: 10.0, upper: 10.0 });
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
