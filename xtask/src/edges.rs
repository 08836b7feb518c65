//! Which crate may depend on which: the table, and the test that holds the manifests against it.

use std::{collections::BTreeMap, process::Command};

/// The layers, and what each may use of the others. Tests may use the fixtures besides.
const EDGES: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("limits", &["engine"]),
    ("isolation", &["engine", "limits"]),
    ("registry", &[]),
    ("actor", &["engine", "isolation", "limits", "registry"]),
];

#[test]
fn the_layers_depend_on_each_other_as_the_table_says() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(crate::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
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
