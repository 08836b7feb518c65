//! Builds the guests that need a compiler, and keeps a record of what the committed ones were built from.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

use crate::{ecosystem, root, target_folder};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing: rebuild and compare where the same compiler is here, else compare the sources with the record
    #[arg(long)]
    check: bool,
    /// Instead build the guests in JavaScript and Python, 12 and 18 MB each, with what npm and pip install for it: for
    /// benchmarks and tests, not for committing
    #[arg(long, conflicts_with = "check")]
    ecosystem: bool,
}

/// `fixtures/built/record.json`: for each language, what its committed guests were built from, and by what.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record(BTreeMap<String, Built>);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Built {
    /// BLAKE3 of all source files with their names.
    sources: String,
    /// The compiler, by its own account.
    compiler: String,
    /// BLAKE3 of each component, by its name.
    components: BTreeMap<String, String>,
}

struct Language {
    name: &'static str,
    /// The folders, below that of the workspace, which its guests are built from.
    sources: &'static [&'static str],
    build: fn() -> Result<Option<Outcome>>,
    /// What to install where no compiler was found.
    needs: &'static str,
}

struct Outcome {
    compiler: String,
    /// By its name.
    components: BTreeMap<String, Vec<u8>>,
}

const LANGUAGES: &[Language] = &[
    Language {
        name: "rust",
        sources: &[RUST_GUESTS, "fixtures/guests/wit", "crates/actor/wit"],
        build: build_rust,
        needs: "`rustup target add wasm32-unknown-unknown`, or Debian's packages rustc-web cargo-web rust-web-src lld",
    },
    Language {
        name: "c",
        sources: &[C_GUEST],
        build: build_c,
        needs: "Debian's packages clang lld wasi-libc libclang-rt-14-dev-wasm32",
    },
];

const RUST_GUESTS: &str = "fixtures/guests/rust";
const C_GUEST: &str = "fixtures/guests/c";

pub(crate) fn run(args: &Args) -> Result<()> {
    match args {
        Args { ecosystem: true, .. } => ecosystem::build(),
        Args { check: true, .. } => check(),
        _ => build(),
    }
}

fn build() -> Result<()> {
    let mut record = Record::default();
    for language in LANGUAGES {
        let sources = digest_of_sources(language.sources)?;
        let Some(Outcome { compiler, components }) = (language.build)()? else {
            bail!("no compiler for the guests in {} here; install {}", language.name, language.needs);
        };
        for (name, component) in &components {
            let path = built(name);
            fs::write(&path, component).with_context(|| format!("cannot write {}", path.display()))?;
            println!("{name}: {} bytes by {compiler}", component.len());
        }
        let components = components.iter().map(|(name, component)| (name.clone(), digest(component))).collect();
        record.0.insert(language.name.to_owned(), Built { sources, compiler, components });
    }
    fs::write(record_path(), serde_json::to_string_pretty(&record)? + "\n")
        .with_context(|| format!("cannot write {}", record_path().display()))
}

fn check() -> Result<()> {
    let json = fs::read(record_path()).with_context(|| format!("cannot read {}", record_path().display()))?;
    let record: Record =
        serde_json::from_slice(&json).context("the record is not one; run `cargo xtask fixtures` to write it anew")?;
    let mut stale = Vec::new();
    for Language { name: language, sources, build, needs } in LANGUAGES {
        let Some(recorded) = record.0.get(*language) else {
            stale.push(format!("{language}: never built"));
            continue;
        };
        if recorded.sources != digest_of_sources(sources)? {
            stale.push(format!("{language}: its sources have changed since its guests were built"));
            continue;
        }
        for (name, expected) in &recorded.components {
            let path = built(name);
            if *expected != digest(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?) {
                stale.push(format!("{name}: {} is not the one that was built", path.display()));
            }
        }
        match build()? {
            Some(outcome) if outcome.compiler == recorded.compiler => {
                for (name, component) in &outcome.components {
                    if recorded.components.get(name) == Some(&digest(component)) {
                        println!("{name}: rebuilt with {}, the same to the byte", outcome.compiler);
                    } else {
                        stale.push(format!("{name}: rebuilding with {} gives another component", outcome.compiler));
                    }
                }
            }
            Some(outcome) => println!(
                "{language}: rebuilt with {} (it builds); compared by its sources, because the committed ones are of {}",
                outcome.compiler, recorded.compiler
            ),
            None => println!("{language}: compared by its sources; to rebuild it here: {needs}"),
        }
    }
    ensure!(stale.is_empty(), "{}\nrun `cargo xtask fixtures`", stale.join("\n"));
    Ok(())
}

fn record_path() -> PathBuf {
    root().join("fixtures/built/record.json")
}

fn built(name: &str) -> PathBuf {
    root().join(format!("fixtures/built/{name}.wasm"))
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

fn digest_of_sources(folders: &[&str]) -> Result<String> {
    let root = root();
    let mut files = Vec::new();
    for folder in folders {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let bytes = fs::read(&file)?;
        hasher.update(name.as_bytes()).update(&[0]).update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    Ok(hasher.finalize().to_string())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// The first line that a program prints of its version, if it is there and works.
pub(crate) fn version(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

pub(crate) fn run_command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// With rustup's target where it is installed, else with Debian's compiler and its sources of the standard library.
/// Every guest is built in one run of cargo, so that the standard library is built once.
fn build_rust() -> Result<Option<Outcome>> {
    let folder = root().join(RUST_GUESTS);
    let target = target_folder().join("guests");
    let with_rustup = Command::new("rustc").args(["--print", "target-libdir", "--target", WASM_TARGET]).output();
    let has_target = with_rustup.is_ok_and(|output| {
        output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
    });
    let debian_cargo = Path::new("/usr/bin/cargo");
    let (mut cargo, compiler) = if has_target {
        (Command::new("cargo"), version("rustc", &["--version"]))
    } else if debian_cargo.is_file() && version("wasm-ld", &["--version"]).is_some() {
        let mut cargo = Command::new(debian_cargo);
        cargo
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
        (cargo, version("/usr/bin/rustc", &["--version"]))
    } else {
        return Ok(None);
    };
    let Some(compiler) = compiler else { return Ok(None) };
    // Paths of this machine would end up in panic messages.
    let mut remap = format!("--remap-path-prefix={}=/guest", folder.display());
    for registry in fs::read_dir(cargo_home().join("registry/src")).into_iter().flatten().flatten() {
        remap += &format!(" --remap-path-prefix={}=/crates", registry.path().display());
    }
    cargo
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("RUSTFLAGS", remap)
        .current_dir(&folder)
        .args(["build", "--workspace", "--release", "--locked", "--target", WASM_TARGET, "--target-dir"])
        .arg(&target);
    run_command(&mut cargo)?;
    let mut components = BTreeMap::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        if !entry.path().join("Cargo.toml").is_file() {
            continue;
        }
        let guest = entry.file_name().into_string().expect("cargo takes no other names of packages");
        let module = target.join(WASM_TARGET).join("release").join(guest.replace('-', "_")).with_extension("wasm");
        let module = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
        let component = ComponentEncoder::default().validate(true).module(&module)?.encode()?;
        // What the tests of all layers use is to them the Rust guest, as there is a C guest.
        components.insert(if guest == "general" { "rust".into() } else { guest }, component);
    }
    Ok(Some(Outcome { compiler, components }))
}

fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(|| env::home_dir().unwrap_or_default().join(".cargo"), PathBuf::from)
}

/// With clang against wasi-libc, through the preview-1 adapter.
fn build_c() -> Result<Option<Outcome>> {
    let libc = ["/usr/lib/wasm32-wasi/libc.a", "/usr/share/wasi-sysroot/lib/wasm32-wasi/libc.a"];
    if !libc.iter().any(|path| Path::new(path).is_file()) {
        return Ok(None);
    }
    let Some(compiler) = version("clang", &["--version"]) else { return Ok(None) };
    let target = target_folder().join("guests");
    fs::create_dir_all(&target)?;
    let module = target.join("c.wasm");
    run_command(
        Command::new("clang")
            .current_dir(root().join(C_GUEST))
            .args(["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-s", "main.c", "-o"])
            .arg(&module),
    )?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&fs::read(&module)?)?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)?
        .encode()?;
    Ok(Some(Outcome { compiler, components: BTreeMap::from([("c".to_owned(), component)]) }))
}
