//! What the targets share: one engine for the process, a runtime for each case, and the two things that no case may
//! bring about: a panic, and text with control characters in it.

use std::{
    cell::Cell,
    error::Error,
    fmt::{self, Display},
    panic,
    sync::{Arc, LazyLock, Once},
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorState, ActorSystem, Bytes, CrashReport, DeadReason, SystemConfig, SystemEvent,
};
use airssys_wasm_engine::{
    ComponentTemplate, EngineConfig, Linker, LoadedComponent, Profile, WasmEngine,
    wasmtime::{self, StoreContextMut},
};
use airssys_wasm_fixtures::SMALLEST_ACTOR;
use airssys_wasm_isolation::{Crash, CrashClass, HostState, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits, Usage};
use airssys_wasm_registry::ComponentId;
use tokio::{runtime::Builder, sync::broadcast::Receiver, time::timeout};
use tracing::{Event, Metadata, Subscriber, field::Visit, span};

/// The engine for guests. Its thread ends epochs in real time, which is how guests that compute without end are ended.
pub(crate) static ENGINE: LazyLock<WasmEngine> =
    LazyLock::new(|| WasmEngine::new(config_of_engine()).expect("an engine"));

/// With all features.
pub(crate) fn config_of_engine() -> EngineConfig {
    EngineConfig::small().compile_in_process().with_component_async().with_garbage_collection()
}

/// A component of the targets' own.
pub(crate) fn component(wat: &str, profile: Profile) -> LoadedComponent {
    ENGINE.load_wat_blocking(wat, profile).expect("a component")
}

/// Runs a case. Its tasks end with it. Time is tokio's and moves on when everybody waits, so that a deadline costs nothing
/// and whoever would wait for ever is found out by [`ends`].
pub(crate) fn run<F: Future>(case: F) -> F::Output {
    watch();
    PANICS.set(0);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let output = runtime.block_on(case);
    drop(runtime);
    assert_eq!(PANICS.get(), 0, "there was a panic, and somebody caught it");
    output
}

/// Whatever is waited for ends: nothing here takes an hour of tokio's time.
pub(crate) async fn ends<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(3_600), future).await.expect("it ends")
}

thread_local! { static PANICS: Cell<u32> = const { Cell::new(0) } }

/// Counts panics, also those that are caught, and reads what is logged.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
        tracing::subscriber::set_global_default(Log).expect("nobody else listens");
    });
}

/// What is shown to people, in which a line break is the only control character.
pub(crate) fn clean(what: &impl Display) -> String {
    let text = what.to_string();
    let bad = text.find(|c: char| c.is_control() && c != '\n');
    assert!(bad.is_none(), "control characters are shown: {text:?}");
    text
}

/// An error, and what is behind it: whoever shows a chain of errors shows each as it is.
pub(crate) fn told(error: &dyn Error) {
    let mut chain = Some(error);
    while let Some(error) = chain {
        clean(&error);
        chain = error.source();
    }
}

/// Reads all that the layers log, as a plain text log would have it.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "guest" || metadata.target().starts_with("airssys")
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        span.record(&mut Fields);
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut Fields);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Fields);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Fields;

impl Visit for Fields {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn fmt::Debug) {
        clean(&format_args!("{value:?}"));
    }
}

/// A name.
pub(crate) fn id(name: &str) -> ComponentId {
    name.parse().expect("a name")
}

/// Bytes that the guests of some targets ask for, to do as they say.
pub(crate) type Script = Arc<[u8]>;

/// A system whose guests follow a script, and in which the same happens each time.
pub(crate) type System = ActorSystem<Script>;

/// A guest for such a system.
pub(crate) type Template = ComponentTemplate<HostState<ActorState<Script>>>;

pub(crate) fn system(script: Script) -> System {
    let link = |linker: &mut Linker<_>| gives_script(linker, |state: &ActorState<Script>| &state.user);
    ActorSystem::with_host(ENGINE.clone(), config(), move |_| Arc::clone(&script), link)
}

pub(crate) fn config() -> SystemConfig {
    SystemConfig { seed: Some(1), ..SystemConfig::default() }
}

/// Defines where a script comes from.
pub(crate) fn gives_script<U: Send + 'static>(
    linker: &mut Linker<HostState<U>>,
    script: impl Fn(&U) -> &Script + Send + Sync + 'static,
) -> wasmtime::Result<()> {
    linker.root().func_wrap("script", move |store: StoreContextMut<'_, HostState<U>>, (): ()| {
        Ok((script(&store.data().ext).to_vec(),))
    })
}

/// One of the targets' own components, linked for all their systems: half the time of a case would go into that.
pub(crate) fn template(component: &LoadedComponent) -> Template {
    system(Script::default()).link(component).expect("known imports")
}

/// An actor that has nothing to do with the others, and whom nothing that they do may trouble.
pub(crate) struct Neighbour(ActorRef);

impl Neighbour {
    pub(crate) async fn spawn(system: &System) -> Self {
        // Compiled and linked once.
        static ECHO: LazyLock<Template> = LazyLock::new(|| template(&component(SMALLEST_ACTOR, Profile::Plain)));
        // It has all the time that there is: the machine may be busy.
        let day = Duration::from_secs(86_400);
        let limits = ResourceLimits { cpu_time: day, deadline: day, ..ResourceLimits::with_memory(ByteSize::mib(1)) };
        let sandbox = SandboxSpec::new(ECHO.clone(), limits).expect("sensible limits");
        Self(ends(system.spawn(ActorSpec::new(id("n"), sandbox))).await.expect("a neighbour"))
    }

    /// It answers, with what it was sent.
    pub(crate) async fn answers(&self, payload: &[u8]) {
        let answer = ends(self.0.ask(payload.to_vec())).await.expect("the neighbour answers");
        assert_eq!(answer, payload, "the neighbour's answer is another");
        assert_eq!(self.0.info().incarnation, 1, "the neighbour was started again");
    }
}

/// What must hold for a crash: it says what it was, it was within its limits, it is none of ours, and it can be kept.
pub(crate) fn check_crash(crash: &Crash, limits: &ResourceLimits) {
    told(crash);
    check_json(crash);
    assert_ne!(crash.kind().class(), CrashClass::HostPanic, "{crash}");
    check_usage(crash.usage(), limits);
}

/// A crash is written as it is read.
pub(crate) fn check_json(crash: &Crash) {
    let written = serde_json::to_string(crash).expect("it can be written");
    let read: Crash = serde_json::from_str(&written).expect("it can be read again");
    assert_eq!(
        (read.kind(), read.export(), read.backtrace(), read.usage()),
        (crash.kind(), crash.export(), crash.backtrace(), crash.usage()),
        "{written}"
    );
}

pub(crate) fn check_report(report: &CrashReport, limits: &ResourceLimits) {
    told(report);
    check_crash(&report.crash, limits);
}

pub(crate) fn check_usage(usage: &Usage, limits: &ResourceLimits) {
    assert!(usage.memory <= usage.memory_peak, "{usage:?}");
    assert!(usage.memory_peak <= limits.memory.as_u64(), "{usage:?}");
    assert!(usage.table_elements <= limits.table_elements, "{usage:?}");
    // One that is too many is counted, and goes no further.
    assert!(usage.host_calls <= limits.host_calls.saturating_add(1), "{usage:?}");
    // Of whatever call: one without a limit has all the fuel that it wants.
    let phases = [limits.init, limits.snapshot, limits.shutdown].map(|call| call.fuel.or(limits.fuel));
    let most = phases.into_iter().chain([limits.fuel]).map(|fuel| fuel.unwrap_or(u64::MAX)).max();
    assert!(limits.profile() == Profile::Metered || usage.fuel.is_none(), "{usage:?}");
    assert!(usage.fuel <= most, "{usage:?}");
}

/// What must hold for an answer.
pub(crate) fn check_answer(answer: &Bytes, limits: &ResourceLimits) {
    assert!(answer.len() as u64 <= limits.message_size.as_u64(), "an answer of {} bytes", answer.len());
}

/// Shuts a system down, and looks at what is left of it: all its dead letters and events, and nobody.
pub(crate) async fn close<U: Send + 'static>(
    system: ActorSystem<U>,
    events: &mut Receiver<SystemEvent>,
    limits: impl Fn(&CrashReport) -> ResourceLimits,
) {
    ends(system.shutdown(Duration::from_secs(60))).await;
    assert!(system.actors().is_empty(), "somebody is left: {:?}", system.actors());
    while let Ok(event) = events.try_recv() {
        match event {
            SystemEvent::Crashed(report) => check_report(&report, &limits(&report)),
            SystemEvent::Denied { target, .. } => _ = clean(&target),
            _ => {}
        }
    }
    for letter in system.dead_letters().list() {
        clean(&letter.reason);
        if let DeadReason::Poison { report, .. } = letter.reason {
            check_report(&report, &limits(&report));
        }
    }
}

/// The numbers that a case begins with; zeros where there are no more.
pub(crate) struct Head<'a>(pub(crate) &'a [u8]);

impl Head<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}
