//! Looks for files that cost more than they may: those of the corpus at random sizes, modules as wasm-smith makes them with
//! each of its limits somewhere between nothing and far too much, and all of these changed at random.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use airssys_wasm_engine::{Compiler, EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{ACTOR, C, RUST};
use anyhow::{Context, Result, bail};
use wasm_encoder::{Component, RawSection};
use wasm_smith::{Config, Module};

use super::{
    corpus::Corpus,
    outcome::Outcome,
    suite::{ALL, Watch},
};
use airssys_wasm_measurements::process;

/// What was looked at.
#[derive(Debug, Default)]
pub struct Found {
    /// How many files ended how.
    pub outcomes: BTreeMap<String, u64>,
    /// The longest that a load took.
    pub slowest: Duration,
    /// The most bytes that host and compilers took more at a time.
    pub most: u64,
}

/// How much longer than its deadline a load may take on a busy machine: what the host does before and after.
const GRACE: Duration = Duration::from_secs(3);

/// Loads one file after the other for so long, under the default limits.
///
/// # Errors
///
/// When a file costs too much: it is left in the folder, and the error says where. When a file cannot be made. A file over
/// which the compiler crashes is left there too, and is none.
pub fn search(time: Duration, seed: u64, folder: PathBuf, mut at: impl FnMut(&Found)) -> Result<Found> {
    let config = EngineConfig::small();
    let Compiler::Process(process) = &config.compiler else { bail!("the default is a process") };
    let allowed = process.deadline + GRACE;
    let engine = WasmEngine::new(config)?;
    let corpus = Corpus::read()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut found, started, mut told) = (Found::default(), Instant::now(), Instant::now());
    while started.elapsed() < time {
        let mut file = match random.u8(..8) {
            0 | 1 => smith(&mut random).unwrap_or_default(),
            2 => random.choice([ACTOR, C, RUST]).unwrap_or(ACTOR).to_vec(),
            _ => {
                let guest = random.choice(&corpus.guests).context("an empty corpus")?;
                guest.sized(|n| (n as f64).powf(random.f64()) as usize).binary()?
            }
        };
        for _ in 0..random.u32(..6) {
            change(&mut file, &mut random);
        }
        // With the process that waits for this file.
        let before =
            process::held_by_all(std::process::id()).context("this system does not tell what processes hold")?;
        let watch = Watch::over(std::process::id());
        let loading = Instant::now();
        let outcome = match engine.load_blocking(&file, Profile::Plain) {
            Ok(component) => match component.link(&component.linker::<()>()) {
                Ok(_) => Outcome::new("loaded"),
                Err(error) => (&error).into(),
            },
            Err(error) => (&error).into(),
        };
        let took = loading.elapsed();
        let grown = watch.most().saturating_sub(before);
        let is_crash = outcome.what == "the compiler ended";
        *found.outcomes.entry(outcome.what).or_default() += 1;
        found.slowest = found.slowest.max(took);
        found.most = found.most.max(grown);
        let path = folder.join(format!("{}.wasm", name(&file)));
        let is_costly = took > allowed || grown > ALL;
        if is_costly || is_crash {
            fs::create_dir_all(&folder)?;
            fs::write(&path, &file)?;
        }
        if is_costly {
            bail!("{} took {took:?} and {} MiB ({})", path.display(), grown >> 20, outcome.says);
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            at(&found);
        }
    }
    Ok(found)
}

/// A module that wasm-smith makes of random bytes, in a component.
fn smith(random: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let mut most = |limit: f64| limit.powf(random.f64()) as usize;
    let config = Config {
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        threads_enabled: false,
        max_imports: 0,
        max_types: most(20_000.0),
        max_funcs: most(20_000.0),
        max_instructions: most(100_000.0),
        max_globals: most(20_000.0),
        max_memories: most(100.0),
        max_tables: most(100.0),
        max_exports: most(20_000.0),
        max_data_segments: most(20_000.0),
        max_element_segments: most(5_000.0),
        max_elements: most(100_000.0),
        ..Config::default()
    };
    let mut bytes = vec![0; most(2e6)];
    random.fill(&mut bytes);
    let module = Module::new(config, &mut arbitrary::Unstructured::new(&bytes)).ok()?.to_bytes();
    let mut component = Component::new();
    component.section(&RawSection { id: CORE_MODULE, data: &module });
    Some(component.finish())
}

/// The section of a component that holds a core module.
const CORE_MODULE: u8 = 1;

/// A name for a file by what is in it.
fn name(file: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Changes a file in one place.
fn change(file: &mut Vec<u8>, random: &mut fastrand::Rng) {
    // What it begins with says that it is a component.
    let Some(len) = file.len().checked_sub(8).filter(|len| *len > 0) else { return };
    let place = 8 + random.usize(..len);
    match random.u8(..5) {
        0 => file[place] ^= 1 << random.u8(..8),
        1 => file[place] = *random.choice(&[0, 1, 0x40, 0x7f, 0x80, 0xff]).unwrap_or(&0),
        2 => file.insert(place, random.u8(..)),
        3 => _ = file.remove(place),
        _ => {
            // Some of it once more, which is how things become many.
            let end = (place + 1 + random.usize(..4_096)).min(file.len());
            let part = file[place..end].to_vec();
            let to = 8 + random.usize(..len);
            file.splice(to..to, part);
        }
    }
}
