//! Calls that a guest with async functions has in flight at the same time.

use std::{
    any::TypeId,
    collections::BTreeMap,
    future::poll_fn,
    hash::{Hash, Hasher},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use airssys_wasm_engine::wasmtime::{
    self, AsContextMut, StoreContextMut,
    component::{Accessor, ComponentNamedList, GuestTaskId, Lift, Lower},
};
use airssys_wasm_limits::{
    CancellationToken, Due, Interrupted, Metered, RunningCall, begin_calls, guard_several, later,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    Crash, HostState, Sandbox, TypedExport,
    crash::Phase,
    sandbox::{Live, poll_settled},
};

/// Where calls come from that a sandbox has in flight at the same time, and where their results go.
pub trait Calls<P, R, U>: Send {
    /// Before the first.
    fn begin(&mut self, _running: &RunningCall, _ext: &mut U) {}

    /// The next call with its number, which is larger than all before; `None` if no more are to be begun.
    fn poll_next(&mut self, cx: &mut Context<'_>, ext: &mut U) -> Poll<Option<(u64, P)>>;

    /// A call has returned. Says whether more may be begun.
    fn returned(&mut self, number: u64, result: R, ext: &mut U, memory: u64) -> bool;
}

/// A crash over one of several calls. It ends all of them.
#[derive(Debug)]
pub struct SeveralCrashed {
    /// What went wrong.
    pub crash: Crash,
    /// The call that caused it, as far as that is known: none for what comes from outside.
    pub call: Option<u64>,
}

impl<U: Send + 'static> Sandbox<U> {
    /// Calls an async export as often as there are calls, up to so many at the same time, until none is in flight, none is to
    /// be had at once, and all tasks have ended. Each is under the limits of one call: its CPU time and host calls are those
    /// of its task, and its deadline begins with it, also for what the task does after the call has returned. No task can be ended
    /// alone, so what ends one ends all.
    ///
    /// Nobody is told when a task ends. If one seems to go on whose call has returned and whose deadline is over, no more calls
    /// are begun until those in flight have returned: if it goes on then, that is a
    /// [`CrashKind::Deadline`](crate::CrashKind::Deadline).
    ///
    /// Not for [metered](airssys_wasm_engine::Profile::Metered) code, whose fuel cannot be counted for each call.
    ///
    /// # Errors
    ///
    /// [`SeveralCrashed`]. For a component without [async](airssys_wasm_engine::Features::component_async) it is a
    /// [`CrashKind::BadValue`](crate::CrashKind::BadValue).
    ///
    /// # Panics
    ///
    /// When the calls wait or are interrupted outside a tokio runtime with timers.
    pub async fn call_several<P, R>(
        mut self,
        export: &TypedExport<P, R>,
        at_a_time: usize,
        calls: &mut impl Calls<P, R, U>,
        cancel: &CancellationToken,
    ) -> Result<Self, SeveralCrashed>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        self.begin(airssys_wasm_limits::CallPhase::Message);
        let Live { store, guarded, .. } = &mut *self.0;
        begin_calls(store);
        let state = store.data_mut();
        let running = state.metered().running_call().cloned().unwrap_or_default();
        calls.begin(&running, &mut state.ext);
        let deadline = store.data().quota().limits().deadline;
        let due = Due::at(later(Instant::now(), deadline));
        let mut in_flight = InFlight::new(&due, deadline);
        let calls = store.run_concurrent(async |tasks| run(tasks, export, at_a_time, calls, &mut in_flight).await);
        let outcome = guard_several(calls, Some(cancel), guarded, &due).await;
        let state = self.0.store.data();
        let (crash, call) = match outcome {
            Ok(Ok(Ok(None))) => return Ok(self),
            Ok(Ok(Ok(Some(late)))) => {
                let interrupted = Interrupted::Deadline(deadline);
                (Crash::from_interruption(interrupted, Some(export.name()), self.usage()), Some(late))
            }
            Ok(Ok(Err(error)) | Err(error)) => {
                let call = running.number();
                (Crash::from_error(error, Phase::Calling, Some(export.name()), state.metered(), self.usage()), call)
            }
            Err(interrupted) => {
                let call = match interrupted {
                    Interrupted::Deadline(_) => in_flight.oldest(),
                    _ => None,
                };
                (Crash::from_interruption(interrupted, Some(export.name()), self.usage()), call)
            }
        };
        Err(SeveralCrashed { crash: self.crashed(crash).await, call })
    }
}

/// Calls that have begun, by number, with their task and when that was.
type Begun = BTreeMap<u64, (GuestTaskId, Instant)>;

/// Calls that have not ended.
struct InFlight<'a> {
    /// Those that have not returned.
    begun: Begun,
    due: &'a Due,
    deadline: Duration,
    /// Those whose task may go on.
    returned: Begun,
    /// Of them when their tasks are looked at again.
    worth_a_look: usize,
    /// When the first of them is due.
    timer: Option<Pin<Box<Sleep>>>,
    /// What wasmtime keeps for a task, if that is known.
    kind: Option<TypeId>,
}

/// Calls that have returned and may go on, before their tasks are looked at for the first time.
const FEW: usize = 64;

impl<'a> InFlight<'a> {
    fn new(due: &'a Due, deadline: Duration) -> Self {
        let (begun, returned) = (BTreeMap::new(), BTreeMap::new());
        Self { begun, due, deadline, returned, worth_a_look: FEW, timer: None, kind: None }
    }

    fn oldest(&self) -> Option<u64> {
        self.begun.first_key_value().map(|(number, _)| *number)
    }

    fn begin<U: Send + 'static>(
        &mut self,
        number: u64,
        task: GuestTaskId,
        store: &mut StoreContextMut<'_, HostState<U>>,
    ) {
        store.data_mut().meter().begin_call(task, number);
        self.kind = self.kind.or_else(|| kept_for(task, store));
        self.begun.insert(number, (task, Instant::now()));
        self.set_due();
    }

    /// A call has returned.
    fn end<U: Send + 'static>(&mut self, number: u64, store: &mut StoreContextMut<'_, HostState<U>>) {
        if let Some((task, since)) = self.begun.remove(&number)
            && may_go_on(number, task, self.kind, store)
        {
            if self.returned.len() >= self.worth_a_look {
                self.look(store);
                self.worth_a_look = 2 * self.returned.len() + FEW;
            }
            self.returned.insert(number, (task, since));
            self.timer = None;
        }
        self.set_due();
    }

    /// Forgets those whose task has ended.
    fn look<U: Send + 'static>(&mut self, store: &mut StoreContextMut<'_, HostState<U>>) {
        self.returned.retain(|number, (task, _)| may_go_on(*number, *task, self.kind, store));
    }

    /// The first call that has returned and seems to go on though its time is over.
    fn poll_late<U: Send + 'static>(&mut self, tasks: &Accessor<HostState<U>>, cx: &mut Context<'_>) -> Option<u64> {
        loop {
            let (number, (_, since)) = self.returned.first_key_value()?;
            let (number, due) = (*number, later(*since, self.deadline));
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.as_mut().poll(cx).is_pending() {
                return None;
            }
            tasks.with(|mut store| self.look(&mut store.as_context_mut()));
            if self.returned.contains_key(&number) {
                return Some(number);
            }
            self.timer = None;
        }
    }

    /// The oldest is due first. What goes on when all have returned is seen to by itself, or is a call of the host.
    fn set_due(&self) {
        let since = self.begun.first_key_value().map_or_else(Instant::now, |(_, (_, since))| *since);
        self.due.move_to(later(since, self.deadline));
    }
}

/// Whether a call that has returned may go on: its task is there, and is no other's by now. That a task is there may be said of
/// a call inside the component, which has got its id.
fn may_go_on<U: Send + 'static>(
    number: u64,
    task: GuestTaskId,
    kind: Option<TypeId>,
    store: &mut StoreContextMut<'_, HostState<U>>,
) -> bool {
    store.data_mut().meter().call_of(task) == Some(number)
        && kind.is_none_or(|kind| kept_for(task, store) == Some(kind))
}

/// What wasmtime keeps under the id of a task, as long as there is something.
fn kept_for<U: Send + 'static>(task: GuestTaskId, store: &mut StoreContextMut<'_, HostState<U>>) -> Option<TypeId> {
    let at = place_of(task)?;
    let kept = store.concurrent_resource_table()?.get_any_mut(at).ok()?;
    Some((*kept).type_id())
}

/// The place of a task in wasmtime's table, which it tells nobody: it is all that is hashed of an id.
fn place_of(task: GuestTaskId) -> Option<u32> {
    #[derive(Default)]
    struct Place(Option<u32>);

    impl Hasher for Place {
        fn finish(&self) -> u64 {
            0
        }

        fn write(&mut self, _: &[u8]) {}

        fn write_u32(&mut self, place: u32) {
            self.0 = Some(place);
        }
    }

    let mut place = Place::default();
    task.hash(&mut place);
    place.0
}

/// Until nothing goes on, or the call goes on that it gives, whose time is over.
async fn run<P, R, U>(
    tasks: &Accessor<HostState<U>>,
    export: &TypedExport<P, R>,
    at_a_time: usize,
    calls: &mut impl Calls<P, R, U>,
    in_flight: &mut InFlight<'_>,
) -> wasmtime::Result<Option<u64>>
where
    P: ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
    U: Send + 'static,
{
    let func = export.func();
    let mut running = FuturesUnordered::new();
    let mut more = true;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(Some((number, result))) = running.poll_next_unpin(cx) {
                let result = result?;
                tasks.with(|mut store| {
                    in_flight.end(number, &mut store.as_context_mut());
                    let state = store.data_mut();
                    let memory = state.memory();
                    more &= calls.returned(number, result, &mut state.ext, memory);
                });
                continue;
            }
            let late = in_flight.poll_late(tasks, cx);
            if more && late.is_none() && running.len() < at_a_time {
                let next = tasks.with(|mut store| calls.poll_next(cx, &mut store.data_mut().ext));
                if let Poll::Ready(Some((number, params))) = next {
                    let call = tasks.with(|mut store| -> wasmtime::Result<_> {
                        let call = func.start_call_concurrent(&mut store, params)?;
                        in_flight.begin(number, call.task(), &mut store.as_context_mut());
                        Ok(call)
                    })?;
                    running.push(async move { (number, func.finish_call_concurrent(tasks, call).await) });
                    continue;
                }
                more &= next.is_pending();
            }
            if !running.is_empty() {
                return Poll::Pending;
            }
            match (poll_settled(tasks, cx), late) {
                (Poll::Ready(()), None) => return Poll::Ready(Ok(None)),
                // It had ended, and another had its id.
                (Poll::Ready(()), Some(_)) => in_flight.returned.clear(),
                (Poll::Pending, Some(late)) => return Poll::Ready(Ok(Some(late))),
                (Poll::Pending, None) => return Poll::Pending,
            }
        }
    })
    .await
}
