//! `Component.toml`, by each of the three layers that read it.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use airssys_wasm_actor::{ActorManifest, RestartPolicy};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::SMALLEST_ACTOR;
use airssys_wasm_isolation::{SandboxManifest, SandboxSpec};
use airssys_wasm_limits::{ByteSize, CallLimits, ManifestError, ResourceLimits};
use serde::Serialize;
use toml::{Table, Value};

use crate::host::{Script, Template, close, component, ends, run, system, template, told};

static PLAIN: LazyLock<Template> = LazyLock::new(|| template(&component(SMALLEST_ACTOR, Profile::Plain)));
static METERED: LazyLock<Template> = LazyLock::new(|| template(&component(SMALLEST_ACTOR, Profile::Metered)));

/// Text as a `Component.toml`.
///
/// - What is accepted says what was written, down to the last byte and nanosecond, and each layer reads the same.
/// - Limits and policies are written as TOML and read back as they were.
/// - No table or key is accepted that nobody knows.
/// - An actor with these limits and policies is spawned and answers, or is refused by an error.
/// - No error shows a control character.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let limits = shown(ResourceLimits::from_toml(&text));
    if let Some(limits) = &limits {
        let table: Table = text.parse().expect("it was read before");
        as_written(limits, &table["resources"]);
        assert_eq!(again(limits, "resources", |table| ResourceLimits::take_from(&mut { table })), *limits);
    }
    if let Some(sandbox) = shown(SandboxManifest::from_toml(&text)) {
        assert_eq!(Some(&sandbox.limits), limits.as_ref());
        let table: Table = text.parse().expect("it was read before");
        assert!(table.keys().all(|key| ["resources", "wasi", "keyvalue", "config"].contains(&key.as_str())), "{table}");
    }
    let Some(manifest) = shown(ActorManifest::from_toml(&text)) else { return };
    assert_eq!(Some(&manifest.sandbox.limits), limits.as_ref());
    let table: Table = text.parse().expect("it was read before");
    let known = ["component", "resources", "wasi", "keyvalue", "messaging", "supervision", "config"];
    assert!(table.keys().all(|key| known.contains(&key.as_str())), "{table}");
    assert_eq!(table["component"]["name"].as_str(), Some(manifest.component.name.as_str()));
    let config = table.get("config").map_or_else(BTreeMap::new, as_config);
    assert_eq!(manifest.config, config);
    let supervision: RestartPolicy = again(&manifest.supervision, "supervision", |mut table| {
        Ok(table.remove("supervision").expect("put").try_into()?)
    });
    // What is not a number is not equal to itself.
    assert_eq!(format!("{supervision:?}"), format!("{:?}", manifest.supervision));
    run(live(manifest));
}

/// What a reader made of the text; an error is shown.
fn shown<T>(read: Result<T, ManifestError>) -> Option<T> {
    read.map_err(|error| told(&error)).ok()
}

/// Writes a table and reads it again.
fn again<T: Serialize, R>(what: &T, table: &str, read: impl FnOnce(Table) -> Result<R, ManifestError>) -> R {
    let written = Table::from_iter([(table.to_owned(), Value::try_from(what).expect("it can be written"))]);
    let text = written.to_string();
    let parsed = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
    read(parsed).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Compares each limit that is written as a number with the number, and one that is not written with its default.
fn as_written(limits: &ResourceLimits, written: &Value) {
    let default = ResourceLimits::with_memory(ByteSize(0));
    let counts = [
        ("memory", limits.memory.as_u64(), None),
        ("memories", limits.memories.into(), Some(default.memories.into())),
        ("table_elements", limits.table_elements, Some(default.table_elements)),
        ("tables", limits.tables.into(), Some(default.tables.into())),
        ("instances", limits.instances.into(), Some(default.instances.into())),
        ("host_calls", limits.host_calls, Some(default.host_calls)),
        ("host_call_bytes", limits.host_call_bytes.as_u64(), Some(default.host_call_bytes.as_u64())),
        ("handles", limits.handles.into(), Some(default.handles.into())),
        ("log_bytes", limits.log_bytes.as_u64(), Some(default.log_bytes.as_u64())),
        ("message_size", limits.message_size.as_u64(), Some(default.message_size.as_u64())),
    ];
    for (key, read, default) in counts {
        match written.get(key) {
            None => assert_eq!(Some(read), default, "{key}"),
            Some(Value::Integer(number)) => assert_eq!(u64::try_from(*number), Ok(read), "{key}"),
            // With a unit: it is read as it would be by itself.
            Some(value) => assert_eq!(value.clone().try_into(), Ok(ByteSize(read)), "{key}"),
        }
    }
    assert_eq!(limits.fuel, written.get("fuel").map(|fuel| fuel.as_integer().expect("a number") as u64));
    for (key, read, default) in
        [("cpu_time", limits.cpu_time, default.cpu_time), ("deadline", limits.deadline, default.deadline)]
    {
        assert!(written.get(key).is_some() || read == default, "{key}");
    }
    for (key, read) in [("init", limits.init), ("snapshot", limits.snapshot), ("shutdown", limits.shutdown)] {
        let call =
            written.get(key).map_or_else(CallLimits::default, |call| call.clone().try_into().expect("read before"));
        assert_eq!(read, call, "{key}");
    }
}

fn as_config(table: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    table.as_table().expect("a table").iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// Spawns an actor from a manifest that was accepted. The component imports nothing, so that no grant comes into effect.
async fn live(manifest: ActorManifest) {
    let profile = manifest.profile();
    let template = if profile == Profile::Plain { &PLAIN } else { &METERED };
    let system = system(Script::default());
    let mut events = system.events();
    let limits = manifest.sandbox.limits.clone();
    let made = SandboxSpec::new(Template::clone(template), limits.clone());
    let sandbox = match made {
        Ok(sandbox) => sandbox.with_wasi(manifest.sandbox.wasi.clone()),
        Err(error) => return told(&error),
    };
    let name = manifest.component.name.clone();
    let spec = manifest.spec(sandbox);
    match ends(system.spawn(spec)).await {
        Ok(actor) => {
            match ends(actor.ask_within(Duration::MAX, "x")).await {
                Ok(answer) => assert_eq!(answer, "x"),
                Err(error) => told(&error),
            }
            _ = actor.try_tell("y").map_err(|error| told(&error));
            assert!(system.find(&name).is_some(), "it has its name");
        }
        Err(error) => told(&error),
    }
    close(system, &mut events, |_| limits.clone()).await;
}
