//! Stands in for cargo, and for the benchmark program that it builds, in tests of `cargo xtask bench` and `compare`.
//!
//! As cargo it reads `benches/behaviour` and leaves a copy of itself with that text at its end. Such a copy is the program:
//! each line of the text is a benchmark, with its nanoseconds and its allocations. `broken` does not build, `old` knows
//! nothing of comparisons, `hangs` stops in the middle of one and says so, and the processes of one that is `noisy` do
//! not agree at all.

#![expect(clippy::unwrap_used, reason = "what it is given comes from a test")]

use std::{env, fs, path::Path, process::ExitCode};

use airssys_wasm_measurements::{Batch, Group, Kind, Listed, Measured, PROTOCOL, Plan, Samples, Turn, Turns};

fn main() -> ExitCode {
    let itself = fs::read(env::current_exe().unwrap()).unwrap();
    let mark = mark();
    let at = itself.windows(mark.len()).rposition(|window| window == mark);
    match at {
        None => cargo(&itself),
        Some(at) if itself[at + mark.len()..].starts_with(b"old") => ExitCode::from(2),
        Some(at) => {
            program(str::from_utf8(&itself[at + mark.len()..]).unwrap());
            ExitCode::SUCCESS
        }
    }
}

/// Put together here, so that it stands nowhere in the program itself.
fn mark() -> Vec<u8> {
    b"\n:RUOIVAHEB\n".iter().rev().copied().collect()
}

fn cargo(itself: &[u8]) -> ExitCode {
    let behaviour = fs::read("benches/behaviour").unwrap();
    if behaviour.starts_with(b"broken") {
        eprintln!("error: it is broken");
        return ExitCode::from(101);
    }
    let path = Path::new(&env::var_os("CARGO_TARGET_DIR").unwrap()).join("fake");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    _ = fs::remove_file(&path);
    fs::copy(env::current_exe().unwrap(), &path).unwrap();
    fs::write(&path, [itself, &mark(), &behaviour].concat()).unwrap();
    let message = serde_json::json!({ "target": { "kind": ["bench"], "name": "fake" }, "executable": path });
    println!("{message}");
    ExitCode::SUCCESS
}

/// How many processes have had a plan here before.
fn counted(plan: &Path) -> usize {
    let path = plan.with_file_name("processes");
    let before = fs::read(&path).unwrap_or_default();
    fs::write(&path, [&before[..], b"."].concat()).unwrap();
    before.len()
}

fn program(behaviour: &str) {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let known: Vec<(&str, f64, f64)> = behaviour
        .lines()
        .filter(|line| !["hangs", "noisy"].contains(line))
        .map(|line| {
            let [id, ns, allocations] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            (id, ns.parse().unwrap(), allocations.parse().unwrap())
        })
        .collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list-ids", out] => {
            let listed =
                known.iter().map(|(id, ..)| Listed { id: (*id).into(), kind: Kind::Time, group: (*id).into() });
            fs::write(out, serde_json::to_vec(&listed.collect::<Vec<_>>()).unwrap()).unwrap();
        }
        ["--plan", plan_path, out] => {
            let plan: Plan = serde_json::from_slice(&fs::read(plan_path).unwrap()).unwrap();
            let before = counted(Path::new(plan_path));
            if before >= 8 && behaviour.contains("hangs") {
                eprintln!("hanging");
                loop {
                    std::thread::park();
                }
            }
            // Processes differ by up to a per cent, or one takes a thousandth of the time and the next a thousand times as
            // long.
            let chance = f64::from(std::process::id() * 7_919 % 1_000) / 1_000.0;
            let noise = match (behaviour.contains("noisy"), before % 2) {
                (false, _) => 1.0 + chance * 0.01,
                (true, 0) => 1e3,
                (true, _) => 1e-3,
            };
            let turns = plan.benchmarks.iter().map(|planned| {
                let (id, ns, allocations) = known.iter().find(|(id, ..)| *id == planned.id).unwrap();
                let batch = Batch { value: ns * noise, wall_ns: 1e5, thread_ns: Some(1e5), yardstick_ns: 4_500.0 };
                Turn {
                    id: (*id).into(),
                    iterations: 1_000,
                    set_up_ns: 1.0,
                    batches: vec![batch; planned.batches],
                    process_ns: Some(1e5 * planned.batches as f64),
                    waits: Some(0),
                    allocations: (planned.counted > 0).then_some(*allocations),
                }
            });
            let turns = Turns { protocol: PROTOCOL, turns: turns.collect() };
            fs::write(out, serde_json::to_vec(&turns).unwrap()).unwrap();
        }
        ["--in-turns", out, ..] => {
            let samples = known.iter().map(|(id, ns, _)| Samples { id: (*id).into(), ns: vec![*ns; 3] }).collect();
            let groups = vec![Group { samples, ..Group::default() }];
            let measured = Measured { groups, ..Measured::default() };
            fs::write(out, serde_json::to_vec(&measured).unwrap()).unwrap();
        }
        other => panic!("{other:?}"),
    }
}
