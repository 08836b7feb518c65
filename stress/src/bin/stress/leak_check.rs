//! Crashes components of mixed kinds, many times, and fails if the process grows. Run by `cargo xtask leak-check`.

use std::{io::Write as _, time::Duration};

use airssys_wasm_engine::{EngineConfig, PoolConfig, Profile, Ticking, WasmEngine};
use airssys_wasm_fixtures::{GROW, HOST_CALLS, SPIN, TRAPS, VALUES};
use airssys_wasm_isolation::{CrashKind, DynamicCallError, HostState, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_measurements::process;
use anyhow::{Result, ensure};
use wasmtime::component::{Linker, Val};

/// Crashes after which the process should have everything it needs.
const SETTLED: u64 = 1_000;

/// A way to crash, and how often it happened.
struct Way {
    name: &'static str,
    spec: SandboxSpec<()>,
    export: &'static str,
    arguments: Vec<Val>,
    expected: fn(&CrashKind) -> bool,
    crashes: u64,
}

/// Crash components of mixed kinds, many times, and fail if the process grows.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many crashes
    #[arg(default_value_t = 100_000)]
    crashes: u64,
}

pub(crate) fn run(&Args { crashes }: &Args) -> Result<()> {
    ensure!(crashes > SETTLED, "more than {SETTLED} crashes, or there is nothing to compare");
    let engine = WasmEngine::new(EngineConfig {
        pool: Some(PoolConfig::for_components(64)),
        // Short, so that the guests that must be interrupted do not take all the time.
        ticking: Ticking::Every(Duration::from_micros(100)),
        ..EngineConfig::default().compile_in_process()
    })?;
    let mut ways = ways(&engine)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    // The host's panics are part of the mix.
    std::panic::set_hook(Box::new(|_| {}));
    let mut settled = None;
    for n in 0..crashes {
        let kinds = ways.len() as u64;
        let way = &mut ways[(n % kinds) as usize];
        runtime.block_on(crash(way))?;
        if n + 1 == SETTLED {
            settled = process::read();
        }
        if (n + 1) % (crashes / 20).max(1) == 0 {
            print!("\r{:>3} % ", (n + 1) * 100 / crashes);
            std::io::stdout().flush()?;
        }
    }
    println!("\r{crashes} crashes:");
    for way in &ways {
        println!("  {:>7} {}", way.crashes, way.name);
    }
    let (Some(before), Some(after)) = (settled, process::read()) else {
        println!("this system does not tell how much memory a process has: nothing was compared");
        return Ok(());
    };
    println!("{:>12} {:>14} {:>14}", "", "after 1,000", "at the end");
    let mut grown = Vec::new();
    let rows = [
        // What the allocator keeps for itself varies by a few pages.
        ("resident", before.resident, after.resident, 2 << 20),
        ("mappings", before.mappings, after.mappings, 8),
        ("descriptors", before.descriptors, after.descriptors, 0),
    ];
    for (name, before, after, tolerance) in rows {
        println!("{name:>12} {before:>14} {after:>14}");
        if after > before + tolerance {
            grown.push(name);
        }
    }
    ensure!(grown.is_empty(), "it leaks: {} grew", grown.join(", "));
    println!("nothing grew");
    Ok(())
}

fn define_host(linker: &mut Linker<HostState<()>>) -> wasmtime::Result<()> {
    let mut root = linker.root();
    root.func_wrap_async("wait", |_, (): ()| Box::new(std::future::pending::<wasmtime::Result<()>>()))?;
    root.func_wrap("step", |_, (): ()| Ok((1_u32,)))?;
    root.func_wrap("fail", |_, (): ()| -> wasmtime::Result<()> { Err(wasmtime::Error::msg("refused")) })?;
    root.func_wrap("panic", |_, (): ()| -> wasmtime::Result<()> { panic!("on purpose") })?;
    root.func_wrap("take", |_, (_,): (Vec<u8>,)| Ok(()))
}

fn ways(engine: &WasmEngine) -> Result<Vec<Way>> {
    let limits = ResourceLimits::with_memory(ByteSize::mib(64));
    // For those that must be interrupted alone: others may be on a worker that has to wait for its processor.
    let brief = ResourceLimits { cpu_time: Duration::from_micros(100), ..limits.clone() };
    let spec = |component: &str, profile, limits: &ResourceLimits| -> Result<SandboxSpec<()>> {
        let component = engine.load_wat_blocking(component, profile)?;
        let mut linker = component.linker();
        define_host(&mut linker).expect("nothing is defined twice");
        Ok(SandboxSpec::new(component.link(&linker)?, limits.clone())?)
    };
    let few_pages = ResourceLimits { memory: ByteSize::mib(1), ..limits.clone() };
    let short = ResourceLimits { deadline: Duration::from_nanos(1), ..limits.clone() };
    let fuel = ResourceLimits { fuel: Some(1_000), ..limits.clone() };
    let way = |name, spec, export, arguments: &[u32], expected| {
        let arguments = arguments.iter().map(|&n| Val::U32(n)).collect();
        Way { name, spec, export, arguments, expected, crashes: 0 }
    };
    Ok(vec![
        way("traps", spec(TRAPS, Profile::Plain, &limits)?, "divide-by-zero", &[], |kind| {
            matches!(kind, CrashKind::Trap { .. })
        }),
        way("stack overflows", spec(TRAPS, Profile::Plain, &limits)?, "recurse", &[], |kind| {
            *kind == CrashKind::StackOverflow
        }),
        way("memory limits", spec(GROW, Profile::Plain, &few_pages)?, "grow", &[100], |kind| {
            matches!(kind, CrashKind::Memory { .. })
        }),
        way("CPU times", spec(SPIN, Profile::Plain, &brief)?, "spin", &[], |kind| {
            matches!(kind, CrashKind::CpuTime { .. })
        }),
        way("deadlines", spec(HOST_CALLS, Profile::Plain, &short)?, "wait", &[], |kind| {
            matches!(kind, CrashKind::Deadline { .. })
        }),
        way("fuel", spec(SPIN, Profile::Metered, &fuel)?, "spin", &[], |kind| {
            matches!(kind, CrashKind::OutOfFuel { .. })
        }),
        way("host errors", spec(HOST_CALLS, Profile::Plain, &limits)?, "fail", &[], |kind| {
            matches!(kind, CrashKind::HostCall { .. })
        }),
        way("host panics", spec(HOST_CALLS, Profile::Plain, &limits)?, "panic", &[], |kind| {
            matches!(kind, CrashKind::HostPanic { .. })
        }),
        way("malformed values", spec(VALUES, Profile::Plain, &limits)?, "not-utf8", &[], |kind| {
            matches!(kind, CrashKind::BadValue { .. })
        }),
    ])
}

async fn crash(way: &mut Way) -> Result<()> {
    let mut sandbox = way.spec.instantiate(()).await?;
    let export = sandbox.dynamic(&way.spec.export(way.export)?)?;
    match sandbox.call_dynamic(&export, &way.arguments).await {
        Err(DynamicCallError::Crash(crash)) if (way.expected)(crash.kind()) => {
            way.crashes += 1;
            Ok(())
        }
        other => anyhow::bail!("{}: {other:?}", way.name),
    }
}
