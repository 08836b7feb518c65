//! A host on which components may be placed: it does what the records say, and says what came of it.
//!
//! [`placement`](crate::placement) says what is to be done; this does it, in one task, with one thing at a time for each name.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, BoxError, Bytes, ProbationEnd, ProbationWatch, Stop, UpgradeOptions, WeakActorSystem,
    limits::CancellationToken, registry::ComponentId,
};
use futures_util::{
    StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{components::Components, error::ComponentError};
use crate::{
    config::HostName,
    digest::Digest,
    directory::Key,
    error::ExportError,
    events::LatticeEvent,
    host::{Host, Life, Written},
    lease::{Owner, Session},
    placement::{Have, Known, Order, Outcome, Report, Said, Todo, todo},
};

/// How long to wait before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long an actor that is to go may take for the messages in its mailbox.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the write of a report is waited for.
const WRITE: Duration = Duration::from_secs(5);
/// How many components are fetched and made ready at the same time.
const MAKING: usize = 2;
/// Bytes of why something was refused.
const BECAUSE: usize = 1 << 10;

/// What can be chosen about a host on which components may be placed.
#[derive(Debug, Clone)]
pub struct AcceptOptions {
    /// How many components may be placed on it. Default: 64.
    pub most: usize,
}

impl Default for AcceptOptions {
    fn default() -> Self {
        Self { most: 64 }
    }
}

/// A component that is placed on this host.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Placed {
    /// Its name. The specification that is made of it has the same.
    pub name: ComponentId,
    /// Whatever it was deployed with, such as the text of a `Component.toml`. What it grants is for this host to judge.
    pub manifest: String,
    /// Its bytes, which are those of its digest.
    pub component: Bytes,
}

/// This host's part in deployments. When it is dropped, what is placed here is stopped, and other hosts place nothing here. The records stay:
/// once the host accepts components again, it runs what they say.
#[derive(Debug)]
#[must_use = "dropping it ends this host's part"]
pub struct Accepting {
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Accepting {
    /// Stops what is placed here, and waits until it has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What all jobs share.
struct Runner<U: 'static, F> {
    host: Arc<Host>,
    system: WeakActorSystem<U>,
    components: Components,
    spec: F,
    most: usize,
    /// Permits to fetch a component and make it ready.
    making: Semaphore,
    stop: CancellationToken,
}

/// Accepts components from now on.
pub(super) fn accept<U, F, Fut>(
    host: Arc<Host>,
    system: WeakActorSystem<U>,
    options: AcceptOptions,
    spec: F,
) -> Accepting
where
    U: Send + 'static,
    F: Fn(Placed) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ActorSpec<U>, BoxError>> + Send + 'static,
{
    let (stop, ended) = (host.left.child_token(), CancellationToken::new());
    let accepting = Accepting { stop: stop.clone(), ended: ended.clone() };
    let components = Components::new(&host);
    let (runtime, most) = (host.runtime.clone(), options.most);
    let runner = Arc::new(Runner { host, system, components, spec, most, making: Semaphore::new(MAKING), stop });
    runtime.spawn(async move {
        let _ended = ended.drop_guard();
        drive(&runner).await;
    });
    accepting
}

/// What this host has of a deployment.
#[derive(Default)]
struct Local {
    have: Have,
    /// What came of the order that `have` names.
    outcome: Option<Outcome>,
    actor: Option<ActorRef>,
    /// The actor is exported, also if it has ended since.
    is_exported: bool,
    /// How often the version was changed.
    versions: u64,
    /// What was said last, under which session.
    said: Option<(Session, Said)>,
    /// Something is being done.
    is_busy: bool,
    /// It takes a place, or is about to.
    takes_room: bool,
    /// Something failed, and is not tried before the next tick.
    waits: bool,
}

/// What came of something that was begun.
enum Did {
    Started {
        actor: ActorRef,
        digest: Digest,
        manifest: Digest,
        order: u64,
        outcome: Option<Outcome>,
    },
    WentOver {
        order: Order,
        actor: ActorRef,
        watch: ProbationWatch,
    },
    Refused {
        order: Order,
        because: String,
    },
    /// The end of a probation, or that it was waited for long enough.
    Tried {
        order: Order,
        from: Digest,
        version: u64,
        end: Result<ProbationEnd, ProbationWatch>,
    },
    Ended(ActorRef),
    Said(Session, Said),
    Withdrawn,
    Left,
    /// It could not be done now.
    Not,
}

type Jobs = FuturesUnordered<BoxFuture<'static, (ComponentId, Did)>>;

async fn drive<U, F, Fut>(runner: &Arc<Runner<U, F>>)
where
    U: Send + 'static,
    F: Fn(Placed) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ActorSpec<U>, BoxError>> + Send + 'static,
{
    let host = &runner.host;
    let mut changes = host.directory.placement_changes();
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut locals = HashMap::<ComponentId, Local>::new();
    let (mut jobs, mut watches) = (Jobs::new(), Jobs::new());
    while !runner.stop.is_cancelled() {
        runner.begin(&mut locals, &jobs);
        let done = tokio::select! {
            biased;
            () = runner.stop.cancelled() => None,
            // Before jobs: an actor that went over did so after the rollback that is told here.
            Some(done) = watches.next(), if !watches.is_empty() => Some(done),
            Some(done) = jobs.next(), if !jobs.is_empty() => {
                if let Some(local) = locals.get_mut(&done.0) {
                    local.is_busy = false;
                }
                Some(done)
            }
            _ = ticks.tick() => {
                locals.values_mut().for_each(|local| local.waits = false);
                None
            }
            // The directory is there as long as the host.
            _ = changes.changed() => None,
        };
        if let Some((name, did)) = done
            && let Some(local) = locals.get_mut(&name)
        {
            runner.did(name, local, did, &watches);
        }
    }
    host.set_room(Some(0));
    // Whatever is under way looks whether it is to stop.
    while let Some((name, did)) = jobs.next().await {
        if let Some(local) = locals.get_mut(&name)
            && let Did::Started { actor, .. } = did
        {
            local.actor = Some(actor);
        }
    }
    join_all(locals.into_iter().map(|(name, local)| leave(Arc::clone(host), name, local.actor))).await;
    host.set_room(None);
}

impl<U, F, Fut> Runner<U, F>
where
    U: Send + 'static,
    F: Fn(Placed) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<ActorSpec<U>, BoxError>> + Send + 'static,
{
    fn me(&self) -> &HostName {
        &self.host.config.host
    }

    /// Begins what is to be done.
    fn begin(self: &Arc<Self>, locals: &mut HashMap<ComponentId, Local>, jobs: &Jobs) {
        let (host, life) = (&self.host, self.host.life());
        let mut names: BTreeSet<_> = host.directory.placed_on(self.me());
        names.extend(locals.keys().cloned());
        for name in names {
            let used = locals.values().filter(|local| local.takes_room).count();
            let local = locals.entry(name.clone()).or_default();
            if local.is_busy || local.waits {
                continue;
            }
            let order = host.directory.order(&name, self.me());
            let last = host.directory.report(&name, self.me()).map(|(report, _)| report);
            let mut to_do = if host.is_leaving() { Todo::Nothing } else { todo(&order, &local.have, last.as_ref()) };
            if let Known::Is(Some((order, _))) = &order {
                let outcome = match to_do {
                    // One that is on probation stays so.
                    Todo::Adopt if local.outcome == Some(Outcome::Trying) => Some(Outcome::Trying),
                    Todo::Adopt => Some(Outcome::Running),
                    Todo::Start { .. } if !local.takes_room && used >= self.most => {
                        let (name, because) = (name.clone(), "there is no room".to_owned());
                        host.event(LatticeEvent::NotPlaced { name, digest: order.digest, because: because.clone() });
                        Some(Outcome::Refused(because))
                    }
                    _ => None,
                };
                if let Some(outcome) = outcome {
                    local.carried_out(order, outcome);
                    to_do = Todo::Nothing;
                }
            }
            if !matches!(to_do, Todo::Start { .. }) {
                local.takes_room = local.actor.is_some();
            }
            let job: BoxFuture<'static, Did> = match (to_do, order) {
                // Nothing is started or said before.
                _ if local.is_exported && local.actor.is_none() => {
                    let (host, name) = (Arc::clone(host), name.clone());
                    Box::pin(async move { if withdraw(&host, &name).await { Did::Withdrawn } else { Did::Not } })
                }
                (Todo::Leave, _) => {
                    // Whatever comes next finds nothing running.
                    local.have.running = None;
                    local.versions += 1;
                    let left = leave(Arc::clone(host), name.clone(), local.actor.take());
                    Box::pin(async move { if left.await { Did::Left } else { Did::Not } })
                }
                (Todo::Start { digest, outcome }, Known::Is(Some((order, _)))) => {
                    local.takes_room = true;
                    let (runner, name) = (Arc::clone(self), name.clone());
                    Box::pin(async move { runner.start(name, order, digest, outcome).await })
                }
                (Todo::GoOver, Known::Is(Some((order, _)))) => {
                    let (Some(actor), Some(from), Some(life)) = (local.actor.clone(), local.have.running, life.clone())
                    else {
                        continue;
                    };
                    let (runner, name) = (Arc::clone(self), name.clone());
                    Box::pin(async move { runner.go_over(name, order, actor, from, life).await })
                }
                _ => {
                    let Some((life, said)) = life.clone().zip(local.to_say()) else { continue };
                    if local.said.as_ref() == Some(&(life.token.session, said.clone())) {
                        continue;
                    }
                    let (host, name) = (Arc::clone(host), name.clone());
                    Box::pin(async move {
                        match say(&host, &name, &life, &said).await {
                            Ok(()) => Did::Said(life.token.session, said),
                            Err(error) => {
                                tracing::debug!(%name, %error, "what is placed here was not reported");
                                Did::Not
                            }
                        }
                    })
                }
            };
            local.is_busy = true;
            jobs.push(Box::pin(async move { (name, job.await) }));
        }
        locals.retain(|_, local| !local.is_idle());
        let used = locals.values().filter(|local| local.takes_room).count();
        host.set_room(Some(self.most.saturating_sub(used)));
    }

    /// Takes note of what was done.
    fn did(&self, name: ComponentId, local: &mut Local, did: Did, watches: &Jobs) {
        let event = |event| self.host.event(event);
        match did {
            Did::Started { actor, digest, manifest, order, outcome } => {
                local.actor = Some(actor.clone());
                local.is_exported = true;
                (local.have.running, local.have.manifest) = (Some(digest), Some(manifest));
                local.versions += 1;
                if let Some(outcome) = outcome {
                    local.have.order = Some(order);
                    local.outcome = Some(outcome);
                }
                event(LatticeEvent::Placed { name: name.clone(), digest });
                watches.push(Box::pin(async move {
                    actor.ended().await;
                    (name, Did::Ended(actor))
                }));
            }
            Did::WentOver { order, actor, watch } => {
                // Not what ran when it began: that may have been rolled back since.
                let from = local.have.running.filter(|_| local.actor.as_ref() == Some(&actor));
                let Some(from) = from else { return local.carried_out(&order, Outcome::Ended) };
                (local.have.order, local.have.running) = (Some(order.number), Some(order.digest));
                local.outcome = Some(Outcome::Trying);
                local.versions += 1;
                let longest = order.step.as_ref().map_or(Duration::ZERO, |step| step.longest);
                watches.push(tried(name, order, from, local.versions, watch, Some(longest)));
            }
            Did::Refused { order, because } => {
                event(LatticeEvent::NotPlaced { name, digest: order.digest, because: because.clone() });
                local.takes_room = local.actor.is_some();
                local.carried_out(&order, Outcome::Refused(because));
            }
            // Another version took its place meanwhile.
            Did::Tried { version, .. } if version != local.versions => {}
            Did::Tried { order, from, version, end } => {
                match end {
                    // Its actor has ended, which is told by itself.
                    Ok(ProbationEnd::Interrupted) => return,
                    // Also if that version is another order's by now.
                    Ok(ProbationEnd::RolledBack) => {
                        (local.have.running, local.outcome) = (Some(from), Some(Outcome::RolledBack));
                        return event(LatticeEvent::RolledBack { name, digest: order.digest });
                    }
                    Ok(ProbationEnd::Passed) => {}
                    // It counts as kept, and goes back if it fails later.
                    Err(watch) => watches.push(tried(name.clone(), order.clone(), from, version, watch, None)),
                }
                // Otherwise it was kept before, or this is what came of a later order.
                if local.outcome == Some(Outcome::Trying) {
                    local.outcome = Some(Outcome::Running);
                    event(LatticeEvent::Placed { name, digest: order.digest });
                }
            }
            Did::Ended(actor) => {
                if local.actor.as_ref() == Some(&actor) {
                    local.actor = None;
                    local.have.running = None;
                    local.takes_room = false;
                    local.versions += 1;
                    local.outcome = Some(Outcome::Ended);
                }
            }
            Did::Said(session, said) => local.said = Some((session, said)),
            // What is seen of the record yet may be from before.
            Did::Left => *local = Local { waits: true, ..Local::default() },
            Did::Withdrawn => local.is_exported = false,
            // What is to be started keeps its place.
            Did::Not => local.waits = true,
        }
    }

    /// Starts a version.
    async fn start(self: &Arc<Self>, name: ComponentId, order: Order, digest: Digest, outcome: Option<Outcome>) -> Did {
        let (spec, manifest) = match self.spec(&name, order.number, digest).await {
            Ok(made) => made,
            Err(Some(because)) => return Did::Refused { order, because },
            Err(None) => return Did::Not,
        };
        let Some(system) = self.system.upgrade() else { return Did::Not };
        let actor = match system.spawn(spec).await {
            Ok(actor) => actor,
            Err(error) => return Did::Refused { order, because: text(&error) },
        };
        drop(system);
        loop {
            match self.host.export_group(&name).await {
                Ok(()) => return Did::Started { actor, digest, manifest, order: order.number, outcome },
                Err(error @ ExportError::Exported { .. }) => {
                    actor.kill();
                    return Did::Refused { order, because: text(&error) };
                }
                Err(error) => tracing::debug!(%name, %error, "not exported"),
            }
            tokio::select! {
                () = sleep(AGAIN) => {}
                () = actor.ended() => {
                    return Did::Refused { order, because: "it ended as soon as it had started".to_owned() };
                }
                () = self.stop.cancelled() => {
                    actor.kill();
                    return Did::Not;
                }
            }
        }
    }

    /// Has an actor go over to the version of an order.
    async fn go_over(
        self: &Arc<Self>,
        name: ComponentId,
        order: Order,
        actor: ActorRef,
        from: Digest,
        life: Life,
    ) -> Did {
        // A process that ends of it and comes back does not try again.
        let trying = Said { order: order.number, running: Some(from), outcome: Outcome::Trying };
        if let Err(error) = say(&self.host, &name, &life, &trying).await {
            tracing::debug!(%name, %error, "what is placed here was not reported");
            return Did::Not;
        }
        let (spec, _) = match self.spec(&name, order.number, order.digest).await {
            Ok(made) => made,
            Err(Some(because)) => return Did::Refused { order, because },
            Err(None) => return Did::Not,
        };
        let Some(system) = self.system.upgrade() else { return Did::Not };
        let options = order.step.as_ref().map_or(UpgradeOptions::default(), |step| UpgradeOptions {
            discard_state: step.discard_state,
            probation: step.probation,
        });
        match system.upgrade_watched(actor.address(), spec.sandbox().clone(), options).await {
            Ok((_, watch)) => Did::WentOver { order, actor, watch },
            Err(error) => Did::Refused { order, because: text(&error) },
        }
    }

    /// What the embedder makes of a version and its manifest, and that one's digest.
    ///
    /// # Errors
    ///
    /// Why this host refuses it; `None` if that is not known now.
    async fn spec(
        self: &Arc<Self>,
        name: &ComponentId,
        order: u64,
        digest: Digest,
    ) -> Result<(ActorSpec<U>, Digest), Option<String>> {
        let getting = async {
            let _permit = self.making.acquire().await.expect("it is never closed");
            // Removed meanwhile.
            let Some(manifest) = self.host.directory.manifest(name) else { return Err(None) };
            let with = Digest::of(manifest.as_bytes());
            let component = match self.components.get(digest).await {
                Ok(component) => component,
                Err(ComponentError::Store { source }) => {
                    tracing::debug!(%name, error = %source, "a component is not to be had now");
                    return Err(None);
                }
                Err(error) => return Err(Some(text(&error))),
            };
            // A task of its own: what panics there is a refusal.
            let mut making = JoinSet::new();
            let (runner, placed) = (Arc::clone(self), Placed { name: name.clone(), manifest, component });
            making.spawn(async move { (runner.spec)(placed).await });
            match making.join_next().await {
                Some(Ok(Ok(spec))) if spec.id() == name => Ok((spec, with)),
                Some(Ok(Ok(spec))) => Err(Some(format!("its specification is of `{}`", spec.id()))),
                Some(Ok(Err(error))) => Err(Some(text(&*error))),
                Some(Err(error)) if error.is_panic() => Err(Some("its specification panicked".to_owned())),
                _ => Err(None),
            }
        };
        tokio::select! {
            spec = getting => spec,
            () = self.overtaken(name, order) => Err(None),
            () = self.stop.cancelled() => Err(None),
        }
    }

    /// Waits until this host has another order, or none.
    async fn overtaken(&self, name: &ComponentId, order: u64) {
        let directory = &self.host.directory;
        let mut changes = directory.placement_changes();
        while matches!(directory.order(name, self.me()), Known::Is(Some((now, _))) if now.number == order) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Local {
    fn carried_out(&mut self, order: &Order, outcome: Outcome) {
        self.have.order = Some(order.number);
        self.outcome = Some(outcome);
    }

    /// What there is to be said.
    fn to_say(&self) -> Option<Said> {
        Some(Said { order: self.have.order?, running: self.have.running, outcome: self.outcome.clone()? })
    }

    /// Whether there is nothing to be kept of it.
    fn is_idle(&self) -> bool {
        self.have == Have::default() && !self.is_busy && !self.waits && self.actor.is_none() && !self.is_exported
    }
}

/// Waits for the end of a probation, so long if that is said.
fn tried(
    name: ComponentId,
    order: Order,
    from: Digest,
    version: u64,
    mut watch: ProbationWatch,
    longest: Option<Duration>,
) -> BoxFuture<'static, (ComponentId, Did)> {
    Box::pin(async move {
        let end = match longest {
            None => Ok(watch.ended().await),
            // One that is over already is not late.
            Some(longest) => match timeout(longest, watch.ended()).await {
                Ok(end) => Ok(end),
                Err(_) => Err(watch),
            },
        };
        (name, Did::Tried { order, from, version, end })
    })
}

/// Writes the report of this host, which nobody else writes under its session.
async fn say(host: &Host, name: &ComponentId, life: &Life, said: &Said) -> Result<(), async_nats::Error> {
    let me = host.config.host.clone();
    let key = Key::Report { name: name.clone(), host: me.clone() };
    let mut follows = host.directory.report(name, &me).map_or(0, |(_, revision)| revision);
    let report = Report { by: Owner { host: me, token: life.token }, said: said.clone() };
    let value = serde_json::to_vec(&report).expect("its keys are text");
    let writing = async {
        while let Written::Refused = host.write(&key, value.clone(), follows).await? {
            // Of a process before, or one that was not seen yet.
            follows = host.decided(&key).await?.map_or(0, |(_, revision)| revision);
        }
        Ok::<(), async_nats::Error>(())
    };
    timeout(WRITE, writing).await.unwrap_or_else(|late| Err(late.into()))
}

/// Ends an actor after what is in its mailbox, and what is said of it. Whether nothing is said any more.
async fn leave(host: Arc<Host>, name: ComponentId, actor: Option<ActorRef>) -> bool {
    if let Some(actor) = actor {
        let is_withdrawn = withdraw(&host, &name).await;
        actor.stop(Stop::Drain);
        if timeout(DRAIN, actor.ended()).await.is_err() {
            actor.kill();
            actor.ended().await;
        }
        if !is_withdrawn {
            return false;
        }
    }
    if host.life().is_none() {
        // What is said under a session that is over counts no more.
        return true;
    }
    let key = Key::Report { name: name.clone(), host: host.config.host.clone() };
    let removing = async {
        match host.decided(&key).await? {
            Some((Some(_), revision)) => Ok(matches!(host.remove(&key, revision).await?, Written::Yes(_))),
            _ => Ok::<_, async_nats::Error>(true),
        }
    };
    timeout(WRITE, removing).await.unwrap_or_else(|late| Err(late.into())).unwrap_or_else(|error| {
        tracing::debug!(%name, %error, "a report was not removed");
        false
    })
}

/// Whether it is not exported any more.
async fn withdraw(host: &Arc<Host>, name: &ComponentId) -> bool {
    let withdrawn = host.withdraw(name).await;
    if let Err(error) = &withdrawn {
        tracing::warn!(%name, %error, "what does not run here any more is exported still");
    }
    withdrawn.is_ok()
}

/// An error with its causes, so many bytes of it.
fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text.truncate(text.floor_char_boundary(BECAUSE));
    text
}

#[cfg(test)]
mod tests {
    use airssys_wasm_actor::ActorManifest;
    use airssys_wasm_fixtures::{COUNTER, COUNTER_V2, nats::NatsServer};

    use super::*;
    use crate::host::tests::{join, within};

    fn order(number: u64) -> Order {
        Order { number, digest: Digest::of(COUNTER_V2), step: None }
    }

    fn local(order: u64, outcome: Outcome, actor: &ActorRef) -> Local {
        let have = Have { order: Some(order), running: Some(Digest::of(COUNTER)), manifest: None };
        Local { have, outcome: Some(outcome), actor: Some(actor.clone()), ..Local::default() }
    }

    #[tokio::test]
    async fn what_is_told_late_changes_nothing_of_what_came_since() {
        let server = NatsServer::start().unwrap();
        let (system, lattice) = join(&server, "a").await;
        let host = Arc::clone(lattice.host());
        let runner = Runner {
            components: Components::new(&host),
            host,
            system: system.downgrade(),
            spec: |_| async { Err::<ActorSpec<()>, _>(BoxError::from("nothing is made")) },
            most: 1,
            making: Semaphore::new(MAKING),
            stop: CancellationToken::new(),
        };
        let manifest = "[component]\nname = 'counter'\n[resources]\nmemory = '8MiB'\ncpu_time = '5s'\n";
        let load = async |component: &'static [u8]| {
            system.load_bytes(ActorManifest::from_toml(manifest).unwrap(), component).await.unwrap()
        };
        let (actor, new) = (system.spawn(load(COUNTER).await).await.unwrap(), load(COUNTER_V2).await);
        let upgrade = async || {
            let upgraded = system.upgrade_watched(actor.address(), new.sandbox().clone(), UpgradeOptions::default());
            within(upgraded).await.unwrap().1
        };
        let (name, watches) = (actor.id().clone(), Jobs::new());
        let did = |local: &mut Local, did| runner.did(name.clone(), local, did, &watches);

        // A probation ends after a later order.
        let refused = Outcome::Refused("for a reason".to_owned());
        for (before, expected) in [(Outcome::Trying, Outcome::Running), (refused.clone(), refused)] {
            for end in [Ok(ProbationEnd::Passed), Err(upgrade().await)] {
                let mut local = local(2, before.clone(), &actor);
                did(&mut local, Did::Tried { order: order(1), from: Digest::of(COUNTER), version: 0, end });
                assert_eq!(local.outcome.as_ref(), Some(&expected));
            }
        }
        assert_eq!(watches.len(), 2, "what is late is waited for");

        // An actor goes over, and has ended before that is told.
        let went_over = async || Did::WentOver { order: order(2), actor: actor.clone(), watch: upgrade().await };
        let mut ended = local(1, Outcome::Running, &actor);
        did(&mut ended, Did::Ended(actor.clone()));
        did(&mut ended, went_over().await);
        assert_eq!((ended.have.order, ended.have.running, ended.outcome), (Some(2), None, Some(Outcome::Ended)));
        assert_eq!(watches.len(), 2);
        let mut runs = local(1, Outcome::Running, &actor);
        did(&mut runs, went_over().await);
        let running = Some(Digest::of(COUNTER_V2));
        assert_eq!((runs.have.order, runs.have.running, runs.outcome), (Some(2), running, Some(Outcome::Trying)));
    }
}
