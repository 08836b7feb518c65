//! A call of an export on its way to the actor: what lies in the mailbox in place of a message.

use std::{
    any::{Any, TypeId},
    future::pending,
    sync::{Arc, Weak},
};

use airssys_wasm_engine::{
    Export, ExportError, LoadedComponent, describe_func,
    wasmtime::component::{ComponentNamedList, Lift, Lower, Val, types::ComponentFunc},
};
use airssys_wasm_registry::{ComponentId, Refusal};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    ActorRef, CallError, LinkFault,
    runtime::{
        cell::Cell,
        mailbox::Delivery,
        values::{Signature, Unread},
    },
};

/// A call that waits for its turn.
pub(crate) trait Pending: Any + Send {
    /// Bytes of its arguments.
    fn size(&self) -> usize;

    /// Whether its caller is still there.
    fn is_wanted(&self) -> bool;

    /// Tells the caller, unless it was answered already.
    fn fail(&mut self, error: CallError);

    /// Holds back what the caller is told from here on.
    fn hold(&mut self);

    /// Tells the caller what was held back, or that the state after the call is not kept.
    fn release(&mut self, is_kept: bool);

    /// Its arguments, for an actor of another host. `None` if they cannot go there.
    fn encoded(&self, signature: &Signature) -> Option<Bytes>;

    /// Tells the caller what an actor of another host gave. The results may weigh so many bytes.
    fn heard(&mut self, results: Bytes, signature: &Signature, most: usize);
}

/// A call in a mailbox.
pub(crate) struct Call {
    pub(crate) pending: Box<dyn Pending>,
    /// How it is made: something that an incarnation of the same system knows.
    pub(crate) how: &'static (dyn Any + Send + Sync),
}

/// An export that somebody calls with these types.
pub(crate) struct Used {
    pub(crate) name: Arc<str>,
    ty: TypeId,
    check: fn(&LoadedComponent, &str) -> Result<(), ExportError>,
    /// The type that values for it are known to have.
    imported: Option<ComponentFunc>,
}

impl Used {
    pub(crate) fn of<P, R>(name: &str) -> Self
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        Self {
            name: name.into(),
            ty: TypeId::of::<fn(P) -> R>(),
            check: |component, name| component.check::<P, R>(name).map(drop),
            imported: None,
        }
    }

    /// With values.
    pub(crate) fn any(name: &str) -> Self {
        let check: fn(&LoadedComponent, &str) -> _ = |component, name| component.export(name).map(drop);
        Self { name: name.into(), ty: TypeId::of::<Val>(), check, imported: None }
    }

    /// With values of the type that it is imported with.
    pub(crate) fn imported(name: &str, ty: &ComponentFunc) -> Self {
        Self { imported: Some(ty.clone()), ..Self::any(name) }
    }

    /// Whether values for it are known to have the type that [`find`](Self::find) has compared.
    pub(crate) fn is_imported(&self) -> bool {
        self.imported.is_some()
    }

    /// Finds it in the version that is called, with the type that it is imported with.
    pub(crate) fn find(&self, component: &LoadedComponent) -> Result<Export, ExportError> {
        let export = component.export(&self.name)?;
        match &self.imported {
            Some(imported) if !same(imported, export.func()) => {
                let mismatch = format!("it is imported as `{}`", describe_func(&self.name, imported));
                Err(ExportError::Mistyped { actual: export.ty().to_owned(), mismatch })
            }
            _ => Ok(export),
        }
    }
}

/// An export that callers of other hosts use.
pub(crate) struct FarExport {
    /// Its name and type, for people.
    pub(crate) ty: String,
    pub(crate) signature: Signature,
    pub(crate) used: Arc<Used>,
    pub(crate) make: MakeFar,
}

/// Makes a call with encoded parameters, which may weigh so many bytes, and gives the encoded results, until the deadline.
pub(crate) type MakeFar = fn(&Arc<FarExport>, Bytes, usize, Option<Instant>) -> Result<MadeFar, Unread>;

pub(crate) type MadeFar = (Call, BoxFuture<'static, Result<Bytes, CallError>>);

/// The functions of an interface that a component imports, by `interface#function`.
pub(crate) struct LinkedInterface {
    pub(crate) name: Arc<str>,
    pub(crate) functions: Vec<(Arc<str>, ComponentFunc)>,
}

impl LinkedInterface {
    /// Whether a component exports all of it, with the same types.
    fn fits(&self, component: Option<&LoadedComponent>) -> Result<(), LinkFault> {
        for (name, imported) in &self.functions {
            let export = component.and_then(|component| component.find_export(name));
            if !export.as_ref().is_some_and(|export| same(imported, export.func())) {
                return Err(LinkFault::Mismatch {
                    imported: describe_func(name, imported),
                    exported: export.map(|export| export.ty().to_owned()),
                });
            }
        }
        Ok(())
    }
}

fn same(one: &ComponentFunc, other: &ComponentFunc) -> bool {
    one.async_() == other.async_() && one.params().eq(other.params()) && one.results().eq(other.results())
}

/// Somebody whose import leads to an actor.
struct LinkedCaller {
    /// Gone with the incarnation.
    alive: Weak<()>,
    id: ComponentId,
    interface: Arc<LinkedInterface>,
}

/// The component of an actor's present version, and what of it is used with which types.
#[derive(Default)]
pub(crate) struct Exports {
    component: Option<LoadedComponent>,
    /// Most actors have none.
    users: Option<Box<Users>>,
}

#[derive(Default)]
struct Users {
    /// Gone when another version is called.
    version: Arc<()>,
    used: Vec<Weak<Used>>,
    callers: Vec<LinkedCaller>,
    /// Of this version.
    far: Vec<Arc<FarExport>>,
}

/// Exports that are remembered for callers of other hosts. Each has many names: its interface's with any version that is compatible.
const REMEMBERED: usize = 64;

impl Exports {
    /// From now on this version is called. It is held to the interfaces of those whom it fits: others came while an upgrade was
    /// under way, or fit a version that was rolled back.
    pub(crate) fn set_component(&mut self, component: &LoadedComponent) {
        self.component = Some(component.clone());
        if let Some(users) = &mut self.users {
            users.version = Arc::default();
            users.far.clear();
            users.callers.retain(|caller| caller.interface.fits(Some(component)).is_ok());
        }
    }

    /// Finds an export once for all who use it with these types.
    pub(crate) fn used<P, R>(&mut self, name: &str) -> Result<Arc<Used>, CallError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let component = self.component.as_ref().ok_or(CallError::OtherSystem)?;
        let used = Used::of::<P, R>(name);
        // Also where it is known: a version on probation may have been rolled back since.
        (used.check)(component, name)?;
        let users = self.users.get_or_insert_default();
        let mut known = users.used.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.find(|known| *known.name == *name && known.ty == used.ty) {
            return Ok(known);
        }
        let used = Arc::new(used);
        users.used.retain(|used| used.strong_count() > 0);
        users.used.push(Arc::downgrade(&used));
        Ok(used)
    }

    /// Finds an export for callers of other hosts.
    pub(crate) fn far(
        &mut self,
        name: &str,
        find: impl FnOnce(&LoadedComponent, &str) -> Result<FarExport, ExportError>,
    ) -> Result<Arc<FarExport>, CallError> {
        let component = self.component.as_ref().ok_or(CallError::OtherSystem)?;
        let known = self.users.iter().flat_map(|users| &users.far).find(|known| *known.used.name == *name);
        if let Some(known) = known {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(find(component, name)?);
        if found.signature.is_small() {
            let far = &mut self.users.get_or_insert_default().far;
            if far.len() >= REMEMBERED {
                far.clear();
            }
            far.push(Arc::clone(&found));
        }
        Ok(found)
    }

    /// Holds the component to an interface that somebody imports, as long as the token lives. What it gives lives as long as this
    /// version is called.
    pub(crate) fn hold_to(
        &mut self,
        caller: &ComponentId,
        interface: &Arc<LinkedInterface>,
        token: &Arc<()>,
    ) -> Result<Weak<()>, LinkFault> {
        interface.fits(self.component.as_ref())?;
        let Users { version, callers, .. } = &mut **self.users.get_or_insert_default();
        callers.retain(|caller| caller.alive.strong_count() > 0);
        let same = |known: &LinkedCaller| {
            known.alive.as_ptr() == Arc::as_ptr(token) && Arc::ptr_eq(&known.interface, interface)
        };
        if !callers.iter().any(same) {
            let (alive, interface) = (Arc::downgrade(token), Arc::clone(interface));
            callers.push(LinkedCaller { alive, id: caller.clone(), interface });
        }
        Ok(Arc::downgrade(version))
    }

    /// Holds another version against all that is used.
    pub(crate) fn check(&self, next: &LoadedComponent) -> Result<(), Unfit> {
        let Some(users) = &self.users else { return Ok(()) };
        let mut used = users.used.iter().filter_map(Weak::upgrade);
        used.try_for_each(|used| (used.check)(next, &used.name)).map_err(Unfit::Export)?;
        let (mut callers, mut first) = (Vec::new(), None);
        for caller in users.callers.iter().filter(|caller| caller.alive.strong_count() > 0) {
            if let Err(fault) = caller.interface.fits(Some(next)) {
                callers.push(caller.id.clone());
                first.get_or_insert(fault);
            }
        }
        callers.sort();
        callers.dedup();
        first.map_or(Ok(()), |fault| Err(Unfit::Callers(callers, fault)))
    }
}

/// Why a version does not fit those who call the actor.
pub(crate) enum Unfit {
    Export(ExportError),
    Callers(Vec<ComponentId>, LinkFault),
}

/// Where the result of a call goes. Dropping it tells the caller that the actor has stopped.
pub(crate) struct Caller<R> {
    to: Option<oneshot::Sender<Result<R, CallError>>>,
    /// What it is told later, once there is something.
    held: Option<Option<Result<R, CallError>>>,
}

impl<R> Caller<R> {
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<R, CallError>>) {
        let (result, receiver) = oneshot::channel();
        (Self { to: Some(result), held: None }, receiver)
    }

    pub(crate) fn is_there(&self) -> bool {
        self.to.as_ref().is_some_and(|caller| !caller.is_closed())
    }

    pub(crate) fn tell(&mut self, result: Result<R, CallError>) {
        if let Some(held) = &mut self.held {
            held.get_or_insert(result);
        } else if let Some(caller) = self.to.take() {
            // Fails when the caller has gone.
            _ = caller.send(result);
        }
    }

    pub(crate) fn hold(&mut self) {
        self.held = Some(None);
    }

    pub(crate) fn release(&mut self, is_kept: bool) {
        match self.held.take().flatten() {
            Some(Ok(_)) if !is_kept => self.tell(Err(CallError::NotSaved)),
            Some(result) => self.tell(result),
            // It was given up.
            None => {}
        }
    }
}

impl Cell {
    /// Puts a call into the mailbox, waiting for room, and waits for its result. If the actor has left the memory, into that of
    /// who has its name.
    pub(crate) async fn called<R>(
        &self,
        delivery: Delivery,
        result: oneshot::Receiver<Result<R, CallError>>,
    ) -> Result<R, CallError> {
        let deadline = delivery.message.deadline();
        self.put(delivery).await?;
        come_back(result, deadline).await
    }

    /// Puts a call into the mailbox, waiting for room until its deadline.
    pub(crate) async fn put(&self, delivery: Delivery) -> Result<(), CallError> {
        let deadline = delivery.message.deadline();
        let Err((reason, delivery)) = self.try_push(delivery) else { return Ok(()) };
        // Boxed, as for an ask.
        let later = Box::pin(self.push_refused(reason, delivery));
        let pushed = match deadline {
            None => later.await,
            Some(deadline) => timeout_at(deadline, later).await.map_err(|_| CallError::Deadline)?,
        };
        pushed.map_err(CallError::NotSent)
    }

    /// Puts a call into the mailbox that refused it: as soon as there is room, or, if the actor has left the memory, into that
    /// of who has its name.
    async fn push_refused(&self, mut reason: Refusal, mut delivery: Delivery) -> Result<(), Refusal> {
        let mut next = None;
        loop {
            let pushed = match reason {
                Refusal::Full | Refusal::Restarting => {
                    next.as_ref().map_or(self, |next: &ActorRef| &next.0).push_later(delivery, pending()).await
                }
                Refusal::Moved => {
                    delivery.let_go();
                    let awakened = self.services.awaken(self.id(), delivery.message.sender());
                    next.insert(awakened.unwrap_or(Err(reason))?).0.try_push(delivery)
                }
                reason => return Err(reason),
            };
            match pushed {
                Ok(()) => return Ok(()),
                Err(refused) => (reason, delivery) = refused,
            }
        }
    }
}

/// Waits for the result of a call that was sent.
pub(crate) async fn come_back<R>(
    result: oneshot::Receiver<Result<R, CallError>>,
    deadline: Option<Instant>,
) -> Result<R, CallError> {
    let result = match deadline {
        None => result.await,
        Some(deadline) => match timeout_at(deadline, result).await {
            Ok(result) => result,
            Err(_) => return Err(CallError::Deadline),
        },
    };
    result.unwrap_or(Err(CallError::Stopped))
}
