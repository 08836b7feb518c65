//! Calls without a fiber, on the stack of the worker: which are, and what becomes of those that compute for longer than two
//! ticks.

use std::{
    future::poll_fn,
    hint::black_box,
    mem::MaybeUninit,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, ThreadId},
    time::Duration,
};

use airssys_wasm_engine::{
    EngineConfig, Linker, Profile, WasmEngine,
    wasmtime::{Func, StoreContextMut},
};
use airssys_wasm_isolation::{Crash, CrashKind, HostState, Sandbox, SandboxSpec};
use airssys_wasm_limits::{ByteSize, CancellationToken, ResourceLimits};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc::unbounded_channel,
};

use crate::time::Neighbour;

/// Turns to the host `steps` times, or once on each level of `down`. An epoch that ends in a step is noticed after the next one
/// at the latest.
const GUEST: &str = r#"
(component
  (import "step" (func $step))
  (core func $step (canon lower (func $step)))
  (core module $m
    (import "host" "step" (func $step))
    (func (export "steps") (param $n i32)
      (loop $again
        (call $step)
        (local.set $n (i32.sub (local.get $n) (i32.const 1)))
        (br_if $again (local.get $n))))
    (func (export "spin") (loop $again (br $again)))
    (func $deep (export "deep") (call $deep) (call $deep))
    (func $down (export "down") (param $n i32)
      (call $step)
      (if (local.get $n) (then (call $down (i32.sub (local.get $n) (i32.const 1))))))
    (func (export "trap") unreachable))
  (core instance $i (instantiate $m (with "host" (instance (export "step" (func $step))))))
  (func (export "steps") (param "n" u32) (canon lift (core func $i "steps")))
  (func (export "spin") (canon lift (core func $i "spin")))
  (func (export "deep") (canon lift (core func $i "deep")))
  (func (export "down") (param "n" u32) (canon lift (core func $i "down")))
  (func (export "trap") (canon lift (core func $i "trap"))))"#;

type OnStep = Arc<dyn Fn() + Send + Sync>;

/// What the host does in a step, and where it was done.
struct Seen {
    on_step: OnStep,
    steps: Vec<Place>,
}

/// A thread, and about where on a stack.
#[derive(Debug, Clone, Copy)]
struct Place(ThreadId, usize);

impl Place {
    #[inline(never)]
    fn here() -> Self {
        let local = 0_u8;
        Self(thread::current().id(), (&raw const local).addr())
    }

    /// No two stacks are so near to each other.
    fn is_stack_of(self, other: Self) -> bool {
        self.0 == other.0 && self.1.abs_diff(other.1) < 256 << 10
    }
}

/// How many calls of the process are away from their workers is counted; a test that has many of them is alone.
static AWAY: RwLock<()> = RwLock::new(());

fn config() -> EngineConfig {
    EngineConfig::on_demand().compile_in_process().with_manual_ticks()
}

fn engine() -> WasmEngine {
    WasmEngine::new(config()).unwrap()
}

const LONG: Duration = Duration::from_secs(1_000_000);

fn limits() -> ResourceLimits {
    ResourceLimits {
        cpu_time: LONG,
        deadline: LONG,
        host_calls: u64::MAX,
        ..ResourceLimits::with_memory(ByteSize::mib(1))
    }
}

fn spec(engine: &WasmEngine, limits: ResourceLimits) -> SandboxSpec<Seen> {
    let component = engine.load_wat_blocking(GUEST, Profile::Plain).unwrap();
    let mut linker: Linker<HostState<Seen>> = component.linker();
    let step = |mut store: StoreContextMut<'_, HostState<Seen>>, (): ()| {
        let seen = &mut store.data_mut().ext;
        seen.steps.push(Place::here());
        (seen.on_step)();
        Ok(())
    };
    linker.root().func_wrap("step", step).unwrap();
    SandboxSpec::new(component.link(&linker).unwrap(), limits).unwrap()
}

/// A runtime with one worker.
fn worker() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Runs a task on a worker and gives what it gives.
fn run<F>(runtime: &Runtime, task: F) -> F::Output
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    runtime.block_on(runtime.spawn(task)).unwrap()
}

/// Instantiates in a task of a worker, calls an export there, and says where that task was.
async fn called(
    spec: &SandboxSpec<Seen>,
    on_step: impl Fn() + Send + Sync + 'static,
    export: &str,
    steps: Option<u32>,
    cancel: &CancellationToken,
) -> (Place, Result<Sandbox<Seen>, Crash>) {
    let seen = Seen { on_step: Arc::new(on_step), steps: Vec::new() };
    let mut sandbox = spec.instantiate_on_worker(seen, cancel).await.unwrap();
    let export = spec.export(export).unwrap();
    let here = Place::here();
    let called = match steps {
        Some(steps) => {
            let export = sandbox.typed::<(u32,), ()>(&export).unwrap();
            sandbox.call_until(&export, (steps,), cancel).await
        }
        None => {
            let export = sandbox.typed::<(), ()>(&export).unwrap();
            sandbox.call_until(&export, (), cancel).await
        }
    };
    (here, called.map(|((), sandbox)| sandbox))
}

/// Whether a call of one step runs on its worker's stack.
async fn is_inline(spec: &SandboxSpec<Seen>) -> bool {
    let (here, called) = called(spec, || {}, "steps", Some(1), &CancellationToken::new()).await;
    called.unwrap().ext().steps[0].is_stack_of(here)
}

#[test]
fn a_short_call_is_made_on_the_stack_of_its_worker() {
    let _away = AWAY.read().unwrap();
    run(&worker(), async {
        let spec = spec(&engine(), limits());
        assert_eq!(spec.is_synchronous(), None);
        assert!(is_inline(&spec).await);
        assert_eq!(spec.is_synchronous(), Some(true));
        assert!(is_inline(&spec).await, "instantiated so too");

        // As it is for who has not asked for that.
        let seen = Seen { on_step: Arc::new(|| {}), steps: Vec::new() };
        let mut sandbox = spec.instantiate(seen).await.unwrap();
        let steps = sandbox.typed::<(u32,), ()>(&spec.export("steps").unwrap()).unwrap();
        let ((), sandbox) = sandbox.call(&steps, (1,)).await.unwrap();
        assert!(!sandbox.ext().steps[0].is_stack_of(Place::here()));
    });
}

#[test]
fn a_runtime_with_one_thread_has_fibers() {
    let runtime = Builder::new_current_thread().build().unwrap();
    assert!(!run(&runtime, async { is_inline(&spec(&engine(), limits())).await }));
}

#[test]
fn a_small_stack_is_left_alone() {
    let _away = AWAY.read().unwrap();
    // A worker has two MiB.
    for (max_wasm_stack, fits) in [(3 << 20, false), (1 << 20, true)] {
        let engine = WasmEngine::new(EngineConfig { max_wasm_stack, ..config() }).unwrap();
        assert_eq!(run(&worker(), async move { is_inline(&spec(&engine, limits())).await }), fits);
    }
}

/// Where a call was made, where its last step was, and how it ended. Each step takes 128 KiB of the stack.
async fn descended(
    spec: SandboxSpec<Seen>,
    export: &'static str,
    levels: Option<u32>,
) -> (Place, Option<Place>, Result<(), CrashKind>) {
    #[inline(never)]
    fn take_stack() {
        black_box(&MaybeUninit::<[u8; 128 << 10]>::uninit());
    }
    let last = Arc::new(Mutex::new(None));
    let on_step = {
        let last = Arc::clone(&last);
        move || {
            take_stack();
            *last.lock().unwrap() = Some(Place::here());
        }
    };
    let (here, called) = called(&spec, on_step, export, levels, &CancellationToken::new()).await;
    let last = *last.lock().unwrap();
    (here, last, called.map(drop).map_err(|crash| crash.kind().clone()))
}

/// Polls with so many more pages of the stack in use.
fn below<F: Future>(pages: usize, future: F) -> impl Future<Output = F::Output> {
    #[inline(never)]
    fn call<R>(pages: usize, poll: &mut dyn FnMut() -> R) -> R {
        let page = [0_u8; 4 << 10];
        let result = if pages == 0 { poll() } else { call(pages - 1, poll) };
        black_box(&page);
        result
    }
    let mut future = Box::pin(future);
    poll_fn(move |cx| call(pages, &mut || future.as_mut().poll(cx)))
}

#[test]
fn an_overflow_is_a_crash_where_the_worker_has_just_enough_stack() {
    let _away = AWAY.read().unwrap();
    let engine = engine();
    let needed = engine.config().stack_size();
    let spec = spec(&engine, limits());
    let stack = needed + (256 << 10);
    let worker = Builder::new_multi_thread().worker_threads(1).thread_stack_size(stack).enable_all().build().unwrap();
    let descended = |pages, export, levels| run(&worker, below(pages, self::descended(spec.clone(), export, levels)));
    let is_inline = |pages| {
        let (here, last, ended) = descended(pages, "down", Some(0));
        ended.unwrap();
        last.unwrap().is_stack_of(here)
    };
    assert!(is_inline(0));
    // The page after which too little is left. The system may give a thread more than it was asked for.
    let too_many = (1..).find(|&pages| !is_inline(pages)).unwrap();
    let pages = too_many - 1;

    let is_there = |here: Place, last: Place| here.0 == last.0 && here.1.wrapping_sub(last.1) < needed;
    let (here, last, ended) = descended(pages, "down", Some(100));
    assert_eq!((ended, is_there(here, last.unwrap())), (Ok(()), true));

    let (here, last, ended) = descended(pages, "down", Some(u32::MAX));
    assert_eq!((ended, is_there(here, last.unwrap())), (Err(CrashKind::StackOverflow), true));
    assert!(here.1 - last.unwrap().1 > needed / 3, "it turned to the host down to the end of its stack");

    let (_, last, ended) = descended(pages, "deep", None);
    assert_eq!((ended, last.is_none()), (Err(CrashKind::StackOverflow), true));
    assert!(is_inline(pages));
}

#[test]
fn what_imports_an_async_function_has_a_fiber() {
    let component = engine().load_wat_blocking(GUEST, Profile::Plain).unwrap();
    let mut linker: Linker<HostState<Seen>> = component.linker();
    linker
        .root()
        .func_wrap_async("step", |mut store, (): ()| {
            store.data_mut().ext.steps.push(Place::here());
            Box::new(async move {
                tokio::task::yield_now().await;
                Ok(())
            })
        })
        .unwrap();
    let spec = SandboxSpec::new(component.link(&linker).unwrap(), limits()).unwrap();
    run(&worker(), async move {
        assert!(!is_inline(&spec).await);
        assert_eq!(spec.is_synchronous(), Some(false));
        assert!(!is_inline(&spec).await);
    });
}

#[test]
fn a_closure_with_the_store_may_make_it_async() {
    let _away = AWAY.read().unwrap();
    run(&worker(), async {
        let spec = spec(&engine(), limits());
        let (_, sandbox) = called(&spec, || {}, "steps", Some(1), &CancellationToken::new()).await;
        let closure = async |mut store: StoreContextMut<'_, HostState<Seen>>, _| {
            _ = Func::wrap_async(&mut store, |_, (): ()| Box::new(async {}));
            Ok(())
        };
        let ((), mut sandbox) = sandbox.unwrap().call_with(closure).await.unwrap();
        let steps = sandbox.typed::<(u32,), ()>(&spec.export("steps").unwrap()).unwrap();
        let ((), sandbox) = sandbox.call(&steps, (1,)).await.unwrap();
        assert!(!sandbox.ext().steps[1].is_stack_of(Place::here()));
        assert!(is_inline(&spec).await, "another sandbox is as it was");
    });
}

#[test]
fn who_computes_gives_up_the_worker_once() {
    let _away = AWAY.read().unwrap();
    let engine = engine();
    let (runtime, spec) = (worker(), spec(&engine, limits()));
    let turns = Arc::new(AtomicU64::new(0));
    // Always ready.
    let neighbour = runtime.spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    run(&runtime, async move {
        let tick = move || engine.tick();
        let token = CancellationToken::new();
        let (here, sandbox) = called(&spec, tick.clone(), "steps", Some(2), &token).await;
        assert!(sandbox.unwrap().ext().steps.iter().all(|step| step.is_stack_of(here)));
        assert!(is_inline(&spec).await);

        let before = turns.load(Ordering::Relaxed);
        let (here, sandbox) = called(&spec, tick, "steps", Some(300), &token).await;
        let steps = &sandbox.unwrap().ext().steps.clone();
        assert!(steps.len() == 300 && steps.iter().all(|step| step.is_stack_of(here)), "it goes on where it is");
        let had = turns.load(Ordering::Relaxed) - before;
        // An epoch that ends in a step is noticed after the next one at the latest.
        assert!(had >= 140, "its neighbour had {had} turns");
        assert!(!is_inline(&spec).await, "from then on it has a fiber");
    });
    neighbour.abort();
    let other = self::spec(&self::engine(), limits());
    assert!(run(&runtime, async move { is_inline(&other).await }), "and other components are as they were");
}

#[test]
fn what_others_take_is_not_charged() {
    let _away = AWAY.read().unwrap();
    let (runtime, engine) = (worker(), engine());
    let spec = spec(&engine, limits());
    let neighbour = runtime.spawn({
        let engine = engine.clone();
        async move {
            loop {
                (0..10).for_each(|_| engine.tick());
                tokio::task::yield_now().await;
            }
        }
    });
    run(&runtime, async move {
        let (_, sandbox) = called(&spec, move || engine.tick(), "steps", Some(300), &CancellationToken::new()).await;
        let usage = sandbox.unwrap().usage();
        // One for each step, or for two. Its neighbour has had ten for each.
        assert!((140..=310).contains(&usage.cpu_ticks), "{usage:?}");
    });
    neighbour.abort();
}

#[test]
fn a_local_set_cannot_be_given_up() {
    let _away = AWAY.read().unwrap();
    let (runtime, engine) = (worker(), engine());
    let spec = spec(&engine, limits());
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let (here, sandbox) = called(&spec, move || engine.tick(), "steps", Some(300), &CancellationToken::new()).await;
        let sandbox = sandbox.unwrap();
        assert!(sandbox.ext().steps.len() == 300 && sandbox.ext().steps[299].is_stack_of(here));
        assert!(!is_inline(&spec).await);
    });
}

#[test]
fn who_computes_without_end_is_stopped_and_harms_no_neighbour() {
    let _away = AWAY.read().unwrap();
    let engine = engine();
    let spec = spec(&engine, ResourceLimits { cpu_time: Duration::from_millis(20), ..limits() });
    run(&worker(), async move {
        assert!(is_inline(&spec).await);
        // It ends an epoch only when the neighbour had a turn, or as good as never.
        let neighbour = Neighbour::spawn(&engine, || async {});
        for _ in 0..2 {
            let (_, crashed) = called(&spec, || {}, "spin", None, &CancellationToken::new()).await;
            let crash = crashed.unwrap_err();
            assert_eq!(*crash.kind(), CrashKind::CpuTime { allowed: 20 });
            assert_eq!((crash.export(), crash.backtrace().len()), (Some("spin"), 1));
        }
        neighbour.end().await;
    });
}

#[test]
fn who_computes_can_be_cancelled_and_has_a_deadline() {
    let _away = AWAY.read().unwrap();
    run(&worker(), async {
        // Cancelled before the first tick, and when it has given up its worker.
        for at in [1, 2, 10] {
            let (engine, token, steps) = (engine(), CancellationToken::new(), AtomicU64::new(0));
            let spec = spec(&engine, limits());
            let cancelled = token.clone();
            let step = move || {
                engine.tick();
                if steps.fetch_add(1, Ordering::Relaxed) + 1 == at {
                    cancelled.cancel();
                }
            };
            let (_, crashed) = called(&spec, step, "steps", Some(1_000), &token).await;
            let crash = crashed.unwrap_err();
            assert_eq!(*crash.kind(), CrashKind::Cancelled);
            assert!((at..2 * at + 2).contains(&crash.usage().host_calls), "{:?}", crash.usage());
        }
        for deadline in [1, 7] {
            let engine = engine();
            let deadline = Duration::from_millis(deadline);
            let spec = spec(&engine, ResourceLimits { deadline, ..limits() });
            let (_, crashed) =
                called(&spec, move || engine.tick(), "steps", Some(1_000), &CancellationToken::new()).await;
            let crash = crashed.unwrap_err();
            assert_eq!(*crash.kind(), CrashKind::Deadline { allowed: deadline });
        }
    });
}

#[test]
fn each_crash_is_as_it_is_with_a_fiber() {
    let _away = AWAY.read().unwrap();
    run(&worker(), async {
        for export in ["trap", "deep"] {
            let mut crashes = Vec::new();
            let spec = spec(&engine(), limits());
            for _ in 0..2 {
                let (_, crashed) = called(&spec, || {}, export, None, &CancellationToken::new()).await;
                crashes.push(crashed.unwrap_err());
            }
            let mut sandbox = spec.instantiate(Seen { on_step: Arc::new(|| {}), steps: Vec::new() }).await.unwrap();
            let export = sandbox.typed::<(), ()>(&spec.export(export).unwrap()).unwrap();
            let with_fiber = sandbox.call(&export, ()).await.unwrap_err();
            for crash in crashes {
                assert_eq!(crash.kind(), with_fiber.kind());
                assert_eq!(crash.backtrace(), with_fiber.backtrace());
            }
        }
        let spec = spec(&engine(), limits());
        let (_, crashed) = called(&spec, || panic!("out of order"), "steps", Some(1), &CancellationToken::new()).await;
        assert!(matches!(crashed.unwrap_err().kind(), CrashKind::HostPanic { .. }));
        assert!(is_inline(&spec).await);
    });
}

#[test]
fn a_runtime_that_shuts_down_ends_who_is_away() {
    let _away = AWAY.read().unwrap();
    let engine = engine();
    let (runtime, spec) = (worker(), spec(&engine, limits()));
    let (at_step, steps) = mpsc::channel();
    let (ended, mut end) = unbounded_channel();
    runtime.spawn(async move {
        let step = move || {
            engine.tick();
            _ = at_step.send(());
        };
        let (_, crashed) = called(&spec, step, "steps", Some(u32::MAX), &CancellationToken::new()).await;
        _ = ended.send(crashed.unwrap_err());
    });
    (0..10).for_each(|_| steps.recv().unwrap());
    drop(runtime);
    assert_eq!(*end.try_recv().unwrap().kind(), CrashKind::Cancelled);
}

#[test]
fn a_runtime_without_a_thread_for_the_worker_delays_nothing_for_good() {
    let _away = AWAY.read().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).build().unwrap();
    let (blocked, is_blocked) = mpsc::channel();
    let (free, is_free) = mpsc::channel::<()>();
    runtime.spawn_blocking(move || {
        blocked.send(()).unwrap();
        is_free.recv()
    });
    is_blocked.recv().unwrap();
    run(&runtime, async {
        let engine = engine();
        let deadline = Duration::from_millis(4);
        let spec = spec(&engine, ResourceLimits { deadline, ..limits() });
        let (_, crashed) = called(&spec, move || engine.tick(), "steps", Some(1_000), &CancellationToken::new()).await;
        assert_eq!(*crashed.unwrap_err().kind(), CrashKind::Deadline { allowed: deadline });
    });
    drop(free);
}

#[test]
fn few_can_be_away_at_the_same_time() {
    let _alone = AWAY.write().unwrap();
    let runtime = worker();
    let token = CancellationToken::new();
    let (away, mut are_away) = unbounded_channel();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (token, away) = (token.clone(), away.clone());
            runtime.spawn(async move {
                let (engine, steps) = (engine(), AtomicU64::new(0));
                let spec = spec(&engine, limits());
                let step = move || {
                    engine.tick();
                    if steps.fetch_add(1, Ordering::Relaxed) == 3 {
                        _ = away.send(());
                    }
                };
                let (_, crashed) = called(&spec, step, "steps", Some(u32::MAX), &token).await;
                crashed.unwrap_err()
            })
        })
        .collect();
    runtime.block_on(async {
        for _ in 0..16 {
            are_away.recv().await.unwrap();
        }
    });
    let next = || run(&runtime, async { is_inline(&spec(&self::engine(), limits())).await });
    assert!(!next());
    token.cancel();
    for task in tasks {
        assert_eq!(*runtime.block_on(task).unwrap().kind(), CrashKind::Cancelled);
    }
    assert!(next());
}
