//! The runner of component-model tests, on scripts of our own.

use std::path::Path;

use airssys_wasm_stress::conformance::{Report, run};

fn report(folder: &str) -> Report {
    run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder)).expect("scripts of our own")
}

#[test]
fn what_is_as_it_should_be_is_counted() {
    let report = report("good");
    assert!(report.faults.is_empty(), "{:#?}", report.faults);
    let reasons: Vec<_> = report.refused.keys().map(String::as_str).collect();
    assert_eq!(reasons, ["imports `m`", "imports `nobody`", "needs 64-bit memories"]);
    assert_eq!((report.scripts, report.loaded, report.held, report.left_out, report.others), (1, 7, 13, 2, 0));
    assert_eq!(report.limited.into_values().flatten().count(), 1);
    assert_eq!(report.refused["needs 64-bit memories"].len(), 2, "in an assertion too");
}

#[test]
fn what_is_not_is_found() {
    let report = report("bad");
    let lines: Vec<_> = report.faults.iter().map(|fault| fault.split(' ').next().unwrap()).collect();
    let expected = [9, 10, 11, 12, 13, 14, 15, 16, 17].map(|line| format!("all.wast:{line}:"));
    assert_eq!(lines, expected, "{:#?}", report.faults);
}

#[test]
fn a_folder_without_scripts_is_none() {
    let error = run(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap_err();
    assert!(error.to_string().starts_with("no `.wast` in "), "{error}");
}
