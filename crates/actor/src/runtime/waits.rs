//! Detects cycles of guests' requests.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU64,
};

use parking_lot::Mutex;

/// The waiting requests of a system, from asker to receivers, by generation.
#[derive(Default)]
pub(crate) struct Waits(Mutex<HashMap<NonZeroU64, WaitsFor>>);

/// Whom an actor waits for. All but those with async functions wait for one at a time.
struct WaitsFor {
    first: NonZeroU64,
    others: Vec<NonZeroU64>,
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
        let new = || WaitsFor { first: receiver, others: Vec::new() };
        waits.entry(asker).and_modify(|waits| waits.others.push(receiver)).or_insert_with(new);
        Some(Waiting { waits: self, asker, receiver })
    }

    /// An entry that is not in the table.
    pub(crate) fn nobody(&self, asker: NonZeroU64) -> Waiting<'_> {
        Waiting { waits: self, asker, receiver: asker }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waits = self.waits.0.lock();
        let Some(WaitsFor { first, others }) = waits.get_mut(&self.asker) else { return };
        if let Some(at) = others.iter().position(|other| *other == self.receiver) {
            others.swap_remove(at);
        } else if let Some(other) = others.pop() {
            *first = other;
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
            branches.extend(others.iter().filter(|other| seen.insert(**other)));
            // Where ways part they may meet again.
            next = (seen.is_empty() || seen.insert(*first)).then_some(*first);
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
