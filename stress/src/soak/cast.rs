//! Who takes part: the same places in each block of actors, and what each is spawned from. Nothing here is by chance, so
//! that whoever is spawned again is as before.

use std::{sync::Arc, time::Duration};

use airssys_wasm_actor::{
    ActorSpec, ActorState, ActorSystem, Backoff, Capabilities, Intensity, NativeSpec, Restart, RestartPolicy, Strategy,
    SupervisorPolicy, SupervisorSpec,
};
use airssys_wasm_engine::{EngineConfig, LoadedComponent, PoolConfig, Profile, WasmEngine};
use airssys_wasm_fixtures as fixtures;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, MemoryBudget, ResourceLimits};
use airssys_wasm_registry::ComponentId;
use anyhow::Result;

use super::{ledger::Kind, worker::Worker, world::World};

/// Actors of a block.
pub(crate) const BLOCK: usize = 25;

/// Guests among them.
pub(crate) const GUESTS: usize = 8;

/// The one on whom others depend.
const STEADY: usize = 19;

/// Supervisors of a block that have none above them.
pub(crate) const TREES: usize = 2;

/// Topics of a kind, over which its subscribers are spread.
pub(crate) const TOPICS: usize = 4;

pub(crate) fn kind_of(receiver: usize) -> Kind {
    match receiver % BLOCK {
        0..8 => Kind::Native,
        8..17 => Kind::Supervised,
        17 => Kind::Subject,
        18 => Kind::Counter,
        STEADY => Kind::Steady,
        20 => Kind::Relay,
        21 => Kind::Echo,
        22 => Kind::Listener,
        23 => Kind::Teller,
        _ => Kind::Miser,
    }
}

/// Which of a block's natives send messages themselves: `None`, or which of the block's senders this one is.
pub(crate) fn sends(receiver: usize) -> Option<usize> {
    let place = receiver % BLOCK;
    (kind_of(receiver).is_native() && place.is_multiple_of(4)).then_some(place / 4)
}

/// Senders among the natives of a block.
pub(crate) const SENDING: usize = 5;

/// How many times a message may crash a receiver.
pub(crate) fn redelivery(receiver: usize) -> Option<u32> {
    (receiver % 3 == 1).then_some(3)
}

pub(crate) fn id(name: impl AsRef<str>) -> ComponentId {
    name.as_ref().parse().expect("a valid name")
}

pub(crate) fn topic(kind: Kind, which: usize) -> String {
    match kind {
        Kind::Native => format!("native.{}", which % TOPICS),
        Kind::Listener => format!("guest.{}", which % TOPICS),
        _ => format!("host.{}", which % TOPICS),
    }
}

/// The engine and the guests' code, for all rounds.
pub(crate) struct Code {
    pub(crate) engine: WasmEngine,
    actor: LoadedComponent,
    counter: [LoadedComponent; 2],
    echo: LoadedComponent,
    listener: LoadedComponent,
    teller: LoadedComponent,
}

impl Code {
    pub(crate) fn load() -> Result<Self> {
        let engine = WasmEngine::new(EngineConfig {
            pool: Some(PoolConfig::for_components(1_000)),
            // What an overflow has touched of a stack stays resident in the pool. Of little, that is soon all there is.
            max_wasm_stack: 64 << 10,
            ..EngineConfig::default().compile_in_process()
        })?;
        let load = |bytes| engine.load_blocking(bytes, Profile::Plain);
        Ok(Self {
            actor: load(fixtures::ACTOR)?,
            counter: [load(fixtures::COUNTER)?, load(fixtures::COUNTER_V2)?],
            echo: load(fixtures::ECHO_ACTOR)?,
            listener: load(fixtures::LISTENER)?,
            teller: load(fixtures::TELLER)?,
            engine,
        })
    }
}

type Spec = SandboxSpec<ActorState<()>>;

/// What the guests of one system are made from.
pub(crate) struct Sandboxes {
    subject: Spec,
    relay: Spec,
    miser: Spec,
    counter: [Spec; 2],
    steady: [Spec; 2],
    echo: Spec,
    listener: Spec,
    teller: Spec,
}

impl Sandboxes {
    pub(crate) fn link(system: &ActorSystem, code: &Code, blocks: usize) -> Result<Self> {
        let limits = ResourceLimits {
            cpu_time: Duration::from_millis(100),
            message_size: ByteSize::kib(64),
            ..ResourceLimits::with_memory(ByteSize::mib(8))
        };
        // Whoever is left alone does not crash because the machine is busy.
        let ample =
            ResourceLimits { cpu_time: Duration::from_secs(600), deadline: Duration::from_secs(600), ..limits.clone() };
        let scant = ResourceLimits { cpu_time: Duration::from_millis(5), ..limits.clone() };
        let spec = |component: &LoadedComponent, limits: &ResourceLimits| -> Result<Spec> {
            Ok(SandboxSpec::new(system.link(component)?, limits.clone())?)
        };
        let [first, second] = &code.counter;
        // For all of them together, and less than what they would take.
        let budget = MemoryBudget::new(ByteSize::mib(3 * blocks as u64));
        Ok(Self {
            subject: spec(&code.actor, &limits)?,
            relay: spec(&code.actor, &limits)?,
            miser: spec(&code.actor, &scant)?.with_budget(budget),
            counter: [spec(first, &limits)?, spec(second, &limits)?],
            steady: [spec(first, &ample)?, spec(second, &ample)?],
            echo: spec(&code.echo, &limits)?,
            listener: spec(&code.listener, &limits)?,
            teller: spec(&code.teller, &ample)?,
        })
    }

    fn of(&self, kind: Kind) -> &Spec {
        match kind {
            Kind::Counter => &self.counter[0],
            Kind::Steady => &self.steady[0],
            Kind::Relay => &self.relay,
            Kind::Echo => &self.echo,
            Kind::Listener => &self.listener,
            Kind::Teller => &self.teller,
            Kind::Miser => &self.miser,
            _ => &self.subject,
        }
    }

    /// What a counter can be upgraded to.
    pub(crate) fn version(&self, kind: Kind, which: bool) -> Spec {
        let versions = if kind == Kind::Steady { &self.steady } else { &self.counter };
        versions[usize::from(which)].clone()
    }
}

/// Some are given up soon, and most never.
fn intensity(n: usize) -> Intensity {
    let restarts = if n.is_multiple_of(8) { 5 } else { 100_000 };
    Intensity { restarts, within: Duration::from_secs(1) }
}

fn backoff(n: usize) -> Backoff {
    let [first, longest] = [1, 20].map(Duration::from_millis);
    if n.is_multiple_of(2) { Backoff::NONE } else { Backoff { first, longest, ..Backoff::default() } }
}

fn mailbox(n: usize) -> usize {
    [1, 4_096, 7, 1_024, 64, 1_024, 4_096][n % 7]
}

pub(crate) fn native(world: &Arc<World>, receiver: usize) -> NativeSpec<Worker> {
    let world = Arc::clone(world);
    let mut spec = NativeSpec::new(id(format!("r{receiver}")), move || Worker::new(&world, receiver));
    spec = spec.with_mailbox(mailbox(receiver));
    // Room for two or three of the large messages.
    spec = spec.with_mailbox_bytes(if receiver.is_multiple_of(5) { ByteSize::kib(20) } else { ByteSize::mib(16) });
    spec = spec.with_redelivery(redelivery(receiver));
    spec = spec.with_restart(RestartPolicy {
        intensity: intensity(receiver),
        backoff: backoff(receiver),
        restart: if receiver % BLOCK == 10 { Restart::Temporary } else { Restart::Permanent },
        ..RestartPolicy::default()
    });
    if kind_of(receiver) == Kind::Native {
        let subscribed = (receiver % BLOCK).is_multiple_of(2).then(|| topic(Kind::Native, receiver / 2));
        spec = spec.with_subscriptions(subscribed.iter().map(|topic| topic.parse().expect("a topic is a pattern")));
        if receiver % BLOCK < 3 {
            spec = spec.with_dependencies(vec![id(format!("r{}", receiver / BLOCK * BLOCK + STEADY))]);
        }
    }
    spec
}

pub(crate) fn guest(world: &World, receiver: usize) -> ActorSpec<()> {
    let kind = kind_of(receiver);
    let sandbox = if subscribes(receiver) { &world.sandboxes.relay } else { world.sandboxes.of(kind) };
    let mut spec = ActorSpec::new(id(format!("r{receiver}")), sandbox.clone());
    spec = spec.with_mailbox(mailbox(receiver / BLOCK + receiver).max(4));
    spec = spec.with_redelivery(redelivery(receiver));
    spec = spec.with_capabilities(Capabilities::all());
    let block = receiver / BLOCK;
    spec = spec.with_restart(RestartPolicy {
        intensity: intensity(block + 1),
        // One that cannot start for want of memory tries again at its leisure.
        backoff: backoff(if kind == Kind::Miser { 1 } else { block }),
        ..RestartPolicy::default()
    });
    let topic = if kind == Kind::Teller { topic(audience(receiver), block) } else { topic(Kind::Listener, block) };
    let key = if subscribes(receiver) { "subscribe" } else { "topic" };
    spec.with_config([(key, topic)])
}

/// Whether it is a listener that subscribes to what it is told to.
pub(crate) fn subscribes(receiver: usize) -> bool {
    kind_of(receiver) == Kind::Listener && receiver / BLOCK % 2 == 1
}

/// To whom a teller's publications go.
pub(crate) fn audience(teller: usize) -> Kind {
    if (teller / BLOCK).is_multiple_of(2) { Kind::Native } else { Kind::Listener }
}

/// One of the trees of a block: a supervisor of four, or one with two others below it.
pub(crate) fn tree(world: &Arc<World>, tree: usize) -> SupervisorSpec<()> {
    let (block, which) = (tree / TREES, tree % TREES);
    let native = |place| native(world, block * BLOCK + place);
    let guest = |place| guest(world, block * BLOCK + place);
    let supervisor = |n: usize| {
        let policy = SupervisorPolicy {
            strategy: [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne][(block + n) % 3],
            intensity: intensity(block + 3 * n),
            backoff: backoff(block + n),
            // Shorter than some handlers take.
            shutdown: Duration::from_millis(20),
            ..SupervisorPolicy::default()
        };
        SupervisorSpec::new(id(format!("s{tree}.{n}")), policy)
    };
    if which == 0 {
        return supervisor(0).native(native(8)).native(native(9)).actor(guest(17)).native(native(10));
    }
    supervisor(1)
        .native(native(11))
        .supervisor(supervisor(2).native(native(12)).native(native(13)).actor(guest(18)))
        .native(native(14))
        .supervisor(supervisor(3).native(native(15)).native(native(16)))
}
