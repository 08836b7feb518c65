//! Replays what is in the corpora: each input that was ever of interest is a test from then on.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use airssys_wasm_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn replay(target: &str) {
    let (_, body) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let folder = corpus().join(target);
    let inputs = names_in(&folder);
    assert!(!inputs.is_empty(), "there is nothing in {}", folder.display());
    for input in inputs {
        // Shown where the test fails.
        println!("{target}/{input}");
        body(&fs::read(folder.join(input)).unwrap());
    }
}

macro_rules! replays {
    ($($target:ident),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        #[test]
        fn each_target_is_replayed_and_has_a_folder_and_a_program() {
            let targets: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(targets, [$(stringify!($target)),*]);
            assert_eq!(names_in(&corpus()), targets);
            let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer");
            let programs: Vec<_> = targets.iter().map(|name| format!("{name}.rs")).collect();
            assert_eq!(names_in(&project.join("fuzz_targets")), programs);
            let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
            let is_built = |program: &String| manifest.contains(&format!("path = \"fuzz_targets/{program}\""));
            assert!(programs.iter().all(is_built));
        }
    };
}

replays! { envelope, guest, load, manifest, names, values }

/// What the targets have found, in words.
mod found {
    use airssys_wasm_fuzz::{load, manifest};

    #[test]
    fn limits_are_written_to_the_byte() {
        manifest(b"[resources]\nmemory = 65537\n");
    }

    #[test]
    fn a_parsers_error_shows_no_control_character_of_the_text() {
        manifest(b"[resources]\nmemory = \"\x1b[2J\"\n");
    }

    #[test]
    fn a_name_in_an_error_reaches_the_log_escaped() {
        load(br#"(component (core module (func) (export "\1b" (func 0)) (export "\1b" (func 0))))"#);
    }
}
