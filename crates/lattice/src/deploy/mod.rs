//! Deployments: components that are placed on hosts of a lattice, run there, and are rolled to other versions host by host.
//!
//! What is to run where is in the records, of which [`placement`](crate::placement) is the meaning. `change.rs` writes them, `accept.rs`
//! carries them out on each host, `components.rs` has the bytes.

mod accept;
mod change;
mod components;
mod error;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{ActorSpec, BoxError, UpgradeOptions, registry::ComponentId};
use tokio::task::JoinHandle;

use self::components::Components;
pub use self::{
    accept::{AcceptOptions, Accepting, Placed},
    error::{AcceptError, ChangeError, ComponentError, DeployError, NotRun, RollError, WhyNot},
};
use crate::{
    config::HostName,
    digest::Digest,
    lattice::Lattice,
    lease::Session,
    placement::{Order, Outcome, Report},
};

/// A component that is to run on some hosts, each time as an actor of its name.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Deployment {
    /// The actors' name.
    pub name: ComponentId,
    /// The component, as [`Lattice::put`] gave it.
    pub digest: Digest,
    /// What the hosts are told beside its bytes, such as the text of a `Component.toml`. It has to fit into one message of the servers'.
    pub manifest: String,
    /// On how many hosts, at least one. Default: 1.
    pub hosts: usize,
    /// Labels that a host must have. Default: none.
    pub labels: BTreeMap<String, String>,
    /// How long a host may take to have it, to compile it and to start it, before another is tried. Default: 60 s.
    pub longest: Duration,
}

impl Deployment {
    /// On one host, wherever there is room.
    pub fn new(name: ComponentId, digest: Digest, manifest: impl Into<String>) -> Self {
        let longest = Duration::from_secs(60);
        Self { name, digest, manifest: manifest.into(), hosts: 1, labels: BTreeMap::new(), longest }
    }

    /// On so many hosts.
    #[must_use]
    pub fn on(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// On hosts with this label alone.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With so much time for each host.
    #[must_use]
    pub fn with_longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }
}

/// How a deployment goes over to another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollOptions {
    /// What of state and probation. Default: state is kept, and the new version is on probation for 100 messages on each host.
    pub upgrade: UpgradeOptions,
    /// How long the end of a probation is waited for. A version that has not failed until then counts as kept: it may get no messages.
    /// Where it fails later it is rolled back nevertheless. Default: 60 s.
    pub longest: Duration,
    /// How long a host may take to have the component and to compile it. Default: 60 s.
    pub load: Duration,
}

impl Default for RollOptions {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        let upgrade = UpgradeOptions { probation: 100, ..UpgradeOptions::default() };
        Self { upgrade, longest: minute, load: minute }
    }
}

/// A deployment, as far as this host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deployed {
    /// The actors' name.
    pub name: ComponentId,
    /// What it was deployed with. None if its record was lost with the lattice's records, and it runs still.
    pub manifest: Option<String>,
    /// Labels that its hosts must have.
    pub labels: BTreeMap<String, String>,
    /// The host that changes it now.
    pub changed_by: Option<HostName>,
    /// What is placed on which host, or runs there.
    pub hosts: BTreeMap<HostName, Instance>,
}

/// A deployment on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// The version that the host is to run. None if its record was lost.
    pub wanted: Option<Digest>,
    /// The version that it runs, as far as it has said.
    pub running: Option<Digest>,
    /// What came of its last order.
    pub state: InstanceState,
}

/// What came of the last order of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceState {
    /// It has not said yet.
    Pending,
    /// The host is not in the lattice.
    Away,
    /// It goes over to another version, or has that on probation.
    Trying,
    /// It runs what it is to.
    Running,
    /// It does not. What it runs instead, if anything, is the version before.
    Not(WhyNot),
}

impl<U: Send + 'static> Lattice<U> {
    /// Stores a component's bytes for all hosts, unless they are there. They are compiled where they run.
    ///
    /// # Errors
    ///
    /// [`ComponentError`]; one of more than 64 MiB is too large.
    pub async fn put(&self, component: impl AsRef<[u8]>) -> Result<Digest, ComponentError> {
        Components::new(self.host()).put(component.as_ref()).await
    }

    /// Lets components be placed on this host. What one is granted here is what `spec` makes of its manifest, under this host's own limits:
    ///
    /// ```no_run
    /// # use airssys_wasm_lattice::{AcceptError, AcceptOptions, Accepting, Lattice, actor::{ActorManifest, ActorSystem}};
    /// # async fn run(system: ActorSystem, lattice: Lattice) -> Result<Accepting, AcceptError> {
    /// let weak = system.downgrade();
    /// lattice.accept(AcceptOptions::default(), move |placed| {
    ///     let system = weak.upgrade();
    ///     async move {
    ///         let system = system.ok_or("the system has ended")?;
    ///         let manifest = ActorManifest::from_toml(&placed.manifest)?;
    ///         Ok(system.load_bytes(manifest, placed.component).await?)
    ///     }
    /// })
    /// # }
    /// ```
    ///
    /// At most two specifications are made at a time.
    ///
    /// The actors are exported as groups of their names: other hosts ask those that have one in turn, and a host that has one asks its own.
    ///
    /// # Errors
    ///
    /// [`AcceptError`].
    pub fn accept<F, Fut>(&self, options: AcceptOptions, spec: F) -> Result<Accepting, AcceptError>
    where
        F: Fn(Placed) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<ActorSpec<U>, BoxError>> + Send + 'static,
    {
        let host = self.host();
        if host.left.is_cancelled() {
            return Err(AcceptError::Left);
        }
        if !host.begin_placement() {
            return Err(AcceptError::Accepting);
        }
        Ok(accept::accept(Arc::clone(host), self.weak_system(), options, spec))
    }

    /// Places a component on hosts that match, and waits until it runs there. Of two at random the one with more room is chosen; where it does
    /// not start, another, three times at the most. Gives the hosts. Where it is deployed so already nothing is done; hosts are added if there
    /// are fewer, or where it has ended, and those of a deployment whose record was lost are taken first.
    ///
    /// It goes on if this is dropped.
    ///
    /// # Errors
    ///
    /// [`DeployError`], after which it is placed where it was before, and nowhere else.
    pub async fn deploy(&self, deployment: Deployment) -> Result<Vec<HostName>, DeployError> {
        let deploying = change::deploy(Arc::clone(self.host()), deployment);
        done(self.host().runtime.spawn(deploying)).await.unwrap_or(Err(ChangeError::NotJoined.into()))
    }

    /// Has the hosts of a deployment go over to another version, one after the other, by
    /// [`ActorSystem::upgrade`](airssys_wasm_actor::ActorSystem::upgrade): no message is lost by it. Gives the hosts.
    ///
    /// It stops at the first host that refuses the version, rolls it back, or is lost. That one is to run the version from before; the hosts
    /// before it run the new one. Called again it goes on; called with the version from before it goes back.
    ///
    /// It goes on if this is dropped.
    ///
    /// # Errors
    ///
    /// [`RollError`].
    pub async fn roll(
        &self,
        name: &ComponentId,
        digest: Digest,
        options: RollOptions,
    ) -> Result<Vec<HostName>, RollError> {
        let rolling = change::roll(Arc::clone(self.host()), name.clone(), digest, options);
        done(self.host().runtime.spawn(rolling)).await.unwrap_or(Err(ChangeError::NotJoined.into()))
    }

    /// Removes a deployment, also in the middle of a change. Its hosts stop it as soon as they see that, after what is in its mailboxes; one
    /// that is away when it comes back. `false` if there is none.
    ///
    /// # Errors
    ///
    /// [`ChangeError`].
    pub async fn undeploy(&self, name: &ComponentId) -> Result<bool, ChangeError> {
        change::undeploy(self.host(), name).await
    }

    /// How many more components may be placed on a host, as far as this one knows.
    pub fn room(&self, host: &HostName) -> usize {
        let info = self.host().directory.host(host).filter(|info| info.session.is_some());
        info.map_or(0, |info| info.record.room)
    }

    /// All deployments by name, and what runs where, as far as this host knows.
    pub fn deployments(&self) -> Vec<Deployed> {
        let directory = &self.host().directory;
        let all = directory.deployments().into_iter().map(|(name, (wanted, reports))| {
            let orders = wanted.as_ref().map(|wanted| wanted.hosts.clone()).unwrap_or_default();
            let names: BTreeSet<_> = orders.keys().chain(reports.keys()).cloned().collect();
            let hosts = names.into_iter().map(|host| {
                let instance = instance(orders.get(&host), reports.get(&host), directory.session(&host));
                (host, instance)
            });
            let hosts = hosts.collect();
            let (manifest, labels, change) =
                wanted.map_or_else(Default::default, |it| (Some(it.manifest), it.labels, it.change));
            Deployed { name, manifest, labels, changed_by: change.map(|change| change.by.host), hosts }
        });
        all.collect()
    }
}

fn instance(order: Option<&Order>, report: Option<&Report>, session: Option<Session>) -> Instance {
    let said = report.filter(|report| Some(report.by.token.session) == session).map(|report| &report.said);
    // A report of an order before says what runs, and not what came of this one.
    let of_order = said.filter(|said| order.is_none_or(|order| order.number == said.order));
    let state = match of_order.map(|said| &said.outcome) {
        _ if session.is_none() => InstanceState::Away,
        None => InstanceState::Pending,
        Some(Outcome::Trying) => InstanceState::Trying,
        Some(Outcome::Running) => InstanceState::Running,
        Some(Outcome::Refused(because)) => InstanceState::Not(WhyNot::Refused { because: because.clone() }),
        Some(Outcome::RolledBack) => InstanceState::Not(WhyNot::RolledBack),
        Some(Outcome::Ended) => InstanceState::Not(WhyNot::Ended),
    };
    Instance { wanted: order.map(|order| order.digest), running: said.and_then(|said| said.running), state }
}

/// What came of a task. None if its runtime is gone.
async fn done<T>(task: JoinHandle<T>) -> Option<T> {
    match task.await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}
