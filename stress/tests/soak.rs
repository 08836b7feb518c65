//! Short rounds of the soak, as it is built for tests: that it runs at all and says what it is to say, and that it would
//! find a loss.

use std::process::{Command, Output};

fn soak(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_stress"))
        .args(["soak", "--minutes", "0.04", "--actors", "50", "--seed", "1"])
        .args(arguments)
        .output()
        .expect("it can be run");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    (output, text)
}

#[test]
fn a_short_round_accounts_for_all_its_messages() {
    let (output, text) = soak(&[]);
    assert!(output.status.success(), "{text}");
    for expected in [
        "seed 1, 50 actors",
        "round 1: ",
        "sent      handled         dead      refused   asker told         open",
        "Supervised ",
        "restarts_total\n",
        "upgraded\n",
        "killed\n",
        "supervisors stopped\n",
        "dead: stopped\n",
        "crashes_total: host-panic\n",
        "crashes_total: trap\n",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
}

#[test]
fn messages_that_are_lost_on_purpose_are_found_by_their_numbers() {
    let (output, text) = soak(&["--lose-one-in", "1000"]);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("FOUND: lost: message "), "{text}");
}
