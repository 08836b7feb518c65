//! One short round of the soak, as it is built for tests: whether it runs at all, and says what it is to say.

use std::process::Command;

#[test]
fn a_short_round_accounts_for_all_its_messages() {
    let output = Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(["--minutes", "0.04", "--actors", "50", "--seed", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for expected in [
        "seed 1, 50 actors",
        "round 1: ",
        "sent      handled         dead      refused   asker told     open",
        "native, supervised",
        "refused\n",
        "restarted\n",
        "upgraded\n",
        "killed\n",
        "supervisors stopped\n",
        "dead letters, by reason\n",
        "host-panic\n",
        "trap\n",
    ] {
        assert!(text.contains(expected), "no {expected:?} in:\n{text}");
    }
}
