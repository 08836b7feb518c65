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

use crate::{JAVASCRIPT_GUEST, root, target_folder};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing: rebuild and compare where the same compiler is here, else compare the sources with the record
    #[arg(long)]
    check: bool,
    /// Instead build the JavaScript guest, 12 MB, with npm's componentize-js: for the benchmarks, not for committing
    #[arg(long, conflicts_with = "check")]
    javascript: bool,
}

/// `fixtures/built/record.json`: what each committed guest was built from, and by what.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record(BTreeMap<String, Built>);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Built {
    /// BLAKE3 of all source files with their names.
    sources: String,
    /// BLAKE3 of the component.
    component: String,
    /// The compiler, by its own account.
    compiler: String,
}

struct Guest {
    name: &'static str,
    build: fn(&Path) -> Result<Option<Outcome>>,
    /// What to install where no compiler was found.
    needs: &'static str,
}

struct Outcome {
    component: Vec<u8>,
    compiler: String,
}

const GUESTS: &[Guest] = &[
    Guest {
        name: "rust",
        build: build_rust,
        needs: "`rustup target add wasm32-unknown-unknown`, or Debian's packages rustc-web cargo-web rust-web-src lld",
    },
    Guest { name: "c", build: build_c, needs: "Debian's packages clang lld wasi-libc libclang-rt-14-dev-wasm32" },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.javascript {
        return build_javascript();
    }
    let built = root().join("fixtures/built");
    let record_path = built.join("record.json");
    let record: Record = match fs::read(&record_path) {
        Ok(json) => serde_json::from_slice(&json).with_context(|| format!("cannot read {}", record_path.display()))?,
        Err(_) => Record::default(),
    };
    let mut new = Record::default();
    let mut stale = Vec::new();
    for guest in GUESTS {
        let name = guest.name;
        let folder = root().join("fixtures/guests").join(name);
        let path = built.join(name).with_extension("wasm");
        let sources = digest_of_sources(&folder)?;
        let recorded = record.0.get(name);
        if args.check {
            let Some(recorded) = recorded else {
                stale.push(format!("{name}: never built"));
                continue;
            };
            let committed = blake3::hash(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
            if recorded.sources != sources {
                stale.push(format!("{name}: its sources have changed since it was built"));
            } else if recorded.component != committed.to_string() {
                stale.push(format!("{name}: {} is not the one that was built", path.display()));
            } else {
                match (guest.build)(&folder)? {
                    Some(outcome) if outcome.compiler == recorded.compiler => {
                        if blake3::hash(&outcome.component).to_string() == recorded.component {
                            println!("{name}: rebuilt with {}, the same to the byte", outcome.compiler);
                        } else {
                            stale.push(format!("{name}: rebuilding with {} gives another component", outcome.compiler));
                        }
                    }
                    Some(outcome) => println!(
                        "{name}: rebuilt with {} (it builds); compared by its sources, because the committed one is of {}",
                        outcome.compiler, recorded.compiler
                    ),
                    None => println!("{name}: compared by its sources; to rebuild it here: {}", guest.needs),
                }
            }
            continue;
        }
        let Some(outcome) = (guest.build)(&folder)? else {
            bail!("no compiler for the guest {name} here; install {}", guest.needs);
        };
        fs::write(&path, &outcome.component).with_context(|| format!("cannot write {}", path.display()))?;
        let component = blake3::hash(&outcome.component).to_string();
        println!("{name}: {} bytes by {}", outcome.component.len(), outcome.compiler);
        new.0.insert(name.to_owned(), Built { sources, component, compiler: outcome.compiler });
    }
    if args.check {
        ensure!(stale.is_empty(), "{}\nrun `cargo xtask fixtures`", stale.join("\n"));
    } else {
        fs::write(&record_path, serde_json::to_string_pretty(&new)? + "\n")?;
    }
    Ok(())
}

fn digest_of_sources(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(folder)?.to_string_lossy().replace('\\', "/");
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
fn version(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
}

fn run_command(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// With rustup's target where it is installed, else with Debian's compiler and its sources of the standard library.
fn build_rust(folder: &Path) -> Result<Option<Outcome>> {
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
        .current_dir(folder)
        .args(["build", "--release", "--locked", "--target", WASM_TARGET, "--target-dir"])
        .arg(&target);
    run_command(&mut cargo)?;
    let module = fs::read(target.join(WASM_TARGET).join("release/guest.wasm"))?;
    let component = ComponentEncoder::default().validate(true).module(&module)?.encode()?;
    Ok(Some(Outcome { component, compiler }))
}

fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(|| env::home_dir().unwrap_or_default().join(".cargo"), PathBuf::from)
}

/// With clang against wasi-libc, through the preview-1 adapter.
fn build_c(folder: &Path) -> Result<Option<Outcome>> {
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
            .current_dir(folder)
            .args(["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-s", "main.c", "-o"])
            .arg(&module),
    )?;
    let component = ComponentEncoder::default()
        .validate(true)
        .module(&fs::read(&module)?)?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)?
        .encode()?;
    Ok(Some(Outcome { component, compiler }))
}

/// The release of npm's componentize-js that the JavaScript guest is built with.
const COMPONENTIZE_JS: &str = "@bytecodealliance/componentize-js@0.23.0";

/// Leaves the guest where the benchmarks look for it.
fn build_javascript() -> Result<()> {
    ensure!(version("npm", &["--version"]).is_some(), "the JavaScript guest needs Node.js with npm; install them");
    let tool = target_folder().join("guests/componentize-js");
    let component = target_folder().join(JAVASCRIPT_GUEST);
    let sources = root().join("fixtures/guests/javascript");
    fs::create_dir_all(&tool)?;
    eprintln!("installing {COMPONENTIZE_JS}");
    run_command(Command::new("npm").args(["install", "--no-save", "--prefix"]).arg(&tool).arg(COMPONENTIZE_JS))?;
    eprintln!("building (half a minute)");
    run_command(
        Command::new(tool.join("node_modules/.bin/componentize-js"))
            .arg(sources.join("guest.js"))
            .arg("--wit")
            .arg(sources.join("guest.wit"))
            .args(["--world-name", "guest", "--disable", "http", "--disable", "fetch-event", "--out"])
            .arg(&component),
    )?;
    println!("javascript: {} bytes", fs::metadata(&component)?.len());
    Ok(())
}
