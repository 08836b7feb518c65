//! Names that one host serves at a time, of those in this process that stand by for them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_lattice::StandBy;
use tokio::time::timeout;

use crate::support::{LONG, Probe, Shared, TestHost, host, id, server, until_told, within};

/// Longer than it takes to see that a name is free, and to serve it.
const A_WHILE: Duration = Duration::from_secs(1);

struct Standing {
    handle: StandBy,
    shared: Shared,
    /// How often an actor was to be spawned.
    spawned: Arc<AtomicUsize>,
}

impl Standing {
    fn by(host: &TestHost) -> Self {
        let (spec, shared) = Probe::spec("alone");
        let (system, spawned) = (host.system.clone(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&spawned);
        let handle = host.lattice.stand_by(id("alone"), move |_, fence| {
            counted.fetch_add(1, Ordering::SeqCst);
            let (system, spec) = (system.clone(), spec.clone().with_fence(fence));
            async move { system.spawn_native(spec).await }
        });
        Self { handle, shared, spawned }
    }

    async fn serves(&mut self) {
        within(self.handle.serving()).await.unwrap();
    }

    async fn does_not_serve(&mut self) {
        assert!(timeout(A_WHILE, self.handle.serving()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_leaves_gives_a_name_to_another_when_its_actor_has_ended_and_not_before() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    let mut of_b = Standing::by(&b);
    of_b.serves().await;
    let mut of_c = Standing::by(&c);
    a.knows("alone").await;
    let recipient = a.lattice.recipient(id("alone"));
    let asked = tokio::spawn(async move { recipient.ask("wait").await });
    until_told(async || of_b.shared.handled() == "wait").await;
    let leaving = tokio::spawn(b.lattice.leave(LONG));
    of_c.does_not_serve().await;
    of_b.shared.gate.add_permits(1);
    assert_eq!(within(asked).await.unwrap().unwrap(), "waited");
    of_c.serves().await;
    within(leaving).await.unwrap();
    until_told(async || a.ask("alone", "x").await.is_ok()).await;
    assert_eq!(of_c.shared.handled(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_served_here_is_not_taken_from_who_serves_it() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let (actor, _) = b.export("alone").await;
    a.knows("alone").await;
    let mut first = Standing::by(&b);
    first.does_not_serve().await;
    assert_eq!(a.ask("alone", "x").await.unwrap(), "x");
    // The control.
    actor.kill();
    within(actor.ended()).await;
    first.serves().await;
    let mut second = Standing::by(&b);
    second.does_not_serve().await;
    until_told(async || a.ask("alone", "y").await.is_ok()).await;
    assert_eq!((first.shared.handled(), second.spawned.load(Ordering::SeqCst)), ("y".to_owned(), 0));
    // It is given up by who stands by for it alone.
    assert!(!within(b.lattice.withdraw(&id("alone"))).await.unwrap());
    assert_eq!(a.ask("alone", "z").await.unwrap(), "z");
    drop(first.handle);
    second.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_while_the_actor_is_spawned_is_a_failure_like_another() {
    let server = server();
    let a = host(&server, "a").await;
    let (spec, shared) = Probe::spec("alone");
    let (system, spawned) = (a.system.clone(), AtomicUsize::new(0));
    let mut handle = a.lattice.stand_by(id("alone"), move |_, fence| {
        let first = spawned.fetch_add(1, Ordering::SeqCst) == 0;
        let (system, spec) = (system.clone(), spec.clone().with_fence(fence));
        async move {
            assert!(!first, "told to panic");
            system.spawn_native(spec).await
        }
    });
    within(handle.serving()).await.unwrap();
    assert_eq!(a.ask("alone", "x").await.unwrap(), "x");
    assert_eq!(shared.handled(), "x");
}
