//! From pairs of processes to verdicts.

use airssys_wasm_measurements::{Batch, Kind, Turn, stats::median};
use serde::{Deserialize, Serialize};

use super::{
    measure::{FEWEST, Pair, Side},
    statistics::{Interval, centre, midmean, sign_flips},
};

/// By which clock a benchmark is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Clock {
    /// The time that its thread was on a processor: nothing that others do to the machine counts.
    Cpu,
    /// The time that passed, because it waits, or has others work for it.
    Wall,
}

/// How one benchmark's comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Slower,
    /// It executes more instructions, and time does not say otherwise.
    MoreWork,
    Faster,
    Same,
    /// A slowdown that would matter cannot be told from noise.
    Unclear,
}

/// A slowdown of this much that cannot be ruled out is one too many for saying that nothing happened. What is slowest
/// varies by itself by more than that.
pub(super) fn matters(kind: Kind) -> f64 {
    match kind {
        Kind::Time | Kind::Bytes => 1.2,
        Kind::Tail => 2.0,
    }
}

/// What pairs of processes measured of one benchmark.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    kind: Kind,
    /// Of each pair: the logarithm of the candidate over the reference.
    pub(super) changes: Vec<f64>,
    /// Of each pair: what the reference and the candidate measured, in the benchmark's unit.
    values: [Vec<f64>; 2],
}

/// What the two rounds say about one benchmark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    /// The change, as a logarithm, of both rounds. None where there were too few pairs.
    pub(super) interval: Option<Interval>,
    pub(super) verdict: Verdict,
}

/// By which clock: that of the thread only where on both sides, by most of what was measured there, it does the work and
/// waits for nothing.
pub(super) fn clock<'t>(sides: [&[&'t Turn]; 2]) -> Clock {
    let alone = |turn: &&&'t Turn| {
        let thread: Option<f64> = turn.batches.iter().map(|batch| batch.thread_ns).sum();
        let share = thread.zip(turn.process_ns).map(|(thread, process)| thread / process.max(1.0));
        share.is_some_and(|share| share > 0.75) && !waits(turn)
    };
    let is_alone = |turns: &[&'t Turn]| turns.iter().filter(alone).count() * 2 > turns.len();
    if sides.into_iter().all(is_alone) { Clock::Cpu } else { Clock::Wall }
}

/// Whether it waits in each batch, as far as is known; what happens once may have been anything.
pub(super) fn waits(turn: &Turn) -> bool {
    turn.waits.is_none_or(|waits| waits >= turn.batches.len() as u64)
}

/// What a batch measured.
fn value(batch: &Batch, clock: Clock) -> f64 {
    let value = match (clock, batch.thread_ns) {
        // What was taken away hits what is timed and what is left out alike.
        (Clock::Cpu, Some(thread)) => batch.value * (thread / batch.wall_ns).min(1.0),
        _ => batch.value,
    };
    value.max(f64::MIN_POSITIVE)
}

/// What one process measured.
pub(super) fn of_process(turn: &Turn, clock: Clock) -> f64 {
    median(turn.batches.iter().map(|batch| value(batch, clock)).collect())
}

/// The changes that a pair of processes saw, as logarithms: one for each round of four batches, A B B A, which is the same
/// whichever side began. Whatever drifts evenly is in none of it.
fn rounds([reference, candidate]: &[Turn; 2], clock: Clock) -> Vec<f64> {
    let logarithms = |turn: &Turn| {
        let batches: Vec<_> = turn.batches.iter().map(|batch| value(batch, clock).ln()).collect();
        batches.chunks(2).map(|round| round.iter().sum::<f64>() / round.len() as f64).collect::<Vec<_>>()
    };
    logarithms(reference).into_iter().zip(logarithms(candidate)).map(|(before, after)| after - before).collect()
}

/// Fewer rounds of either sort than this say nothing about a difference between them.
const SOME: usize = 4;

/// By how much what a pair says about a benchmark is more by its disturbed rounds than by the others, as a logarithm. None
/// where it has not enough of both.
pub(super) fn by_disturbed(both: &[Turn; 2], clock: Clock, yardstick_ns: f64) -> Option<f64> {
    let (mut disturbed, mut others) = (Vec::new(), Vec::new());
    let batches = |turn: &Turn| turn.batches.chunks(2).map(<[Batch]>::to_vec).collect::<Vec<_>>();
    for ((change, before), after) in rounds(both, clock).into_iter().zip(batches(&both[0])).zip(batches(&both[1])) {
        let is_disturbed = before.iter().chain(&after).any(|batch| batch.is_disturbed(yardstick_ns));
        if is_disturbed { &mut disturbed } else { &mut others }.push(change);
    }
    (disturbed.len().min(others.len()) >= SOME).then(|| midmean(disturbed) - midmean(others))
}

impl Evidence {
    /// What pairs say about a benchmark.
    pub(super) fn of(id: &str, kind: Kind, clock: Clock, pairs: &[Pair]) -> Self {
        let mut evidence = Self { kind, changes: Vec::new(), values: Default::default() };
        for both in pairs.iter().filter_map(|pair| pair.get(id)) {
            evidence.changes.push(midmean(rounds(both, clock)));
            for (values, turn) in evidence.values.iter_mut().zip(both) {
                values.push(of_process(turn, clock));
            }
        }
        evidence
    }

    pub(super) fn and(mut self, other: &Self) -> Self {
        self.changes.extend(&other.changes);
        self.values.iter_mut().zip(&other.values).for_each(|(these, those)| these.extend(those));
        self
    }

    /// What a side measured, as people read it.
    pub(super) fn shown(&self, side: Side) -> f64 {
        median(self.values[side as usize].clone())
    }

    /// The change, and how likely that is without one. None where there are too few pairs.
    fn change(&self) -> Option<(Interval, f64)> {
        let (interval, p) = centre(&self.changes).filter(|_| self.changes.len() >= FEWEST)?;
        // What is slowest varies like nothing that has a name.
        Some((interval, if self.kind == Kind::Tail { sign_flips(&self.changes) } else { p }))
    }

    /// Whether this is worth a second look: it may have changed, or it may have become a lot slower.
    pub(super) fn is_suspect(&self, threshold: f64) -> bool {
        self.change().is_none_or(|(Interval { middle, lower, upper }, _)| {
            let changed = middle.abs() > threshold / 2.0 && (lower > 0.0 || upper < 0.0);
            changed || upper > matters(self.kind).ln() / 2.0
        })
    }

    /// How likely this is without a change.
    pub(super) fn p(&self) -> f64 {
        self.change().map_or(1.0, |(_, p)| p)
    }
}

/// What two rounds come to. `p` is that of the second, corrected for how many benchmarks were asked about.
pub(super) fn judge(first: &Evidence, second: &Evidence, p: f64, threshold: f64) -> Judged {
    let all = first.clone().and(second);
    let Some((interval, _)) = all.change() else {
        return Judged { interval: None, verdict: Verdict::Unclear };
    };
    let changed = |sign: f64| {
        // As large as it takes, and certain to be half of that.
        let is_enough = |Interval { middle, lower, upper }| {
            middle * sign > threshold && (lower * sign).min(upper * sign) > threshold / 2.0
        };
        let second_agrees = second.change().is_some_and(|(second, _)| is_enough(second));
        let first_agrees = first.change().is_none_or(|(first, _)| first.middle * sign > threshold / 2.0);
        is_enough(interval) && second_agrees && first_agrees && p < 0.05
    };
    let verdict = if changed(1.0) {
        Verdict::Slower
    } else if changed(-1.0) {
        Verdict::Faster
    } else if interval.upper > matters(first.kind).ln() {
        Verdict::Unclear
    } else {
        Verdict::Same
    };
    Judged { interval: Some(interval), verdict }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_measurements::stats::SplitMix;

    use super::{super::statistics::drawn::disturbed, *};

    const THRESHOLD: f64 = 0.03;

    fn nothing() -> Evidence {
        Evidence { kind: Kind::Time, changes: Vec::new(), values: Default::default() }
    }

    /// Pairs that vary so much among themselves, one in twenty of them disturbed on one side.
    fn pairs(random: &mut SplitMix, n: usize, change: f64, deviation: f64) -> Evidence {
        Evidence { changes: (0..n).map(|_| disturbed(random, change, deviation, 20)).collect(), ..nothing() }
    }

    fn outcome(random: &mut SplitMix, change: f64, deviation: f64) -> Verdict {
        let first = pairs(random, 12, change, deviation);
        let second = if first.is_suspect(THRESHOLD) { pairs(random, 30, change, deviation) } else { nothing() };
        // As one of a hundred benchmarks.
        judge(&first, &second, (second.p() * 100.0).min(1.0), THRESHOLD).verdict
    }

    #[test]
    fn without_a_change_there_is_no_verdict_of_one_however_noisy_the_machine() {
        let mut random = SplitMix(1);
        for deviation in [0.002, 0.01, 0.03, 0.1] {
            for _ in 0..1_000 {
                let verdict = outcome(&mut random, 0.0, deviation);
                assert!(matches!(verdict, Verdict::Same | Verdict::Unclear), "{verdict:?} at {deviation}");
            }
        }
    }

    #[test]
    fn a_change_below_the_threshold_is_none() {
        let mut random = SplitMix(2);
        assert!((0..200).all(|_| outcome(&mut random, 0.02, 0.005) == Verdict::Same));
    }

    #[test]
    fn five_per_cent_are_found_where_pairs_agree_within_two() {
        let mut random = SplitMix(3);
        for sign in [1.0, -1.0] {
            let wanted = if sign > 0.0 { Verdict::Slower } else { Verdict::Faster };
            let found = (0..200).filter(|_| outcome(&mut random, sign * 0.05, 0.02) == wanted).count();
            assert!(found >= 180, "{found} of 200");
        }
    }

    #[test]
    fn a_fifth_is_found_or_said_to_be_unclear_and_never_taken_for_nothing() {
        let mut random = SplitMix(4);
        for (deviation, enough) in [(0.01, 195), (0.05, 190), (0.15, 0)] {
            let verdicts: Vec<_> = (0..200).map(|_| outcome(&mut random, 1.2_f64.ln(), deviation)).collect();
            let found = verdicts.iter().filter(|verdict| **verdict == Verdict::Slower).count();
            assert!(found >= enough, "{found} of 200 at {deviation}");
            let overlooked =
                verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Same | Verdict::Faster)).count();
            // That it lies in the interval is certain to 95 %, and half of the rest is on this side.
            assert!(overlooked <= 10, "{overlooked} of 200 at {deviation}");
        }
    }

    #[test]
    fn the_second_round_has_to_agree() {
        let mut random = SplitMix(5);
        let slower = pairs(&mut random, 16, 0.1, 0.005);
        let same = pairs(&mut random, 16, 0.0, 0.005);
        assert_eq!(judge(&slower, &slower, 1e-9, THRESHOLD).verdict, Verdict::Slower);
        assert_eq!(judge(&slower, &same, 1.0, THRESHOLD).verdict, Verdict::Same);
        assert_eq!(judge(&same, &slower, 1e-9, THRESHOLD).verdict, Verdict::Same);
        assert_eq!(judge(&slower, &slower, 0.5, THRESHOLD).verdict, Verdict::Same, "chance is not ruled out");
        let few = pairs(&mut random, 2, 0.1, 0.005);
        assert_eq!(judge(&few, &nothing(), 1.0, THRESHOLD).verdict, Verdict::Unclear);
    }

    /// A process whose batches took so many nanoseconds an iteration, and ran for so much of the time.
    fn turn(values: &[f64], thread: Option<f64>, process: f64, waits: u64) -> Turn {
        let batch =
            |&value: &f64| Batch { value, wall_ns: 1e6, thread_ns: thread.map(|share| share * 1e6), yardstick_ns: 1.0 };
        Turn {
            id: "x".into(),
            iterations: 1,
            set_up_ns: 0.0,
            batches: values.iter().map(batch).collect(),
            process_ns: thread.map(|_| process * 1e6 * values.len() as f64),
            waits: Some(waits),
            allocations: None,
        }
    }

    #[test]
    fn what_drifts_and_what_begins_in_between_is_no_change() {
        let of = |reference: &[f64], candidate: &[f64]| {
            let both = [turn(reference, None, 0.0, 0), turn(candidate, None, 0.0, 0)];
            let evidence = Evidence::of("x", Kind::Time, Clock::Wall, &[Pair::from([("x".into(), both)])]);
            evidence.changes[0].exp()
        };
        // A B B A, A B B A, while the machine becomes slower and slower.
        let drift = |n: i32| 100.0 * 1.1_f64.powi(n);
        let drifting = of(&[drift(0), drift(3), drift(4), drift(7)], &[drift(1), drift(2), drift(5), drift(6)]);
        assert!((drifting - 1.0).abs() < 1e-9, "{drifting}");
        // Somebody takes half of the core, from the middle of the second round to the middle of the fourth.
        let reference = [100.0, 100.0, 100.0, 200.0, 200.0, 200.0, 200.0, 100.0, 100.0, 100.0];
        let candidate = [105.0, 105.0, 210.0, 210.0, 210.0, 210.0, 105.0, 105.0, 105.0, 105.0];
        let found = of(&reference, &candidate);
        assert!((found - 1.05).abs() < 1e-9, "{found}");
    }

    #[test]
    fn disturbed_rounds_are_told_from_the_others_where_there_are_enough_of_both() {
        let disturbed = |mut turn: Turn, from: usize| {
            turn.batches.iter_mut().skip(from).for_each(|batch| batch.yardstick_ns = 1.5);
            turn
        };
        let reference = turn(&[100.0; 16], None, 0.0, 0);
        let both = |from| [reference.clone(), disturbed(turn(&[100.0; 16], None, 0.0, 0), from)];
        assert_eq!(by_disturbed(&both(8), Clock::Wall, 1.0), Some(0.0));
        assert_eq!(by_disturbed(&both(14), Clock::Wall, 1.0), None);
        let values: Vec<_> = (0..16).map(|n| if n < 8 { 100.0 } else { 110.0 }).collect();
        let both = [reference, disturbed(turn(&values, None, 0.0, 0), 8)];
        assert!((by_disturbed(&both, Clock::Wall, 1.0).unwrap() - 1.1_f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn what_is_taken_from_a_thread_that_only_computes_does_not_count() {
        let (undisturbed, halved) = (turn(&[100.0; 2], Some(1.0), 1.0, 0), turn(&[200.0; 2], Some(0.5), 0.5, 0));
        assert_eq!(clock([&[&undisturbed], &[&halved]]), Clock::Cpu);
        assert_eq!(of_process(&halved, Clock::Cpu), 100.0);
        assert_eq!(of_process(&halved, Clock::Wall), 200.0);
    }

    #[test]
    fn one_that_waits_or_has_others_work_on_either_side_is_judged_by_the_time_that_passes() {
        let computes = turn(&[100.0; 2], Some(1.0), 1.0, 0);
        for other in [(Some(0.5), 0.5, 3), (Some(0.5), 1.5, 0), (None, 0.0, 0)] {
            let other = turn(&[100.0; 2], other.0, other.1, other.2);
            assert_eq!(clock([&[&computes], &[&other]]), Clock::Wall);
            assert_eq!(clock([&[&other], &[&computes]]), Clock::Wall);
            assert_eq!(clock([&[&computes; 3], &[&computes, &other, &computes]]), Clock::Cpu, "one of three is chance");
        }
    }

    #[test]
    fn a_tail_is_judged_by_permutations() {
        let changes = vec![0.2; 8];
        let tail = Evidence { kind: Kind::Tail, changes: changes.clone(), ..nothing() };
        assert_eq!(tail.p(), 2.0 / 256.0);
        assert!(Evidence { changes, ..nothing() }.p() < 1e-9);
    }
}
