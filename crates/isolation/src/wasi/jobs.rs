//! How many blocking threads the files of some sandboxes may use at a time.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
};

use super::ended;

/// Permits for jobs on files, each on a blocking thread of the runtime: for all sandboxes of a
/// [`SandboxSpec`](crate::SandboxSpec), or of several that share it. Cheap to clone; all clones are one.
///
/// A job holds its permit until it ends, also when its sandbox is gone. So a disk that is slow or hangs leaves the
/// other blocking threads free: tokio has 512 by default.
#[derive(Debug, Clone)]
pub struct FileJobs(Arc<Semaphore>);

/// Eight at a time.
impl Default for FileJobs {
    fn default() -> Self {
        Self::new(8)
    }
}

impl FileJobs {
    /// This many at a time. Zero counts as one.
    pub fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_a_time.clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Waits for a permit and starts a job, for the embedder's own host functions. Dropping the handle does not stop
    /// the job.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn start<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let permit = self.permit().await;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job()
        })
    }

    /// Starts work that is one of these jobs. It waits for its permit in a task of its own, and the task ends whether the
    /// job is polled or not: a permit that is freed is given to who waits first, and nobody else gets it until that one
    /// is polled. A store does not poll what a guest has cancelled, nor anything between calls.
    pub(crate) fn spawn<R: Send + 'static>(&self, work: impl Future<Output = R> + Send + 'static) -> Job<R> {
        let (wanted, unwanted) = oneshot::channel();
        let (jobs, permit) = (self.clone(), self.try_permit());
        let task = tokio::spawn(async move {
            let permit = match permit {
                Some(permit) => permit,
                None => jobs.permit_while_wanted(unwanted).await?,
            };
            let done = work.await;
            drop(permit);
            Some(done)
        });
        Job { task, _wanted: wanted }
    }

    async fn permit_while_wanted(&self, unwanted: oneshot::Receiver<()>) -> Option<OwnedSemaphorePermit> {
        let (mut unwanted, mut permit) = (pin!(unwanted), pin!(self.permit()));
        poll_fn(|cx| match unwanted.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => permit.as_mut().poll(cx).map(Some),
        })
        .await
    }

    pub(crate) async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0).acquire_owned().await.expect("never closed")
    }

    /// A permit, if one is free.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

/// Work of [`FileJobs::spawn`]. Dropped before it has its permit, it is never begun; later, it goes on and holds its permit
/// until it ends.
pub(crate) struct Job<R> {
    task: JoinHandle<Option<R>>,
    _wanted: oneshot::Sender<()>,
}

impl<R> Future for Job<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        Pin::new(&mut self.task).poll(cx).map(|done| ended(done).expect("given up by who drops it only"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_job_counts_until_it_ends() {
        let jobs = FileJobs::new(1);
        let (end, ended) = mpsc::channel::<()>();
        drop(jobs.start(move || ended.recv()).await);
        assert!(jobs.try_permit().is_none());
        end.send(()).unwrap();
        assert_eq!(jobs.start(|| 42).await.await.unwrap(), 42);
    }

    #[tokio::test]
    async fn none_at_all_is_one() {
        assert!(FileJobs::new(0).try_permit().is_some());
    }

    #[tokio::test]
    async fn a_job_that_nobody_polls_ends() {
        let jobs = FileJobs::new(1);
        let permit = jobs.permit().await;
        let unpolled = jobs.spawn(async { 42 });
        let mut dropped = jobs.spawn(async { unreachable!() });
        tokio::task::yield_now().await;
        drop(permit);
        poll_fn(|cx| Poll::Ready(Pin::new(&mut dropped).poll(cx).is_pending().then_some(()))).await.unwrap();
        drop(dropped);
        assert_eq!(jobs.start(|| 43).await.await.unwrap(), 43);
        assert_eq!(unpolled.await, 42);
    }

    #[tokio::test]
    async fn a_job_that_has_begun_ends() {
        let jobs = FileJobs::new(1);
        let (end, ended) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        drop(jobs.spawn(async move {
            _ = ended.await;
            _ = done.send(());
        }));
        assert!(jobs.try_permit().is_none());
        drop(end);
        is_done.await.unwrap();
        drop(jobs.permit().await);
    }
}
