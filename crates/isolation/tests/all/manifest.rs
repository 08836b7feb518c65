//! `Component.toml`, as far as this layer reads it.

use airssys_wasm_isolation::{Permissions, SandboxManifest, Stdio, WasiGrants};
use airssys_wasm_limits::ManifestError;

const RESOURCES: &str = "[resources]\nmemory = \"1MiB\"\n";

#[test]
fn every_grant_has_a_form() {
    let manifest = SandboxManifest::from_toml(&format!(
        r#"{RESOURCES}
        [wasi]
        args = ["a"]
        env = {{ K = "V" }}
        connect = ["127.0.0.1:80", "[::1]:0"]
        listen = ["0.0.0.0:8080"]
        name_lookup = true
        stdout = "discard"
        stderr = "tracing"
        folders = [{{ host = "/srv", guest = "/data", permissions = "read-write" }}]
        "#
    ))
    .unwrap();
    let wasi = manifest.wasi;
    assert_eq!((wasi.args.as_slice(), wasi.env["K"].as_str()), (&["a".to_owned()][..], "V"));
    assert_eq!((wasi.connect.len(), wasi.listen.len(), wasi.name_lookup), (2, 1, true));
    assert_eq!(wasi.folders[0].permissions, Permissions::ReadWrite);
    assert!(matches!((&wasi.stdout, &wasi.stderr), (Stdio::Discard, Stdio::Tracing)));

    let written = serde_json::to_string(&wasi).unwrap();
    let read: WasiGrants = serde_json::from_str(&written).unwrap();
    assert_eq!(format!("{read:?}"), format!("{wasi:?}"));
    serde_json::to_string(&Stdio::writer(std::io::sink())).unwrap_err();
}

#[test]
fn the_default_grants_nothing() {
    let wasi = SandboxManifest::from_toml(RESOURCES).unwrap().wasi;
    assert!(wasi.args.is_empty() && wasi.env.is_empty() && wasi.folders.is_empty());
    assert!(wasi.connect.is_empty() && wasi.listen.is_empty() && !wasi.name_lookup);
}

#[test]
fn what_nobody_knows_is_refused() {
    let table = SandboxManifest::from_toml(&format!("{RESOURCES}[wasm]\nx = 1")).unwrap_err();
    assert!(matches!(&table, ManifestError::UnknownKey { key, .. } if key == "wasm"), "{table}");
    let key = SandboxManifest::from_toml(&format!("{RESOURCES}[wasi]\nnetwork = true")).unwrap_err();
    assert!(
        matches!(&key, ManifestError::UnknownKey { table, key, .. } if table == "wasi" && key == "network"),
        "{key}"
    );
    for text in ["[wasi]\nconnect = [\"localhost\"]", "[wasi]\nfolders = [{ host = \"/srv\" }]", "wasi = 3"] {
        // A bare key must come before the tables.
        let text = if text.starts_with('[') { format!("{RESOURCES}{text}") } else { format!("{text}\n{RESOURCES}") };
        let error = SandboxManifest::from_toml(&text).unwrap_err();
        assert!(matches!(error, ManifestError::Toml(_)), "{text}: {error:?}");
    }
    assert_eq!(SandboxManifest::from_toml("[wasi]").unwrap_err(), ManifestError::NoMemoryLimit);
}
