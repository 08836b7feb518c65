//! Supervisors: the task that carries out a [`Plan`], and what one is made from.

use std::{fmt, sync::Arc, time::Duration};

use airssys_wasm_limits::CancellationToken;
use airssys_wasm_registry::ComponentId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::{
    ActorRef, Backoff, Intensity, Restart, RestartPolicy, SystemEvent,
    failure::{policy::later, report::Failure},
    runtime::{
        cell::Cell,
        orders::Control,
        owner::{ChildEvent, ChildEventKind},
        services::Services,
    },
    supervision::plan::{Order, Plan},
};

/// Whom a failure of one child takes with it, as Erlang/OTP has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Only that child is started again.
    #[default]
    OneForOne,
    /// All are ended, the last first, and started again in their order.
    OneForAll,
    /// That child and those after it are ended, the last first, and started again in their order.
    RestForOne,
}

/// How a supervisor answers its children's failures.
#[derive(Debug, Clone, PartialEq)]
pub struct SupervisorPolicy {
    /// Whom a failure takes with it. Default: one-for-one.
    pub strategy: Strategy,
    /// How many restarts there may be, over all children, before the supervisor itself gives up.
    pub intensity: Intensity,
    /// How long it waits before a restart.
    pub backoff: Backoff,
    /// Whether its own supervisor starts it again when it has given up. Default: permanent.
    pub restart: Restart,
    /// How long a child may take to end before it is interrupted. Default: five seconds.
    pub shutdown: Duration,
}

impl Default for SupervisorPolicy {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            intensity: Intensity::default(),
            backoff: Backoff::default(),
            restart: Restart::default(),
            shutdown: Duration::from_secs(5),
        }
    }
}

/// A handle on a supervisor.
#[derive(Clone)]
pub struct SupervisorRef(pub(crate) Arc<SupervisorCell>);

impl fmt::Debug for SupervisorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SupervisorRef").field(&self.0.name).finish()
    }
}

impl SupervisorRef {
    /// Its name, which is for people: messages cannot be sent to it.
    pub fn name(&self) -> &ComponentId {
        &self.0.name
    }

    /// The actors that are below it and below its supervisors now, in the order of their start.
    pub fn actors(&self) -> Vec<ActorRef> {
        self.0.children.iter().flat_map(Child::actors).collect()
    }

    /// Asks it to end all its children, the last first, and itself. Does not wait; [`ended`](Self::ended) does.
    pub fn stop(&self) {
        self.0.order(SupervisorOrder::Stop);
    }

    /// Waits until it and all below it are gone.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }
}

pub(crate) struct SupervisorCell {
    pub(crate) name: ComponentId,
    pub(crate) children: Vec<Child>,
    orders: mpsc::UnboundedSender<SupervisorOrder>,
    pub(crate) ended: CancellationToken,
}

/// The supervisors of a system that have no parent, with their level.
#[derive(Default)]
pub(crate) struct Roots(Mutex<Vec<(u32, SupervisorRef)>>);

impl Roots {
    pub(crate) fn add(&self, level: u32, supervisor: SupervisorRef) {
        self.0.lock().push((level, supervisor));
    }

    fn remove(&self, supervisor: &Arc<SupervisorCell>) {
        self.0.lock().retain(|(_, other)| !Arc::ptr_eq(&other.0, supervisor));
    }

    pub(crate) fn all(&self) -> Vec<(u32, SupervisorRef)> {
        self.0.lock().clone()
    }
}

/// Somebody who is supervised.
pub(crate) enum Child {
    Actor(Arc<Cell>),
    Supervisor(Arc<SupervisorCell>),
}

enum SupervisorOrder {
    Start { order: u64 },
    Suspend { order: u64 },
    Stop,
}

impl SupervisorCell {
    fn order(&self, order: SupervisorOrder) {
        // Fails when it is gone.
        _ = self.orders.send(order);
    }

    /// Ends everything below at once.
    pub(crate) fn kill(&self) {
        for child in &self.children {
            child.kill();
        }
        self.order(SupervisorOrder::Stop);
    }
}

impl Child {
    /// The actors among and below it.
    pub(crate) fn actors(&self) -> Vec<ActorRef> {
        match self {
            Self::Actor(cell) if cell.ended.is_cancelled() => Vec::new(),
            Self::Actor(cell) => vec![ActorRef(Arc::clone(cell))],
            Self::Supervisor(cell) => cell.children.iter().flat_map(Self::actors).collect(),
        }
    }

    pub(crate) fn kill(&self) {
        match self {
            Self::Actor(cell) => cell.kill(),
            Self::Supervisor(cell) => cell.kill(),
        }
    }

    pub(crate) fn stop(&self) {
        match self {
            Self::Actor(cell) => cell.orders.give(Control::Stop { drain: true }),
            Self::Supervisor(cell) => cell.order(SupervisorOrder::Stop),
        }
    }

    fn name(&self) -> &ComponentId {
        match self {
            Self::Actor(cell) => cell.id(),
            Self::Supervisor(cell) => &cell.name,
        }
    }

    fn start(&self, order: u64) {
        match self {
            Self::Actor(cell) => cell.orders.give(Control::Start { order }),
            Self::Supervisor(cell) => cell.order(SupervisorOrder::Start { order }),
        }
    }

    fn suspend(&self, order: u64) {
        match self {
            Self::Actor(cell) => cell.orders.give(Control::Suspend { order }),
            Self::Supervisor(cell) => cell.order(SupervisorOrder::Suspend { order }),
        }
    }

    pub(crate) async fn ended(&self) {
        match self {
            Self::Actor(cell) => cell.ended.cancelled().await,
            Self::Supervisor(cell) => cell.ended.cancelled().await,
        }
    }

    /// Interrupts what it is doing, for good or to be started again. A supervisor does that to its own children in time.
    fn interrupt(&self, for_good: bool) {
        match self {
            Self::Actor(cell) if for_good => cell.kill(),
            Self::Actor(cell) => cell.interrupt(),
            Self::Supervisor(_) => {}
        }
    }
}

/// The first start's outcome: the child's name with its failure.
pub(crate) type First = oneshot::Sender<Result<(), (ComponentId, Failure)>>;

/// The task of a supervisor.
pub(crate) struct Supervisor {
    cell: Arc<SupervisorCell>,
    services: Arc<Services>,
    roots: Arc<Roots>,
    shutdown: Duration,
    /// How each child is restarted.
    policies: Vec<RestartPolicy>,
    plan: Plan,
    /// The last order given to each child, by which stale events are known.
    last_order: Vec<u64>,
    /// Until when a child may take to end, and whether that is for good.
    ending_until: Vec<Option<(Instant, bool)>>,
    last_failure: Option<Arc<(ComponentId, Failure)>>,
    events: mpsc::UnboundedReceiver<ChildEvent>,
    orders: mpsc::UnboundedReceiver<SupervisorOrder>,
    parent: Parent,
    /// What comes when all children are ended.
    then: Then,
}

/// Who is told what becomes of a supervisor.
pub(crate) enum Parent {
    /// None: whoever spawned it is told the outcome of the first start.
    Root(Option<First>),
    Supervisor {
        child: usize,
        order: u64,
        events: mpsc::UnboundedSender<ChildEvent>,
    },
}

enum Then {
    /// Say so, and wait for the order to start.
    Suspended,
    /// Say so, and wait for what follows.
    Failed,
    End,
}

impl Supervisor {
    pub(crate) fn new(
        services: &Arc<Services>,
        roots: &Arc<Roots>,
        name: ComponentId,
        policy: &SupervisorPolicy,
        children: Vec<(Child, RestartPolicy)>,
        events: mpsc::UnboundedReceiver<ChildEvent>,
        parent: Parent,
    ) -> Self {
        let (orders_to, orders) = mpsc::unbounded_channel();
        let (children, policies): (Vec<_>, Vec<_>) = children.into_iter().unzip();
        let temporary = policies.iter().map(|policy| policy.restart == Restart::Temporary).collect();
        Self {
            last_order: vec![0; children.len()],
            ending_until: vec![None; children.len()],
            cell: Arc::new(SupervisorCell { name, children, orders: orders_to, ended: CancellationToken::new() }),
            services: Arc::clone(services),
            roots: Arc::clone(roots),
            shutdown: policy.shutdown,
            policies,
            plan: Plan::new(policy.strategy, policy.intensity, policy.backoff, temporary, services.random()),
            last_failure: None,
            events,
            orders,
            parent,
            then: Then::Suspended,
        }
    }

    pub(crate) fn cell(&self) -> &Arc<SupervisorCell> {
        &self.cell
    }

    pub(crate) async fn run(mut self) {
        if let Parent::Root(_) = self.parent {
            self.plan.start(Instant::now());
        }
        while self.carry_out() {
            let due =
                self.plan.due().into_iter().chain(self.ending_until.iter().flatten().map(|(until, _)| *until)).min();
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => self.obey(&order),
                Some(event) = self.events.recv() => self.hear(event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.on_time(),
            }
        }
    }

    fn obey(&mut self, order: &SupervisorOrder) {
        let now = Instant::now();
        match *order {
            SupervisorOrder::Start { order } => {
                self.follow(order);
                self.plan.start(now);
            }
            SupervisorOrder::Suspend { order } => {
                self.follow(order);
                self.close(Then::Suspended);
            }
            SupervisorOrder::Stop => self.close(Then::End),
        }
    }

    fn close(&mut self, then: Then) {
        // Once for good is for good.
        if !matches!(self.then, Then::End) {
            self.then = then;
        }
        self.plan.close(matches!(self.then, Then::End), Instant::now());
    }

    fn hear(&mut self, ChildEvent { child, order, what }: ChildEvent) {
        let now = Instant::now();
        match what {
            ChildEventKind::Gone => {
                self.ending_until[child] = None;
                self.plan.gone(child, now);
            }
            _ if order != self.last_order[child] => {}
            ChildEventKind::Started => self.plan.started(child, now),
            ChildEventKind::Suspended => {
                self.ending_until[child] = None;
                self.plan.suspended(child, now);
            }
            ChildEventKind::Failed(failure) => {
                let reply = self.policies[child].answer(&failure);
                self.last_failure = Some(Arc::new((self.cell.children[child].name().clone(), failure)));
                self.plan.failed(child, &reply, now);
            }
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        for (child, until) in self.cell.children.iter().zip(&mut self.ending_until) {
            if let Some((_, for_good)) = until.take_if(|(until, _)| *until <= now) {
                child.interrupt(for_good);
            }
        }
        self.plan.tick(now);
    }

    /// Does what the plan says, and says whether there is more to come.
    fn carry_out(&mut self) -> bool {
        loop {
            let orders = self.plan.orders();
            if orders.is_empty() {
                return true;
            }
            for order in orders {
                match order {
                    Order::Start(child) => {
                        let order = self.next_order(child);
                        self.cell.children[child].start(order);
                    }
                    Order::Suspend(child) => {
                        let order = self.next_order(child);
                        self.ending_until[child] = Some((later(Instant::now(), self.shutdown), false));
                        self.cell.children[child].suspend(order);
                    }
                    Order::Dismiss(child) => {
                        self.ending_until[child] = Some((later(Instant::now(), self.shutdown), true));
                        self.cell.children[child].stop();
                    }
                    Order::Started => match &mut self.parent {
                        Parent::Root(first) => {
                            // Where the spawner has gone meanwhile, nobody could ever reach this one.
                            if first.take().is_some_and(|first| first.send(Ok(())).is_err()) {
                                self.close(Then::End);
                            }
                        }
                        Parent::Supervisor { .. } => self.tell(ChildEventKind::Started),
                    },
                    Order::GiveUp => self.give_up(),
                    Order::Closed => match self.then {
                        Then::End => {
                            self.answer_spawner();
                            return false;
                        }
                        Then::Suspended => self.tell(ChildEventKind::Suspended),
                        Then::Failed => {
                            let last = self.last_failure.take();
                            self.tell(ChildEventKind::Failed(Failure::GaveUp(last)));
                        }
                    },
                }
            }
        }
    }

    fn give_up(&mut self) {
        // A first start that fails is told to whoever wanted it.
        if !self.plan.is_first_start() {
            tracing::error!(supervisor = %self.cell.name, "gives up: its children fail too often");
            self.services.event(|| SystemEvent::GivenUp { name: self.cell.name.clone() });
        }
        self.close(match self.parent {
            Parent::Root(_) => Then::End,
            Parent::Supervisor { .. } => Then::Failed,
        });
    }

    /// Tells the spawner that the first start failed, now that nothing is left.
    fn answer_spawner(&mut self) {
        if let Parent::Root(first) = &mut self.parent
            && let Some(first) = first.take()
            && let Some(failure) = self.last_failure.take()
        {
            // Fails when the spawner has gone, and then nobody wants to know.
            _ = first.send(Err((*failure).clone()));
        }
    }

    fn next_order(&mut self, child: usize) -> u64 {
        self.last_order[child] += 1;
        self.last_order[child]
    }

    fn follow(&mut self, to: u64) {
        if let Parent::Supervisor { order, .. } = &mut self.parent {
            *order = to;
        }
    }

    fn tell(&self, what: ChildEventKind) {
        if let Parent::Supervisor { child, order, events } = &self.parent {
            // Fails when that supervisor is gone, and then nobody waits for it.
            _ = events.send(ChildEvent { child: *child, order: *order, what });
        }
    }
}

/// Also where the task is dropped with its runtime: no child waits for orders that never come.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.cell.children.iter().for_each(Child::kill);
        self.roots.remove(&self.cell);
        self.tell(ChildEventKind::Gone);
        self.cell.ended.cancel();
    }
}
