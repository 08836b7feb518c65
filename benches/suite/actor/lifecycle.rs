//! Spawning, restarting after a crash, and changing the version.

use airssys_wasm_actor::{ActorRef, UpgradeOptions};
use std::time::Instant;

use airssys_wasm_harness::{Measure, Suite};
use airssys_wasm_twins::{
    actors::{COUNTER, COUNTER_V2, ECHO, Guest},
    bare::engine,
    work::{self, Twin, Workers, as_task, payload, restarts, spawns},
};

use super::ours::{Ours, native_spec, sandbox, spec, system};
use crate::guests;

fn guests_spawned(workers: Workers, guest: &'static Guest) -> Measure {
    let system = system(engine());
    let sandbox = sandbox(guest, &system, guests::limits());
    spawns(
        workers,
        move |n| (system.clone(), spec(&format!("guest-{n}"), &sandbox)),
        async |(system, spec)| system.spawn(spec).await.unwrap(),
        killed,
    )
}

/// Asked before it is ended: what a guest has touched is what the next one in its place has to be rid of.
async fn killed(actor: ActorRef) {
    actor.ask(payload(64)).await.unwrap();
    actor.kill();
    actor.ended().await;
}

pub(super) fn spawn(suite: &mut Suite, workers: Workers) {
    let native = format!("actor/spawn/native/{}", workers.name());
    suite.bench(&format!("actor/spawn/guest/{}", workers.name()), move || guests_spawned(workers, &ECHO)).twin(
        "raw",
        1.2,
        move || Twin::PlainGuest.spawns(workers),
    );
    suite
        .bench(&native, move || {
            let system = system(engine());
            spawns(
                workers,
                move |n| (system.clone(), native_spec(&format!("native-{n}"))),
                async |(system, spec)| system.spawn_native(spec).await.unwrap(),
                killed,
            )
        })
        .twin("raw", None, move || Twin::PlainNative.spawns(workers))
        .twin("peer/kameo", None, move || Twin::Kameo.spawns(workers))
        .twin("peer/ractor", None, move || Twin::Ractor.spawns(workers));
}

pub(super) fn restart(suite: &mut Suite, workers: Workers) {
    let of = |what: &str| format!("actor/restart/{what}/{}", workers.name());
    let (guest, crash, restart, spawn) = (of("guest"), format!("raw/{}", of("crash")), of("after_crash"), of("spawn"));
    suite
        .bench(&guest, move || restarts(workers, Ours::guest(&COUNTER)))
        .twin("raw", None, move || Twin::PlainGuest.restarts(workers))
        .and(&crash, move || work::bare_crashes(workers))
        .and(&spawn, move || guests_spawned(workers, &COUNTER))
        // The trap, and freeing what the guest had, would be there without a restart.
        .difference(&restart, &guest, &crash, None)
        .ratio(&restart, &spawn, 3.0);
    suite
        .bench(&format!("actor/restart/native/{}", workers.name()), move || restarts(workers, Ours::native()))
        .twin("raw", None, move || Twin::PlainNative.restarts(workers))
        .twin("peer/kameo", None, move || Twin::Kameo.restarts(workers))
        .twin("peer/ractor", None, move || Twin::Ractor.restarts(workers));
}

/// From one version to another and back, each time with what the guest knows.
pub(super) fn upgrade(suite: &mut Suite, workers: Workers) {
    suite
        .bench(&format!("actor/upgrade/guest/{}", workers.name()), move || {
            let runtime = workers.runtime();
            let Ours { system, actor } = runtime.block_on(Ours::guest(&COUNTER));
            let versions = [&COUNTER_V2, &COUNTER].map(|guest| sandbox(guest, &system, guests::limits()));
            Box::new(move |iterations| {
                let (system, actor, versions) = (system.clone(), actor.clone(), versions.clone());
                let timed = async move {
                    let started = Instant::now();
                    for version in versions.iter().cycle().take(iterations as usize) {
                        let options = UpgradeOptions::default();
                        system.upgrade(actor.address(), version.clone(), options).await.unwrap();
                    }
                    started.elapsed()
                };
                as_task(&runtime, timed)
            })
        })
        .twin("raw", None, move || work::bare_upgrades(workers));
}
