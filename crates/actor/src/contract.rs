//! The exports that make a component an actor: those of `wit/actor.wit`, or of `wasmcloud:messaging`.

use std::fmt;

use airssys_wasm_engine::{Export, LoadedComponent, shown};
use serde::Deserialize;

/// The guests' interface in WIT: the text of `airssys:actor@0.1.0`.
pub const WIT: &str = include_str!("../wit/actor.wit");

/// The same with async functions: the text of `airssys:actor@0.2.0`.
pub const WIT_ASYNC: &str = include_str!("../wit/async/actor.wit");

/// The interface by which a component takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ContractKind {
    /// `airssys:actor/handler@0.1.0`.
    Actor,
    /// `airssys:actor/handler@0.2.0`, whose functions are async.
    #[serde(rename = "async-actor")]
    AsyncActor,
    /// `wasmcloud:messaging/handler@0.2.0`.
    WasmCloud,
    /// `wasmcloud:messaging/handler@0.3.0`, whose functions are async.
    #[serde(rename = "async-wasmcloud")]
    AsyncWasmCloud,
    /// None: it is called by its exports, whatever they are.
    Exports,
}

impl fmt::Display for ContractKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Actor => "airssys:actor@0.1.0",
            Self::AsyncActor => "airssys:actor@0.2.0",
            Self::WasmCloud => "wasmcloud:messaging@0.2.0",
            Self::AsyncWasmCloud => "wasmcloud:messaging@0.3.0",
            Self::Exports => "calls of its exports",
        })
    }
}

/// The component exports no message handler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct NoHandler {
    /// What the component is instead.
    pub kind: NoHandlerKind,
    /// The component's exports.
    pub exports: Vec<String>,
}

/// A component that cannot be what its specification says.
#[derive(Debug)]
pub(crate) enum Unfit {
    NoHandler(NoHandler),
    Concurrency(ConcurrencyError),
}

impl From<NoHandler> for Unfit {
    fn from(error: NoHandler) -> Self {
        Self::NoHandler(error)
    }
}

impl From<ConcurrencyError> for Unfit {
    fn from(error: ConcurrencyError) -> Self {
        Self::Concurrency(error)
    }
}

/// Several messages cannot be in flight at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConcurrencyError {
    /// The component's handler is not async.
    #[error("`concurrency` is for components that export `airssys:actor/handler@0.2.0`")]
    NotAsync,
    /// Fuel is counted for all of them together.
    #[error("`concurrency` does not go with fuel, which cannot be counted for each message; use `cpu_time`")]
    Metered,
}

/// What a component without a message handler is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoHandlerKind {
    /// A command: it exports `wasi:cli/run`.
    Command,
    /// An HTTP handler: it exports `wasi:http/incoming-handler`.
    HttpHandler,
    /// It exports a message handler of an unsupported version.
    OtherVersion {
        /// The exported interface, with its version.
        interface: String,
        /// The supported interface, with its version.
        offered: &'static str,
    },
    /// It exports no function.
    Nothing,
    /// It exports something else.
    Library,
}

impl NoHandler {
    fn of(exports: Vec<String>) -> Self {
        // Any version but the supported one: here that one lacks the handler function.
        let interface = |name: &str, offered: Option<&str>| {
            let mut interfaces =
                exports.iter().filter_map(|export| export.split_once('#')).map(|(interface, _)| interface);
            let unversioned = |interface: &str| interface.split_once('@').map_or(interface, |(name, _)| name) == name;
            interfaces.find(|interface| unversioned(interface) && Some(*interface) != offered)
        };
        let other = |name, offered| {
            let interface = interface(name, Some(offered))?.to_owned();
            Some(NoHandlerKind::OtherVersion { interface, offered })
        };
        let kind = other("airssys:actor/handler", "airssys:actor/handler@0.1.0")
            .or_else(|| other("wasmcloud:messaging/handler", "wasmcloud:messaging/handler@0.2.0"))
            .or_else(|| interface("wasi:http/incoming-handler", None).map(|_| NoHandlerKind::HttpHandler))
            .or_else(|| interface("wasi:cli/run", None).map(|_| NoHandlerKind::Command));
        let rest = if exports.is_empty() { NoHandlerKind::Nothing } else { NoHandlerKind::Library };
        Self { kind: kind.unwrap_or(rest), exports }
    }
}

impl fmt::Display for NoHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the component takes no messages: ")?;
        match &self.kind {
            NoHandlerKind::Command => write!(
                f,
                "it is a command, which runs from its beginning to its end; build it as a library that exports \
                 `{ACTOR_HANDLE}`"
            ),
            NoHandlerKind::HttpHandler => {
                write!(
                    f,
                    "it is an HTTP handler, and no actor; load it by `airssys-wasm-http`, or let it export `{ACTOR_HANDLE}`"
                )
            }
            NoHandlerKind::OtherVersion { interface, offered } => {
                write!(f, "it exports `{}`, and the host has `{offered}`; build it against that", shown(interface))
            }
            NoHandlerKind::Nothing => write!(f, "it exports no function; let it export `{ACTOR_HANDLE}`"),
            NoHandlerKind::Library => {
                write!(f, "it exports neither `{ACTOR_HANDLE}` nor `{WASMCLOUD_HANDLE}`, but {}", listed(&self.exports))
            }
        }
    }
}

/// Exports listed in an error message. The component chooses how many it has.
const MOST_LISTED: usize = 20;

fn listed(exports: &[String]) -> String {
    let shown = exports.iter().take(MOST_LISTED).map(|export| shown(export).to_string());
    let mut listed = shown.collect::<Vec<_>>().join("; ");
    if exports.len() > MOST_LISTED {
        listed.push_str("; and more");
    }
    listed
}

pub(crate) const ACTOR_HANDLE: &str = "airssys:actor/handler@0.1.0#handle";
pub(crate) const ASYNC_ACTOR_HANDLE: &str = "airssys:actor/handler@0.2.0#handle";
pub(crate) const WASMCLOUD_HANDLE: &str = "wasmcloud:messaging/handler@0.2.0#handle-message";
pub(crate) const ASYNC_WASMCLOUD_HANDLE: &str = "wasmcloud:messaging/handler@0.3.0#handle-message";

/// A component's exports that the host calls.
#[derive(Debug)]
pub(crate) struct Contract {
    pub(crate) kind: ContractKind,
    /// None where it takes no messages.
    pub(crate) handle: Option<Export>,
    pub(crate) init: Option<Export>,
    pub(crate) health: Option<Export>,
    pub(crate) shutdown: Option<Export>,
    pub(crate) snapshot: Option<Export>,
    pub(crate) restore: Option<Export>,
}

impl Contract {
    pub(crate) fn of(component: &LoadedComponent) -> Result<Self, NoHandler> {
        let find = |name| component.find_export(name);
        let handles = [
            (ContractKind::AsyncActor, ASYNC_ACTOR_HANDLE),
            (ContractKind::Actor, ACTOR_HANDLE),
            (ContractKind::AsyncWasmCloud, ASYNC_WASMCLOUD_HANDLE),
            (ContractKind::WasmCloud, WASMCLOUD_HANDLE),
        ];
        let found = handles.into_iter().find_map(|(kind, name)| Some((kind, find(name)?)));
        let Some((kind, handle)) = found else { return Err(NoHandler::of(component.exports())) };
        Ok(Self { kind, handle: Some(handle), ..Self::of_exports(component) })
    }

    /// Of a component that takes no messages.
    pub(crate) fn of_exports(component: &LoadedComponent) -> Self {
        let find = |interface, function| {
            let versions = if component.features().component_async { &["0.2.0", "0.1.0"][..] } else { &["0.1.0"] };
            versions
                .iter()
                .find_map(|version| component.find_export(&format!("airssys:actor/{interface}@{version}#{function}")))
        };
        Self {
            kind: ContractKind::Exports,
            handle: None,
            init: find("init", "init"),
            health: find("health", "check"),
            shutdown: find("shutdown", "shutdown"),
            snapshot: find("state", "snapshot"),
            restore: find("state", "restore"),
        }
    }
}

#[cfg(test)]
mod tests {
    use airssys_wasm_engine::{EngineConfig, Profile, WasmEngine};

    use super::*;

    #[test]
    fn what_takes_no_messages_is_told_apart() {
        let engine = WasmEngine::new(EngineConfig::on_demand().compile_in_process()).unwrap();
        let other = |interface: &str, offered| {
            let kind = NoHandlerKind::OtherVersion { interface: interface.to_owned(), offered };
            (interface.to_owned(), kind, "build it against that")
        };
        for (interface, kind, said) in [
            ("wasi:cli/run@0.2.6".to_owned(), NoHandlerKind::Command, "it is a command"),
            ("wasi:http/incoming-handler@0.2.0".to_owned(), NoHandlerKind::HttpHandler, "it is an HTTP handler"),
            other("wasmcloud:messaging/handler@0.4.0", "wasmcloud:messaging/handler@0.2.0"),
            other("airssys:actor/handler@0.3.0", "airssys:actor/handler@0.1.0"),
            ("some:thing/else".to_owned(), NoHandlerKind::Library, "but some:thing/else#f: func()"),
            // The supported interface without the handler function.
            (
                "airssys:actor/handler@0.1.0".to_owned(),
                NoHandlerKind::Library,
                "but airssys:actor/handler@0.1.0#f: func()",
            ),
            ("wasi:cli/runner@0.2.6".to_owned(), NoHandlerKind::Library, "but wasi:cli/runner@0.2.6#f: func()"),
        ] {
            let component = format!(
                r#"(component
                  (core module $m (func (export "f")))
                  (core instance $i (instantiate $m))
                  (func $f (canon lift (core func $i "f")))
                  (instance (export "{interface}") (export "f" (func $f))))"#
            );
            let component = engine.load_wat_blocking(&component, Profile::Plain).unwrap();
            let error = Contract::of(&component).unwrap_err();
            assert_eq!(error.kind, kind);
            assert!(error.to_string().contains(said) && error.to_string().lines().count() == 1, "{error}");
        }
        let nothing = engine.load_wat_blocking("(component)", Profile::Plain).unwrap();
        assert_eq!(Contract::of(&nothing).unwrap_err().kind, NoHandlerKind::Nothing);
    }
}
