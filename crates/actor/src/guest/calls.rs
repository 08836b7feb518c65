//! Calls of a guest's exports through its mailbox: typed, by a closure, and with values.

use std::{
    any::Any,
    marker::PhantomData,
    sync::{Arc, Weak},
    time::Duration,
};

use airssys_wasm_engine::wasmtime::{
    self, StoreContextMut,
    component::{ComponentNamedList, Instance, Lift, Lower, Val},
};
use airssys_wasm_isolation::{Crash, DynamicCallError, HostState, TypedExport};
use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::MessageEnvelope;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    ActorRef, ActorState, CallError,
    failure::policy::later,
    guest::incarnation::GuestLive,
    runtime::{
        call::{Call, Caller, Pending, Used},
        mailbox::Delivery,
    },
};

/// What a typed call's arguments weigh in a mailbox, and against the actor's `message_size`.
///
/// Implemented for tuples of up to eight arguments. A type of your own that derives wasmtime's `Lower` needs an empty
/// `impl`, and a [`size`](Self::size) if it holds text or lists.
pub trait Argument {
    /// Bytes. By default those that it has in Rust, without what it points to.
    fn size(&self) -> usize {
        size_of_val(self)
    }
}

macro_rules! flat_arguments {
    ($($ty:ty),*) => { $(impl Argument for $ty {})* };
}

flat_arguments!(bool, char, u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, ());

macro_rules! long_arguments {
    ($($ty:ty),*) => { $(impl Argument for $ty {
        fn size(&self) -> usize {
            self.len()
        }
    })* };
}

long_arguments!(str, String, Box<str>, Arc<str>, Bytes);

impl<T: Argument> Argument for Vec<T> {
    fn size(&self) -> usize {
        self.iter().map(Argument::size).sum()
    }
}

impl<T: Argument> Argument for Option<T> {
    fn size(&self) -> usize {
        self.as_ref().map_or(1, Argument::size)
    }
}

impl<T: Argument, E: Argument> Argument for Result<T, E> {
    fn size(&self) -> usize {
        match self {
            Ok(value) => value.size(),
            Err(error) => error.size(),
        }
    }
}

macro_rules! tuple_arguments {
    ($($name:ident)+) => {
        impl<$($name: Argument),+> Argument for ($($name,)+) {
            fn size(&self) -> usize {
                #[expect(non_snake_case, reason = "as the types are called")]
                let ($($name,)+) = self;
                0 $(+ $name.size())+
            }
        }
    };
}

tuple_arguments!(A);
tuple_arguments!(A B);
tuple_arguments!(A B C);
tuple_arguments!(A B C D);
tuple_arguments!(A B C D E);
tuple_arguments!(A B C D E F);
tuple_arguments!(A B C D E F G);
tuple_arguments!(A B C D E F G H);

/// How a call is made by an incarnation whose embedder's state is `U`.
struct How<U: 'static>(Run<U>);

type Run<U> =
    for<'a> fn(&'a mut dyn Pending, &'a mut GuestLive<U>, &'a CancellationToken) -> BoxFuture<'a, Result<(), Crash>>;

/// An export of one actor, looked up and type-checked once, and again at each upgrade: a version that lacks it, or has it
/// with another type, is refused as [`UpgradeError::Contract`](crate::UpgradeError::Contract). Made by
/// [`ActorSystem::export`](crate::ActorSystem::export). Cheap to clone.
pub struct ActorExport<P, R> {
    actor: ActorRef,
    used: Arc<Used>,
    how: &'static (dyn Any + Send + Sync),
    ty: PhantomData<fn(P) -> R>,
}

impl<P, R> Clone for ActorExport<P, R> {
    fn clone(&self) -> Self {
        Self { actor: self.actor.clone(), used: Arc::clone(&self.used), how: self.how, ty: PhantomData }
    }
}

impl<P, R> std::fmt::Debug for ActorExport<P, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActorExport").field("actor", &self.actor).field("name", &self.used.name).finish()
    }
}

impl<P, R> ActorExport<P, R>
where
    P: Argument + ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    /// For an actor whose system has state of this type, and whose component was found to have the export.
    pub(crate) fn new<U: Send + 'static>(actor: ActorRef, used: Arc<Used>) -> Self {
        Self { actor, used, how: const { &How::<U>(typed::<U, P, R>) }, ty: PhantomData }
    }

    /// The actor.
    pub fn actor(&self) -> &ActorRef {
        &self.actor
    }

    /// The export's name: that of a function, or `interface#function`.
    pub fn name(&self) -> &str {
        &self.used.name
    }

    /// Calls the export when its turn comes among the actor's messages, waiting for room in the mailbox, and waits for the
    /// result.
    ///
    /// Dropping the future withdraws a call that has not begun. One that has begun goes on.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call(&self, params: P) -> Result<R, CallError> {
        self.call_until(None, params).await
    }

    /// [`call`](Self::call) with a timeout.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call_within(&self, longest: Duration, params: P) -> Result<R, CallError> {
        self.call_until(Some(later(Instant::now(), longest)), params).await
    }

    async fn call_until(&self, deadline: Option<Instant>, params: P) -> Result<R, CallError> {
        let (caller, result) = Caller::new();
        let size = params.size();
        let pending = Typed::<P, R> { used: Arc::clone(&self.used), params: Some(params), size, caller };
        self.actor.0.called(delivery(deadline, Box::new(pending), self.how), result).await
    }
}

fn delivery(deadline: Option<Instant>, pending: Box<dyn Pending>, how: &'static (dyn Any + Send + Sync)) -> Delivery {
    let mut message = MessageEnvelope::new(Bytes::new());
    if let Some(deadline) = deadline {
        message = message.with_deadline(deadline);
    }
    Delivery::of_call(message, Call { pending, how })
}

struct Typed<P, R> {
    used: Arc<Used>,
    params: Option<P>,
    size: usize,
    caller: Caller<R>,
}

impl<P: Send + 'static, R: Send + 'static> Pending for Typed<P, R> {
    fn size(&self) -> usize {
        self.size
    }

    fn is_wanted(&self) -> bool {
        self.caller.is_there()
    }

    fn fail(&mut self, error: CallError) {
        self.caller.tell(Err(error));
    }
}

/// The typed exports of an incarnation that were called.
#[derive(Default)]
pub(crate) struct TypedExports(Vec<(Weak<Used>, Box<dyn Any + Send + Sync>)>);

fn typed<'a, U, P, R>(
    pending: &'a mut dyn Pending,
    live: &'a mut GuestLive<U>,
    interrupt: &'a CancellationToken,
) -> BoxFuture<'a, Result<(), Crash>>
where
    U: Send + 'static,
    P: ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    Box::pin(async move {
        let Typed::<P, R> { used, params, caller, .. } =
            (pending as &mut dyn Any).downcast_mut().expect("it is made with how it is called");
        let Some(params) = params.take() else { return Ok(()) };
        let mut sandbox = live.sandbox();
        let exports = &mut live.typed.0;
        let at = match exports.iter().position(|(known, _)| known.as_ptr() == Arc::as_ptr(used)) {
            Some(at) => at,
            None => {
                let found = live.component.export(&used.name).and_then(|export| sandbox.typed::<P, R>(&export));
                match found {
                    Ok(export) => exports.push((Arc::downgrade(used), Box::new(export))),
                    Err(error) => {
                        live.back(sandbox);
                        caller.tell(Err(error.into()));
                        return Ok(());
                    }
                }
                exports.len() - 1
            }
        };
        let export: &TypedExport<P, R> = exports[at].1.downcast_ref().expect("of the same use");
        let (result, sandbox) = sandbox.call_until(export, params, interrupt).await?;
        live.back(sandbox);
        caller.tell(Ok(result));
        Ok(())
    })
}

/// A call by a closure.
struct With<F, R> {
    call: Option<F>,
    caller: Caller<R>,
}

impl<F: Send + 'static, R: Send + 'static> Pending for With<F, R> {
    fn size(&self) -> usize {
        0
    }

    fn is_wanted(&self) -> bool {
        self.caller.is_there()
    }

    fn fail(&mut self, error: CallError) {
        self.caller.tell(Err(error));
    }
}

pub(crate) fn call_with<U, R, F>(
    deadline: Option<Instant>,
    call: F,
) -> (Delivery, oneshot::Receiver<Result<R, CallError>>)
where
    U: Send + 'static,
    R: Send + 'static,
    F: for<'a> FnOnce(StoreContextMut<'a, HostState<ActorState<U>>>, Instance) -> BoxFuture<'a, wasmtime::Result<R>>
        + Send
        + 'static,
{
    let (caller, result) = Caller::new();
    let pending = With { call: Some(call), caller };
    (delivery(deadline, Box::new(pending), const { &How::<U>(with::<U, R, F>) }), result)
}

fn with<'a, U, R, F>(
    pending: &'a mut dyn Pending,
    live: &'a mut GuestLive<U>,
    interrupt: &'a CancellationToken,
) -> BoxFuture<'a, Result<(), Crash>>
where
    U: Send + 'static,
    R: Send + 'static,
    F: for<'b> FnOnce(StoreContextMut<'b, HostState<ActorState<U>>>, Instance) -> BoxFuture<'b, wasmtime::Result<R>>
        + Send
        + 'static,
{
    Box::pin(async move {
        let With::<F, R> { call, caller } =
            (pending as &mut dyn Any).downcast_mut().expect("it is made with how it is called");
        let Some(call) = call.take() else { return Ok(()) };
        let sandbox = live.sandbox();
        let (result, sandbox) = sandbox.call_boxed_until(call, interrupt).await?;
        live.back(sandbox);
        caller.tell(Ok(result));
        Ok(())
    })
}

/// A call with values.
pub(crate) struct Dynamic {
    name: Arc<str>,
    params: Vec<Val>,
    size: usize,
    caller: Caller<Vec<Val>>,
}

impl Pending for Dynamic {
    fn size(&self) -> usize {
        self.size
    }

    fn is_wanted(&self) -> bool {
        self.caller.is_there()
    }

    fn fail(&mut self, error: CallError) {
        self.caller.tell(Err(error));
    }
}

/// Says that a call is [`Dynamic`], which is made whatever the embedder's state is.
struct WithValues;

impl ActorRef {
    /// Calls an export with values, for tools that learn types at run time: when its turn comes among the actor's messages,
    /// waiting for room in the mailbox. The name is that of a function, or `interface#function`. Where types are known,
    /// [`ActorSystem::export`](crate::ActorSystem::export) is faster.
    ///
    /// Dropping the future withdraws a call that has not begun. One that has begun goes on.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call(&self, export: &str, params: impl Into<Vec<Val>>) -> Result<Vec<Val>, CallError> {
        self.call_until(None, export, params.into()).await
    }

    /// [`call`](Self::call) with a timeout.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call_within(
        &self,
        longest: Duration,
        export: &str,
        params: impl Into<Vec<Val>>,
    ) -> Result<Vec<Val>, CallError> {
        self.call_until(Some(later(Instant::now(), longest)), export, params.into()).await
    }

    async fn call_until(
        &self,
        deadline: Option<Instant>,
        export: &str,
        params: Vec<Val>,
    ) -> Result<Vec<Val>, CallError> {
        let (caller, result) = Caller::new();
        let size = params.iter().map(size_of).sum();
        let pending = Dynamic { name: export.into(), params, size, caller };
        self.0.called(delivery(deadline, Box::new(pending), &WithValues), result).await
    }
}

/// Bytes of a value: what is text or a number as it is lowered, and a name for each case that is named.
pub(crate) fn size_of(value: &Val) -> usize {
    match value {
        Val::String(text) | Val::Enum(text) => text.len(),
        Val::List(values) | Val::Tuple(values) => values.iter().map(size_of).sum(),
        Val::Record(fields) => fields.iter().map(|(_, value)| size_of(value)).sum(),
        Val::Variant(name, value) => name.len() + value.as_deref().map_or(0, size_of),
        Val::Option(value) => 1 + value.as_deref().map_or(0, size_of),
        Val::Result(Ok(value) | Err(value)) => 1 + value.as_deref().map_or(0, size_of),
        Val::Flags(names) => names.iter().map(String::len).sum(),
        Val::Bool(_) | Val::S8(_) | Val::U8(_) => 1,
        Val::S16(_) | Val::U16(_) => 2,
        Val::S32(_) | Val::U32(_) | Val::Float32(_) | Val::Char(_) => 4,
        _ => 8,
    }
}

impl<U: Send + 'static> GuestLive<U> {
    /// Makes a call, and tells its caller what came of it, unless the guest crashes.
    pub(crate) async fn make(&mut self, call: &mut Call, interrupt: &CancellationToken) -> Result<(), Crash> {
        if let Some(How::<U>(run)) = call.how.downcast_ref() {
            return run(&mut *call.pending, self, interrupt).await;
        }
        match (&mut *call.pending as &mut dyn Any).downcast_mut::<Dynamic>() {
            Some(dynamic) => self.call_dynamic(dynamic, interrupt).await,
            None => {
                call.pending.fail(CallError::OtherSystem);
                Ok(())
            }
        }
    }

    async fn call_dynamic(&mut self, call: &mut Dynamic, interrupt: &CancellationToken) -> Result<(), Crash> {
        let mut sandbox = self.sandbox();
        let export = match self.component.export(&call.name).and_then(|export| sandbox.dynamic(&export)) {
            Ok(export) => export,
            Err(error) => {
                self.back(sandbox);
                call.fail(error.into());
                return Ok(());
            }
        };
        match sandbox.call_dynamic_until(&export, &call.params, interrupt).await {
            Ok((results, sandbox)) => {
                self.back(sandbox);
                call.caller.tell(Ok(results));
                Ok(())
            }
            Err(DynamicCallError::Arguments { error, sandbox }) => {
                self.back(sandbox);
                call.fail(error.into());
                Ok(())
            }
            Err(DynamicCallError::Crash(crash)) => Err(crash),
            Err(_) => unreachable!("there are two reasons"),
        }
    }
}
