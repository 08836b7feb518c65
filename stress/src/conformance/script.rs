//! One script: its components, which live one after the other or under names, and what is asserted of them.

use std::{collections::HashMap, rc::Rc, time::Duration};

use airssys_wasm_engine::{LinkError, LoadError, LoadedComponent, Profile, WasmEngine, wasmtime::component::Val};
use airssys_wasm_isolation::{Crash, CrashKind, DynamicCallError, InstantiateError, Sandbox, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use anyhow::{Context, Result, bail};
use wast::{
    QuoteWat, Wast, WastArg, WastDirective, WastExecute, WastInvoke, WastRet, Wat,
    parser::{self, ParseBuffer},
    token::Id,
};

use super::{
    Report,
    host::Host,
    note,
    values::{same, value},
};

/// An instance, until it traps. None for a component that is not taken.
type Instance = Option<(SandboxSpec<()>, Sandbox<()>)>;

/// A component, and its binary form.
#[derive(Clone)]
struct Loaded {
    component: LoadedComponent,
    binary: Rc<[u8]>,
}

struct Run<'a> {
    engine: &'a WasmEngine,
    report: &'a mut Report,
    /// In the order of the script: calls without a name are of the last.
    instances: Vec<Instance>,
    names: HashMap<String, usize>,
    definitions: HashMap<Option<String>, Option<Loaded>>,
    host: Host,
}

pub(super) async fn run(engine: &WasmEngine, name: &str, text: &str, report: &mut Report) -> Result<()> {
    let buffer = ParseBuffer::new(text)?;
    let script = match parser::parse::<Wast<'_>>(&buffer) {
        Ok(script) => script,
        Err(error) => bail!("not a script: {}", error.message()),
    };
    let mut run = Run {
        engine,
        report,
        instances: Vec::new(),
        names: HashMap::new(),
        definitions: HashMap::new(),
        host: Host::default(),
    };
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
                let said = match module.encode() {
                    // What cannot even be written down.
                    Err(error) => error.message(),
                    Ok(binary) => match self.engine.load_blocking(&binary, Profile::Plain) {
                        Err(LoadError::Invalid { error }) => format!("{error:#}"),
                        Ok(_) => bail!("loaded, and should be refused: {message}"),
                        Err(error) => {
                            self.refused(error, place)?;
                            self.report.left_out += 1;
                            return Ok(());
                        }
                    },
                };
                self.held(&said, message)?;
            }
            WastDirective::AssertUnlinkable { mut module, message, .. } if matches!(module, Wat::Component(_)) => {
                match self.load(&module.encode()?, place)? {
                    None => self.report.left_out += 1,
                    Some(loaded) => match self.spec(&loaded).await {
                        Ok(_) => bail!("linked, and should not: {message}"),
                        Err(LinkError::Unsatisfied { error, .. }) => self.held(&format!("{error:#}"), message)?,
                        Err(error) => return Err(error.into()),
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
                        let Some(spec) = self.linked(&loaded, place).await? else {
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
                    let said = match crash.kind() {
                        CrashKind::WasmtimeBug { .. } => bail!("crashed, and should trap: {crash}"),
                        CrashKind::Exception => "thrown Wasm exception".to_owned(),
                        CrashKind::BadValue { message }
                        | CrashKind::HostCall { message }
                        | CrashKind::Refused { message } => message.clone(),
                        kind => kind.to_string(),
                    };
                    self.held(&said, message)?;
                }
            }
            _ => self.report.others += 1,
        }
        Ok(())
    }

    /// Counts an assertion that failed as it should, if it was for the reason that the script names.
    fn held(&mut self, said: &str, message: &str) -> Result<()> {
        // As wasmtime's own runner compares them: of these some scripts have another ending.
        let is_so = |of: &str| {
            said.contains(of)
                || ["cannot read", "cannot write"]
                    .iter()
                    .any(|beginning| of.contains(beginning) && said.contains(beginning))
        };
        if !is_so(message) {
            bail!("failed by `{said}`, and should by `{message}`");
        }
        self.report.held += 1;
        Ok(())
    }

    /// Whether a limit of ours ended it, which is noted.
    fn is_limited(&mut self, crash: &Crash, place: &str) -> bool {
        let is_limited = !is_the_guests_own(crash.kind());
        if is_limited {
            note(&mut self.report.limited, crash.kind().class().as_str().to_owned(), place);
        }
        is_limited
    }

    /// `None` if it is not taken, for a reason that is noted.
    fn load(&mut self, binary: &[u8], place: &str) -> Result<Option<Loaded>> {
        match self.engine.load_blocking(binary, Profile::Plain) {
            Ok(component) => Ok(Some(Loaded { component, binary: binary.into() })),
            Err(error) => self.refused(error, place).map(|()| None),
        }
    }

    /// Notes why a component is not taken, if it may be.
    fn refused(&mut self, error: LoadError, place: &str) -> Result<()> {
        let reason = match error {
            LoadError::Unsupported { feature } => format!("needs {feature}"),
            LoadError::UnknownInstance { what } => format!("instantiates {what} that it imports"),
            LoadError::TooComplex { what, .. } => format!("too complex: `{what}`"),
            error => bail!("not loaded: {error}"),
        };
        note(&mut self.report.refused, reason, place);
        Ok(())
    }

    async fn spec(&self, loaded: &Loaded) -> Result<SandboxSpec<()>, LinkError> {
        let component = &loaded.component;
        let mut linker = component.linker();
        let defined = self.host.define(&mut linker, component.wasmtime(), component.features()).await;
        defined.map_err(|source| LinkError::HostFunctions { source })?;
        // Some fill a memory, and some take seconds.
        let cpu_time = Duration::from_secs(5);
        let limits = ResourceLimits { cpu_time, ..ResourceLimits::with_memory(ByteSize::gib(4)) };
        Ok(SandboxSpec::new(component.link(&linker)?, limits).expect("limits that fit any of them"))
    }

    /// `None` if it imports what is not there, which is noted.
    async fn linked(&mut self, loaded: &Loaded, place: &str) -> Result<Option<SandboxSpec<()>>> {
        match self.spec(loaded).await {
            Ok(spec) => Ok(Some(spec)),
            Err(LinkError::Unsatisfied { imports, .. }) => {
                let what =
                    imports.first().map_or("what nobody defines".to_owned(), |import| format!("`{}`", import.name));
                note(&mut self.report.refused, format!("imports {what}"), place);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn instantiate(&mut self, name: Option<String>, loaded: Option<Loaded>, place: &str) -> Result<()> {
        let at = self.instances.len();
        self.instances.push(None);
        if let Some(name) = &name {
            self.names.insert(name.clone(), at);
        }
        let Some(loaded) = loaded else { return Ok(()) };
        let Some(spec) = self.linked(&loaded, place).await? else { return Ok(()) };
        let sandbox = spec.instantiate(()).await.context("not instantiated")?;
        self.report.loaded += 1;
        self.instances[at] = Some((spec, sandbox));
        if let Some(name) = &name {
            self.host.name(name, loaded.binary);
        }
        Ok(())
    }

    /// `None` if its instance is not there.
    async fn call(&mut self, call: &WastInvoke<'_>) -> Result<Option<Result<Vec<Val>, Crash>>> {
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
