//! One script: its components, which live one after the other or under names, and what is asserted of them.

use std::{collections::HashMap, time::Duration};

use airssys_wasm_engine::{LinkError, Linker, LoadError, LoadedComponent, Profile, WasmEngine, wasmtime};
use airssys_wasm_isolation::{Crash, CrashKind, DynamicCallError, HostState, InstantiateError, Sandbox, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result, bail};
use wast::{
    QuoteWat, Wast, WastArg, WastDirective, WastExecute, WastInvoke, WastRet, Wat,
    parser::{self, ParseBuffer},
    token::Id,
};

use super::{
    Report, count,
    values::{same, value},
};

/// An instance, until it traps. None for a component that is not taken.
type Instance = Option<(SandboxSpec<()>, Sandbox<()>)>;

struct Run<'a> {
    engine: &'a WasmEngine,
    report: &'a mut Report,
    /// In the order of the script: calls without a name are of the last.
    instances: Vec<Instance>,
    names: HashMap<String, usize>,
    definitions: HashMap<Option<String>, Option<LoadedComponent>>,
}

pub(super) async fn run(engine: &WasmEngine, name: &str, text: &str, report: &mut Report) -> Result<()> {
    let buffer = ParseBuffer::new(text)?;
    let script = match parser::parse::<Wast<'_>>(&buffer) {
        Ok(script) => script,
        Err(error) => bail!("not a script: {}", error.message()),
    };
    let mut run = Run { engine, report, instances: Vec::new(), names: HashMap::new(), definitions: HashMap::new() };
    for directive in script.directives {
        let (line, _) = directive.span().linecol_in(text);
        let place = format!("{name}:{}", line + 1);
        if let Err(fault) = run.directive(directive, &place).await {
            run.report.faults.push(format!("{place}: {fault:#}"));
        }
    }
    Ok(())
}

fn named(id: Option<Id<'_>>) -> Option<String> {
    id.map(|id| id.name().to_owned())
}

/// A component that must load.
fn is_component(wat: &QuoteWat<'_>) -> bool {
    matches!(wat, QuoteWat::Wat(Wat::Component(_)) | QuoteWat::QuoteComponent(..))
}

impl Run<'_> {
    async fn directive(&mut self, directive: WastDirective<'_>, place: &str) -> Result<()> {
        match directive {
            WastDirective::Module(mut wat) if is_component(&wat) => {
                let name = named(wat.name());
                let loaded = self.load(&wat.encode()?, place)?;
                self.instantiate(name, loaded, place).await?;
            }
            WastDirective::ModuleDefinition(mut wat) if is_component(&wat) => {
                let name = named(wat.name());
                let loaded = self.load(&wat.encode()?, place)?;
                if loaded.is_some() {
                    self.report.loaded += 1;
                }
                self.definitions.insert(name, loaded.clone());
                self.definitions.insert(None, loaded);
            }
            WastDirective::ModuleInstance { instance, module, .. } => {
                let loaded = self.definitions.get(&named(module)).cloned().context("no such definition")?;
                self.instantiate(named(instance), loaded, place).await?;
            }
            WastDirective::AssertInvalid { mut module, message, .. }
            | WastDirective::AssertMalformed { mut module, message, .. }
                if is_component(&module) =>
            {
                // What cannot even be written down is as it should be.
                if let Ok(binary) = module.encode()
                    && self.engine.load_blocking(&binary, Profile::Plain).is_ok()
                {
                    bail!("loaded, and should be refused: {message}");
                }
                self.report.held += 1;
            }
            WastDirective::AssertUnlinkable { mut module, message, .. } if matches!(module, Wat::Component(_)) => {
                match self.load(&module.encode()?, place)? {
                    None => self.report.left_out += 1,
                    Some(loaded) => match self.spec(&loaded) {
                        Ok(_) => bail!("linked, and should not: {message}"),
                        Err(_) => self.report.held += 1,
                    },
                }
            }
            WastDirective::Invoke(call) => match self.call(&call).await? {
                None => self.report.left_out += 1,
                Some(Ok(_)) => {}
                Some(Err(crash)) if self.is_limited(&crash, place) => {}
                Some(Err(crash)) => bail!("crashed: {crash}"),
            },
            WastDirective::AssertReturn { exec: WastExecute::Invoke(call), results, .. } => {
                match self.call(&call).await? {
                    None => self.report.left_out += 1,
                    Some(Ok(values)) => {
                        let expected: Vec<_> = results
                            .iter()
                            .map(|result| match result {
                                WastRet::Component(result) => Ok(value(result)),
                                _ => bail!("a result of a module"),
                            })
                            .collect::<Result<_>>()?;
                        let is_same = values.len() == expected.len()
                            && values.iter().zip(&expected).all(|(one, other)| same(one, other));
                        if !is_same {
                            bail!("`{}` gave {values:?}, not {expected:?}", call.name);
                        }
                        self.report.held += 1;
                    }
                    Some(Err(crash)) if self.is_limited(&crash, place) => {}
                    Some(Err(crash)) => bail!("crashed: {crash}"),
                }
            }
            WastDirective::AssertTrap { exec, message, .. } => {
                let crash = match exec {
                    WastExecute::Invoke(call) => match self.call(&call).await? {
                        None => {
                            self.report.left_out += 1;
                            return Ok(());
                        }
                        Some(Ok(values)) => bail!("gave {values:?}, and should trap: {message}"),
                        Some(Err(crash)) => crash,
                    },
                    WastExecute::Wat(mut wat) if matches!(wat, Wat::Component(_)) => {
                        let Some(loaded) = self.load(&wat.encode()?, place)? else {
                            self.report.left_out += 1;
                            return Ok(());
                        };
                        let Ok(spec) = self.spec(&loaded) else {
                            self.report.left_out += 1;
                            return Ok(());
                        };
                        match spec.instantiate(()).await {
                            Err(InstantiateError::Crash(crash)) => crash,
                            other => bail!("{other:?}, and should trap: {message}"),
                        }
                    }
                    _ => {
                        self.report.others += 1;
                        return Ok(());
                    }
                };
                if !self.is_limited(&crash, place) {
                    self.report.held += 1;
                }
            }
            _ => self.report.others += 1,
        }
        Ok(())
    }

    /// Whether a limit of ours ended it, which is noted.
    fn is_limited(&mut self, crash: &Crash, place: &str) -> bool {
        let is_limited = !is_the_guests_own(crash.kind());
        if is_limited {
            count(&mut self.report.limited, crash.kind().class().as_str().to_owned(), place);
        }
        is_limited
    }

    /// `None` if it is not taken, for a reason that is noted.
    fn load(&mut self, binary: &[u8], place: &str) -> Result<Option<LoadedComponent>> {
        let reason = match self.engine.load_blocking(binary, Profile::Plain) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(LoadError::Unsupported { feature }) => format!("needs {feature}"),
            Err(LoadError::UnknownInstance { what }) => format!("instantiates {what} that it imports"),
            Err(LoadError::TooComplex { what, .. }) => format!("too complex: `{what}`"),
            Err(error) => bail!("not loaded: {error}"),
        };
        count(&mut self.report.refused, reason, place);
        Ok(None)
    }

    fn spec(&self, loaded: &LoadedComponent) -> Result<SandboxSpec<()>, LinkError> {
        let mut linker = loaded.linker();
        define_host(&mut linker, loaded).map_err(|source| LinkError::HostFunctions { source })?;
        // Some fill a memory, and some take seconds.
        let cpu_time = Duration::from_secs(5);
        let limits = ResourceLimits { cpu_time, ..ResourceLimits::with_memory(ByteSize::gib(4)) };
        Ok(SandboxSpec::new(loaded.link(&linker)?, limits).expect("limits that fit any of them"))
    }

    async fn instantiate(&mut self, name: Option<String>, loaded: Option<LoadedComponent>, place: &str) -> Result<()> {
        if let Some(name) = name {
            self.names.insert(name, self.instances.len());
        }
        self.instances.push(None);
        let spec = match loaded.map(|loaded| self.spec(&loaded)) {
            None => return Ok(()),
            Some(Ok(spec)) => spec,
            Some(Err(LinkError::Unsatisfied { imports, .. })) => {
                let what =
                    imports.first().map_or("what nobody defines".to_owned(), |import| format!("`{}`", import.name));
                count(&mut self.report.refused, format!("imports {what}"), place);
                return Ok(());
            }
            Some(Err(error)) => return Err(error.into()),
        };
        let sandbox = spec.instantiate(()).await.context("not instantiated")?;
        self.report.loaded += 1;
        *self.instances.last_mut().expect("pushed above") = Some((spec, sandbox));
        Ok(())
    }

    /// `None` if its instance is not there.
    async fn call(&mut self, call: &WastInvoke<'_>) -> Result<Option<Result<Vec<wasmtime::component::Val>, Crash>>> {
        let at = match named(call.module) {
            Some(name) => *self.names.get(&name).context("no such instance")?,
            None => self.instances.len().checked_sub(1).context("no instance yet")?,
        };
        let Some((spec, mut live)) = self.instances[at].take() else { return Ok(None) };
        let params: Vec<_> = call
            .args
            .iter()
            .map(|arg| match arg {
                WastArg::Component(arg) => Ok(value(arg)),
                _ => bail!("an argument for a module"),
            })
            .collect::<Result<_>>()?;
        let export = live.dynamic(&spec.export(call.name)?)?;
        match live.call_dynamic(&export, &params).await {
            Ok((values, live)) => {
                self.instances[at] = Some((spec, live));
                Ok(Some(Ok(values)))
            }
            Err(DynamicCallError::Arguments { error, sandbox: live }) => {
                self.instances[at] = Some((spec, live));
                Err(error.into())
            }
            Err(DynamicCallError::Crash(crash)) => Ok(Some(Err(crash))),
            Err(other) => bail!("{other}"),
        }
    }
}

/// Whether a guest ended by itself, and not by a limit of ours.
fn is_the_guests_own(kind: &CrashKind) -> bool {
    matches!(
        kind,
        CrashKind::Trap { .. }
            | CrashKind::Exception
            | CrashKind::StackOverflow
            | CrashKind::BadValue { .. }
            | CrashKind::HostCall { .. }
            | CrashKind::Refused { .. }
            | CrashKind::WasmtimeBug { .. }
    )
}

/// What wasmtime's own runner defines, as far as it is functions with plain values.
fn define_host(linker: &mut Linker<HostState<()>>, loaded: &LoadedComponent) -> wasmtime::Result<()> {
    linker.root().func_wrap("host-return-two", |_, (): ()| Ok((2_u32,)))?;
    let mut host = linker.instance("host")?;
    host.func_wrap("return-three", |_, (): ()| Ok((3_u32,)))?;
    host.func_wrap("return-hi", |_, (): ()| Ok(("hi".to_owned(),)))?;
    // Another engine takes no module of this one, which is none of the script's business.
    let module = r#"(module (global (export "g") i32 i32.const 100) (func (export "f") (result i32) i32.const 101))"#;
    host.module("simple-module", &wasmtime::Module::new(loaded.wasmtime(), wat::parse_str(module)?)?)?;
    host.instance("nested")?.func_wrap("return-four", |_, (): ()| Ok((4_u32,)))?;
    if loaded.features().component_async {
        host.func_wrap_concurrent(
            "never-return",
            |_, (): ()| Box::pin(std::future::pending::<wasmtime::Result<()>>()),
        )?;
        host.func_wrap_concurrent("return-two-slowly", |_, (): ()| {
            Box::pin(async {
                tokio::task::yield_now().await;
                Ok((2_i32,))
            })
        })?;
        host.func_wrap_concurrent("echo-slowly", |_, (of,): (u32,)| {
            Box::pin(async move {
                tokio::task::yield_now().await;
                Ok((of,))
            })
        })?;
        linker.root().func_wrap_concurrent("host-echo-u32", |_, (of,): (u32,)| Box::pin(async move { Ok((of,)) }))?;
    }
    Ok(())
}
