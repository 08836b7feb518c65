//! Guests in MoonBit, whose objects are those of WebAssembly's garbage collection, in C++ with exceptions, and in Python
//! with WASI 0.3.
//! They are built by `cargo xtask fixtures --ecosystem`, and left out with a word where that was not run.

use std::{marker::PhantomData, time::Duration};

use airssys_wasm_engine::{
    EngineConfig, Feature, LoadError, Profile, WasmEngine,
    wasmtime::{
        Trap,
        component::{ComponentType, Lift, Lower},
    },
};
use airssys_wasm_fixtures::ecosystem::{built, target};
use airssys_wasm_isolation::{Crash, CrashKind, Folder, Permissions, Sandbox, SandboxSpec, TrapCode, WasiGrants};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::{Host, call, limits, probe::Probe, spec_in};

fn collected(guest: &[u8], limits: ResourceLimits) -> SandboxSpec<Host> {
    let config = EngineConfig::small().with_garbage_collection().compile_in_process().with_manual_ticks();
    spec_in(&WasmEngine::new(config).unwrap(), guest, Profile::Plain, limits)
}

fn memory(mib: u64) -> ResourceLimits {
    ResourceLimits { memory: ByteSize::mib(mib), ..limits() }
}

async fn cpp(guest: &[u8], limits: ResourceLimits) -> Guest<u32> {
    let config = EngineConfig::small().with_exceptions().compile_in_process().with_manual_ticks();
    Guest::of(spec_in(&WasmEngine::new(config).unwrap(), guest, Profile::Metered, limits)).await
}

/// Takes and gives numbers of this type.
struct Guest<N> {
    spec: SandboxSpec<Host>,
    sandbox: Option<Sandbox<Host>>,
    numbers: PhantomData<N>,
}

impl<N: ComponentType + Lift + Lower + Copy + Send + Sync + 'static> Guest<N> {
    async fn of(spec: SandboxSpec<Host>) -> Self {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        Self { spec, sandbox: Some(sandbox), numbers: PhantomData }
    }

    async fn call(&mut self, name: &str, numbers: &[N]) -> Result<N, Crash> {
        let mut sandbox = self.sandbox.take().expect("it has not crashed");
        let export = self.spec.export(name).unwrap();
        let ((answer,), sandbox) = match *numbers {
            [] => {
                let export = sandbox.typed::<(), (N,)>(&export).unwrap();
                sandbox.call(&export, ()).await?
            }
            [one] => {
                let export = sandbox.typed::<(N,), (N,)>(&export).unwrap();
                sandbox.call(&export, (one,)).await?
            }
            [one, two] => {
                let export = sandbox.typed::<(N, N), (N,)>(&export).unwrap();
                sandbox.call(&export, (one, two)).await?
            }
            _ => panic!("no function has more"),
        };
        self.sandbox = Some(sandbox);
        Ok(answer)
    }
}

#[tokio::test]
async fn ecosystem_moonbit_computes_with_objects() {
    let Some(guest) = built("moonbit") else { return };
    let mut guest = Guest::<i32>::of(collected(&guest, memory(4))).await;
    for (name, numbers, answer) in [
        ("tree", &[0][..], 0),
        ("tree", &[10], 2_036),
        ("closures", &[100], 5_050),
        ("methods", &[1_001], 1_501),
        ("array", &[1_000], 2_000),
        ("keep", &[100], 100),
        ("keep", &[100], 200),
        ("forget", &[], 200),
        ("forget", &[], 0),
    ] {
        assert_eq!(guest.call(name, numbers).await.unwrap(), answer, "{name}");
    }
}

#[tokio::test]
async fn ecosystem_moonbit_garbage_is_collected_within_its_memory() {
    let Some(guest) = built("moonbit") else { return };
    let mut guest = Guest::<i32>::of(collected(&guest, memory(1))).await;
    // 1,023 nodes of 32 bytes each time, 16 MB of them.
    assert_eq!(guest.call("garbage", &[10, 500]).await.unwrap(), 500 * 2_036);
    assert!(guest.sandbox.as_ref().unwrap().memory() <= 1 << 20);
    let crash = guest.call("keep", &[1_000_000]).await.unwrap_err();
    assert!(matches!(*crash.kind(), CrashKind::Memory { allowed: 0x10_0000, .. }), "{crash}");
}

#[tokio::test]
async fn ecosystem_moonbit_crashes_as_others_do() {
    let Some(guest) = built("moonbit") else { return };
    let crash = Guest::<i32>::of(collected(&guest, memory(4))).await.call("beyond", &[]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::ArrayOutOfBounds) });
    let crash = Guest::<i32>::of(collected(&guest, memory(4))).await.call("array", &[1_000_000_000]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HeapFull, "4 GB");
    let crash = Guest::<i32>::of(collected(&guest, memory(64))).await.call("closures", &[200_000]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::StackOverflow);
    let error = crate::engine().load_blocking(&guest, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::GarbageCollection }), "{error}");
}

#[tokio::test]
async fn ecosystem_cpp_throws_and_catches() {
    let Some(guest) = built("cpp") else { return };
    let mut guest = cpp(&guest, limits()).await;
    for (name, numbers, answer) in [
        ("catches", &[1, 1][..], 1),
        ("catches", &[100, 100], 10_000),
        ("caught-by", &[0], 0),
        ("caught-by", &[1], 1),
        ("caught-by", &[2], 2),
        ("caught-by", &[3], 3),
        ("caught-by", &[4], 4),
        ("rethrows", &[], 14),
    ] {
        assert_eq!(guest.call(name, numbers).await.unwrap(), answer, "{name} {numbers:?}");
    }
    let peak = guest.sandbox.as_ref().unwrap().usage().memory_peak;
    assert_eq!(guest.call("catches", &[10_000, 10]).await.unwrap(), 100_000);
    assert_eq!(guest.sandbox.as_ref().unwrap().usage().memory_peak, peak, "nothing grows");
}

#[tokio::test]
async fn ecosystem_cpp_crashes_as_others_do() {
    let Some(guest) = built("cpp") else { return };
    let Guest { spec, sandbox, .. } = cpp(&guest, limits()).await;
    let crash = call(&spec, sandbox.unwrap(), "uncaught", None).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Exception, "{crash}");
    let crash = cpp(&guest, limits()).await.call("traps", &[]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
    let limits = ResourceLimits { fuel: Some(1_000_000), ..limits() };
    let crash = cpp(&guest, limits).await.call("catches", &[u32::MAX, 10]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::OutOfFuel { allowed: 1_000_000 });
    let error = crate::engine().load_blocking(&guest, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::Exceptions }), "{error}");
}

#[tokio::test]
async fn ecosystem_python_with_wasi_0_3() {
    let Some(guest) = built("python-wasi3") else { return };
    let config = EngineConfig {
        parallel_compilation: true,
        code_cache: Some(target().join("guests/code-cache")),
        ..EngineConfig::default().with_component_async().compile_in_process()
    };
    let engine = WasmEngine::new(config).unwrap();
    let limits = ResourceLimits {
        cpu_time: Duration::from_secs(10),
        deadline: Duration::from_secs(60),
        ..ResourceLimits::with_memory(ByteSize::mib(128))
    };
    let folder = tempfile::tempdir().unwrap();
    let granted = |permissions| WasiGrants {
        folders: vec![Folder { host: folder.path().to_owned(), guest: "data".into(), permissions }],
        ..WasiGrants::default()
    };
    let spec = spec_in(&engine, &guest, Profile::Plain, limits);
    let mut probe = Probe::of(spec.clone().with_wasi(granted(Permissions::ReadWrite))).await;
    for (command, answer) in [
        ("granted", "1"),
        ("stdout nowhere", "done"),
        ("random 100", "100"),
        ("wait 1", "done"),
        ("wait-for-both 1 2", "done"),
        ("write f hello", "done"),
        ("read f", "hello"),
        ("read g", "ErrorCode_NoEntry"),
        ("list", "f"),
        ("fails", "as it was told"),
        ("list", "f"),
    ] {
        assert_eq!(probe.run(command).await, answer, "{command}");
    }
    let crash = probe.crash_or_run("crashes").await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::UnreachableCodeReached) });
    let mut probe = Probe::of(spec.clone().with_wasi(granted(Permissions::Read))).await;
    assert_eq!(probe.run("write f more").await, "ErrorCode_NotPermitted");
    let mut probe = Probe::of(spec).await;
    assert_eq!(probe.run("granted").await, "0");
}
