//! What clients do: with the twins here, and with our actors in the suite.
//!
//! On one worker all runs on one thread; on two, the client is a task among the others.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use airssys_wasm_harness::Measure;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    actors::{COUNTER, COUNTER_V2, ECHO, Guest},
    receivers::{CRASH, Kameo, Plain, Ractor, RactorSupervised, Receiver},
};

/// The runtime of a benchmark.
#[derive(Clone, Copy)]
pub enum Workers {
    /// All on one thread.
    One,
    /// The client is a task among the others.
    Two,
}

impl Workers {
    /// As ids have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one_worker",
            Self::Two => "two_workers",
        }
    }

    /// Such a runtime, with timers.
    pub fn runtime(self) -> Runtime {
        match self {
            Self::One => airssys_wasm_harness::runtime(),
            Self::Two => Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap(),
        }
    }
}

/// A payload that costs nothing to pass on.
pub fn payload(bytes: usize) -> Bytes {
    static LARGEST: [u8; 64 << 10] = [b'x'; 64 << 10];
    Bytes::from_static(&LARGEST[..bytes])
}

/// Times what a client does so many times, as a task of its own.
pub fn client<R: Receiver, F: Future<Output = ()> + Send + 'static>(
    workers: Workers,
    receiver: impl Future<Output = R>,
    run: impl Fn(R, u64) -> F + 'static,
) -> Measure {
    let runtime = workers.runtime();
    let receiver = runtime.block_on(receiver);
    Box::new(move |iterations| {
        let work = run(receiver.clone(), iterations);
        let timed = async {
            let started = Instant::now();
            work.await;
            started.elapsed()
        };
        as_task(&runtime, timed)
    })
}

/// What a client does, over and over.
#[derive(Clone, Copy)]
pub enum Work {
    /// One ask after the other.
    Asks,
    /// Messages that nobody answers, and after so many of them one that is answered when all of them are done with: the time
    /// a message, from the client's hand until it is done with.
    Tells,
}

impl Work {
    /// Times it with a receiver and a payload of that many bytes.
    pub fn measure<R: Receiver>(self, workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure {
        match self {
            Self::Asks => asks(workers, receiver, bytes),
            Self::Tells => tells(workers, receiver, bytes),
        }
    }
}

fn asks<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure {
    let payload = payload(bytes);
    client(workers, receiver, move |receiver, iterations| {
        let payload = payload.clone();
        async move {
            for _ in 0..iterations {
                let answer = receiver.ask(payload.clone()).await.expect("it lives");
                assert_eq!(answer.len(), payload.len());
            }
        }
    })
}

const BURST: u64 = 256;

fn tells<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>, bytes: usize) -> Measure {
    let payload = payload(bytes);
    client(workers, receiver, move |receiver, iterations| {
        let payload = payload.clone();
        async move {
            let mut left = iterations;
            while left > 0 {
                let now = left.min(BURST);
                left -= now;
                for _ in 1..now {
                    receiver.tell(payload.clone()).await;
                }
                receiver.ask(payload.clone()).await.expect("it lives");
            }
        }
    })
}

/// Runs something as a task among the others.
pub fn as_task<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(work).await.unwrap() })
}

/// That many at a time are spawned, so that instances come out of a pool that was used before.
pub const BATCH: u64 = 100;

/// Times spawning. What it takes is prepared before, and what came of it ended, outside the time.
pub fn spawns<P, T, S, E>(
    workers: Workers,
    prepare: impl Fn(u64) -> P + 'static,
    spawn: impl Fn(P) -> S + Clone + Send + 'static,
    end: impl Fn(T) -> E + Copy + Send + 'static,
) -> Measure
where
    P: Send + 'static,
    T: Send + 'static,
    S: Future<Output = T> + Send,
    E: Future + Send,
{
    let runtime = workers.runtime();
    Box::new(move |mut iterations| {
        let mut taken = Duration::ZERO;
        while iterations > 0 {
            let batch = iterations.min(BATCH);
            iterations -= batch;
            let prepared: Vec<P> = (0..batch).map(&prepare).collect();
            let spawn = spawn.clone();
            let work = async move {
                let mut live = Vec::with_capacity(prepared.len());
                let started = Instant::now();
                for one in prepared {
                    live.push(spawn(one).await);
                }
                let taken = started.elapsed();
                for one in live {
                    end(one).await;
                }
                taken
            };
            taken += as_task(&runtime, work);
        }
        taken
    })
}

/// A message that crashes its receiver, and one that the next incarnation answers: all of the crash, what it takes to be
/// there again, and an answer.
pub fn restarts<R: Receiver>(workers: Workers, receiver: impl Future<Output = R>) -> Measure {
    let healthy = payload(64);
    client(workers, receiver, move |receiver, iterations| {
        let healthy = healthy.clone();
        async move {
            for _ in 0..iterations {
                assert!(receiver.ask(CRASH).await.is_none());
                receiver.ask(healthy.clone()).await.unwrap();
            }
        }
    })
}

/// Who does the same as our actors.
#[derive(Clone, Copy)]
pub enum Twin {
    /// A task that owns a channel and a guest on bare wasmtime.
    PlainGuest,
    /// The same with a handler of the host.
    PlainNative,
    /// An actor of kameo.
    Kameo,
    /// An actor of ractor.
    Ractor,
}

impl Twin {
    /// Times work with it.
    pub fn measure(self, work: Work, workers: Workers, bytes: usize) -> Measure {
        match self {
            Self::PlainGuest => work.measure(workers, plain_guest(), bytes),
            Self::PlainNative => work.measure(workers, async { Plain::native().0 }, bytes),
            Self::Kameo => work.measure(workers, Kameo::spawn(), bytes),
            Self::Ractor => work.measure(workers, async { Ractor::spawn().await.0 }, bytes),
        }
    }

    /// Times making it; ended it is outside the time, after one ask.
    pub fn spawns(self, workers: Workers) -> Measure {
        match self {
            Self::PlainGuest => spawns(workers, |_| (), |()| Plain::guest(&ECHO), finished),
            Self::PlainNative => spawns(workers, |_| (), async |()| Plain::native(), finished),
            Self::Kameo => spawns(
                workers,
                |_| (),
                |()| Kameo::spawn(),
                async |kameo: Kameo| {
                    kameo.actor.kill();
                    kameo.actor.wait_for_shutdown().await;
                },
            ),
            Self::Ractor => spawns(
                workers,
                |_| (),
                |()| Ractor::spawn(),
                async |(Ractor(actor), task)| {
                    actor.kill();
                    task.await.expect("it was killed");
                },
            ),
        }
    }

    /// Times [`restarts`] of it.
    pub fn restarts(self, workers: Workers) -> Measure {
        match self {
            Self::PlainGuest => restarts(workers, async { Plain::guest(&COUNTER).await.0 }),
            Self::PlainNative => restarts(workers, async { Plain::native().0 }),
            Self::Kameo => restarts(workers, Kameo::supervised()),
            Self::Ractor => restarts(workers, RactorSupervised::spawn()),
        }
    }

    /// Latencies at a fixed rate; see [`OpenLoop`].
    pub fn latencies(self, rate: u32, length: Duration) -> Histogram<u64> {
        match self {
            Self::PlainGuest => OpenLoop::new(plain_guest()).run(rate, length),
            Self::PlainNative => OpenLoop::new(async { Plain::native().0 }).run(rate, length),
            Self::Kameo => OpenLoop::new(Kameo::spawn()).run(rate, length),
            Self::Ractor => OpenLoop::new(async { Ractor::spawn().await.0 }).run(rate, length),
        }
    }
}

/// [`Work::Asks`] of a task whose guest is called without a fiber.
pub fn asks_without_fiber(workers: Workers) -> Measure {
    Work::Asks.measure(workers, async { Plain::guest_without_fiber(&ECHO) }, 64)
}

/// [`Work::Tells`] to a task whose channel has items as large as a delivery to one of our actors.
pub fn tells_of_96_bytes(workers: Workers) -> Measure {
    Work::Tells.measure(workers, async { Plain::native_of_96_bytes() }, 64)
}

/// [`Work::Asks`] of a task with this guest.
pub fn asks_of(guest: &'static Guest) -> Measure {
    Work::Asks.measure(Workers::One, async { Plain::guest(guest).await.0 }, 64)
}

async fn plain_guest() -> Plain {
    Plain::guest(&ECHO).await.0
}

async fn finished((plain, task): (Plain, JoinHandle<()>)) {
    plain.ask(payload(64)).await.unwrap();
    drop(plain);
    task.await.unwrap();
}

/// Times what a crash takes on a bare engine: the trap, and freeing what the guest had.
pub fn bare_crashes(workers: Workers) -> Measure {
    let runtime = workers.runtime();
    Box::new(move |iterations| {
        runtime.block_on(async {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                let mut guest = COUNTER.instantiate().await;
                let started = Instant::now();
                guest.handle(CRASH, true).await.unwrap_err();
                drop(guest);
                taken += started.elapsed();
            }
            taken
        })
    })
}

/// Times going from one version of a guest to another and back on a bare engine, each time with what the guest knows.
pub fn bare_upgrades(workers: Workers) -> Measure {
    let runtime = workers.runtime();
    let (to, mut orders) = mpsc::channel::<oneshot::Sender<()>>(1);
    let versions = [&*COUNTER_V2, &*COUNTER].map(|guest: &'static Guest| {
        let state = |name| guest.export(&format!("airssys:actor/state@0.1.0#{name}"));
        (guest, state("snapshot"), state("restore"))
    });
    runtime.spawn(async move {
        let mut live = COUNTER.instantiate().await;
        let mut snapshot = &versions[1].1;
        for (guest, next_snapshot, restore) in versions.iter().cycle() {
            let Some(done) = orders.recv().await else { return };
            let (state,): (Result<Bytes, String>,) = live.call(snapshot, ()).await;
            (live, snapshot) = (guest.instantiate().await, next_snapshot);
            let (restored,): (Result<(), String>,) = live.call(restore, (state.unwrap(),)).await;
            restored.unwrap();
            done.send(()).unwrap();
        }
    });
    Box::new(move |iterations| {
        let to = to.clone();
        let timed = async move {
            let started = Instant::now();
            for _ in 0..iterations {
                let (done, finished) = oneshot::channel();
                to.send(done).await.unwrap();
                finished.await.unwrap();
            }
            started.elapsed()
        };
        as_task(&runtime, timed)
    })
}

/// [`through`] tasks around guests on bare wasmtime.
pub fn through_plain() -> Measure {
    through(async {
        let mut receivers = Vec::new();
        for _ in 0..RECEIVERS {
            receivers.push(plain_guest().await);
        }
        receivers
    })
}

/// How many of them there are.
pub const RECEIVERS: usize = 16;

/// Two clients, each of which keeps half of the receivers busy.
pub fn through<R: Receiver>(receivers: impl Future<Output = Vec<R>>) -> Measure {
    let runtime = Workers::Two.runtime();
    let receivers: Arc<[R]> = runtime.block_on(receivers).into();
    Box::new(move |iterations| {
        let started = Instant::now();
        runtime.block_on(all_told(&receivers, iterations));
        started.elapsed()
    })
}

/// Tells the receivers in turn, by two clients, and waits until all is done with: the last message to each is an ask.
pub async fn all_told<R: Receiver>(receivers: &Arc<[R]>, messages: u64) {
    let payload = payload(64);
    let share = messages as usize / 2;
    let clients = [(0, share), (receivers.len() / 2, messages as usize - share)].map(|(from, messages)| {
        let (receivers, payload) = (Arc::clone(receivers), payload.clone());
        tokio::spawn(async move {
            let mine = &receivers[from..from + receivers.len() / 2];
            let asks = mine.len().min(messages);
            for receiver in mine.iter().cycle().take(messages - asks) {
                receiver.tell(payload.clone()).await;
            }
            for receiver in &mine[..asks] {
                receiver.ask(payload.clone()).await.unwrap();
            }
        })
    });
    for client in clients {
        client.await.unwrap();
    }
}

/// Asks at a fixed rate whether or not there are answers, from a thread of its own, while the receiver has another. Each
/// latency counts from when its ask was due, so that one that comes late counts as waiting: nothing is omitted that would
/// have to be corrected.
pub struct OpenLoop<R> {
    receiver: R,
    client: Runtime,
    _worker: Runtime,
}

impl<R: Receiver> OpenLoop<R> {
    /// With a receiver made on its thread.
    pub fn new(receiver: impl Future<Output = R>) -> Self {
        let worker = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        Self { receiver: worker.block_on(receiver), client: airssys_wasm_harness::runtime(), _worker: worker }
    }

    /// So many asks a second, for so long.
    pub fn run(&mut self, rate: u32, length: Duration) -> Histogram<u64> {
        let (payload, period) = (payload(64), Duration::from_secs(1) / rate);
        let latencies = Arc::new(Mutex::new(Histogram::new(3).unwrap()));
        self.client.block_on(async {
            let mut due = Instant::now();
            let mut asks = Vec::new();
            let end = due + length;
            while due < end {
                // It takes the answers meanwhile. A timer would be a millisecond late.
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                let (receiver, payload, latencies) = (self.receiver.clone(), payload.clone(), Arc::clone(&latencies));
                asks.push(tokio::spawn(async move {
                    receiver.ask(payload).await.unwrap();
                    latencies.lock().unwrap().record(due.elapsed().as_nanos() as u64).unwrap();
                }));
                due += period;
            }
            for ask in asks {
                ask.await.unwrap();
            }
        });
        Arc::into_inner(latencies).unwrap().into_inner().unwrap()
    }
}
