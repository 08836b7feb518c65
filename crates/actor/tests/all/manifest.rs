//! A `Component.toml` next to its `.wasm`.

use std::{fs, time::Duration};

use airssys_wasm_actor::{ActorManifest, LoadManifestError, Restart};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::CrashClass;
use airssys_wasm_limits::ManifestError;

use crate::support::{ask, system};

const WHOLE: &str = r#"
[component]
name = "tenant-7/counter"
mailbox = 16
mailbox_shares = 4
redelivery = 3
subscriptions = ["orders.>"]

[resources]
memory = "8MiB"
cpu_time = "20ms"

[wasi]
stderr = "tracing"

[messaging]
send = ["tenant-7/*"]
publish = ["tenant-7.>"]

[supervision]
restart = "transient"
intensity = { restarts = 5, within = "1m" }
backoff = { first = "0s", longest = "1s" }
on.memory = { restart = "temporary" }
on.cpu-time = { restart = "permanent", backoff = { first = "5s" } }

[config]
greeting = "hello"
retries = 3
fast = true
"#;

#[test]
fn each_table_is_read() {
    let manifest = ActorManifest::from_toml(WHOLE).unwrap();
    assert_eq!(manifest.component.name.as_str(), "tenant-7/counter");
    assert_eq!((manifest.component.mailbox, manifest.component.redelivery), (16, Some(3)));
    assert_eq!(manifest.component.mailbox_shares.get(), 4);
    assert_eq!(manifest.component.subscriptions[0].as_str(), "orders.>");
    assert_eq!(manifest.sandbox.limits.cpu_time, Duration::from_millis(20));
    assert!(manifest.messaging.may_send(&"tenant-7/a".parse().unwrap()));
    assert_eq!(manifest.messaging.subscriptions, 64);
    let supervision = &manifest.supervision;
    assert_eq!((supervision.restart, supervision.intensity.within), (Restart::Transient, Duration::from_secs(60)));
    assert_eq!((supervision.backoff.first, supervision.backoff.factor), (Duration::ZERO, 2.0));
    assert_eq!(supervision.on[&CrashClass::Memory].restart, Restart::Temporary);
    assert_eq!(supervision.on[&CrashClass::CpuTime].backoff.unwrap().first, Duration::from_secs(5));
    let config: Vec<_> = manifest.config.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(config, ["fast=true", "greeting=hello", "retries=3"]);
    assert_eq!(manifest.profile(), Profile::Plain);
    let metered = WHOLE.replace("cpu_time", "fuel = 1000\ncpu_time");
    assert_eq!(ActorManifest::from_toml(&metered).unwrap().profile(), Profile::Metered);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let wrong = |from: &str, to: &str| {
        assert!(WHOLE.contains(from), "{from}");
        ActorManifest::from_toml(&WHOLE.replacen(from, to, 1)).unwrap_err().to_string()
    };
    for (from, to, says) in [
        ("tenant-7.>", "tenant-7..>", "\"tenant-7..>\""),
        ("tenant-7.>", "tenant>", "\"tenant>\""),
        ("orders.>", "orders.>.x", "\"orders.>.x\""),
        ("tenant-7/*", "tenant 7", "\"tenant 7\""),
        ("tenant-7/counter", "tenant 7", "\"tenant 7\""),
        ("transient", "sometimes", "sometimes"),
        ("on.memory", "on.boredom", "boredom"),
        ("mailbox = 16", "mailbox = 0", "mailbox of 0"),
        ("mailbox = 16", "mailbox = -1", "-1"),
        ("mailbox_shares = 4", "mailbox_shares = 0", "nonzero"),
        ("mailbox = 16", "mailboxes = 16", "mailboxes"),
        ("send =", "sends =", "sends"),
        ("fast = true", "fast = [1]", "`fast`"),
        ("[config]", "[configuration]", "configuration"),
        ("[component]", "[unit]", "[component]"),
        ("memory = \"8MiB\"", "", "memory"),
        ("name = ", "nome = ", "nome"),
    ] {
        let error = wrong(from, to);
        assert!(error.contains(says), "{from} → {to}: {error}");
    }
    let error = ActorManifest::from_toml(&format!("{WHOLE}\n[extra]\nx = 1")).unwrap_err();
    assert!(matches!(error, ManifestError::UnknownKey { key, .. } if key == "extra"));
}

#[tokio::test]
async fn an_actor_is_spawned_from_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("Component.toml");
    fs::write(&manifest, WHOLE).unwrap();
    let system = system();
    let error = system.load(&manifest).await.unwrap_err();
    assert!(matches!(error, LoadManifestError::WhichFile { found: 0, .. }), "{error}");

    fs::write(folder.path().join("anything.wasm"), fixtures::COUNTER).unwrap();
    let counter = system.spawn(system.load(&manifest).await.unwrap()).await.unwrap();
    assert_eq!(counter.id().as_str(), "tenant-7/counter");
    assert_eq!(counter.info().mailbox.capacity, 16);
    assert_eq!(ask(&counter, "add 2").await.unwrap(), "2");

    fs::write(folder.path().join("second.wasm"), fixtures::COUNTER).unwrap();
    let error = system.load(&manifest).await.unwrap_err();
    assert!(matches!(error, LoadManifestError::WhichFile { found: 2, .. }), "{error}");
    fs::write(&manifest, WHOLE.replace("mailbox = 16", "wasm = \"second.wasm\"")).unwrap();
    system.load(&manifest).await.unwrap();

    fs::write(&manifest, "[component]").unwrap();
    let error = system.load(&manifest).await.unwrap_err();
    assert!(matches!(&error, LoadManifestError::Manifest { .. }), "{error}");
    assert!(error.to_string().contains("Component.toml"), "{error}");
    let error = system.load(folder.path().join("nothing.toml")).await.unwrap_err();
    assert!(matches!(error, LoadManifestError::Read { .. }), "{error}");
}
