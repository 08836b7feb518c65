//! What cannot be brought about from outside: a client whose queue is full, and a session that ends at a certain moment.

use std::{num::NonZeroU64, pin::pin, thread};

use airssys_wasm_actor::{
    ActorSystem, NativeActor, NativeContext, NativeSpec, SystemConfig,
    engine::{EngineConfig, WasmEngine},
    registry::WhenFull,
};
use airssys_wasm_fixtures::nats::NatsServer;
use futures_util::FutureExt;
use tokio::{
    task::coop::unconstrained,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    Lattice,
    directory::{Key, NameRecord},
    error::ExportError,
    frame::VERSIONS,
    lease::{Joining, Owner, Session},
};

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

struct Echo;

impl NativeActor for Echo {
    async fn handle(&mut self, message: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        Ok(Some(message.payload().clone()))
    }
}

struct Stuck;

impl NativeActor for Stuck {
    async fn handle(&mut self, _: &MessageEnvelope, _: &NativeContext) -> Result<Option<Bytes>, String> {
        std::future::pending().await
    }
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(LONG, future).await.expect("it takes too long")
}

async fn until(mut is_so: impl FnMut() -> bool) {
    until_told(async || is_so()).await;
}

/// The same where one has to ask.
async fn until_told(mut is_so: impl AsyncFnMut() -> bool) {
    within(async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) async fn join(server: &NatsServer, name: &str) -> (ActorSystem, Lattice) {
    join_as(config(server, name)).await
}

async fn join_as(config: LatticeConfig) -> (ActorSystem, Lattice) {
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let system = ActorSystem::new(engine, SystemConfig::default());
    let lattice = within(Lattice::join(&system, config)).await.unwrap();
    (system, lattice)
}

fn config(server: &NatsServer, name: &str) -> LatticeConfig {
    LatticeConfig::new("test".parse().unwrap(), name.parse().unwrap()).with_servers([server.url()])
}

/// Fills the queue of a host's client. Nothing empties it until the test, which has the only thread, waits for something.
fn fill(host: &Host) {
    while unconstrained(host.client.publish("filling", Bytes::new())).now_or_never().is_some() {}
}

#[tokio::test]
async fn an_ask_that_is_not_polled_any_more_holds_up_no_other() {
    let server = NatsServer::start().unwrap();
    let ((_, a), (system, b)) = (join(&server, "a").await, join(&server, "b").await);
    let shop = ComponentId::new("shop").unwrap();
    let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Echo)).await.unwrap();
    within(b.export(&actor)).await.unwrap();
    until(|| a.recipient(shop.clone()).is_known()).await;
    let ask = |text: &'static str| a.host().ask(&shop, MessageEnvelope::new(text));

    fill(a.host());
    let mut first = pin!(ask("first"));
    assert!(first.as_mut().now_or_never().is_none());
    assert_eq!(within(ask("second")).await.unwrap(), "second");
    assert_eq!(within(first).await.unwrap(), "first");
}

#[tokio::test]
async fn what_the_client_did_not_tell_of_its_connection_is_found() {
    let server = NatsServer::start().unwrap();
    let (_system, a) = join(&server, "a").await;
    let mut events = a.events();
    // As if it had told that the server is lost, and not that it is back.
    a.host().connected.send_replace(false);
    assert!(matches!(within(events.recv()).await, Ok(LatticeEvent::Offline)));
    assert!(matches!(within(events.recv()).await, Ok(LatticeEvent::Online)));
}

#[tokio::test]
async fn topics_whose_subscription_was_given_up_are_taken_the_next_time() {
    let server = NatsServer::start().unwrap();
    let ((system, a), (others, _b)) = (join(&server, "a").await, join(&server, "b").await);
    let (pattern, topic) = ("orders.>".parse().unwrap(), Topic::new("orders.eu").unwrap());
    let mut heard = system.subscribe(&pattern, 1, WhenFull::Error);

    fill(a.host());
    assert!(a.host().take(&pattern).now_or_never().is_none());
    within(a.take_topics(&pattern)).await.unwrap();
    until_told(async || others.publish(&topic, "x").await.hosts > 0).await;
    assert_eq!(within(heard.recv()).await.unwrap().topic(), Some(&topic));
}

#[tokio::test]
async fn publications_that_wait_have_so_much_room_and_no_sender_has_all_of_it() {
    let server = NatsServer::start().unwrap();
    let ((_system, a), (other, b)) = (join(&server, "a").await, join(&server, "b").await);
    let (pattern, topic) = ("orders.>".parse().unwrap(), Topic::new("orders.eu").unwrap());
    let mut heard = other.subscribe(&pattern, 2_000, WhenFull::Error);
    within(b.take_topics(&pattern)).await.unwrap();
    until(|| a.host().directory.takers(&topic, a.name()).0 == 1).await;
    let publish = |sender: &ComponentId, number, size: usize| {
        let message = MessageEnvelope::new(vec![0; size]).with_sender(ActorAddress::elsewhere(sender, number));
        a.host().publish(&topic, &message)
    };
    let [flood, other] = ["flood", "other"].map(|name| ComponentId::new(name).unwrap());
    let queued = |sender, number, size| (0..2_000).map(|_| publish(sender, number, size)).sum::<usize>();

    fill(a.host());
    // Of 32 MiB, and of 4,096.
    assert_eq!(queued(&flood, 1, 1_000 << 10), 8);
    assert_eq!(queued(&other, 2, 1), 1_024);
    for _ in 0..8 + 1_024 {
        within(heard.recv()).await.unwrap();
    }
    // What was sent has its room again.
    until(|| a.host().publishing.lock().has(32 << 20, std::iter::empty(), (1, 0))).await;
    assert_eq!(publish(&flood, 1, 1_000 << 10), 1);
}

#[tokio::test]
async fn a_lane_of_a_session_that_ends_meanwhile_is_not_made() {
    let server = NatsServer::start().unwrap();
    let (_, lattice) = join(&server, "a").await;
    let host = Arc::clone(lattice.host());
    let theirs = host.life().unwrap().session;

    let peers = host.peers.read();
    let sends = thread::spawn({
        let host = Arc::clone(&host);
        move || host.peer(&"b".parse().unwrap(), theirs, Some(VERSIONS.1)).is_some()
    });
    // Nobody else may look while the other thread waits to write.
    while host.peers.try_read().is_some() {
        thread::yield_now();
    }
    *host.life.write() = None;
    drop(peers);
    assert!(!sends.join().unwrap());
    assert!(host.peers.read().is_empty());
}

#[tokio::test]
async fn the_lane_to_a_session_whose_record_comes_after_its_packets_stays_when_the_one_before_has_ended() {
    let server = NatsServer::start().unwrap();
    let ((_system, a), (_others, b)) = (join(&server, "a").await, join(&server, "b").await);
    let (name, mut events) = (b.name().clone(), a.events());
    until(|| a.hosts().contains(&name)).await;
    let present = b.host().life().unwrap().session;
    let next = SessionId { revision: present.revision.checked_add(1_000).unwrap(), ..present };
    let lane = a.host().peer(&name, next, Some(VERSIONS.1)).unwrap();
    within(b.leave(LONG)).await;
    within(async { while !matches!(events.recv().await.unwrap(), LatticeEvent::Left { .. }) {} }).await;
    assert!(a.host().peers.read().get(&name).is_some_and(|now| Arc::ptr_eq(now, &lane)));
}

#[tokio::test]
async fn the_lane_to_a_host_that_has_left_is_forgotten() {
    let server = NatsServer::start().unwrap();
    let (_system, a) = join(&server, "a").await;
    let (shop, b) = (ComponentId::new("shop").unwrap(), HostName::new("b").unwrap());
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let (system, lattice) = join(&server, "b").await;
        let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Echo)).await.unwrap();
        within(lattice.export(&actor)).await.unwrap();
        until(|| a.recipient(shop.clone()).is_known()).await;
        for text in ["first", "second"] {
            assert_eq!(within(a.recipient(shop.clone()).ask(text)).await.unwrap(), text);
        }
        assert!(a.host().peers.read().contains_key(&b));
        sessions.push(lattice.host().life().unwrap().session);
        within(lattice.leave(LONG)).await;
        until(|| a.host().peers.read().is_empty()).await;
        // A packet that comes late makes none.
        assert!(sessions.iter().all(|session| a.host().peer(&b, *session, Some(VERSIONS.1)).is_none()));
    }
    let next = SessionId { revision: sessions[1].revision.checked_add(1_000).unwrap(), ..sessions[1] };
    assert!(a.host().peer(&b, next, None).is_none(), "it is not known how to speak to it");
    assert!(a.host().peer(&b, next, Some(VERSIONS.1)).is_some(), "one that was not seen yet");
}

#[tokio::test]
async fn a_session_that_was_only_claimed_is_given_up_for_the_one_that_a_host_has() {
    let server = NatsServer::start().unwrap();
    let quick = |name: &str| config(&server, name).with_heartbeat(Duration::from_millis(100));
    let ((_system, a), (system, b)) = (join_as(quick("a")).await, join_as(quick("b")).await);
    let shop = ComponentId::new("shop").unwrap();
    let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Echo)).await.unwrap();
    within(b.export(&actor)).await.unwrap();
    until(|| a.recipient(shop.clone()).is_known()).await;
    // As if a packet of a process before had it.
    let claimed = SessionId { revision: NonZeroU64::MAX, ..b.host().life().unwrap().session };
    let peer = a.host().peer(b.name(), claimed, Some(VERSIONS.1)).unwrap();
    until(|| peer.over.is_cancelled()).await;
    assert_eq!(within(a.recipient(shop.clone()).ask("asked")).await.unwrap(), "asked");
}

#[tokio::test]
async fn what_waits_for_a_mailbox_is_given_up_with_the_lane_that_it_came_by() {
    const WAIT: usize = 5;
    let server = NatsServer::start().unwrap();
    let ((_system, a), (system, b)) = (join(&server, "a").await, join(&server, "b").await);
    let shop = ComponentId::new("shop").unwrap();
    let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Stuck).with_mailbox(1)).await.unwrap();
    within(b.export(&actor)).await.unwrap();
    until(|| a.recipient(shop.clone()).is_known()).await;
    // One is in hand, and one in the mailbox.
    for _ in 0..WAIT + 2 {
        let (host, shop) = (Arc::clone(a.host()), shop.clone());
        tokio::spawn(async move { _ = host.tell(&shop, MessageEnvelope::new("told")).await });
    }
    until(|| b.host().peers.read().contains_key(a.name())).await;
    let peer = Arc::clone(&b.host().peers.read()[a.name()]);
    // Beside the host, its task and this test, each that waits has it. So they wait until the lane is closed.
    until(|| Arc::strong_count(&peer) >= 3 + WAIT).await;
    assert!(!peer.over.is_cancelled());
    within(a.leave(Duration::ZERO)).await;
    until(|| Arc::strong_count(&peer) == 1).await;
    assert!(peer.over.is_cancelled());
}

#[tokio::test]
async fn the_later_of_two_exports_at_once_is_withdrawn() {
    let server = NatsServer::start().unwrap();
    let (_, lattice) = join(&server, "a").await;
    let (host, name) = (lattice.host(), ComponentId::new("shop").unwrap());
    let life = host.life().unwrap();
    let earlier = within(host.claim(&name, &life, false, true)).await.unwrap();
    let later = within(host.claim(&name, &life, false, true)).await.unwrap();
    for revision in [later, earlier] {
        host.export_claimed(&name, &life, revision);
    }
    within(host.give_up(&name)).await;
    let found = within(host.records.decided(&Key::Name(name).text())).await.unwrap();
    assert!(found.is_none_or(|(record, _)| record.is_none()), "nobody has the name");
}

#[tokio::test]
async fn an_export_that_could_not_be_withdrawn_can_be_withdrawn_again() {
    let mut server = NatsServer::start().unwrap();
    let (_, lattice) = join(&server, "a").await;
    let (host, name) = (lattice.host(), ComponentId::new("shop").unwrap());
    within(host.export_group(&name)).await.unwrap();
    server.kill();
    within(host.withdraw(&name)).await.unwrap_err();
    server.restart().unwrap();
    let withdrawn = async {
        loop {
            if let Ok(was_exported) = host.withdraw(&name).await {
                return was_exported;
            }
        }
    };
    assert!(within(withdrawn).await);
    let key = Key::Member { group: name.clone(), host: host.config.host.clone() };
    // It may have been claimed again at the same time.
    within(async { while !matches!(host.records.decided(&key.text()).await, Ok(None | Some((None, _)))) {} }).await;
}

#[tokio::test]
async fn an_actor_that_ends_while_its_export_is_made_or_withdrawn_in_vain_is_withdrawn() {
    let mut server = NatsServer::start().unwrap();
    let ((system, a), (_others, b)) = (join(&server, "a").await, join(&server, "b").await);
    let [shop, gone] = ["shop", "gone"].map(|name| ComponentId::new(name).unwrap());
    let spawn = async |name: &ComponentId| system.spawn_native(NativeSpec::new(name.clone(), || Echo)).await.unwrap();
    let actor = spawn(&gone).await;
    actor.kill();
    within(actor.ended()).await;
    within(a.export(&actor)).await.unwrap();
    until(|| a.exported().is_empty()).await;

    let actor = spawn(&shop).await;
    within(a.export(&actor)).await.unwrap();
    until(|| b.recipient(shop.clone()).is_known()).await;
    server.kill();
    let ends = async {
        until(|| a.exported().is_empty()).await;
        actor.kill();
        actor.ended().await;
    };
    within(futures_util::future::join(a.withdraw(&shop), ends)).await.0.unwrap_err();
    server.restart().unwrap();
    until(|| !b.recipient(shop.clone()).is_known()).await;
    until(|| a.exported().is_empty()).await;
}

#[tokio::test]
async fn an_actor_that_ends_while_the_server_is_away_is_withdrawn_when_that_is_back() {
    let mut server = NatsServer::start().unwrap();
    let ((system, a), (_others, b)) = (join(&server, "a").await, join(&server, "b").await);
    let [shop, next] = ["shop", "next"].map(|name| ComponentId::new(name).unwrap());
    let spawn = async |name: &ComponentId| system.spawn_native(NativeSpec::new(name.clone(), || Echo)).await.unwrap();
    let mut actors = Vec::new();
    for name in [&shop, &next] {
        let actor = spawn(name).await;
        within(a.export(&actor)).await.unwrap();
        until(|| b.recipient(name.clone()).is_known()).await;
        actors.push(actor);
    }
    server.kill();
    actors.iter().for_each(ActorRef::kill);
    // It is tried once, in vain.
    until(|| a.exported().is_empty()).await;
    until(|| a.exported().len() == 2).await;
    // Another of the name is exported as soon as there are servers.
    until(|| system.find(&next).is_none()).await;
    let successor = spawn(&next).await;
    server.restart().unwrap();
    until_told(async || match a.export(&successor).await {
        Ok(()) => true,
        Err(error @ ExportError::Exported { .. }) => panic!("{error}"),
        Err(_) => false,
    })
    .await;
    assert!(matches!(within(a.export(&successor)).await, Err(ExportError::Exported { .. })), "the control");
    until(|| !b.recipient(shop.clone()).is_known()).await;
    assert_eq!(a.exported(), std::slice::from_ref(&next));
    assert!(!within(a.host().withdraw_actor(actors[1].address())).await.unwrap(), "it is not its own any more");
    until_told(async || b.recipient(next.clone()).ask("x").await.ok().as_deref() == Some(&b"x"[..])).await;
}

#[tokio::test]
async fn a_host_that_joins_while_the_servers_lose_their_records_joins_by_the_new_ones() {
    let mut server = NatsServer::start().unwrap();
    let (system, before) = join(&server, "a").await;
    within(before.leave(LONG)).await;
    let opened = session::open(config(&server, "a"), Box::new(system.downgrade()), CancellationToken::new());
    let opened = within(opened).await.unwrap();
    let host = &opened.host;
    assert!(host.directory.host(&host.config.host).is_some(), "its record follows that of the process before");
    server.kill();
    server.wipe();
    server.restart().unwrap();
    // As another host does.
    until_told(async || host.records.remake().await.is_ok()).await;
    let joining = Joining::new(opened.timing, fastrand::u64(..));
    let holder = within(session::begin(host, joining)).await.unwrap();
    assert_eq!(holder.token().bucket, within(host.records.bucket()).await.unwrap());
}

#[tokio::test]
async fn records_that_the_servers_lose_again_are_missed_before_the_next_renewal() {
    let mut server = NatsServer::start().unwrap();
    let engine = WasmEngine::new(EngineConfig::small().compile_in_process()).unwrap();
    let system = ActorSystem::new(engine, SystemConfig::default());
    // It renews its session once in so long.
    let config = config(&server, "a").with_lease(10 * LONG);
    let lattice = within(Lattice::join(&system, config)).await.unwrap();
    let (host, shop) = (lattice.host(), ComponentId::new("shop").unwrap());
    let mut events = lattice.events();
    // Back again with all that it had: the control.
    server.kill();
    server.keep();
    server.restart().unwrap();
    let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Echo)).await.unwrap();
    until_told(async || lattice.export(&actor).await.is_ok()).await;
    until(|| host.directory.named(&shop).is_some()).await;
    let before = host.life().unwrap().session;
    assert!(!host.is_set_back.load(Ordering::Relaxed));
    assert!(std::iter::from_fn(|| events.try_recv().ok()).all(|event| !matches!(event, LatticeEvent::Fenced)));

    server.kill();
    server.set_back();
    server.restart().unwrap();
    within(async { while !matches!(events.recv().await.unwrap(), LatticeEvent::Rejoined) {} }).await;
    let now = host.life().unwrap().session;
    assert_ne!(now, before);
    until(|| lattice.exported() == [shop.clone()] && host.exports.read()[&shop].session == now).await;
    let found = within(host.records.decided(&Key::Name(shop).text())).await.unwrap();
    assert!(found.is_some_and(|(record, _)| record.is_some()), "it is exported again");
}

#[tokio::test]
async fn a_claim_that_came_to_nothing_is_taken_back_and_no_other() {
    let server = NatsServer::start().unwrap();
    let (system, a) = join(&server, "a").await;
    let host = a.host();
    let [own, exported, other, later] =
        ["own", "exported", "other", "later"].map(|name| ComponentId::new(name).unwrap());
    let life = host.life().unwrap();
    within(host.claim(&own, &life, false, true)).await.unwrap();
    let actor = system.spawn_native(NativeSpec::new(exported.clone(), || Echo)).await.unwrap();
    within(a.export(&actor)).await.unwrap();
    let owner = Owner { host: "z".parse().unwrap(), token: life.token };
    let record = serde_json::to_vec(&NameRecord { owner, leased: false }).unwrap();
    _ = within(host.write(&Key::Name(other.clone()), record, 0)).await.unwrap();
    _ = within(host.write(&Key::Name(later.clone()), b"{}".to_vec(), 0)).await.unwrap();
    for (name, is_there) in [(&own, false), (&exported, true), (&other, true), (&later, true)] {
        within(Arc::clone(host).forsake(name.clone(), false, None)).await;
        let found = within(host.records.decided(&Key::Name(name.clone()).text())).await.unwrap();
        assert_eq!(found.is_some_and(|(record, _)| record.is_some()), is_there, "{name}");
    }
    // Of two attempts the first is taken back, and the second is left.
    let first = within(host.claim(&own, &life, false, false)).await.unwrap();
    let second = within(host.claim(&own, &life, false, false)).await.unwrap();
    for (claim, is_there) in [(first, true), (second, false)] {
        within(Arc::clone(host).forsake(own.clone(), false, Some(claim))).await;
        let found = within(host.records.decided(&Key::Name(own.clone()).text())).await.unwrap();
        assert_eq!(found.is_some_and(|(record, _)| record.is_some()), is_there);
    }
    // One that cannot be read is not taken from whoever has it.
    let claimed = within(host.claim(&later, &life, false, false)).await;
    assert!(matches!(claimed, Err(ExportError::Records { .. })), "{claimed:?}");

    // What is claimed after the session is over is nobody's.
    life.fence.put_up();
    let late = ComponentId::new("late").unwrap();
    assert!(matches!(within(host.claim(&late, &life, false, false)).await, Err(ExportError::NotJoined)));
    let key = Key::Name(late).text();
    until_told(async || matches!(host.records.decided(&key).await, Ok(Some((None, _))))).await;
}

#[tokio::test]
async fn a_host_that_leaves_exports_nothing_more() {
    let server = NatsServer::start().unwrap();
    let (system, a) = join(&server, "a").await;
    let shop = ComponentId::new("shop").unwrap();
    let actor = system.spawn_native(NativeSpec::new(shop.clone(), || Echo)).await.unwrap();
    let host = Arc::clone(a.host());
    // It begins to leave before, or while the claim is on its way.
    let exporting = a.export(&actor);
    let leaving = async { host.leaving.cancel() };
    let (exported, ()) = within(futures_util::future::join(exporting, leaving)).await;
    assert!(matches!(exported, Err(ExportError::NotJoined)), "{exported:?}");
    assert!(matches!(within(a.export(&actor)).await, Err(ExportError::NotJoined)));
    let found = within(host.records.decided(&Key::Name(shop).text())).await.unwrap();
    assert!(matches!(found, Some((None, _))), "it was claimed, and is nobody's: {found:?}");
}

#[tokio::test]
async fn a_host_of_which_a_task_panics_is_over() {
    let server = NatsServer::start().unwrap();
    let ((_system, a), (_others, b)) = (join(&server, "a").await, join(&server, "b").await);
    a.host().run(async {});
    until(|| b.hosts().len() == 2 && !a.host().left.is_cancelled()).await;
    a.host().run(async { panic!("told to") });
    until(|| b.hosts().len() == 1).await;
}

#[tokio::test]
async fn a_name_of_a_host_that_was_not_seen_yet_is_not_taken() {
    let server = NatsServer::start().unwrap();
    let (_, lattice) = join(&server, "a").await;
    let (host, name) = (lattice.host(), ComponentId::new("shop").unwrap());
    let life = host.life().unwrap();
    let session = Session { process: life.token.session.process.wrapping_add(1), number: 1 };
    let mut follows = 0;
    // Later than all that was seen here; and one that was seen, and is gone, which was evicted.
    for (revision, is_taken) in [(u64::MAX, false), (1, true)] {
        let owner = Owner { host: "z".parse().unwrap(), token: Token { revision, session, ..life.token } };
        let record = serde_json::to_vec(&NameRecord { owner, leased: false }).unwrap();
        let written = within(host.write(&Key::Name(name.clone()), record, follows)).await.unwrap();
        let Written::Yes(revision) = written else { panic!("nobody else writes it") };
        follows = revision;
        match within(host.claim(&name, &life, false, false)).await {
            Err(ExportError::NameTaken { holder, .. }) => assert!(!is_taken && holder.as_str() == "z"),
            claimed => assert!(is_taken && claimed.is_ok(), "{claimed:?}"),
        }
    }
}
