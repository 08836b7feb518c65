//! What all rounds have come to, as a table; and whether the process grew over them.

use std::{collections::BTreeMap, fmt, time::Duration};

use airssys_wasm_measurements::process::Reading;

use super::ledger::{Finding, Kind, Line};

/// Rounds after which the process should have everything it needs.
const SETTLED: usize = 2;

#[derive(Default)]
pub(crate) struct Tally {
    /// How many guests there are at a time.
    guests: usize,
    lines: BTreeMap<Kind, Line>,
    /// What happened, and how often.
    counts: BTreeMap<String, u64>,
    time: Duration,
    readings: Vec<Option<Reading>>,
}

impl Tally {
    pub(crate) fn new(guests: usize) -> Self {
        Self { guests, ..Self::default() }
    }

    /// Adds what a round has come to, and gives it in a line.
    pub(crate) fn add(
        &mut self,
        time: Duration,
        lines: BTreeMap<Kind, Line>,
        counts: impl Iterator<Item = (String, u64)>,
    ) -> String {
        let mut all = Line::default();
        for (kind, line) in lines {
            *self.lines.entry(kind).or_default() += line;
            all += line;
        }
        for (what, count) in counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.time += time;
        let Line { handled, dead, refused, .. } = all;
        let per_second = handled as f64 / time.as_secs_f64();
        format!("{handled} messages handled ({per_second:.0} a second), {dead} dead, {refused} refused")
    }

    /// Notes how large the process is when nothing of a round is left.
    pub(crate) fn end_round(&mut self, reading: Option<Reading>) {
        self.readings.push(reading);
    }

    pub(crate) fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn rounds(&self) -> usize {
        self.readings.len()
    }

    /// Whether the process is larger at the end than after the first rounds.
    pub(crate) fn growth(&self) -> Vec<Finding> {
        let grown = self.compared().into_iter().filter(|(_, before, after, tolerance)| *after > before + tolerance);
        grown.map(|(name, ..)| Finding::Other(format!("it leaks: {name} grew"))).collect()
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

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Line::default();
        self.lines.values().for_each(|line| all += *line);
        let (rounds, seconds, Line { sent, handled, .. }) = (self.rounds(), self.time.as_secs_f64(), all);
        let per_second = handled as f64 / seconds;
        writeln!(f, "{rounds} rounds, {seconds:.0} s, {sent} messages, {per_second:.0} handled a second\n")?;
        let heads = ["sent", "handled", "dead", "refused", "asker told", "open"];
        writeln!(f, "{:<12}{}", "to", heads.map(|head| format!("{head:>13}")).concat())?;
        for (kind, Line { sent, handled, dead, told, refused, open }) in &self.lines {
            let cells = [sent, handled, dead, refused, told, open].map(|cell| format!("{cell:>13}"));
            writeln!(f, "{:<12}{}", format!("{kind:?}"), cells.concat())?;
        }
        writeln!(f, "What is open was given up by its asker, and may be among the handled, the dead or neither.\n")?;
        for (what, count) in self.counts.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "{count:>13} {what}")?;
        }
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
        let mut tally = Tally::new(80);
        for (n, mib) in resident.iter().enumerate() {
            let threads = if n < SETTLED { 4 } else { threads };
            let resident = mib << 20;
            tally.end_round(Some(Reading { resident, peak: 0, virtual_: 0, mappings: 9, descriptors: 9, threads }));
        }
        tally.growth().len()
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
