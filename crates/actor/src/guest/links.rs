//! Imports that lead to other actors: each function of a linked interface is a call of the actor's export of that name.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{Arc, OnceLock, Weak},
};

use airssys_wasm_engine::{
    ExportError, LinkError, Linker, LoadedComponent, describe_func,
    wasmtime::{
        self, AsContextMut, StoreContextMut,
        component::{
            Accessor, LinkerInstance, Val,
            types::{ComponentFunc, ComponentItem, Type},
        },
    },
};
use airssys_wasm_isolation::{HostState, LinkFailed};
use airssys_wasm_limits::Metered;
use airssys_wasm_registry::{ComponentId, MessageEnvelope, Refusal};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    ActorState, CallError, DeniedAction, FarCall, LinkFault, LinksError,
    failure::policy::later,
    guest::{
        calls::{self, Made, typed_or_far},
        imports::{beside, room, share},
        signatures::{self, ByTypes, Outcome, Plain},
    },
    runtime::{
        call::{LinkedInterface, Used, come_back},
        cell::Cell,
        endpoint::Endpoint,
        mailbox::Delivery,
        values::{Signature, bound, weight},
    },
};

type Ctx<'a, U> = StoreContextMut<'a, HostState<ActorState<U>>>;

/// Imports of a component that lead to actors: the `[link]` table of a `Component.toml`.
///
/// ```toml
/// [link]
/// "acme:kv/store@1.0.0" = "kv"
/// ```
///
/// An interface is met by its name and any version that is compatible with it: 1.2.0 by 1.0.0, 0.2.1 by 0.2.0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Links(BTreeMap<String, ComponentId>);

impl Links {
    /// Adds one: an interface, and the actor or group that its functions call.
    #[must_use]
    pub fn with(mut self, interface: impl Into<String>, to: ComponentId) -> Self {
        self.0.insert(interface.into(), to);
        self
    }

    /// The interfaces and where each of them leads.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ComponentId)> {
        self.0.iter().map(|(interface, to)| (interface.as_str(), to))
    }
}

/// A function of a linked interface.
#[derive(Clone)]
struct Function {
    link: Arc<Link>,
    /// Its place in the interface.
    at: usize,
    used: Arc<Used>,
    /// Once an actor of another host was called.
    signature: Arc<OnceLock<Arc<Signature>>>,
}

/// A linked interface.
struct Link {
    to: ComponentId,
    interface: Arc<LinkedInterface>,
}

/// Defines the functions of linked imports in a linker.
pub(crate) fn define<U: Send + 'static>(
    linker: &mut Linker<HostState<ActorState<U>>>,
    component: &LoadedComponent,
    links: &Links,
) -> Result<(), LinksError> {
    for (interface, to) in links.iter() {
        let linked = Arc::new(linked_interface(component, interface)?);
        let link = Arc::new(Link { to: to.clone(), interface: Arc::clone(&linked) });
        let mut instance = linker.instance(&linked.name).map_err(|source| LinkError::HostFunctions { source })?;
        for (at, (name, ty)) in linked.functions.iter().enumerate() {
            let used = Arc::new(Used::imported(name, ty));
            let function = Function { link: Arc::clone(&link), at, used, signature: Arc::default() };
            let by_types = signatures::by_types(component, ty, Defines(&mut instance, &function));
            let defined = by_types.unwrap_or_else(|| match ty.async_() {
                true => by_values_of_an_async_one(&mut instance, function),
                false => by_values(&mut instance, function),
            });
            defined.map_err(|source| LinkError::HostFunctions { source })?;
        }
    }
    Ok(())
}

/// What of it a component imports: by that name, or in a version that is compatible.
pub(crate) fn linked_interface(component: &LoadedComponent, interface: &str) -> Result<LinkedInterface, LinksError> {
    let engine = component.wasmtime();
    let ty = component.component().component_type();
    let Some((name, item)) = ty
        .get_import(engine, interface)
        .map(|item| (interface, item))
        .or_else(|| ty.imports(engine).find(|(name, _)| compatible(name, interface)))
    else {
        let imports = ty.imports(engine).map(|(name, _)| format!("`{}`", name.escape_debug())).collect();
        return Err(LinksError::NoImport { interface: interface.to_owned(), imports });
    };
    let ComponentItem::ComponentInstance(instance) = item.ty else {
        return Err(LinksError::NoFunctions { interface: name.to_owned() });
    };
    let mut functions = Vec::new();
    for (function, item) in instance.exports(engine) {
        let full = format!("{name}#{function}");
        match item.ty {
            ComponentItem::ComponentFunc(ty) => {
                let types = ty.params().map(|(_, ty)| ty).chain(ty.results());
                if let Some(what) = types.filter_map(|ty| bound(&ty)).next() {
                    return Err(LinksError::NotPlain { function: full, what });
                }
                functions.push((full.into(), ty));
            }
            ComponentItem::Resource(_) => return Err(LinksError::NotPlain { function: full, what: "resource" }),
            _ => {}
        }
    }
    Ok(LinkedInterface { name: name.into(), functions })
}

/// Whether two versions of an interface are compatible, as the component model has it.
fn compatible(one: &str, other: &str) -> bool {
    fn track(name: &str) -> Option<(&str, &str)> {
        let (interface, version) = name.rsplit_once('@')?;
        if version.contains(['-', '+']) {
            return None;
        }
        let (major, rest) = version.split_once('.')?;
        let (minor, _) = rest.split_once('.')?;
        match (major, minor) {
            ("0", "0") => None,
            ("0", _) => Some((interface, &version[..major.len() + 1 + minor.len()])),
            _ => Some((interface, major)),
        }
    }
    track(one).is_some_and(|track_of_one| track(other) == Some(track_of_one))
}

/// Defines a function in a linker with static types.
struct Defines<'a, 'b, U: 'static>(&'a mut LinkerInstance<'b, HostState<ActorState<U>>>, &'a Function);

impl<U: Send + 'static> ByTypes for Defines<'_, '_, U> {
    type Made = wasmtime::Result<()>;

    fn make<P: Plain, R: Outcome>(self) -> Self::Made {
        by_types::<U, P, R>(self.0, self.1)
    }
}

fn by_types<U: Send + 'static, P: Plain, R: Outcome>(
    instance: &mut LinkerInstance<'_, HostState<ActorState<U>>>,
    function: &Function,
) -> wasmtime::Result<()> {
    let function = Arc::new(Function { used: Arc::new(Used::of::<P, R>(function.full())), ..function.clone() });
    let name = function.short().to_owned();
    instance.func_wrap_async(&name, move |mut store: Ctx<'_, U>, params: P| {
        let function = Arc::clone(&function);
        Box::new(async move {
            let called = function.call(&mut store, typed_or_far::<U, P, R>(&function.used, params)).await;
            let called = called.and_then(|result| function.heard(&store, result.size(), result));
            called.or_else(|fault| R::failed(&fault.said()).ok_or_else(|| function.failed(fault)))
        })
    })
}

fn by_values<U: Send + 'static>(
    instance: &mut LinkerInstance<'_, HostState<ActorState<U>>>,
    function: Function,
) -> wasmtime::Result<()> {
    let (name, speaks, function) = (function.short().to_owned(), Speaks::of(function.ty()), Arc::new(function));
    let speaks = Arc::new(speaks);
    instance.func_new_async(&name, move |mut store: Ctx<'_, U>, _, params, results| {
        let (function, speaks) = (Arc::clone(&function), Arc::clone(&speaks));
        Box::new(async move {
            let called = function.call(&mut store, calls::by_values(&function.used, params.to_vec(), None)).await;
            let called = called.and_then(|values| function.heard(&store, values.iter().map(weight).sum(), values));
            function.give(called, &speaks, results)
        })
    })
}

/// For an async function, of which a guest may have several calls on their way.
fn by_values_of_an_async_one<U: Send + 'static>(
    instance: &mut LinkerInstance<'_, HostState<ActorState<U>>>,
    function: Function,
) -> wasmtime::Result<()> {
    let (name, speaks, function) = (function.short().to_owned(), Speaks::of(function.ty()), Arc::new(function));
    let speaks = Arc::new(speaks);
    instance.func_new_concurrent(&name, move |tasks: &Accessor<HostState<ActorState<U>>>, _, params, results| {
        let (function, speaks) = (Arc::clone(&function), Arc::clone(&speaks));
        Box::pin(async move {
            let room = tasks.with(|mut store| room(store.data_mut()));
            let made = calls::by_values(&function.used, params.to_vec(), Some(Arc::clone(&room)));
            let weighs = made.0.pending.size();
            let begun = tasks.with(|mut store| {
                let data = store.data_mut();
                let share = share(data, weighs).ok_or(LinkFault::Call(CallError::NotSent(Refusal::Full)))?;
                Ok((function.begin(data)?, share, data.host_call()))
            });
            let called = match begun {
                Ok((begun, _share, _call)) => {
                    let begun = Begun { has_several: true, ..begun };
                    let fits = |receiver: &Cell| tasks.with(|mut store| function.fits(store.data_mut(), receiver));
                    function.exchange(begun, made, fits).await
                }
                Err(fault) => Err(fault),
            };
            let called = called.and_then(|values| {
                let size = values.iter().map(weight).sum();
                tasks.with(|mut store| function.heard(&store.as_context_mut(), size, values))
            });
            function.give(called, &speaks, results)
        })
    })
}

/// How a function can say that a call failed: by a `result` whose error is a string, or has a case that is one.
enum Speaks {
    Text,
    Case(String),
    Not,
}

impl Speaks {
    fn of(ty: &ComponentFunc) -> Self {
        let error = match ty.results().next() {
            Some(Type::Result(result)) => result.err(),
            _ => None,
        };
        match error {
            Some(Type::String) => Self::Text,
            Some(Type::Variant(variant)) => variant
                .cases()
                .find(|case| matches!(case.ty, Some(Type::String)))
                .map_or(Self::Not, |case| Self::Case(case.name.to_owned())),
            _ => Self::Not,
        }
    }

    fn say(&self, fault: &LinkFault) -> Option<Val> {
        let text = Val::String(fault.said());
        let error = match self {
            Self::Text => text,
            Self::Case(name) => Val::Variant(name.clone(), Some(Box::new(text))),
            Self::Not => return None,
        };
        Some(Val::Result(Err(Some(Box::new(error)))))
    }
}

impl Function {
    fn full(&self) -> &str {
        &self.link.interface.functions[self.at].0
    }

    fn short(&self) -> &str {
        self.full().rsplit_once('#').map_or(self.full(), |(_, short)| short)
    }

    fn ty(&self) -> &ComponentFunc {
        &self.link.interface.functions[self.at].1
    }

    fn failed(&self, fault: LinkFault) -> wasmtime::Error {
        let (function, to) = (self.full().to_owned(), self.link.to.to_string());
        wasmtime::Error::new(LinkFailed { function, to, cause: Arc::new(fault) })
    }

    /// Holds a result against what a message to the caller may have, into whose memory it is lowered.
    fn heard<U, R>(&self, store: &Ctx<'_, U>, size: usize, result: R) -> Result<R, LinkFault> {
        match store.data().ext.cell.mailbox.check_size(size) {
            Ok(()) => Ok(result),
            Err(reason) => Err(LinkFault::Result(reason)),
        }
    }

    /// Writes down what a call by values gave.
    fn give(&self, called: Result<Vec<Val>, LinkFault>, speaks: &Speaks, results: &mut [Val]) -> wasmtime::Result<()> {
        match called {
            Ok(values) => results.iter_mut().zip(values).for_each(|(to, value)| *to = value),
            Err(fault) => match (speaks.say(&fault), results) {
                (Some(said), [result]) => *result = said,
                _ => return Err(self.failed(fault)),
            },
        }
        Ok(())
    }

    /// Why a call failed that a receiver took.
    fn failed_there(&self, error: CallError) -> LinkFault {
        match error {
            // It had gone over to a version that does not fit.
            CallError::Contract(error) => LinkFault::Mismatch {
                imported: describe_func(self.full(), self.ty()),
                exported: match &*error {
                    ExportError::Mistyped { actual, .. } => Some(actual.clone()),
                    _ => None,
                },
            },
            // A native actor of another host.
            CallError::OtherSystem => {
                LinkFault::Mismatch { imported: describe_func(self.full(), self.ty()), exported: None }
            }
            CallError::ResultTooLarge { size, allowed } => LinkFault::Result(Refusal::TooLarge { size, allowed }),
            error => LinkFault::Call(error),
        }
    }

    async fn call<U: Send + 'static, R>(&self, store: &mut Ctx<'_, U>, made: Made<R>) -> Result<R, LinkFault> {
        let begun = self.begin(store.data_mut())?;
        self.exchange(begun, made, |receiver| self.fits(store.data_mut(), receiver)).await
    }

    /// Whether the caller may call, and until when.
    fn begin<U: Send + 'static>(&self, data: &mut HostState<ActorState<U>>) -> Result<Begun, LinkFault> {
        let longest = data.meter().quota().limits().deadline;
        let state = &mut data.ext;
        let to = &self.link.to;
        if !state.capabilities.may_call(to) {
            state.deny(DeniedAction::Call, to.as_str());
            return Err(LinkFault::Denied);
        }
        // One whose name may be another host's calls nobody in it.
        if state.cell.is_fenced() {
            return Err(LinkFault::Call(CallError::NotSent(Refusal::Moved)));
        }
        let until = later(Instant::now(), longest);
        let until = state.deadline().map_or(until, |deadline| deadline.min(until));
        let message = state.envelope(Bytes::new()).with_deadline(until);
        Ok(Begun { caller: Arc::clone(&state.cell), message, until, has_several: false })
    }

    /// Whether a receiver has what the caller imports.
    fn fits<U>(&self, data: &mut HostState<ActorState<U>>, receiver: &Cell) -> Result<(), LinkFault> {
        let ActorState { cell, fitting, .. } = &mut data.ext;
        fitting.get_or_insert_default().fit(cell, receiver, &self.link.interface)
    }

    /// Sends the call to the first receiver that takes it. If all are full, waits for the first.
    async fn exchange<R>(
        &self,
        Begun { caller, message, until, has_several }: Begun,
        (call, result): Made<R>,
        mut fits: impl FnMut(&Cell) -> Result<(), LinkFault>,
    ) -> Result<R, LinkFault> {
        let to = &self.link.to;
        let mut delivery = Delivery::of_call(message, call);
        let exchange = async {
            let mut receivers = actors(&caller, to).peekable();
            // Who is not in memory, or not any more, and comes before the others when it is.
            let mut absent = if receivers.peek().is_none() { Some(to.clone()) } else { None };
            let (mut fault, mut full) = (LinkFault::Unknown(to.clone()), None);
            loop {
                let mut next = None;
                if let Some(name) = absent.take() {
                    match awakened(&caller, &name) {
                        Ok(actor) => next = Some(actor),
                        Err(asleep) => {
                            if matches!(asleep, LinkFault::Unknown(_))
                                && let Some(called) = self.call_elsewhere(&caller, &name, &mut delivery)
                            {
                                let called = called?;
                                if has_several {
                                    // What it gives takes room when it comes.
                                    _ = beside(called).await;
                                } else {
                                    called.await;
                                }
                                return come_back(result, None).await.map_err(|error| self.failed_there(error));
                            }
                            fault = asleep;
                        }
                    }
                }
                let (receiver, waits) = match next.or_else(|| receivers.next()) {
                    Some(receiver) => (receiver, false),
                    None => (full.take().ok_or_else(|| fault.clone())?, true),
                };
                let Some(_waiting) = caller.waits_for(&receiver) else {
                    fault = LinkFault::Cycle;
                    continue;
                };
                if let Err(unfit) = fits(&receiver) {
                    fault = unfit;
                    continue;
                }
                // What it holds is another receiver's.
                delivery.let_go();
                let pushed = if waits { receiver.push(delivery).await } else { receiver.try_push(delivery) };
                match pushed {
                    Ok(()) => return come_back(result, None).await.map_err(|error| self.failed_there(error)),
                    Err((Refusal::Moved, back)) => {
                        (delivery, absent) = (back, Some(receiver.id().clone()));
                    }
                    Err((reason, back)) => {
                        (delivery, fault) = (back, LinkFault::Call(CallError::NotSent(reason)));
                        if !waits && matches!(reason, Refusal::Full | Refusal::Restarting) && full.is_none() {
                            full = Some(receiver);
                        }
                    }
                }
            }
        };
        timeout_at(until, exchange).await.unwrap_or(Err(LinkFault::Call(CallError::Deadline)))
    }

    /// `None` if the type is too long for another host.
    fn signature(&self) -> Option<Arc<Signature>> {
        if let Some(signature) = self.signature.get() {
            return Some(Arc::clone(signature));
        }
        let signature = Arc::new(Signature::of(self.ty())?);
        if signature.is_small() {
            // Fails if another thread has made it, too.
            _ = self.signature.set(Arc::clone(&signature));
        }
        Some(signature)
    }

    /// Has an actor called that nobody here has, if somebody knows where it is. The future tells the caller what came of it.
    #[cold]
    fn call_elsewhere(
        &self,
        caller: &Cell,
        to: &ComponentId,
        delivery: &mut Delivery,
    ) -> Option<Result<BoxFuture<'static, ()>, LinkFault>> {
        if !caller.services.has_elsewhere() {
            return None;
        }
        let Some(signature) = self.signature() else {
            return Some(Err(LinkFault::LongType { allowed: FarCall::LONGEST_TYPE }));
        };
        let message = delivery.message.clone().with_payload(delivery.call_mut()?.pending.encoded(&signature)?);
        let (export, ty) = (Arc::clone(&self.link.interface.functions[self.at].0), Arc::clone(&signature.text));
        let called = caller.services.call_elsewhere(to, &FarCall { export, ty, message })?;
        let (mut pending, most) = (delivery.take_call()?.pending, caller.mailbox.message_size());
        Some(Ok(Box::pin(async move {
            match called.await {
                Ok(results) => pending.heard(results, &signature, usize::try_from(most).unwrap_or(usize::MAX)),
                Err(error) => pending.fail(error),
            }
        })))
    }
}

/// A call that may be made.
struct Begun {
    caller: Arc<Cell>,
    message: MessageEnvelope,
    until: Instant,
    /// Whether the caller may have several on their way.
    has_several: bool,
}

/// The actor of a name, or the members of a group.
fn actors(asker: &Cell, to: &ComponentId) -> impl Iterator<Item = Arc<Cell>> {
    asker.services.registry.sinks(to).filter_map(|receiver| match &*receiver {
        Endpoint::Actor(cell) => Some(Arc::clone(cell)),
        Endpoint::Host(_) => None,
    })
}

/// The actor of a name that is not registered, brought into being.
fn awakened(caller: &Cell, name: &ComponentId) -> Result<Arc<Cell>, LinkFault> {
    match caller.services.awaken(name, Some(&caller.address)) {
        Some(Ok(actor)) => Ok(actor.0),
        Some(Err(reason)) => Err(LinkFault::Call(CallError::NotSent(reason))),
        None => Err(LinkFault::Unknown(name.clone())),
    }
}

/// Who was found to fit the links of an incarnation, and is held to it while that lives.
#[derive(Default)]
pub(crate) struct Fitting {
    token: Arc<()>,
    /// Receivers and interfaces, each as long as the receiver's version is called. A receiver that goes over to another one
    /// meanwhile finds out by itself what it is called with.
    with: Vec<(NonZeroU64, usize, Weak<()>)>,
}

/// Receivers that are remembered.
const REMEMBERED: usize = 64;

impl Fitting {
    fn fit(&mut self, caller: &Cell, receiver: &Cell, interface: &Arc<LinkedInterface>) -> Result<(), LinkFault> {
        let (generation, at) = (receiver.address.generation(), Arc::as_ptr(interface).addr());
        let mut known = self.with.iter().filter(|(receiver, interface, _)| (*receiver, *interface) == (generation, at));
        if known.any(|(_, _, version)| version.strong_count() > 0) {
            return Ok(());
        }
        let version = receiver.exports.lock().hold_to(caller.id(), interface, &self.token)?;
        if self.with.len() >= REMEMBERED {
            self.with.clear();
        }
        self.with.push((generation, at, version));
        Ok(())
    }

    /// Holds those that are there already against a link.
    pub(crate) fn begin(
        &mut self,
        caller: &Cell,
        to: &ComponentId,
        interface: &Arc<LinkedInterface>,
    ) -> Result<(), LinkFault> {
        if caller.id() == to {
            return Err(LinkFault::Cycle);
        }
        // A member of its own group calls the others.
        let mut others = actors(caller, to).filter(|receiver| receiver.address != caller.address);
        others.try_for_each(|receiver| self.fit(caller, &receiver, interface))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compatible_as_the_component_model_has_it() {
        let table = [
            ("a:b/c@1.0.0", "a:b/c@1.2.3", true),
            ("a:b/c@1.0.0", "a:b/c@2.0.0", false),
            ("a:b/c@0.2.0", "a:b/c@0.2.9", true),
            ("a:b/c@0.2.0", "a:b/c@0.3.0", false),
            ("a:b/c@0.0.1", "a:b/c@0.0.2", false),
            ("a:b/c@1.0.0-rc.1", "a:b/c@1.0.0", false),
            ("a:b/c@1.0.0", "a:b/d@1.0.0", false),
            ("a:b/c", "a:b/c", false),
            ("a:b/c@1", "a:b/c@1", false),
        ];
        for (one, other, expected) in table {
            assert_eq!(compatible(one, other), expected, "{one} {other}");
        }
    }
}
