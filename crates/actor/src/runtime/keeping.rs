//! Of an actor whose state is kept: loads it before an incarnation, saves it between messages, and leaves the memory.

use std::sync::Arc;

use airssys_wasm_isolation::{Crash, CrashKind};
use tokio::sync::oneshot;

use crate::{
    CallError, DeadReason, During, KeepError, Lifecycle, NotSavedError, StartError, SystemEvent,
    failure::report::Failure,
    runtime::{
        incarnation::{Blueprint, Live, crashed},
        mailbox::{Delivery, Unanswered},
        task::{ActorTask, Exit},
    },
};

/// Whether the actor goes on after a save.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// What is unsaved can be saved later.
    OfMany,
    Last,
}

/// The state was not saved.
enum Unsaved {
    /// The incarnation has ended over it.
    Ended(Exit),
    /// It may be saved later.
    Later,
    /// It cannot be.
    Never,
    /// The guest gave no snapshot.
    NotGiven,
}

impl<B: Blueprint> ActorTask<B> {
    /// Starts the first incarnation and runs.
    pub(crate) async fn activate(mut self) {
        let live = match Box::pin(self.start_kept()).await {
            Ok(live) => Some(live),
            Err(failure) => Box::pin(self.not_started(failure)).await,
        };
        if live.is_some() {
            self.run(live).await;
        }
    }

    /// The first incarnation did not start: the version before it is tried if this one is on probation, and then nothing is.
    async fn not_started(&mut self, mut failure: Failure) -> Option<B::Live> {
        if self.roll_back(&failure) {
            match self.start().await {
                Ok(live) => return Some(live),
                Err(again) => failure = again,
            }
        }
        let error = match failure {
            Failure::Start(error) => error,
            Failure::Crash(report) => Arc::new(StartError::Crash(report)),
            Failure::GaveUp(_) => return None,
        };
        if let Some(kept) = &mut self.kept {
            kept.keeper.not_activated(&error);
        }
        self.cell.set_state(Lifecycle::Stopping);
        self.close();
        let because = error.to_string();
        while let Some(mut delivery) = self.cell.mailbox.try_next(&mut self.inbox.messages) {
            if let Some(mut call) = delivery.take_call() {
                call.pending.fail(CallError::NotActivated(Arc::clone(&error)));
                continue;
            }
            let Delivery { message, reply, .. } = delivery;
            let told = reply.is_some_and(|reply| reply.send(Err(Unanswered::NotActivated(Arc::clone(&error)))));
            if !told {
                self.cell.dead_letter(message, DeadReason::NotActivated { because: because.clone() });
            }
        }
        None
    }

    /// Starts an incarnation with the state that is kept.
    pub(super) async fn start_kept(&mut self) -> Result<B::Live, Failure> {
        self.load().await.map_err(|error| Failure::Start(Arc::new(error)))?;
        let (blueprint, state) = (Arc::clone(&self.blueprint), self.state.take());
        let mut live = self.begin(&blueprint, state).await.map_err(|error| Failure::Start(Arc::new(error)))?;
        let Some(kept) = &mut self.kept else { return Ok(live) };
        if kept.keeper.started() && self.blueprint.keeps_state() == (true, true) {
            match live.snapshot(&self.interrupt).await {
                Ok(Ok(state)) => kept.keeper.fresh(state),
                // It may give one later.
                Ok(Err(_)) => {}
                Err(crash) => {
                    live.free().await;
                    return Err(Failure::Crash(self.report(During::Snapshot, crash)));
                }
            }
        }
        Ok(live)
    }

    /// Loads the state for the next incarnation, if it can be restored.
    pub(super) async fn load(&mut self) -> Result<(), StartError> {
        // What a kill interrupts from here on, until the incarnation begins.
        self.interrupt = self.cell.begin_incarnation(self.incarnations + 1);
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let loaded = tokio::select! {
            biased;
            () = self.interrupt.cancelled() => {
                let crash = Crash::of_host(CrashKind::Cancelled, "load");
                return Err(crashed(&self.cell, During::Start, crash));
            }
            loaded = kept.keeper.load() => loaded.map_err(StartError::NotLoaded)?,
        };
        self.state = loaded;
        Ok(())
    }

    /// Saves the state of an incarnation.
    async fn save(&mut self, live: &mut B::Live, which: Which) -> Result<(), Unsaved> {
        if self.blueprint.keeps_state() != (true, true) {
            if let Some(kept) = &mut self.kept {
                kept.keeper.not_given();
            }
            return Ok(());
        }
        let state = match live.snapshot(&self.interrupt).await {
            Ok(Ok(state)) => state,
            Ok(Err(message)) => {
                if let Some(kept) = &mut self.kept {
                    kept.keeper.not_given();
                }
                self.not_saved(NotSavedError::SnapshotRefused { message });
                return Err(Unsaved::NotGiven);
            }
            Err(crash) => {
                let report = self.report(During::Snapshot, crash);
                return Err(Unsaved::Ended(Exit::Failed(Failure::Crash(report))));
            }
        };
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let saving = match which {
            Which::OfMany => kept.keeper.save(state),
            Which::Last => kept.keeper.save_last(state),
        };
        let saved = tokio::select! {
            biased;
            saved = saving => Some(saved),
            () = self.interrupt.cancelled() => None,
        };
        let Some(saved) = saved else {
            if which == Which::Last {
                self.not_saved(NotSavedError::Killed);
            }
            return Err(Unsaved::Ended(Exit::Killed));
        };
        let Err(error) = saved else { return Ok(()) };
        let unsaved = match error {
            KeepError::Fenced => Unsaved::Ended(Exit::Reload),
            KeepError::Refused(_) => Unsaved::Never,
            KeepError::Unavailable(_) => Unsaved::Later,
        };
        self.not_saved(error.into());
        Err(unsaved)
    }

    fn not_saved(&self, error: NotSavedError) {
        self.event(|actor| SystemEvent::NotSaved { actor: actor.cell.address.clone(), error: Arc::new(error) });
    }

    pub(super) async fn save_by_order(&mut self, live: &mut B::Live) -> Option<Exit> {
        match self.save(live, Which::OfMany).await {
            Err(Unsaved::Ended(exit)) => Some(exit),
            Ok(()) | Err(Unsaved::Later | Unsaved::Never | Unsaved::NotGiven) => None,
        }
    }

    /// Saves what a new version begins with, so that what a rollback finds is no older than the upgrade. `None` if it is not
    /// saved; then there is no upgrade. How the incarnation ended, if it did.
    pub(super) async fn save_for_upgrade(&mut self, live: &mut B::Live) -> Option<Result<(), Exit>> {
        match self.save(live, Which::OfMany).await {
            // Of a snapshot that is refused the upgrade itself has something to say.
            Ok(()) | Err(Unsaved::NotGiven) => Some(Ok(())),
            Err(Unsaved::Ended(exit)) => Some(Err(exit)),
            Err(Unsaved::Later | Unsaved::Never) => None,
        }
    }

    /// Saves what an incarnation leaves that stops for good. A store that does not take it now is tried again until the
    /// actor is killed. Returns how the actor ended.
    pub(super) async fn save_last(&mut self, live: &mut B::Live) -> Exit {
        match self.save(live, Which::Last).await {
            Err(Unsaved::Ended(Exit::Killed)) => Exit::Killed,
            // One that crashed over it has nothing to shut down, and is not restarted.
            _ => Exit::Stopped,
        }
    }

    /// After a message: saves where each is to be, answers, and leaves if that was ordered. Returns how the incarnation ended,
    /// if it did.
    pub(super) async fn keep(&mut self, live: &mut B::Live, is_handled: bool) -> Option<Exit> {
        let saves = self.kept.as_ref()?.saves_each_message && is_handled;
        let saved = if saves { self.save(live, Which::OfMany).await } else { Ok(()) };
        let kept = self.kept.as_mut()?;
        // An answer that came before a crash is of a state that is gone.
        kept.release(is_handled && saved.is_ok());
        if let Err(Unsaved::Ended(exit)) = saved {
            return Some(exit);
        }
        if is_handled && kept.leaving.is_some() { self.try_to_leave(live, true).await } else { None }
    }

    /// Leaves the memory if there is no message. If somebody waits for it, as soon as there is none.
    pub(super) async fn leave(
        &mut self,
        live: &mut B::Live,
        must: bool,
        done: Option<oneshot::Sender<()>>,
    ) -> Option<Exit> {
        if let Some(done) = done {
            self.kept.as_mut()?.leaves(done);
        }
        self.try_to_leave(live, must).await
    }

    /// The same without an incarnation: whatever was unsaved is lost already. Whether it has left.
    pub(super) fn leave_between(&mut self, must: bool, done: Option<oneshot::Sender<()>>) -> bool {
        let is_needed = self.is_needed() || !must && self.cell.has_later();
        let Some(kept) = &mut self.kept else { return false };
        if let Some(done) = done {
            kept.leaves(done);
        }
        if !is_needed && self.passivate() {
            return true;
        }
        if let Some(kept) = &mut self.kept {
            kept.keeper.stayed();
        }
        false
    }

    async fn try_to_leave(&mut self, live: &mut B::Live, must: bool) -> Option<Exit> {
        if self.is_needed() || !must && self.cell.has_later() {
            self.kept.as_mut()?.keeper.stayed();
            return None;
        }
        match self.save(live, Which::OfMany).await {
            Ok(()) | Err(Unsaved::Never | Unsaved::NotGiven) => {}
            Err(Unsaved::Ended(exit)) => return Some(exit),
            Err(Unsaved::Later) => {
                // What is unsaved stays in memory.
                self.kept.as_mut()?.leaving = None;
                return None;
            }
        }
        // The guest may have set something to be sent later while its snapshot was taken.
        if self.is_needed() || !must && self.cell.has_later() {
            self.kept.as_mut()?.keeper.stayed();
            return None;
        }
        Some(Exit::Idle)
    }

    /// Whether somebody waits for it to leave, and there is no message.
    #[inline]
    pub(super) fn is_to_leave(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.leaving.is_some()) && !self.is_needed()
    }

    /// Whether there is a message, or one to be redelivered.
    fn is_needed(&self) -> bool {
        self.in_flight.is_some()
            || self.several.as_ref().is_some_and(|several| several.holds_any())
            || !self.cell.mailbox.is_empty()
    }

    /// Gives up the name, after the incarnation has ended. `false` if a message came meanwhile.
    pub(super) fn passivate(&mut self) -> bool {
        if !self.cell.passivate() {
            return false;
        }
        if let Some(kept) = &mut self.kept {
            kept.keeper.passivated();
            for done in kept.leaving.take().into_iter().flatten() {
                // Fails if the caller has gone.
                _ = done.send(());
            }
        }
        self.cell.give_up_all_later();
        self.is_passivated = true;
        true
    }

    /// Forgets what is kept, and what is in memory, unless it is killed meanwhile. Returns how the incarnation ended, if it
    /// did.
    pub(super) async fn forget(&mut self, done: oneshot::Sender<Result<(), KeepError>>) -> Option<Exit> {
        let kept = self.kept.as_mut()?;
        // First: what a crash leaves is state without reminders, of which nobody was told that it is forgotten, and no
        // reminder that comes to one that begins anew.
        let forgetting = async {
            match self.cell.services.reminders.forget(self.cell.id()).await {
                Ok(()) => kept.keeper.forget().await,
                Err(error) => Err(KeepError::Unavailable(error.into())),
            }
        };
        let forgotten = tokio::select! {
            biased;
            forgotten = forgetting => forgotten,
            // Dropping `done` says that the actor has ended.
            () = self.interrupt.cancelled() => return Some(Exit::Killed),
        };
        let exit = forgotten.is_ok().then_some(Exit::Reload);
        _ = done.send(forgotten);
        exit
    }
}
