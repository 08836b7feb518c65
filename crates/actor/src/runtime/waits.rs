//! Detects cycles of guests' requests.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU64,
};

use parking_lot::Mutex;

/// The waiting requests of a system, from asker to receivers, by generation.
#[derive(Default)]
pub(crate) struct Waits(Mutex<HashMap<NonZeroU64, WaitsFor>>);

/// Whom an actor waits for, each with the number of requests. All but those with async functions wait for one at a time.
struct WaitsFor {
    first: (NonZeroU64, usize),
    others: HashMap<NonZeroU64, usize>,
}

/// An entry in the table: one actor waits for another.
pub(crate) struct Waiting<'a> {
    waits: &'a Waits,
    asker: NonZeroU64,
    receiver: NonZeroU64,
}

impl Waits {
    /// `None` if the receiver waits for the asker, directly or through others.
    pub(crate) fn begin(&self, asker: NonZeroU64, receiver: NonZeroU64) -> Option<Waiting<'_>> {
        let mut waits = self.0.lock();
        if leads_to(&waits, receiver, asker) {
            return None;
        }
        let waits = waits.entry(asker).or_insert_with(|| WaitsFor { first: (receiver, 0), others: HashMap::new() });
        *waits.requests(receiver) += 1;
        Some(Waiting { waits: self, asker, receiver })
    }

    /// An entry that is not in the table.
    pub(crate) fn nobody(&self, asker: NonZeroU64) -> Waiting<'_> {
        Waiting { waits: self, asker, receiver: asker }
    }
}

impl WaitsFor {
    fn requests(&mut self, receiver: NonZeroU64) -> &mut usize {
        if self.first.0 == receiver { &mut self.first.1 } else { self.others.entry(receiver).or_default() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.waits.0.lock();
        let Some(waits_for) = waits.get_mut(&self.asker) else { return };
        let requests = waits_for.requests(self.receiver);
        *requests = requests.saturating_sub(1);
        if *requests > 0 {
            return;
        }
        if waits_for.first.0 != self.receiver {
            waits_for.others.remove(&self.receiver);
        } else if let Some(other) = waits_for.others.keys().next().copied() {
            waits_for.first = (other, waits_for.others.remove(&other).unwrap_or(0));
        } else {
            waits.remove(&self.asker);
        }
    }
}

fn leads_to(waits: &HashMap<NonZeroU64, WaitsFor>, from: NonZeroU64, to: NonZeroU64) -> bool {
    let (mut next, mut branches, mut seen) = (Some(from), Vec::new(), HashSet::new());
    while let Some(at) = next.take().or_else(|| branches.pop()) {
        if at == to {
            return true;
        }
        if let Some(WaitsFor { first, others }) = waits.get(&at) {
            branches.extend(others.keys().filter(|other| seen.insert(**other)));
            // Where ways part they may meet again.
            next = (seen.is_empty() || seen.insert(first.0)).then_some(first.0);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert_eq, proptest};

    use super::*;

    fn number(of: u64) -> NonZeroU64 {
        NonZeroU64::new(of + 1).unwrap()
    }

    #[test]
    fn ways_that_part_and_meet_again_are_gone_once() {
        let waits = Waits::default();
        // Gone each, they would be 2^60.
        let edges: Vec<_> = (0..180)
            .step_by(3)
            .flat_map(|at| [(at, at + 1), (at, at + 2), (at + 1, at + 3), (at + 2, at + 3)])
            .collect();
        let _all: Vec<_> = edges.iter().map(|(from, to)| waits.begin(number(*from), number(*to)).unwrap()).collect();
        assert!(waits.begin(number(180), number(0)).is_none());
        assert!(waits.begin(number(181), number(0)).is_some());
    }

    #[test]
    fn many_requests_of_one_to_one_are_one_edge() {
        let waits = Waits::default();
        let mut all: Vec<_> = (0..1_000).map(|_| waits.begin(number(1), number(2)).unwrap()).collect();
        all.push(waits.begin(number(1), number(3)).unwrap());
        assert_eq!(waits.0.lock()[&number(1)].others.len(), 1);
        // The edge is there as long as one of them is.
        all.drain(..999);
        assert!(waits.begin(number(2), number(1)).is_none() && waits.begin(number(3), number(1)).is_none());
        all.remove(0);
        assert!(waits.begin(number(2), number(1)).is_some() && waits.begin(number(3), number(1)).is_none());
    }

    proptest! {
        /// Requests begin and end in any order, and none that would close a circle begins.
        #[test]
        fn nobody_waits_for_itself(steps in prop::collection::vec((0_u64..8, 0_u64..8, prop::bool::ANY), 0..60)) {
            let waits = Waits::default();
            let mut open: Vec<(u64, u64, Waiting<'_>)> = Vec::new();
            for (from, to, begins) in steps {
                if !begins && !open.is_empty() {
                    open.swap_remove((from * 8 + to) as usize % open.len());
                    continue;
                }
                let mut reached = [false; 8];
                reached[to as usize] = true;
                for _ in 0..8 {
                    for (from, to, _) in &open {
                        reached[*to as usize] |= reached[*from as usize];
                    }
                }
                let waiting = waits.begin(number(from), number(to));
                prop_assert_eq!(waiting.is_none(), reached[from as usize]);
                open.extend(waiting.map(|waiting| (from, to, waiting)));
            }
            open.clear();
            prop_assert_eq!(waits.0.lock().len(), 0);
        }
    }
}
