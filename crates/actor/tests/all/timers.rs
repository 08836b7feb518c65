//! Messages that are sent later, and reminders that another layer keeps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, ActorSystem, Bytes, Capabilities, ContractKind, DeadReason, NativeActor, NativeContext,
    NativeSpec, ReminderError, Reminders, Stop, UpgradeOptions,
};
use airssys_wasm_engine::Profile;
use airssys_wasm_isolation::SandboxSpec;
use airssys_wasm_limits::{ByteSize, ResourceLimits};
use airssys_wasm_registry::{ComponentId, MessageEnvelope, Refusal};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::support::{ACTOR, LATER, Probe, Shared, Switch, at_once, id, limits, sandbox, settle, spawn, spec, system};

fn command(number: u8, name: &str, after_ms: u64, payload: &str) -> Vec<u8> {
    [&[number, name.len() as u8], name.as_bytes(), &after_ms.to_le_bytes(), payload.as_bytes()].concat()
}

/// The number of the message that is sent later, or the case of the error.
async fn send_after(actor: &ActorRef, to: &str, after_ms: u64, payload: &str) -> Result<u64, u8> {
    let answer = actor.ask(command(1, to, after_ms, payload)).await.unwrap();
    if answer[0] == 0 { Ok(u64::from_le_bytes(answer[8..16].try_into().unwrap())) } else { Err(answer[8]) }
}

async fn cancel(actor: &ActorRef, number: u64) -> bool {
    let answer = actor.ask([&[2][..], &number.to_le_bytes()].concat()).await.unwrap();
    answer[0] == 1
}

const DENIED: u8 = 0;
const INVALID: u8 = 1;
const FULL: u8 = 3;

async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    settle().await;
}

async fn scene() -> (ActorSystem, ActorRef, Shared) {
    let system = system();
    let guest = spawn(&system, "guest", &LATER).await;
    let (_, probe) = Probe::spawn(&system, "probe").await;
    (system, guest, probe)
}

#[tokio::test(start_paused = true)]
async fn messages_come_when_they_are_due_and_in_that_order() {
    let (_system, guest, probe) = scene().await;
    let begun = Instant::now();
    for (after, payload) in [(300, "c"), (100, "a"), (200, "b"), (300, "d"), (0, "now"), (300, "e")] {
        send_after(&guest, "probe", after, payload).await.unwrap();
    }
    pass(0).await;
    assert_eq!(probe.handled(), "now");
    pass(99).await;
    assert_eq!(probe.handled(), "now", "not before it is due");
    pass(2).await;
    assert_eq!(probe.handled(), "now,a");
    pass(100).await;
    assert_eq!(probe.handled(), "now,a,b");
    pass(100).await;
    assert_eq!(probe.handled(), "now,a,b,c,d,e", "of those that are due at the same time, the first sent is first");
    assert!(begun.elapsed() < Duration::from_millis(320), "the clock is the test's");
}

#[tokio::test(start_paused = true)]
async fn behind_a_fence_that_fell_nothing_is_sent_later() {
    for holds in [true, false] {
        let system = system();
        let fence = Arc::new(Switch(AtomicBool::new(true)));
        let guest = system.spawn(spec(&system, "guest", &LATER).with_fence(Arc::clone(&fence) as _)).await.unwrap();
        let (_, probe) = Probe::spawn(&system, "probe").await;
        send_after(&guest, "probe", 100, "x").await.unwrap();
        fence.0.store(holds, Ordering::Relaxed);
        pass(101).await;
        assert_eq!(probe.handled(), if holds { "x" } else { "" });
        let letters = system.dead_letters().list();
        assert!(letters.iter().all(|letter| matches!(letter.reason, DeadReason::NotSent { .. })), "{letters:?}");
        assert_eq!(letters.len(), usize::from(!holds));
    }
}

#[tokio::test(start_paused = true)]
async fn an_earlier_one_does_not_wait_for_those_that_were_there() {
    let (_system, guest, probe) = scene().await;
    send_after(&guest, "probe", 60_000, "later").await.unwrap();
    pass(10).await;
    send_after(&guest, "probe", 10, "sooner").await.unwrap();
    pass(11).await;
    assert_eq!(probe.handled(), "sooner");
    pass(60_000).await;
    assert_eq!(probe.handled(), "sooner,later");
    // There are none any more, and then there is one again.
    send_after(&guest, "probe", 5, "again").await.unwrap();
    pass(6).await;
    assert_eq!(probe.handled(), "sooner,later,again");
}

#[tokio::test(start_paused = true)]
async fn who_sends_later_needs_the_grant_to_send() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let granted = Capabilities { send: vec!["probe".parse().unwrap()], ..Capabilities::default() };
    let guest = spec(&system, "guest", &LATER).with_capabilities(granted);
    let guest = system.spawn(guest).await.unwrap();
    assert_eq!(send_after(&guest, "other", 1, "x").await, Err(DENIED));
    assert_eq!(send_after(&guest, "a b", 1, "x").await, Err(INVALID));
    send_after(&guest, "probe", 1, "x").await.unwrap();
    pass(2).await;
    assert_eq!(probe.handled(), "x");
}

#[tokio::test(start_paused = true)]
async fn an_actor_has_so_many_and_so_many_bytes_of_them() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let granted = Capabilities {
        send: vec!["*".parse().unwrap()],
        later: 3,
        later_bytes: ByteSize::b(10),
        ..Capabilities::default()
    };
    let guest = spec(&system, "guest", &LATER).with_capabilities(granted);
    let guest = system.spawn(guest).await.unwrap();
    let other = spawn(&system, "other", &LATER).await;

    let first = send_after(&guest, "probe", 10, "12345").await.unwrap();
    send_after(&guest, "probe", 20, "123456").await.expect_err("eleven bytes");
    send_after(&guest, "probe", 20, "1234").await.unwrap();
    send_after(&guest, "probe", 30, "").await.unwrap();
    assert_eq!(send_after(&guest, "probe", 30, "").await, Err(FULL), "a fourth");
    // Others have room of their own, and each gets back what is sent or cancelled.
    send_after(&other, "probe", 50, "of another").await.unwrap();
    assert!(cancel(&guest, first).await);
    send_after(&guest, "probe", 40, "123456").await.unwrap();
    assert_eq!(send_after(&guest, "probe", 40, "").await, Err(FULL));
    pass(60).await;
    assert_eq!(probe.handled(), "1234,,123456,of another");
    send_after(&guest, "probe", 1, "1234567890").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_is_not_sent_and_each_cancels_its_own() {
    let (system, guest, probe) = scene().await;
    let other = spawn(&system, "other", &LATER).await;
    let first = send_after(&guest, "probe", 10, "a").await.unwrap();
    let second = send_after(&guest, "probe", 10, "b").await.unwrap();
    assert!(!cancel(&other, first).await, "it is another's");
    assert!(cancel(&guest, first).await);
    assert!(!cancel(&guest, first).await, "a second time");
    assert!(!cancel(&guest, 4711).await, "there is none");
    pass(20).await;
    assert_eq!(probe.handled(), "b");
    assert!(!cancel(&guest, second).await, "it was sent");
}

#[tokio::test(start_paused = true)]
async fn they_outlive_restarts_and_upgrades() {
    let (system, guest, probe) = scene().await;
    send_after(&guest, "probe", 100, "kept").await.unwrap();
    guest.ask(vec![9]).await.expect_err("it traps");
    pass(10).await;
    system.upgrade(guest.address(), sandbox(&system, &ACTOR), UpgradeOptions::default()).await.unwrap();
    assert_eq!(guest.info().restarts, 1);
    assert_eq!(probe.handled(), "");
    pass(100).await;
    assert_eq!(probe.handled(), "kept");
}

#[tokio::test(start_paused = true)]
async fn they_end_with_the_actor_and_its_successor_has_none_of_them() {
    for kill in [false, true] {
        let (system, guest, probe) = scene().await;
        send_after(&guest, "probe", 100, "of the first").await.unwrap();
        if kill {
            guest.kill();
        } else {
            guest.stop(Stop::Drain);
        }
        guest.ended().await;
        let second = spawn(&system, "guest", &LATER).await;
        send_after(&second, "probe", 50, "of the second").await.unwrap();
        pass(200).await;
        assert_eq!(probe.handled(), "of the second");
        assert!(system.dead_letters().is_empty(), "they were never sent");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_a_dead_letter_of_its_sender_and_can_be_sent_again() {
    let (system, guest, _) = scene().await;
    send_after(&guest, "nobody", 10, "x").await.unwrap();
    pass(11).await;
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].to.id().as_str(), &letters[0].message.payload()[..]), ("guest", &b"x"[..]));
    assert!(
        matches!(&letters[0].reason, DeadReason::NotSent { to, .. } if to.as_str() == "nobody"),
        "{:?}",
        letters[0]
    );
    let (_, nobody) = Probe::spawn(&system, "nobody").await;
    system.resend(letters[0].number).unwrap();
    settle().await;
    assert_eq!(nobody.handled(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_is_told_as_a_dead_letter() {
    let system = system();
    let guest = spawn(&system, "guest", &LATER).await;
    let (spec, shared) = Probe::spec("full");
    let full = system.spawn_native(spec.with_mailbox(1)).await.unwrap();
    full.tell("wait").await.unwrap();
    settle().await;
    for payload in ["fits", "does not"] {
        send_after(&guest, "full", 10, payload).await.unwrap();
    }
    pass(11).await;
    let letters = system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].message.payload(), "does not");
    shared.gate.notify_one();
    settle().await;
    assert_eq!(shared.handled(), "wait,fits");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_sees_who_sent_it() {
    struct Names(Arc<Mutex<Vec<String>>>);

    impl NativeActor for Names {
        async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
            self.0.lock().push(message.sender().map_or_else(String::new, ToString::to_string));
            Ok(None)
        }
    }

    let system = system();
    let names = Arc::new(Mutex::new(Vec::new()));
    let make = {
        let names = Arc::clone(&names);
        move || Names(Arc::clone(&names))
    };
    system.spawn_native(NativeSpec::new(id("names"), make)).await.unwrap();
    let guest = spawn(&system, "guest", &LATER).await;
    send_after(&guest, "names", 5, "x").await.unwrap();
    pass(6).await;
    assert_eq!(*names.lock(), [guest.address().to_string()]);
}

/// Sends later what it is told, itself.
struct Native;

impl NativeActor for Native {
    async fn handle(&mut self, message: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        let number = context.send_after(Duration::from_millis(10), &id("probe"), message.payload().clone()).unwrap();
        if *message.payload() == "cancelled" {
            assert!(context.cancel(number) && !context.cancel(number));
        }
        if *message.payload() == "crash" {
            panic!("told to crash");
        }
        Ok(None)
    }
}

#[tokio::test(start_paused = true)]
async fn native_actors_send_later_as_well() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let mut spec = NativeSpec::new(id("native"), || Native);
    spec = spec.with_restart(at_once(1));
    let native = system.spawn_native(spec).await.unwrap();
    for payload in ["a", "cancelled", "crash", "b"] {
        native.tell(payload).await.unwrap();
    }
    pass(15).await;
    assert_eq!(probe.handled(), "a,crash,b", "sent before the crash, and kept over it");
}

#[tokio::test(start_paused = true)]
async fn who_has_ended_sends_nothing_later() {
    struct Leaks(Arc<Mutex<Option<NativeContext>>>);

    impl NativeActor for Leaks {
        async fn handle(&mut self, _: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
            *self.0.lock() = Some(context.clone());
            Ok(Some(Bytes::new()))
        }
    }

    let system = system();
    let leaked = Arc::new(Mutex::new(None));
    let make = {
        let leaked = Arc::clone(&leaked);
        move || Leaks(Arc::clone(&leaked))
    };
    let actor = system.spawn_native(NativeSpec::new(id("leaks"), make)).await.unwrap();
    actor.ask("").await.unwrap();
    actor.stop(Stop::Now);
    actor.ended().await;
    let context = leaked.lock().take().unwrap();
    let refused = context.send_after(Duration::ZERO, &id("probe"), "x").unwrap_err();
    assert_eq!((refused.reason, &refused.message.payload()[..]), (Refusal::Stopped, &b"x"[..]));
}

#[tokio::test(start_paused = true)]
async fn many_of_them_cost_one_task_and_none_when_they_are_gone() {
    const MANY: usize = 20_000;
    let (system, guest, probe) = scene().await;
    settle().await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut numbers = Vec::new();
    for n in 0..MANY as u64 {
        numbers.push(send_after(&guest, "probe", 1_000_000 + n % 1_000, "").await.unwrap());
    }
    assert_eq!(tasks(), before + 1);
    for number in numbers {
        assert!(cancel(&guest, number).await);
    }
    settle().await;
    assert_eq!(tasks(), before);
    assert_eq!(probe.handled(), "");
    drop(system);
}

/// Keeps reminders of one actor, in memory.
#[derive(Default)]
struct Kept(Mutex<Vec<(String, Duration, Bytes)>>);

impl Reminders for Kept {
    fn set(
        &self,
        of: &ComponentId,
        name: &str,
        after: Duration,
        payload: Bytes,
    ) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        if of.as_str() != "kept" {
            return None;
        }
        let set = match name {
            "" => Err(ReminderError::Name { len: 0, allowed: 64 }),
            "many" => Err(ReminderError::TooMany(16)),
            "large" => Err(ReminderError::TooLarge { size: 9, allowed: 8 }),
            "gone" => Err(ReminderError::Unavailable("no disk".into())),
            name => {
                self.0.lock().push((name.to_owned(), after, payload));
                Ok(())
            }
        };
        Some(Box::pin(async move {
            tokio::task::yield_now().await;
            set
        }))
    }

    fn cancel(&self, of: &ComponentId, name: &str) -> Option<BoxFuture<'static, Result<bool, ReminderError>>> {
        if of.as_str() != "kept" {
            return None;
        }
        let mut kept = self.0.lock();
        let before = kept.len();
        kept.retain(|reminder| reminder.0 != name);
        let cancelled = kept.len() < before;
        Some(Box::pin(async move { Ok(cancelled) }))
    }

    fn forget(&self, of: &ComponentId) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        if of.as_str() != "kept" {
            return None;
        }
        self.0.lock().clear();
        Some(Box::pin(async { Ok(()) }))
    }
}

#[tokio::test]
async fn reminders_are_left_to_who_keeps_them() {
    let system = system();
    let kept = Arc::new(Kept::default());
    system.add_reminders(Arc::clone(&kept) as Arc<dyn Reminders>);
    let guest = spawn(&system, "kept", &LATER).await;
    let set = async |actor: &ActorRef, name: &str| actor.ask(command(3, name, 1_500, "payload")).await.unwrap();
    assert_eq!(set(&guest, "soon").await[0], 0);
    assert_eq!(*kept.0.lock(), [("soon".to_owned(), Duration::from_millis(1_500), Bytes::from("payload"))]);
    // By the case of the error, and what there is with it.
    let error = async |name: &str| {
        let answer = set(&guest, name).await;
        assert_eq!(answer[0], 1, "{name}");
        (answer[8], u32::from_le_bytes(answer[16..20].try_into().unwrap()))
    };
    assert_eq!(error("").await.0, 1);
    assert_eq!(error("many").await, (2, 16));
    assert_eq!(error("large").await, (3, 8));
    assert_eq!(error("gone").await.0, 4);

    let forget = async |actor: &ActorRef, name: &str| {
        let answer = actor.ask([&[4, name.len() as u8], name.as_bytes()].concat()).await.unwrap();
        (answer[0], answer[8])
    };
    assert_eq!(forget(&guest, "never").await, (0, 0));
    assert_eq!(forget(&guest, "soon").await, (0, 1));
    assert!(kept.0.lock().is_empty());

    let plain = spawn(&system, "plain", &LATER).await;
    assert_eq!(set(&plain, "soon").await[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0], "not kept");
    assert_eq!(forget(&plain, "soon").await, (1, 0), "not kept");
}

/// `begin`: begins so many calls of `set` with a KiB each, and says how many have come back at once.
const REMINDS: &str = r#"(component
    (import "airssys:actor/types@0.2.0" (instance $types
        (type $reminds (variant (case "not-kept") (case "invalid" string) (case "too-many" u32) (case "too-large" u64)
            (case "unavailable")))
        (export "reminder-error" (type (eq $reminds)))))
    (alias export $types "reminder-error" (type $reminder-error))
    (import "airssys:actor/reminders@0.2.0" (instance $reminders
        (alias outer 1 $reminder-error (type $there))
        (export "reminder-error" (type $error (eq $there)))
        (export "set" (func async (param "name" string) (param "after-ms" u64) (param "payload" (list u8))
            (result (result (error $error)))))))
    (core module $memory (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $memory (instantiate $memory))
    (alias core export $memory "memory" (core memory $mem))
    (alias core export $memory "realloc" (core func $realloc))
    (core func $set (canon lower (func $reminders "set") async (memory $mem) (realloc $realloc)))
    (core func $return (canon task.return (result u32)))
    (core module $m
        (import "" "return" (func $return (param i32)))
        (import "" "set" (func $set (param i32 i32) (result i32)))
        (import "" "memory" (memory 1))
        (func (export "begin") (param $times i32) (result i32)
            (local $back i32)
            ;; The length of the name and of the payload, both from the start of the memory.
            (i32.store (i32.const 4) (i32.const 1))
            (i32.store (i32.const 20) (i32.const 1024))
            (loop $again
                (if (i32.eq (i32.const 2) (i32.and (i32.const 15) (call $set (i32.const 0) (i32.const 4096))))
                    (then (local.set $back (i32.add (local.get $back) (i32.const 1)))))
                (local.set $times (i32.sub (local.get $times) (i32.const 1)))
                (br_if $again (local.get $times)))
            (call $return (local.get $back))
            (i32.const 0))
        (func (export "callback") (param i32 i32 i32) (result i32) unreachable))
    (core instance $i (instantiate $m (with "" (instance
        (export "return" (func $return)) (export "set" (func $set)) (export "memory" (memory $mem))))))
    (func (export "begin") async (param "times" u32) (result u32)
        (canon lift (core func $i "begin") async (callback (core func $i "callback")))))"#;

/// Keeps reminders as soon as it is let.
#[derive(Default)]
struct Slow {
    asked: AtomicUsize,
    kept: Arc<AtomicUsize>,
    gate: Arc<Notify>,
}

impl Reminders for Slow {
    fn set(
        &self,
        _: &ComponentId,
        _: &str,
        _: Duration,
        payload: Bytes,
    ) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (gate, kept) = (Arc::clone(&self.gate), Arc::clone(&self.kept));
        Some(Box::pin(async move {
            gate.notified().await;
            kept.fetch_add(payload.len() >> 10, Ordering::Relaxed);
            Ok(())
        }))
    }

    fn cancel(&self, _: &ComponentId, _: &str) -> Option<BoxFuture<'static, Result<bool, ReminderError>>> {
        None
    }

    fn forget(&self, _: &ComponentId) -> Option<BoxFuture<'static, Result<(), ReminderError>>> {
        None
    }
}

#[tokio::test]
async fn reminders_on_their_way_are_bounded_and_belong_to_their_message() {
    let system = system();
    let slow = Arc::new(Slow::default());
    system.add_reminders(Arc::clone(&slow) as Arc<dyn Reminders>);
    let component = system.engine().load_wat_blocking(REMINDS, Profile::Plain).unwrap();
    let narrow = ResourceLimits { host_call_bytes: ByteSize(10 * 1025), ..limits() };
    let sandbox = SandboxSpec::new(system.link(&component).unwrap(), narrow).unwrap();
    let actor = system.spawn(ActorSpec::new(id("a"), sandbox).with_contract(ContractKind::Exports)).await.unwrap();
    let begin = system.export::<(u32,), (u32,)>(&actor, "begin").unwrap();
    for round in 1..=2 {
        // Those for which there is no room come back at once.
        assert_eq!(begin.call((20,)).await.unwrap(), (10,));
        assert_eq!(slow.asked.load(Ordering::Relaxed), round * 10);
        // The next message waits for the others.
        let next = tokio::spawn({
            let actor = actor.clone();
            async move { actor.call("nothing", []).await }
        });
        settle().await;
        assert!(!next.is_finished());
        slow.gate.notify_waiters();
        next.await.unwrap().unwrap_err();
        assert_eq!(slow.kept.load(Ordering::Relaxed), round * 10);
    }
}

/// Gives away what it has access by.
struct Lends(std::sync::mpsc::Sender<NativeContext>);

impl NativeActor for Lends {
    async fn handle(&mut self, _: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        _ = self.0.send(context.clone());
        Ok(Some(Bytes::new()))
    }
}

async fn lent(system: &ActorSystem) -> NativeContext {
    let (to, context) = std::sync::mpsc::channel();
    let actor = system.spawn_native(NativeSpec::new(id("lends"), move || Lends(to.clone()))).await.unwrap();
    actor.ask("x").await.unwrap();
    context.recv().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_thread_without_a_runtime_sends_nothing_later_and_leaves_the_table_to_others() {
    let system = system();
    let (_, probe) = Probe::spawn(&system, "probe").await;
    let context = lent(&system).await;
    let (to, ended) = std::sync::mpsc::channel();
    std::thread::spawn({
        let context = context.clone();
        move || {
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                context.send_after(Duration::from_secs(1), &id("probe"), "thread")
            }));
            to.send(panicked.is_err())
        }
    });
    assert!(ended.recv_timeout(Duration::from_secs(60)).expect("it does not hang"));
    context.send_after(Duration::from_secs(1), &id("probe"), "task").unwrap();
    pass(1_001).await;
    assert_eq!(probe.handled(), "task");
}

/// Sends itself something later as often as it can.
struct Busy(Arc<AtomicUsize>);

impl NativeActor for Busy {
    async fn handle(&mut self, _: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        loop {
            let number =
                context.send_after(Duration::from_secs(3_600), &id("busy"), "x").map_err(|error| error.to_string())?;
            context.cancel(number);
            self.0.fetch_add(1, Ordering::Release);
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_runtime_ends_amid_messages_that_are_sent_later() {
    for _ in 0..20 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (system, sent) = (system(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&sent);
        let actor =
            runtime.block_on(system.spawn_native(NativeSpec::new(id("busy"), move || Busy(Arc::clone(&counter)))));
        actor.unwrap().try_tell("x").unwrap();
        while sent.load(Ordering::Acquire) < 100 {
            std::thread::yield_now();
        }
        let (to, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(runtime);
            to.send(())
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("it does not hang");
    }
}
