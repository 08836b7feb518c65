//! What each count must be, by what was said of it.

use std::collections::BTreeMap;

/// A kind and a key.
pub(super) type Name = (String, u32);

/// The counts of all keys.
#[derive(Debug, Default)]
pub(super) struct Books(BTreeMap<Name, Account>);

#[derive(Debug, Default, Clone, Copy)]
struct Account {
    /// The count in the last answer, or found after the last round.
    answered: u64,
    /// Additions since, of which it is not known whether they were carried out.
    unknown: u64,
    /// What was found after the last round.
    found: u64,
}

impl Books {
    /// An addition was answered with a count.
    pub(super) fn answered(&mut self, name: Name, count: u64) -> Result<(), String> {
        let account = self.0.entry(name.clone()).or_default();
        let expected = account.answered + 1..=account.answered + 1 + account.unknown;
        if !expected.contains(&count) {
            return Err(format!("{name:?} answers {count}, and not one of {expected:?}"));
        }
        (account.answered, account.unknown) = (count, 0);
        Ok(())
    }

    /// Of an addition it is not known whether it was carried out.
    pub(super) fn unknown(&mut self, name: Name) {
        self.0.entry(name).or_default().unknown += 1;
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// A round is over. `in_flight` if it was killed, with an addition under way; `may_lose` if what was answered need not be
    /// saved.
    pub(super) fn found(&mut self, name: &Name, count: u64, in_flight: bool, may_lose: bool) -> Result<(), String> {
        let account = self.0.entry(name.clone()).or_default();
        let least = if may_lose { account.found } else { account.answered };
        let expected = least..=account.answered + account.unknown + u64::from(in_flight);
        if !expected.contains(&count) {
            return Err(format!("of {name:?} {count} is found, and not one of {expected:?}"));
        }
        *account = Account { answered: count, unknown: 0, found: count };
        Ok(())
    }

    /// Of all keys together.
    pub(super) fn sum(&self) -> u64 {
        self.0.values().map(|account| account.found).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        ("each".to_owned(), 1)
    }

    #[test]
    fn what_was_answered_is_found_or_one_more_after_a_kill() {
        for (found, killed, fits) in
            [(2, false, true), (2, true, true), (3, true, true), (3, false, false), (1, true, false)]
        {
            let mut books = Books::default();
            books.answered(name(), 1).unwrap();
            books.answered(name(), 2).unwrap();
            assert_eq!(books.found(&name(), found, killed, false).is_ok(), fits, "{found} {killed}");
        }
    }

    #[test]
    fn what_need_not_be_saved_may_be_lost_but_for_what_was_found_before() {
        let mut books = Books::default();
        books.answered(name(), 1).unwrap();
        books.found(&name(), 1, true, true).unwrap();
        books.answered(name(), 2).unwrap();
        books.found(&name(), 1, true, true).unwrap();
        books.found(&name(), 0, true, true).unwrap_err();
    }

    #[test]
    fn an_answer_counts_what_was_unknown_or_does_not() {
        for (answer, fits) in [(1, true), (2, true), (3, true), (4, false), (0, false)] {
            let mut books = Books::default();
            books.unknown(name());
            books.unknown(name());
            assert_eq!(books.answered(name(), answer).is_ok(), fits, "{answer}");
        }
        let mut books = Books::default();
        books.unknown(name());
        books.answered(name(), 1).unwrap();
        books.answered(name(), 3).unwrap_err();
    }
}
