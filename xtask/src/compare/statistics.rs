//! What measurements of two sides say about a change: pure functions of logarithms.

use airssys_wasm_measurements::stats::SplitMix;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean, or the difference of two, with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    pub(super) middle: f64,
    pub(super) lower: f64,
    pub(super) upper: f64,
}

/// The share of a sample that is left out at either end, because the machine had a hand in it.
const TRIMMED: f64 = 0.2;

/// How far the second of two independent samples is from the first, and how likely that is where they are the same:
/// trimmed means and the distribution of Student, by Welch and Yuen. Not by drawing anew what was measured, which gives
/// intervals that are too narrow where there is little of it.
///
/// None where either sample has fewer than three.
pub(super) fn difference(one: &[f64], other: &[f64]) -> Option<(Interval, f64)> {
    let (one, other) = (Trimmed::of(one)?, Trimmed::of(other)?);
    let error = (one.error_squared + other.error_squared).sqrt();
    let freedom =
        error.powi(4) / (one.error_squared.powi(2) / one.freedom + other.error_squared.powi(2) / other.freedom);
    Some(interval(other.mean - one.mean, error, freedom))
}

/// The middle of a sample with its interval, and how likely that is where the middle is 0: a trimmed mean, and the
/// distribution of Student.
///
/// None where there are fewer than three.
pub(super) fn centre(sample: &[f64]) -> Option<(Interval, f64)> {
    let Trimmed { mean: middle, error_squared, freedom } = Trimmed::of(sample)?;
    Some(interval(middle, error_squared.sqrt(), freedom))
}

fn interval(middle: f64, error: f64, freedom: f64) -> (Interval, f64) {
    if error == 0.0 {
        let interval = Interval { middle, lower: middle, upper: middle };
        return (interval, if middle == 0.0 { 1.0 } else { 0.0 });
    }
    let student = StudentsT::new(0.0, 1.0, freedom).expect("a positive number of degrees of freedom");
    let half = student.inverse_cdf(0.975) * error;
    let interval = Interval { middle, lower: middle - half, upper: middle + half };
    (interval, 2.0 * student.sf((middle / error).abs()))
}

/// How many random signs are tried where there are too many to try all.
const FLIPS: u64 = 1 << 14;

/// How likely a sum as far from 0 is where each of a sample could as well have the other sign: a permutation test of
/// pairs, whatever their distribution.
pub(super) fn sign_flips(sample: &[f64]) -> f64 {
    let sum: f64 = sample.iter().sum();
    let mut random = SplitMix(sample.len() as u64);
    let all = sample.len() < FLIPS.ilog2() as usize;
    let tried = if all { 1 << sample.len() } else { FLIPS };
    let as_far = |n: u64| {
        let signs = if all { n } else { random.draw() };
        let flipped: f64 =
            sample.iter().enumerate().map(|(at, x)| if signs >> (at % 64) & 1 == 0 { *x } else { -x }).sum();
        flipped.abs() >= sum.abs() * (1.0 - 1e-9)
    };
    (0..tried).map(as_far).filter(|&as_far| as_far).count() as f64 / tried as f64
}

/// The mean of the middle half of a sample.
///
/// # Panics
///
/// When it is empty.
pub(super) fn midmean(mut sample: Vec<f64>) -> f64 {
    sample.sort_by(f64::total_cmp);
    let cut = sample.len() / 4;
    let middle = &sample[cut..sample.len() - cut];
    middle.iter().sum::<f64>() / middle.len() as f64
}

struct Trimmed {
    mean: f64,
    /// The square of the mean's standard error.
    error_squared: f64,
    freedom: f64,
}

impl Trimmed {
    fn of(sample: &[f64]) -> Option<Self> {
        if sample.len() < 3 {
            return None;
        }
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let cut = (n as f64 * TRIMMED) as usize;
        let kept = &sorted[cut..n - cut];
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        // What was left out counts as the nearest that was not.
        let (least, most) = (kept[0], kept[kept.len() - 1]);
        let drawn_in: Vec<_> = sorted.iter().map(|value| value.clamp(least, most)).collect();
        let middle = average(&drawn_in);
        let squares: f64 = drawn_in.iter().map(|value| (value - middle).powi(2)).sum();
        let freedom = kept.len() as f64 - 1.0;
        Some(Self { mean: average(kept), error_squared: squares / (kept.len() as f64 * freedom), freedom })
    }
}

/// Holm's correction: what each probability becomes when so many questions are asked at once.
pub(super) fn holm(probabilities: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    let mut corrected = vec![1.0; probabilities.len()];
    let mut least: f64 = 0.0;
    for (rank, &n) in order.iter().enumerate() {
        least = least.max((probabilities[n] * (probabilities.len() - rank) as f64).min(1.0));
        corrected[n] = least;
    }
    corrected
}

/// What tests of statistics draw from.
#[cfg(test)]
pub(super) mod drawn {
    use airssys_wasm_measurements::stats::SplitMix;

    /// Roughly normal: the sum of twelve draws.
    pub(crate) fn normal(random: &mut SplitMix, middle: f64, deviation: f64) -> f64 {
        let sum: f64 = (0..12).map(|_| random.below(1 << 20) as f64 / f64::from(1 << 20)).sum();
        middle + (sum - 6.0) * deviation
    }

    /// The same, and one in so many slowed down by a third.
    pub(crate) fn disturbed(random: &mut SplitMix, middle: f64, deviation: f64, one_in: usize) -> f64 {
        normal(random, middle, deviation) + if random.below(one_in) == 0 { 0.33 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{drawn::*, *};

    fn samples(random: &mut SplitMix, n: usize, change: f64) -> [Vec<f64>; 2] {
        [0.0, change].map(|middle| (0..n).map(|_| normal(random, middle, 0.02)).collect())
    }

    #[test]
    fn an_interval_of_few_processes_holds_the_truth_as_often_as_it_says() {
        let mut random = SplitMix(1);
        for n in [6, 15] {
            let held = (0..2_000)
                .filter(|_| {
                    let [one, other] = samples(&mut random, n, 0.05);
                    let (interval, _) = difference(&one, &other).unwrap();
                    (interval.lower..=interval.upper).contains(&0.05)
                })
                .count();
            assert!((1_860..=1_960).contains(&held), "{held} of 2,000 with {n}, and 1,900 are right");
        }
    }

    #[test]
    fn small_probabilities_come_by_chance_as_rarely_as_they_say() {
        let mut random = SplitMix(2);
        let by_chance = |random: &mut SplitMix| {
            let [one, other] = samples(random, 10, 0.0);
            difference(&one, &other).unwrap().1 < 0.01
        };
        let below = (0..4_000).filter(|_| by_chance(&mut random)).count();
        assert!((10..=80).contains(&below), "{below} of 4,000, and 40 are right");
    }

    #[test]
    fn a_process_in_ten_that_was_disturbed_hides_no_change() {
        let mut random = SplitMix(3);
        let mut sample = |middle| (0..20).map(|_| disturbed(&mut random, middle, 0.01, 10)).collect::<Vec<_>>();
        let (one, other) = (sample(0.0), sample(0.05));
        let (interval, p) = difference(&one, &other).unwrap();
        assert!(interval.lower > 0.03 && interval.upper < 0.07 && p < 1e-6, "{interval:?} {p}");
    }

    #[test]
    fn what_does_not_vary_is_certain_and_two_processes_say_nothing() {
        let certain =
            |middle| Some((Interval { middle, lower: middle, upper: middle }, if middle == 0.0 { 1.0 } else { 0.0 }));
        assert_eq!(difference(&[1.0; 3], &[1.0; 3]), certain(0.0));
        assert_eq!(difference(&[1.0; 3], &[1.5; 3]), certain(0.5));
        assert_eq!(difference(&[1.0; 2], &[1.0; 9]), None);
    }

    #[test]
    fn the_centre_of_pairs_holds_the_truth_as_often_as_it_says() {
        let mut random = SplitMix(4);
        let held = (0..1_000).filter(|_| {
            let pairs: Vec<_> = (0..12).map(|_| disturbed(&mut random, 0.05, 0.02, 1_000)).collect();
            let (interval, _) = centre(&pairs).unwrap();
            interval.lower <= 0.05 && 0.05 <= interval.upper
        });
        let held = held.count();
        assert!((930..=970).contains(&held), "{held} of 1000");
        assert_eq!(centre(&[1.0; 2]), None);
    }

    #[test]
    fn signs_that_all_agree_are_unlikely_and_mixed_ones_are_not() {
        assert_eq!(sign_flips(&[1.0; 8]), 2.0 / 256.0);
        assert_eq!(sign_flips(&[-1.0; 8]), 2.0 / 256.0);
        assert_eq!(sign_flips(&[1.0, -1.0]), 1.0);
        assert!(sign_flips(&[0.1; 40]) < 0.001);
        let mut random = SplitMix(5);
        let unlikely = (0..500).filter(|_| {
            let pairs: Vec<_> = (0..10).map(|_| normal(&mut random, 0.0, 1.0)).collect();
            sign_flips(&pairs) < 0.05
        });
        let unlikely = unlikely.count();
        assert!((8..=45).contains(&unlikely), "{unlikely} of 500");
    }

    #[test]
    fn a_quarter_at_either_end_is_nothing_to_the_middle() {
        assert_eq!(midmean(vec![1.0, 2.0, 3.0, 1e9]), 2.5);
        assert_eq!(midmean(vec![7.0]), 7.0);
        assert_eq!(midmean(vec![1.0, 3.0]), 2.0);
    }

    #[test]
    fn holm_asks_more_of_each_the_more_there_are() {
        assert_eq!(holm(&[0.01, 0.04, 0.03]), [0.03, 0.06, 0.06]);
        assert_eq!(holm(&[0.6, 0.5]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
