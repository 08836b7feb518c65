//! What a component does to the requests of another.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use airssys_wasm_harness::{Reading, Suite};
use airssys_wasm_limits::ResourceLimits;
use airssys_wasm_twins::web::{Connection, Question, WEB, client_runtime, native, runtime};
use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use super::ours::{component, limits, serve};

pub(super) fn describe(suite: &mut Suite) {
    suite.reading("http/neighbour", neighbour);
}

/// What the neighbour is asked for, over and over.
const NEIGHBOURS: [(&str, Option<&str>); 4] =
    [("alone", None), ("spins", Some("/spin")), ("floods", Some("/flood")), ("crashes", Some("/trap"))];

/// The 99th percentile of requests to a healthy component, a thousand a second, beside each kind of neighbour, and of requests
/// to code of the host beside code of the host that floods. In rounds, so that drift of the machine hits all of them.
fn neighbour(quick: bool) -> anyhow::Result<Vec<Reading>> {
    let (rounds, requests) = if quick { (2, 200) } else { (4, 500) };
    let mut latencies = NEIGHBOURS.map(|_| Histogram::<u64>::new(3).unwrap());
    let mut raw = Histogram::<u64>::new(3).unwrap();
    for _ in 0..rounds {
        for ((_, order), latencies) in NEIGHBOURS.iter().zip(&mut latencies) {
            latencies.add(beside(components, *order, requests))?;
        }
        raw.add(beside(native, Some("/flood"), requests))?;
    }
    let reading = |id, p99, target| Reading { id, unit: "ns", values: vec![p99], target };
    let p99 = latencies.map(|latencies| latencies.value_at_quantile(0.99) as f64);
    let mut readings: Vec<_> = NEIGHBOURS
        .iter()
        .zip(p99)
        .map(|((name, order), value)| {
            let target = order.map(|_| ("goal: 3 × alone", 3.0 * p99[0]));
            reading(format!("http/neighbour/{name}/p99"), value, target)
        })
        .collect();
    readings.push(reading("raw/http/neighbour/floods/p99".to_owned(), raw.value_at_quantile(0.99) as f64, None));
    Ok(readings)
}

/// Both components behind our server.
async fn components() -> SocketAddr {
    let limits = ResourceLimits { cpu_time: Duration::from_secs(5), ..limits() };
    serve([
        ("healthy.test", component("healthy", &WEB, limits.clone(), None)),
        ("hostile.test", component("hostile", &WEB, limits, None)),
    ])
    .await
}

/// One server with both neighbours on two workers; each of them has clients on a thread of its own.
fn beside<F: Future<Output = SocketAddr>>(
    serve: fn() -> F,
    order: Option<&'static str>,
    requests: u64,
) -> Histogram<u64> {
    let runtime = runtime();
    let server = runtime.block_on(serve());
    let over = Arc::new(AtomicBool::new(false));
    let hostile = order.map(|order| {
        let (over, question) = (Arc::clone(&over), Question::any(order).to("hostile.test"));
        thread::spawn(move || client_runtime().block_on(again_and_again(server, &question, &over)))
    });
    let latencies = client_runtime().block_on(paced(server, Question::hello().to("healthy.test"), requests));
    over.store(true, Ordering::Relaxed);
    // With it, what the clients still wait for.
    runtime.shutdown_background();
    if let Some(hostile) = hostile {
        hostile.join().unwrap();
    }
    assert_eq!(latencies.len(), requests);
    latencies
}

async fn again_and_again(server: SocketAddr, question: &Question, over: &AtomicBool) {
    let mut connection = Connection::open(server).await;
    while !over.load(Ordering::Relaxed) {
        if connection.ask(question).await.is_err() && !over.load(Ordering::Relaxed) {
            connection = Connection::open(server).await;
        }
    }
}

/// Asks once a millisecond, whether or not there are answers, on a connection that is free. When the thread awakes is the
/// system's business, and no part of a latency.
async fn paced(server: SocketAddr, question: Question, requests: u64) -> Histogram<u64> {
    const OPEN: usize = 32;
    let mut open = Vec::with_capacity(OPEN);
    for _ in 0..OPEN {
        let mut connection = Connection::open(server).await;
        connection.ask(&question).await.unwrap();
        open.push(connection);
    }
    let idle = Arc::new(Mutex::new(open));
    let (latencies, mut taken) = mpsc::unbounded_channel();
    let began = tokio::time::Instant::now();
    for n in 0..requests {
        tokio::time::sleep_until(began + Duration::from_millis(n)).await;
        let (idle, question, latencies) = (Arc::clone(&idle), question.clone(), latencies.clone());
        let sent = Instant::now();
        tokio::spawn(async move {
            let free = idle.lock().unwrap().pop();
            let mut connection = match free {
                Some(connection) => connection,
                None => Connection::open(server).await,
            };
            connection.ask(&question).await.unwrap();
            _ = latencies.send(sent.elapsed());
            idle.lock().unwrap().push(connection);
        });
    }
    mem::drop(latencies);
    let mut histogram = Histogram::new(3).unwrap();
    while let Some(latency) = taken.recv().await {
        histogram.record(latency.as_nanos() as u64).unwrap();
    }
    histogram
}
