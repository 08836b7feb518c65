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
    assert_eq!((report.scripts, report.loaded, report.held, report.left_out, report.others), (1, 4, 8, 1, 0));
    assert_eq!(report.limited.values().map(|(count, _)| count).sum::<usize>(), 1);
}

#[test]
fn what_is_not_is_found() {
    let report = report("bad");
    let lines: Vec<_> = report.faults.iter().map(|fault| fault.split(' ').next().unwrap()).collect();
    let expected = [9, 10, 11, 12, 13, 14].map(|line| format!("all.wast:{line}:"));
    assert_eq!(lines, expected, "{:#?}", report.faults);
}
