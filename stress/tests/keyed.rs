//! A short soak of keyed actors, as it is built for tests: that it runs at all, and that it would find a loss.

use std::process::{Command, Output};

fn keyed(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_stress"))
        .args(["keyed", "--minutes", "0", "--seed", "1"])
        .args(arguments)
        .output()
        .expect("it can be run");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    (output, text)
}

#[test]
fn a_round_finds_what_was_promised() {
    let (output, text) = keyed(&[]);
    assert!(output.status.success() && text.contains("seed 1") && text.contains("1 rounds"), "{text}");
}

#[test]
fn a_count_that_is_one_too_small_is_found() {
    let (output, text) = keyed(&["--tamper"]);
    assert!(!output.status.success() && text.contains("is found, and not one of"), "{text}");
}
