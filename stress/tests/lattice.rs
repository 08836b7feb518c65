//! A short soak of the lattice, as it is built for tests: that it runs at all, and that it would find a message that is handled
//! twice.

use std::process::Command;

#[test]
fn a_message_that_is_handled_twice_is_found_and_nothing_else() {
    let output = Command::new(env!("CARGO_BIN_EXE_stress"))
        .args(["lattice", "--minutes", "0", "--seed", "1", "--tamper", "repeat"])
        .output()
        .expect("it can be run");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.code() == Some(3) && text.contains("was handled 2 times"), "{text}");
}
