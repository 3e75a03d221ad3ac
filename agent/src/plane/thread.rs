//! Threads that move data.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};

use super::timers::Timers;

/// Jobs that may wait for one thread. They are control work (attach, detach), a handful at a time.
const JOBS_MAX: usize = 256;

/// How often a thread that is to end looks whether its last tasks have ended.
const LAST_TASKS_INTERVAL: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The pool.
pub struct DataPlane {
    /// The last part is `None` for a thread that is not ours.
    threads: Vec<(ThreadHandle, Option<JoinHandle<()>>)>,
}

/// One thread of the pool, from outside.
#[derive(Clone)]
pub struct ThreadHandle {
    jobs: mpsc::Sender<Job>,
    /// Volumes that live there.
    volumes: Arc<AtomicUsize>,
}

/// The thread has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data plane has stopped")]
pub struct Stopped;

impl DataPlane {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize) -> io::Result<Self> {
        let timers = Arc::new(Timers::start()?);
        let threads = (0..count.max(1))
            .map(|index| start_thread(index, Arc::clone(&timers)))
            .collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// A plane whose only thread is the caller's: its work runs as tasks of the `LocalSet` in which this
    /// is called, and ends with it. For the simulation, where everything shares one clock.
    ///
    /// # Panics
    /// Outside of a `LocalSet`.
    #[must_use]
    pub fn local() -> Self {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        tokio::task::spawn_local(run_jobs(queue));
        let handle = ThreadHandle {
            jobs,
            volumes: Arc::default(),
        };
        Self {
            threads: vec![(handle, None)],
        }
    }

    /// Number of threads.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        self.threads.len()
    }

    /// All of them.
    pub fn threads(&self) -> impl Iterator<Item = &ThreadHandle> {
        self.threads.iter().map(|(handle, _)| handle)
    }

    /// The thread with the fewest volumes, with a place taken on it.
    #[must_use]
    pub fn place(&self) -> Place {
        let least = self
            .threads
            .iter()
            .map(|(handle, _)| handle)
            .min_by_key(|handle| handle.volumes.load(Ordering::Relaxed))
            .expect("there is at least one thread");
        least.volumes.fetch_add(1, Ordering::Relaxed);
        Place {
            thread: least.clone(),
        }
    }

    /// Whether every thread takes work within `limit`.
    pub async fn responds(&self, limit: Duration) -> bool {
        self.stuck_threads(limit).await.is_empty()
    }

    /// Numbers of the threads that did no new work within `limit`: all are asked at once, and each has to
    /// take the question from its queue and answer it between its other tasks. To be called in a runtime.
    pub async fn stuck_threads(&self, limit: Duration) -> Vec<usize> {
        let mut beats = tokio::task::JoinSet::new();
        for (index, (handle, _)) in self.threads.iter().enumerate() {
            let handle = handle.clone();
            beats.spawn(async move {
                let answer = tokio::time::timeout(limit, handle.run(|| async {})).await;
                (!matches!(answer, Ok(Ok(())))).then_some(index)
            });
        }
        let mut stuck: Vec<_> = beats.join_all().await.into_iter().flatten().collect();
        stuck.sort_unstable();
        stuck
    }

    /// Ends the threads once their work is done. Volumes must have been detached or dropped before.
    pub fn stop(self) {
        for (handle, join) in self.threads {
            drop(handle);
            if join.is_some_and(|join| join.join().is_err()) {
                tracing::error!("a data-plane thread had panicked");
            }
        }
    }
}

/// A volume's place on a thread; given back when dropped.
pub struct Place {
    thread: ThreadHandle,
}

impl Place {
    /// The thread.
    #[must_use]
    pub fn thread(&self) -> &ThreadHandle {
        &self.thread
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.thread.volumes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ThreadHandle {
    /// Runs on the thread the future that `make` makes there, and gives its result. The future need
    /// not be `Send`; it goes on when the caller stops waiting.
    ///
    /// # Errors
    /// When the thread has stopped.
    pub async fn run<F, Fut, T>(&self, make: F) -> Result<T, Stopped>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.spawn(move || async move {
            // The caller may have gone; the work was done all the same.
            let _ = sender.send(make().await);
        })
        .await?;
        receiver.await.map_err(|_| Stopped)
    }

    /// Starts on the thread the future that `make` makes there, as a task of its own.
    ///
    /// # Errors
    /// When the thread has stopped.
    pub async fn spawn<F, Fut>(&self, make: F) -> Result<(), Stopped>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let job: Job = Box::new(move || Box::pin(make()));
        self.jobs.send(job).await.map_err(|_| Stopped)
    }
}

async fn run_jobs(mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.recv().await {
        tokio::task::spawn_local(job());
    }
}

/// As [`run_jobs`]; ends when every task has ended too.
async fn run_all(queue: mpsc::Receiver<Job>) {
    run_jobs(queue).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    while metrics.num_alive_tasks() > 0 {
        tokio::time::sleep(LAST_TASKS_INTERVAL).await;
    }
}

fn start_thread(
    index: usize,
    timers: Arc<Timers>,
) -> io::Result<(ThreadHandle, Option<JoinHandle<()>>)> {
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let (made, outcome) = std::sync::mpsc::sync_channel(1);
    let join = std::thread::Builder::new()
        .name(format!("berth-data-{index}"))
        .spawn(move || {
            timers.serve_this_thread();
            // It cannot leave the thread, so it is made here.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    let _ = made.send(Ok(()));
                    runtime.block_on(run_all(queue));
                }
                Err(error) => {
                    let _ = made.send(Err(error));
                }
            }
        })?;
    outcome.recv().map_err(io::Error::other)??;
    Ok((
        ThreadHandle {
            jobs,
            volumes: Arc::default(),
        },
        Some(join),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use tokio::task::LocalSet;

    #[tokio::test]
    async fn work_that_is_not_send_runs_on_one_thread() {
        let plane = DataPlane::start(2).expect("starts");
        let (a, b) = (plane.place(), plane.place());
        let name = || async {
            let local = Rc::new(std::thread::current().name().map(str::to_owned));
            tokio::task::yield_now().await;
            Option::clone(&local)
        };
        let first = a.thread().run(name).await.expect("runs");
        let second = b.thread().run(name).await.expect("runs");
        assert_ne!(first, second, "places are spread");
        drop((a, b));
        plane.stop();
    }

    #[tokio::test]
    async fn a_local_plane_is_the_thread_it_was_made_on() {
        let here = std::thread::current().id();
        let local = LocalSet::new();
        let there = local.run_until(async {
            let plane = DataPlane::local();
            assert_eq!(plane.thread_count(), 1);
            let place = plane.place();
            place
                .thread()
                .run(|| async { std::thread::current().id() })
                .await
        });
        assert_eq!(there.await, Ok(here));
    }

    #[tokio::test]
    async fn a_place_that_was_given_back_is_used_again() {
        let plane = DataPlane::start(2).expect("starts");
        let (a, _b) = (plane.place(), plane.place());
        let volumes = Arc::clone(&a.thread().volumes);
        drop(a);
        let again = plane.place();
        assert!(Arc::ptr_eq(&volumes, &again.thread().volumes));
        drop((again, _b));
        plane.stop();
    }
}
