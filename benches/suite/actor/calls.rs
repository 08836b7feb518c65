//! Calls of exports: by the host, and by guests whose import leads to another.

use std::{sync::Arc, time::Instant};

use airssys_wasm_actor::{ActorExport, ActorRef, ActorSystem, Argument, ContractKind, Links, SystemConfig};
use airssys_wasm_engine::Profile;
use airssys_wasm_fixtures::{CALLER, RUST};
use airssys_wasm_harness::{Measure, Suite};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_twins::{
    actors::ECHO,
    bare::engine,
    work::{Work, Workers, as_task, payload},
};
use bytes::Bytes;
use tokio::runtime::Runtime;
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, Lower};

use super::ours::{Ours, id, sandbox, spec};
use crate::guests;

pub(super) fn calls(suite: &mut Suite) {
    const ASK: &str = "actor/call/ask/64b";
    suite
        .bench("actor/call/typed/64b", || typed(64))
        .and(ASK, || Work::Asks.measure(Workers::One, Ours::guest(&ECHO), 64))
        .ratio("actor/call/typed/64b", ASK, 1.1)
        // What a function of a linked interface takes: by values, beside an ask of the host.
        .and("actor/link/record", || linked("shift", None))
        .ratio("actor/link/record", ASK, 2.2)
        // What a guest takes to ask another by a message.
        .and("actor/link/request_64b", || linked("request", Some(64)))
        .ratio("actor/link/record", "actor/link/request_64b", None);
    suite
        .bench("actor/link/64kb", || linked("echo", Some(64 << 10)))
        .and("actor/link/request_64kb", || linked("request", Some(64 << 10)))
        .ratio("actor/link/64kb", "actor/link/request_64kb", 1.3);
}

/// `airssys:actor/types.message`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Message {
    payload: Bytes,
    sender: Option<Arc<str>>,
    topic: Option<Arc<str>>,
    #[component(name = "content-type")]
    content_type: Option<Arc<str>>,
    #[component(name = "wants-answer")]
    wants_answer: bool,
}

impl Argument for Message {
    fn size(&self) -> usize {
        self.payload.len()
    }
}

type Handled = Result<Option<Bytes>, String>;

/// The handler of a guest, called by its export with the same message that an ask makes of its payload.
fn typed(bytes: usize) -> Measure {
    let runtime = Workers::One.runtime();
    let payload = payload(bytes);
    let Ours { system, actor } = runtime.block_on(Ours::guest(&ECHO));
    let handle: ActorExport<(Message,), (Handled,)> =
        system.export(&actor, "airssys:actor/handler@0.1.0#handle").unwrap();
    Box::new(move |iterations| {
        let _keep = &system;
        let (handle, payload) = (handle.clone(), payload.clone());
        as_task(&runtime, async move {
            let started = Instant::now();
            for _ in 0..iterations {
                let payload = payload.clone();
                let message = Message { payload, sender: None, topic: None, content_type: None, wants_answer: true };
                let (answer,) = handle.call((message,)).await.unwrap();
                assert_eq!(answer.unwrap().unwrap().len(), bytes);
            }
            started.elapsed()
        })
    })
}

/// That many times a guest calls another, of which the host hears at the end.
const TIMES: u64 = 100;

/// A guest that calls another by its import, or asks it, over and over.
fn linked(export: &'static str, bytes: Option<u32>) -> Measure {
    let runtime = Workers::One.runtime();
    let ours = runtime.block_on(async {
        let system = host_of_guests();
        spawn_api(&system).await;
        system.spawn(spec("echo", &sandbox(&ECHO, &system, guests::limits()))).await.unwrap();
        Ours { actor: spawn_caller(&system).await, system }
    });
    match bytes {
        None => calling::<(u32,), (i32,)>(runtime, ours, export, |times| (times,)),
        Some(bytes) => calling::<(u32, u32), ()>(runtime, ours, export, move |times| (times, bytes)),
    }
}

/// The interface that the guest calls.
pub(crate) const API: &str = "fixture:guest/api@1.0.0";

/// A system with what these guests import of their host.
pub(crate) fn host_of_guests() -> ActorSystem {
    ActorSystem::with_host(
        engine().clone(),
        SystemConfig::default(),
        |_| (),
        |linker| {
            let mut host = linker.instance("fixture:guest/host@1.0.0")?;
            host.func_wrap("wait", |_, (): ()| Ok(()))?;
            host.func_wrap("log", |_, (_,): (String,)| Ok(()))
        },
    )
}

/// The actor `api`, which is called.
pub(crate) async fn spawn_api(system: &ActorSystem) -> ActorRef {
    spawn_linked(system, "api", RUST, Links::default()).await
}

/// An actor that calls `api`, wherever that is: `shift(times)` with a record.
pub(crate) async fn spawn_caller(system: &ActorSystem) -> ActorRef {
    spawn_linked(system, "caller", CALLER, Links::default().with(API, id("api"))).await
}

async fn spawn_linked(system: &ActorSystem, name: &str, bytes: &[u8], links: Links) -> ActorRef {
    let component = engine().load_blocking(bytes, Profile::Plain).unwrap();
    let linked = SandboxSpec::new(system.link_with(&component, &links).unwrap(), guests::limits()).unwrap();
    system.spawn(spec(name, &linked).with_contract(ContractKind::Exports).with_links(links)).await.unwrap()
}

pub(crate) fn calling<P, R>(runtime: Runtime, ours: Ours, export: &str, params: impl Fn(u32) -> P + 'static) -> Measure
where
    P: Argument + ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    let Ours { system, actor } = ours;
    let export: ActorExport<P, R> = system.export(&actor, export).unwrap();
    Box::new(move |iterations| {
        let _keep = &system;
        let calls: Vec<P> =
            (0..iterations.div_ceil(TIMES)).map(|n| params((iterations - n * TIMES).min(TIMES) as u32)).collect();
        let export = export.clone();
        as_task(&runtime, async move {
            let started = Instant::now();
            for params in calls {
                export.call(params).await.unwrap();
            }
            started.elapsed()
        })
    })
}
