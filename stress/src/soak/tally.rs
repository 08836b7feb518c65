//! What all rounds have come to, as a table.

use std::{collections::BTreeMap, fmt, time::Duration};

use airssys_wasm_measurements::process::Reading;

use super::ledger::{Finding, Kind, Line};
use crate::growth::Growth;

#[derive(Default)]
pub(crate) struct Tally {
    lines: BTreeMap<Kind, Line>,
    /// What happened, and how often.
    counts: BTreeMap<String, u64>,
    time: Duration,
    growth: Growth,
}

impl Tally {
    /// How many guests there are at a time.
    pub(crate) fn new(guests: usize) -> Self {
        Self { growth: Growth::new(guests), ..Self::default() }
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
        self.growth.end_round(reading);
    }

    pub(crate) fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn rounds(&self) -> usize {
        self.growth.rounds()
    }

    /// Whether the process is larger at the end than after the first rounds.
    pub(crate) fn growth(&self) -> Vec<Finding> {
        self.growth.found().map(|name| Finding::Other(format!("it leaks: {name} grew"))).collect()
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
        write!(f, "{}", self.growth)
    }
}
