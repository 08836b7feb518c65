//! Whether a process grows over the rounds of a program that leaves nothing behind.

use std::fmt;

use airssys_wasm_measurements::process::Reading;

/// Rounds after which the process should have everything it needs.
const SETTLED: usize = 2;

/// How large the process is after each round.
#[derive(Default)]
pub(crate) struct Growth {
    /// How many guests there are at a time.
    guests: usize,
    readings: Vec<Option<Reading>>,
}

impl Growth {
    pub(crate) fn new(guests: usize) -> Self {
        Self { guests, readings: Vec::new() }
    }

    /// Notes how large the process is when nothing of a round is left.
    pub(crate) fn end_round(&mut self, reading: Option<Reading>) {
        self.readings.push(reading);
    }

    pub(crate) fn rounds(&self) -> usize {
        self.readings.len()
    }

    /// What is larger at the end than after the first rounds.
    pub(crate) fn found(&self) -> impl Iterator<Item = &'static str> {
        let grown = self.compared().into_iter().filter(|(_, before, after, tolerance)| *after > before + tolerance);
        grown.map(|(name, ..)| name)
    }

    /// What there was after the first rounds, at the end, and what it may grow by. Nothing where there are too few rounds,
    /// or the system does not tell.
    fn compared(&self) -> Vec<(&'static str, u64, u64, u64)> {
        let Some(&Some(before)) = self.readings.get(SETTLED - 1) else { return Vec::new() };
        let later: Vec<_> = self.readings[SETTLED..].iter().copied().flatten().collect();
        // Of the last third: a leak is in all of them, and what a round happened to leave with the allocator is not.
        let last = &later[later.len() - later.len().div_ceil(3)..];
        let guests = self.guests as u64;
        let row =
            |name, of: fn(&Reading) -> u64, tolerance| Some((name, of(&before), last.iter().map(of).min()?, tolerance));
        let rows = [
            // What a crowded moment took stays with the allocator, in an arena for each thread, and with the pool, which
            // keeps some 100 KiB of the memory and the stack of each guest that ever lived at the same time as others.
            // Both are soon as large as they get: a leak is what goes on.
            row("resident", |reading| reading.resident, (8 << 20) + guests * (100 << 10)),
            // Each of these slots has up to three.
            row("mappings", |reading| reading.mappings, 64 + guests * 3),
            row("descriptors", |reading| reading.descriptors, 0),
            row("threads", |reading| reading.threads, 0),
        ];
        rows.into_iter().flatten().collect()
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.compared();
        if rows.is_empty() {
            return writeln!(f, "\ntoo few rounds, or a system that does not tell: growth was not looked at");
        }
        writeln!(f, "\n{:<12} {:>16} {:>16} {:>16}", "the process", "after 2 rounds", "at the end", "may grow by")?;
        for (name, before, after, tolerance) in rows {
            writeln!(f, "{name:<12} {before:>16} {after:>16} {tolerance:>16}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(resident: &[u64], threads: u64) -> usize {
        let mut growth = Growth::new(80);
        for (n, mib) in resident.iter().enumerate() {
            let threads = if n < SETTLED { 4 } else { threads };
            let resident = mib << 20;
            growth.end_round(Some(Reading { resident, peak: 0, virtual_: 0, mappings: 9, descriptors: 9, threads }));
        }
        growth.found().count()
    }

    #[test]
    fn what_grows_in_each_round_is_found_and_what_varies_is_not() {
        assert_eq!(grown(&[50, 90], 4), 0);
        assert_eq!(grown(&[50, 90, 200], 4), 1);
        assert_eq!(grown(&[50, 90, 95, 100, 180, 110, 90, 190], 4), 0);
        assert_eq!(grown(&[50, 90, 100, 110, 120, 130, 140, 150], 4), 1);
        assert_eq!(grown(&[50, 90, 95, 90], 5), 1);
    }
}
