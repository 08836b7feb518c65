//! Calls of actors' exports, of which the system knows what state their sandboxes have.

use std::{sync::Arc, time::Duration};

use airssys_wasm_engine::wasmtime::{
    self, StoreContextMut,
    component::{ComponentNamedList, Instance, Lift, Lower},
};
use airssys_wasm_isolation::HostState;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    ActorExport, ActorRef, ActorState, ActorSystem, Argument, CallError, failure::policy::later,
    guest::calls::call_with,
};

impl<U: Send + 'static> ActorSystem<U> {
    /// Finds an export of an actor once, for calls with these types: a function's name, or `interface#function`. Upgrades
    /// to a version in which it has another type are refused from now on, as long as the handle lives.
    ///
    /// # Errors
    ///
    /// [`CallError::Contract`] and [`CallError::OtherSystem`].
    pub fn export<P, R>(&self, actor: &ActorRef, name: &str) -> Result<ActorExport<P, R>, CallError>
    where
        P: Argument + ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.owns(actor)?;
        let used = actor.0.exports.lock().used::<P, R>(name)?;
        Ok(ActorExport::new::<U>(actor.clone(), used))
    }

    /// Calls a closure with an actor's store and instance when its turn comes among the actor's messages, waiting for room
    /// in the mailbox: what [`bindgen!`](wasmtime::component::bindgen) generates works in it. See
    /// [`Sandbox::call_with`](airssys_wasm_isolation::Sandbox::call_with): an `Err` of the closure is a crash of the actor.
    /// An actor that has left the memory is brought back.
    ///
    /// Dropping the future withdraws a call that has not begun. One that has begun goes on.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call_with<R, F>(&self, actor: &ActorRef, call: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(
                StoreContextMut<'a, HostState<ActorState<U>>>,
                Instance,
            ) -> BoxFuture<'a, wasmtime::Result<R>>
            + Send
            + 'static,
    {
        self.call_with_until(actor, None, call).await
    }

    /// [`call_with`](Self::call_with) with a timeout.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn call_with_within<R, F>(&self, actor: &ActorRef, longest: Duration, call: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(
                StoreContextMut<'a, HostState<ActorState<U>>>,
                Instance,
            ) -> BoxFuture<'a, wasmtime::Result<R>>
            + Send
            + 'static,
    {
        self.call_with_until(actor, Some(later(Instant::now(), longest)), call).await
    }

    async fn call_with_until<R, F>(&self, actor: &ActorRef, deadline: Option<Instant>, call: F) -> Result<R, CallError>
    where
        R: Send + 'static,
        F: for<'a> FnOnce(
                StoreContextMut<'a, HostState<ActorState<U>>>,
                Instance,
            ) -> BoxFuture<'a, wasmtime::Result<R>>
            + Send
            + 'static,
    {
        self.owns(actor)?;
        let (delivery, result) = call_with(deadline, call);
        actor.0.called(delivery, result).await
    }

    fn owns(&self, actor: &ActorRef) -> Result<(), CallError> {
        if Arc::ptr_eq(&actor.0.services, &self.core().services) { Ok(()) } else { Err(CallError::OtherSystem) }
    }
}
