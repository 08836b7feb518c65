//! Imports of guests that lead to actors of other hosts.

use std::{sync::LazyLock, time::Duration};

use airssys_wasm_actor::{
    ActorExport, ActorRef, ActorSpec, ActorSystem, Backoff, Bytes,
    CallError::{self, NotSent},
    ContractKind, LinkFault, Links, RestartPolicy,
    engine::{LoadedComponent, Profile},
    isolation::SandboxSpec,
    limits::{ByteSize, ResourceLimits},
    registry::Refusal,
};
use airssys_wasm_fixtures::{CLERK, KV};
use airssys_wasm_keyed::{KeyedOptions, KeyedSpec};
use airssys_wasm_lattice::{BucketConfig, JetStreamStore, Lattice, async_nats};

use crate::{
    failures::Asker,
    kinds::keys,
    processes::{HostProcess, Settings},
    support::{ENGINE, LONG, TestHost, config, host, id, join, seen_by_server, server, until, until_told, within},
    versions::{OLDEST, of_version, versions},
};

pub(crate) const STORE: &str = "acme:kv/store@1.0.0";
const SUM: &str = "test:far/sum@1.0.0";

/// Exports `add: func(n: u32) -> result<u32, string>` of `test:far/sum@1.0.0`, which gives the sum so far, and keeps it. It never
/// comes back from 9, and traps at 13.
const SUMS: &str = r#"(component
    (core module $m
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "add") (param $n i32) (result i32)
            (if (i32.eq (local.get $n) (i32.const 13)) (then unreachable))
            (loop $on (br_if $on (i32.eq (local.get $n) (i32.const 9))))
            (i32.store (i32.const 512) (i32.add (i32.load (i32.const 512)) (local.get $n)))
            (i32.store (i32.const 4) (i32.load (i32.const 512)))
            (i32.const 0))
        (func (export "snapshot") (result i32)
            (i32.store (i32.const 20) (i32.const 512))
            (i32.store (i32.const 24) (i32.const 4))
            (i32.const 16))
        (func (export "restore") (param $state i32) (param $size i32) (result i32)
            (i32.store (i32.const 512) (i32.load (local.get $state)))
            (i32.const 32)))
    (core instance $i (instantiate $m))
    (func $add (param "n" u32) (result (result u32 (error string)))
        (canon lift (core func $i "add") (memory (core memory $i "memory"))))
    (instance $sum (export "add" (func $add)))
    (export "test:far/sum@1.0.0" (instance $sum))
    (func $snapshot (result (result (list u8) (error string)))
        (canon lift (core func $i "snapshot") (memory (core memory $i "memory"))))
    (func $restore (param "state" (list u8)) (result (result (error string)))
        (canon lift (core func $i "restore") (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
    (instance $state (export "snapshot" (func $snapshot)) (export "restore" (func $restore)))
    (export "airssys:actor/state@0.1.0" (instance $state)))"#;

/// Imports it, and exports the same by calling it.
const RELAY: &str = r#"(component
    (import "test:far/sum@1.0.0" (instance $far
        (export "add" (func (param "n" u32) (result (result u32 (error string)))))))
    (core module $memory (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $add (canon lower (func $far "add") (memory $mem) (realloc $realloc)))
    (core module $m
        (import "" "add" (func $add (param i32 i32)))
        (func (export "add") (param i32) (result i32)
            (call $add (local.get 0) (i32.const 64))
            (i32.const 64)))
    (core instance $i (instantiate $m (with "" (instance (export "add" (func $add))))))
    (func $relayed (param "n" u32) (result (result u32 (error string)))
        (canon lift (core func $i "add") (memory $mem)))
    (instance $sum (export "add" (func $relayed)))
    (export "test:far/sum@1.0.0" (instance $sum)))"#;

static SUMMING: LazyLock<LoadedComponent> = LazyLock::new(|| loaded(SUMS));
static RELAYING: LazyLock<LoadedComponent> = LazyLock::new(|| loaded(RELAY));
static STORING: LazyLock<LoadedComponent> = LazyLock::new(|| ENGINE.load_blocking(KV, Profile::Plain).unwrap());

fn loaded(wat: &str) -> LoadedComponent {
    ENGINE.load_wat_blocking(wat, Profile::Plain).unwrap()
}

pub(crate) fn limits() -> ResourceLimits {
    ResourceLimits { cpu_time: LONG, deadline: LONG, ..ResourceLimits::with_memory(ByteSize::mib(16)) }
}

/// An actor that is called, with these links.
fn called(
    system: &ActorSystem,
    name: &str,
    component: &LoadedComponent,
    links: Links,
    limits: ResourceLimits,
) -> ActorSpec {
    let sandbox = SandboxSpec::new(system.link_with(component, &links).unwrap(), limits).unwrap();
    let restart = RestartPolicy { backoff: Backoff::NONE, ..RestartPolicy::default() };
    ActorSpec::new(id(name), sandbox).with_contract(ContractKind::Exports).with_links(links).with_restart(restart)
}

async fn spawn(host: &TestHost, name: &str, component: &LoadedComponent, links: Links) -> ActorRef {
    host.system.spawn(called(&host.system, name, component, links, limits())).await.unwrap()
}

/// An actor that is called, exported and, of these interfaces, offered.
async fn offering(
    system: &ActorSystem,
    lattice: &Lattice,
    name: &str,
    component: &LoadedComponent,
    interfaces: &[&str],
) -> ActorRef {
    let actor = system.spawn(called(system, name, component, Links::default(), limits())).await.unwrap();
    lattice.offer(&id(name), interfaces.iter().copied()).unwrap();
    within(lattice.export(&actor)).await.unwrap();
    actor
}

/// One that sums.
pub(crate) async fn offer_sum(system: &ActorSystem, lattice: &Lattice, name: &str) {
    offering(system, lattice, name, &SUMMING, &[SUM]).await;
}

impl TestHost {
    async fn offering(&self, name: &str, component: &LoadedComponent, interfaces: &[&str]) -> ActorRef {
        offering(&self.system, &self.lattice, name, component, interfaces).await
    }

    /// The host's member of the group `sums`, which is exported and offered.
    async fn offering_member(&self) {
        let (group, name) = (id("sums"), format!("sum-of-{}", self.lattice.name()));
        self.system.create_group(&group).unwrap();
        spawn(self, &name, &SUMMING, Links::default()).await;
        self.system.join(&group, &id(&name)).unwrap();
        self.lattice.offer(&group, [SUM]).unwrap();
        within(self.lattice.export_group(&group)).await.unwrap();
    }
}

/// A guest whose import leads to a name.
struct Relay(ActorExport<(u32,), (Result<u32, String>,)>);

impl Relay {
    async fn spawn(host: &TestHost, name: &str, to: &str) -> Self {
        let relay = spawn(host, name, &RELAYING, Links::default().with(SUM, id(to))).await;
        Self(host.system.export(&relay, &format!("{SUM}#add")).unwrap())
    }

    /// What the guest hears, which goes on whatever that is.
    async fn add(&self, n: u32) -> Result<u32, String> {
        within(self.0.call((n,))).await.unwrap().0
    }

    async fn fails(&self, error: CallError) {
        assert_eq!(self.add(1).await.unwrap_err(), LinkFault::Call(error).to_string());
    }

    /// The same, once it is known where the callee is.
    async fn soon_fails(&self, error: CallError) {
        let error = LinkFault::Call(error).to_string();
        until_told(async || self.add(1).await.unwrap_err() == error).await;
    }
}

/// What a guest hears whose key is on its way, or whose host is gone.
fn is_for_now(said: &str) -> bool {
    [Refusal::Moved, Refusal::Unreachable]
        .into_iter()
        .any(|refusal| said == LinkFault::Call(NotSent(refusal)).to_string())
}

/// A guest that keeps text in the store that its import leads to.
pub(crate) struct Clerk {
    actor: ActorRef,
    remember: ActorExport<(String, String), (Result<(), String>,)>,
    recall: ActorExport<(String,), (Result<String, String>,)>,
}

impl Clerk {
    pub(crate) async fn spawn(host: &TestHost, name: &str, to: &str) -> Self {
        let component = ENGINE.load_blocking(CLERK, Profile::Plain).unwrap();
        let actor = spawn(host, name, &component, Links::default().with(STORE, id(to))).await;
        let remember = host.system.export(&actor, "remember").unwrap();
        let recall = host.system.export(&actor, "recall").unwrap();
        Self { actor, remember, recall }
    }

    pub(crate) async fn remember(&self, key: &str, value: &str) -> Result<(), String> {
        within(self.remember.call((key.into(), value.into()))).await.unwrap().0
    }

    async fn recall(&self, key: &str) -> Result<String, String> {
        within(self.recall.call((key.into(),))).await.unwrap().0
    }
}

#[tokio::test]
async fn an_import_leads_to_an_actor_of_another_host() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    // With static types.
    let kv = b.offering("kv", &STORING, &[STORE]).await;
    a.knows("kv").await;
    let clerk = Clerk::spawn(&a, "clerk", "kv").await;
    clerk.remember("a", "one").await.unwrap();
    assert_eq!(clerk.recall("a").await.unwrap(), "one");
    // What the store itself refuses is its answer.
    assert_eq!(clerk.remember("", "x").await.unwrap_err(), "a key has a name");
    // The kind of a crash, and nothing else of what is another's.
    assert_eq!(clerk.remember("crash", "x").await.unwrap_err(), "the actor crashed: trap");
    assert_eq!((kv.info().incarnation, clerk.actor.info().incarnation), (2, 1), "each has its own fate");

    // By values.
    b.offering("sum", &SUMMING, &[SUM]).await;
    a.knows("sum").await;
    let relay = Relay::spawn(&a, "relay", "sum").await;
    assert_eq!((relay.add(3).await, relay.add(4).await), (Ok(3), Ok(7)));
    assert_eq!(relay.add(13).await.unwrap_err(), "the actor crashed: trap");
    assert_eq!(relay.add(1).await, Ok(1));
}

#[tokio::test]
async fn what_is_too_large_for_a_lane_is_told_on_either_side() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let kv = b.offering("kv", &STORING, &[STORE]).await;
    a.knows("kv").await;
    let clerk = Clerk::spawn(&a, "clerk", "kv").await;
    // Both actors could take it.
    let large = "x".repeat((1 << 20) - 2_048);
    let said = clerk.remember("large", &large).await.unwrap_err();
    assert!(said.starts_with("the call was not taken: it takes messages of"), "{said}");
    let set = b.system.export::<(String, Bytes), (Result<(), String>,)>(&kv, &format!("{STORE}#set")).unwrap();
    within(set.call(("large".into(), large.into()))).await.unwrap().0.unwrap();
    let said = clerk.recall("large").await.unwrap_err();
    assert!(said.starts_with("the result was not taken: it takes messages of"), "{said}");
    let fits = "x".repeat((1 << 20) - 16_384);
    clerk.remember("large", &fits).await.unwrap();
    assert_eq!(clerk.recall("large").await.unwrap(), fits);
}

#[tokio::test]
async fn an_export_opens_the_interfaces_that_are_offered_and_no_others() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    b.offering("sum", &SUMMING, &[]).await;
    a.knows("sum").await;
    let relay = Relay::spawn(&a, "relay", "sum").await;
    relay.fails(NotSent(Refusal::NotOffered)).await;
    for (offered, is_offered) in [
        (&["test:far/other@1.0.0"][..], false),
        (&[SUM], true),
        (&["test:far/other@1.0.0", SUM], true),
        (&["test:far/sum", "test:far/sum@2.0.0"], false),
        (&[], false),
    ] {
        b.lattice.offer(&id("sum"), offered.iter().copied()).unwrap();
        match is_offered {
            true => _ = relay.add(1).await.unwrap(),
            false => relay.fails(NotSent(Refusal::NotOffered)).await,
        }
    }
    b.lattice.offer(&id("sum"), [SUM]).unwrap();
    for never in ["airssys:actor/state@0.1.0", "wasi:http/handler@0.2.0", "wasmcloud:messaging/handler@0.2.0", "sum"] {
        assert_eq!(b.lattice.offer(&id("sum"), [never]).unwrap_err().interface, never);
    }
    relay.add(1).await.unwrap();
    // What is not exported is its host's alone, whatever is offered of it.
    let private = spawn(&b, "private", &SUMMING, Links::default()).await;
    b.lattice.offer(private.id(), [SUM]).unwrap();
    let relay = Relay::spawn(&a, "other", "private").await;
    let unknown = LinkFault::Unknown(id("private")).to_string();
    assert_eq!(relay.add(1).await.unwrap_err(), unknown);
}

#[tokio::test]
async fn an_offer_ends_with_the_export() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let first = b.offering("sum", &SUMMING, &[SUM]).await;
    a.knows("sum").await;
    let relay = Relay::spawn(&a, "relay", "sum").await;
    relay.add(1).await.unwrap();
    // The same actor, exported again.
    assert!(within(b.lattice.withdraw(&id("sum"))).await.unwrap());
    within(b.lattice.export(&first)).await.unwrap();
    relay.soon_fails(NotSent(Refusal::NotOffered)).await;
    b.lattice.offer(&id("sum"), [SUM]).unwrap();
    assert_eq!(relay.add(1).await, Ok(2));
    // Another, when that has ended.
    first.kill();
    within(first.ended()).await;
    let second = spawn(&b, "sum", &SUMMING, Links::default()).await;
    within(b.lattice.export(&second)).await.unwrap();
    relay.soon_fails(NotSent(Refusal::NotOffered)).await;
    // And one for which it is offered before the one before is known to have ended.
    second.kill();
    within(second.ended()).await;
    let third = spawn(&b, "sum", &SUMMING, Links::default()).await;
    b.lattice.offer(&id("sum"), [SUM]).unwrap();
    within(b.lattice.export(&third)).await.unwrap();
    until_told(async || relay.add(1).await == Ok(1)).await;
}

#[tokio::test]
async fn what_is_offered_of_a_name_that_a_host_stands_by_for_is_offered_until_it_does_not() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let stand_by = || b.lattice.stand_by_for(called(&b.system, "sum", &SUMMING, Links::default(), limits()));
    b.lattice.offer(&id("sum"), [SUM]).unwrap();
    let mut standing = stand_by();
    let relay = Relay::spawn(&a, "relay", "sum").await;
    let first = within(standing.serving()).await.unwrap();
    a.knows("sum").await;
    relay.add(1).await.unwrap();
    // Given up, and served again.
    first.kill();
    within(first.ended()).await;
    until_told(async || relay.add(1).await == Ok(1)).await;
    within(standing.stop()).await;
    let mut standing = stand_by();
    within(standing.serving()).await.unwrap();
    relay.soon_fails(NotSent(Refusal::NotOffered)).await;
}

#[tokio::test]
async fn what_has_another_type_is_not_called() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    let wide = loaded(&SUMS.replace("(param \"n\" u32)", "(param \"n\" s32)"));
    let none = loaded(&SUMS.replace("test:far/sum@1.0.0", "test:far/other@1.0.0"));
    b.offering("wide", &wide, &[SUM]).await;
    b.offering("none", &none, &[SUM]).await;
    let (native, _) = b.export("native").await;
    b.lattice.offer(native.id(), [SUM]).unwrap();
    for (name, found) in [("wide", "s32"), ("none", "no such export"), ("native", "no such export")] {
        a.knows(name).await;
        let relay = Relay::spawn(&a, &format!("to-{name}"), name).await;
        let said = relay.add(1).await.unwrap_err();
        assert!(said.starts_with("`test:far/sum@1.0.0#add: func(n: u32)") && said.contains(found), "{said}");
    }
}

#[tokio::test]
async fn members_of_a_group_on_several_hosts_are_called_in_turn() {
    let server = server();
    let (a, b, c) = (host(&server, "a").await, host(&server, "b").await, host(&server, "c").await);
    for one in [&b, &c] {
        one.offering_member().await;
    }
    let sums = a.lattice.recipient(id("sums"));
    until(|| sums.hosts() == 2).await;
    let relay = Relay::spawn(&a, "relay", "sums").await;
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(relay.add(1).await.unwrap());
    }
    heard.sort_unstable();
    assert_eq!(heard, [1, 1, 2, 2, 3, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_kind_is_called_where_it_is_and_goes_on_where_it_moves() {
    let server = server();
    let a = host(&server, "a").await;
    let keeping = async |name: &str| {
        let host = join(config(&server, name).with_lease(Duration::from_secs(2))).await;
        let client = async_nats::connect(server.url()).await.unwrap();
        let store = JetStreamStore::open(client, BucketConfig::new("sums")).await.unwrap();
        let template = called(&host.system, "sums", &SUMMING, Links::default(), limits());
        let spec = KeyedSpec::new(template).with_options(KeyedOptions { idle: LONG, ..KeyedOptions::default() });
        let kind = host.lattice.export_kind(spec, store.into()).await.unwrap();
        host.lattice.offer(&id("sums"), [SUM]).unwrap();
        (host, kind)
    };
    let keys = keys(12);
    let mut relays = Vec::new();
    for key in &keys {
        relays.push(Relay::spawn(&a, &format!("relay-{key}"), &format!("sums/{key}")).await);
    }
    let add_to_all = async |n| {
        for (relay, key) in relays.iter().zip(&keys) {
            let sum = within(async {
                loop {
                    match relay.add(1).await {
                        Err(said) if is_for_now(&said) => tokio::time::sleep(Duration::from_millis(10)).await,
                        sum => return sum,
                    }
                }
            });
            assert_eq!(sum.await, Ok(n), "{key}");
        }
    };
    let (b, of_b) = keeping("b").await;
    let first = a.lattice.recipient(id("sums/0"));
    until(|| first.is_known()).await;
    let has = |host: &TestHost, key: &String| host.system.find(format!("sums/{key}").as_str()).is_some();
    add_to_all(1).await;
    assert!(keys.iter().all(|key| has(&b, key)));
    let (c, of_c) = keeping("c").await;
    let mut n = 1;
    // They are called all the time, on their way as well.
    while !keys.iter().any(|key| has(&c, key)) {
        n += 1;
        add_to_all(n).await;
    }
    add_to_all(n + 1).await;
    // A guest on a host that has the kind calls keys of the other as well.
    let (here, there) = (keys.iter().find(|key| has(&b, key)), keys.iter().find(|key| has(&c, key)));
    for key in [here, there].into_iter().flatten() {
        let relay = Relay::spawn(&b, &format!("relay-{key}"), &format!("sums/{key}")).await;
        assert_eq!(relay.add(1).await, Ok(n + 2), "{key}");
    }
    drop((of_b, of_c));
}

#[tokio::test]
async fn a_call_between_two_hosts_of_which_one_has_no_calls_is_refused_and_nothing_is_sent() {
    let server = server();
    let (a, old) = (host(&server, "a").await, join(of_version(&server, "old", OLDEST)).await);
    let client = async_nats::connect(server.url()).await.unwrap();
    for (from, to) in [(&a, &old), (&old, &a)] {
        let name = format!("sum-of-{}", to.lattice.name());
        to.offering(&name, &SUMMING, &[SUM]).await;
        to.export(to.lattice.name().as_str()).await;
        from.knows(&name).await;
        from.knows(to.lattice.name().as_str()).await;
        let subject = format!("aw.test.h.{}.{}", to.lattice.name(), from.lattice.name());
        let mut packets = client.subscribe(subject).await.unwrap();
        seen_by_server(&client).await;
        let relay = Relay::spawn(from, "relay", &name).await;
        relay.fails(NotSent(Refusal::NotOffered)).await;
        let asked = from.ask(to.lattice.name().as_str(), "after").await;
        assert_eq!(asked.unwrap(), "after");
        let (seen, texts) = versions(&mut packets, "after").await;
        assert_eq!(seen, [OLDEST]);
        assert!(!texts.contains("test:far"), "{texts}");
    }
    // The control.
    let b = host(&server, "b").await;
    b.knows("sum-of-a").await;
    assert_eq!(Relay::spawn(&b, "relay", "sum-of-a").await.add(2).await, Ok(2));
}

#[tokio::test]
async fn a_call_of_a_group_goes_to_a_host_that_has_calls_if_there_is_one() {
    let server = server();
    let (a, b, old) =
        (host(&server, "a").await, host(&server, "b").await, join(of_version(&server, "old", OLDEST)).await);
    for one in [&b, &old] {
        one.offering_member().await;
    }
    let sums = a.lattice.recipient(id("sums"));
    until(|| sums.hosts() == 2).await;
    let relay = Relay::spawn(&a, "relay", "sums").await;
    for n in 1..=4 {
        assert_eq!(relay.add(1).await, Ok(n));
    }
    within(b.lattice.withdraw(&id("sums"))).await.unwrap();
    until(|| sums.hosts() == 1).await;
    relay.fails(NotSent(Refusal::NotOffered)).await;
}

#[tokio::test]
async fn a_circle_over_hosts_ends_by_the_deadline() {
    let server = server();
    let (a, b) = (host(&server, "a").await, host(&server, "b").await);
    for (one, name, to) in [(&a, "one", "two"), (&b, "two", "one")] {
        let limits = ResourceLimits { deadline: Duration::from_secs(1), ..limits() };
        let links = Links::default().with(SUM, id(to));
        let actor = one.system.spawn(called(&one.system, name, &RELAYING, links, limits)).await.unwrap();
        one.lattice.offer(&id(name), [SUM]).unwrap();
        within(one.lattice.export(&actor)).await.unwrap();
    }
    a.knows("two").await;
    b.knows("one").await;
    let one = a.system.find("one").unwrap();
    let add = a.system.export::<(u32,), (Result<u32, String>,)>(&one, &format!("{SUM}#add")).unwrap();
    // By that of the call or of the guest, whichever is seen first.
    match within(add.call((1,))).await {
        Ok((Err(said),)) => assert_eq!(said, LinkFault::Call(CallError::Deadline).to_string()),
        Err(CallError::Crashed(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_told_that_the_host_it_calls_was_killed() {
    let server = server();
    let settings = Settings::quick(&server);
    let (a, mut b) = tokio::join!(Asker::join(&settings), HostProcess::join("b", &settings));
    b.tell("export-sum sum");
    b.says("exported sum").await;
    b.export("beside").await;
    a.knows("sum").await;
    let [held, waits] = [Relay::spawn(&a, "held", "sum").await, Relay::spawn(&a, "waits", "sum").await];
    assert_eq!(held.add(2).await, Ok(2));
    // The first never comes back, and so the second waits in the mailbox.
    let called = tokio::spawn(async move { tokio::join!(held.add(9), waits.add(9)) });
    b.tell("queued sum 1");
    b.says("queued sum 1").await;
    // That they were taken is told with the next packet.
    a.answered("beside", "beside").await;
    b.kill();
    let (held, waits) = within(called).await.unwrap();
    let lost = LinkFault::Call(CallError::Lost { accepted: true }).to_string();
    assert_eq!((held.unwrap_err(), waits.unwrap_err()), (lost.clone(), lost));
    Relay::spawn(&a, "next", "sum").await.fails(NotSent(Refusal::Unreachable)).await;
}
