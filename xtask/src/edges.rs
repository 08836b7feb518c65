//! Which crate may depend on which, and what two of them must have in common: tables, and the tests that hold the
//! manifests against them.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// The layers, and what each may use of the others. Tests may use the fixtures besides.
const EDGES: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("limits", &["engine"]),
    ("isolation", &["engine", "limits"]),
    ("registry", &[]),
    ("actor", &["engine", "isolation", "limits", "registry"]),
    ("http", &["actor", "engine", "isolation", "limits"]),
    ("keyed", &["actor", "isolation", "limits", "registry"]),
    ("lattice", &["actor", "keyed", "registry"]),
];

/// What cargo knows of the workspace.
pub(crate) fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(crate::workspace::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_layers_depend_on_each_other_as_the_table_says() {
    let metadata = metadata();
    let layer = |name: &serde_json::Value| name.as_str().unwrap().strip_prefix("airssys-wasm-").map(str::to_owned);
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let Some(name) = layer(&package["name"]).filter(|_| package["publish"].is_null()) else { continue };
        let mut uses: Vec<_> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| layer(&dependency["name"]))
            .collect();
        uses.sort();
        found.insert(name, uses);
    }
    let allowed: BTreeMap<_, _> = EDGES
        .iter()
        .map(|(name, uses)| ((*name).to_owned(), uses.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(found, allowed);
}

/// What may be built twice: nothing large is built on it.
const SMALL: &[&str] = &["clap", "clap_builder", "zerocopy"];

#[test]
fn the_benchmarks_and_the_stress_programs_share_one_build_of_what_they_depend_on() {
    let features = |package: &str| {
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--package", package, "--edges", "normal,build,dev"])
            .args(["--prefix", "none", "--no-dedupe", "--format", "{p} {f}"])
            .current_dir(crate::workspace::root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut features = BTreeMap::<_, BTreeSet<_>>::new();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
            features.entry((name, version)).or_default().insert(words.next());
        }
        features
    };
    let (benches, stress) = (features("airssys-wasm-benches"), features("airssys-wasm-stress"));
    let twice: Vec<_> = stress
        .iter()
        .filter(|((name, _), _)| !SMALL.contains(&name.as_str()))
        .filter_map(|(package, features)| Some((package, features, benches.get(package)?)))
        .filter(|(_, ours, theirs)| ours != theirs)
        .collect();
    assert!(twice.is_empty(), "switch on the same features of these in stress/Cargo.toml: {twice:#?}");
}
