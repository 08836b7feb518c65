//! Threads for what takes long to give back: memory, for which a worker's other tasks would wait.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Threads of its own on which an engine's stores are freed, two at the most. Cheap to clone; all clones are one.
///
/// They are not the runtime's blocking threads, which others may keep for as long as they like.
#[derive(Clone, Default)]
pub struct Reclaimer(Arc<Shared>);

/// More would only wait for each other in the system.
const THREADS: usize = 2;

/// How long a thread waits for more.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

type Job = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Reclaimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Queue { jobs, threads, idle } = &*self.0.queue.lock();
        f.debug_struct("Reclaimer").field("jobs", &jobs.len()).field("threads", threads).field("idle", idle).finish()
    }
}

impl Reclaimer {
    /// Runs this on one of the threads, whether the future is polled or not, and comes back when it has ended.
    ///
    /// # Errors
    ///
    /// What it panics with.
    pub fn run<F: FnOnce() + Send + 'static>(
        &self,
        job: F,
    ) -> impl Future<Output = Result<(), Box<dyn Any + Send>>> + Send + use<F> {
        let (done, is_done) = oneshot::channel();
        self.push(Box::new(move || _ = done.send(catch_unwind(AssertUnwindSafe(job)))));
        async { is_done.await.expect("each job is run") }
    }

    fn push(&self, job: Job) {
        let mut queue = self.0.queue.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle {
            self.0.more.notify_one();
        } else if queue.threads < THREADS {
            queue.threads += 1;
            drop(queue);
            let shared = Arc::clone(&self.0);
            if thread::Builder::new().name("wasm-reclaim".into()).spawn(move || shared.work(IDLE)).is_err() {
                // This thread is the one that could not be had.
                self.0.work(Duration::ZERO);
            }
        }
    }
}

impl Shared {
    fn work(&self, idle: Duration) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
                continue;
            }
            queue.idle += 1;
            let is_over = self.more.wait_for(&mut queue, idle).timed_out();
            queue.idle -= 1;
            if is_over && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::channel,
        task::{Context, Waker},
    };

    use super::*;

    #[tokio::test]
    async fn what_nobody_polls_is_run_and_keeps_nothing_from_others() {
        let reclaimer = Reclaimer::default();
        let (go, wait) = channel::<()>();
        let busy = reclaimer.run(move || _ = wait.recv());
        let unpolled: Vec<_> = (0..3).map(|_| Box::pin(reclaimer.run(|| {}))).collect();
        reclaimer.run(|| {}).await.unwrap();
        drop(unpolled);
        go.send(()).unwrap();
        busy.await.unwrap();
        assert!(reclaimer.0.queue.lock().threads <= THREADS);
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_thread_goes_on() {
        let reclaimer = Reclaimer::default();
        for _ in 0..3 {
            let panic = reclaimer.run(|| panic!("out of order")).await.unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"out of order"));
            reclaimer.run(|| {}).await.unwrap();
        }
    }

    #[test]
    fn a_thread_that_cannot_be_had_is_the_callers() {
        let shared = Shared::default();
        let (to, done) = channel();
        shared.queue.lock().threads = 1;
        shared.queue.lock().jobs.push_back(Box::new(move || to.send(thread::current().id()).unwrap()));
        shared.work(Duration::ZERO);
        assert_eq!(done.recv().unwrap(), thread::current().id());
        assert_eq!(shared.queue.lock().threads, 0);
    }

    #[test]
    fn it_needs_no_runtime() {
        let mut ran = Box::pin(Reclaimer::default().run(|| {}));
        while ran.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            thread::yield_now();
        }
    }
}
