//! A host, in a process of its own: actors that others know, tasks that send to all of them, and a log. It does what its standard
//! input says, says on its standard output when that is done, and ends with its input.

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorSystem, AskError, Capabilities, DeadLetterLimits, DeadReason, Fence, NativeActor,
    NativeContext, NativeSpec, SystemConfig,
};
use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_keyed::{KeyedOptions, KeyedSpec, SaveWhen};
use airssys_wasm_lattice::{BucketConfig, Lattice, LatticeConfig, LatticeEvent, Recipient, StandBy, TellError};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_measurements::process;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, Topic, WhenFull};
use anyhow::{Context, Result};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    ALONE, GRACE, HEARTBEAT, HOSTS, KEYS, KIND, LEASE, TOPIC,
    record::{self, Dead, Fate, How, Id, Log, QUIET_TASKS, Record},
};
use crate::threads;

/// What can be chosen about a host.
#[derive(Debug, Clone, clap::Args)]
pub struct Host {
    /// Its number
    #[arg(long)]
    pub host: usize,
    /// Which of the processes that have its name it is
    #[arg(long)]
    pub life: u32,
    /// The round that it begins in
    #[arg(long)]
    pub round: u32,
    /// What is sent is drawn from this
    #[arg(long)]
    pub seed: u64,
    /// Where the broker is
    #[arg(long)]
    pub server: String,
    /// Where its logs are
    #[arg(long)]
    pub folder: PathBuf,
    /// Do this to a message
    #[arg(long)]
    pub tamper: Option<Tamper>,
}

/// What is done to a message on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tamper {
    /// Accept it, and do not handle it
    Lose,
    /// Handle it twice
    Repeat,
}

impl Tamper {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Lose => "lose",
            Self::Repeat => "repeat",
        }
    }
}

/// Messages from each task to each name when nothing is hurt.
const QUIET_MESSAGES: usize = 30;

/// Nothing has happened in the lattice for so long when it is well. Longer than a host needs to see that its session is over.
const CALM: Duration = Duration::from_secs(2);

/// Everything comes to an end by then.
const LONG: Duration = Duration::from_secs(30);

pub(super) fn echo(host: usize) -> String {
    format!("echo-{host}")
}

fn counter(host: usize) -> String {
    format!("counter-{host}")
}

fn key(number: usize) -> String {
    format!("{KIND}/{number}")
}

/// Tasks of each host that send to keys.
const KEY_TASKS: usize = 2;

/// Short, so that actors leave the memory and come back.
const IDLE: Duration = Duration::from_secs(1);

struct World {
    options: Host,
    log: Log,
    round: AtomicU32,
    numbers: AtomicU64,
    /// Whether tasks send, and how many have a message under way.
    load: watch::Sender<bool>,
    busy: AtomicUsize,
    tenures: AtomicU32,
    changed: Mutex<Instant>,
    tampered: AtomicBool,
}

/// Runs a host until its standard input ends.
///
/// # Errors
///
/// When it could not be set up.
pub fn run(options: Host) -> Result<()> {
    let runtime = threads::two_workers()?;
    let served = runtime.block_on(serve(options));
    // What waits for the broker has nothing more to say.
    runtime.shutdown_background();
    served
}

async fn serve(options: Host) -> Result<()> {
    let log = Log::open(&record::path(&options.folder, options.host, options.life, options.round))?;
    let world = Arc::new(World {
        log,
        round: options.round.into(),
        numbers: AtomicU64::default(),
        load: watch::Sender::new(true),
        busy: AtomicUsize::default(),
        tenures: AtomicU32::default(),
        changed: Mutex::new(Instant::now()),
        tampered: AtomicBool::default(),
        options,
    });
    let (commands, mut told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if commands.send(line).is_err() {
                return;
            }
        }
    });
    let here = tokio::select! {
        here = Here::start(&world) => here?,
        // Whoever has started it is gone: nothing is said before it has joined.
        _ = told.recv() => return Ok(()),
    };
    say("joined")?;
    while let Some(command) = told.recv().await {
        match command.split_once(' ') {
            Some(("round", round)) => {
                let round = round.parse()?;
                world.round.store(round, Relaxed);
                let Host { folder, host, life, .. } = &world.options;
                world.log.turn_over(&record::path(folder, *host, *life, round))?;
                say("ready")?;
            }
            _ if command == "load" => {
                world.load.send_replace(true);
                say("loaded")?;
            }
            _ if command == "drain" => {
                world.load.send_replace(false);
                let until = Instant::now() + LONG;
                // What has no outcome by then is found.
                while world.busy.load(Relaxed) > 0 && Instant::now() < until {
                    sleep(Duration::from_millis(5)).await;
                }
                say("drained")?;
            }
            _ if command == "recover" => {
                here.recover().await;
                say("well")?;
            }
            _ if command == "calm" => {
                here.calm().await;
                say("over")?;
            }
            _ if command == "read" => {
                let evicted = here.system.dead_letters().evicted();
                anyhow::ensure!(evicted == 0, "{evicted} dead letters were evicted");
                threads::begin(here.system.engine(), threads::BLOCKING).await;
                match process::read() {
                    None => say("reading")?,
                    Some(process::Reading { resident, peak, virtual_, mappings, descriptors, threads }) => {
                        say(&format!("reading {resident} {peak} {virtual_} {mappings} {descriptors} {threads}"))?
                    }
                }
            }
            _ => anyhow::bail!("{command:?} is no command"),
        }
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).context("nobody listens")
}

/// What this host has.
struct Here {
    world: Arc<World>,
    system: ActorSystem,
    lattice: Lattice,
    echo: ActorRef,
    asker: ActorRef,
    _alone: StandBy,
}

impl Here {
    async fn start(world: &Arc<World>) -> Result<Arc<Self>> {
        let Host { host, seed, server, .. } = &world.options;
        let pool = Some(PoolConfig::for_components(2 * KEYS as u32));
        let engine = WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process())?;
        let all = usize::MAX;
        let config = SystemConfig {
            dead_letters: DeadLetterLimits { letters: all, letters_per_actor: all, bytes: all, bytes_per_actor: all },
            seed: Some(*seed),
            ..SystemConfig::default()
        };
        let system = ActorSystem::new(engine.clone(), config);
        let echo = Echo { world: Arc::clone(world), by: echo(*host), tenure: 0, fence: None };
        let echo = system.spawn_native(NativeSpec::new(echo.by.parse()?, move || echo.clone())).await?;
        let limits =
            ResourceLimits { cpu_time: Duration::from_secs(10), ..ResourceLimits::with_memory(ByteSize::mib(8)) };
        let spec = async |name: &str, code: &'static [u8], asks: &str| -> Result<ActorSpec<()>> {
            let component = engine.load(wat::parse_bytes(code)?.into_owned(), Profile::Plain).await?;
            let capabilities = Capabilities { request: vec![asks.parse()?], ..Capabilities::default() };
            let spec = ActorSpec::new(name.parse()?, SandboxSpec::new(system.link(&component)?, limits.clone())?);
            Ok(spec.with_capabilities(capabilities))
        };
        let guest = async |name: &str, code: &'static [u8], config: Vec<(String, String)>| -> Result<ActorRef> {
            Ok(system.spawn(spec(name, code, "echo-*").await?.with_config(config)).await?)
        };
        let counter = guest(&counter(*host), fixtures::COUNTER, Vec::new()).await?;
        let next = super::host::echo((host + 1) % HOSTS);
        let asker = guest(&format!("asker-{host}"), fixtures::ASKER, vec![("ask".to_owned(), next)]).await?;
        let witness = Arc::clone(world);
        let witness = move || Witness(Arc::clone(&witness));
        system.spawn_native(NativeSpec::new("witness".parse()?, witness)).await?;
        let options = KeyedOptions { save: SaveWhen::EachMessage, idle: IDLE, ..KeyedOptions::default() };
        let kind = KeyedSpec::new(spec(KIND, fixtures::WITNESSED.as_bytes(), "witness").await?).with_options(options);

        let config = LatticeConfig::new("stress".parse()?, format!("h{host}").parse()?);
        let mut config = config.with_servers([server.clone()]).with_lease(LEASE).with_heartbeat(HEARTBEAT);
        config.grace = GRACE;
        let lattice = loop {
            match Lattice::join(&system, config.clone()).await {
                Ok(lattice) => break lattice,
                // The broker is away, or the process before has a session still.
                Err(error) => {
                    world.log.note(&format!("not joined: {error:?}"));
                    sleep(Duration::from_millis(100)).await;
                }
            }
        };
        world.watch(&lattice);
        for actor in [&echo, &counter] {
            while let Err(error) = lattice.export(actor).await {
                world.log.note(&format!("{} is not exported: {error:?}", actor.id()));
                sleep(Duration::from_millis(100)).await;
            }
        }
        while let Err(error) = lattice.take_topics(&TOPIC.parse()?).await {
            world.log.note(&format!("topics are not taken: {error:?}"));
            sleep(Duration::from_millis(100)).await;
        }
        loop {
            let exported = match lattice.store(BucketConfig::new("states")).await {
                Ok(store) => lattice.export_kind(kind.clone(), Arc::new(store)).await.map_err(anyhow::Error::from),
                Err(error) => Err(error.into()),
            };
            let Err(error) = exported else { break };
            world.log.note(&format!("the kind is not exported: {error:?}"));
            sleep(Duration::from_millis(100)).await;
        }
        world.watch_slots(&lattice);
        let alone = stand_by(world, &system, &lattice);
        let here = Arc::new(Self { world: Arc::clone(world), system, lattice, echo, asker, _alone: alone? });
        here.listen()?;
        here.bury();
        here.load();
        Ok(here)
    }

    /// Writes down what is heard of the topic.
    fn listen(&self) -> Result<()> {
        let mut heard = self.system.subscribe(&TOPIC.parse()?, 1 << 16, WhenFull::Error);
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            while let Some(message) = heard.recv().await {
                if let Some(id) = id_of(&message) {
                    world.log.write(id, &Record::Heard);
                }
            }
        });
        Ok(())
    }

    /// Writes down which messages are dead letters, all the time.
    fn bury(self: &Arc<Self>) {
        let here = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                here.bury_all();
                sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn bury_all(&self) {
        for letter in self.system.dead_letters().drain() {
            let Some(id) = id_of(&letter.message) else { continue };
            let dead = match letter.reason {
                DeadReason::Undeliverable { .. } | DeadReason::NotSent { .. } => Dead::Refused,
                DeadReason::Lost => Dead::Lost,
                _ => Dead::Here,
            };
            self.world.log.write(id, &Record::Dead(dead));
        }
    }

    /// The names that it sends to.
    fn names(&self) -> Vec<(String, bool)> {
        let others = (0..HOSTS).filter(|host| *host != self.world.options.host);
        let of = |host| [(echo(host), false), (counter(host), true)];
        others.flat_map(of).chain([(ALONE.to_owned(), false)]).collect()
    }

    /// Tasks that send while there is load.
    fn load(self: &Arc<Self>) {
        let mut random = fastrand::Rng::with_seed(self.world.options.seed);
        let mut tasks: Vec<(How, String)> = vec![(How::Guest, ALONE.to_owned()), (How::Publish, TOPIC.to_owned())];
        tasks.extend(vec![(How::Key, KIND.to_owned()); KEY_TASKS]);
        for (name, counts) in self.names() {
            let hows = if counts { &[How::Count][..] } else { &[How::Ask, How::Timed, How::Tell, How::Send] };
            tasks.extend(hows.iter().map(|how| (*how, name.clone())));
            if !counts {
                // In which the order of what is told, sent and asked is seen.
                tasks.push((How::Ask, name));
            }
        }
        for (task, (how, name)) in tasks.into_iter().enumerate() {
            let mixes = how == How::Ask && task > 0 && random.bool();
            let (mut sender, mut load) = (self.sender(task as u32, &name), self.world.load.subscribe());
            let mut random = random.fork();
            let here = Arc::clone(self);
            tokio::spawn(async move {
                while load.wait_for(|load| *load).await.is_ok() {
                    // Counted before it is looked again, so that no message begins when nobody is busy.
                    here.world.busy.fetch_add(1, Relaxed);
                    if *load.borrow() {
                        let burst = if random.u8(0..64) == 0 { 50 } else { 1 };
                        for _ in 0..burst {
                            if how == How::Key {
                                sender = here.sender(task as u32, &key(random.usize(..KEYS)));
                            }
                            let how = if mixes { [How::Ask, How::Tell, How::Send][random.usize(0..3)] } else { how };
                            sender.send(how, &mut random).await;
                        }
                    }
                    here.world.busy.fetch_sub(1, Relaxed);
                    sleep(Duration::from_micros(random.u64(0..20_000))).await;
                }
            });
        }
    }

    fn sender(self: &Arc<Self>, task: u32, name: &str) -> Sender {
        let id: ComponentId = name.parse().expect("it is a name");
        let to = if name == TOPIC { None } else { Some(self.lattice.recipient(id)) };
        Sender { here: Arc::clone(self), task, name: name.to_owned(), to }
    }

    /// Waits until each name answers, a publication goes to all, and nothing has happened in the lattice for a while. The parent waits
    /// no longer than it likes.
    async fn recover(&self) {
        let topic = Topic::new(TOPIC).expect("it is a topic");
        let names = self.names().into_iter().map(|(name, _)| (name, "get"));
        // A key that is asked with nothing does not count it.
        let names = names.chain((0..KEYS).map(|number| (key(number), "")));
        let recipients = names.map(|(name, text)| {
            let name = name.parse().expect("it is a name");
            (self.lattice.recipient(name), text)
        });
        let recipients: Vec<(Recipient, &str)> = recipients.collect();
        loop {
            let mut is_well = self.world.changed.lock().elapsed() > CALM;
            for (recipient, text) in &recipients {
                let asked = recipient.ask_within(Duration::from_secs(2), *text).await;
                if let Err(error) = &asked {
                    self.world.log.note(&format!("{} does not answer: {error:?}", recipient.id()));
                    is_well = false;
                    // Of many that are away for the same reason each would be waited for.
                    break;
                }
            }
            let hosts = self.system.publish(&topic, "anybody?").await.hosts;
            if is_well && hosts == HOSTS - 1 {
                return;
            }
            self.world.log.note(&format!("not well: {:?} {hosts}", self.world.changed.lock().elapsed()));
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends when nothing is hurt, and waits until all of it has come to an end.
    async fn calm(self: &Arc<Self>) {
        let mut random = fastrand::Rng::with_seed(self.world.options.seed);
        let names = self.names().into_iter().chain([(TOPIC.to_owned(), false), (KIND.to_owned(), true)]);
        let sending = names.enumerate().map(|(task, (name, counts))| {
            let (here, task) = (Arc::clone(self), QUIET_TASKS + task as u32);
            let (mut sender, mut random) = (self.sender(task, &name), random.fork());
            tokio::spawn(async move {
                for n in 0..if name == KIND { KEYS } else { QUIET_MESSAGES } {
                    if name == KIND {
                        sender = here.sender(task, &key(n));
                    }
                    // The last is asked, and comes after the others.
                    let how = match n % 3 {
                        _ if name == TOPIC => How::Publish,
                        _ if name == KIND => How::Key,
                        _ if counts => How::Count,
                        0 => How::Tell,
                        1 => How::Send,
                        _ => How::Ask,
                    };
                    sender.send(how, &mut random).await;
                }
            })
        });
        let sending: Vec<_> = sending.collect();
        let all = async {
            for sent in sending {
                sent.await.expect("nobody panics");
            }
        };
        // What has no outcome by then is found.
        _ = tokio::time::timeout(LONG, all).await;
        // Publications are on their way, and what is sent again in lanes.
        sleep(Duration::from_secs(1)).await;
        self.bury_all();
    }
}

impl World {
    /// Notes what happens in the lattice.
    fn watch(self: &Arc<Self>, lattice: &Lattice) {
        let (world, mut events) = (Arc::clone(self), lattice.events());
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                world.log.note(&format!("{event:?}"));
                if !matches!(event, LatticeEvent::PublicationsDropped) {
                    *world.changed.lock() = Instant::now();
                }
            }
        });
    }

    /// Notes when slots of the kind come and go.
    fn watch_slots(self: &Arc<Self>, lattice: &Lattice) {
        let (world, lattice) = (Arc::clone(self), lattice.clone());
        tokio::spawn(async move {
            let kind: ComponentId = KIND.parse().expect("it is a name");
            let mut before = 0;
            loop {
                let slots = lattice.slots(&kind);
                if slots != before {
                    world.log.note(&format!("{slots} slots, after {before}"));
                    *world.changed.lock() = Instant::now();
                }
                before = slots;
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
}

/// Who sends one message after the other to one name.
struct Sender {
    here: Arc<Here>,
    task: u32,
    name: String,
    /// `None` if it publishes.
    to: Option<Recipient>,
}

impl Sender {
    async fn send(&mut self, how: How, random: &mut fastrand::Rng) {
        let Host { host, life, .. } = self.here.world.options;
        let round = self.here.world.round.load(Relaxed);
        let id = Id { round, host, life, task: self.task, number: self.here.world.numbers.fetch_add(1, Relaxed) };
        let log = &self.here.world.log;
        let to = if how == How::Guest { echo((host + 1) % HOSTS) } else { self.name.clone() };
        log.write(id, &Record::Sent { how, to });
        let payload = if how == How::Count { "add 1".to_owned() } else { id.to_string() };
        let message = MessageEnvelope::new(payload).with_sender(Some(self.here.echo.address().clone()));
        let (fate, count) = match (how, &self.to) {
            (How::Publish, _) | (_, None) => {
                let topic = Topic::new(TOPIC).expect("it is a topic");
                _ = self.here.system.publish(&topic, message).await;
                (Fate::Queued, 0)
            }
            (How::Ask, Some(to)) => answered(id, to.ask(message).await),
            (How::Timed, Some(to)) => {
                answered(id, to.ask_within(Duration::from_millis(random.u64(1..500)), message).await)
            }
            (How::Tell, Some(to)) => match to.tell(message).await {
                Ok(()) => (Fate::Accepted, 0),
                Err(TellError::Lost { .. }) => (Fate::Lost, 0),
                Err(_) => (Fate::Refused, 0),
            },
            (How::Send, Some(to)) => match to.try_tell(message) {
                Ok(()) => (Fate::Queued, 0),
                Err(_) => (Fate::Refused, 0),
            },
            (How::Guest, Some(_)) => {
                let asked = self.here.asker.ask(message).await;
                answered(id, asked.map(|answer| answer.slice(answer.len().min("asker-0 heard: ".len())..)))
            }
            (How::Count, Some(to)) => match to.ask(message).await {
                Ok(answer) => match std::str::from_utf8(&answer).ok().and_then(|count| count.parse().ok()) {
                    Some(count) => (Fate::Answered, count),
                    None => (Fate::Wrong, 0),
                },
                other => answered(id, other),
            },
            (How::Key, Some(to)) => match to.ask(message).await {
                Ok(answer) => match <[u8; 8]>::try_from(&answer[..]) {
                    Ok(count) => (Fate::Answered, u64::from_le_bytes(count)),
                    Err(_) => (Fate::Wrong, 0),
                },
                other => answered(id, other),
            },
        };
        log.write(id, &Record::Outcome(fate, count));
    }
}

fn answered(id: Id, asked: Result<Bytes, AskError>) -> (Fate, u64) {
    let fate = match asked {
        Ok(answer) if answer == id.to_string() => Fate::Answered,
        Ok(_) => Fate::Wrong,
        Err(AskError::NotSent(_) | AskError::NotActivated(_)) => Fate::Refused,
        Err(AskError::Lost { .. }) => Fate::Lost,
        Err(AskError::Deadline) => Fate::Late,
        Err(_) => Fate::Unknown,
    };
    (fate, 0)
}

fn id_of(message: &MessageEnvelope) -> Option<Id> {
    std::str::from_utf8(message.payload()).ok()?.parse().ok()
}

/// Writes down what it handles, and gives it back.
#[derive(Clone)]
struct Echo {
    world: Arc<World>,
    by: String,
    tenure: u32,
    fence: Option<Arc<Watched>>,
}

impl NativeActor for Echo {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let answer = Ok(Some(message.payload().clone()));
        // What asks whether it is well is in no book.
        let Some(id) = id_of(message) else { return answer };
        let tamper = self.world.options.tamper.filter(|_| id.is_quiet() && !self.world.tampered.swap(true, Relaxed));
        if tamper.is_some() {
            say(&format!("tampered {id}")).map_err(|error| error.to_string())?;
        }
        if tamper == Some(Tamper::Lose) {
            return answer;
        }
        for _ in 0..if tamper == Some(Tamper::Repeat) { 2 } else { 1 } {
            // The process may have been stopped since the fence was looked at, and the message is in hand from there on.
            let at =
                self.fence.as_ref().map_or_else(record::now, |fence| Duration::from_nanos(fence.held.load(Relaxed)));
            self.world.log.write_at(at, id, &Record::Begun { by: self.by.clone(), tenure: self.tenure });
            if id.number.is_multiple_of(64) {
                sleep(Duration::from_millis(id.number % 20)).await;
            }
            self.world.log.write(id, &Record::Ended);
        }
        answer
    }
}

/// Writes down what actors of the kind have in hand, and which of those it is that were in memory here under the same key.
struct Witness(Arc<World>);

impl NativeActor for Witness {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        let (Some(id), Some(by)) = (id_of(message), message.sender()) else { return Err("it is no message".into()) };
        let tenure = u32::try_from(by.generation().get()).map_err(|error| error.to_string())?;
        self.0.log.write(id, &Record::Begun { by: by.id().to_string(), tenure });
        self.0.log.write(id, &Record::Ended);
        Ok(Some(Bytes::new()))
    }
}

/// Notes when the fence was looked at last, and held.
#[derive(Debug)]
struct Watched {
    fence: Arc<dyn Fence>,
    held: AtomicU64,
}

impl Fence for Watched {
    fn holds(&self) -> bool {
        let at = u64::try_from(record::now().as_nanos()).unwrap_or(u64::MAX);
        let holds = self.fence.holds();
        if holds {
            self.held.store(at, Relaxed);
        }
        holds
    }
}

fn stand_by(world: &Arc<World>, system: &ActorSystem, lattice: &Lattice) -> Result<StandBy> {
    let (world, system) = (Arc::clone(world), system.clone());
    Ok(lattice.stand_by(ALONE.parse()?, move |name, fence| {
        let tenure = world.tenures.fetch_add(1, Relaxed) + 1;
        world.log.note(&format!("tenure {tenure}"));
        let fence = Arc::new(Watched { fence, held: AtomicU64::default() });
        let echo = Echo { world: Arc::clone(&world), by: ALONE.to_owned(), tenure, fence: Some(Arc::clone(&fence)) };
        let system = system.clone();
        async move { system.spawn_native(NativeSpec::new(name, move || echo.clone()).with_fence(fence)).await }
    }))
}
