//! Components that are placed on hosts, and rolled to another version.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{
    ActorManifest, ActorRef, ActorSystem, SystemConfig, UpgradeOptions,
    engine::{EngineConfig, PoolConfig, WasmEngine},
};
use airssys_wasm_fixtures::{
    COUNTER, COUNTER_V2, LISTENER,
    nats::{NatsConfig, NatsServer},
};
use airssys_wasm_lattice::{
    AcceptError, AcceptOptions, Accepting, ChangeError, ComponentError, DeployError, Deployed, Deployment, Digest,
    HostName, Instance, InstanceState, Lattice, LatticeConfig, LatticeEvent, NotRun, RollError, RollOptions, WhyNot,
    async_nats::{self, jetstream::object_store},
};
use futures_util::{FutureExt, StreamExt, future::join_all};
use tokio::{io::AsyncReadExt, runtime::Builder, sync::watch, task::JoinHandle};

use crate::support::{LONG, config, id, seen_by_server, server, until, until_told, within};

static ENGINE: LazyLock<WasmEngine> = LazyLock::new(|| {
    let pool = Some(PoolConfig::for_components(256));
    WasmEngine::new(EngineConfig { pool, ..EngineConfig::default() }.compile_in_process()).unwrap()
});

/// A host on which components may be placed, unless it refuses all.
pub(crate) struct Fleet {
    system: ActorSystem,
    pub(crate) lattice: Lattice,
    accepting: Option<Accepting>,
    refuses: Arc<AtomicBool>,
    /// Whether it starts what is placed on it, or waits.
    starts: Arc<watch::Sender<bool>>,
    /// How many specifications it is making, and the most there were at a time.
    making: Arc<(AtomicUsize, AtomicUsize)>,
}

const REFUSES: &str = "told to refuse";

impl Fleet {
    pub(crate) async fn join(config: LatticeConfig, most: usize) -> Self {
        let system = ActorSystem::new(ENGINE.clone(), SystemConfig::default());
        let lattice = within(Lattice::join(&system, config)).await.unwrap();
        let mut fleet = Self {
            system,
            lattice,
            accepting: None,
            refuses: Arc::default(),
            starts: Arc::new(watch::Sender::new(true)),
            making: Arc::default(),
        };
        if most > 0 {
            fleet.accept(most).unwrap();
        }
        fleet
    }

    async fn start(server: &NatsServer, name: &str, most: usize) -> Self {
        Self::join(config(server, name).with_lease(Duration::from_secs(2)), most).await
    }

    fn accept(&mut self, most: usize) -> Result<(), AcceptError> {
        let (system, refuses, starts) = (self.system.downgrade(), Arc::clone(&self.refuses), Arc::clone(&self.starts));
        let making = Arc::clone(&self.making);
        let accepting = self.lattice.accept(AcceptOptions { most }, move |placed| {
            let (system, refuses) = (system.upgrade(), refuses.load(Ordering::SeqCst));
            let (mut starts, making) = (starts.subscribe(), Arc::clone(&making));
            async move {
                making.1.fetch_max(making.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                starts.wait_for(|starts| *starts).await?;
                making.0.fetch_sub(1, Ordering::SeqCst);
                if refuses {
                    return Err(REFUSES.into());
                }
                let system = system.ok_or("the system has ended")?;
                let manifest = ActorManifest::from_toml(&placed.manifest)?;
                Ok(system.load_bytes(manifest, placed.component).await?)
            }
        })?;
        self.accepting = Some(accepting);
        Ok(())
    }

    fn name(&self) -> &HostName {
        self.lattice.name()
    }

    pub(crate) async fn deploy(&self, deployment: Deployment) -> Result<Vec<String>, DeployError> {
        let hosts = within(self.lattice.deploy(deployment)).await?;
        Ok(hosts.iter().map(ToString::to_string).collect())
    }

    /// The actor that was placed here.
    fn actor(&self) -> Option<ActorRef> {
        self.system.find("counter")
    }

    async fn ask_own(&self, text: &str) -> String {
        let answer = within(self.actor().unwrap().ask(text.to_owned())).await.unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    }

    /// Asks whichever host has it.
    async fn ask(&self, text: &str) -> String {
        let answer = self.lattice.recipient(id("counter")).ask_within(LONG, text.to_owned()).await.unwrap();
        String::from_utf8(answer.to_vec()).unwrap()
    }

    fn deployed(&self, name: &str) -> Option<Deployed> {
        self.lattice.deployments().into_iter().find(|deployed| deployed.name == id(name))
    }

    fn instance(&self, host: &str) -> Option<Instance> {
        self.deployed("counter")?.hosts.remove(&host.parse::<HostName>().unwrap())
    }

    /// Waits until a host has said so.
    async fn sees(&self, host: &str, running: Option<Digest>, state: InstanceState) {
        until(|| self.instance(host).is_some_and(|instance| (instance.running, &instance.state) == (running, &state)))
            .await;
    }

    /// Rolls in a task.
    fn roll(&self, digest: Digest, options: RollOptions) -> JoinHandle<Result<Vec<HostName>, RollError>> {
        let lattice = self.lattice.clone();
        tokio::spawn(async move { lattice.roll(&id("counter"), digest, options).await })
    }

    async fn leave(self) {
        within(self.lattice.leave(Duration::from_secs(10))).await;
    }
}

/// Waits until each host knows the room of each.
pub(crate) async fn have_room(hosts: &[&Fleet], rooms: &[(&Fleet, usize)]) {
    until(|| hosts.iter().all(|host| rooms.iter().all(|(of, room)| host.lattice.room(of.name()) == *room))).await;
}

pub(crate) fn deployment(name: &str, digest: Digest) -> Deployment {
    let manifest = format!("[component]\nname = '{name}'\n[resources]\nmemory = '8MiB'\ncpu_time = '5s'\n");
    Deployment::new(id(name), digest, manifest).with_longest(LONG)
}

fn on_probation(probation: u32) -> RollOptions {
    RollOptions { upgrade: UpgradeOptions { probation, ..UpgradeOptions::default() }, longest: LONG, load: LONG }
}

fn failed(host: &str, why: WhyNot) -> impl Fn(&NotRun) -> bool {
    let host = host.to_owned();
    move |failure| failure.host.as_str() == host && failure.why == why
}

fn refused(because: impl ToString) -> WhyNot {
    WhyNot::Refused { because: because.to_string() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_is_placed_where_the_labels_match_and_reached_by_its_name() {
    let server = server();
    let labelled = async |name: &str, zone: &str| {
        let mut config = config(&server, name);
        config.labels.insert("zone".to_owned(), zone.to_owned());
        Fleet::join(config, 4).await
    };
    let (a, b, c) = (labelled("a", "eu").await, labelled("b", "us").await, labelled("c", "eu").await);
    have_room(&[&b], &[(&a, 4), (&b, 4), (&c, 4)]).await;
    let digest = within(b.lattice.put(COUNTER)).await.unwrap();
    assert_eq!(digest, Digest::of(COUNTER));
    let in_eu = || deployment("counter", digest).on(2).with_label("zone", "eu");
    assert_eq!(b.deploy(in_eu()).await.unwrap(), ["a", "c"]);
    assert!(a.actor().is_some() && b.actor().is_none() && c.actor().is_some());

    // Each in turn, and one's own where there is one.
    until(|| b.lattice.recipient(id("counter")).hosts() == 2).await;
    for _ in 0..4 {
        b.ask("add 1").await;
    }
    assert_eq!((a.ask_own("get").await, c.ask_own("get").await), ("2".to_owned(), "2".to_owned()));
    for n in 3..6 {
        assert_eq!(a.ask("add 1").await, n.to_string());
    }

    // Once more: nothing changes. In another way: refused.
    assert_eq!(c.deploy(in_eu()).await.unwrap(), ["a", "c"]);
    assert_eq!(a.ask_own("get").await, "5");
    let otherwise = c.deploy(in_eu().with_label("disk", "fast")).await;
    assert!(matches!(otherwise, Err(DeployError::Otherwise { .. })), "{otherwise:?}");
    let deployed = b.deployed("counter").unwrap();
    assert_eq!(deployed.labels, BTreeMap::from([("zone".to_owned(), "eu".to_owned())]));
    assert_eq!(deployed.changed_by, None);
    let running = |instance: &Instance| {
        (instance.wanted, instance.running, &instance.state) == (Some(digest), Some(digest), &InstanceState::Running)
    };
    assert!(deployed.hosts.len() == 2 && deployed.hosts.values().all(running), "{deployed:?}");

    // Nowhere.
    let nowhere = b.deploy(deployment("other", digest).with_label("zone", "mars")).await;
    match nowhere {
        Err(DeployError::NotPlaced { missing: 1, failures, .. }) => assert!(failures.is_empty()),
        other => panic!("{other:?}"),
    }
    assert!(b.deployed("other").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_with_more_room_is_chosen_until_there_is_none() {
    let server = server();
    let (a, b) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "b", 4).await);
    have_room(&[&a], &[(&a, 1), (&b, 4)]).await;
    let digest = within(a.lattice.put(COUNTER)).await.unwrap();
    for (n, left) in [(0, 3), (1, 2)] {
        assert_eq!(a.deploy(deployment(&format!("counter-{n}"), digest)).await.unwrap(), ["b"]);
        have_room(&[&a], &[(&a, 1), (&b, left)]).await;
    }
    assert_eq!(a.deploy(deployment("both", digest).on(2)).await.unwrap(), ["a", "b"]);
    have_room(&[&a], &[(&a, 0), (&b, 1)]).await;
    let full = a.deploy(deployment("counter-3", digest).on(2)).await;
    assert!(matches!(full, Err(DeployError::NotPlaced { missing: 2, .. })), "{full:?}");
    // What is undeployed gives its room back.
    assert!(within(a.lattice.undeploy(&id("both"))).await.unwrap());
    have_room(&[&a], &[(&a, 1), (&b, 2)]).await;
    assert_eq!(a.deploy(deployment("counter-3", digest).on(2)).await.unwrap(), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_refuses_is_passed_over_and_nothing_stays_where_all_do() {
    let server = server();
    let (a, b) = (Fleet::start(&server, "a", 8).await, Fleet::start(&server, "b", 2).await);
    let observer = Fleet::start(&server, "observer", 0).await;
    have_room(&[&observer], &[(&a, 8), (&b, 2)]).await;
    let digest = within(observer.lattice.put(COUNTER)).await.unwrap();
    let mut events = a.lattice.events();
    a.refuses.store(true, Ordering::SeqCst);
    // The first choice is the host with more room.
    assert_eq!(observer.deploy(deployment("counter", digest)).await.unwrap(), ["b"]);
    let refusal = within(async {
        loop {
            if let LatticeEvent::NotPlaced { because, .. } = events.recv().await.unwrap() {
                return because;
            }
        }
    })
    .await;
    assert_eq!(refusal, REFUSES);
    until(|| observer.instance("a").is_none()).await;
    // What was placed before stays.
    let more = observer.deploy(deployment("counter", digest).on(2)).await;
    assert!(matches!(more, Err(DeployError::NotPlaced { missing: 1, .. })), "{more:?}");
    until(|| observer.deployed("counter").is_some_and(|it| it.changed_by.is_none() && it.hosts.len() == 1)).await;
    assert!(b.actor().is_some());

    let both = observer.deploy(deployment("other", digest).on(2)).await;
    match both {
        Err(DeployError::NotPlaced { missing: 1, failures, .. }) => {
            assert!(failures.len() == 1 && failed("a", refused(REFUSES))(&failures[0]), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
    // Also where it did start.
    until(|| observer.deployed("other").is_none() && b.system.find("other").is_none()).await;
    have_room(&[&observer], &[(&a, 8), (&b, 1)]).await;
    a.refuses.store(false, Ordering::SeqCst);
    assert_eq!(observer.deploy(deployment("other", digest).on(2)).await.unwrap(), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_under_a_digest_and_is_something_else_is_refused() {
    let server = server();
    let a = Fleet::start(&server, "a", 4).await;
    have_room(&[&a], &[(&a, 4)]).await;
    let digest = Digest::of(COUNTER);
    let nothing = a.deploy(deployment("counter", digest)).await;
    assert!(
        matches!(&nothing, Err(DeployError::Change(ChangeError::Component(ComponentError::NotFound { digest: it }))) if *it == digest),
        "{nothing:?}"
    );
    assert_eq!(within(a.lattice.put(COUNTER)).await.unwrap(), digest);
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let store = jetstream.get_object_store("aw_test_components").await.unwrap();
    store.put(digest.to_string().as_str(), &mut &*COUNTER_V2).await.unwrap();

    let altered = a.deploy(deployment("counter", digest)).await;
    match altered {
        Err(DeployError::NotPlaced { failures, .. }) => {
            let why = refused(ComponentError::Altered { digest });
            assert!(failures.len() == 1 && failed("a", why)(&failures[0]), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(a.actor().is_none());
    // Whoever has the right bytes puts them there again.
    assert_eq!(within(a.lattice.put(COUNTER)).await.unwrap(), digest);
    until(|| a.deployed("counter").is_none()).await;
    assert_eq!(a.deploy(deployment("counter", digest)).await.unwrap(), ["a"]);
    let large = within(a.lattice.put(vec![0; (64 << 20) + 1])).await;
    assert!(matches!(large, Err(ComponentError::TooLarge { .. })), "{large:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_are_read_through_the_leader_of_their_stream() {
    let server = server();
    let a = Fleet::start(&server, "a", 4).await;
    have_room(&[&a], &[(&a, 4)]).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client.clone());
    // As the client makes a store: any replica may answer what it gets.
    let config = object_store::Config { bucket: "aw_test_components".to_owned(), ..object_store::Config::default() };
    let store = jetstream.create_object_store(config).await.unwrap();
    let digest = Digest::of(COUNTER);
    store.put(digest.to_string().as_str(), &mut &*COUNTER).await.unwrap();

    let mut asked = client.subscribe("$JS.API.>").await.unwrap();
    let mut asks = async || {
        seen_by_server(&client).await;
        let mut asks = BTreeSet::new();
        while let Some(Some(message)) = asked.next().now_or_never() {
            let subject = message.subject.strip_prefix("$JS.API.").unwrap().to_owned();
            if let Some((ask, _)) = subject.split_once(".OBJ_aw_test_components") {
                asks.insert(ask.to_owned());
            }
        }
        asks
    };
    asks().await;
    assert_eq!(a.deploy(deployment("counter", digest)).await.unwrap(), ["a"]);
    assert_eq!(asks().await, BTreeSet::from(["STREAM.INFO", "STREAM.MSG.GET"].map(str::to_owned)));
    // The control: what the client itself asks.
    let mut object = store.get(digest.to_string()).await.unwrap();
    object.read_to_end(&mut Vec::new()).await.unwrap();
    let of_client = asks().await;
    assert!(of_client.contains("DIRECT.GET") && of_client.contains("CONSUMER.CREATE"), "{of_client:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_components_that_a_host_makes_gives_nothing_directly() {
    let server = server();
    let a = Fleet::start(&server, "a", 0).await;
    within(a.lattice.put(COUNTER)).await.unwrap();
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream.get_stream("OBJ_aw_test_components").await.unwrap();
    assert!(!stream.cached_info().config.allow_direct);
}

/// Three servers that keep three replicas of everything.
fn cluster() -> Vec<NatsServer> {
    // Free until they are taken: others choose ports like these.
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let routes: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(listeners);
    let all = routes.iter().map(|route| format!("\"nats://{route}\"")).collect::<Vec<_>>().join(", ");
    let start = |(number, route): (usize, &String)| {
        let more =
            format!("server_name: server-{number}\ncluster: {{ name: test, listen: \"{route}\", routes: [{all}] }}");
        NatsConfig { more, ..NatsConfig::jetstream() }.start().unwrap()
    };
    routes.iter().enumerate().map(start).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_one_host_has_put_is_there_for_all_over_three_replicas() {
    let servers = cluster();
    let member = async |server: &NatsServer, name: &str, most: usize| {
        let mut config = config(server, name);
        config.replicas = 3;
        // The servers elect a leader first.
        let client = async_nats::connect(server.url()).await.unwrap();
        let jetstream = async_nats::jetstream::new(client);
        until_told(async || jetstream.query_account().await.is_ok()).await;
        Fleet::join(config, most).await
    };
    let a = member(&servers[0], "a", 0).await;
    let (b, c) = tokio::join!(member(&servers[1], "b", 64), member(&servers[2], "c", 64));
    have_room(&[&a, &b], &[(&b, 64), (&c, 64)]).await;
    for round in 0..8 {
        // Another component each time, by a custom section that means nothing.
        let component = [COUNTER, &[0, 5, 1, b'x', round, round, round]].concat();
        let digest = within(a.lattice.put(component)).await.unwrap();
        let deployment = deployment(&format!("counter-{round}"), digest).on(2);
        assert_eq!(b.deploy(deployment).await.unwrap(), ["b", "c"]);
    }
}

/// Three hosts that run the counter, one that looks on, and the two versions of it.
async fn three(server: &NatsServer) -> ([Fleet; 3], Fleet, Digest, Digest) {
    let (a, b, c, observer) = tokio::join!(
        Fleet::start(server, "a", 4),
        Fleet::start(server, "b", 4),
        Fleet::start(server, "c", 4),
        Fleet::start(server, "observer", 0),
    );
    have_room(&[&observer], &[(&a, 4), (&b, 4), (&c, 4)]).await;
    let old = within(observer.lattice.put(COUNTER)).await.unwrap();
    let new = within(observer.lattice.put(COUNTER_V2)).await.unwrap();
    assert_eq!(observer.deploy(deployment("counter", old).on(3)).await.unwrap(), ["a", "b", "c"]);
    until(|| observer.lattice.recipient(id("counter")).hosts() == 3).await;
    ([a, b, c], observer, old, new)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_under_load_fails_no_ask_and_keeps_the_state() {
    let server = server();
    let (hosts, observer, old, new) = three(&server).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let askers: Vec<_> = (0..6)
        .map(|_| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            let counter = observer.lattice.recipient(id("counter"));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    counter.ask_within(LONG, "add 1").await.unwrap();
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    until(|| asked.load(Ordering::SeqCst) > 100).await;
    let rolled = within(observer.roll(new, on_probation(10))).await.unwrap().unwrap();
    assert_eq!(rolled.len(), 3);
    let then = asked.load(Ordering::SeqCst);
    until(|| asked.load(Ordering::SeqCst) > then + 100).await;
    stop.store(true, Ordering::SeqCst);
    for asker in askers {
        within(asker).await.unwrap();
    }
    let mut sum = 0;
    for host in &hosts {
        let count = host.ask_own("get").await;
        sum += count.strip_prefix("count: ").expect("it is the new version").parse::<usize>().unwrap();
        observer.sees(host.name().as_str(), Some(new), InstanceState::Running).await;
    }
    assert_eq!(sum, asked.load(Ordering::SeqCst));
    // And back, host by host.
    within(observer.roll(old, on_probation(0))).await.unwrap().unwrap();
    let mut back = 0;
    for host in &hosts {
        back += host.ask_own("get").await.parse::<usize>().unwrap();
    }
    assert_eq!(back, sum);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_stops_at_the_first_host_that_rolls_back_and_goes_on_when_it_is_called_again() {
    let server = server();
    let ([a, b, c], observer, old, new) = three(&server).await;
    for host in [&a, &b, &c] {
        host.ask_own("add 7").await;
    }
    let mut events = a.lattice.events();
    let rolling = observer.roll(new, on_probation(1_000));
    observer.sees("a", Some(new), InstanceState::Trying).await;
    assert_eq!(a.ask_own("get").await, "count: 7");
    within(a.actor().unwrap().ask("crash")).await.unwrap_err();
    match within(rolling).await.unwrap() {
        Err(RollError::Stopped { failure, runs, .. }) => {
            assert!(failed("a", WhyNot::RolledBack)(&failure), "{failure}");
            assert_eq!(runs.into_values().collect::<Vec<_>>(), [Some(old); 3]);
        }
        other => panic!("{other:?}"),
    }
    within(async { while !matches!(events.recv().await.unwrap(), LatticeEvent::RolledBack { .. }) {} }).await;
    for host in [&a, &b, &c] {
        assert_eq!(host.ask_own("get").await, "7");
        observer.sees(host.name().as_str(), Some(old), InstanceState::Running).await;
    }

    // A version that the second host refuses.
    b.refuses.store(true, Ordering::SeqCst);
    match within(observer.roll(new, on_probation(0))).await.unwrap() {
        Err(RollError::Stopped { failure, runs, .. }) => {
            assert!(failed("b", refused(REFUSES))(&failure), "{failure}");
            assert_eq!(runs.into_values().collect::<Vec<_>>(), [Some(new), Some(old), Some(old)]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((a.ask_own("get").await, b.ask_own("get").await), ("count: 7".to_owned(), "7".to_owned()));
    b.refuses.store(false, Ordering::SeqCst);
    within(observer.roll(new, on_probation(0))).await.unwrap().unwrap();
    for host in [&a, &b, &c] {
        assert_eq!(host.ask_own("get").await, "count: 7");
    }

    // One that would lose the state.
    let other = within(observer.lattice.put(LISTENER)).await.unwrap();
    let rolled = within(observer.roll(other, on_probation(0))).await.unwrap();
    assert!(matches!(&rolled, Err(RollError::Stopped { failure, .. }) if failure.host.as_str() == "a"), "{rolled:?}");
    assert_eq!(a.ask_own("get").await, "count: 7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_rolls_at_once_the_second_is_refused() {
    let server = server();
    let ([a, b, c], observer, old, new) = three(&server).await;
    // Neither comes to its end before `a` has had messages.
    let (mut first, mut second) = (observer.roll(new, on_probation(2)), b.roll(new, on_probation(2)));
    let (by, refused) = within(async {
        tokio::select! {
            refused = &mut first => ("b", refused),
            refused = &mut second => ("observer", refused),
        }
    })
    .await;
    let goes_on = if by == "b" { second } else { first };
    let busy = |error: &ChangeError| matches!(error, ChangeError::Busy { by: other, .. } if other.as_str() == by);
    assert!(matches!(&refused, Ok(Err(RollError::Change(error))) if busy(error)), "{refused:?}");
    observer.sees("a", Some(new), InstanceState::Trying).await;
    for host in [&observer, &b] {
        let third = within(host.roll(old, on_probation(0))).await.unwrap();
        assert!(matches!(&third, Err(RollError::Change(error)) if busy(error)), "{third:?}");
    }
    let placed = b.deploy(deployment("counter", old).on(3)).await;
    assert!(matches!(&placed, Err(DeployError::Change(error)) if busy(error)), "{placed:?}");
    for host in [&a, &b, &c] {
        observer.sees(host.name().as_str(), Some(new), InstanceState::Trying).await;
        host.ask_own("get").await;
        host.ask_own("get").await;
    }
    within(goes_on).await.unwrap().unwrap();
    within(b.roll(old, on_probation(0))).await.unwrap().unwrap();
    assert_eq!(c.ask_own("get").await, "0");
    let unknown = within(b.lattice.roll(&id("other"), old, on_probation(0))).await;
    assert!(matches!(unknown, Err(RollError::NotDeployed { .. })), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_whose_host_has_left_is_taken_over_by_another() {
    let server = server();
    let ([a, b, c], observer, old, new) = three(&server).await;
    let first = observer.roll(new, on_probation(3));
    b.sees("a", Some(new), InstanceState::Trying).await;
    let busy = within(b.roll(new, on_probation(3))).await.unwrap();
    assert!(matches!(busy, Err(RollError::Change(ChangeError::Busy { .. }))), "{busy:?}");
    observer.leave().await;
    let first = within(first).await.unwrap();
    assert!(matches!(first, Err(RollError::Change(ChangeError::NotJoined))), "{first:?}");
    until(|| b.lattice.hosts().len() == 3).await;

    let second = b.roll(new, on_probation(3));
    until(|| b.deployed("counter").unwrap().changed_by.as_ref() == Some(b.name())).await;
    // It is on probation still, now for the second.
    b.sees("a", Some(new), InstanceState::Trying).await;
    assert_eq!(a.ask_own("add 1").await, "count: 1");
    within(a.actor().unwrap().ask("crash")).await.unwrap_err();
    match within(second).await.unwrap() {
        Err(RollError::Stopped { failure, .. }) => assert!(failed("a", WhyNot::RolledBack)(&failure), "{failure}"),
        other => panic!("{other:?}"),
    }
    b.sees("a", Some(old), InstanceState::Running).await;
    within(c.roll(new, on_probation(0))).await.unwrap().unwrap();
    assert_eq!(a.ask_own("get").await, "count: 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_during_which_the_servers_were_away_is_finished_by_calling_it_again() {
    let mut server = server();
    let ([a, b, c], observer, _, new) = three(&server).await;
    let rolling = observer.roll(new, on_probation(1));
    observer.sees("a", Some(new), InstanceState::Trying).await;
    server.kill();
    // Its probation ends, which nobody can be told.
    assert_eq!(a.ask_own("add 1").await, "count: 1");
    server.restart().unwrap();
    // It goes on, unless hosts were lost meanwhile.
    let rolled = within(async {
        while !rolling.is_finished() {
            for host in [&b, &c] {
                host.ask_own("get").await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rolling.await.unwrap()
    })
    .await;
    println!("the first came to {rolled:?}");
    within(async {
        loop {
            match b.lattice.roll(&id("counter"), new, on_probation(0)).await {
                Ok(_) => return,
                Err(error) => println!("not yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    for host in [&a, &b, &c] {
        assert!(host.ask_own("get").await.starts_with("count: "));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_it_deploys_leaves_nothing_and_who_is_killed_is_followed_by_another() {
    let server = server();
    let (a, b) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "b", 0).await);
    have_room(&[&b], &[(&a, 1)]).await;
    let digest = within(b.lattice.put(COUNTER)).await.unwrap();
    a.starts.send_replace(false);
    let changed_by = || b.deployed("counter").and_then(|deployed| deployed.changed_by);

    let leaves = Fleet::start(&server, "leaves", 0).await;
    let deploying = tokio::spawn({
        let lattice = leaves.lattice.clone();
        async move { lattice.deploy(deployment("counter", digest)).await }
    });
    until(|| changed_by().is_some_and(|by| by.as_str() == "leaves")).await;
    leaves.leave().await;
    let left = within(deploying).await.unwrap();
    assert!(matches!(left, Err(DeployError::Change(ChangeError::NotJoined))), "{left:?}");
    until(|| b.deployed("counter").is_none()).await;

    // On a thread of its own: what a process would be.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let settings = config(&server, "killed").with_lease(Duration::from_secs(2));
    let killed = within(runtime.spawn(Fleet::join(settings, 0))).await.unwrap();
    // What it had begun was given up.
    have_room(&[&b, &killed], &[(&a, 1)]).await;
    let lattice = killed.lattice.clone();
    runtime.spawn(async move { lattice.deploy(deployment("counter", digest)).await });
    until(|| changed_by().is_some_and(|by| by.as_str() == "killed")).await;
    runtime.shutdown_background();
    let busy = b.deploy(deployment("counter", digest)).await;
    assert!(matches!(busy, Err(DeployError::Change(ChangeError::Busy { .. }))), "{busy:?}");
    let follows = async {
        loop {
            match b.deploy(deployment("counter", digest)).await {
                Err(DeployError::Change(ChangeError::Busy { .. })) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                deployed => return deployed,
            }
        }
    };
    // It waits for what comes of the order of before.
    let starts = async {
        until(|| changed_by().is_some_and(|by| by.as_str() == "b")).await;
        a.starts.send_replace(true);
    };
    let (followed, ()) = within(async { tokio::join!(follows, starts) }).await;
    assert_eq!(followed.unwrap(), ["a"]);
    assert_eq!(b.ask("add 1").await, "1");
    assert_eq!(changed_by(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_gets_no_messages_is_kept_after_a_time_and_rolled_back_if_it_fails_later() {
    let server = server();
    let (a, observer) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "observer", 0).await);
    have_room(&[&observer], &[(&a, 1)]).await;
    let old = within(observer.lattice.put(COUNTER)).await.unwrap();
    let new = within(observer.lattice.put(COUNTER_V2)).await.unwrap();
    observer.deploy(deployment("counter", old)).await.unwrap();
    let options = RollOptions { longest: Duration::from_millis(50), ..on_probation(5) };
    within(observer.roll(new, options)).await.unwrap().unwrap();
    observer.sees("a", Some(new), InstanceState::Running).await;
    within(a.actor().unwrap().ask("crash")).await.unwrap_err();
    observer.sees("a", Some(old), InstanceState::Not(WhyNot::RolledBack)).await;
    assert_eq!(a.ask_own("get").await, "0");
    // It is not taken for what runs.
    within(observer.roll(new, options)).await.unwrap().unwrap();
    observer.sees("a", Some(new), InstanceState::Running).await;
    assert_eq!(a.ask_own("get").await, "count: 0");
    a.actor().unwrap().kill();
    observer.sees("a", None, InstanceState::Not(WhyNot::Ended)).await;
    within(observer.roll(new, options)).await.unwrap().unwrap();
    assert_eq!(a.ask_own("get").await, "count: 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_rolled_back_while_the_next_is_made_ready_is_not_what_the_host_says_it_runs() {
    let server = server();
    let (a, observer) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "observer", 0).await);
    have_room(&[&observer], &[(&a, 1)]).await;
    let old = within(observer.lattice.put(COUNTER)).await.unwrap();
    let new = within(observer.lattice.put(COUNTER_V2)).await.unwrap();
    // The same with a section of its own.
    let third = within(observer.lattice.put([COUNTER_V2, &[0, 2, 1, b'x']].concat())).await.unwrap();
    observer.deploy(deployment("counter", old)).await.unwrap();
    let options = RollOptions { longest: Duration::from_millis(50), ..on_probation(5) };
    within(observer.roll(new, options)).await.unwrap().unwrap();

    a.starts.send_replace(false);
    let rolling = observer.roll(third, on_probation(1_000));
    observer.sees("a", Some(new), InstanceState::Trying).await;
    let mut events = a.lattice.events();
    within(a.actor().unwrap().ask("crash")).await.unwrap_err();
    within(async { while !matches!(events.recv().await.unwrap(), LatticeEvent::RolledBack { .. }) {} }).await;
    a.starts.send_replace(true);
    observer.sees("a", Some(third), InstanceState::Trying).await;
    within(a.actor().unwrap().ask("crash")).await.unwrap_err();
    match within(rolling).await.unwrap() {
        Err(RollError::Stopped { failure, .. }) => assert!(failed("a", WhyNot::RolledBack)(&failure), "{failure}"),
        other => panic!("{other:?}"),
    }
    // What it is to run is the version from before the roll, which it goes over to once more.
    observer.sees("a", Some(new), InstanceState::Running).await;
    assert_eq!(a.ask_own("get").await, "count: 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_is_placed_at_once_no_more_than_two_are_made_ready_at_a_time() {
    let server = server();
    let (a, observer) = (Fleet::start(&server, "a", 4).await, Fleet::start(&server, "observer", 0).await);
    have_room(&[&observer], &[(&a, 4)]).await;
    let digest = within(observer.lattice.put(COUNTER)).await.unwrap();
    a.starts.send_replace(false);
    let names: Vec<_> = (0..4).map(|n| format!("counter-{n}")).collect();
    let all = join_all(names.iter().map(|name| observer.deploy(deployment(name, digest))));
    let starts = async {
        // Each has its place meanwhile.
        have_room(&[&observer], &[(&a, 0)]).await;
        until(|| a.making.0.load(Ordering::SeqCst) == 2).await;
        // As long as the others would have taken.
        within(observer.lattice.put(COUNTER)).await.unwrap();
        a.starts.send_replace(true);
    };
    for placed in within(async { tokio::join!(all, starts) }).await.0 {
        assert_eq!(placed.unwrap(), ["a"]);
    }
    assert_eq!(a.making.1.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_of_a_host_that_was_evicted() {
    let server = server();
    let ([_a, b, c], observer, old, _) = three(&server).await;
    c.leave().await;
    let c = "c".parse().unwrap();
    assert!(within(observer.lattice.evict(&c)).await.unwrap());
    // It has seen that itself.
    assert!(!within(observer.lattice.evict(&c)).await.unwrap());
    assert_eq!(within(observer.roll(old, on_probation(0))).await.unwrap().unwrap().len(), 2);
    until(|| b.deployed("counter").is_some_and(|it| !it.hosts.contains_key(&c))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_stops_where_a_host_is_lost_which_runs_the_old_version_when_it_is_back() {
    let server = server();
    let ([a, b, c], observer, old, new) = three(&server).await;
    let rolling = observer.roll(new, on_probation(1_000));
    observer.sees("a", Some(new), InstanceState::Trying).await;
    a.leave().await;
    match within(rolling).await.unwrap() {
        Err(RollError::Stopped { failure, .. }) => assert!(failed("a", WhyNot::Lost)(&failure), "{failure}"),
        other => panic!("{other:?}"),
    }
    assert_eq!((b.ask_own("get").await, c.ask_own("get").await), ("0".to_owned(), "0".to_owned()));
    // Without it, it does not begin.
    let rolled = within(observer.roll(new, on_probation(0))).await.unwrap();
    assert!(matches!(&rolled, Err(RollError::Stopped { failure, .. }) if failed("a", WhyNot::Lost)(failure)));
    assert_eq!(b.ask_own("get").await, "0");
    let a = Fleet::start(&server, "a", 4).await;
    observer.sees("a", Some(old), InstanceState::Running).await;
    assert_eq!(a.ask_own("get").await, "0");
    within(observer.roll(new, on_probation(0))).await.unwrap().unwrap();
    assert_eq!(a.ask_own("get").await, "count: 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_comes_back_runs_what_is_placed_on_it() {
    let server = server();
    let (a, observer) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "observer", 0).await);
    have_room(&[&observer], &[(&a, 1)]).await;
    let digest = within(observer.lattice.put(COUNTER)).await.unwrap();
    observer.deploy(deployment("counter", digest)).await.unwrap();
    assert_eq!(observer.ask("add 1").await, "1");
    a.leave().await;
    observer.sees("a", None, InstanceState::Away).await;

    let mut a = Fleet::start(&server, "a", 0).await;
    observer.sees("a", None, InstanceState::Pending).await;
    assert!(a.actor().is_none(), "it accepts nothing yet");
    a.accept(1).unwrap();
    observer.sees("a", Some(digest), InstanceState::Running).await;
    assert_eq!(observer.ask("add 1").await, "1");
    assert!(matches!(a.accept(1), Err(AcceptError::Accepting)));

    // One that does not accept components any more stops them, and runs them when it does again.
    let actor = a.actor().unwrap();
    within(a.accepting.take().unwrap().stop()).await;
    within(actor.ended()).await;
    observer.sees("a", None, InstanceState::Pending).await;
    a.accept(1).unwrap();
    observer.sees("a", Some(digest), InstanceState::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_started_by_deploying_it_again() {
    let server = server();
    let (a, observer) = (Fleet::start(&server, "a", 1).await, Fleet::start(&server, "observer", 0).await);
    have_room(&[&observer], &[(&a, 1)]).await;
    let digest = within(observer.lattice.put(COUNTER)).await.unwrap();
    observer.deploy(deployment("counter", digest)).await.unwrap();
    let actor = a.actor().unwrap();
    actor.kill();
    observer.sees("a", None, InstanceState::Not(WhyNot::Ended)).await;
    have_room(&[&observer], &[(&a, 1)]).await;
    assert!(a.actor().is_none());
    until(|| observer.lattice.recipient(id("counter")).hosts() == 0).await;
    // A deployment that fails does not forget it.
    a.refuses.store(true, Ordering::SeqCst);
    let fails = observer.deploy(deployment("counter", digest)).await;
    assert!(matches!(fails, Err(DeployError::NotPlaced { missing: 1, .. })), "{fails:?}");
    until(|| observer.deployed("counter").is_some_and(|it| it.changed_by.is_none())).await;
    let wanted = observer.instance("a").and_then(|instance| instance.wanted);
    assert_eq!(wanted, Some(digest));
    a.refuses.store(false, Ordering::SeqCst);
    have_room(&[&observer], &[(&a, 1)]).await;
    assert_eq!(observer.deploy(deployment("counter", digest)).await.unwrap(), ["a"]);
    assert_eq!(observer.ask("add 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_undeployed_stops_everywhere() {
    let server = server();
    let (hosts, observer, old, _) = three(&server).await;
    observer.deploy(deployment("other", old).on(3)).await.unwrap();
    let [a, b, c] = hosts;
    let actors = [&a, &b].map(|host| host.actor().unwrap());
    // One is away, and stops it when it is back.
    c.leave().await;
    assert!(within(observer.lattice.undeploy(&id("counter"))).await.unwrap());
    for actor in actors {
        within(actor.ended()).await;
    }
    let counter = observer.lattice.recipient(id("counter"));
    until(|| observer.deployed("counter").is_none() && counter.hosts() == 0).await;
    let c = Fleet::start(&server, "c", 4).await;
    assert!(!within(observer.lattice.undeploy(&id("counter"))).await.unwrap());
    // The other one goes on.
    let other = observer.lattice.recipient(id("other"));
    assert_eq!(within(other.ask("add 1")).await.unwrap(), "1");
    assert!(c.actor().is_none() && observer.deployed("counter").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_records_made_anew_hosts_go_on_and_deploying_again_adopts_what_runs() {
    let mut server = server();
    let (a, b) = (Fleet::start(&server, "a", 4).await, Fleet::start(&server, "b", 1).await);
    have_room(&[&a], &[(&a, 4), (&b, 1)]).await;
    let digest = within(a.lattice.put(COUNTER)).await.unwrap();
    assert_eq!(a.deploy(deployment("counter", digest)).await.unwrap(), ["a"]);
    assert_eq!(a.ask_own("add 5").await, "5");
    let mut events = a.lattice.events();
    server.kill();
    server.wipe();
    server.restart().unwrap();
    within(async { while events.recv().await.unwrap() != LatticeEvent::Rejoined {} }).await;
    // What it runs has no record any more, and runs.
    until(|| b.deployed("counter").is_some_and(|it| it.manifest.is_none() && it.hosts.len() == 1)).await;
    b.sees("a", Some(digest), InstanceState::Running).await;
    assert_eq!(a.ask_own("get").await, "5");
    until(|| b.lattice.hosts().len() == 2).await;

    assert_eq!(within(b.lattice.put(COUNTER)).await.unwrap(), digest);
    assert_eq!(b.deploy(deployment("counter", digest)).await.unwrap(), ["a"]);
    assert_eq!(a.ask_own("get").await, "5");
    assert!(b.deployed("counter").unwrap().manifest.is_some());
    assert!(within(b.lattice.undeploy(&id("counter"))).await.unwrap());
    until(|| a.actor().is_none()).await;
}
