//! A kind by its `Component.toml`.

use std::{fs, path::Path, time::Duration};

use airssys_wasm_actor::LoadManifestError;
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_keyed::{Durability, KeyedTable, Keys, LoadKeyedError, SaveWhen, load};
use airssys_wasm_limits::{ByteSize, ManifestError};

use crate::support::{Faulty, ask, system};

const ACTOR: &str = "[component]\nname = 'cart'\n[resources]\nmemory = '8MiB'\n";

fn table(text: &str) -> KeyedTable {
    KeyedTable::with_actor(&format!("{ACTOR}{text}")).unwrap().0.unwrap()
}

#[test]
fn each_option_is_read() {
    let whole = table(
        "[keyed]\nsave = 'each-message'\ndurability = 'process'\nidle = '1m'\nresidency = '2s'\nlive = 7\nkeys = ['a']\n\
         most_keys = 8\nstate = '9KiB'\n[keyed.admission]\nkind = { per_second = 1.5, burst = 2 }\n",
    );
    let options = whole.options();
    assert_eq!((options.save, options.durability), (SaveWhen::EachMessage, Durability::Process));
    assert_eq!((options.idle, options.residency), (Duration::from_secs(60), Duration::from_secs(2)));
    assert_eq!((options.live, options.most_keys, options.state), (7, 8, ByteSize::kib(9)));
    assert_eq!((options.admission.kind.per_second, options.admission.kind.burst), (1.5, 2));
    // What a table leaves out.
    assert_eq!(options.admission.caller.burst, 2_000);
    let Keys::Known(known) = options.keys else { panic!("any") };
    assert!(known("a") && !known("b"));

    let least = table("[keyed]\n").options();
    assert_eq!((least.save, least.durability), (SaveWhen::Within(Duration::from_secs(5)), Durability::Power));
    assert!(matches!(least.keys, Keys::Any));
    let within = table("[keyed]\nsave = { within = '2s' }\n");
    assert_eq!(within.save, Some(SaveWhen::Within(Duration::from_secs(2))));
    assert!(KeyedTable::with_actor(ACTOR).unwrap().0.is_none());
}

#[test]
fn what_nobody_knows_is_an_error() {
    let unknown = KeyedTable::with_actor(&format!("{ACTOR}[keyed]\nidel = '1s'\n")).unwrap_err();
    assert!(matches!(&unknown, ManifestError::UnknownKey { table, key, .. } if table == "keyed" && key == "idel"));
    KeyedTable::with_actor(&format!("{ACTOR}[keyed]\nsave = 'sometimes'\n")).unwrap_err();
}

#[tokio::test]
async fn a_kind_is_loaded_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    fs::write(folder.path().join("counter.wasm"), fixtures::COUNTER).unwrap();
    let (system, store) = (system(), Faulty::new());
    let loaded = async |path: &Path| load(&system, path, store.clone()).await;

    let plain = write("plain.toml", ACTOR);
    assert!(matches!(loaded(&plain).await.unwrap_err(), LoadKeyedError::NotKeyed { .. }));
    assert!(matches!(
        loaded(Path::new("nowhere")).await.unwrap_err(),
        LoadKeyedError::Load(LoadManifestError::Read { .. })
    ));
    let invalid = write("invalid.toml", &format!("{ACTOR}[keyed]\nlive = 'many'\n"));
    assert!(matches!(loaded(&invalid).await.unwrap_err(), LoadKeyedError::Load(LoadManifestError::Manifest { .. })));
    let zero = write("zero.toml", &format!("{ACTOR}[keyed]\nlive = 0\n"));
    assert!(matches!(loaded(&zero).await.unwrap_err(), LoadKeyedError::Install(_)));

    let carts = loaded(&write("Component.toml", &format!("{ACTOR}[keyed]\nkeys = ['1']\n"))).await.unwrap();
    assert_eq!(ask(&carts, "1", "add 2").await.unwrap(), "2");
    carts.actor("2").unwrap_err();

    fs::write(folder.path().join("another.wasm"), fixtures::COUNTER).unwrap();
    let error = loaded(&folder.path().join("Component.toml")).await.unwrap_err();
    assert!(matches!(error, LoadKeyedError::Load(LoadManifestError::WhichFile { found: 2, .. })));
}
