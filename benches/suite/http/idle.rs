//! What connections take that are open and do nothing.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Command, Stdio},
};

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_measurements::{Kind, process};
use airssys_wasm_twins::web::{Connection, Question, client_runtime, native, runtime};
use anyhow::Context;

use super::ours::{component, limits, serve};

const MANY: usize = 10_000;
const SOME: usize = 1_000;

pub(super) fn describe(suite: &mut Suite) {
    // A descriptor for each at either end, and the ends are in different processes.
    if process::may_open() < Some(MANY as u64 + 200) {
        suite.skip(format!("http/idle/{MANY}: a process may not open so many files; raise its limit (ulimit -n)"));
    }
    suite.reading("http/idle", idle);
    suite.sample(&format!("http/idle/{SOME}/resident"), Kind::Bytes, || Box::new(|| each_takes(OURS, SOME)));
}

/// Bytes for each connection that is kept open after a request, beside those of a server that is hyper alone.
fn idle(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let connections = if quick || process::may_open() < Some(MANY as u64 + 200) { SOME } else { MANY };
    let (mut ours, mut hyper) = (Vec::new(), Vec::new());
    for _ in 0..if quick { 1 } else { 3 } {
        ours.push(each_takes(OURS, connections)?);
        hyper.push(each_takes(HYPER, connections)?);
    }
    let beside = ours.iter().zip(&hyper).map(|(ours, hyper)| ours - hyper).collect();
    let reading = |id: String, values, target| Reading { id, unit: "bytes", values, target };
    Ok(vec![
        reading(format!("http/idle/{connections}/resident"), ours, None),
        reading(format!("raw/http/idle/{connections}/resident"), hyper, None),
        reading(format!("http/idle/{connections}/beyond_hyper"), beside, Some(("goal", 8.0 * 1024.0))),
    ])
}

/// What each of so many connections adds to a server in a process of its own. Their clients are here.
fn each_takes(kind: &str, connections: usize) -> anyhow::Result<f64> {
    let program = std::env::current_exe()?;
    let mut server = Command::new(program).args([PROBE, kind]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut orders = server.stdin.take().context("piped")?;
    let mut lines = BufReader::new(server.stdout.take().context("piped")?).lines();
    let mut next = move || lines.next().context("the server has ended").and_then(|line| Ok(line?));
    let address = next()?.parse()?;
    let taken = client_runtime().block_on(async {
        // What the first of all need once is not the others'.
        let mut open = all_open(address, 64).await;
        writeln!(orders)?;
        let before: f64 = next()?.parse()?;
        open.extend(all_open(address, connections).await);
        writeln!(orders)?;
        let after: f64 = next()?.parse()?;
        anyhow::ensure!(!open.iter().any(Connection::is_closed), "the server has closed some");
        anyhow::Ok((after - before) / connections as f64)
    });
    drop(orders);
    server.wait()?;
    taken
}

/// Connections that have had a request, some at a time.
async fn all_open(server: SocketAddr, connections: usize) -> Vec<Connection> {
    const AT_A_TIME: usize = 8;
    let mut open = Vec::with_capacity(connections);
    while open.len() < connections {
        let some: Vec<_> = (0..AT_A_TIME.min(connections - open.len()))
            .map(|_| {
                tokio::spawn(async move {
                    let mut connection = Connection::open(server).await;
                    connection.ask(&Question::hello()).await.unwrap();
                    connection
                })
            })
            .collect();
        for one in some {
            open.push(one.await.unwrap());
        }
    }
    open
}

/// What a process of its own is started for.
const PROBE: &str = "--idle-http";
/// Which server.
const OURS: &str = "ours";
const HYPER: &str = "hyper";

/// The server of such a process, if these are the arguments of one.
pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [flag, kind] = arguments else { return None };
    (flag == PROBE).then(|| server(kind))
}

/// Prints its address, and its resident bytes for each line that it reads.
fn server(kind: &str) -> anyhow::Result<()> {
    _ = process::may_open();
    let runtime = runtime();
    let address = if kind == OURS {
        let engine = WasmEngine::new(EngineConfig::default().compile_in_process())?;
        let loaded = engine.load_blocking(airssys_wasm_fixtures::WEB, Profile::Plain)?;
        runtime.block_on(serve([("web.test", component("web", &loaded, limits(), None))]))
    } else {
        runtime.block_on(native())
    };
    println!("{address}");
    for order in std::io::stdin().lines() {
        order?;
        println!("{}", process::read().context("this system does not tell how much memory a process has")?.resident);
    }
    Ok(())
}
