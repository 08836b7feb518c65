//! What a guest leaves is given back by whom, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    task::{Context, Waker},
    thread::{self, ThreadId},
    time::Duration,
};

use airssys_wasm_engine::{Profile, WasmEngine};
use airssys_wasm_isolation::{InstantiateError, Sandbox, SandboxSpec};
use airssys_wasm_limits::{ByteSize, MemoryBudget, ResourceLimits};
use tokio::sync::mpsc;

use crate::engine;

/// Says which thread drops it.
struct Dropped(Sender<ThreadId>);

impl Drop for Dropped {
    fn drop(&mut self) {
        _ = self.0.send(thread::current().id());
    }
}

/// With a memory of so many pages. Its start traps if it is asked to.
fn guest(pages: u32, start: &str) -> String {
    format!(
        r#"(component
            (core module $m
                (memory (export "memory") {pages})
                (func $start {start})
                (start $start)
                (func (export "trap") unreachable))
            (core instance $i (instantiate $m))
            (func (export "trap") (canon lift (core func $i "trap"))))"#
    )
}

const SMALL: u32 = 63;
const LARGE: u32 = 64;

fn spec_in(engine: &WasmEngine, pages: u32, start: &str) -> SandboxSpec<Dropped> {
    let component = engine.load_wat_blocking(&guest(pages, start), Profile::Plain).unwrap();
    let limits = ResourceLimits::with_memory(ByteSize::mib(8));
    SandboxSpec::new(component.link(&component.linker()).unwrap(), limits).unwrap()
}

async fn sandbox(pages: u32) -> (SandboxSpec<Dropped>, Sandbox<Dropped>, Receiver<ThreadId>) {
    let spec = spec_in(&engine(), pages, "");
    let (to, dropped) = channel();
    let sandbox = spec.instantiate(Dropped(to)).await.unwrap();
    (spec, sandbox, dropped)
}

async fn crash(spec: &SandboxSpec<Dropped>, mut sandbox: Sandbox<Dropped>) {
    let trap = sandbox.typed::<(), ()>(&spec.export("trap").unwrap()).unwrap();
    sandbox.call(&trap, ()).await.unwrap_err();
}

#[tokio::test]
async fn a_crash_with_much_memory_is_freed_by_another_thread_before_it_is_told() {
    let (spec, sandbox, dropped) = sandbox(LARGE).await;
    crash(&spec, sandbox).await;
    assert_ne!(dropped.try_recv().unwrap(), thread::current().id());
}

/// Says when it is dropped whether a crash was told by then.
struct Told(Arc<AtomicBool>, Sender<bool>);

impl Drop for Told {
    fn drop(&mut self) {
        _ = self.1.send(self.0.load(Ordering::Acquire));
    }
}

#[tokio::test]
async fn a_crash_is_told_before_what_the_guest_had_is_freed() {
    let component = engine().load_wat_blocking(&guest(LARGE, ""), Profile::Plain).unwrap();
    let limits = ResourceLimits::with_memory(ByteSize::mib(8));
    let spec = SandboxSpec::new(component.link(&component.linker()).unwrap(), limits).unwrap();
    let (to, told) = channel();
    let new = async || {
        let flag = Arc::<AtomicBool>::default();
        let mut sandbox = spec.instantiate(Told(Arc::clone(&flag), to.clone())).await.unwrap();
        sandbox.tell_crash(flag);
        sandbox
    };
    let mut sandbox = new().await;
    let trap = sandbox.typed::<(), ()>(&spec.export("trap").unwrap()).unwrap();
    sandbox.call(&trap, ()).await.unwrap_err();
    assert!(told.try_recv().unwrap());
    // The control: there is no crash.
    new().await.free().await;
    assert!(!told.try_recv().unwrap());
}

#[tokio::test]
async fn one_with_little_is_freed_on_the_spot() {
    let (spec, sandbox, dropped) = sandbox(SMALL).await;
    crash(&spec, sandbox).await;
    assert_eq!(dropped.try_recv().unwrap(), thread::current().id());
}

#[tokio::test]
async fn a_closures_crash_is_freed_so_too() {
    let (_, sandbox, dropped) = sandbox(LARGE).await;
    let failed = sandbox.call_with(async |_, _| Err::<(), _>(std::io::Error::other("the closure's").into())).await;
    failed.unwrap_err();
    assert_ne!(dropped.try_recv().unwrap(), thread::current().id());
}

#[tokio::test]
async fn a_sandbox_that_is_given_up_is_freed_as_a_crash_is() {
    for (pages, here) in [(SMALL, true), (LARGE, false)] {
        let (_, sandbox, dropped) = sandbox(pages).await;
        sandbox.free().await;
        assert_eq!(dropped.try_recv().unwrap() == thread::current().id(), here, "{pages} pages");
    }
}

#[tokio::test]
async fn dropping_one_frees_it_on_the_spot() {
    let (_, sandbox, dropped) = sandbox(LARGE).await;
    drop(sandbox);
    assert_eq!(dropped.try_recv().unwrap(), thread::current().id());
}

#[tokio::test]
async fn a_start_that_fails_is_freed_by_another_thread() {
    for (pages, here) in [(SMALL, true), (LARGE, false)] {
        let (to, dropped) = channel();
        let failed = spec_in(&engine(), pages, "unreachable").instantiate(Dropped(to)).await;
        assert!(matches!(failed, Err(InstantiateError::Crash(_))), "{failed:?}");
        assert_eq!(dropped.try_recv().unwrap() == thread::current().id(), here, "{pages} pages");
    }
}

#[tokio::test]
async fn its_share_of_the_budget_is_free_when_the_crash_is_told() {
    let budget = MemoryBudget::new(ByteSize::mib(4));
    let spec = spec_in(&engine(), LARGE, "").with_budget(budget.clone());
    for _ in 0..3 {
        let (to, _dropped) = channel();
        let sandbox = spec.instantiate(Dropped(to)).await.unwrap();
        crash(&spec, sandbox).await;
        assert_eq!(budget.used(), 0);
    }
}

/// Says that it is being dropped, and goes on when it is told to.
struct Waits(mpsc::UnboundedSender<()>, Receiver<()>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
        self.1.recv().unwrap();
    }
}

#[tokio::test]
async fn the_workers_other_tasks_run_while_it_is_freed() {
    let engine = engine();
    let component = engine.load_wat_blocking(&guest(LARGE, ""), Profile::Plain).unwrap();
    let limits = ResourceLimits::with_memory(ByteSize::mib(8));
    let spec = SandboxSpec::new(component.link(&component.linker()).unwrap(), limits).unwrap();
    let ((begun_to, mut begun), (go, wait)) = (mpsc::unbounded_channel(), channel());
    let mut sandbox = spec.instantiate(Waits(begun_to, wait)).await.unwrap();
    let trap = sandbox.typed::<(), ()>(&spec.export("trap").unwrap()).unwrap();
    let crashing = tokio::spawn(async move { sandbox.call(&trap, ()).await.map(|_| ()) });
    // On this test's only worker.
    begun.recv().await.unwrap();
    assert!(!crashing.is_finished());
    go.send(()).unwrap();
    crashing.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn calls_that_nobody_polls_keep_no_other_crash_from_being_told() {
    let engine = engine();
    let component = engine.load_wat_blocking(&guest(LARGE, ""), Profile::Plain).unwrap();
    let limits = ResourceLimits::with_memory(ByteSize::mib(8));
    let spec = SandboxSpec::new(component.link(&component.linker()).unwrap(), limits).unwrap();
    let (begun_to, mut begun) = mpsc::unbounded_channel();
    let new = async || {
        let (go, wait) = channel();
        let mut sandbox = spec.instantiate(Waits(begun_to.clone(), wait)).await.unwrap();
        let trap = sandbox.typed::<(), ()>(&spec.export("trap").unwrap()).unwrap();
        (go, Box::pin(async move { sandbox.call(&trap, ()).await.map(|_| ()) }))
    };
    let mut calls = Vec::new();
    for _ in 0..4 {
        let (go, mut call) = new().await;
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        calls.push((go, call));
    }
    // As many as are freed at a time; the other two wait.
    for _ in 0..2 {
        begun.recv().await.unwrap();
    }
    for (go, _) in &calls {
        go.send(()).unwrap();
    }
    for (_, call) in calls.drain(..2) {
        call.await.unwrap_err();
    }
    let (go, crashes) = new().await;
    go.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), crashes).await.unwrap().unwrap_err();
    for (_, call) in calls {
        call.await.unwrap_err();
    }
}

#[test]
fn a_crash_is_told_though_no_blocking_thread_is_free() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (end, ended) = channel::<()>();
        let busy = tokio::task::spawn_blocking(move || ended.recv());
        let (spec, sandbox, dropped) = sandbox(LARGE).await;
        tokio::time::timeout(Duration::from_secs(60), crash(&spec, sandbox)).await.unwrap();
        assert_ne!(dropped.try_recv().unwrap(), thread::current().id());
        drop(end);
        busy.await.unwrap().unwrap_err();
    });
}

#[test]
fn outside_a_runtime_it_is_freed_on_the_spot() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (_, sandbox, dropped) = runtime.block_on(sandbox(LARGE));
    futures_util::FutureExt::now_or_never(sandbox.free()).unwrap();
    assert_eq!(dropped.try_recv().unwrap(), thread::current().id());
}
