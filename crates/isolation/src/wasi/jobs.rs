//! How many blocking threads the files of some sandboxes may use at a time.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

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

    pub(crate) async fn permit(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0).acquire_owned().await.expect("never closed")
    }

    /// A permit, if one is free.
    pub(super) fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
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
}
