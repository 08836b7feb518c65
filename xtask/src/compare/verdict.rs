//! From processes to verdicts.

use airssys_wasm_measurements::{Batch, Turn, stats::median};
use serde::{Deserialize, Serialize};

use super::{
    measure::{Block, FEWEST, Side},
    statistics::{Interval, difference},
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
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Slower,
    Faster,
    Same,
    /// A slowdown that would matter cannot be told from noise.
    Unclear,
}

/// A slowdown of this much that cannot be ruled out is one too many for saying that nothing happened.
pub(super) const MATTERS: f64 = 1.2;

/// What the processes of both sides measured of one benchmark.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    /// Logarithms of nanoseconds, of the processes of the reference and of the candidate that were not disturbed.
    pub(super) sides: [Vec<f64>; 2],
    /// Nanoseconds of all processes, disturbed ones included.
    pub(super) ns: [Vec<f64>; 2],
    /// Processes that were disturbed throughout.
    pub(super) disturbed: usize,
}

/// What the two rounds say about one benchmark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    /// The change, as a logarithm, of both rounds. None where there were too few processes.
    pub(super) interval: Option<Interval>,
    /// What a change has to lie beyond, as a logarithm.
    pub(super) floor: f64,
    pub(super) verdict: Verdict,
}

/// By which clock: that of the thread only where on both sides it did the work and waited for nothing.
pub(super) fn clock<'t>(turns: impl Iterator<Item = (Side, &'t Turn)>) -> Clock {
    let mut sides = [Vec::new(), Vec::new()];
    for (side, turn) in turns {
        sides[side as usize].push(turn);
    }
    let alone = |turns: &Vec<&Turn>| {
        let share = |turn: &Turn| {
            let thread: Option<f64> = turn.batches.iter().map(|batch| batch.thread_ns).sum();
            Some(thread? / turn.process_ns?.max(1.0))
        };
        let known = turns.iter().filter_map(|turn| Some((share(turn)?, turn.waits? as f64)));
        let (shares, waits): (Vec<_>, Vec<_>) = known.unzip();
        !shares.is_empty() && median(shares) > 0.75 && median(waits) == 0.0
    };
    if sides.iter().all(alone) { Clock::Cpu } else { Clock::Wall }
}

/// Nanoseconds for each iteration, as a process measured them while nothing disturbed it. None where it was never so.
pub(super) fn nanoseconds(turn: &Turn, clock: Clock, yardstick_ns: Option<f64>) -> Option<f64> {
    let of = |batch: &Batch| match (clock, batch.thread_ns) {
        // What was taken away hits what is timed and what is left out alike.
        (Clock::Cpu, Some(thread)) => batch.ns * (thread / batch.wall_ns).min(1.0),
        _ => batch.ns,
    };
    let clean: Vec<_> = turn.batches.iter().filter(|batch| batch.is_clean(yardstick_ns)).map(of).collect();
    (!clean.is_empty()).then(|| median(clean).max(f64::MIN_POSITIVE))
}

impl Evidence {
    /// What blocks say about a benchmark. A process is left out if it was disturbed throughout, and where the wall clock
    /// counts also if the machine had something else to do.
    pub(super) fn of(id: &str, blocks: &[Block], clock: Clock, yardstick_ns: f64) -> Self {
        let mut evidence = Self::default();
        for block in blocks {
            for process in &block.processes {
                let Some(turn) = process.turns.get(id) else { continue };
                let side = process.side as usize;
                evidence.ns[side].extend(nanoseconds(turn, clock, None));
                match nanoseconds(turn, clock, Some(yardstick_ns)) {
                    Some(ns) if clock == Clock::Cpu || !process.beside_others => evidence.sides[side].push(ns.ln()),
                    _ => evidence.disturbed += 1,
                }
            }
        }
        evidence
    }

    pub(super) fn and(mut self, other: &Self) -> Self {
        let extend = |these: &mut [Vec<f64>; 2], those: &[Vec<f64>; 2]| {
            these.iter_mut().zip(those).for_each(|(these, those)| these.extend(those));
        };
        extend(&mut self.sides, &other.sides);
        extend(&mut self.ns, &other.ns);
        self.disturbed += other.disturbed;
        self
    }

    /// Nanoseconds of a side as people read them: of the processes that were not disturbed, if there are any.
    pub(super) fn shown(&self, side: Side) -> f64 {
        match &self.sides[side as usize][..] {
            [] => median(self.ns[side as usize].clone()),
            clean => median(clean.to_vec()).exp(),
        }
    }

    /// Processes of the side that has fewer.
    pub(super) fn processes(&self) -> usize {
        self.sides[0].len().min(self.sides[1].len())
    }

    /// The candidate over the reference, and how likely that is without a change. None where there are too few processes.
    fn change(&self) -> Option<(Interval, f64)> {
        difference(&self.sides[0], &self.sides[1]).filter(|_| self.processes() >= FEWEST)
    }

    /// What a change has to lie beyond: the threshold, and twice what two samples like the reference may differ by.
    fn floor(&self, threshold: f64) -> f64 {
        let [reference, _] = &self.sides;
        let noise = difference(reference, reference).map_or(f64::INFINITY, |(interval, _)| interval.half_width());
        threshold.max(2.0 * noise)
    }

    /// Whether this is worth a second look: it may have changed, or it may have become a lot slower.
    pub(super) fn is_suspect(&self, threshold: f64) -> bool {
        self.change().is_none_or(|(Interval { middle, lower, upper }, _)| {
            let changed = middle.abs() > threshold / 2.0 && (lower > 0.0 || upper < 0.0);
            changed || upper > MATTERS.ln() / 2.0
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
    let floor = all.floor(threshold);
    let Some((interval, _)) = all.change() else {
        return Judged { interval: None, floor, verdict: Verdict::Unclear };
    };
    let beyond = |sign: f64| {
        let lies_beyond = |interval: Interval| (interval.lower * sign).min(interval.upper * sign) > floor;
        let second_agrees = second.change().is_some_and(|(second, _)| lies_beyond(second));
        let first_agrees = first.change().is_none_or(|(first, _)| first.middle * sign > floor / 2.0);
        lies_beyond(interval) && second_agrees && first_agrees && p < 0.05
    };
    let verdict = if beyond(1.0) {
        Verdict::Slower
    } else if beyond(-1.0) {
        Verdict::Faster
    } else if interval.upper > MATTERS.ln() {
        Verdict::Unclear
    } else {
        Verdict::Same
    };
    Judged { interval: Some(interval), floor, verdict }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_measurements::stats::SplitMix;

    use super::{super::statistics::drawn::disturbed, *};

    const THRESHOLD: f64 = 0.03;

    /// Processes that vary so much among themselves, one in twenty of them disturbed without anybody having noticed.
    fn processes(random: &mut SplitMix, n: usize, change: f64, deviation: f64) -> Evidence {
        let sides = [0.0, change].map(|middle| (0..n).map(|_| disturbed(random, middle, deviation, 20)).collect());
        Evidence { sides, ..Evidence::default() }
    }

    fn outcome(random: &mut SplitMix, change: f64, deviation: f64) -> Verdict {
        let first = processes(random, 16, change, deviation);
        let second =
            if first.is_suspect(THRESHOLD) { processes(random, 20, change, deviation) } else { Evidence::default() };
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
    fn five_per_cent_are_found_where_processes_agree_within_one() {
        let mut random = SplitMix(3);
        let found = (0..200).filter(|_| outcome(&mut random, 1.05_f64.ln(), 0.01) == Verdict::Slower).count();
        assert!(found >= 190, "{found} of 200");
        let found = (0..200).filter(|_| outcome(&mut random, -1.05_f64.ln(), 0.01) == Verdict::Faster).count();
        assert!(found >= 190, "{found} of 200");
    }

    #[test]
    fn a_fifth_is_found_or_said_to_be_unclear_and_never_taken_for_nothing() {
        let mut random = SplitMix(4);
        for (deviation, enough) in [(0.01, 195), (0.04, 180), (0.1, 0)] {
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
        let slower = processes(&mut random, 16, 0.1, 0.005);
        let same = processes(&mut random, 16, 0.0, 0.005);
        assert_eq!(judge(&slower, &slower, 1e-9, THRESHOLD).verdict, Verdict::Slower);
        assert_eq!(judge(&slower, &same, 1.0, THRESHOLD).verdict, Verdict::Same);
        assert_eq!(judge(&same, &slower, 1e-9, THRESHOLD).verdict, Verdict::Same);
        assert_eq!(judge(&slower, &slower, 0.5, THRESHOLD).verdict, Verdict::Same, "chance is not ruled out");
        let few = processes(&mut random, 2, 0.1, 0.005);
        assert_eq!(judge(&few, &Evidence::default(), 1.0, THRESHOLD).verdict, Verdict::Unclear);
    }

    const YARDSTICK: f64 = 100.0;

    fn turn(ns: f64, thread_ns: Option<f64>, process: f64, waits: u64) -> Turn {
        let batch = Batch { ns, wall_ns: 1e6, thread_ns, yardstick_ns: YARDSTICK };
        Turn {
            id: "x".into(),
            iterations: 1,
            set_up_ns: 0,
            batches: vec![batch; 3],
            process_ns: thread_ns.map(|_| process * 3.0),
            waits: Some(waits),
            allocations: None,
        }
    }

    #[test]
    fn batches_that_somebody_outside_slowed_down_do_not_count() {
        let mut slowed = turn(100.0, Some(1e6), 1e6, 0);
        for batch in &mut slowed.batches[1..] {
            (batch.ns, batch.yardstick_ns) = (180.0, YARDSTICK * 1.3);
        }
        assert_eq!(nanoseconds(&slowed, Clock::Cpu, Some(YARDSTICK)), Some(100.0));
        assert_eq!(nanoseconds(&slowed, Clock::Cpu, None), Some(180.0));
        slowed.batches.remove(0);
        assert_eq!(nanoseconds(&slowed, Clock::Cpu, Some(YARDSTICK)), None);
    }

    #[test]
    fn what_is_taken_from_a_thread_that_only_computes_does_not_count() {
        let (undisturbed, halved) = (turn(100.0, Some(1e6), 1e6, 0), turn(200.0, Some(0.5e6), 0.5e6, 0));
        let both = [(Side::Reference, &undisturbed), (Side::Candidate, &halved)];
        assert_eq!(clock(both.into_iter()), Clock::Cpu);
        assert_eq!(nanoseconds(&halved, Clock::Cpu, None), Some(100.0));
        assert_eq!(nanoseconds(&halved, Clock::Wall, None), Some(200.0));
    }

    #[test]
    fn one_that_waits_or_has_others_work_on_either_side_is_judged_by_the_time_that_passes() {
        let computes = turn(100.0, Some(1e6), 1e6, 0);
        for other in [turn(100.0, Some(0.5e6), 0.5e6, 3), turn(100.0, Some(0.5e6), 1.5e6, 0), turn(100.0, None, 0.0, 0)]
        {
            for sides in [[&computes, &other], [&other, &computes]] {
                let both = [Side::Reference, Side::Candidate].into_iter().zip(sides);
                assert_eq!(clock(both), Clock::Wall);
            }
        }
    }

    #[test]
    fn processes_beside_others_count_only_where_that_does_not_matter() {
        let process = |side, ns, beside_others| super::super::measure::Process {
            side,
            beside_others,
            turns: [("x".to_owned(), turn(ns, Some(1e6), 1e6, 0))].into(),
        };
        let (a, b) = (Side::Reference, Side::Candidate);
        let processes =
            vec![process(a, 100.0, false), process(b, 110.0, true), process(b, 110.0, false), process(a, 101.0, false)];
        let blocks = [Block { processes }];
        let wall = Evidence::of("x", &blocks, Clock::Wall, YARDSTICK);
        assert_eq!((wall.sides.each_ref().map(Vec::len), wall.disturbed), ([2, 1], 1));
        let cpu = Evidence::of("x", &blocks, Clock::Cpu, YARDSTICK);
        assert_eq!((cpu.sides.each_ref().map(Vec::len), cpu.disturbed), ([2, 2], 0));
        assert!(Evidence::of("y", &blocks, Clock::Wall, YARDSTICK).ns[0].is_empty());
    }
}
