//! Changes of a deployment: each takes the record for itself by a write that follows a revision, orders hosts, and waits for what they say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{UpgradeOptions, limits, registry::ComponentId};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    Deployment, RollOptions,
    components::Components,
    error::{ChangeError, ComponentError, DeployError, NotRun, RollError, WhyNot},
};
use crate::{
    clock,
    config::HostName,
    digest::Digest,
    directory::{HostRecord, Key},
    host::{Host, Written},
    lease::Owner,
    placement::{Change, Order, Outcome, Report, Step, Verdict, Wanted, choose, has_labels, verdict},
};

/// How often another host is tried where one does not run what is placed on it.
const TRIES: usize = 3;
/// How long to wait before something that failed is tried again, and how often.
const AGAIN: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 4;
/// How long it is waited for that a change which failed is undone.
const UNDONE: Duration = Duration::from_secs(5);

/// A deployment that nobody else changes meanwhile.
struct Draft {
    host: Arc<Host>,
    name: ComponentId,
    wanted: Wanted,
    /// That of the record. 0: there is none yet.
    revision: u64,
}

impl Draft {
    fn key(&self) -> Key {
        Key::Deployment(self.name.clone())
    }

    /// Writes the record.
    async fn write(&mut self) -> Result<(), ChangeError> {
        let (key, value) = (self.key(), serde_json::to_vec(&self.wanted).expect("its keys are text"));
        let (size, allowed) = (value.len(), self.host.largest());
        if size > allowed {
            return Err(ChangeError::TooLarge { size, allowed });
        }
        let mut failed = None;
        for _ in 0..ATTEMPTS {
            match self.host.write(&key, value.clone(), self.revision).await {
                Ok(Written::Yes(revision)) => {
                    self.revision = revision;
                    return Ok(());
                }
                Ok(Written::Refused) => {}
                Err(error) => failed = Some(error),
            }
            match self.host.decided(&key).await {
                // It was written after all.
                Ok(Some((Some(found), revision))) if found == value => {
                    self.revision = revision;
                    return Ok(());
                }
                Ok(Some((Some(found), revision))) if revision != self.revision => {
                    if let Ok(found) = serde_json::from_slice(&found) {
                        is_free(&self.host, &self.name, &found)?;
                    }
                    return Err(ChangeError::Overtaken { name: self.name.clone() });
                }
                Ok(None | Some((None, _))) if self.revision > 0 => {
                    return Err(ChangeError::Overtaken { name: self.name.clone() });
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
            sleep(AGAIN).await;
        }
        Err(ChangeError::Records { source: failed.unwrap_or_else(|| "the record was refused".into()) })
    }

    /// Writes the record, and lets others change it.
    async fn finish(&mut self) -> Result<(), ChangeError> {
        self.wanted.change = None;
        self.write().await
    }

    /// Orders one of the hosts to go over to another version, or to start it where nothing runs, and waits for what comes of it. None: it
    /// runs that.
    async fn go_over(
        &mut self,
        hosts: &[HostName],
        host: &HostName,
        from: Option<Digest>,
        digest: Digest,
        options: &RollOptions,
    ) -> Result<Option<NotRun>, ChangeError> {
        // One that is away would hold it up half-way.
        if let Some(away) = hosts.iter().find(|host| self.host.directory.session(host).is_none()) {
            return Ok(Some(NotRun { host: away.clone(), why: WhyNot::Lost }));
        }
        let RollOptions { upgrade, longest, load } = *options;
        let UpgradeOptions { discard_state, probation } = upgrade;
        let order = order(digest, from.map(|from| Step { from, discard_state, probation, longest }));
        let numbers = BTreeMap::from([(host.clone(), order.number)]);
        self.wanted.hosts.insert(host.clone(), order);
        self.write().await?;
        let why = self.outcomes(&numbers, longest.saturating_add(load)).await?.remove(host).flatten();
        Ok(why.map(|why| NotRun { host: host.clone(), why }))
    }

    /// Waits for what hosts say of their orders, so long at the most. None: as ordered.
    async fn outcomes(
        &self,
        orders: &BTreeMap<HostName, u64>,
        longest: Duration,
    ) -> Result<BTreeMap<HostName, Option<WhyNot>>, ChangeError> {
        let directory = &self.host.directory;
        let (mut changes, until) = (directory.placement_changes(), limits::later(Instant::now(), longest));
        let mut known = BTreeMap::new();
        loop {
            let mut is_pending = false;
            let reports = directory.reports(&self.name);
            for (host, order) in orders.iter().filter(|(host, _)| !known.contains_key(*host)).collect::<Vec<_>>() {
                let report = reports.get(host).map(|(report, _)| report);
                match verdict(*order, report, directory.session(host)) {
                    Verdict::Pending => is_pending = true,
                    Verdict::Lost => _ = known.insert(host.clone(), Some(WhyNot::Lost)),
                    Verdict::Is(outcome) => _ = known.insert(host.clone(), why_not(outcome)),
                }
            }
            if !is_pending {
                return Ok(known);
            }
            tokio::select! {
                // The sender is the directory.
                _ = changes.changed() => {}
                () = sleep_until(until) => {
                    for host in orders.keys() {
                        known.entry(host.clone()).or_insert(Some(WhyNot::Late { longest }));
                    }
                    return Ok(known);
                }
                // Another may go on with it.
                () = self.host.left.cancelled() => return Err(ChangeError::NotJoined),
            }
        }
    }

    /// Forgets hosts that are there and do not come to run what they are ordered to.
    async fn forget_failed(&mut self, longest: Duration) -> Result<(), ChangeError> {
        let is_there = |host: &HostName| self.host.directory.session(host).is_some();
        let orders = self.wanted.hosts.iter().filter(|(host, _)| is_there(host));
        let numbers = orders.map(|(host, order)| (host.clone(), order.number)).collect();
        for (host, _) in self.outcomes(&numbers, longest).await?.into_iter().filter(|(_, why)| why.is_some()) {
            self.wanted.hosts.remove(&host);
        }
        Ok(())
    }

    /// Forgets hosts that are there and run nothing: it did not start when they came back, or its actor has ended.
    fn forget_ended(&mut self) {
        let directory = &self.host.directory;
        let reports = directory.reports(&self.name);
        self.wanted.hosts.retain(|host, order| {
            let report = reports.get(host).map(|(report, _)| report);
            let runs = report.is_some_and(|report| report.said.running.is_some());
            let failed = matches!(
                verdict(order.number, report, directory.session(host)),
                Verdict::Is(Outcome::Refused(_) | Outcome::Ended)
            );
            runs || !failed
        });
    }

    /// Forgets hosts that there are no more: those that were evicted.
    async fn forget_evicted(&mut self) -> Result<(), ChangeError> {
        let unknown: Vec<_> =
            self.wanted.hosts.keys().filter(|host| self.host.directory.host(host).is_none()).cloned().collect();
        for host in unknown {
            // The copy may be behind.
            let found = self.host.decided(&Key::Host(host.clone())).await;
            if found.map_err(|source| ChangeError::Records { source })?.is_none_or(|(record, _)| record.is_none()) {
                self.wanted.hosts.remove(&host);
                if let Some((_, revision)) = self.host.directory.report(&self.name, &host) {
                    let key = Key::Report { name: self.name.clone(), host };
                    self.host.remove(&key, revision).await.map_err(|source| ChangeError::Records { source })?;
                }
            }
        }
        Ok(())
    }
}

fn why_not(outcome: Outcome) -> Option<WhyNot> {
    match outcome {
        // `Trying` is waited for.
        Outcome::Running | Outcome::Trying => None,
        Outcome::Refused(because) => Some(WhyNot::Refused { because }),
        Outcome::RolledBack => Some(WhyNot::RolledBack),
        Outcome::Ended => Some(WhyNot::Ended),
    }
}

fn order(digest: Digest, step: Option<Step>) -> Order {
    Order { number: fastrand::u64(..), digest, step }
}

/// The record of a deployment as it is decided, and the mark under which this host may change it.
async fn look(host: &Arc<Host>, name: &ComponentId) -> Result<(Option<Wanted>, u64, Change), ChangeError> {
    let Some(life) = host.life() else { return Err(ChangeError::NotJoined) };
    let found = host.decided(&Key::Deployment(name.clone())).await;
    let (found, revision) = match found.map_err(|source| ChangeError::Records { source })? {
        Some((Some(value), revision)) => {
            let wanted =
                serde_json::from_slice(&value).map_err(|error| ChangeError::Records { source: error.into() })?;
            (Some(wanted), revision)
        }
        _ => (None, 0),
    };
    let by = Owner { host: host.config.host.clone(), token: life.token };
    Ok((found, revision, Change { by, number: fastrand::u64(..) }))
}

/// Fails if somebody is changing a deployment who may be there still.
fn is_free(host: &Host, name: &ComponentId, wanted: &Wanted) -> Result<(), ChangeError> {
    let Some(change) = &wanted.change else { return Ok(()) };
    if host.directory.sessions(|sessions| sessions.is_over(&change.by, clock::now())) {
        return Ok(());
    }
    Err(ChangeError::Busy { name: name.clone(), by: change.by.host.clone() })
}

async fn is_stored(components: &Components, digest: Digest) -> Result<(), ChangeError> {
    if components.has(digest).await? { Ok(()) } else { Err(ComponentError::NotFound { digest }.into()) }
}

/// Places a component on hosts.
pub(super) async fn deploy(host: Arc<Host>, deployment: Deployment) -> Result<Vec<HostName>, DeployError> {
    let Deployment { name, digest, manifest, hosts, labels, longest } = deployment;
    let hosts = hosts.max(1);
    if let Some((record, _)) = host.directory.named(&name) {
        return Err(DeployError::NameTaken { name, holder: record.owner.host });
    }
    is_stored(&Components::new(&host), digest).await?;
    let (found, revision, change) = look(&host, &name).await?;
    if let Some(found) = &found {
        is_free(&host, &name, found)?;
        let is_same = |order: &Order| order.digest == digest && order.step.is_none();
        if found.manifest != manifest || found.labels != labels || !found.hosts.values().all(is_same) {
            return Err(DeployError::Otherwise { name });
        }
    }
    let (is_new, number) = (found.is_none(), change.number);
    // Of one who is lost: what came of its orders is not known.
    let is_taken_over = found.as_ref().is_some_and(|found| found.change.is_some());
    let wanted = found.unwrap_or_else(|| Wanted { manifest, labels, hosts: BTreeMap::new(), change: None });
    let mut draft = Draft { host, name, wanted, revision };
    draft.forget_evicted().await?;
    let before = draft.wanted.hosts.clone();
    draft.forget_ended();
    if !is_new && !is_taken_over && draft.wanted.hosts.len() >= hosts {
        return Ok(draft.wanted.hosts.into_keys().collect());
    }
    draft.wanted.change = Some(change);
    let placing = async {
        if is_taken_over {
            draft.write().await?;
            draft.forget_failed(longest).await?;
        }
        place(&mut draft, digest, hosts, longest).await?;
        Ok(draft.finish().await?)
    };
    match placing.await {
        Ok(()) => Ok(draft.wanted.hosts.into_keys().collect()),
        Err(error) => {
            undo(&draft, number, if is_new { Undo::Remove } else { Undo::Keep(before) }).await;
            Err(error)
        }
    }
}

/// What a change that failed leaves of a deployment.
enum Undo {
    Remove,
    /// These hosts, also those that were forgotten meanwhile.
    Keep(BTreeMap<HostName, Order>),
    All,
}

/// Ends a change that failed, so that others may change the deployment: now, or as soon as there are servers.
async fn undo(draft: &Draft, number: u64, undo: Undo) {
    let (host, name) = (Arc::clone(&draft.host), draft.name.clone());
    let undoing = host.runtime.clone().spawn(async move {
        while let Err(error) = try_undo(&host, &name, number, &undo).await {
            tracing::debug!(%name, %error, "a change is not undone");
            tokio::select! {
                () = sleep(AGAIN) => {}
                // Its session is over, and with it the change.
                () = host.left.cancelled() => return,
            }
        }
    });
    // It goes on.
    _ = timeout(UNDONE, undoing).await;
}

async fn try_undo(host: &Arc<Host>, name: &ComponentId, number: u64, undo: &Undo) -> Result<(), async_nats::Error> {
    let key = Key::Deployment(name.clone());
    while let Some((Some(value), revision)) = host.decided(&key).await? {
        let mut wanted = serde_json::from_slice::<Wanted>(&value)?;
        if wanted.change.as_ref().is_none_or(|change| change.number != number) {
            break;
        }
        wanted.change = None;
        let written = match undo {
            Undo::Remove => host.remove(&key, revision).await?,
            Undo::Keep(_) | Undo::All => {
                if let Undo::Keep(before) = undo {
                    wanted.hosts.retain(|host, _| before.contains_key(host));
                    for (host, order) in before {
                        wanted.hosts.entry(host.clone()).or_insert_with(|| order.clone());
                    }
                }
                host.write(&key, serde_json::to_vec(&wanted)?, revision).await?
            }
        };
        if let Written::Yes(_) = written {
            break;
        }
    }
    Ok(())
}

/// Places a component on so many hosts altogether.
async fn place(draft: &mut Draft, digest: Digest, hosts: usize, longest: Duration) -> Result<(), DeployError> {
    let mut failures = Vec::<NotRun>::new();
    for _ in 0..TRIES {
        let missing = hosts.saturating_sub(draft.wanted.hosts.len());
        if missing == 0 {
            return Ok(());
        }
        let tried: BTreeSet<_> = failures.iter().map(|failure| failure.host.clone()).collect();
        let is_new = |host: &HostName| !draft.wanted.hosts.contains_key(host) && !tried.contains(host);
        let (mut chosen, free) = candidates(&draft.host, &draft.name, digest, &draft.wanted.labels, is_new);
        chosen.truncate(missing);
        chosen.extend(choose(free, missing - chosen.len(), |below| fastrand::usize(..below)));
        if chosen.len() < missing {
            break;
        }
        let orders: BTreeMap<_, _> = chosen.into_iter().map(|host| (host, order(digest, None))).collect();
        let numbers = orders.iter().map(|(host, order)| (host.clone(), order.number)).collect();
        draft.wanted.hosts.extend(orders);
        draft.write().await?;
        for (host, why) in draft.outcomes(&numbers, longest).await? {
            if let Some(why) = why {
                draft.wanted.hosts.remove(&host);
                failures.push(NotRun { host, why });
            }
        }
    }
    match hosts.saturating_sub(draft.wanted.hosts.len()) {
        0 => Ok(()),
        missing => Err(DeployError::NotPlaced { name: draft.name.clone(), missing, failures }),
    }
}

/// The hosts that run it already, since its record was lost, and those that have room for it, with the room.
fn candidates(
    host: &Host,
    name: &ComponentId,
    digest: Digest,
    labels: &BTreeMap<String, String>,
    is_new: impl Fn(&HostName) -> bool,
) -> (Vec<HostName>, Vec<(HostName, usize)>) {
    let reports = host.directory.reports(name);
    let runs = |of: &HostName, record: &HostRecord| {
        reports.get(of).is_some_and(|(Report { by, said }, _)| {
            Some(by.token.session) == record.session && said.running == Some(digest)
        })
    };
    let (mut running, mut free) = (Vec::new(), Vec::new());
    for (of, _, record) in host.directory.hosts() {
        if !is_new(&of) || !has_labels(&record.labels, labels) {
            continue;
        }
        if runs(&of, &record) {
            running.push(of);
        } else if record.room > 0 {
            free.push((of, record.room));
        }
    }
    (running, free)
}

/// Rolls a deployment to another version, host by host.
pub(super) async fn roll(
    host: Arc<Host>,
    name: ComponentId,
    digest: Digest,
    options: RollOptions,
) -> Result<Vec<HostName>, RollError> {
    is_stored(&Components::new(&host), digest).await?;
    let (found, revision, change) = look(&host, &name).await?;
    let Some(wanted) = found else { return Err(RollError::NotDeployed { name }) };
    is_free(&host, &name, &wanted)?;
    let number = change.number;
    let mut draft = Draft { host, name, wanted, revision };
    draft.wanted.change = Some(change);
    draft.forget_evicted().await?;
    let rolled = roll_all(&mut draft, digest, &options).await;
    if let Err(RollError::Change(_)) = rolled {
        undo(&draft, number, Undo::All).await;
    }
    rolled
}

async fn roll_all(draft: &mut Draft, digest: Digest, options: &RollOptions) -> Result<Vec<HostName>, RollError> {
    let hosts: Vec<_> = draft.wanted.hosts.keys().cloned().collect();
    for host in &hosts {
        let now = draft.wanted.hosts[host].clone();
        let report = draft.host.directory.report(&draft.name, host).map(|(report, _)| report);
        let failed = matches!(
            verdict(now.number, report.as_ref(), draft.host.directory.session(host)),
            Verdict::Is(Outcome::Refused(_) | Outcome::RolledBack | Outcome::Ended)
        );
        let is_ordered = now.digest == digest && now.step.is_none();
        if is_ordered && !failed {
            continue;
        }
        let from = match now.step {
            Some(step) => Some(step.from),
            // What it runs instead, if anything.
            None if failed => report.and_then(|report| report.said.running).or((!is_ordered).then_some(now.digest)),
            None => Some(now.digest),
        };
        match draft.go_over(&hosts, host, from, digest, options).await? {
            None => {
                if let Some(order) = draft.wanted.hosts.get_mut(host) {
                    order.step = None;
                }
            }
            Some(failure) => {
                if let Some(from) = from {
                    draft.wanted.hosts.insert(host.clone(), order(from, None));
                }
                draft.finish().await?;
                let reports = draft.host.directory.reports(&draft.name);
                let runs = |host: &HostName| reports.get(host).and_then(|(report, _)| report.said.running);
                let runs = hosts.iter().map(|host| (host.clone(), runs(host))).collect();
                return Err(RollError::Stopped { name: draft.name.clone(), failure, runs });
            }
        }
    }
    draft.finish().await?;
    Ok(hosts)
}

/// Removes a deployment. `false` if there is none.
pub(super) async fn undeploy(host: &Arc<Host>, name: &ComponentId) -> Result<bool, ChangeError> {
    let failed = |source| ChangeError::Records { source };
    let key = Key::Deployment(name.clone());
    let mut is_removed = false;
    while !is_removed && let Some((Some(_), revision)) = host.decided(&key).await.map_err(failed)? {
        // Otherwise who changes it has written once more.
        is_removed = matches!(host.remove(&key, revision).await.map_err(failed)?, Written::Yes(_));
    }
    // Those that are there take away their own, also where the record was lost.
    for (of, (report, revision)) in host.directory.reports(name) {
        if host.directory.session(&of) != Some(report.by.token.session) {
            let key = Key::Report { name: name.clone(), host: of };
            host.remove(&key, revision).await.map_err(failed)?;
        }
    }
    Ok(is_removed)
}
