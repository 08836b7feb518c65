//! What the report consists of.

use std::collections::{BTreeMap, BTreeSet};

use airssys_wasm_measurements::{Held, Ratio, is_twin, stats::quantile};
use serde_json::{Value, json};

use super::{Section, Source};
use crate::{
    bench::tables,
    compare::{outcome::Row, verdict::Verdict},
    results::{Results, is_the_guides},
    table::{Cell, Table, amount},
};

pub(super) fn all(source: &Source) -> Vec<Section> {
    let results = &source.results;
    let mut sections = vec![
        goals(results),
        beside_bare_wasmtime(results),
        beside_others(results),
        limits(results),
        distributions(results),
        latencies(results),
        neighbours(results),
        memory(results),
        comparison(source),
    ];
    sections.extend(self_check(source));
    sections.extend(commits(source));
    sections.push(history(source));
    sections
}

/// How many goals are met, for the top of the page.
pub(super) fn tiles(results: &Results) -> String {
    let (goals, guide) = held(results);
    let tile = |class: &str, count: usize, what: &str| {
        format!("<li class=\"tile {class}\"><strong>{count}</strong> <span>{what}</span></li>")
    };
    let count = |goals: &[Goal], held| goals.iter().filter(|goal| goal.held == held).count();
    let [met, near, missed] = [Held::Met, Held::Near, Held::Missed].map(|held| count(&goals, held));
    let of_guide = count(&guide, Held::Met);
    format!(
        "<ul class=\"tiles\">{}{}{}{}{}</ul>",
        tile("met", met, "goals met"),
        tile("", near, "goals within the interval"),
        tile("missed", missed, "goals missed"),
        tile("", of_guide, &format!("of the guide's {} targets met", guide.len())),
        tile("", results.figures.results.len(), "figures")
    )
}

/// Something that was held against a goal.
struct Goal {
    label: String,
    /// The share of the goal that was needed, with an interval where there is one.
    share: [f64; 3],
    held: Held,
}

/// What was held against our goals, and against the guide's targets.
fn held(results: &Results) -> (Vec<Goal>, Vec<Goal>) {
    let (mut ours, mut guides) = (Vec::new(), Vec::new());
    for ratio in &results.figures.ratios {
        let Ratio { id, against, ratio: middle, lower, upper, goal: Some(goal), held: Some(held) } = ratio else {
            continue;
        };
        let held = Goal {
            label: format!("{id} / {}", whose(against)),
            share: [middle, lower, upper].map(|at| at / goal),
            held: *held,
        };
        if is_the_guides(ratio) { &mut guides } else { &mut ours }.push(held);
    }
    for target in &results.figures.targets {
        let label = target.id.clone();
        let share = [target.actual, target.lower, target.upper].map(|at| at / target.limit);
        let held = Goal { label, share, held: target.held };
        if target.source.starts_with("goal") { &mut ours } else { &mut guides }.push(held);
    }
    (ours, guides)
}

/// The part of a twin's id that says whose it is.
fn whose(id: &str) -> &str {
    match id.split_once('/') {
        Some(("peer", rest)) => rest.split('/').next().unwrap_or(rest),
        Some((whose, _)) if is_twin(id) => whose,
        _ => id,
    }
}

fn goals(results: &Results) -> Section {
    let (ours, guides) = held(results);
    let chart = |mut held: Vec<Goal>| {
        // What is missed, or nearly so, comes first.
        held.sort_by(|a, b| b.share[0].total_cmp(&a.share[0]));
        let rows: Vec<_> = held
            .into_iter()
            .map(|Goal { label, share: [value, lower, upper], held }| {
                json!({ "label": label, "value": value, "lower": lower, "upper": upper, "verdict": held.word() })
            })
            .collect();
        json!({ "kind": "intervals", "unit": "× goal", "log": true, "reference": 1, "rows": rows })
    };
    Section {
        id: "goals",
        title: "Goals",
        about:
            "Each goal and the share of it that was needed: to the left of 1 it is met. What the guide asked for is \
                beside ours; some of it nobody can meet, and the documentation says why."
                .into(),
        charts: vec![
            ("goals", "Our goals, as shares: less is better", chart(ours)),
            ("guide", "The guide's targets, as shares: less is better", chart(guides)),
        ],
        tables: vec![
            tables::ratios_of(results, "Goals for ratios", |ratio| ratio.goal.is_some()),
            tables::limits(results),
        ],
    }
}

fn intervals<'r>(ratios: impl Iterator<Item = (String, &'r Ratio)>, unit: &str) -> Value {
    let rows: Vec<_> = ratios
        .map(|(label, Ratio { ratio, lower, upper, goal, held, .. })| {
            let verdict = held.map(Held::word);
            json!({ "label": label, "value": ratio, "lower": lower, "upper": upper, "goal": goal, "verdict": verdict })
        })
        .collect();
    json!({ "kind": "intervals", "unit": unit, "log": true, "reference": 1, "rows": rows })
}

fn beside_bare_wasmtime(results: &Results) -> Section {
    let raw = results.figures.ratios.iter().filter(|ratio| ratio.against.starts_with("raw/"));
    Section {
        id: "raw",
        title: "Beside bare wasmtime and tokio",
        about:
            "What a layer costs: the same work through it and on bare wasmtime, tokio or std, measured in turns. The \
                bars are 95 % intervals over several processes; a tick is a goal."
                .into(),
        charts: vec![(
            "raw",
            "Ratio to the same work without the layer",
            intervals(raw.map(|ratio| (ratio.id.clone(), ratio)), "×"),
        )],
        tables: vec![tables::figures(results)],
    }
}

fn beside_others(results: &Results) -> Section {
    let is_other = |ratio: &Ratio| !ratio.against.starts_with("raw/") && !is_limit(ratio);
    let others = results.figures.ratios.iter().filter(|ratio| is_other(ratio));
    Section {
        id: "peers",
        title: "Beside others",
        about: "The same work by actors of kameo and ractor, by other maps, by wasmtime as it is by default, by the guide's \
                own implementation, and by native code. To the left of 1 we are faster."
            .into(),
        charts: vec![(
            "peers",
            "Ratio to others",
            intervals(others.map(|ratio| (format!("{} / {}", ratio.id, whose(&ratio.against)), ratio)), "×"),
        )],
        tables: vec![tables::ratios_of(results, "Beside others", is_other)],
    }
}

/// Whether it says what a limit costs.
fn is_limit(ratio: &Ratio) -> bool {
    ratio.id.starts_with("execution/limits/")
}

fn limits(results: &Results) -> Section {
    let cost = results.figures.ratios.iter().filter(|ratio| is_limit(ratio));
    Section {
        id: "limits",
        title: "What limits cost",
        about: "Loops of 10,000 steps on bare wasmtime, interrupted by epochs, by fuel, by both, and without signals, beside \
                the same loop without any: a loop of two instructions, indirect calls, and scattered memory."
            .into(),
        charts: vec![(
            "limits",
            "Ratio to the same loop without limits",
            intervals(
                cost.map(|ratio| {
                    let name = |id: &str| id.trim_start_matches("execution/limits/").to_owned();
                    let against = name(&ratio.against);
                    (format!("{} / {}", name(&ratio.id), against.rsplit('/').next().unwrap_or(&against)), ratio)
                }),
                "×",
            ),
        )],
        tables: vec![tables::ratios_of(results, "Cost of limits", is_limit)],
    }
}

/// Fewer samples than this have no distribution.
const SAMPLES: usize = 10;

fn distributions(results: &Results) -> Section {
    let has_goal = |id: &str| {
        results.figures.ratios.iter().any(|ratio| ratio.id == id && ratio.goal.is_some())
            || results.figures.targets.iter().any(|target| target.id == id)
    };
    let mut table = Table::new("Quantiles", ["benchmark", "5 %", "25 %", "50 %", "75 %", "95 %", "samples"]);
    let mut rows = Vec::new();
    for figure in &results.figures.results {
        if is_twin(&figure.id) || figure.samples.len() < SAMPLES || figure.estimate <= 0.0 {
            continue;
        }
        let mut sorted = figure.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let mut cells: Vec<Cell> = vec![figure.id.as_str().into()];
        cells.extend([0.05, 0.25, 0.5, 0.75, 0.95].map(|share| Cell::amount(quantile(&sorted, share), &figure.unit)));
        cells.push(Cell::number(sorted.len().to_string(), sorted.len() as f64));
        table.row(cells);
        if has_goal(&figure.id) {
            let samples: Vec<_> = sorted.iter().map(|sample| sample / figure.estimate).collect();
            rows.push(json!({ "label": figure.id, "samples": samples }));
        }
    }
    Section {
        id: "distributions",
        title: "Distributions",
        about:
            "Every batch of every process, as a share of the median. A second hump is a process, or a time, in which \
                something else was going on. The chart has what has a goal; the table has all."
                .into(),
        charts: vec![(
            "distributions",
            "Batches over their median",
            json!({ "kind": "distribution", "unit": "× median", "rows": rows }),
        )],
        tables: vec![table],
    }
}

const PERCENTILES: [&str; 4] = ["p50", "p95", "p99", "p99.9"];

fn latencies(results: &Results) -> Section {
    let mut table = Table::new("Latencies", ["rate", "of", "p50", "p95", "p99", "p99.9"]);
    let mut series = Vec::new();
    for (rate, asks) in [("1000", "1,000"), ("10000", "10,000"), ("100000", "100,000")] {
        for (name, prefix) in [("ours", ""), ("raw", "raw/"), ("kameo", "peer/kameo/")] {
            let id = format!("{prefix}actor/latency/{rate}_per_second");
            let values = PERCENTILES.map(|percentile| results.figure(&format!("{id}/{percentile}")));
            let [Some(p50), Some(p95), Some(p99), Some(p999)] = values else { continue };
            let values = [p50, p95, p99, p999].map(|figure| figure.estimate);
            let facet = format!("{asks} asks a second");
            series.push(json!({ "id": id, "label": name, "facet": facet, "values": values }));
            let mut cells: Vec<Cell> = vec![facet.into(), name.into()];
            cells.extend(values.map(|ns| Cell::amount(ns, "ns")));
            table.row(cells);
        }
    }
    Section {
        id: "latency",
        title: "Latency",
        about: "Asks at fixed rates, whether or not there are answers: each latency counts from when its ask was due. Ours \
                is an ask of a guest, raw is a task with a channel and the same guest on bare wasmtime, kameo's actor is \
                native code."
            .into(),
        charts: vec![(
            "latency",
            "Latency by percentile",
            json!({ "kind": "percentiles", "unit": "ns", "log": true, "x": PERCENTILES, "series": series }),
        )],
        tables: vec![table],
    }
}

fn neighbours(results: &Results) -> Section {
    let mut table = Table::new("Neighbours", ["benchmark", "p99", "limit"]);
    let mut rows = Vec::new();
    for workers in ["one_worker", "two_workers"] {
        for neighbour in ["alone", "spins", "traps", "floods", "hoards"] {
            let id = format!("actor/neighbour/{neighbour}/{workers}/p99");
            let Some(figure) = results.figure(&id) else { continue };
            let limit = results.limit(&id);
            let group = workers.replace('_', " ");
            rows.push(json!({ "label": neighbour, "group": group, "value": figure.estimate, "limit": limit }));
            let limit = limit.map_or_else(|| "".into(), |limit| Cell::amount(limit, "ns"));
            table.row([id.into(), Cell::amount(figure.estimate, "ns"), limit]);
        }
    }
    let others = |id: &str| id.contains("/neighbour_delay/") || id.contains("http/neighbour/");
    for figure in results.figures.results.iter().filter(|figure| others(&figure.id)) {
        let limit = results.limit(&figure.id).map_or_else(|| "".into(), |limit| Cell::amount(limit, "ns"));
        table.row([figure.id.as_str().into(), Cell::amount(figure.estimate, "ns"), limit]);
    }
    Section {
        id: "neighbours",
        title: "What neighbours do to each other",
        about: "The 99th percentile of asks of a healthy actor, a thousand a second, beside an actor that computes without \
                end, traps, floods another with messages, or takes memory until it is stopped."
            .into(),
        charts: vec![(
            "neighbours",
            "p99 of a healthy actor beside each kind of neighbour",
            json!({ "kind": "bars", "unit": "ns", "log": true, "rows": rows }),
        )],
        tables: vec![table],
    }
}

fn memory(results: &Results) -> Section {
    let mut table = Table::new("Memory", ["benchmark", "each", "limit"]);
    let mut series = Vec::new();
    for kind in ["resident", "virtual"] {
        let mut points = Vec::new();
        for live in [1, 10, 50, 1_000, 10_000] {
            if let Some(figure) = results.figure(&format!("memory/{kind}/{live}")) {
                points.push(json!({ "x": live, "y": figure.estimate }));
            }
        }
        if !points.is_empty() {
            series.push(json!({ "label": kind, "points": points }));
        }
    }
    let mut rows = Vec::new();
    for figure in results.figures.results.iter().filter(|figure| figure.unit == "bytes") {
        let limit = results.limit(&figure.id);
        if let Some(guest) = figure.id.split("actor/density/").nth(1) {
            let group = guest.split('/').next().unwrap_or(guest);
            let label = match is_twin(&figure.id) {
                true if guest.ends_with("/instance") => "instance alone",
                true => "raw",
                false => "ours",
            };
            rows.push(
                json!({ "label": label, "group": format!("{group} guest"), "value": figure.estimate, "limit": limit }),
            );
        }
        let limit = limit.map_or_else(|| "".into(), |limit| Cell::amount(limit, "bytes"));
        table.row([figure.id.as_str().into(), Cell::amount(figure.estimate, "bytes"), limit]);
    }
    Section {
        id: "memory",
        title: "Memory per component",
        about: "What each live component adds to the process after it was called: components alone, and 10,000 actors with \
                mailbox, supervision and name, beside a task with a channel and the same guest, and beside its instance alone."
            .into(),
        charts: vec![
            (
                "memory",
                "Bytes for each live component",
                json!({ "kind": "lines", "unit": "bytes", "xlabel": "live components", "logx": true, "logy": true, "series": series }),
            ),
            (
                "density",
                "Resident bytes for each of 10,000 live actors",
                json!({ "kind": "bars", "unit": "bytes", "log": false, "rows": rows }),
            ),
        ],
        tables: vec![table],
    }
}

fn comparison(source: &Source) -> Section {
    const ID: &str = "comparison";
    const TITLE: &str = "Comparison";
    let Some(outcome) = &source.outcome else {
        let about =
            "Nothing was compared: `cargo xtask compare main` says whether a change made anything slower.".into();
        return Section { id: ID, title: TITLE, about, charts: Vec::new(), tables: Vec::new() };
    };
    let rows: Vec<_> = outcome
        .rows
        .iter()
        .filter_map(|Row { id, ratio, verdict, .. }| {
            let [value, lower, upper] = (*ratio)?;
            Some(json!({ "label": id, "value": value, "lower": lower, "upper": upper, "verdict": verdict }))
        })
        .collect();
    let band = 1.0 + outcome.threshold;
    let chart = json!({
        "kind": "intervals", "unit": "×", "log": true, "reference": 1, "band": [1.0 / band, band],
        "bandLabel": "within the threshold", "rows": rows,
    });
    let about = format!(
        "{} {}, beside {}, on {}: {:.1} minutes of processes in turns, 95 % intervals.",
        outcome.summary(),
        outcome.candidate,
        outcome.reference,
        outcome.date,
        outcome.seconds / 60.0
    );
    let charts = vec![("comparison", "The candidate over the reference: less is better", chart)];
    Section { id: ID, title: TITLE, about, charts, tables: vec![outcome.table()] }
}

fn self_check(source: &Source) -> Option<Section> {
    let record = source.self_check.as_ref()?;
    Some(Section {
        id: "self-check",
        title: "Whether comparisons can be trusted",
        about: format!("Slowdowns were planted, and changes of nothing: {}.", record.circumstances()),
        charts: Vec::new(),
        tables: record.tables().into(),
    })
}

/// How each benchmark has changed from commit to commit, as comparisons found it.
fn commits(source: &Source) -> Option<Section> {
    let steps: Vec<_> = source
        .compared
        .iter()
        .filter_map(|outcome| {
            let [(reference, _), (candidate, _)] = [outcome.commits[0].as_ref()?, outcome.commits[1].as_ref()?];
            Some((&reference[..10], &candidate[..10], outcome))
        })
        .collect();
    // In the order in which they come up, the oldest candidate first.
    let mut commits: Vec<&str> = Vec::new();
    for (reference, candidate, _) in &steps {
        for commit in [reference, candidate] {
            if !commits.contains(commit) {
                commits.push(commit);
            }
        }
    }
    let ids: BTreeSet<_> = steps.iter().flat_map(|(.., outcome)| &outcome.rows).map(|row| &row.id).collect();
    let benchmarks: Vec<_> = ids
        .iter()
        .map(|id| {
            // Logarithms of the change since the first, and half the width of its interval.
            let mut known = BTreeMap::<&str, [f64; 2]>::new();
            for (reference, candidate, outcome) in &steps {
                let row = outcome.rows.iter().find(|row| row.id == **id);
                let Some([middle, lower, upper]) = row.and_then(|row| row.ratio).map(|ratio| ratio.map(f64::ln)) else {
                    continue;
                };
                let [from, uncertain] = *known.entry(reference).or_default();
                // Each step was measured by itself.
                known.insert(candidate, [from + middle, uncertain.hypot((upper - lower) / 2.0)]);
            }
            let point = |(run, commit): (usize, &&str)| {
                let [at, half] = known.get(commit)?;
                let [value, lower, upper] = [*at, at - half, at + half].map(f64::exp);
                Some(json!({ "run": run, "value": value, "lower": lower, "upper": upper }))
            };
            json!({ "id": id, "unit": "×", "points": commits.iter().enumerate().map(point).collect::<Vec<_>>() })
        })
        .collect();
    let mut table = Table::new("Comparisons", ["commit", "beside", "date", "benchmarks", "slower", "faster"]);
    for (reference, candidate, outcome) in &steps {
        let count = |wanted: fn(&Row) -> bool| outcome.rows.iter().filter(|row| wanted(row)).count().to_string();
        table.row([
            (*candidate).into(),
            (*reference).into(),
            outcome.date.as_str().into(),
            outcome.rows.len().to_string().into(),
            count(Row::is_regression).into(),
            count(|row| row.verdict == Verdict::Faster).into(),
        ]);
    }
    let described: Vec<_> = commits
        .iter()
        .map(|commit| {
            let of = steps.iter().find(|(_, candidate, _)| candidate == commit);
            let outcome = of.map_or(steps[0].2, |(.., outcome)| outcome);
            json!({
                "name": commit, "revision": commit, "date": outcome.date, "machine": outcome.machine.to_string(),
            })
        })
        .collect();
    (!steps.is_empty()).then(|| Section {
        id: "commits",
        title: "Commit by commit",
        about: "How many times as long each benchmark takes as at the first commit, by comparisons one after the other. Each \
                was measured against another commit at the same time, so that a step is a change. Intervals grow along the \
                way."
            .into(),
        charts: vec![(
            "commits",
            "One benchmark over the commits",
            json!({ "kind": "history", "runs": described, "benchmarks": benchmarks }),
        )],
        tables: vec![table],
    })
}

fn history(source: &Source) -> Section {
    let current = ("this run".to_owned(), &source.results);
    let saved = source.saved.iter().map(|(name, results)| (name.clone(), results));
    let runs: Vec<_> = saved.chain([current]).collect();
    let mut table = Table::new("Runs", ["run", "date", "revision", "profile", "goals missed", "machine"]);
    for (name, results) in &runs {
        let missed = results.missed_goals();
        table.row([
            name.as_str().into(),
            results.date.as_str().into(),
            results.revision().into(),
            format!("{:?}", results.profile).to_lowercase().into(),
            Cell::number(missed.to_string(), missed as f64),
            results.machine.to_string().into(),
        ]);
    }
    let ours = source.results.figures.results.iter().filter(|figure| !is_twin(&figure.id));
    let benchmarks: Vec<_> = ours
        .map(|figure| {
            let points: Vec<_> = runs
                .iter()
                .enumerate()
                .map(|(run, (_, results))| {
                    let figure = results.figure(&figure.id)?;
                    Some(json!({ "run": run, "value": figure.estimate, "lower": figure.lower, "upper": figure.upper }))
                })
                .collect();
            json!({ "id": figure.id, "unit": figure.unit, "points": points })
        })
        .collect();
    let described: Vec<_> = runs
        .iter()
        .map(|(name, results)| {
            json!({
                "name": name, "revision": results.revision(), "date": results.date,
                "machine": results.machine.to_string(),
            })
        })
        .collect();
    Section {
        id: "history",
        title: "History",
        about: "The figures of saved runs (`cargo xtask bench --save NAME`) and of this one. They were measured at different \
                times, and perhaps on different machines: the machine drifts, so that a step here is a reason to compare \
                and no proof."
            .into(),
        charts: vec![(
            "history",
            "One benchmark over the runs",
            json!({ "kind": "history", "runs": described, "benchmarks": benchmarks }),
        )],
        tables: vec![table, run_figures(&runs)],
    }
}

/// All figures of all runs.
fn run_figures(runs: &[(String, &Results)]) -> Table {
    let mut table = Table::new("Figures of the runs", ["benchmark", "run", "median", "95 % interval"]);
    for (name, results) in runs {
        for figure in results.figures.results.iter().filter(|figure| !is_twin(&figure.id)) {
            let [middle, lower, upper] =
                [figure.estimate, figure.lower, figure.upper].map(|value| amount(value, &figure.unit));
            table.row([
                figure.id.as_str().into(),
                name.as_str().into(),
                Cell::number(middle, figure.estimate),
                Cell::number(format!("{lower} … {upper}"), figure.upper - figure.lower),
            ]);
        }
    }
    table
}

/// Something of everything, for tests.
#[cfg(test)]
pub(super) fn sample() -> Source {
    use airssys_wasm_measurements::{Difference, Group, Kind, Limit, Measured, RatioOf, Reading, Samples, evaluate};

    use crate::compare::{outcome::Outcome, verdict::Clock, verdict::Verdict};

    let samples = |id: &str, ns: f64| {
        let wobble = |n: u32| ns * (1.0 + f64::from(n * 7 % 11) / 100.0);
        Samples { id: id.into(), ns: (0..20).map(wobble).collect() }
    };
    let ids = ["execute_function", "crash_handling/resource_cleanup/cleanup_after_success", "routing/send_message"];
    let mut groups: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let twins = [format!("raw/{id}"), format!("peer/kameo/{id}")];
            Group {
                samples: vec![
                    samples(id, 1_400.0),
                    samples(&twins[0], 1_200.0),
                    samples(&twins[1], 900.0 * (n + 1) as f64),
                ],
                ratios: vec![
                    RatioOf { id: (*id).into(), against: twins[0].clone(), goal: Some(1.3) },
                    RatioOf { id: (*id).into(), against: twins[1].clone(), goal: (n == 0).then_some(1.0) },
                ],
                limits: vec![Limit {
                    id: (*id).into(),
                    source: ["goal", "guide", "goal"][n].into(),
                    limit: 1_450.0 + n as f64,
                }],
                differences: vec![Difference { id: format!("{id}/beyond"), of: (*id).into(), less: twins[0].clone() }],
            }
        })
        .collect();
    let [none, epoch] = ["none", "epoch"].map(|kind| format!("execution/limits/tight/{kind}"));
    groups.push(Group {
        samples: vec![samples(&none, 3_000.0), samples(&epoch, 8_400.0)],
        ratios: vec![RatioOf { id: epoch, against: none, goal: None }],
        ..Group::default()
    });
    let mut readings = Vec::new();
    let mut read = |id: String, unit: &str, value: f64, limit: Option<f64>| {
        let limit = limit.map(|limit| Limit { id: id.clone(), source: "goal".into(), limit });
        readings.push(Reading { id, unit: unit.into(), values: vec![value], limit });
    };
    for (n, percentile) in PERCENTILES.iter().enumerate() {
        for prefix in ["", "raw/", "peer/kameo/"] {
            let value = 38_000.0 * 3.0_f64.powi(n as i32) + prefix.len() as f64 * 500.0;
            read(format!("{prefix}actor/latency/1000_per_second/{percentile}"), "ns", value, None);
        }
    }
    for (n, neighbour) in ["alone", "spins", "traps", "floods", "hoards"].iter().enumerate() {
        let limit = (n > 0).then_some(1.2e6);
        read(format!("actor/neighbour/{neighbour}/one_worker/p99"), "ns", 2e5 * (n * n + 1) as f64, limit);
    }
    for live in [1, 10, 50, 1_000, 10_000] {
        read(format!("memory/resident/{live}"), "bytes", 10_000.0 + 4_000.0 / f64::from(live), None);
        read(format!("memory/virtual/{live}"), "bytes", 4e9, None);
    }
    for prefix in ["", "raw/"] {
        read(format!("{prefix}actor/density/rust/10000/resident"), "bytes", 37_000.0, Some(32_768.0));
    }
    let measured = Measured { groups, readings, skipped: Vec::new() };
    let results = Results::new(evaluate(vec![measured]), true);
    let copy = || serde_json::from_value(serde_json::to_value(&results).unwrap()).unwrap();
    let saved = vec![("before".to_owned(), copy()), ("after".to_owned(), copy())];
    let row = |id: &str, middle: f64, verdict| Row {
        id: id.into(),
        clock: Clock::Cpu,
        kind: Kind::Time,
        reference: 1_400.0,
        candidate: 1_400.0 * middle,
        ratio: Some([middle, middle * 0.98, middle * 1.02]),
        pairs: 12,
        verdict,
        allocations: None,
        instructions: None,
    };
    let rows = vec![
        row(ids[0], 1.2, Verdict::Slower),
        row(ids[1], 1.0, Verdict::Same),
        row("actor/ask/guest/64b/two_workers", 0.8, Verdict::Faster),
    ];
    let outcome = Outcome { rows, ..Outcome::of("main (0123456789)", "the working tree", 1, 0.03) };
    let commits =
        ["0123456789abcdef", "123456789abcdef0", "23456789abcdef01"].map(|commit| Some((commit.to_owned(), 1)));
    let compared = commits.windows(2).map(|pair| {
        let commits = [pair[0].clone(), pair[1].clone()];
        Outcome { commits, ..outcome.clone() }
    });
    Source { results, compared: compared.collect(), outcome: Some(outcome), self_check: None, saved }
}
