//! Writes of which it is not known whether they were carried out: what this store must not take for those of others.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Writes that are remembered. One that is forgotten is fenced when it is made again, though it was carried out.
const MOST: usize = 100_000;

/// By the subject of their row.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_subject: HashMap<String, Doubt>,
    /// Of all of them.
    writes: usize,
}

/// Writes of one row that follow the same version.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Doubt {
    follows: u64,
    /// Numbers of those that save.
    saves: Vec<u64>,
    /// Whether one of them removes.
    removal: bool,
}

impl Doubt {
    /// Whether it is one of them that has made the row.
    pub(super) fn has_saved(&self, number: Option<u64>) -> bool {
        number.is_some_and(|number| self.saves.contains(&number))
    }

    /// Whether one of them removes the row.
    pub(super) fn has_removed(&self) -> bool {
        self.removal
    }

    fn writes(&self) -> usize {
        self.saves.len() + 1
    }
}

impl Doubts {
    /// Begins a write.
    pub(super) fn begin<'a>(&'a self, subject: &'a str, follows: u64) -> Attempt<'a> {
        let before = self.0.lock().by_subject.get(subject).filter(|doubt| doubt.follows == follows).cloned();
        let made = Doubt { follows, ..Doubt::default() };
        Attempt { doubts: self, subject, before, made }
    }

    fn add(&self, subject: &str, made: Doubt) {
        let mut inner = self.0.lock();
        let Inner { by_subject, writes } = &mut *inner;
        match by_subject.get_mut(subject) {
            Some(doubt) if doubt.follows == made.follows => {
                *writes += made.saves.len();
                doubt.saves.extend(made.saves);
                doubt.removal |= made.removal;
            }
            _ => {
                *writes += made.writes();
                // What follows a version that another write has followed is of no interest.
                let other = by_subject.insert(subject.to_owned(), made);
                *writes -= other.map_or(0, |other| other.writes());
            }
        }
        while *writes > MOST {
            let Some(any) = by_subject.keys().next().cloned() else { break };
            *writes -= by_subject.remove(&any).map_or(0, |doubt| doubt.writes());
        }
    }

    fn remove(&self, subject: &str) {
        let mut inner = self.0.lock();
        if let Some(doubt) = inner.by_subject.remove(subject) {
            inner.writes -= doubt.writes();
        }
    }
}

/// A write. What it has sent is in doubt if it is dropped.
pub(super) struct Attempt<'a> {
    doubts: &'a Doubts,
    subject: &'a str,
    /// What was in doubt before.
    before: Option<Doubt>,
    made: Doubt,
}

impl<'a> Attempt<'a> {
    /// Of its row.
    pub(super) fn subject(&self) -> &'a str {
        self.subject
    }

    /// What is in doubt of this row, apart from this write.
    pub(super) fn before(&self) -> Option<&Doubt> {
        self.before.as_ref()
    }

    /// A row with this number is about to be sent.
    pub(super) fn saves(&mut self, number: u64) {
        self.made.saves.push(number);
    }

    /// A removal is about to be sent.
    pub(super) fn removes(&mut self) {
        self.made.removal = true;
    }

    /// What was sent was refused, or it is known not to have come there.
    pub(super) fn was_refused(&mut self) {
        self.made = Doubt { follows: self.made.follows, ..Doubt::default() };
    }

    /// It was carried out. No write that follows an earlier version can be any more.
    pub(super) fn succeeded(mut self) {
        self.was_refused();
        self.doubts.remove(self.subject);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.made.removal || !self.made.saves.is_empty() {
            self.doubts.add(self.subject, std::mem::take(&mut self.made));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_in_doubt_for_the_same_row_and_version() {
        let doubts = Doubts::default();
        let mut attempt = doubts.begin("a", 7);
        assert_eq!(attempt.before(), None);
        attempt.saves(1);
        assert_eq!(doubts.begin("a", 7).before(), None, "it is under way");
        drop(attempt);
        let mut again = doubts.begin("a", 7);
        again.saves(2);
        again.removes();
        drop(again);
        let doubt = doubts.begin("a", 7).before().cloned().unwrap();
        assert!(doubt.has_saved(Some(1)) && doubt.has_saved(Some(2)) && doubt.removal);
        assert!(!doubt.has_saved(Some(3)) && !doubt.has_saved(None));
        assert_eq!(doubts.begin("a", 8).before(), None, "of another version");
        assert_eq!(doubts.begin("b", 7).before(), None, "of another row");
    }

    #[test]
    fn what_was_refused_or_was_never_sent_is_not_in_doubt() {
        let doubts = Doubts::default();
        let mut attempt = doubts.begin("a", 7);
        attempt.saves(1);
        attempt.was_refused();
        drop(attempt);
        drop(doubts.begin("a", 7));
        assert_eq!(doubts.begin("a", 7).before(), None);
    }

    #[test]
    fn a_success_ends_all_doubts_of_the_row() {
        let doubts = Doubts::default();
        doubts.begin("a", 7).saves(1);
        doubts.begin("b", 7).saves(2);
        doubts.begin("a", 7).succeeded();
        assert_eq!(doubts.begin("a", 7).before(), None);
        assert!(doubts.begin("b", 7).before().is_some());
        assert_eq!(doubts.0.lock().writes, 2);
    }

    #[test]
    fn they_are_bounded() {
        let doubts = Doubts::default();
        for n in 0..2 * MOST as u64 {
            doubts.begin(&(n % 10_000).to_string(), n / 10_000 % 3).saves(n);
            let inner = doubts.0.lock();
            assert!(inner.writes <= MOST);
        }
        for n in 0..2 * MOST as u64 {
            doubts.begin("one", 0).saves(n);
        }
        let inner = doubts.0.lock();
        assert!(inner.writes <= MOST);
        assert_eq!(inner.writes, inner.by_subject.values().map(Doubt::writes).sum::<usize>());
    }
}
