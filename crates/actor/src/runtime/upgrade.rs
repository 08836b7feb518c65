//! How an actor goes over to another version between two messages.

use std::{any::Any, sync::Arc};

use airssys_wasm_registry::{ResolveError, TopicPattern};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    ContractKind, CrashReport, During, NoHandler, StartError, SystemEvent,
    failure::report::Failure,
    runtime::{
        incarnation::{Blueprint, Live},
        task::{ActorTask, Exit},
    },
};

/// How an upgrade or a rollback is done.
///
/// What `snapshot` returns counts as a message of the old version, and must not be larger than its `message_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpgradeOptions {
    /// Whether the state may be lost where the old version does not give it or the new one cannot take it. Default: no.
    pub discard_state: bool,
    /// Messages that the new version must have handled before it is trusted. If it fails earlier, the one before takes
    /// over again, with the state that it had left. Default: 0, trusted at once.
    pub probation: u32,
}

/// An actor did not go over to another version. The one before goes on, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The address leads nowhere.
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
    /// The new component is no actor.
    #[error(transparent)]
    NoHandler(#[from] NoHandler),
    /// The new component takes messages by another interface.
    #[error("the actor is a component for {now}, and the new one is for {new}; spawn it under a name of its own")]
    OtherContract {
        /// What it exports now.
        now: ContractKind,
        /// What the new one exports.
        new: ContractKind,
    },
    /// The present version can leave state behind, and the other one cannot take it.
    #[error(
        "the actor's state would be lost: the other version does not export `airssys:actor/state`; set \
         `discard_state` if that is as it should be"
    )]
    StateWouldBeLost,
    /// The old version's `snapshot` came back with an error.
    #[error("`snapshot` refused: {}", message.escape_debug())]
    SnapshotRefused {
        /// What the guest says.
        message: String,
    },
    /// The old version crashed over its `snapshot`. It is restarted as after any crash.
    #[error("the old version crashed: {0}")]
    SnapshotCrashed(Arc<CrashReport>),
    /// The new version did not come to life.
    #[error("the new version did not start: {0}")]
    NotStarted(StartError),
    /// There was no upgrade to go back from.
    #[error("there is no version before this one")]
    NothingBefore,
    /// The actor belongs to a system with other state, or is native.
    #[error("the actor is not a component of this system")]
    OtherSystem,
    /// The actor stopped before its turn came.
    #[error("the actor has stopped")]
    Stopped,
}

/// A new version that is rolled back if it fails before it has handled so many messages.
pub(super) struct Probation {
    pub(super) messages: u32,
    /// What the version before had left, and what it was subscribed to.
    pub(super) state: Option<Bytes>,
    pub(super) patterns: Vec<TopicPattern>,
}

/// What an incarnation left behind that another replaced.
pub(super) struct Left {
    pub(super) state: Option<Bytes>,
    /// What it was subscribed to.
    pub(super) patterns: Vec<TopicPattern>,
}

/// The incarnation was not replaced, and may be over all the same.
pub(super) struct NotReplaced {
    pub(super) error: UpgradeError,
    pub(super) exit: Option<Exit>,
}

impl From<UpgradeError> for NotReplaced {
    fn from(error: UpgradeError) -> Self {
        Self { error, exit: None }
    }
}

type Done = oneshot::Sender<Result<u64, UpgradeError>>;

impl<B: Blueprint> ActorTask<B> {
    /// The version that is asked for, or the one before.
    pub(super) fn next_version(&self, version: Option<Box<dyn Any + Send>>) -> Result<Arc<B>, UpgradeError> {
        let Some(version) = version else { return self.previous.clone().ok_or(UpgradeError::NothingBefore) };
        let version = version.downcast::<B::Version>().map_err(|_| UpgradeError::OtherSystem)?;
        self.blueprint.upgraded(self.cell.id(), *version).map(Arc::new)
    }

    /// Goes over to another version between two messages. Says why the present one is over, if it is.
    pub(super) async fn switch(
        &mut self,
        live: &mut B::Live,
        next: Arc<B>,
        options: UpgradeOptions,
        done: Done,
    ) -> Option<Exit> {
        match self.replace(live, &next, options.discard_state).await {
            Ok(Left { state, patterns }) => {
                self.adopt(next, options.probation, state, patterns);
                if let Some(recycling) = &mut self.recycling {
                    recycling.begin(live.memory());
                }
                _ = done.send(Ok(self.cell.incarnation()));
                None
            }
            Err(NotReplaced { error, exit }) => {
                _ = done.send(Err(error));
                exit
            }
        }
    }

    /// Puts a new incarnation in the place of the present one, with its state. The old one goes on unless the new one is
    /// alive.
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

    pub(super) fn adopt(&mut self, next: Arc<B>, probation: u32, state: Option<Bytes>, patterns: Vec<TopicPattern>) {
        self.cell.mailbox.set_message_size(next.message_size());
        self.previous = Some(std::mem::replace(&mut self.blueprint, next));
        self.probation = (probation > 0).then_some(Probation { messages: probation, state, patterns });
        self.event(|actor| SystemEvent::Upgraded {
            actor: actor.cell.address.clone(),
            incarnation: actor.cell.incarnation(),
        });
    }
}
