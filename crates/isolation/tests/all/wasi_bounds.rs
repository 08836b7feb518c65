//! What a call of WASI may cost the host, whatever the guest asks for.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use airssys_wasm_fixtures::{HOST_NAME, POLL, RANDOM};
use airssys_wasm_isolation::{CrashKind, WasiGrants};
use airssys_wasm_limits::{LimitExceeded, ResourceLimits};

use crate::{Host, limits, spec};

/// How often another task of the worker has its turn while the guest gets so many random bytes.
async fn turns_during_random_bytes(bytes: u64) -> u64 {
    let spec = spec(RANDOM, limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let get = sandbox.typed::<(u64,), ()>(&spec.export("get").unwrap()).unwrap();
    let turns = Arc::new(AtomicU64::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let outcome = sandbox.call(&get, (bytes,)).await;
    let turns = turns.load(Ordering::Relaxed);
    other.abort();
    outcome.unwrap();
    turns
}

#[tokio::test]
async fn many_random_bytes_give_way_to_other_tasks() {
    assert_eq!(turns_during_random_bytes(64 << 10).await, 0, "so many are made at once");
    let turns = turns_during_random_bytes(1 << 20).await;
    assert_eq!(turns, 15, "one between two slices of 64 KiB");
}

#[tokio::test]
async fn too_many_random_bytes_say_which_limit_they_are_beyond() {
    let spec = spec(RANDOM, limits());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let get = sandbox.typed::<(u64,), ()>(&spec.export("get").unwrap()).unwrap();
    let allowed = limits().host_call_bytes.as_u64();
    let (_, sandbox) = sandbox.call(&get, (allowed,)).await.unwrap();
    let crash = sandbox.call(&get, (u64::MAX,)).await.unwrap_err();
    let exceeded = crash.host_error().unwrap().downcast_ref::<LimitExceeded>();
    assert_eq!(exceeded, Some(&LimitExceeded::HostCallBytes { asked: u64::MAX, allowed }));
}

#[tokio::test]
async fn a_poll_names_no_more_pollables_than_there_may_be_handles() {
    // wasmtime counts a handle that is lent as one more. The first is the pollable itself.
    for (pollables, fits) in [(99, true), (100, false), (60_000, false)] {
        let spec = spec(POLL, ResourceLimits { handles: 100, ..limits() });
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let poll = sandbox.typed::<(u32,), (u32,)>(&spec.export("poll").unwrap()).unwrap();
        match sandbox.call(&poll, (pollables,)).await {
            Ok(((ready,), _)) => assert!(fits && ready == pollables),
            Err(crash) => assert!(!fits && matches!(crash.kind(), CrashKind::HostCall { .. }), "{crash}"),
        }
    }
}

#[tokio::test]
async fn a_host_name_is_looked_up_and_waited_for_if_that_is_granted() {
    const PERMANENT_RESOLVER_FAILURE: u32 = 20;
    for name_lookup in [true, false] {
        let spec = spec(HOST_NAME, limits()).with_wasi(WasiGrants { name_lookup, ..WasiGrants::default() });
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let localhost = sandbox.typed::<(), (u32,)>(&spec.export("localhost").unwrap()).unwrap();
        let ((answer,), _) = sandbox.call(&localhost, ()).await.unwrap();
        match name_lookup {
            true => assert!(answer > 256 && answer & 0xff == 255, "{answer}"),
            false => assert_eq!(answer, PERMANENT_RESOLVER_FAILURE),
        }
    }
}

#[tokio::test]
async fn a_host_name_is_only_parsed_if_it_can_be_one() {
    const INVALID_ARGUMENT: u32 = 3;
    const PERMANENT_RESOLVER_FAILURE: u32 = 20;
    // Without the grant each name that is looked at fails for good, and nobody is asked.
    let spec = spec(HOST_NAME, limits()).with_wasi(WasiGrants::default());
    let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
    let look_up = sandbox.typed::<(u32,), (u32,)>(&spec.export("look-up").unwrap()).unwrap();
    for (letters, error) in [(253, PERMANENT_RESOLVER_FAILURE), (254, INVALID_ARGUMENT), (60_000, INVALID_ARGUMENT)] {
        let (answer, back) = sandbox.call(&look_up, (letters,)).await.unwrap();
        assert_eq!(answer, (error,), "{letters} letters");
        sandbox = back;
    }
}
