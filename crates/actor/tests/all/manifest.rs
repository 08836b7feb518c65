//! A `Component.toml` next to its `.wasm`.

use std::{fs, time::Duration};

use airssys_wasm_actor::{
    ActorManifest, AskError, During, LoadManifestError, Restart, SpawnError, StartError, SystemEvent, UpgradeError,
    UpgradeOptions,
};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::{CrashClass, CrashKind};
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
    for fuel in ["fuel = 1000", "init.fuel = 1000", "snapshot.fuel = 1000", "shutdown.fuel = 1000"] {
        let metered = WHOLE.replace("cpu_time", &format!("{fuel}\ncpu_time"));
        assert_eq!(ActorManifest::from_toml(&metered).unwrap().profile(), Profile::Metered, "{fuel}");
    }
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
        ("[wasi]", "init = { memory = \"1MiB\" }\n[wasi]", "unknown key `memory` in [resources.init]"),
        ("[wasi]", "start = { fuel = 1 }\n[wasi]", "unknown key `start` in [resources]"),
    ] {
        let error = wrong(from, to);
        assert!(error.contains(says), "{from} → {to}: {error}");
    }
    let error = ActorManifest::from_toml(&format!("{WHOLE}\n[extra]\nx = 1")).unwrap_err();
    assert!(matches!(error, ManifestError::UnknownKey { key, .. } if key == "extra"));
    // A table that another function reads.
    let error = ActorManifest::from_toml(&format!("{WHOLE}\n[http]\nask = true")).unwrap_err();
    assert!(error.to_string().ends_with("[http] is not read here; load it by `airssys_wasm_http::load`"), "{error}");
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

/// Each export but `handle` takes 10,000 turns of a loop, and `handle` a thousand for each byte of the message.
const TAKES_ITS_TIME: &str = r#"(component
  (import "airssys:actor/types@0.1.0" (instance $types
    (type $record (record (field "payload" (list u8)) (field "sender" (option string)) (field "topic" (option string))
      (field "content-type" (option string)) (field "wants-answer" bool)))
    (export "message" (type (eq $record)))))
  (alias export $types "message" (type $message))
  (core module $m
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func $loop (param $n i32)
      (loop $next
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br_if $next (i32.gt_s (local.get $n) (i32.const 0)))))
    ;; What it returns is `ok` with nothing in it, for each of the types.
    (func (export "start") (param i32 i32) (result i32) (call $loop (i32.const 10000)) (i32.const 0))
    (func (export "snapshot") (result i32) (call $loop (i32.const 10000)) (i32.const 0))
    (func (export "shutdown") (call $loop (i32.const 10000)))
    (func (export "handle") (param $payload i32) (param $len i32)
      (param i32 i32 i32) (param i32 i32 i32) (param i32 i32 i32) (param i32) (result i32)
      (call $loop (i32.mul (local.get $len) (i32.const 1000)))
      (i32.const 0)))
  (core instance $i (instantiate $m))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))
  (func $init (param "config" (list (tuple string string))) (result (result (error string)))
    (canon lift (core func $i "start") (memory $memory) (realloc $realloc)))
  (func $restore (param "state" (list u8)) (result (result (error string)))
    (canon lift (core func $i "start") (memory $memory) (realloc $realloc)))
  (func $snapshot (result (result (list u8) (error string)))
    (canon lift (core func $i "snapshot") (memory $memory)))
  (func $shutdown (canon lift (core func $i "shutdown")))
  (func $handle (param "message" $message) (result (result (option (list u8)) (error string)))
    (canon lift (core func $i "handle") (memory $memory) (realloc $realloc)))
  (instance $init (export "init" (func $init)))
  (instance $shutdown (export "shutdown" (func $shutdown)))
  (instance $state (export "snapshot" (func $snapshot)) (export "restore" (func $restore)))
  (instance $handler (export "handle" (func $handle)))
  (export "airssys:actor/init@0.1.0" (instance $init))
  (export "airssys:actor/shutdown@0.1.0" (instance $shutdown))
  (export "airssys:actor/state@0.1.0" (instance $state))
  (export "airssys:actor/handler@0.1.0" (instance $handler)))"#;

#[tokio::test]
async fn start_snapshot_and_shutdown_may_take_more_than_a_message() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("guest.wat"), TAKES_ITS_TIME).unwrap();
    let path = folder.path().join("Component.toml");
    let out_of_fuel = CrashKind::OutOfFuel { allowed: 10_000 };
    for phases in ["", "init", "init snapshot", "init snapshot shutdown"] {
        let tables = phases.split_whitespace().map(|phase| format!("[resources.{phase}]\nfuel = 200_000\n"));
        let tables: String = tables.collect();
        let component = "[component]\nname = \"slow\"\nwasm = \"guest.wat\"";
        fs::write(&path, format!("{component}\n[resources]\nmemory = \"1MiB\"\nfuel = 10_000\n{tables}")).unwrap();
        let system = system();
        let spec = system.load(&path).await.unwrap();
        let version = spec.sandbox().clone();
        let actor = match system.spawn(spec).await {
            Ok(actor) => actor,
            Err(SpawnError::Start { error, .. }) => {
                let StartError::Crash(report) = &*error else { panic!("{error}") };
                assert_eq!((report.during, report.crash.kind()), (During::Init, &out_of_fuel));
                assert_eq!(phases, "");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert_ne!(phases, "");
        assert!(matches!(ask(&actor, "x").await, Err(AskError::NoReply)));
        let mut events = system.events();
        let upgraded = system.upgrade(actor.address(), version, UpgradeOptions::default()).await;
        if phases == "init" {
            let UpgradeError::SnapshotCrashed(report) = upgraded.unwrap_err() else { panic!("another error") };
            assert_eq!(report.crash.kind(), &out_of_fuel);
            continue;
        }
        // What was left is restored under the limits of a start.
        assert_eq!(upgraded.unwrap(), 2);
        let crashes = std::iter::from_fn(|| events.try_recv().ok()).filter_map(|event| match event {
            SystemEvent::Crashed(report) => Some(report.during),
            _ => None,
        });
        let shutdown = if phases.ends_with("shutdown") { vec![] } else { vec![During::Shutdown] };
        assert_eq!(crashes.collect::<Vec<_>>(), shutdown, "{phases}");
        let Err(AskError::Crashed(report)) = ask(&actor, "a long message").await else { panic!("it is held to less") };
        assert_eq!((report.during, report.crash.kind()), (During::Message, &out_of_fuel));
    }
}
