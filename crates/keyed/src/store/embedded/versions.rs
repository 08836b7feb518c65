//! The versions that rows have, of those that were written or read last.

use std::collections::HashMap;

use super::rows::Name;
use crate::store::Version;

/// The versions of rows that were written or read last, so that who writes one need not read it: those of the last
/// [`Self::MOST`] at least, and no more than twice as many.
#[derive(Default)]
pub(super) struct Versions {
    young: HashMap<Name, Version>,
    old: HashMap<Name, Version>,
    age: u64,
}

/// How old [`Versions`] were before a row was read.
#[derive(Clone, Copy)]
pub(super) struct Age(u64);

impl Versions {
    const MOST: usize = 16 << 10;

    pub(super) fn age(&self) -> Age {
        Age(self.age)
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Version> {
        self.young.get(name).or_else(|| self.old.get(name)).copied()
    }

    /// A row was written, and has this version.
    pub(super) fn set(&mut self, name: Name, version: Version) {
        if self.young.len() >= Self::MOST {
            self.old = std::mem::take(&mut self.young);
            self.age += 1;
        }
        self.young.insert(name, version);
    }

    /// A row was read, and had this version, after these versions were so old. What was written since is newer, and known as
    /// long as it cannot have been dropped.
    pub(super) fn read(&mut self, name: Name, version: Version, before: Age) {
        if self.age <= before.0 + 1 && self.get(&name).is_none() {
            self.set(name, version);
        }
    }

    /// What is known may be wrong, and so may be what is being read.
    pub(super) fn forget(&mut self) {
        *self = Self { age: self.age + 2, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Name {
        Name::from(n.to_be_bytes())
    }

    #[test]
    fn the_last_versions_are_known_and_not_all_of_them() {
        let mut versions = Versions::default();
        let all = 3 * Versions::MOST;
        for n in 0..all {
            versions.set(name(n), Version::new(n as u64));
        }
        assert!((all - Versions::MOST..all).all(|n| versions.get(&name(n)) == Some(Version::new(n as u64))));
        assert_eq!(versions.get(&name(0)), None);
        versions.set(name(all - 1), Version::NONE);
        assert_eq!(versions.get(&name(all - 1)), Some(Version::NONE), "the newer of two");
    }

    #[test]
    fn what_was_written_while_a_row_was_read_is_what_is_known() {
        for more in 0..3 * Versions::MOST {
            if more % 1_000 > 0 && more % Versions::MOST > 1 {
                continue;
            }
            let mut versions = Versions::default();
            // So that the tables change at all sorts of points.
            (0..more % 7_001).for_each(|n| versions.set(name(n + 1), Version::new(1)));
            let before = versions.age();
            versions.set(name(0), Version::new(2));
            (0..more).for_each(|n| versions.set(name(10_000_000 + n), Version::new(1)));
            versions.read(name(0), Version::new(1), before);
            assert_ne!(versions.get(&name(0)), Some(Version::new(1)), "{more} were written meanwhile");
        }
    }

    #[test]
    fn what_is_read_is_known_unless_all_was_forgotten_meanwhile() {
        let mut versions = Versions::default();
        let before = versions.age();
        versions.forget();
        versions.read(name(0), Version::new(1), before);
        assert_eq!(versions.get(&name(0)), None);
        versions.read(name(0), Version::new(1), versions.age());
        assert_eq!(versions.get(&name(0)), Some(Version::new(1)));
    }
}
