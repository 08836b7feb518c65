//! Calls that a guest with async functions has in flight at the same time.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    task::{Context, Poll},
};

use airssys_wasm_engine::wasmtime::{
    self,
    component::{Accessor, ComponentNamedList, GuestTaskId, Lift, Lower},
};
use airssys_wasm_limits::{
    CancellationToken, Due, Interrupted, Metered, RunningCall, begin_calls, guard_several, later,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

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
    /// of its task, and its deadline begins with it. No task can be ended alone, so what ends one ends all.
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
        let mut in_flight = InFlight { begun: BTreeMap::new(), due: &due, deadline };
        let calls = store.run_concurrent(async |tasks| run(tasks, export, at_a_time, calls, &mut in_flight).await);
        let outcome = guard_several(calls, Some(cancel), guarded, &due).await;
        let state = self.0.store.data();
        let (crash, call) = match outcome {
            Ok(Ok(Ok(()))) => return Ok(self),
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

/// Calls that have begun and not returned.
struct InFlight<'a> {
    begun: BTreeMap<u64, (GuestTaskId, Instant)>,
    due: &'a Due,
    deadline: std::time::Duration,
}

impl InFlight<'_> {
    fn oldest(&self) -> Option<u64> {
        self.begun.first_key_value().map(|(number, _)| *number)
    }

    fn begin(&mut self, number: u64, task: GuestTaskId) {
        self.begun.insert(number, (task, Instant::now()));
        self.set_due();
    }

    fn end(&mut self, number: u64) -> Option<GuestTaskId> {
        let ended = self.begun.remove(&number);
        self.set_due();
        ended.map(|(task, _)| task)
    }

    /// The oldest is due first. What goes on when all have returned has as much time again.
    fn set_due(&self) {
        let since = self.begun.first_key_value().map_or_else(Instant::now, |(_, (_, since))| *since);
        self.due.move_to(later(since, self.deadline));
    }
}

async fn run<P, R, U>(
    tasks: &Accessor<HostState<U>>,
    export: &TypedExport<P, R>,
    at_a_time: usize,
    calls: &mut impl Calls<P, R, U>,
    in_flight: &mut InFlight<'_>,
) -> wasmtime::Result<()>
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
                    let state = store.data_mut();
                    if let Some(task) = in_flight.end(number) {
                        state.meter().call_returned(task);
                    }
                    let memory = state.memory();
                    more &= calls.returned(number, result, &mut state.ext, memory);
                });
                continue;
            }
            if more && running.len() < at_a_time {
                let next = tasks.with(|mut store| calls.poll_next(cx, &mut store.data_mut().ext));
                if let Poll::Ready(Some((number, params))) = next {
                    let call = tasks.with(|mut store| -> wasmtime::Result<_> {
                        let call = func.start_call_concurrent(&mut store, params)?;
                        store.data_mut().meter().begin_call(call.task(), number);
                        in_flight.begin(number, call.task());
                        Ok(call)
                    })?;
                    running.push(async move { (number, func.finish_call_concurrent(tasks, call).await) });
                    continue;
                }
                more &= next.is_pending();
            }
            if running.is_empty() && poll_settled(tasks, cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    })
    .await
}
