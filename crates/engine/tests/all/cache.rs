//! The on-disk code cache: what it saves, and what it does not trust.

use std::{fs, path::Path};

use airssys_wasm_engine::{CacheError, CodeCache, EngineConfig, EngineError, Origin, Profile, WasmEngine};
use airssys_wasm_fixtures::ADD;

use crate::binary;

fn engine(folder: &Path) -> WasmEngine {
    let mut config = EngineConfig::small().compile_in_process();
    config.code_cache = Some(folder.to_owned());
    WasmEngine::new(config).unwrap()
}

fn load(folder: &Path, profile: Profile) -> Origin {
    let component = engine(folder).load_blocking(&binary(ADD), profile).unwrap();
    // That it runs is what counts.
    let linker = component.linker::<()>();
    let template = component.link(&linker).unwrap();
    let mut store = airssys_wasm_engine::wasmtime::Store::new(component.wasmtime(), ());
    store.set_epoch_deadline(1_000);
    if profile == Profile::Metered {
        store.set_fuel(1_000).unwrap();
    }
    let instance = template.pre().instantiate(&mut store).unwrap();
    let add = instance.get_typed_func::<(i32, i32), (i32,)>(&mut store, "add").unwrap();
    assert_eq!(add.call(&mut store, (2, 3)).unwrap(), (5,));
    component.origin()
}

fn the_entry(folder: &Path) -> std::path::PathBuf {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

#[test]
fn the_next_engine_finds_the_code() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(load(folder.path(), Profile::Plain), Origin::Compiled);
    assert_eq!(load(folder.path(), Profile::Plain), Origin::CodeCache);
    assert_eq!(load(folder.path(), Profile::Metered), Origin::Compiled, "other code");
    assert_eq!(load(folder.path(), Profile::Metered), Origin::CodeCache);
}

#[test]
fn other_settings_are_other_code() {
    let folder = tempfile::tempdir().unwrap();
    load(folder.path(), Profile::Plain);
    let mut config = EngineConfig::small().compile_in_process();
    config.code_cache = Some(folder.path().to_owned());
    config.signals_based_traps = false;
    let other = WasmEngine::new(config).unwrap();
    assert_eq!(other.load_blocking(&binary(ADD), Profile::Plain).unwrap().origin(), Origin::Compiled);
}

#[test]
fn a_damaged_entry_is_compiled_again_and_replaced() {
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("truncated", |mut entry| {
            entry.truncate(entry.len() / 2);
            entry
        }),
        ("empty", |_| Vec::new()),
        ("longer", |mut entry| {
            entry.push(0);
            entry
        }),
        ("another trailer", |mut entry| {
            let at = entry.len() - 20;
            entry[at] ^= 1;
            entry
        }),
        // The artefact's own header, under a trailer that is right.
        ("another header", |mut entry| {
            entry[..64].fill(0x41);
            entry
        }),
    ];
    for (what, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path(), Profile::Plain);
        let path = the_entry(folder.path());
        let entry = fs::read(&path).unwrap();
        fs::write(&path, damage(entry.clone())).unwrap();
        assert_eq!(load(folder.path(), Profile::Plain), Origin::Compiled, "{what}");
        assert_eq!(fs::read(the_entry(folder.path())).unwrap().len(), entry.len(), "{what}");
        assert_eq!(load(folder.path(), Profile::Plain), Origin::CodeCache, "{what}");
    }
}

#[test]
fn an_entry_under_another_name_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    load(folder.path(), Profile::Plain);
    let plain = the_entry(folder.path());
    load(folder.path(), Profile::Metered);
    let metered = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| *path != plain);
    fs::copy(&plain, metered.unwrap()).unwrap();
    assert_eq!(load(folder.path(), Profile::Metered), Origin::Compiled);
}

#[test]
fn a_file_in_place_of_the_folder_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(CodeCache::open(file.path()), Err(CacheError::NotAFolder(_))));
    let below = CodeCache::open(file.path().join("folder"));
    assert!(matches!(below, Err(CacheError::Io { .. })), "{below:?}");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o770, 0o702] {
            set_mode(folder.path(), mode);
            let mut config = EngineConfig::small().compile_in_process();
            config.code_cache = Some(folder.path().to_owned());
            let error = WasmEngine::new(config).unwrap_err();
            assert!(
                matches!(error, EngineError::Cache(CacheError::WritableByOthers { mode: found, .. }) if found == mode),
                "{error:?}"
            );
            assert!(error.to_string().contains("chmod go-w"));
        }
        set_mode(folder.path(), 0o755);
        CodeCache::open(folder.path()).unwrap();
    }

    #[test]
    fn an_entry_that_others_can_write_to_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path(), Profile::Plain);
        set_mode(&the_entry(folder.path()), 0o666);
        assert_eq!(load(folder.path(), Profile::Plain), Origin::Compiled);
        assert_eq!(load(folder.path(), Profile::Plain), Origin::CodeCache);
    }

    #[test]
    fn a_new_folder_is_private() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        CodeCache::open(&folder).unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        // The root folder is root's: for everybody else it is foreign, and root can give a folder away.
        let folder = tempfile::tempdir().unwrap();
        let path = match std::os::unix::fs::chown(folder.path(), Some(12_345), None) {
            Ok(()) => folder.path(),
            Err(_) => Path::new("/"),
        };
        assert!(matches!(CodeCache::open(path), Err(CacheError::ForeignOwner { .. })));
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let cached = engine(folder.path());
        fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(cached.load_blocking(&binary(ADD), Profile::Plain).unwrap().origin(), Origin::Compiled);
    }
}
