//! An actor of another project and who asks it, in two processes: what the benchmarks of the lattice are measured beside.
//!
//! `peers kameo` and `peers ractor` start a process with the actor, reach it, and say `ready`. Each line `ASKS IN_FLIGHT` on standard
//! input is then answered by the nanoseconds that so many asks took. Both end when standard input is closed.

#[path = "../../suite/lattice/in_flight.rs"]
mod in_flight;
mod kameo;
mod ractor;

use std::{
    env,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use crate::{in_flight::in_flight, kameo::Kameo, ractor::Ractor};

/// An actor of another process that answers with what it was asked.
trait Peer: Clone + Send + Sync + Sized + 'static {
    /// Has such an actor in this process, until that ends, and says where.
    async fn serve() -> Result<String>;

    /// The actor of the process that said so.
    async fn reach(address: &str) -> Result<Self>;

    fn ask(&self, payload: Bytes) -> impl Future<Output = Result<Bytes>> + Send;
}

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["kameo"] => near::<Kameo>("kameo"),
        ["ractor"] => near::<Ractor>("ractor"),
        ["kameo", FAR] => far::<Kameo>(),
        ["ractor", FAR] => far::<Ractor>(),
        _ => bail!("whose actors are wanted: kameo or ractor?"),
    }
}

const FAR: &str = "far";

/// As the benchmarks have it.
fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn far<P: Peer>() -> Result<()> {
    let runtime = runtime()?;
    println!("{}", runtime.block_on(P::serve())?);
    // Until nobody is there who could ask.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// The process with the actor, which ends when its standard input is closed, if only because this one is gone.
struct Far(Child);

impl Far {
    fn start(whose: &str) -> Result<(Self, String)> {
        let mut command = Command::new(env::current_exe()?);
        let process = command.args([whose, FAR]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut far = Self(process);
        let mut address = String::new();
        BufReader::new(far.0.stdout.take().context("piped")?).read_line(&mut address)?;
        Ok((far, address.trim_end().to_owned()))
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // Closes its standard input before.
        _ = self.0.wait();
    }
}

fn near<P: Peer>(whose: &str) -> Result<()> {
    let (_far, address) = Far::start(whose)?;
    let runtime = runtime()?;
    let actor = runtime.block_on(async { timeout(Duration::from_secs(30), P::reach(&address)).await })??;
    println!("ready");
    for line in io::stdin().lines() {
        let line = line?;
        let (asks, at_once) = line.split_once(' ').context("a line is ASKS IN_FLIGHT")?;
        let (asks, at_once) = (asks.parse()?, at_once.parse()?);
        ensure!(at_once > 0, "nobody asks");
        let actor = actor.clone();
        let taken = in_flight(&runtime, at_once, asks, move || {
            let actor = actor.clone();
            async move {
                let answer = actor.ask(Bytes::from_static(&PAYLOAD)).await.expect("an answer");
                assert_eq!(answer, PAYLOAD[..]);
            }
        });
        println!("{}", taken.as_nanos());
    }
    Ok(())
}

static PAYLOAD: [u8; 64] = [b'x'; 64];
