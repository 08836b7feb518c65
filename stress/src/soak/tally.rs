//! What all rounds have come to, as a table; and whether the process grew over them.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{
    Deeds,
    ledger::{Fate, Finding, Kind, Line, Outbox},
    meter::Meter,
};
use airssys_wasm_measurements::process::Reading;

/// Rounds after which the process should have everything it needs.
const SETTLED: usize = 2;

/// What deeds that are dead letters begin with.
const DEAD: &str = "dead: ";

/// Counters of the metrics that are told, and what they stand for.
const METERED: [(&str, &str); 4] = [
    ("airssys_actor_restarts_total", "restarted"),
    ("airssys_actor_handler_errors_total", "handlers that failed"),
    ("airssys_actor_unclaimed_answers_total", "answers that nobody waited for"),
    ("airssys_actor_refused_publications_total", "publications of guests refused"),
];

#[derive(Default)]
pub(crate) struct Tally {
    /// How many guests there are at a time.
    guests: usize,
    lines: BTreeMap<Kind, Line>,
    fates: BTreeMap<&'static str, u64>,
    deeds: Deeds,
    crashes: BTreeMap<String, u64>,
    time: Duration,
    /// Of the last round.
    last: (Duration, Line, Deeds, u64),
    readings: Vec<Option<Reading>>,
}

impl Tally {
    pub(crate) fn new(guests: usize) -> Self {
        Self { guests, ..Self::default() }
    }

    /// Adds what a round has come to.
    pub(crate) fn add(
        &mut self,
        time: Duration,
        lines: &BTreeMap<Kind, Line>,
        outboxes: &[Outbox],
        deeds: &Deeds,
        meter: &Meter,
    ) {
        let (mut all, mut deeds) = (Line::default(), deeds.clone());
        for (kind, line) in lines {
            *self.lines.entry(*kind).or_default() += *line;
            all += *line;
        }
        for (fate, count) in outboxes.iter().flat_map(Outbox::fates) {
            *self.fates.entry(fate.name()).or_default() += count;
        }
        for (counter, name) in METERED {
            deeds.insert(name, meter.counter(counter));
        }
        for (deed, count) in &deeds {
            *self.deeds.entry(deed).or_default() += count;
        }
        let crashes = meter.crashes();
        let crashed = crashes.iter().map(|(_, count)| count).sum();
        for (kind, count) in crashes {
            *self.crashes.entry(kind).or_default() += count;
        }
        self.time += time;
        self.last = (time, all, deeds, crashed);
    }

    /// Notes how large the process is when nothing of a round is left.
    pub(crate) fn end_round(&mut self, reading: Option<Reading>) {
        self.readings.push(reading);
    }

    pub(crate) fn rounds(&self) -> usize {
        self.readings.len()
    }

    /// The last round in a line.
    pub(crate) fn progress(&self) -> String {
        let (time, all, deeds, crashes) = &self.last;
        let did = |deed: &str| deeds.get(deed).copied().unwrap_or_default();
        let resident = self.readings.last().copied().flatten().map_or(0, |reading| reading.resident >> 20);
        format!(
            "round {}: {} messages handled ({:.0} a second), {} dead, {crashes} crashes, {} restarts, {} kills, \
             {} upgrades, {} supervisors stopped, {resident} MiB",
            self.rounds(),
            all.handled,
            all.handled as f64 / time.as_secs_f64(),
            all.dead,
            did("restarted"),
            did("killed"),
            did("upgraded") + did("rolled back"),
            did("supervisors stopped"),
        )
    }

    /// Whether the process is larger at the end than after the first rounds.
    pub(crate) fn growth(&self) -> Vec<Finding> {
        let grown = self.compared().into_iter().filter(|row| row.after > row.before + row.tolerance);
        grown.map(|row| Finding::Other(format!("it leaks: {} grew", row.name))).collect()
    }

    /// Nothing where there are too few rounds, or the system does not tell.
    fn compared(&self) -> Vec<Row> {
        let Some(&Some(before)) = self.readings.get(SETTLED - 1) else { return Vec::new() };
        let later: Vec<_> = self.readings[SETTLED..].iter().copied().flatten().collect();
        // Of the last third: a leak is in all of them, and what a round happened to leave with the allocator is not.
        let last = &later[later.len() - later.len().div_ceil(3)..];
        let guests = self.guests as u64;
        let row = |name, of: fn(&Reading) -> u64, tolerance| {
            let after = last.iter().map(of).min()?;
            Some(Row { name, before: of(&before), after, tolerance })
        };
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

struct Row {
    name: &'static str,
    before: u64,
    after: u64,
    tolerance: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { sent, handled, .. } = self.lines.values().fold(Line::default(), |mut all, line| {
            all += *line;
            all
        });
        let (rounds, seconds) = (self.rounds(), self.time.as_secs_f64());
        writeln!(
            f,
            "{rounds} rounds, {seconds:.0} s, {sent} messages, {:.0} handled a second",
            handled as f64 / seconds
        )?;
        writeln!(
            f,
            "\n{:<22} {:>12} {:>12} {:>12} {:>12} {:>12} {:>8}",
            "to", "sent", "handled", "dead", "refused", "asker told", "open"
        )?;
        for (kind, Line { sent, handled, dead, told, refused, open }) in &self.lines {
            writeln!(f, "{kind:<22} {sent:>12} {handled:>12} {dead:>12} {refused:>12} {told:>12} {open:>8}")?;
        }
        writeln!(f, "What is open was given up by its asker, and may be among the handled, the dead or neither.")?;
        let fates = |refusals| {
            let fates = Fate::all().filter(move |fate| fate.is_refusal() == refusals);
            fates.map(|fate| (fate.name(), self.fates.get(fate.name()).copied().unwrap_or_default()))
        };
        list(f, "tells and asks, by outcome", fates(false))?;
        list(f, "refused", fates(true))?;
        list(f, "crashes", self.crashes.iter().map(|(kind, count)| (kind.as_str(), *count)))?;
        let dead = self.deeds.iter().filter_map(|(deed, count)| Some((deed.strip_prefix(DEAD)?, *count)));
        list(f, "dead letters, by reason", dead)?;
        let deeds = self.deeds.iter().filter(|(deed, _)| !deed.starts_with(DEAD));
        list(f, "what happened", deeds.map(|(deed, count)| (*deed, *count)))?;
        let rows = self.compared();
        if rows.is_empty() {
            return writeln!(f, "\ntoo few rounds, or a system that does not tell: growth was not looked at");
        }
        writeln!(f, "\n{:<16} {:>14} {:>14} {:>14}", "the process", "after 2 rounds", "at the end", "may grow by")?;
        for Row { name, before, after, tolerance } in rows {
            writeln!(f, "{name:<16} {before:>14} {after:>14} {tolerance:>14}")?;
        }
        Ok(())
    }
}

fn list<'a>(f: &mut fmt::Formatter<'_>, title: &str, rows: impl Iterator<Item = (&'a str, u64)>) -> fmt::Result {
    writeln!(f, "\n{title}")?;
    for (name, count) in rows.filter(|(_, count)| *count > 0) {
        writeln!(f, "{count:>14} {name}")?;
    }
    Ok(())
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
