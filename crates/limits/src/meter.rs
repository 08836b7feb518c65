//! The meter in a store: counts what a guest takes and refuses what goes beyond its quota.

use std::{
    cell::OnceCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use airssys_wasm_engine::{
    EpochClock,
    wasmtime::{self, CallHook, ResourceLimiter, Store, StoreContextMut, UpdateDeadline, component::GuestTaskId},
};
use serde::{Deserialize, Serialize};

use crate::{
    BudgetExhausted, CallPhase, InlineCalls, LogAllowance, MemoryBudget, MemoryGrant, OnGrowthRefused, Quota,
    RunningCall,
    inline::{At, Inline},
    tasks::Tasks,
};

/// A limit of a component was reached. Inside a guest this is what a trap carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitExceeded {
    /// Linear memory, or the collected heap.
    #[error("the component asked for {asked} bytes of memory in all and may have {allowed}; raise `memory`")]
    Memory {
        /// Bytes it would have had in all.
        asked: u64,
        /// Bytes it may have.
        allowed: u64,
    },
    /// Table elements.
    #[error("the component asked for {asked} table elements in all and may have {allowed}; raise `table_elements`")]
    TableElements {
        /// Elements it would have had in all.
        asked: u64,
        /// Elements it may have.
        allowed: u64,
    },
    /// The host's memory, shared by all components.
    #[error(transparent)]
    Budget(#[from] BudgetExhausted),
    /// CPU time.
    #[error("the call used its CPU time of {allowed} ticks; raise `cpu_time` if it needs more")]
    CpuTime {
        /// Ticks it may use.
        allowed: u64,
    },
    /// Host calls.
    #[error("the call turned to the host more than {allowed} times; raise `host_calls` if it must")]
    HostCalls {
        /// Host calls it may make.
        allowed: u64,
    },
    /// Bytes that one host call carries.
    #[error("a host call asked for {asked} bytes and may have {allowed}; raise `host_call_bytes` if it needs more")]
    HostCallBytes {
        /// Bytes asked for.
        asked: u64,
        /// Bytes it may have.
        allowed: u64,
    },
}

/// What a component has used. Memory and tables are current; the rest is of the last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Bytes of linear memory, and of the collected heap if there is one.
    pub memory: u64,
    /// Peak bytes of these.
    pub memory_peak: u64,
    /// Elements in tables.
    pub table_elements: u64,
    /// Full epoch ticks for which the guest had its worker: it computed, or the host worked for it.
    pub cpu_ticks: u64,
    /// Transitions from the guest to the host, for a component that imports functions.
    pub host_calls: u64,
    /// Fuel, for metered code.
    pub fuel: Option<u64>,
    /// Nanoseconds from start to end, if calls are timed.
    pub elapsed_ns: Option<u64>,
}

/// Counts for one store. It belongs to the store's data, see [`Metered`].
#[derive(Debug)]
pub struct Meter {
    /// What holds for the present call.
    quota: Quota,
    phase: CallPhase,
    /// What holds for a message, and has the others.
    messages: Quota,
    grant: Option<MemoryGrant>,
    memory: u64,
    memory_peak: u64,
    table_elements: u64,
    /// What the last permitted growth added, in case it fails afterwards. Gone once it was taken back.
    last_growth: Option<u64>,
    /// Why the last growth was refused, unless one was permitted since.
    refused: Option<LimitExceeded>,
    host_calls: u64,
    /// Where calls run at the same time.
    tasks: Option<Box<Tasks>>,
    slice: Arc<Slice>,
    /// Where calls may do without a fiber.
    pub(crate) inline: Option<Inline>,
    /// Made when something is first written, unless it is shared.
    log: OnceCell<LogAllowance>,
}

/// CPU time of the running call. The guard starts a stretch at each poll and charges it when the call gives way, so
/// waiting is free. Only the call's own task writes it.
///
/// The clock is read once a tick and, after the call was first pending, at each poll. Before that, whole ticks are
/// counted: a call that ends at once reads no clock.
#[derive(Debug)]
pub(crate) struct Slice {
    clock: EpochClock,
    /// Nanoseconds in a tick.
    period: u64,
    /// Tick up to which the call was charged.
    tick: AtomicU64,
    /// Nanoseconds of the clock up to which it was charged, or [`UNREAD`].
    since: AtomicU64,
    /// Nanoseconds charged.
    charged: AtomicU64,
    /// Nanoseconds that are too many.
    too_many: AtomicU64,
    /// Nanoseconds that a call may take: here, so that a call that ends at once does not look for it.
    deadline: AtomicU64,
}

/// No reading of the clock.
const UNREAD: u64 = u64::MAX;

impl Slice {
    fn new(quota: &Quota) -> Self {
        let clock = quota.clock().clone();
        let slice = Self {
            too_many: AtomicU64::new(0),
            period: clock.period_ns(),
            clock,
            tick: AtomicU64::new(0),
            since: AtomicU64::new(UNREAD),
            charged: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
        };
        slice.hold_to(quota);
        slice
    }

    /// Takes other limits, between two calls.
    fn hold_to(&self, quota: &Quota) {
        // The first tick may end at once: only one more than the budget proves that all of it was used.
        let too_many = quota.cpu_ticks().saturating_add(1).saturating_mul(self.period);
        self.too_many.store(too_many, Ordering::Relaxed);
        let deadline = u64::try_from(quota.limits().deadline.as_nanos()).unwrap_or(u64::MAX);
        self.deadline.store(deadline, Ordering::Relaxed);
    }

    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_nanos(self.deadline.load(Ordering::Relaxed))
    }

    fn start_call(&self) {
        self.since.store(UNREAD, Ordering::Relaxed);
        self.charged.store(0, Ordering::Relaxed);
    }

    /// The call is polled for the first time.
    pub(crate) fn begin(&self) {
        self.tick.store(self.clock.ticks(), Ordering::Relaxed);
    }

    /// The call is polled again.
    pub(crate) fn resume(&self) {
        self.begin();
        self.since.store(self.clock.now_ns(), Ordering::Relaxed);
    }

    /// Charges until now.
    pub(crate) fn charge(&self) {
        let (tick, now) = (self.clock.ticks(), self.clock.now_ns());
        let ended = tick.saturating_sub(self.tick.load(Ordering::Relaxed));
        let since = self.since.load(Ordering::Relaxed);
        let used = match since {
            UNREAD => ended.saturating_mul(self.period),
            // Where the whole process stood still, the clock went on and the ticks did not.
            since => now.saturating_sub(since).min(ended.saturating_add(1).saturating_mul(self.period)),
        };
        self.tick.store(tick, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
        self.charged.store(self.charged().saturating_add(used), Ordering::Relaxed);
    }

    fn charge_if_a_tick_ended(&self) {
        if self.clock.ticks() != self.tick.load(Ordering::Relaxed) {
            self.charge();
        }
    }

    fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    fn too_many(&self) -> u64 {
        self.too_many.load(Ordering::Relaxed)
    }

    /// Whether more was charged than a guest can use before it is stopped by itself: where only the host works for it,
    /// nothing else stops it.
    pub(crate) fn is_used_up(&self) -> bool {
        self.charged() >= self.too_many().saturating_add(2 * self.period)
    }

    /// Ticks that a call may take.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        (self.too_many() / self.period).saturating_sub(1)
    }
}

/// Store data that has a meter.
pub trait Metered: Send + 'static {
    /// The meter.
    fn meter(&mut self) -> &mut Meter;
}

impl Meter {
    /// A meter at zero that takes its memory from a budget, if there is one.
    pub fn new(quota: Quota, budget: Option<&MemoryBudget>) -> Self {
        Self {
            grant: budget.map(MemoryBudget::grant),
            slice: Arc::new(Slice::new(&quota)),
            quota: quota.clone(),
            phase: CallPhase::Message,
            messages: quota,
            memory: 0,
            memory_peak: 0,
            table_elements: 0,
            last_growth: None,
            refused: None,
            host_calls: 0,
            tasks: None,
            inline: None,
            log: OnceCell::new(),
        }
    }

    /// With an allowance for the log that other meters of the component share.
    #[must_use]
    pub fn with_log(mut self, log: &LogAllowance) -> Self {
        self.log = OnceCell::from(log.clone());
        self
    }

    /// Lets calls of the store be made without a fiber from now on, where so many bytes of stack are left: see
    /// [`guard_inline`](crate::guard_inline). Nothing that the guest can call may be async, or the calls fail.
    ///
    /// They must be polled in a runtime with several threads. In a `LocalSet`, whose thread cannot be given up, a call that
    /// computes keeps it until it ends, and tokio's panic about that is caught.
    pub fn allow_inline(&mut self, calls: &InlineCalls, stack: usize) {
        self.inline = Some(Inline::new(calls, stack));
    }

    /// Takes [`allow_inline`](Self::allow_inline) back.
    pub fn forbid_inline(&mut self) {
        self.inline = None;
    }

    /// What it counts against in the present call.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Why the last growth of this call was refused, unless one was permitted since. For a heap that is collected: wasmtime
    /// says of a refusal only that the heap is full.
    pub fn refused(&self) -> Option<&LimitExceeded> {
        self.refused.as_ref()
    }

    /// Bytes of linear memory and of the collected heap that there are now.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Usage so far, without fuel and time, which are not counted here.
    pub fn usage(&self) -> Usage {
        Usage {
            memory: self.memory,
            memory_peak: self.memory_peak,
            table_elements: self.table_elements,
            cpu_ticks: self.slice.charged() / self.slice.period,
            host_calls: self.host_calls,
            fuel: None,
            elapsed_ns: None,
        }
    }

    /// What the component may write into the log.
    pub fn log(&self) -> &LogAllowance {
        self.log.get_or_init(|| LogAllowance::new(&self.quota))
    }

    pub(crate) fn slice(&self) -> &Arc<Slice> {
        &self.slice
    }

    fn start_call(&mut self, phase: CallPhase) {
        if phase != self.phase {
            self.phase = phase;
            self.quota = self.messages.in_phase(phase).clone();
            self.slice.hold_to(&self.quota);
        }
        self.slice.start_call();
        self.host_calls = 0;
        self.refused = None;
        self.tasks = None;
    }

    /// A call has begun beside others, see [`begin_calls`].
    pub fn begin_call(&mut self, task: GuestTaskId, number: u64) {
        self.tasks.get_or_insert_default().begin(task, number);
    }

    /// The call that [began](Self::begin_call) last with this task. What a task does after its call has returned still counts as
    /// its own. wasmtime gives the id of a task that has ended to another one.
    pub fn call_of(&self, task: GuestTaskId) -> Option<u64> {
        self.tasks.as_ref()?.call_of(task)
    }

    /// Which call runs, among calls that run at the same time.
    pub fn running_call(&self) -> Option<&RunningCall> {
        self.tasks.as_ref().map(|tasks| &tasks.running_call)
    }

    /// Charges for the epochs that ended since the last time: the running task, where there are several. What the guard
    /// charged when the call gave way counts too.
    fn charge_cpu_time(&mut self, task: Option<GuestTaskId>) -> Result<(), LimitExceeded> {
        self.slice.charge_if_a_tick_ended();
        let charged = match &mut self.tasks {
            None => self.slice.charged(),
            Some(tasks) => tasks.charge(task, self.slice.charged()),
        };
        if charged < self.slice.too_many() {
            Ok(())
        } else {
            Err(LimitExceeded::CpuTime { allowed: self.quota.cpu_ticks() })
        }
    }

    fn enter_host(&mut self, task: Option<GuestTaskId>) -> Result<(), LimitExceeded> {
        self.charge_cpu_time(task)?;
        self.host_calls += 1;
        let host_calls = match &mut self.tasks {
            None => self.host_calls,
            Some(tasks) => tasks.host_call(),
        };
        let allowed = self.quota.host_calls();
        if host_calls > allowed { Err(LimitExceeded::HostCalls { allowed }) } else { Ok(()) }
    }

    fn refuse(&mut self, exceeded: LimitExceeded) -> wasmtime::Result<bool> {
        self.refused = Some(exceeded);
        match self.quota.limits().on_growth_refused {
            OnGrowthRefused::Crash => Err(exceeded.into()),
            OnGrowthRefused::TellGuest => Ok(false),
        }
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            // The memory's own maximum, which has nothing to do with the limit.
            return Ok(false);
        }
        let more = (desired - current) as u64;
        let asked = self.memory.saturating_add(more);
        let allowed = self.quota.limits().memory.as_u64();
        if asked > allowed {
            return self.refuse(LimitExceeded::Memory { asked, allowed });
        }
        if let Some(grant) = &mut self.grant
            && let Err(exhausted) = grant.grow(more)
        {
            return self.refuse(exhausted.into());
        }
        self.memory = asked;
        self.memory_peak = self.memory_peak.max(asked);
        self.last_growth = Some(more);
        self.refused = None;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        // A growth that nobody was asked about can fail too, in a memory with pages of a byte, which the engine does not take.
        // Nothing was added for it; where it comes after one that succeeded, it cannot be told from that.
        debug_assert!(self.last_growth.is_some(), "a growth failed that was not permitted");
        if let Some(growth) = self.last_growth.take() {
            self.memory -= growth;
            if let Some(grant) = &mut self.grant {
                grant.shrink(growth);
            }
        }
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let asked = self.table_elements.saturating_add((desired - current) as u64);
        let allowed = self.quota.limits().table_elements;
        if asked > allowed {
            return self.refuse(LimitExceeded::TableElements { asked, allowed });
        }
        self.table_elements = asked;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.quota.limits().instances as usize
    }

    fn memories(&self) -> usize {
        self.quota.limits().memories as usize
    }

    fn tables(&self) -> usize {
        self.quota.limits().tables as usize
    }
}

/// Puts the meter of a new store to work, before anything is instantiated in it.
pub fn install<T: Metered>(store: &mut Store<T>) {
    let quota = store.data_mut().meter().quota().clone();
    let limits = quota.limits();
    // None of these closures captures anything, so none is allocated.
    store.limiter(|data| data.meter());
    store.epoch_deadline_callback(on_epoch);
    store.set_max_component_handles(limits.handles as usize);
    store.set_hostcall_fuel(limits.message_size.as_u64() as usize);
    // What wasmtime keeps of tasks, streams and futures: up to three entries for each handle, and some without one.
    if let Some(tasks) = store.concurrent_resource_table() {
        tasks.set_max_capacity((limits.handles as usize).saturating_mul(3).saturating_add(64));
    }
    watch(store);
}

/// Holds what the guest does against its quota, as [`install`] does: from now on, after [`unwatch`].
pub fn watch<T: Metered>(store: &mut Store<T>) {
    if store.data_mut().meter().quota.watches_host() {
        store.call_hook(on_transition);
    }
}

/// Until [`watch`], transitions between the guest and the host are neither counted nor charged, and none is refused: for
/// what the host does in the store for itself.
pub fn unwatch<T: Metered>(store: &mut Store<T>) {
    if store.data_mut().meter().quota.watches_host() {
        store.call_hook(|_, _| Ok(()));
    }
}

/// Prepares a store for its next call, or for instantiation, which counts as one: guest code runs there too.
pub fn begin_call<T: Metered>(store: &mut Store<T>, phase: CallPhase) {
    store.set_epoch_deadline(1);
    let meter = store.data_mut().meter();
    meter.start_call(phase);
    let fuel = meter.quota.fuel_per_call();
    if let Some(fuel) = fuel {
        store.set_fuel(fuel).expect("the quota has fuel for metered code only");
    }
}

/// Prepares a store for several calls that run at the same time, under the limits of one message each. Each is told to the
/// meter when it [begins](Meter::begin_call). Fuel cannot be counted for each of them.
pub fn begin_calls<T: Metered>(store: &mut Store<T>) {
    begin_call(store, CallPhase::Message);
    store.data_mut().meter().tasks = Some(Box::default());
}

/// The task by which the host was called that led to what runs now, where that is asked for.
fn running<T: Metered>(store: &mut StoreContextMut<'_, T>) -> Option<GuestTaskId> {
    store.data_mut().meter().tasks.as_ref()?;
    store.async_call_stack().ok()?.last()
}

fn on_epoch<T: Metered>(mut store: StoreContextMut<'_, T>) -> wasmtime::Result<UpdateDeadline> {
    let task = running(&mut store);
    let meter = store.data_mut().meter();
    meter.charge_cpu_time(task)?;
    let clock = &meter.slice.clock;
    if let Some(inline) = &mut meter.inline
        && inline.tick(
            At { now: clock.now_ns(), thread: clock.thread_ns() },
            clock.period_ns(),
            meter.slice.deadline.load(Ordering::Relaxed),
        )?
    {
        // It may have waited for a worker.
        meter.slice.resume();
        return Ok(UpdateDeadline::Continue(1));
    }
    // Behind all other tasks: a plain yield would poll this one again at once.
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
}

/// For a host function that computes: charges the guest for ended epochs, then yields to the worker's other tasks.
/// Computing between two of these is charged; waiting is not.
///
/// # Errors
///
/// [`LimitExceeded::CpuTime`].
pub async fn give_way<T: Metered>(store: &mut StoreContextMut<'_, T>) -> Result<(), LimitExceeded> {
    // Before the wait: the guard moves the mark on when it polls again.
    let task = running(store);
    store.data_mut().meter().charge_cpu_time(task)?;
    tokio::task::yield_now().await;
    Ok(())
}

fn on_transition<T: Metered>(mut store: StoreContextMut<'_, T>, hook: CallHook) -> wasmtime::Result<()> {
    match hook {
        CallHook::CallingHost => {
            let task = running(&mut store);
            let meter = store.data_mut().meter();
            meter.enter_host(task)?;
            let quota = meter.quota();
            let (bytes, returned) = (quota.host_call_bytes(), quota.limits().message_size.as_u64());
            if bytes != returned {
                store.set_hostcall_fuel(bytes as usize);
            }
        }
        CallHook::ReturningFromWasm => {
            let returned = store.data_mut().meter().quota().limits().message_size.as_u64();
            store.set_hostcall_fuel(returned as usize);
        }
        CallHook::CallingWasm | CallHook::ReturningFromHost => {
            if let Some(task) = running(&mut store) {
                let meter = store.data_mut().meter();
                let charged = meter.slice.charged();
                if let Some(tasks) = &mut meter.tasks {
                    tasks.switch(task, charged);
                }
            }
        }
    }
    Ok(())
}
