//! kameo's remote actors and ractor's cluster, by a program that is built apart: see `benches/peers`.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use airssys_wasm_harness::{Group, Measure};

const PEERS: [&str; 2] = ["kameo", "ractor"];

/// Where `cargo xtask bench --peers` leaves it: `cargo xtask bench` says where the target folder is.
fn program() -> PathBuf {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/release/airssys-wasm-peers");
    std::env::var_os("LATTICE_PEERS").map_or_else(|| here.into(), PathBuf::from)
}

/// What there is to do where it was not built, of each.
pub(super) fn missing() -> impl Iterator<Item = String> {
    let missing = PEERS.into_iter().filter(|_| !program().exists());
    missing.map(|whose| format!("peer/{whose}/lattice/: build it first, by `cargo xtask bench --peers`"))
}

/// Their asks, beside those of a group.
pub(super) fn beside(group: &mut Group, at_once: usize) {
    for whose in PEERS.into_iter().filter(|_| program().exists()) {
        group.twin(&format!("peer/{whose}"), None, move || asks(whose, at_once));
    }
}

/// Who asks, in a process of its own, which has that of the actor.
struct Peer {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Peer {
    fn start(whose: &str) -> Self {
        let mut command = Command::new(program());
        let mut process = command.arg(whose).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        let mut peer = Self { process, says };
        assert_eq!(peer.line(), "ready\n");
        peer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Closes its standard input before, which ends both processes.
        _ = self.process.wait();
    }
}

/// Timed over there.
fn asks(whose: &str, at_once: usize) -> Measure {
    let mut peer = Peer::start(whose);
    Box::new(move |iterations| {
        writeln!(peer.process.stdin.as_mut().unwrap(), "{iterations} {at_once}").unwrap();
        Duration::from_nanos(peer.line().trim_end().parse().unwrap())
    })
}
