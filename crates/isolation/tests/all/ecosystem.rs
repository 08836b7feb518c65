//! A guest in a language whose objects are those of WebAssembly's garbage collection: MoonBit. It is built by
//! `cargo xtask fixtures --ecosystem`, and left out with a word where that was not run.

use std::{env, fs, path::PathBuf};

use airssys_wasm_engine::{EngineConfig, Feature, LoadError, Profile, WasmEngine, wasmtime::Trap};
use airssys_wasm_isolation::{Crash, CrashKind, Sandbox, SandboxSpec, TrapCode};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::{Host, limits, spec_in};

fn built() -> Option<Vec<u8>> {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target")), PathBuf::from);
    let guest = fs::read(target.join("guests/moonbit.wasm")).ok();
    if guest.is_none() {
        eprintln!("left out: moonbit was not built; `cargo xtask fixtures --ecosystem` does that");
    }
    guest
}

fn spec(guest: &[u8], limits: ResourceLimits) -> SandboxSpec<Host> {
    let config = EngineConfig::small().with_garbage_collection().compile_in_process().with_manual_ticks();
    spec_in(&WasmEngine::new(config).unwrap(), guest, Profile::Plain, limits)
}

fn memory(mib: u64) -> ResourceLimits {
    ResourceLimits { memory: ByteSize::mib(mib), ..limits() }
}

struct Guest {
    spec: SandboxSpec<Host>,
    sandbox: Option<Sandbox<Host>>,
}

impl Guest {
    async fn of(spec: SandboxSpec<Host>) -> Self {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        Self { spec, sandbox: Some(sandbox) }
    }

    async fn call(&mut self, name: &str, numbers: &[i32]) -> Result<i32, Crash> {
        let mut sandbox = self.sandbox.take().expect("it has not crashed");
        let export = self.spec.export(name).unwrap();
        let ((answer,), sandbox) = match *numbers {
            [] => {
                let export = sandbox.typed::<(), (i32,)>(&export).unwrap();
                sandbox.call(&export, ()).await?
            }
            [one] => {
                let export = sandbox.typed::<(i32,), (i32,)>(&export).unwrap();
                sandbox.call(&export, (one,)).await?
            }
            [one, two] => {
                let export = sandbox.typed::<(i32, i32), (i32,)>(&export).unwrap();
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
    let Some(guest) = built() else { return };
    let mut guest = Guest::of(spec(&guest, memory(4))).await;
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
    let Some(guest) = built() else { return };
    let mut guest = Guest::of(spec(&guest, memory(1))).await;
    // 1,023 nodes of 32 bytes each time, 16 MB of them.
    assert_eq!(guest.call("garbage", &[10, 500]).await.unwrap(), 500 * 2_036);
    assert!(guest.sandbox.as_ref().unwrap().memory() <= 1 << 20);
    let crash = guest.call("keep", &[1_000_000]).await.unwrap_err();
    assert!(matches!(*crash.kind(), CrashKind::Memory { allowed: 0x10_0000, .. }), "{crash}");
}

#[tokio::test]
async fn ecosystem_moonbit_crashes_as_others_do() {
    let Some(guest) = built() else { return };
    let crash = Guest::of(spec(&guest, memory(4))).await.call("beyond", &[]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::Trap { trap: TrapCode(Trap::ArrayOutOfBounds) });
    let crash = Guest::of(spec(&guest, memory(4))).await.call("array", &[1_000_000_000]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HeapFull, "4 GB");
    let crash = Guest::of(spec(&guest, memory(64))).await.call("closures", &[200_000]).await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::StackOverflow);
    let error = crate::engine().load_blocking(&guest, Profile::Plain).unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { feature: Feature::GarbageCollection }), "{error}");
}
