//! Hosts over a server on loopback, each a process of its own: what a lane adds to a request of the bare client, and what a host
//! that has joined adds to messages that stay at home.

mod in_flight;
mod peers;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use airssys_wasm_actor::{ActorSystem, NativeActor, NativeContext, NativeSpec};
use airssys_wasm_fixtures::nats::{NatsConfig, NatsServer};
use airssys_wasm_harness::{Measure, Reading, Suite};
use airssys_wasm_lattice::{Lattice, LatticeConfig, Recipient, async_nats};
use airssys_wasm_measurements::process;
use airssys_wasm_registry::{ComponentId, MessageEnvelope};
use airssys_wasm_twins::{bare::engine, work::payload};
use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::{Builder, Runtime};

use self::in_flight::{BATCH, in_flight, share};
use crate::actor::{
    calls::{API, calling, host_of_guests, spawn_api, spawn_caller},
    ours::{Ours, system},
};

/// Asks at a time, beside one.
const MANY: usize = 128;
/// Tells at a time.
const STREAM: usize = 1_024;
/// Names that another host has exported.
const NAMES: u64 = 100_000;

const ECHO: &str = "echo";
const SUBJECT: &str = "bare.echo";
const TOLD: &str = "bare.told";

pub(crate) fn describe(suite: &mut Suite) {
    // Not started before something is measured.
    if let Err(error) = airssys_wasm_fixtures::nats::find() {
        return suite.skip(format!("lattice/: {error}"));
    }
    const ASK: &str = "lattice/ask/1_in_flight";
    const LINK: &str = "lattice/link/record";
    let group = suite.bench(ASK, || asks(1));
    group.twin("raw", 1.5, || bare_asks(1)).and(LINK, links).ratio(LINK, ASK, 1.3);
    peers::beside(group, 1);
    let group = suite.bench(&format!("lattice/ask/{MANY}_in_flight"), || asks(MANY));
    group.twin("raw", 1.0 / 0.6, || bare_asks(MANY));
    peers::beside(group, MANY);
    peers::missing().for_each(|why| suite.skip(why));
    suite
        .bench("lattice/tell/streaming", tells)
        .twin("raw", None, bare_tells)
        // 300,000 a second.
        .target("goal", Duration::from_nanos(3_333));
    const JOINED: &str = "lattice/local_ask/joined";
    const ALONE: &str = "lattice/local_ask/alone";
    let group = suite.bench(JOINED, || local_asks(true)).and(ALONE, || local_asks(false)).ratio(JOINED, ALONE, 1.02);
    group.and("lattice/local_ask/recipient", recipients_asks);
    for of in ["", EXPORTING] {
        suite.only_in_full(&format!("lattice/resident/{NAMES}_names{of}"));
    }
    suite.reading("lattice/resident", resident);
}

/// Of the host whose names they are.
const EXPORTING: &str = "/exporting";

/// With one worker: what is compared is below a microsecond, and to wake another takes more.
fn at_home() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Echo;

impl NativeActor for Echo {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        Ok(Some(message.payload().clone()))
    }
}

fn id(name: &str) -> ComponentId {
    name.parse().unwrap()
}

async fn join(system: &ActorSystem, url: &str, host: &str) -> Lattice {
    let config = LatticeConfig::new("bench".parse().unwrap(), host.parse().unwrap()).with_servers([url]);
    Lattice::join(system, config).await.unwrap()
}

/// Another host, in a process of its own.
struct Far {
    process: Child,
    orders: ChildStdin,
    says: BufReader<ChildStdout>,
    url: String,
    server: Arc<NatsServer>,
}

impl Far {
    fn start() -> Self {
        Self::start_at(Arc::new(NatsConfig::jetstream().start().unwrap()), PROBE)
    }

    /// One that exports nothing, beside it.
    fn start_beside(&self) -> Self {
        Self::start_at(Arc::clone(&self.server), WATCHER)
    }

    fn start_at(server: Arc<NatsServer>, probe: &str) -> Self {
        let url = server.url();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([probe, &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, says) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut far = Self { process, orders, says, url, server };
        far.line();
        far
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line
    }

    /// Has it export so many names, or wait until another has. How many bytes it has more for it, without the actors.
    fn names(&mut self, names: u64) -> u64 {
        writeln!(self.orders, "{names}").unwrap();
        self.line().trim_end().parse().unwrap()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// What leads to an actor of the other host, once that has exported it.
async fn known(lattice: &Lattice, name: &str) -> Recipient {
    let recipient = lattice.recipient(id(name));
    while !recipient.is_known() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    recipient
}

/// A host here, and what leads to the actor of the other.
fn near(runtime: &Runtime, far: &Far) -> (ActorSystem, Lattice, Recipient) {
    runtime.block_on(async {
        let system = system(engine());
        let lattice = join(&system, &far.url, "near").await;
        let recipient = known(&lattice, ECHO).await;
        (system, lattice, recipient)
    })
}

fn asks(at_once: usize) -> Measure {
    let (runtime, far) = (runtime(), Far::start());
    let (system, lattice, recipient) = near(&runtime, &far);
    Box::new(move |iterations| {
        let _keep = (&far, &system, &lattice);
        let recipient = recipient.clone();
        in_flight(&runtime, at_once, iterations, move || {
            let recipient = recipient.clone();
            async move { assert_eq!(recipient.ask(payload(64)).await.unwrap().len(), 64) }
        })
    })
}

fn bare_asks(at_once: usize) -> Measure {
    let (runtime, far) = (runtime(), Far::start());
    let client = runtime.block_on(async_nats::connect(&far.url)).unwrap();
    Box::new(move |iterations| {
        let _keep = &far;
        let client = client.clone();
        in_flight(&runtime, at_once, iterations, move || {
            let client = client.clone();
            async move { assert_eq!(client.request(SUBJECT, payload(64)).await.unwrap().payload.len(), 64) }
        })
    })
}

/// A guest here that calls a guest of the other host by its import, over and over.
fn links() -> Measure {
    let (runtime, far) = (runtime(), Far::start());
    let system = host_of_guests();
    let (lattice, actor) = runtime.block_on(async {
        let lattice = join(&system, &far.url, "near").await;
        known(&lattice, "api").await;
        (lattice, spawn_caller(&system).await)
    });
    let mut measure = calling::<(u32,), (i32,)>(runtime, Ours { system, actor }, "shift", |times| (times,));
    Box::new(move |iterations| {
        let _keep = (&far, &lattice);
        measure(iterations)
    })
}

/// Each acknowledged when the mailbox has it.
fn tells() -> Measure {
    let (runtime, far) = (runtime(), Far::start());
    let (system, lattice, recipient) = near(&runtime, &far);
    Box::new(move |iterations| {
        let _keep = (&far, &system, &lattice);
        let recipient = recipient.clone();
        in_flight(&runtime, STREAM, iterations, move || {
            let recipient = recipient.clone();
            async move { recipient.tell(payload(64)).await.unwrap() }
        })
    })
}

/// Messages of the bare client, which nobody acknowledges, and one at the end that says that all have come.
fn bare_tells() -> Measure {
    let (runtime, far) = (runtime(), Far::start());
    let client = runtime.block_on(async_nats::connect(&far.url)).unwrap();
    Box::new(move |iterations| {
        let _keep = &far;
        let times = iterations.max(BATCH);
        runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..times {
                client.publish(TOLD, payload(64)).await.unwrap();
            }
            // In the order of this connection: what came before it was received.
            client.request(TOLD, payload(64)).await.unwrap();
            share(started.elapsed(), iterations, times)
        })
    })
}

/// Asks of an actor of the same system, by its reference.
fn local_asks(joined: bool) -> Measure {
    let (runtime, server) = (at_home(), NatsConfig::jetstream().start().unwrap());
    let system = system(engine());
    let (actor, lattice) = runtime.block_on(async {
        let lattice = if joined { Some(join(&system, &server.url(), "near").await) } else { None };
        let actor = system.spawn_native(NativeSpec::new(id(ECHO), || Echo)).await.unwrap();
        if let Some(lattice) = &lattice {
            lattice.export(&actor).await.unwrap();
        }
        (actor, lattice)
    });
    Box::new(move |iterations| {
        let _keep = (&server, &system, &lattice);
        let actor = actor.clone();
        in_flight(&runtime, 1, iterations, move || {
            let actor = actor.clone();
            async move { assert_eq!(actor.ask(payload(64)).await.unwrap().len(), 64) }
        })
    })
}

/// Asks of an actor of the same system by what leads to other hosts as well.
fn recipients_asks() -> Measure {
    let (runtime, server) = (at_home(), NatsConfig::jetstream().start().unwrap());
    let system = system(engine());
    let (lattice, recipient) = runtime.block_on(async {
        let lattice = join(&system, &server.url(), "near").await;
        let actor = system.spawn_native(NativeSpec::new(id(ECHO), || Echo)).await.unwrap();
        lattice.export(&actor).await.unwrap();
        let recipient = lattice.recipient(id(ECHO));
        (lattice, recipient)
    });
    Box::new(move |iterations| {
        let _keep = (&server, &system, &lattice);
        let recipient = recipient.clone();
        in_flight(&runtime, 1, iterations, move || {
            let recipient = recipient.clone();
            async move { assert_eq!(recipient.ask(payload(64)).await.unwrap().len(), 64) }
        })
    })
}

/// What a host takes more when another exports names, and what that takes more, actors aside. Each in a process of its own: what was
/// freed in this one before would be used again.
fn resident(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let names = if quick { NAMES / 10 } else { NAMES };
    let mut exports = Far::start();
    let mut other = exports.start_beside();
    let exporting = exports.names(names);
    let grown = other.names(names);
    let goal = (64 << 20) as f64 * names as f64 / NAMES as f64;
    let readings = [("", grown), (EXPORTING, exporting)].map(|(of, bytes)| {
        let id = format!("lattice/resident/{names}_names{of}");
        Reading { id, unit: "bytes", values: vec![bytes as f64], target: Some(("goal", goal)) }
    });
    Ok(readings.into())
}

const PROBE: &str = "--lattice-host";
const WATCHER: &str = "--lattice-watcher";

pub(crate) fn probe(arguments: &[String]) -> Option<anyhow::Result<()>> {
    let [flag, url] = arguments else { return None };
    match flag.as_str() {
        PROBE => Some(far(url)),
        WATCHER => Some(watcher(url)),
        _ => None,
    }
}

/// A host that only knows the names that another exports, by the number that each line says.
fn watcher(url: &str) -> anyhow::Result<()> {
    let runtime = runtime();
    let system = system(engine());
    let lattice = runtime.block_on(join(&system, url, "watcher"));
    runtime.block_on(names_known(&lattice, 0));
    let before = resident_now()?;
    println!("ready");
    for names in std::io::stdin().lines() {
        runtime.block_on(names_known(&lattice, names?.parse()?));
        println!("{}", resident_now()?.saturating_sub(before));
    }
    Ok(())
}

fn resident_now() -> anyhow::Result<u64> {
    Ok(process::read().context("no figures of this process")?.resident)
}

/// With the two that were there before.
async fn names_known(lattice: &Lattice, names: u64) {
    while (lattice.names() as u64) < names + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The other host: an actor that echoes, the same by the bare client, a guest that is called, and names by the number that each line says.
fn far(url: &str) -> anyhow::Result<()> {
    let runtime = runtime();
    let system = host_of_guests();
    let lattice = runtime.block_on(async {
        let lattice = join(&system, url, "far").await;
        let actor = system.spawn_native(NativeSpec::new(id(ECHO), || Echo)).await?;
        lattice.export(&actor).await?;
        let api = spawn_api(&system).await;
        lattice.offer(api.id(), [API])?;
        lattice.export(&api).await?;
        let client = async_nats::connect(url).await?;
        let mut asked = client.subscribe(SUBJECT).await?;
        let mut told = client.subscribe(TOLD).await?;
        let answers = client.clone();
        tokio::spawn(async move {
            while let Some(message) = asked.next().await {
                let Some(reply) = message.reply else { continue };
                _ = client.publish(reply, message.payload).await;
            }
        });
        tokio::spawn(async move {
            while let Some(message) = told.next().await {
                if let Some(reply) = message.reply {
                    _ = answers.publish(reply, message.payload).await;
                }
            }
        });
        answers_flushed(url).await?;
        anyhow::Ok(lattice)
    })?;
    println!("ready");
    for names in std::io::stdin().lines() {
        let names: u64 = names?.parse()?;
        println!("{}", runtime.block_on(export(&system, &lattice, names))?);
    }
    Ok(())
}

/// What was subscribed before is known to the server.
async fn answers_flushed(url: &str) -> anyhow::Result<()> {
    let client = async_nats::connect(url).await?;
    client.request(SUBJECT, payload(1)).await?;
    client.request(TOLD, payload(1)).await?;
    Ok(())
}

/// Exports so many actors more, and gives the bytes that are there more for it.
async fn export(system: &ActorSystem, lattice: &Lattice, names: u64) -> anyhow::Result<u64> {
    let mut actors = Vec::new();
    for n in 0..names {
        let spec = NativeSpec::new(id(&format!("actor-{n:06}")), || Echo).with_mailbox(1);
        actors.push(system.spawn_native(spec).await?);
    }
    let before = resident_now()?;
    let mut exports = futures_util::stream::iter(&actors).map(|actor| lattice.export(actor)).buffer_unordered(128);
    while let Some(exported) = exports.next().await {
        exported?;
    }
    // It learns of its own names as of those of others.
    names_known(lattice, names).await;
    Ok(resident_now()?.saturating_sub(before))
}
