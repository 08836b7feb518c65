//! Runs scripts of component-model tests (`.wast`) through sandboxes with limits on, and tells what came of each component
//! and each assertion.

mod host;
mod script;
mod values;

use std::{collections::BTreeMap, fs, path::Path};

use airssys_wasm_engine::{CompileLimits, EngineConfig, Imported, WasmEngine};
use anyhow::{Context, Result, ensure};

/// What came of a folder.
#[derive(Debug, Default)]
pub struct Report {
    /// Scripts that were read.
    pub scripts: usize,
    /// Components that are live, or could be.
    pub loaded: usize,
    /// Where components are that are not taken, by reason.
    pub refused: Places,
    /// Assertions that hold.
    pub held: usize,
    /// Assertions about components that are not taken, or that have trapped.
    pub left_out: usize,
    /// Where assertions are whose guest was ended by a limit, by the limit. A call ends with
    /// all its tasks, and a component has 4 GiB in all.
    pub limited: Places,
    /// Directives that are not about components, such as those about modules.
    pub others: usize,
    /// What is not as it should be.
    pub faults: Vec<String>,
}

/// Places, each a file and a line, by what is there.
pub type Places = BTreeMap<String, Vec<String>>;

fn note(places: &mut Places, what: String, place: &str) {
    places.entry(what).or_default().push(place.to_owned());
}

/// Runs all scripts in a folder and those below it, in the order of their names.
///
/// # Errors
///
/// When the folder cannot be read, or has no script.
pub fn run(folder: &Path) -> Result<Report> {
    // What scripts define for each other is small.
    let imported = Some(Imported { items: 1_000, instances: 10 });
    let compile_limits = CompileLimits { imported, ..CompileLimits::default() };
    let config = EngineConfig { compile_limits, ..EngineConfig::default() };
    let engine = WasmEngine::new(config.with_component_async().with_garbage_collection().compile_in_process())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut scripts = Vec::new();
    find(folder, &mut scripts).with_context(|| format!("cannot read {}", folder.display()))?;
    ensure!(!scripts.is_empty(), "no `.wast` in {}", folder.display());
    scripts.sort();
    let mut report = Report::default();
    for path in scripts {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
        report.scripts += 1;
        if let Err(error) = runtime.block_on(script::run(&engine, &name, &text, &mut report)) {
            report.faults.push(format!("{name}: {error:#}"));
        }
    }
    Ok(report)
}

fn find(folder: &Path, scripts: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, scripts)?;
        } else if path.extension().is_some_and(|extension| extension == "wast") {
            scripts.push(path);
        }
    }
    Ok(())
}
