//! What is done to hosts and the broker in a round.

use std::time::Duration;

use super::HOSTS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    Kill(usize),
    Start(usize),
    Stop(usize),
    Continue(usize),
    StopBroker,
    ContinueBroker,
    KillBroker {
        /// And with it all that it has stored.
        wipe: bool,
    },
    StartBroker,
}

/// The host that is never killed, so that there is one that may grow.
pub(super) const SURVIVOR: usize = 0;

/// When what is done in a round, in order. What is hurt is healed in the end.
pub(super) fn plan(random: &mut fastrand::Rng) -> Vec<(Duration, Deed)> {
    let mut deeds = Vec::new();
    let mut add = |random: &mut fastrand::Rng, longest: u64, hurt, heal| {
        let from = random.u64(300..3_500);
        let to = from + random.u64(20..=longest);
        deeds.extend([(Duration::from_millis(from), hurt), (Duration::from_millis(to), heal)]);
    };
    for host in 0..HOSTS {
        match random.u8(0..10) {
            0..3 if host != SURVIVOR => add(random, 2_000, Deed::Kill(host), Deed::Start(host)),
            // Shorter than three heartbeats, than the lease, or longer.
            0..5 => {
                let longest = [400, 2_000, 6_000][random.usize(0..3)];
                add(random, longest, Deed::Stop(host), Deed::Continue(host));
            }
            _ => {}
        }
    }
    match random.u8(0..10) {
        0..2 => add(random, 4_000, Deed::StopBroker, Deed::ContinueBroker),
        2..4 => add(random, 2_500, Deed::KillBroker { wipe: false }, Deed::StartBroker),
        4 => add(random, 1_000, Deed::KillBroker { wipe: true }, Deed::StartBroker),
        _ => {}
    }
    deeds.sort_unstable();
    deeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan_and_what_is_hurt_is_healed() {
        let plans = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..200).map(|_| plan(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(plans(7), plans(7));
        assert_ne!(plans(7), plans(8));
        let all: Vec<_> = plans(7).concat().into_iter().map(|(_, deed)| deed).collect();
        let count = |wanted: fn(&Deed) -> bool| all.iter().filter(|deed| wanted(deed)).count();
        for (hurt, heal) in [
            (count(|deed| matches!(deed, Deed::Kill(_))), count(|deed| matches!(deed, Deed::Start(_)))),
            (count(|deed| matches!(deed, Deed::Stop(_))), count(|deed| matches!(deed, Deed::Continue(_)))),
            (count(|deed| *deed == Deed::StopBroker), count(|deed| *deed == Deed::ContinueBroker)),
            (count(|deed| matches!(deed, Deed::KillBroker { .. })), count(|deed| *deed == Deed::StartBroker)),
        ] {
            assert!(hurt > 0 && hurt == heal, "{hurt} {heal}");
        }
        assert!(!all.contains(&Deed::Kill(SURVIVOR)));
        assert!(all.contains(&Deed::KillBroker { wipe: true }));
    }
}
