//! What several calls of an instance use that run at the same time, each by itself.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use airssys_wasm_engine::wasmtime::component::GuestTaskId;

/// Which of several calls runs, for who has no meter at hand.
#[derive(Debug, Clone)]
pub struct RunningCall(Arc<AtomicU64>);

const NONE: u64 = u64::MAX;

impl RunningCall {
    /// Its number: of the call that ran last, if none does.
    pub fn number(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|number| *number != NONE)
    }
}

impl Default for RunningCall {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(NONE)))
    }
}

/// The calls that a store was told of, by their tasks. What a task starts beside itself counts as its own, also after it has
/// returned: nobody says when it has ended. wasmtime gives the ids of those that have ended again: there are no more than places
/// in its table, which is bounded.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    calls: HashMap<GuestTaskId, Call>,
    /// The task that was seen last.
    running: Option<GuestTaskId>,
    pub(crate) running_call: RunningCall,
    /// Nanoseconds of the store's CPU time that were charged to one of them.
    shared_out: u64,
}

#[derive(Debug, Default)]
struct Call {
    /// None for a task that nobody told of.
    number: Option<u64>,
    cpu_ns: u64,
    host_calls: u64,
}

impl Tasks {
    pub(crate) fn begin(&mut self, task: GuestTaskId, number: u64) {
        if self.running == Some(task) {
            // One that ended had this task's id.
            self.running = None;
        }
        self.calls.insert(task, Call { number: Some(number), ..Call::default() });
    }

    /// The call that a task was last begun for.
    pub(crate) fn call_of(&self, task: GuestTaskId) -> Option<u64> {
        self.calls.get(&task)?.number
    }

    /// A task was seen that did not run until now.
    pub(crate) fn switch(&mut self, to: GuestTaskId, cpu_ns: u64) {
        self.charge(None, cpu_ns);
        self.run(to);
    }

    fn run(&mut self, task: GuestTaskId) {
        if self.running != Some(task) {
            self.running = Some(task);
            let number = self.calls.get(&task).and_then(|call| call.number);
            self.running_call.0.store(number.unwrap_or(NONE), Ordering::Relaxed);
        }
    }

    /// Charges the task that runs for what was used since the last time. Says what it has used in all.
    pub(crate) fn charge(&mut self, running: Option<GuestTaskId>, cpu_ns: u64) -> u64 {
        if let Some(task) = running {
            self.run(task);
        }
        let used = cpu_ns.saturating_sub(self.shared_out);
        self.shared_out = cpu_ns;
        let Some(task) = self.running else { return 0 };
        let call = self.calls.entry(task).or_default();
        call.cpu_ns = call.cpu_ns.saturating_add(used);
        call.cpu_ns
    }

    /// Counts a host call of the task that runs.
    pub(crate) fn host_call(&mut self) -> u64 {
        let Some(call) = self.running.and_then(|task| self.calls.get_mut(&task)) else { return 0 };
        call.host_calls += 1;
        call.host_calls
    }
}
