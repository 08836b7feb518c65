//! Calls of actors' exports, of which the system knows what state their sandboxes have.

use std::{future::ready, sync::Arc, time::Duration};

use airssys_wasm_engine::wasmtime::{
    self, StoreContextMut,
    component::{ComponentNamedList, Instance, Lift, Lower},
};
use airssys_wasm_isolation::HostState;
use airssys_wasm_registry::Refusal;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    ActorExport, ActorRef, ActorState, ActorSystem, Argument, CallError, FarCall,
    failure::policy::later,
    guest::{calls::call_with, far},
    runtime::{mailbox::Delivery, values::Unread},
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

    /// For who brings a call from another host: finds the export, compares its type, decodes the parameters and puts the call
    /// into the actor's mailbox, without waiting for room. The future gives the encoded results. Dropping it withdraws a call
    /// that has not begun.
    ///
    /// The future fails with [`CallError::Contract`] where the export is missing or has another type, with
    /// [`CallError::OtherSystem`] for an actor that is no component, and with [`CallError::Malformed`] for parameters that are
    /// not of the type; else as any call. [`CallError::NotSent`] with [`Refusal::Moved`] says that the actor left, or was fenced,
    /// before the call's turn.
    ///
    /// Which interfaces others may call is not looked at: it is for who brings the call to say.
    ///
    /// # Errors
    ///
    /// What the mailbox says: [`Refusal::Full`] and [`Refusal::Restarting`], after which
    /// [`call_encoded_waiting`](Self::call_encoded_waiting) waits for room, or [`Refusal::Moved`], after which the call goes to
    /// who has the name; [`Refusal::TooLarge`] before the parameters take more memory than the actor's `message_size`. Its
    /// `size` is then what they were found to take at least.
    pub fn call_encoded(
        &self,
        actor: &ActorRef,
        call: FarCall,
    ) -> Result<BoxFuture<'static, Result<Bytes, CallError>>, Refusal> {
        let (delivery, results) = match self.far_call(actor, call) {
            Ok(made) => made,
            Err(CallError::NotSent(reason)) => return Err(reason),
            Err(error) => return Ok(Box::pin(ready(Err(error)))),
        };
        actor.0.try_push(delivery).map_err(|(reason, _)| reason)?;
        Ok(results)
    }

    /// [`call_encoded`](Self::call_encoded) that waits for room in the mailbox, until the call's deadline. An actor that has left
    /// the memory is brought back. What the mailbox says is [`CallError::NotSent`].
    pub fn call_encoded_waiting(
        &self,
        actor: &ActorRef,
        call: FarCall,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (actor, made) = (actor.clone(), self.far_call(actor, call));
        Box::pin(async move {
            let (delivery, results) = made?;
            actor.0.put(delivery).await?;
            results.await
        })
    }

    /// A call from another host, to be put into the mailbox, and its results.
    fn far_call(
        &self,
        actor: &ActorRef,
        FarCall { export, ty, message }: FarCall,
    ) -> Result<(Delivery, BoxFuture<'static, Result<Bytes, CallError>>), CallError> {
        self.owns(actor)?;
        let export = actor.0.exports.lock().far(&export, far::find::<U>)?;
        far::check(&export, &ty)?;
        let allowed = actor.0.mailbox.message_size();
        let most = usize::try_from(allowed).unwrap_or(usize::MAX);
        let made = (export.make)(&export, message.payload().clone(), most, message.deadline());
        let (call, results) = made.map_err(|why| match why {
            Unread::Malformed => CallError::Malformed { made: false },
            Unread::TooLarge(size) => CallError::NotSent(Refusal::TooLarge { size: size as u64, allowed }),
        })?;
        Ok((Delivery::of_call(message.with_payload(Bytes::new()), call), results))
    }

    fn owns(&self, actor: &ActorRef) -> Result<(), CallError> {
        if Arc::ptr_eq(&actor.0.services, &self.core().services) { Ok(()) } else { Err(CallError::OtherSystem) }
    }
}
