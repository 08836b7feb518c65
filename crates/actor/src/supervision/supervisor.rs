//! Supervisors: the task that carries out a [`Plan`], and what one is made from.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

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
    failure::{
        policy::later,
        report::{Failure, shown},
    },
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
        self.0.children().iter().flat_map(Child::actors).collect()
    }

    /// The names of its own children, actors and supervisors, in the order of their start.
    pub fn children(&self) -> Vec<ComponentId> {
        self.0.children().iter().map(|child| child.name().clone()).collect()
    }

    /// Ends a child for good, as a [stop](crate::Stop::Drain) does, and waits for that. Its siblings go on.
    ///
    /// # Errors
    ///
    /// [`ChildError`].
    pub async fn terminate_child(&self, name: &str) -> Result<(), ChildError> {
        self.ordered(name, |key, done| SupervisorOrder::Terminate { key, done }).await
    }

    /// Ends a child's incarnation and starts the next, and waits for that. Its siblings go on, its mailbox is kept, and
    /// nothing counts against the intensity. A child that waits for its restart comes up in its time.
    ///
    /// # Errors
    ///
    /// [`ChildError`], also where the child is gone before it is up.
    pub async fn restart_child(&self, name: &str) -> Result<(), ChildError> {
        self.ordered(name, |key, done| SupervisorOrder::Restart { key, done }).await
    }

    async fn ordered(
        &self,
        name: &str,
        order: impl FnOnce(usize, oneshot::Sender<()>) -> SupervisorOrder,
    ) -> Result<(), ChildError> {
        let key = self.0.children.lock().iter().find(|(_, child)| child.name().as_str() == name).map(|(&key, _)| key);
        let no_child = || ChildError::NoChild { supervisor: self.name().clone(), name: name.to_owned() };
        let (done, outcome) = oneshot::channel();
        self.0.order(order(key.ok_or_else(no_child)?, done));
        outcome.await.map_err(|_| no_child())
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

/// What was to happen to a child did not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// It has no such child, or has none any more, or is not running itself.
    #[error("the supervisor `{supervisor}` has no child `{}` that it could do this with", shown(name))]
    NoChild {
        /// The supervisor.
        supervisor: ComponentId,
        /// The name that was asked for.
        name: String,
    },
}

pub(crate) struct SupervisorCell {
    pub(crate) name: ComponentId,
    children: Mutex<BTreeMap<usize, Child>>,
    /// The number of the next child.
    next: AtomicUsize,
    /// Whether all below are to end at once, those that are added later included.
    killed: AtomicBool,
    /// Where children tell what happened.
    pub(crate) events: mpsc::UnboundedSender<ChildEvent>,
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

    /// A child at this level was added somewhere below: its root ends no later than what it depends on.
    pub(crate) fn raise(&self, below: &Arc<SupervisorCell>, to: u32) -> u32 {
        let mut roots = self.0.lock();
        let root = roots.iter_mut().find(|(_, root)| root.0.contains(below));
        root.map_or(to, |(level, _)| {
            *level = to.max(*level);
            *level
        })
    }
}

/// A supervised actor or supervisor.
#[derive(Clone)]
pub(crate) enum Child {
    Actor(Arc<Cell>),
    Supervisor(Arc<SupervisorCell>),
}

enum SupervisorOrder {
    Start { order: u64 },
    Suspend { order: u64 },
    Stop,
    Add(Box<Newcomer>),
    Terminate { key: usize, done: oneshot::Sender<()> },
    Restart { key: usize, done: oneshot::Sender<()> },
}

/// A child that is to be added. Dropped where it is not, it ends.
struct Newcomer {
    key: usize,
    child: Option<Child>,
    policy: RestartPolicy,
    first: First,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            child.kill();
        }
    }
}

impl SupervisorCell {
    fn order(&self, order: SupervisorOrder) {
        // Fails when it is gone.
        _ = self.orders.send(order);
    }

    fn children(&self) -> Vec<Child> {
        self.children.lock().values().cloned().collect()
    }

    fn child(&self, key: usize) -> Option<Child> {
        self.children.lock().get(&key).cloned()
    }

    fn contains(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let below = |child: &Child| matches!(child, Child::Supervisor(cell) if cell.contains(other));
        Arc::ptr_eq(self, other) || self.children().iter().any(below)
    }

    /// The number of a child that is to be added.
    pub(crate) fn next_key(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a child and starts it. The outcome of its first start is told, or nothing where the supervisor is not running.
    pub(crate) fn add(&self, key: usize, child: Child, policy: RestartPolicy, first: First) {
        self.order(SupervisorOrder::Add(Box::new(Newcomer { key, child: Some(child), policy, first })));
    }

    /// Ends everything below at once.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        for child in self.children() {
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
            Self::Supervisor(cell) => cell.children().iter().flat_map(Self::actors).collect(),
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

    /// One that was made from the specification of an actor.
    pub(crate) fn into_actor(self) -> ActorRef {
        match self {
            Self::Actor(cell) => ActorRef(cell),
            Self::Supervisor(_) => unreachable!("it was made of an actor's specification"),
        }
    }

    /// One that was made from the specification of a supervisor.
    pub(crate) fn into_supervisor(self) -> SupervisorRef {
        match self {
            Self::Supervisor(cell) => SupervisorRef(cell),
            Self::Actor(_) => unreachable!("it was made of a supervisor's specification"),
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
    children: BTreeMap<usize, Supervised>,
    plan: Plan,
    last_failure: Option<Arc<(ComponentId, Failure)>>,
    events: mpsc::UnboundedReceiver<ChildEvent>,
    orders: mpsc::UnboundedReceiver<SupervisorOrder>,
    parent: Parent,
    /// What comes when all children are ended.
    then: Then,
}

/// What a supervisor knows of a child.
struct Supervised {
    policy: RestartPolicy,
    /// The last order given to it, by which stale events are known.
    last_order: u64,
    /// Until when it may take to end, and whether that is for good.
    ending_until: Option<(Instant, bool)>,
    /// Who is told the outcome of its first start, if it was added.
    first: Option<First>,
    /// Who waits for its restart, or for its end.
    restarted: Vec<oneshot::Sender<()>>,
    ended: Vec<oneshot::Sender<()>>,
}

impl Supervised {
    fn new(policy: RestartPolicy, first: Option<First>) -> Self {
        Self { policy, last_order: 0, ending_until: None, first, restarted: Vec::new(), ended: Vec::new() }
    }

    fn is_temporary(&self) -> bool {
        self.policy.restart == Restart::Temporary
    }
}

/// Who is told what becomes of a supervisor.
pub(crate) enum Parent {
    /// None: the spawner is told the outcome of the first start.
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
        (events_to, events): (mpsc::UnboundedSender<ChildEvent>, mpsc::UnboundedReceiver<ChildEvent>),
        parent: Parent,
    ) -> Self {
        let (orders_to, orders) = mpsc::unbounded_channel();
        let next = AtomicUsize::new(children.len());
        let (children, known): (BTreeMap<_, _>, BTreeMap<_, _>) = children
            .into_iter()
            .enumerate()
            .map(|(key, (child, policy))| ((key, child), (key, Supervised::new(policy, None))))
            .unzip();
        let temporary = known.values().map(Supervised::is_temporary).collect();
        Self {
            cell: Arc::new(SupervisorCell {
                name,
                children: Mutex::new(children),
                next,
                killed: AtomicBool::new(false),
                events: events_to,
                orders: orders_to,
                ended: CancellationToken::new(),
            }),
            children: known,
            services: Arc::clone(services),
            roots: Arc::clone(roots),
            shutdown: policy.shutdown,
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
            let ending = self.children.values().filter_map(|child| child.ending_until.map(|(until, _)| until));
            let due = self.plan.due().into_iter().chain(ending).min();
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => self.obey(order),
                Some(event) = self.events.recv() => self.hear(event),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.on_time(),
            }
        }
    }

    fn obey(&mut self, order: SupervisorOrder) {
        let now = Instant::now();
        match order {
            SupervisorOrder::Start { order } => {
                self.follow(order);
                self.plan.start(now);
            }
            SupervisorOrder::Suspend { order } => {
                self.follow(order);
                self.close(Then::Suspended);
            }
            SupervisorOrder::Stop => self.close(Then::End),
            SupervisorOrder::Add(newcomer) => self.add(*newcomer, now),
            SupervisorOrder::Terminate { key, done } => {
                // Dropping `done` says that there is no such child, or that nobody would end it.
                let (is_live, ends) = (self.plan.is_live(), matches!(self.then, Then::End));
                if let Some(child) = self.children.get_mut(&key)
                    && (is_live || ends)
                {
                    child.ended.push(done);
                    if child.ended.len() == 1 && is_live {
                        self.plan.dismiss(key, now);
                    }
                }
            }
            SupervisorOrder::Restart { key, done } => {
                if let Some(child) = self.children.get_mut(&key)
                    && self.plan.is_live()
                {
                    child.restarted.push(done);
                    self.plan.restart(key, now);
                }
            }
        }
    }

    fn add(&mut self, mut newcomer: Newcomer, now: Instant) {
        if !self.plan.is_live() {
            return;
        }
        let (unused, _) = oneshot::channel();
        let first = std::mem::replace(&mut newcomer.first, unused);
        let known = Supervised::new(std::mem::take(&mut newcomer.policy), Some(first));
        if let Some(child) = newcomer.child.take() {
            let temporary = known.is_temporary();
            self.cell.children.lock().insert(newcomer.key, child.clone());
            // A kill either finds it among the children, or is seen here.
            if self.cell.killed.load(Ordering::SeqCst) {
                child.kill();
            }
            self.children.insert(newcomer.key, known);
            self.plan.add(newcomer.key, temporary, now);
        }
    }

    fn close(&mut self, then: Then) {
        // Once for good is for good.
        if !matches!(self.then, Then::End) {
            self.then = then;
        }
        self.plan.close(matches!(self.then, Then::End), Instant::now());
    }

    fn hear(&mut self, ChildEvent { child: key, order, what }: ChildEvent) {
        let now = Instant::now();
        let Some(child) = self.children.get_mut(&key) else { return };
        match what {
            ChildEventKind::Gone => {
                let gone = self.children.remove(&key);
                self.cell.children.lock().remove(&key);
                self.plan.gone(key, now);
                for done in gone.into_iter().flat_map(|child| child.ended) {
                    // Fails when the caller has gone.
                    _ = done.send(());
                }
            }
            _ if order != child.last_order => {}
            ChildEventKind::Started => {
                if let Some(first) = child.first.take() {
                    _ = first.send(Ok(()));
                }
                for done in child.restarted.drain(..) {
                    _ = done.send(());
                }
                self.plan.started(key, now);
            }
            ChildEventKind::Suspended => {
                child.ending_until = None;
                self.plan.suspended(key, now);
            }
            ChildEventKind::Failed(failure) => {
                let reply = child.policy.answer(&failure);
                let first = child.first.take();
                let Some(name) = self.cell.child(key).map(|child| child.name().clone()) else { return };
                if let Some(first) = first {
                    // The caller of `start_child` is told, and the child removed.
                    _ = first.send(Err((name, failure)));
                    return self.plan.dismiss(key, now);
                }
                self.last_failure = Some(Arc::new((name, failure)));
                self.plan.failed(key, &reply, now);
            }
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        for (&key, known) in &mut self.children {
            if let Some((_, for_good)) = known.ending_until.take_if(|(until, _)| *until <= now)
                && let Some(child) = self.cell.child(key)
            {
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
                    Order::Start(key) => self.tell_child(key, None, |child, known| child.start(known.last_order)),
                    Order::Suspend(key) => {
                        self.tell_child(key, Some(false), |child, known| child.suspend(known.last_order));
                    }
                    Order::Dismiss(key) => self.tell_child(key, Some(true), |child, _| child.stop()),
                    Order::Started => match &mut self.parent {
                        Parent::Root(first) => {
                            // Without its spawner nobody has a handle on this supervisor.
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
        // A first start that fails is told to the spawner.
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
            // Fails when the spawner has gone.
            _ = first.send(Err((*failure).clone()));
        }
    }

    /// Gives a child an order, and time to end where it is to end: for good, or to be started again.
    fn tell_child(&mut self, key: usize, ends: Option<bool>, tell: impl FnOnce(&Child, &Supervised)) {
        let (Some(known), Some(child)) = (self.children.get_mut(&key), self.cell.child(key)) else { return };
        if ends != Some(true) {
            known.last_order += 1;
        }
        if let Some(for_good) = ends {
            known.ending_until = Some((later(Instant::now(), self.shutdown), for_good));
        }
        tell(&child, known);
    }

    fn follow(&mut self, to: u64) {
        if let Parent::Supervisor { order, .. } = &mut self.parent {
            *order = to;
        }
    }

    fn tell(&self, what: ChildEventKind) {
        if let Parent::Supervisor { child, order, events } = &self.parent {
            // Fails when the parent is gone.
            _ = events.send(ChildEvent { child: *child, order: *order, what });
        }
    }
}

/// Also where the task is dropped with its runtime: no child waits for orders that never come.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.cell.children().iter().for_each(Child::kill);
        self.roots.remove(&self.cell);
        self.tell(ChildEventKind::Gone);
        self.cell.ended.cancel();
    }
}
