//! Calls of a guest's exports through its mailbox: typed, by a closure, and with values.

use std::{
    any::Any,
    sync::{Arc, Weak},
    time::Duration,
};

use airssys_wasm_engine::{
    ExportError,
    wasmtime::{
        self, StoreContextMut,
        component::{ComponentNamedList, Instance, Lift, Lower, Val},
    },
};
use airssys_wasm_isolation::{Crash, DynamicCallError, DynamicExport, HostState, TypedExport};
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
        in_flight::Room,
        mailbox::Delivery,
        values::{Signature, Unread, Wire, weight},
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
    /// Each element weighs what it takes up in the list, even if it is an empty text or list.
    fn size(&self) -> usize {
        self.iter().map(|element| element.size().max(size_of::<T>())).sum()
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

/// A call, and where its result comes.
pub(crate) type Made<R> = (Call, oneshot::Receiver<Result<R, CallError>>);

/// An export of one actor, looked up and type-checked once, and again at each upgrade: a version that lacks it, or has it
/// with another type, is refused as [`UpgradeError::Contract`](crate::UpgradeError::Contract). Made by
/// [`ActorSystem::export`](crate::ActorSystem::export). Cheap to clone.
///
/// If the actor has left the memory since, calls go to who has its name, which is brought into memory for them. Its type is
/// then checked at the call alone.
pub struct ActorExport<P, R> {
    actor: ActorRef,
    used: Arc<Used>,
    make: fn(&Arc<Used>, P) -> Made<R>,
}

impl<P, R> Clone for ActorExport<P, R> {
    fn clone(&self) -> Self {
        Self { actor: self.actor.clone(), used: Arc::clone(&self.used), make: self.make }
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
        Self { actor, used, make: typed::<U, P, R> }
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
        let (call, result) = (self.make)(&self.used, params);
        self.actor.0.called(delivery(deadline, call), result).await
    }
}

fn delivery(deadline: Option<Instant>, call: Call) -> Delivery {
    let mut message = MessageEnvelope::new(Bytes::new());
    if let Some(deadline) = deadline {
        message = message.with_deadline(deadline);
    }
    Delivery::of_call(message, call)
}

/// What is called, the bytes of its arguments, and who waits for it.
struct Asked<W, R> {
    what: W,
    size: usize,
    caller: Caller<R>,
}

/// What of a call goes to an actor of another host, and comes from there. A closure stays here.
trait What<R>: Send + 'static {
    /// The arguments.
    fn encoded(&self, _: &Signature) -> Option<Bytes> {
        None
    }

    /// Reads the results, which may weigh so many bytes.
    fn decoded(&self, _results: Bytes, _: &Signature, _most: usize) -> Result<R, CallError> {
        Err(CallError::Malformed { made: true })
    }
}

impl<W: What<R>, R: Send + 'static> Pending for Asked<W, R> {
    fn size(&self) -> usize {
        self.size
    }

    fn is_wanted(&self) -> bool {
        self.caller.is_there()
    }

    fn fail(&mut self, error: CallError) {
        self.caller.tell(Err(error));
    }

    fn hold(&mut self) {
        self.caller.hold();
    }

    fn release(&mut self, is_kept: bool) {
        self.caller.release(is_kept);
    }

    fn encoded(&self, signature: &Signature) -> Option<Bytes> {
        self.what.encoded(signature)
    }

    fn heard(&mut self, results: Bytes, signature: &Signature, most: usize) {
        self.caller.tell(self.what.decoded(results, signature, most));
    }
}

/// Why results of another host were not read.
fn unread(why: Unread, most: usize) -> CallError {
    match why {
        Unread::Malformed => CallError::Malformed { made: true },
        Unread::TooLarge(size) => CallError::ResultTooLarge { size: size as u64, allowed: most as u64 },
    }
}

/// An export with its arguments, until it is called.
struct Typed<P: 'static, R: 'static> {
    used: Arc<Used>,
    params: Option<P>,
    /// Of a call that may go to an actor of another host.
    coding: Option<&'static Coding<P, R>>,
}

/// How values of some types are written down and read.
struct Coding<P, R> {
    encode: fn(&P) -> Bytes,
    decode: fn(Bytes) -> Result<R, Unread>,
}

impl<P: Send + 'static, R: 'static> What<R> for Typed<P, R> {
    fn encoded(&self, _: &Signature) -> Option<Bytes> {
        Some((self.coding?.encode)(self.params.as_ref()?))
    }

    fn decoded(&self, results: Bytes, _: &Signature, most: usize) -> Result<R, CallError> {
        let coding = self.coding.ok_or(CallError::Malformed { made: true })?;
        (coding.decode)(results).map_err(|why| unread(why, most))
    }
}

/// What the exports that somebody uses are in an incarnation.
#[derive(Default)]
pub(crate) struct Found(Vec<(Weak<Used>, Box<dyn Any + Send + Sync>)>);

impl Found {
    fn get<T: Send + Sync + 'static>(
        &mut self,
        used: &Arc<Used>,
        find: impl FnOnce() -> Result<T, ExportError>,
    ) -> Result<&T, ExportError> {
        let at = match self.0.iter().position(|(known, _)| known.as_ptr() == Arc::as_ptr(used)) {
            Some(at) => at,
            None => {
                let found = find()?;
                self.0.retain(|(known, _)| known.strong_count() > 0);
                self.0.push((Arc::downgrade(used), Box::new(found)));
                self.0.len() - 1
            }
        };
        Ok(self.0[at].1.downcast_ref().expect("of the same use"))
    }
}

/// A typed call, for an incarnation with state of this type.
pub(crate) fn typed<U, P, R>(used: &Arc<Used>, params: P) -> Made<R>
where
    U: Send + 'static,
    P: Argument + ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    typed_as::<U, P, R>(used, params, None)
}

/// The same, if need be of an actor of another host.
pub(crate) fn typed_or_far<U, P, R>(used: &Arc<Used>, params: P) -> Made<R>
where
    U: Send + 'static,
    P: Argument + Wire + ComponentNamedList + Lower + Send + Sync + 'static,
    R: Wire + ComponentNamedList + Lift + Send + Sync + 'static,
{
    typed_as::<U, P, R>(used, params, Some(const { &Coding { encode: P::encode, decode: R::decode } }))
}

fn typed_as<U, P, R>(used: &Arc<Used>, params: P, coding: Option<&'static Coding<P, R>>) -> Made<R>
where
    U: Send + 'static,
    P: Argument + ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    let (caller, result) = Caller::new();
    let size = params.size();
    let what = Typed { used: Arc::clone(used), params: Some(params), coding };
    (Call { pending: Box::new(Asked { what, size, caller }), how: const { &How::<U>(run_typed::<U, P, R>) } }, result)
}

fn run_typed<'a, U, P, R>(
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
        let Asked::<Typed<P, R>, R> { what: Typed { used, params, .. }, caller, .. } =
            (pending as &mut dyn Any).downcast_mut().expect("it is made with how it is called");
        let Some(params) = params.take() else { return Ok(()) };
        let mut sandbox = live.sandbox();
        let found = live
            .found
            .get(used, || live.component.export(&used.name).and_then(|export| sandbox.typed::<P, R>(&export)));
        let export: &TypedExport<P, R> = match found {
            Ok(export) => export,
            Err(error) => {
                caller.tell(Err(error.into()));
                live.back(sandbox);
                return Ok(());
            }
        };
        let ((), sandbox) = sandbox.call_telling(export, params, interrupt, |result| caller.tell(Ok(result))).await?;
        live.back(sandbox);
        Ok(())
    })
}

impl<F: Send + 'static, R> What<R> for Option<F> {}

/// A call by a closure, which is there until it is called.
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
    // What a closure holds is unknown.
    let pending = Box::new(Asked { what: Some(call), size: 0, caller });
    (delivery(deadline, Call { pending, how: const { &How::<U>(run_with::<U, R, F>) } }), result)
}

fn run_with<'a, U, R, F>(
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
        let Asked::<Option<F>, R> { what: call, caller, .. } =
            (pending as &mut dyn Any).downcast_mut().expect("it is made with how it is called");
        let Some(call) = call.take() else { return Ok(()) };
        let sandbox = live.sandbox();
        let (result, sandbox) = sandbox.call_boxed_until(call, interrupt).await?;
        live.back(sandbox);
        caller.tell(Ok(result));
        Ok(())
    })
}

/// An export with values for it.
struct Values {
    used: Arc<Used>,
    params: Vec<Val>,
    /// Of a caller for whom several results may wait.
    room: Option<Arc<Room>>,
}

impl Values {
    /// Gives results that there is room for.
    fn in_room(&self, results: Vec<Val>) -> Result<Vec<Val>, CallError> {
        if let Some(room) = &self.room {
            let size = results.iter().map(weight).sum();
            room.take(size).map_err(|allowed| CallError::ResultTooLarge { size: size as u64, allowed })?;
        }
        Ok(results)
    }
}

impl What<Vec<Val>> for Values {
    fn encoded(&self, signature: &Signature) -> Option<Bytes> {
        signature.encode_params(&self.params)
    }

    fn decoded(&self, results: Bytes, signature: &Signature, most: usize) -> Result<Vec<Val>, CallError> {
        self.in_room(signature.decode_results(results, most).map_err(|why| unread(why, most))?)
    }
}

type Dynamic = Asked<Values, Vec<Val>>;

/// Says that a call is [`Dynamic`], which is made whatever the embedder's state is.
struct WithValues;

impl ActorRef {
    /// Calls an export with values, for tools that learn types at run time: when its turn comes among the actor's messages,
    /// waiting for room in the mailbox. The name is that of a function, or `interface#function`. Where types are known,
    /// [`ActorSystem::export`](crate::ActorSystem::export) is faster. An actor that has left the memory is brought back.
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
        let (call, result) = by_values(&Arc::new(Used::any(export)), params, None);
        self.0.called(delivery(deadline, call), result).await
    }
}

/// A call with values. An incarnation remembers the export as long as somebody uses it.
pub(crate) fn by_values(used: &Arc<Used>, params: Vec<Val>, room: Option<Arc<Room>>) -> Made<Vec<Val>> {
    let (caller, result) = Caller::new();
    let size = params.iter().map(weight).sum();
    let pending = Box::new(Asked { what: Values { used: Arc::clone(used), params, room }, size, caller });
    (Call { pending, how: &WithValues }, result)
}

impl<U: Send + 'static> GuestLive<U> {
    /// Makes a call, and tells its caller what came of it, unless the guest crashes.
    pub(crate) async fn make(&mut self, call: &mut Call, interrupt: &CancellationToken) -> Result<(), Crash> {
        if let Some(How::<U>(run)) = call.how.downcast_ref() {
            return run(&mut *call.pending, self, interrupt).await;
        }
        match (&mut *call.pending as &mut dyn Any).downcast_mut::<Dynamic>() {
            // Boxed: rare, and its future would lie in that of every actor.
            Some(dynamic) => Box::pin(self.call_dynamic(dynamic, interrupt)).await,
            None => {
                call.pending.fail(CallError::OtherSystem);
                Ok(())
            }
        }
    }

    async fn call_dynamic(&mut self, call: &mut Dynamic, interrupt: &CancellationToken) -> Result<(), Crash> {
        let Values { used, params, .. } = &call.what;
        let mut sandbox = self.sandbox();
        let found = self.found.get(used, || used.find(&self.component).and_then(|export| sandbox.dynamic(&export)));
        let export: &DynamicExport = match found {
            Ok(export) => export,
            Err(error) => {
                call.fail(error.into());
                self.back(sandbox);
                return Ok(());
            }
        };
        if used.is_imported() {
            let (results, sandbox) = sandbox.call_dynamic_checked(export, params, interrupt).await?;
            self.back(sandbox);
            call.caller.tell(call.what.in_room(results));
            return Ok(());
        }
        match sandbox.call_dynamic_until(export, params, interrupt).await {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::*;

    #[test]
    fn a_million_of_nothing_weighs_what_it_takes_up() {
        let million = 1_000_000;
        let nothing = || {
            [
                Val::U8(0),
                Val::String(String::new()),
                Val::List(Vec::new()),
                Val::Map(Vec::new()),
                Val::Tuple(Vec::new()),
                Val::Flags(Vec::new()),
                Val::Option(None),
                Val::Result(Err(None)),
            ]
        };
        for nothing in nothing() {
            let room = million * size_of::<Val>();
            assert!(weight(&Val::List(vec![nothing.clone(); million])) >= room);
            assert!(weight(&Val::Map(vec![(Val::U8(0), nothing.clone()); million])) >= 2 * room);
            assert!(weight(&Val::Record(vec![(String::new(), nothing); million])) >= room);
        }
        let deep = (0..1_000).fold(Val::U8(0), |inner, _| Val::Option(Some(Box::new(inner))));
        assert!(weight(&deep) >= 1_000 * size_of::<Val>());
        assert!(vec![Vec::<u8>::new(); million].size() >= million * size_of::<Vec<u8>>());
    }

    proptest! {
        #[test]
        fn a_list_weighs_at_least_what_its_elements_take_up(
            texts in prop::collection::vec("[a-z]{0,40}", 0..20),
            lists in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..9), 0..20),
            options in prop::collection::vec(prop::option::of("[a-z]{0,40}"), 0..20),
        ) {
            prop_assert!(texts.size() >= size_of_val(&texts[..]));
            prop_assert!(lists.size() >= size_of_val(&lists[..]));
            prop_assert!(options.size() >= size_of_val(&options[..]));
        }
    }
}
