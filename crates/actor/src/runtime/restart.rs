//! From the end of one incarnation to the next.

use tokio::time::{Instant, sleep_until};

use crate::{
    HealthError, Intensity, Lifecycle, ProbationEnd, SystemEvent, UpgradeError,
    failure::{policy::later, report::Failure},
    runtime::{
        incarnation::Blueprint,
        orders::{Control, HealthDone, Upgrade},
        owner::{ChildEventKind, Owner},
        task::{ActorTask, Exit},
    },
};

/// What follows an incarnation.
enum Next {
    StartAt(Instant),
    StartByOrder,
    End,
}

/// What ends the wait for the next incarnation.
enum Wake<L> {
    Start,
    /// An upgrade has started an incarnation.
    Started(L),
    Over,
}

impl<B: Blueprint> ActorTask<B> {
    /// Waits for the supervisor's first order to start.
    pub(super) async fn first(&mut self) -> Option<B::Live> {
        loop {
            match self.wait(None).await {
                Wake::Over => return None,
                Wake::Started(live) => return Some(live),
                Wake::Start => match self.start().await {
                    Ok(live) => {
                        self.tell_supervisor(|| ChildEventKind::Started);
                        return Some(live);
                    }
                    Err(failure) => self.tell_supervisor(|| ChildEventKind::Failed(failure)),
                },
            }
        }
    }

    /// Makes the next incarnation, unless the actor ends.
    pub(super) async fn next(&mut self, mut exit: Exit) -> Option<B::Live> {
        // Who waits for one to leave that has failed is told that it has not.
        if let (Exit::Failed(_), Some(kept)) = (&exit, &mut self.kept) {
            kept.leaving = None;
        }
        // Whether a supervisor has ordered the start and waits for its event.
        let mut ordered = false;
        loop {
            // A crash ends a drain; the remaining messages go to the dead letters.
            if self.cell.is_killed() || self.cell.state() == Lifecycle::Stopping {
                return None;
            }
            if matches!(exit, Exit::Idle) && self.passivate() {
                return None;
            }
            if matches!(exit, Exit::Idle | Exit::Reload) {
                match self.start().await {
                    Ok(live) => return Some(live),
                    Err(failure) => {
                        exit = Exit::Failed(failure);
                        continue;
                    }
                }
            }
            if let Exit::Failed(failure) = &exit
                && self.roll_back(failure)
            {
                match self.start().await {
                    Ok(live) => {
                        if ordered {
                            self.tell_supervisor(|| ChildEventKind::Started);
                        }
                        return Some(self.count_restart(live));
                    }
                    Err(failure) => {
                        exit = Exit::Failed(failure);
                        continue;
                    }
                }
            }
            let at = match &exit {
                Exit::Stopped | Exit::Killed | Exit::Idle | Exit::Reload => return None,
                Exit::Suspended => {
                    self.tell_supervisor(|| ChildEventKind::Suspended);
                    None
                }
                Exit::Failed(failure) if failure.is_fenced() => return None,
                Exit::Failed(failure) => match self.after(failure) {
                    Next::StartAt(at) => Some(at),
                    Next::StartByOrder => None,
                    Next::End => return None,
                },
            };
            self.cell.set_state(Lifecycle::Restarting);
            match self.wait(at).await {
                Wake::Over => return None,
                Wake::Started(live) => {
                    if let Owner::Itself(history) = &mut self.owner {
                        history.started(0, Instant::now());
                    }
                    return Some(live);
                }
                Wake::Start => match self.start().await {
                    Ok(live) => {
                        self.tell_supervisor(|| ChildEventKind::Started);
                        return Some(self.count_restart(live));
                    }
                    Err(failure) => {
                        exit = Exit::Failed(failure);
                        ordered = true;
                        // Yield, so that starts that fail at once do not block the worker.
                        tokio::task::yield_now().await;
                    }
                },
            }
        }
    }

    /// Rolls back a version on probation that failed, whatever the policy. Returns whether it did.
    pub(super) fn roll_back(&mut self, failure: &Failure) -> bool {
        if failure.is_cancelled() || failure.is_shortage() {
            return false;
        }
        let Some(mut probation) = self.probation.take() else { return false };
        let Some(previous) = self.previous.take() else { return false };
        probation.end(ProbationEnd::RolledBack);
        self.cell.set_state(Lifecycle::Restarting);
        self.state = probation.state;
        self.cell.set_patterns(&probation.patterns);
        self.announce(&previous);
        self.blueprint = previous;
        if let Some(kept) = &mut self.kept {
            kept.keeper.rolled_back();
        }
        self.event(|actor| SystemEvent::RolledBack { actor: actor.cell.address.clone() });
        true
    }

    fn not_running(&self, done: HealthDone) {
        _ = done.send(Err(HealthError::NotRunning { state: self.cell.state() }));
    }

    fn count_restart(&self, live: B::Live) -> B::Live {
        self.cell.count_restart();
        self.cell.metrics.restarts.increment(1);
        live
    }

    /// Tells who keeps its state that the actor ends by its own fault.
    fn gave_up(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.keeper.gave_up();
        }
    }

    /// Decides what follows a failure.
    fn after(&mut self, failure: &Failure) -> Next {
        let Owner::Itself(history) = &mut self.owner else {
            self.tell_supervisor(|| ChildEventKind::Failed(failure.clone()));
            return Next::StartByOrder;
        };
        let reply = self.policy.answer(failure);
        if !reply.restart {
            if !failure.is_shortage() && !failure.is_exit() {
                self.gave_up();
            }
            return Next::End;
        }
        let now = Instant::now();
        let Some(wait) = history.note(0, 0..1, &reply, now) else {
            let Intensity { restarts, within } = history.intensity();
            tracing::error!(actor = %self.cell.id(), "given up after {restarts} restarts within {within:?}");
            self.event(|actor| SystemEvent::GivenUp { name: actor.cell.id().clone() });
            self.gave_up();
            return Next::End;
        };
        self.event(|actor| SystemEvent::Restarting { actor: actor.cell.address.clone(), after: wait });
        Next::StartAt(later(now, wait))
    }

    /// Waits until a time or for an order, without an incarnation.
    async fn wait(&mut self, at: Option<Instant>) -> Wake<B::Live> {
        while let Some(done) = self.checks.pop_front() {
            self.not_running(done);
        }
        loop {
            if self.cell.is_killed() {
                return Wake::Over;
            }
            let order = match (self.kept_order(), at) {
                (Some(order), _) => order,
                (None, Some(at)) if at <= Instant::now() => match self.cell.orders.try_next() {
                    Some(order) => order,
                    None => return Wake::Start,
                },
                (None, Some(at)) => tokio::select! {
                    biased;
                    order = self.inbox.orders.next(&self.cell.orders) => order,
                    () = sleep_until(at) => return Wake::Start,
                },
                (None, None) => self.inbox.orders.next(&self.cell.orders).await,
            };
            let Upgrade { version, options, done } = match order {
                Control::Kill | Control::Stop { .. } => return Wake::Over,
                Control::Start { order } => {
                    self.follow(order);
                    return Wake::Start;
                }
                Control::Suspend { order } => {
                    self.follow(order);
                    self.tell_supervisor(|| ChildEventKind::Suspended);
                    continue;
                }
                Control::Health { done } => {
                    self.not_running(done);
                    continue;
                }
                // There is nothing to save.
                Control::Save => continue,
                Control::Passivate { must, done } => {
                    if self.leave_between(must, done) {
                        return Wake::Over;
                    }
                    continue;
                }
                Control::Forget { done } => {
                    // What a kill interrupts, in place of the last incarnation.
                    self.interrupt = self.cell.begin_incarnation(self.cell.incarnation());
                    self.forget(done).await;
                    continue;
                }
                // Replaces a version that keeps crashing. The only state is what waits in `self.state`.
                Control::Upgrade(upgrade) => *upgrade,
            };
            if done.is_closed() {
                continue;
            }
            let next = match self.next_version(version) {
                Ok(next) => next,
                Err(error) => {
                    _ = done.send(Err(error));
                    continue;
                }
            };
            let patterns = self.cell.patterns();
            if self.kept.is_some()
                && let Err(error) = self.load().await
            {
                _ = done.send(Err(UpgradeError::NotStarted(error)));
                continue;
            }
            match self.begin(&next, self.state.clone()).await {
                Ok(live) => {
                    let state = self.state.take();
                    let watch = self.adopt(next, options.probation, state, patterns);
                    self.tell_supervisor(|| ChildEventKind::Started);
                    _ = done.send(Ok((self.cell.incarnation(), watch)));
                    return Wake::Started(live);
                }
                Err(error) => {
                    self.cell.set_patterns(&patterns);
                    _ = done.send(Err(UpgradeError::NotStarted(error)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        SystemEvent, UpgradeOptions,
        runtime::{
            mailbox::Delivery,
            owner::ChildEvent,
            schedules::{Scene, Start},
        },
    };

    async fn next(told: &mut mpsc::UnboundedReceiver<ChildEvent>) -> ChildEvent {
        told.recv().await.unwrap()
    }

    /// A supervised actor with a version on probation.
    async fn on_probation(version: Start) -> (Scene, mpsc::UnboundedReceiver<ChildEvent>) {
        let (scene, mut task, told) = Scene::new(4, Start::Lives);
        let live = task.start().await.unwrap_or_else(|_| panic!("told to live"));
        tokio::spawn(task.run(Some(live)));
        let options = UpgradeOptions { probation: 5, ..UpgradeOptions::default() };
        let upgrade = |done| {
            let version = Some(Box::new(version) as Box<dyn std::any::Any + Send>);
            Control::Upgrade(Box::new(Upgrade { version, options, done }))
        };
        assert_eq!(scene.cell.ordered(upgrade).await.unwrap().unwrap().0, 2);
        (scene, told)
    }

    #[tokio::test]
    async fn a_version_on_probation_that_does_not_start_again_after_its_siblings_is_rolled_back() {
        for (version, incarnation) in [(Start::LivesOnce, 4), (Start::Lives, 3)] {
            let (scene, mut told) = on_probation(version).await;
            let mut events = scene.cell.services.events();
            scene.cell.orders.give(Control::Suspend { order: 1 });
            assert!(matches!(next(&mut told).await.what, ChildEventKind::Suspended));
            scene.cell.orders.give(Control::Start { order: 2 });
            let answer = next(&mut told).await;
            assert!(matches!(answer, ChildEvent { order: 2, what: ChildEventKind::Started, .. }));
            assert_eq!(scene.cell.incarnation(), incarnation);
            let rolled_back = std::iter::from_fn(|| events.try_recv().ok())
                .any(|event| matches!(event, SystemEvent::RolledBack { .. }));
            assert_eq!(rolled_back, incarnation == 4);
        }
    }

    #[tokio::test]
    async fn a_shortage_of_the_host_rolls_nobody_back() {
        let (scene, mut told) = on_probation(Start::LivesOnce).await;
        let mut events = scene.cell.services.events();
        scene.cell.try_push(Delivery::new("shortage".into(), None)).unwrap_or_else(|_| panic!("there is room"));
        assert!(matches!(next(&mut told).await.what, ChildEventKind::Failed(_)));
        let mut seen = std::iter::from_fn(|| events.try_recv().ok());
        assert!(!seen.any(|event| matches!(event, SystemEvent::RolledBack { .. })));
        // The version is still on probation, and its own failure rolls it back.
        scene.cell.orders.give(Control::Start { order: 1 });
        assert!(matches!(next(&mut told).await.what, ChildEventKind::Started));
        assert!(matches!(events.recv().await.unwrap(), SystemEvent::RolledBack { .. }));
    }
}
