//! Builds the guests that are a whole language engine each: too large to commit, and made by tools of their languages.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{
    JAVASCRIPT_GUEST,
    fixtures::{run_command, version},
    root, target_folder,
};

/// The second is one that the first uses without depending on it: npm would remove it when it installs a second time.
const COMPONENTIZE_JS: [&str; 2] =
    ["@bytecodealliance/componentize-js@0.23.0", "@bytecodealliance/preview2-shim@0.25.0"];
const COMPONENTIZE_PY: &str = "componentize-py==0.25.1";

/// The world of `fixtures/guests/wit`.
const MESSENGER: &str = "messenger";

struct Language {
    name: &'static str,
    /// A command that works and prints something where its tools are installed.
    probe: (&'static str, &'static [&'static str]),
    /// What to install where they are not.
    needs: &'static str,
    build: fn() -> Result<()>,
}

const LANGUAGES: &[Language] = &[
    Language { name: "javascript", probe: ("npm", &["--version"]), needs: "Node.js with npm", build: build_javascript },
    Language {
        name: "python",
        probe: ("python3", &["-c", "import sys, venv, ensurepip; print(sys.version)"]),
        needs: "Python 3 with venv (Debian's package python3-venv)",
        build: build_python,
    },
];

/// Leaves them below the target folder, where the benchmarks and tests look for them. Those of a language that is not
/// installed are left out.
pub(crate) fn build() -> Result<()> {
    let (mut missing, mut failed) = (Vec::new(), Vec::new());
    for Language { name, probe: (program, args), needs, build } in LANGUAGES {
        if version(program, args).is_none() {
            missing.push(format!("{name}: left out; to build its guests, install {needs}"));
        } else if let Err(error) = build() {
            failed.push(format!("{name}: {error:#}"));
        }
    }
    ensure!(missing.len() < LANGUAGES.len(), "none could be built\n{}", missing.join("\n"));
    for line in &missing {
        println!("{line}");
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn build_javascript() -> Result<()> {
    let tool = target_folder().join("guests/componentize-js");
    fs::create_dir_all(&tool)?;
    eprintln!("installing {}", COMPONENTIZE_JS[0]);
    run_command(Command::new("npm").args(["install", "--no-save", "--prefix"]).arg(&tool).args(COMPONENTIZE_JS))?;
    let guests = root().join("fixtures/guests");
    for (source, wit, world, component) in [
        ("guest.js", "javascript/guest.wit", "guest", JAVASCRIPT_GUEST),
        ("messaging.js", "wit", MESSENGER, "guests/javascript-messaging.wasm"),
    ] {
        let component = target_folder().join(component);
        run_command(
            Command::new(tool.join("node_modules/.bin/componentize-js"))
                .arg(guests.join("javascript").join(source))
                .arg("--wit")
                .arg(guests.join(wit))
                .args(["--world-name", world, "--disable", "http", "--disable", "fetch-event", "--out"])
                .arg(&component),
        )?;
        report(&component)?;
    }
    Ok(())
}

fn build_python() -> Result<()> {
    let tool = target_folder().join("guests/componentize-py");
    eprintln!("installing {COMPONENTIZE_PY}");
    run_command(Command::new("python3").args(["-m", "venv"]).arg(&tool))?;
    run_command(Command::new(tool.join("bin/pip")).args(["install", COMPONENTIZE_PY]))?;
    // A copy, because Python leaves its compiled code beside the source.
    let guests = root().join("fixtures/guests");
    let source = tool.join("source");
    fs::create_dir_all(&source)?;
    fs::copy(guests.join("python/messaging.py"), source.join("messaging.py"))?;
    let component = target_folder().join("guests/python-messaging.wasm");
    run_command(
        Command::new(tool.join("bin/componentize-py"))
            .arg("--wit-path")
            .arg(guests.join("wit"))
            .args(["--world", MESSENGER, "componentize", "messaging", "--python-path"])
            .arg(&source)
            .arg("--output")
            .arg(&component),
    )?;
    report(&component)
}

fn report(component: &Path) -> Result<()> {
    println!("{}: {} bytes", component.display(), fs::metadata(component)?.len());
    Ok(())
}
