//! Calls that come from other hosts: their parameters.

use std::{sync::LazyLock, time::Duration};

use airssys_wasm_actor::{ActorSpec, CallError, ContractKind, FarCall};
use airssys_wasm_engine::{LoadedComponent, Profile, describe_type};
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{MessageEnvelope, Refusal};

use crate::host::{Script, Template, component, ends, id, run, system, template, told};

/// What gives what it is given.
static ECHO: LazyLock<(Template, LoadedComponent)> = LazyLock::new(|| {
    let echo = component(include_str!("../wat/echo.wat"), Profile::Plain);
    (template(&echo), echo)
});

const FUNCTIONS: [&str; 5] = ["all-of-it", "bytes", "numbers", "figures", "nested"];

/// A function of a component's, and the encoded parameters of a call of it, as another host sends them.
///
/// - They are read, refused as none of the function's, or refused as larger than a message to the actor may be.
/// - What is read weighs no more than that, and is the only value with these bytes: an actor that gives it back gives the
///   same bytes.
/// - No parameters end the actor.
pub fn values(data: &[u8]) {
    let Some((function, params)) = data.split_first() else { return };
    let name = FUNCTIONS[usize::from(*function) % FUNCTIONS.len()];
    run(async {
        let system = system(Script::default());
        let day = Duration::from_secs(86_400);
        let limits = ResourceLimits {
            message_size: ByteSize::kib(16),
            cpu_time: day,
            deadline: day,
            ..ResourceLimits::with_memory(ByteSize::mib(5))
        };
        let allowed = limits.message_size.as_u64();
        let sandbox = SandboxSpec::new(ECHO.0.clone(), limits).expect("sensible limits");
        let spec = ActorSpec::new(id("e"), sandbox).with_contract(ContractKind::Exports);
        let actor = ends(system.spawn(spec)).await.expect("it starts");
        let export = ECHO.1.export(name).expect("it is exported");
        let ty = describe_type(export.func(), FarCall::LONGEST_TYPE).expect("it is short").into();
        let call = FarCall { export: name.into(), ty, message: MessageEnvelope::new(params.to_vec()) };
        match system.call_encoded(&actor, call) {
            Ok(called) => match ends(called).await {
                Ok(results) => assert_eq!(results, params, "another value has these bytes"),
                Err(CallError::Malformed { made: false }) => {}
                Err(error) => panic!("{error}"),
            },
            Err(reason @ Refusal::TooLarge { size, allowed: told_of }) => {
                told(&reason);
                assert!(told_of == allowed && size > allowed, "{reason}");
            }
            Err(reason) => panic!("{reason}"),
        }
        assert_eq!(actor.info().incarnation, 1);
        ends(system.shutdown(Duration::from_secs(1))).await;
    });
}
