//! A short round of clients of HTTP, as it is built for tests: that it runs at all and says what it is to say.

use std::process::Command;

#[test]
fn a_short_round_serves_healthy_clients_and_endures_the_others() {
    let output = Command::new(env!("CARGO_BIN_EXE_stress"))
        .args(["http", "--minutes", "0.05", "--seed", "1"])
        .output()
        .expect("it can be run");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    // Who else has a turn in so short a time is up to the machine.
    for expected in ["seed 1, ", "round 1: ", "\nhello ", "\nhostile clients ", "growth was not looked at"] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
}
