//! Replaces an actor's version between two messages.

use std::{any::Any, num::NonZeroU32, sync::Arc};

use airssys_wasm_engine::ExportError;
use airssys_wasm_registry::{ComponentId, ResolveError, TopicPattern};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    ConcurrencyError, ContractKind, CrashReport, During, LinkFault, LinksError, NoHandler, StartError, SystemEvent,
    failure::report::Failure,
    runtime::{
        call::Unfit,
        incarnation::{Blueprint, Live},
        task::{ActorTask, Exit},
    },
};

/// Options of an upgrade or a rollback.
///
/// A snapshot must not be larger than the old version's `message_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpgradeOptions {
    /// Whether to go on without state if the old version refuses a snapshot or the new one cannot restore it. Default:
    /// no.
    pub discard_state: bool,
    /// Messages for which the new version is on probation. If it fails earlier, the old version is restored with its
    /// snapshot. Default: 0, no probation.
    pub probation: u32,
}

/// An upgrade failed. The present version goes on, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// No actor has this address.
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    /// The new component exports no message handler.
    #[error(transparent)]
    NoHandler(#[from] NoHandler),
    /// It cannot have several messages in flight, as the actor has.
    #[error(transparent)]
    Concurrency(#[from] ConcurrencyError),
    /// The new component takes messages by another interface than the present one.
    #[error("the actor is a component for {now}, and the new one is for {new}; spawn it under a name of its own")]
    OtherContract {
        /// The present interface.
        now: ContractKind,
        /// The new component's interface.
        new: ContractKind,
    },
    /// The new component lacks an export that is called, or has it with another type.
    #[error("the new version does not fit those who call it: {0}")]
    Contract(ExportError),
    /// The new component does not fit actors whose imports lead to this one.
    #[error("the new version does not fit {}, whose imports lead to it: {fault}", names(callers))]
    Callers {
        /// Who they are.
        callers: Vec<ComponentId>,
        /// What does not fit the first of them.
        fault: LinkFault,
    },
    /// The new component cannot be linked to the actors that the present one is linked to.
    #[error(transparent)]
    Links(#[from] LinksError),
    /// The present version can snapshot its state, and the new one cannot restore it.
    #[error(
        "the actor's state would be lost: the other version does not export `airssys:actor/state`; set \
         `discard_state` if that is as it should be"
    )]
    StateWouldBeLost,
    /// The present version's `snapshot` returned an error.
    #[error("`snapshot` refused: {}", message.escape_debug())]
    SnapshotRefused {
        /// The guest's error message.
        message: String,
    },
    /// The present version crashed in `snapshot`, and is restarted as after any crash.
    #[error("the old version crashed: {0}")]
    SnapshotCrashed(Arc<CrashReport>),
    /// The new version did not start.
    #[error("the new version did not start: {0}")]
    NotStarted(StartError),
    /// The state of the present version is to be kept, and could not be saved now; a rollback would lose it.
    #[error(
        "the actor's state could not be saved before the upgrade; try again when it can be, or set `discard_state`"
    )]
    NotSaved,
    /// There is no earlier version to roll back to.
    #[error("there is no version before this one")]
    NothingBefore,
    /// The actor's system has state of another type, or the actor is native.
    #[error("the actor is not a component of this system")]
    OtherSystem,
    /// The actor stopped before the upgrade.
    #[error("the actor has stopped")]
    Stopped,
}

fn names(ids: &[ComponentId]) -> String {
    ids.iter().map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")
}

/// What became of a version on probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbationEnd {
    /// It stays: it has handled as many messages as it was on probation for, or was on none.
    Passed,
    /// It failed, and the version before takes over.
    RolledBack,
    /// Neither: the actor ended before, or went over to yet another version.
    Interrupted,
}

/// Tells the end of a version's probation.
#[derive(Debug)]
pub struct ProbationWatch {
    told: oneshot::Receiver<ProbationEnd>,
    /// Once it was told.
    end: Option<ProbationEnd>,
}

impl ProbationWatch {
    /// Waits until the probation is over. A version that gets no messages is on probation for ever.
    pub async fn ended(&mut self) -> ProbationEnd {
        match self.end {
            Some(end) => end,
            None => *self.end.insert((&mut self.told).await.unwrap_or(ProbationEnd::Interrupted)),
        }
    }
}

/// Rolls a new version back if it fails before it has handled `messages` more messages.
pub(super) struct Probation {
    pub(super) messages: u32,
    /// Who is told its end.
    told: Option<oneshot::Sender<ProbationEnd>>,
    /// The previous version's snapshot and subscriptions.
    pub(super) state: Option<Bytes>,
    pub(super) patterns: Vec<TopicPattern>,
}

/// Told the new incarnation, and what will become of its probation.
pub(crate) type UpgradeDone = oneshot::Sender<Result<(u64, ProbationWatch), UpgradeError>>;

/// The snapshot and subscriptions of a replaced incarnation.
pub(super) struct Left {
    pub(super) state: Option<Bytes>,
    pub(super) patterns: Vec<TopicPattern>,
}

/// The incarnation was not replaced, and may have ended.
pub(super) struct NotReplaced {
    pub(super) error: UpgradeError,
    pub(super) exit: Option<Exit>,
}

impl From<UpgradeError> for NotReplaced {
    fn from(error: UpgradeError) -> Self {
        Self { error, exit: None }
    }
}

impl Probation {
    /// Tells its end, if somebody waits for it.
    pub(super) fn end(&mut self, how: ProbationEnd) {
        if let Some(told) = self.told.take() {
            _ = told.send(how);
        }
    }
}

impl<B: Blueprint> ActorTask<B> {
    /// The blueprint of `version`, or of the previous version.
    pub(super) fn next_version(&self, version: Option<Box<dyn Any + Send>>) -> Result<Arc<B>, UpgradeError> {
        let next = match version {
            None => self.previous.clone().ok_or(UpgradeError::NothingBefore)?,
            Some(version) => {
                let version = version.downcast::<B::Version>().map_err(|_| UpgradeError::OtherSystem)?;
                Arc::new(self.blueprint.upgraded(self.cell.id(), *version)?)
            }
        };
        if let Some(component) = next.component() {
            self.cell.exports.lock().check(component).map_err(|unfit| match unfit {
                Unfit::Export(error) => UpgradeError::Contract(error),
                Unfit::Callers(callers, fault) => UpgradeError::Callers { callers, fault },
            })?;
        }
        Ok(next)
    }

    /// Replaces the version. Returns how the present incarnation ended, if it did.
    pub(super) async fn switch(
        &mut self,
        live: &mut B::Live,
        next: Arc<B>,
        options: UpgradeOptions,
        done: UpgradeDone,
    ) -> Option<Exit> {
        match self.replace(live, &next, options.discard_state).await {
            Ok(Left { state, patterns }) => {
                let watch = self.adopt(next, options.probation, state, patterns);
                if let Some(recycling) = &mut self.recycling {
                    recycling.begin(live.memory());
                }
                _ = done.send(Ok((self.cell.incarnation(), watch)));
                None
            }
            Err(NotReplaced { error, exit }) => {
                _ = done.send(Err(error));
                exit
            }
        }
    }

    /// Replaces the incarnation by a new one with its state. The old one goes on if the new one does not start.
    pub(super) async fn replace(
        &mut self,
        live: &mut B::Live,
        next: &Arc<B>,
        discard_state: bool,
    ) -> Result<Left, NotReplaced> {
        let (gives, takes) = (self.blueprint.keeps_state().0, next.keeps_state().1);
        let mut state = None;
        if gives && takes {
            match live.snapshot(&self.interrupt).await {
                Ok(Ok(left)) => state = Some(left),
                Ok(Err(_)) if discard_state => {}
                Ok(Err(message)) => return Err(UpgradeError::SnapshotRefused { message }.into()),
                Err(crash) => {
                    let report = self.report(During::Snapshot, crash);
                    let error = UpgradeError::SnapshotCrashed(Arc::clone(&report));
                    return Err(NotReplaced { error, exit: Some(Exit::Failed(Failure::Crash(report))) });
                }
            }
        } else if gives && !discard_state {
            return Err(UpgradeError::StateWouldBeLost.into());
        }
        let (incarnation, patterns) = (self.cell.incarnation(), self.cell.patterns());
        match self.begin(next, state.clone()).await {
            Ok(new) => {
                let old = std::mem::replace(live, new);
                let subscribed = self.cell.patterns();
                if let Err(crash) = old.shutdown(&self.interrupt).await {
                    self.report_of(incarnation, During::Shutdown, crash);
                }
                // The old version's `shutdown` does not change the new one's subscriptions.
                self.cell.set_patterns(&subscribed);
                Ok(Left { state, patterns })
            }
            Err(error) => {
                self.cell.set_incarnation(incarnation);
                self.cell.set_memory(live.memory());
                self.cell.set_patterns(&patterns);
                Err(UpgradeError::NotStarted(error).into())
            }
        }
    }

    /// Has the version on probation before it is started for the first time.
    pub(crate) fn begin_probation(&mut self, before: B, messages: NonZeroU32) {
        self.previous = Some(Arc::new(before));
        self.probation =
            Some(Probation { messages: messages.get(), told: None, state: None, patterns: self.cell.patterns() });
    }

    pub(super) fn adopt(
        &mut self,
        next: Arc<B>,
        probation: u32,
        state: Option<Bytes>,
        patterns: Vec<TopicPattern>,
    ) -> ProbationWatch {
        self.announce(&next);
        if let Some(kept) = &mut self.kept {
            kept.keeper.upgraded();
        }
        self.previous = Some(std::mem::replace(&mut self.blueprint, next));
        let (told, watch) = oneshot::channel();
        let mut new = Probation { messages: probation, told: Some(told), state, patterns };
        self.probation = if probation > 0 {
            Some(new)
        } else {
            new.end(ProbationEnd::Passed);
            None
        };
        self.event(|actor| SystemEvent::Upgraded {
            actor: actor.cell.address.clone(),
            incarnation: actor.cell.incarnation(),
        });
        ProbationWatch { told: watch, end: None }
    }
}
