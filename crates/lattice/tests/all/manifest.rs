//! `Component.toml`, as `Lattice::load` reads it.

use std::{fs, sync::Arc, time::Duration};

use airssys_wasm_actor::{
    LoadManifestError,
    limits::ManifestError,
    registry::{Refusal, Topic, WhenFull},
};
use airssys_wasm_fixtures::{COUNTER, KV};
use airssys_wasm_lattice::{BucketConfig, ExportError, LoadKindError, LoadLatticeError, Loaded};
use tempfile::TempDir;

use crate::{
    calls::{Clerk, STORE},
    support::{TestHost, config, host, id, join, server, until, until_told, within},
};

/// A folder with a component, and a `Component.toml` with these tables beside those of the other layers.
fn folder(name: &str, component: &[u8], tables: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let contract = if name == "kv" { "contract = 'exports'\n" } else { "" };
    let others = "[resources]\nmemory = '8MiB'\ncpu_time = '5s'\n";
    let text = format!("[component]\nname = '{name}'\n{contract}{others}{tables}");
    fs::write(folder.path().join("Component.toml"), text).unwrap();
    fs::write(folder.path().join(format!("{name}.wasm")), component).unwrap();
    folder
}

/// The counter.
async fn load(host: &TestHost, tables: &str) -> Result<Loaded, LoadLatticeError> {
    let folder = folder("counter", COUNTER, tables);
    within(host.lattice.load(folder.path().join("Component.toml"))).await
}

#[tokio::test]
async fn a_component_is_exported_as_its_manifest_says() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    // Of its host alone.
    for tables in ["", "[lattice]\n"] {
        let Ok(Loaded::Here(actor)) = load(&a, tables).await else { panic!("it lives here") };
        assert_eq!(actor.ask("add 2").await.unwrap(), "2");
        // What is exported after it is seen after it.
        let (beside, _) = a.export("beside").await;
        b.knows("beside").await;
        assert_eq!(b.ask("counter", "get").await.unwrap_err().refusal(), Some(Refusal::Unknown));
        for actor in [actor, beside] {
            actor.kill();
            actor.ended().await;
        }
        until(|| b.lattice.names() == 0).await;
    }
    let Ok(Loaded::Here(_actor)) = load(&a, "[lattice]\nexport = 'here'\n").await else { panic!("it lives here") };
    b.knows("counter").await;
    assert_eq!(b.ask("counter", "add 3").await.unwrap(), "3");
    // One that lives where its name is not to be had says so.
    match load(&c, "[lattice]\nexport = 'here'\n").await {
        Err(LoadLatticeError::Export { name, error: ExportError::NameTaken { holder, .. } }) => {
            assert_eq!((name, holder.as_str()), (id("counter"), "a"));
        }
        other => panic!("{other:?}"),
    }
    assert!(c.system.find("counter").is_some());
}

#[tokio::test]
async fn a_component_that_lives_alone_goes_to_another_host_that_has_loaded_it() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    let alone = "[lattice]\nexport = 'alone'\n";
    let Ok(Loaded::Alone(mut first)) = load(&a, alone).await else { panic!("it lives on one host") };
    within(first.serving()).await.unwrap();
    let Ok(Loaded::Alone(mut second)) = load(&b, alone).await else { panic!("it lives on one host") };
    c.knows("counter").await;
    assert_eq!(c.ask("counter", "add 1").await.unwrap(), "1");
    assert!(second.actor().is_none() && b.system.find("counter").is_none());
    drop(first);
    within(second.serving()).await.unwrap();
    // As a new one: what is to be kept is a state's, and not the memory's.
    until(|| c.lattice.recipient(id("counter")).is_known()).await;
    until(|| a.system.find("counter").is_none()).await;
    until_told(async || c.ask("counter", "get").await.ok().as_deref() == Some("0")).await;
}

#[tokio::test]
async fn topics_of_a_manifest_are_taken_and_what_is_misspelt_is_told() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let mut heard = a.system.subscribe(&"orders.>".parse().unwrap(), 10, WhenFull::Error);
    load(&a, "[lattice]\ntopics = ['orders.>']\n").await.unwrap();
    let topic = Topic::new("orders.eu").unwrap();
    within(async {
        while b.system.publish(&topic, "x").await.hosts == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(within(heard.recv()).await.unwrap().topic(), Some(&topic));
    match load(&b, "[lattice]\nexports = 'here'\n").await {
        Err(LoadLatticeError::Load(LoadManifestError::Manifest { source, .. })) => {
            let ManifestError::UnknownKey { table, key, known } = source else { panic!("{source}") };
            assert_eq!(
                (table.as_str(), key.as_str(), &*known),
                ("lattice", "exports", &["calls", "export", "topics"][..])
            );
        }
        other => panic!("{other:?}"),
    }
    for tables in ["[lattice]\nexport = 'everywhere'\n", "[lattice]\ntopics = ['a..b']\n"] {
        let told = load(&b, tables).await;
        assert!(
            matches!(
                &told,
                Err(LoadLatticeError::Load(LoadManifestError::Manifest { source: ManifestError::Toml(_), .. }))
            ),
            "{tables}: {told:?}"
        );
    }
    assert!(b.system.find("counter").is_none());
}

#[tokio::test]
async fn actors_of_other_hosts_call_what_a_manifest_says() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let load = async |tables: &str| {
        let folder = folder("kv", KV, tables);
        within(a.lattice.load(folder.path().join("Component.toml"))).await
    };
    let clerk = Clerk::spawn(&b, "clerk", "kv").await;
    // The last is as the first: what was offered of the one before is not offered of it.
    for calls in ["", STORE, ""] {
        let tables = format!("[lattice]\nexport = 'here'\ncalls = ['{calls}']\n").replace("''", "");
        let Ok(Loaded::Here(kv)) = load(&tables).await else { panic!("it lives here") };
        b.knows("kv").await;
        let told = clerk.remember("a", "one").await;
        assert_eq!(told.is_ok(), calls == STORE, "{told:?}");
        kv.kill();
        kv.ended().await;
        until(|| b.lattice.names() == 0).await;
    }
    match load("[lattice]\nexport = 'here'\ncalls = ['wasi:http/handler@0.2.0']\n").await {
        Err(LoadLatticeError::Offer(error)) => assert_eq!(error.interface, "wasi:http/handler@0.2.0"),
        other => panic!("{other:?}"),
    }
    assert!(a.system.find("kv").is_none());
}

#[tokio::test]
async fn a_kind_is_of_all_hosts_that_have_loaded_it() {
    let server = server();
    let quick = |name| join(config(&server, name).with_lease(Duration::from_secs(2)));
    let (a, b) = tokio::join!(quick("a"), quick("b"));
    let load = async |host: &TestHost, tables: &str| {
        let folder = folder("counter", COUNTER, tables);
        let store = Arc::new(within(host.lattice.store(BucketConfig::new("counts"))).await.unwrap());
        within(host.lattice.load_kind(folder.path().join("Component.toml"), store)).await
    };
    for tables in ["", "[lattice]\nexport = 'here'\n"] {
        assert!(matches!(load(&a, tables).await, Err(LoadKindError::NotKeyed { .. })));
    }
    let exported = load(&a, "[keyed]\n[lattice]\nexport = 'alone'\n").await;
    assert!(matches!(exported, Err(LoadKindError::Exported { .. })));
    assert!(a.ask("counter/0", "get").await.is_err());

    let _of_a = load(&a, "[keyed]\n").await.unwrap();
    let _of_b = load(&b, "[keyed]\nsave = 'each-message'\n[lattice]\ntopics = ['orders.>']\n").await.unwrap();
    let kind = id("counter");
    until(|| a.lattice.slots(&kind) > 0 && b.lattice.slots(&kind) > 0).await;
    for n in 0..10 {
        let key = format!("counter/{n}");
        until_told(async || a.ask(&key, "get").await.is_ok()).await;
        assert_eq!(b.ask(&key, "add 2").await.unwrap(), "2");
        assert_eq!(a.ask(&key, "add 3").await.unwrap(), "5");
    }
}
