//! The versions of a kind: each actor goes over when it is next between two messages, or when it is next in memory.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering},
};

use airssys_wasm_actor::{ActorSandbox, SpawnError, UpgradeError, UpgradeOptions};
use futures_util::{StreamExt, stream};

use super::{Kind, live::Marks};
use crate::KeyedEvent;

/// What actors of a kind are activated with.
pub(crate) struct Versions<U: 'static> {
    /// Larger than that of all before.
    pub(crate) number: u64,
    pub(crate) sandbox: ActorSandbox<U>,
    pub(crate) before: Option<Before<U>>,
}

/// The version before.
pub(crate) struct Before<U: 'static> {
    sandbox: ActorSandbox<U>,
    keeps: bool,
    /// How many messages each actor has the present one on probation for.
    probation: Option<NonZeroU32>,
}

/// What an actor is activated with.
pub(super) struct Activation<U: 'static> {
    pub(super) number: u64,
    pub(super) sandbox: ActorSandbox<U>,
    /// The version before, if this one is on probation, and for how many messages.
    pub(super) before: Option<(ActorSandbox<U>, NonZeroU32)>,
}

/// What became of the upgrade of a kind.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct KindUpgrade {
    /// Actors in memory that went over.
    pub upgraded: usize,
    /// Those that did not, and go on with the old version until they leave the memory.
    pub failed: Vec<UpgradeError>,
}

/// Actors that go over at a time.
const AT_A_TIME: usize = 64;

impl<U: Send + 'static> Kind<U> {
    /// What an actor is activated with now.
    pub(super) fn version(&self) -> Activation<U> {
        let versions = self.versions.read();
        let (number, sandbox) = (versions.number, versions.sandbox.clone());
        let Some(Before { sandbox: before, probation: Some(messages), .. }) = &versions.before else {
            return Activation { number, sandbox, before: None };
        };
        if self.core.failed_version.load(Ordering::SeqCst) >= number {
            // Until the sweep has seen it.
            return Activation { number, sandbox: before.clone(), before: None };
        }
        Activation { number, sandbox, before: Some((before.clone(), *messages)) }
    }

    /// Goes over to another version.
    pub(crate) async fn upgrade(
        &self,
        sandbox: ActorSandbox<U>,
        options: UpgradeOptions,
    ) -> Result<KindUpgrade, UpgradeError> {
        let Some(system) = self.system() else { return Err(UpgradeError::Stopped) };
        let spec = self.template.clone().with_sandbox(sandbox.clone());
        let (gives, takes) = system.keeps_state(&spec).map_err(|error| match error {
            SpawnError::NoHandler(error) => error.into(),
            SpawnError::Concurrency(error) => error.into(),
            SpawnError::Links(error) => error.into(),
            _ => UpgradeError::Stopped,
        })?;
        let keeps = gives && takes;
        if self.core.keeps.load(Ordering::SeqCst) && !keeps && !options.discard_state {
            return Err(UpgradeError::StateWouldBeLost);
        }
        let number = {
            let mut versions = self.versions.write();
            let number = versions.number + 1;
            let before = std::mem::replace(&mut versions.sandbox, sandbox.clone());
            versions.before = Some(Before {
                sandbox: before,
                keeps: self.core.keeps.swap(keeps, Ordering::SeqCst),
                probation: NonZeroU32::new(options.probation),
            });
            versions.number = number;
            self.core.quarantine.lock().clear();
            number
        };
        let _turn = self.going_over.lock().await;
        let mut report = KindUpgrade::default();
        let mut left = Vec::new();
        loop {
            // Those that are activated meanwhile with the version before are found the next time.
            let mut older = self.core.live.older_than(number);
            older.retain(|(marks, _)| !left.iter().any(|left| Arc::ptr_eq(left, marks)));
            if older.is_empty() {
                return Ok(report);
            }
            let upgrades = older.into_iter().map(|(marks, actor)| {
                let (system, sandbox) = (&system, sandbox.clone());
                async move {
                    let Some(actor) = actor else {
                        // About to be registered, or gone.
                        tokio::task::yield_now().await;
                        return None;
                    };
                    let before = marks.version();
                    // First: it may fail as soon as it runs.
                    marks.set_version(number);
                    let upgraded = system.upgrade(actor.actor().address(), sandbox, options).await;
                    if upgraded.is_err() {
                        marks.set_version(before);
                    }
                    Some((marks, upgraded))
                }
            });
            let mut upgrades = stream::iter(upgrades).buffer_unordered(AT_A_TIME);
            while let Some(upgraded) = upgrades.next().await {
                match upgraded {
                    None => {}
                    Some((_, Ok(_))) => report.upgraded += 1,
                    Some((marks, Err(error))) => {
                        left.push(marks);
                        // Who is gone comes back with the new one.
                        if !matches!(error, UpgradeError::Unresolved(_) | UpgradeError::Stopped) {
                            report.failed.push(error);
                        }
                    }
                }
            }
        }
    }

    /// Goes back to the version before, if the present one was on probation and failed. Actors go back in a task of its own, so
    /// that the sweep does not wait for one that is busy.
    pub(super) fn undo_failed_version(self: &Arc<Self>) {
        let failed = {
            let mut versions = self.versions.write();
            let failed = self.core.failed_version.load(Ordering::SeqCst);
            if failed < versions.number {
                return;
            }
            let on_probation = versions.before.take_if(|before| before.probation.is_some());
            let Some(Before { sandbox, keeps, .. }) = on_probation else { return };
            versions.sandbox = sandbox;
            self.core.keeps.store(keeps, Ordering::SeqCst);
            versions.number += 1;
            failed
        };
        self.core.event(|| KeyedEvent::RolledBack);
        tracing::warn!(kind = %self.core.kind, "the new version failed on probation; all go back to the one before");
        let kind = Arc::clone(self);
        tokio::spawn(async move { kind.roll_back(failed).await });
    }

    async fn roll_back(&self, failed: u64) {
        let Some(system) = self.system() else { return };
        // None goes back after it has gone over to a later version.
        let _turn = self.going_over.lock().await;
        // At first all; then those that were about to be registered, perhaps with the version that failed.
        let mut coming: Option<Vec<Arc<Marks>>> = None;
        loop {
            let mut older = self.core.live.older_than(failed + 1);
            if let Some(coming) = &coming {
                older.retain(|(marks, _)| coming.iter().any(|coming| Arc::ptr_eq(coming, marks)));
            }
            let (mut here, mut next) = (Vec::new(), Vec::new());
            for (marks, actor) in older {
                match actor {
                    None => next.push(marks),
                    Some(actor) if marks.version() == failed => here.push(actor),
                    Some(_) => {}
                }
            }
            let system = &system;
            let back = here.into_iter().map(|actor| async move {
                // Fails for those that have gone back by themselves, and those that are gone.
                _ = system.rollback(actor.actor().address(), UpgradeOptions::default()).await;
            });
            stream::iter(back).buffer_unordered(AT_A_TIME).for_each(std::future::ready).await;
            if next.is_empty() {
                return;
            }
            coming = Some(next);
            tokio::task::yield_now().await;
        }
    }
}
