//! What several calls of an instance use that run at the same time, each by itself.

use std::collections::HashMap;

use airssys_wasm_engine::wasmtime::component::GuestTaskId;

/// The calls that a store was told of, by their tasks. What a task starts beside itself counts as its own, also after it has
/// returned.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    calls: HashMap<GuestTaskId, Call>,
    in_flight: usize,
    /// The task that was seen last.
    running: Option<GuestTaskId>,
    /// Nanoseconds of the store's CPU time that were charged to one of them.
    shared_out: u64,
}

#[derive(Debug, Default)]
struct Call {
    /// None for a task that goes on long after it has returned.
    number: Option<u64>,
    has_returned: bool,
    cpu_ns: u64,
    host_calls: u64,
}

/// Calls that have returned and are remembered. One that is forgotten and goes on is a new one.
const RETURNED: usize = 256;

impl Tasks {
    pub(crate) fn begin(&mut self, task: GuestTaskId, number: u64) {
        if self.calls.len() > 2 * self.in_flight + RETURNED {
            self.calls.retain(|_, call| !call.has_returned);
        }
        self.calls.insert(task, Call { number: Some(number), ..Call::default() });
        self.in_flight += 1;
    }

    pub(crate) fn returned(&mut self, task: GuestTaskId) {
        self.calls.entry(task).or_default().has_returned = true;
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The call whose task was seen last.
    pub(crate) fn running(&self) -> Option<u64> {
        self.calls.get(&self.running?)?.number
    }

    /// A task was seen that did not run until now.
    pub(crate) fn switch(&mut self, to: GuestTaskId, cpu_ns: u64) {
        self.charge(None, cpu_ns);
        self.running = Some(to);
    }

    /// Charges the task that runs for what was used since the last time. Says what it has used in all.
    pub(crate) fn charge(&mut self, running: Option<GuestTaskId>, cpu_ns: u64) -> u64 {
        self.running = running.or(self.running);
        let used = cpu_ns.saturating_sub(self.shared_out);
        self.shared_out = cpu_ns;
        let Some(task) = self.running else { return 0 };
        let call = self.calls.entry(task).or_default();
        call.has_returned |= call.number.is_none();
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
