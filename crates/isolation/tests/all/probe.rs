//! A sandbox of a guest that does one thing with WASI for each call.

use std::sync::LazyLock;

use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};
use airssys_wasm_fixtures::{WASI_PROBE, WASI3_PROBE};
use airssys_wasm_isolation::{Crash, Sandbox, SandboxSpec, TypedExport, WasiGrants};
use airssys_wasm_limits::ResourceLimits;

use crate::{Host, engine, limits, spec_in};

/// One for all tests, so that the guest is compiled once.
static ENGINE: LazyLock<WasmEngine> = LazyLock::new(engine);
static ASYNC_ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let config = EngineConfig::small().with_component_async().compile_in_process().with_manual_ticks();
    WasmEngine::new(config).unwrap()
});

type Run = TypedExport<(Vec<String>,), (Result<String, String>,)>;

pub(crate) struct Probe {
    sandbox: Option<Sandbox<Host>>,
    run: Run,
}

impl Probe {
    pub(crate) async fn new(grants: WasiGrants) -> Self {
        Self::of(spec_in(&ENGINE, WASI_PROBE, Profile::Plain, limits()).with_wasi(grants)).await
    }

    /// The one with WASI 0.3.
    pub(crate) async fn wasi3(grants: WasiGrants) -> Self {
        Self::of(Self::wasi3_spec(grants, limits())).await
    }

    pub(crate) fn wasi3_spec(grants: WasiGrants, limits: ResourceLimits) -> SandboxSpec<Host> {
        spec_in(&ASYNC_ENGINE, WASI3_PROBE, Profile::Plain, limits).with_wasi(grants)
    }

    pub(crate) async fn of(spec: SandboxSpec<Host>) -> Self {
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let run = sandbox.typed(&spec.export("run").unwrap()).unwrap();
        Self { sandbox: Some(sandbox), run }
    }

    /// Runs a command of words with blanks between them, and gives its answer or its error: a test knows which.
    pub(crate) async fn run(&mut self, command: &str) -> String {
        self.crash_or_run(command).await.unwrap_or_else(|crash| panic!("{command}: {crash}"))
    }

    pub(crate) async fn crash_or_run(&mut self, command: &str) -> Result<String, Crash> {
        let words = command.split(' ').map(str::to_owned).collect();
        let sandbox = self.sandbox.take().expect("it has not crashed");
        let ((answer,), sandbox) = sandbox.call(&self.run, (words,)).await?;
        self.sandbox = Some(sandbox);
        Ok(answer.unwrap_or_else(|error| error))
    }
}
