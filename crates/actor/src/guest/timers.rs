//! The imports of guests that do something later: `timers`, kept in memory, and `reminders`, kept by a layer above.

use std::{sync::Arc, time::Duration};

use airssys_wasm_engine::{
    Linker, LoadedComponent,
    wasmtime::{
        self, StoreContextMut,
        component::{Accessor, LinkerInstance},
    },
};
use airssys_wasm_isolation::HostState;
use bytes::Bytes;

use crate::{
    ActorState, ReminderError,
    guest::{
        imports::{outgoing, refused, share},
        wire::{GuestReminderError, GuestSendError},
    },
    runtime::timers::TimerLimits,
};

type Ctx<'a, U> = StoreContextMut<'a, HostState<ActorState<U>>>;
type Instance<'a, U> = LinkerInstance<'a, HostState<ActorState<U>>>;

/// Defines them in a linker.
pub(crate) fn link<U: Send + 'static>(
    linker: &mut Linker<HostState<ActorState<U>>>,
    component: &LoadedComponent,
) -> wasmtime::Result<()> {
    link_timers(&mut linker.instance("airssys:actor/timers@0.1.0")?)?;
    link_reminders(&mut linker.instance("airssys:actor/reminders@0.1.0")?)?;
    if component.features().component_async {
        link_timers(&mut linker.instance("airssys:actor/timers@0.2.0")?)?;
        link_async_reminders(&mut linker.instance("airssys:actor/reminders@0.2.0")?)?;
    }
    Ok(())
}

fn link_timers<U: Send + 'static>(timers: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    timers.func_wrap(
        "send-after",
        |mut store: Ctx<'_, U>, (to, payload, content_type, after_ms): (String, Bytes, Option<Arc<str>>, u64)| {
            Ok((send_after(&mut store.data_mut().ext, &to, payload, content_type, after_ms),))
        },
    )?;
    timers.func_wrap("cancel", |store: Ctx<'_, U>, (timer,): (u64,)| Ok((store.data().ext.cell.cancel_later(timer),)))
}

fn send_after<U>(
    state: &mut ActorState<U>,
    to: &str,
    payload: Bytes,
    content_type: Option<Arc<str>>,
    after_ms: u64,
) -> Result<u64, GuestSendError> {
    let (to, message) = outgoing(state, to, payload, content_type)?;
    let most = TimerLimits { timers: state.capabilities.later, bytes: state.capabilities.later_bytes.as_u64() };
    let sent = state.cell.send_later(to, message, Duration::from_millis(after_ms), most);
    sent.map_err(|(reason, _)| refused(reason))
}

fn link_reminders<U: Send + 'static>(reminders: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    reminders.func_wrap_async("set", |mut store: Ctx<'_, U>, (name, after_ms, payload): (String, u64, Bytes)| {
        let set = set(&mut store.data_mut().ext, &name, after_ms, payload);
        Box::new(async move { Ok((set.await,)) })
    })?;
    reminders.func_wrap_async("cancel", |mut store: Ctx<'_, U>, (name,): (String,)| {
        let cancelled = cancel(&mut store.data_mut().ext, &name);
        Box::new(async move { Ok((cancelled.await,)) })
    })
}

/// For guests of which several tasks may wait at the same time.
fn link_async_reminders<U: Send + 'static>(reminders: &mut Instance<'_, U>) -> wasmtime::Result<()> {
    reminders.func_wrap_concurrent(
        "set",
        |tasks: &Accessor<HostState<ActorState<U>>>, (name, after_ms, payload): (String, u64, Bytes)| {
            let begun = tasks.with(|mut store| {
                let data = store.data_mut();
                let share = share(data, name.len() + payload.len()).ok_or(GuestReminderError::Unavailable)?;
                Ok((set(&mut data.ext, &name, after_ms, payload), share, data.host_call()))
            });
            Box::pin(async move {
                Ok((match begun {
                    Ok((set, _share, _call)) => set.await,
                    Err(error) => Err(error),
                },))
            })
        },
    )?;
    reminders.func_wrap_concurrent("cancel", |tasks: &Accessor<HostState<ActorState<U>>>, (name,): (String,)| {
        let begun = tasks.with(|mut store| {
            let data = store.data_mut();
            let share = share(data, name.len()).ok_or(GuestReminderError::Unavailable)?;
            Ok((cancel(&mut data.ext, &name), share, data.host_call()))
        });
        Box::pin(async move {
            Ok((match begun {
                Ok((cancelled, _share, _call)) => cancelled.await,
                Err(error) => Err(error),
            },))
        })
    })
}

fn set<U>(
    state: &mut ActorState<U>,
    name: &str,
    after_ms: u64,
    payload: Bytes,
) -> impl Future<Output = Result<(), GuestReminderError>> + Send + use<U> {
    let (cell, after) = (&state.cell, Duration::from_millis(after_ms));
    let may_act = !cell.is_fenced();
    let find = || cell.services.reminders.find(|reminders| reminders.set(cell.id(), name, after, payload.clone()));
    let set = may_act.then(find);
    async move {
        let set = set.ok_or(GuestReminderError::Unavailable)?.ok_or(GuestReminderError::NotKept)?;
        set.await.map_err(GuestReminderError::from)
    }
}

fn cancel<U>(
    state: &mut ActorState<U>,
    name: &str,
) -> impl Future<Output = Result<bool, GuestReminderError>> + Send + use<U> {
    let cell = &state.cell;
    let may_act = !cell.is_fenced();
    let cancelled = may_act.then(|| cell.services.reminders.find(|reminders| reminders.cancel(cell.id(), name)));
    async move {
        let cancelled = cancelled.ok_or(GuestReminderError::Unavailable)?.ok_or(GuestReminderError::NotKept)?;
        cancelled.await.map_err(GuestReminderError::from)
    }
}

impl From<ReminderError> for GuestReminderError {
    fn from(error: ReminderError) -> Self {
        match error {
            ReminderError::Name { .. } => Self::Invalid(error.to_string()),
            ReminderError::TooMany(most) => Self::TooMany(most),
            ReminderError::TooLarge { allowed, .. } => Self::TooLarge(allowed),
            ReminderError::Unavailable(_) => Self::Unavailable,
        }
    }
}
