//! A name that any of the hosts may own, under a lease.

use proptest::prelude::{any, prop, proptest};

use super::*;
use crate::lease::Fence;

/// One name, claimed by whoever may.
struct Name {
    me: Host,
    token: Token,
    fence: Fence,
    revision: u64,
    owner: Option<Owner<Host>>,
    sent: Option<Duration>,
}

impl Claims for Name {
    fn new(me: Host, holder: &Holder) -> Self {
        Self { me, token: holder.token(), fence: holder.fence(), revision: 0, owner: None, sent: None }
    }

    fn record(&mut self, _: usize, owner: Owner<Host>, revision: u64) {
        if revision > self.revision {
            (self.revision, self.owner) = (revision, Some(owner));
        }
    }

    fn refused(&mut self, name: usize, follows: u64, found: Option<(Owner<Host>, u64)>) -> Standing {
        match found {
            Some((owner, revision)) if revision >= follows => self.record(name, owner, revision),
            None if follows == 0 => {}
            Some(_) | None => return Standing::Anew,
        }
        Standing::Holds
    }

    fn writes(&mut self, sessions: &Sessions<Host>, _: &[Host], now: Duration) -> Vec<(usize, Owner<Host>, u64)> {
        let may_claim = match &self.owner {
            Some(owner) => sessions.is_over(owner, now),
            None => sessions.is_settled(now),
        };
        if !may_claim || self.sent.is_some_and(|sent| now < sent + TIMING.renewal) {
            return Vec::new();
        }
        self.sent = Some(now);
        vec![(0, Owner { host: self.me, token: self.token }, self.revision)]
    }

    fn owns(&self, _: usize, now: Duration) -> bool {
        let is_mine = self.owner.as_ref().is_some_and(|owner| owner.token.is_same_session(&self.token));
        is_mine && !self.fence.is_up(now)
    }
}

proptest! {
    #[test]
    fn a_name_has_one_owner_whatever_happens_and_soon_one_when_nothing_does(
        steps in prop::collection::vec(step(), 0..40),
        gone in 0..15_usize,
        seed in any::<u64>(),
    ) {
        // Two processes take themselves for the same host.
        let mut world = World::<Name>::new(1, &["a", "b", "c", "a"], seed);
        for step in steps {
            world.take(step);
        }
        world.heal(|host| gone >> host & 1 == 1);
        // By the slowest clock, and what messages take.
        let soon = (TIMING.claim() + TIMING.renewal).as_millis() as u64 * (1_000_000 + DRIFT) / 1_000_000 + 500;
        world.pass(soon);
        for _ in 0..200 {
            world.tick();
            assert_eq!(world.owners(0).len(), 1, "at {} ms", world.now);
        }
    }
}
