//! What a component must export to be an actor. The contract itself is `wit/actor.wit`; components written for
//! `wasmcloud:messaging` are taken as they are.

use std::fmt;

use airssys_wasm_engine::{Export, LoadedComponent};

/// The guests' interface in WIT: the text of `airssys:actor@0.1.0`.
pub const WIT: &str = include_str!("../wit/actor.wit");

/// By which interface a component takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ContractKind {
    /// `airssys:actor/handler@0.1.0`.
    Actor,
    /// `wasmcloud:messaging/handler@0.2.0`.
    WasmCloud,
}

impl fmt::Display for ContractKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Actor => "airssys:actor@0.1.0",
            Self::WasmCloud => "wasmcloud:messaging@0.2.0",
        })
    }
}

/// A component that is no actor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the component takes no messages: it exports neither `{ACTOR_HANDLE}` nor `{WASMCLOUD_HANDLE}`, but {}",
    listed(exports)
)]
#[non_exhaustive]
pub struct NoHandler {
    /// What it exports.
    pub exports: Vec<String>,
}

/// Exports that a message lists: a component can have any number of them.
const MOST_LISTED: usize = 20;

fn listed(exports: &[String]) -> String {
    if exports.is_empty() {
        return "nothing".to_owned();
    }
    let shown = exports.iter().take(MOST_LISTED).map(|export| airssys_wasm_engine::shown(export).to_string());
    let mut listed = shown.collect::<Vec<_>>().join("; ");
    if exports.len() > MOST_LISTED {
        listed.push_str("; and more");
    }
    listed
}

pub(crate) const ACTOR_HANDLE: &str = "airssys:actor/handler@0.1.0#handle";
pub(crate) const WASMCLOUD_HANDLE: &str = "wasmcloud:messaging/handler@0.2.0#handle-message";

/// The exports of a component that the host calls.
#[derive(Debug)]
pub(crate) struct Contract {
    pub(crate) kind: ContractKind,
    pub(crate) handle: Export,
    pub(crate) init: Option<Export>,
    pub(crate) health: Option<Export>,
    pub(crate) shutdown: Option<Export>,
    pub(crate) snapshot: Option<Export>,
    pub(crate) restore: Option<Export>,
}

impl Contract {
    pub(crate) fn of(component: &LoadedComponent) -> Result<Self, NoHandler> {
        let find = |name| component.find_export(name);
        let (kind, handle) = match (find(ACTOR_HANDLE), find(WASMCLOUD_HANDLE)) {
            (Some(handle), _) => (ContractKind::Actor, handle),
            (None, Some(handle)) => (ContractKind::WasmCloud, handle),
            (None, None) => return Err(NoHandler { exports: component.exports() }),
        };
        Ok(Self {
            kind,
            handle,
            init: find("airssys:actor/init@0.1.0#init"),
            health: find("airssys:actor/health@0.1.0#check"),
            shutdown: find("airssys:actor/shutdown@0.1.0#shutdown"),
            snapshot: find("airssys:actor/state@0.1.0#snapshot"),
            restore: find("airssys:actor/state@0.1.0#restore"),
        })
    }
}
