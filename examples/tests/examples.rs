//! Runs each example, and looks at what came of it.

use std::{
    env,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use airssys_wasm_actor::{AskError, CallError, DeniedAction, ShutdownReport, SystemEvent};
use airssys_wasm_engine::EngineConfig;
use airssys_wasm_isolation::CrashClass;
use airssys_wasm_keyed::{FjallStore, MemoryStore, StateStore, StoreConfig};
use airssys_wasm_registry::Refusal;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
};

macro_rules! examples {
    ($($name:ident = $path:literal),* $(,)?) => {
        $(
            #[expect(dead_code, reason = "`main` is for cargo")]
            #[path = $path]
            mod $name;
        )*
    };
}

examples! {
    axum_service = "../axum.rs",
    carts = "../carts.rs",
    counter = "../counter.rs",
    http_service = "../http.rs",
    lattice = "../lattice.rs",
    links = "../links.rs",
    plugin = "../plugin.rs",
    pubsub = "../pubsub.rs",
    request = "../request.rs",
    upgrade = "../upgrade.rs",
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counter_survives_its_crash() {
    let [before, after] = counter::run().await.unwrap();
    assert_eq!((before.incarnation, before.restarts), (1, 0));
    assert_eq!((after.incarnation, after.restarts), (2, 1));
    assert_eq!(after.address, before.address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_asks_whom_it_may_ask() {
    let (answer, denied, event) = request::run().await.unwrap();
    assert_eq!(answer, "asker heard: 5");
    assert!(matches!(denied, AskError::Failed { .. }), "{denied}");
    let SystemEvent::Denied { actor, action: DeniedAction::Request, target, .. } = event else { panic!("{event:?}") };
    assert_eq!((actor.id().as_str(), &*target), ("stranger", "counter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_subscribed_hears() {
    let (listener, host) = pubsub::run().await.unwrap();
    assert_eq!(listener, "all is well");
    assert_eq!(host.payload(), "all is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_keeps_the_count() {
    assert_eq!(upgrade::run().await.unwrap(), ["5", "count: 7", "7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_a_world_of_its_own_is_supervised() {
    let (order, refused, crashed, after) = plugin::run().await.unwrap();
    assert_eq!((order, after), (162, 120));
    assert_eq!(refused, "the shop does not sell `plum`");
    let CallError::Crashed(report) = crashed else { panic!("{crashed}") };
    assert_eq!(report.crash.kind().class(), CrashClass::Trap);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_leads_to_an_actor_that_crashes_and_is_there_again() {
    let heard = links::run(&["clerk"]).await.unwrap();
    let [(before, crashed, after)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((&**before, &**after), ("blue, says clerk", "red, says clerk"));
    assert_eq!(crashed, "the actor crashed: trap");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_answers_and_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let service = tokio::spawn(axum_service::serve(EngineConfig::small().compile_in_process(), listener, async {
        _ = ended.await
    }));

    let post = async |path: &str, body: &str| send(at, "POST", path, body).await;
    assert_eq!(post("/plugins/totals", "apple\npear").await, (200, "total 180, average 90".to_owned()));
    assert_eq!(post("/plugins/totals", "").await.0, 500);
    assert_eq!(post("/plugins/totals", "book").await.0, 422);
    assert_eq!(post("/plugins/nobody", "apple").await.0, 404);

    end.send(()).unwrap();
    let ShutdownReport { stopped, killed, .. } = service.await.unwrap().unwrap();
    assert_eq!((stopped, killed.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_answers_http_and_asks_actors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let config = EngineConfig::small().compile_in_process();
    let service = tokio::spawn(http_service::serve(config, &["front", "front3"], listener, async { _ = ended.await }));

    assert_eq!(send(at, "POST", "/ask/counter", "add 5").await, (200, "5".to_owned()));
    assert_eq!(send(at, "POST", "/ask/counter", "add 5").await, (200, "10".to_owned()));
    assert_eq!(send(at, "POST", "/ask/counter", "crash").await, (502, "RequestError::Crashed".to_owned()));
    assert_eq!(send(at, "POST", "/ask/counter", "get").await, (200, "0".to_owned()));
    let denied = "RequestError::NotSent(SendError::Denied)".to_owned();
    assert_eq!(send(at, "POST", "/ask/nobody", "add 5").await, (502, denied));
    assert_eq!(send(at, "PUT", "/value/sky", "blue").await, (200, String::new()));
    assert_eq!(send(at, "GET", "/value/sky", "").await, (200, "blue".to_owned()));
    // The component with WASI 0.3 asks the same actors.
    let new =
        async |method: &str, path: &str, body: &str| send_to(at, "new.shop.test", method, path, body).await.unwrap();
    assert_eq!(new("POST", "/ask/counter", "add 5").await, (200, "5".to_owned()));
    assert_eq!(new("GET", "/value/sky", "").await, (200, "blue".to_owned()));
    assert_eq!(new("POST", "/ask/nobody", "add 5").await.0, 502);

    end.send(()).unwrap();
    let ShutdownReport { stopped, killed, .. } = service.await.unwrap().unwrap();
    assert_eq!((stopped, killed.len()), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn carts_are_there_again_when_the_shop_opens_again() {
    let store = Arc::new(MemoryStore::new());
    for round in 1..=2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let config = EngineConfig::small().compile_in_process();
        let service = tokio::spawn(carts::serve(config, store.clone(), listener, async { _ = ended.await }));

        for customer in 0..12 {
            let cart = format!("/carts/{customer}");
            let count = (round * customer).to_string();
            assert_eq!(send(at, "POST", &cart, &format!("add {customer}")).await, (200, count));
        }
        assert_eq!(send(at, "POST", "/carts/7", "add x").await.0, 422);
        assert_eq!(send(at, "POST", "/carts/7", "crash").await.0, 500);
        assert_eq!(send(at, "POST", "/carts/7", "get").await, (200, (7 * round).to_string()));
        assert_eq!(send(at, "POST", "/carts/a*b", "get").await.0, 404);
        end.send(()).unwrap();
        assert!(service.await.unwrap().unwrap().killed.is_empty());
        // The cart of customer 0 is empty, and costs no row.
        assert_eq!(store.count("cart").await.unwrap(), 11);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(carts::serve(EngineConfig::small().compile_in_process(), store, listener, std::future::pending()));
    assert_eq!(send(at, "DELETE", "/carts/7", "").await.0, 204);
    assert_eq!(send(at, "POST", "/carts/7", "get").await, (200, "0".to_owned()));
    assert_eq!(send(at, "POST", "/carts/8", "get").await, (200, "16".to_owned()));
}

/// The shop that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that is killed by another test"]
async fn shop() {
    let Some(folder) = env::var_os("CARTS_FOLDER") else { return };
    let store = FjallStore::open(StoreConfig::new(folder)).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nat {}", listener.local_addr().unwrap());
    let config = EngineConfig::large().compile_in_process();
    carts::serve(config, Arc::new(store), listener, std::future::pending()).await.unwrap();
}

/// Starts it, and waits until it listens.
fn started(folder: PathBuf) -> (Child, SocketAddr) {
    let mut shop = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "shop", "--ignored", "--nocapture", "--test-threads=1"])
        .env("CARTS_FOLDER", folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(shop.stdout.take().expect("piped")).lines();
    let at = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("at ")?.parse().ok());
    (shop, at.expect("it has opened"))
}

#[tokio::test(flavor = "multi_thread")]
async fn carts_are_as_they_were_said_to_be_after_the_shop_was_killed() {
    const CUSTOMERS: usize = 16;
    const ANSWERS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    // What each cart had when it was last heard of.
    let mut heard = [0; CUSTOMERS];
    for _ in 0..3 {
        let path = folder.path().to_owned();
        let (mut shop, at) = spawn_blocking(|| started(path)).await.unwrap();
        let mut customers = JoinSet::new();
        let (answered, mut answers) = mpsc::unbounded_channel();
        for (customer, before) in heard.iter().copied().enumerate() {
            let answered = answered.clone();
            customers.spawn(async move {
                let cart = format!("/carts/{customer}");
                // One that nobody was told of may have been kept.
                let (status, first) = send(at, "POST", &cart, "get").await;
                let mut count: u64 = first.parse().unwrap();
                assert!(status == 200 && [before, before + 1].contains(&count), "{before}, and then {first}");
                while let Ok(answer) = try_send(at, "POST", &cart, "add 1").await {
                    count += 1;
                    assert_eq!(answer, (200, count.to_string()));
                    answered.send(()).unwrap();
                }
                (customer, count)
            });
        }
        for _ in 0..ANSWERS {
            answers.recv().await.unwrap();
        }
        // SIGKILL, while all of them wait for an answer.
        shop.kill().unwrap();
        assert!(!shop.wait().unwrap().success());
        while let Some(customer) = customers.join_next().await {
            let (customer, count) = customer.unwrap();
            heard[customer] = count;
        }
    }
    assert!(heard.iter().sum::<u64>() >= 3 * ANSWERS as u64, "{heard:?}");
}

/// A connection to the shop that is kept.
struct Connection(tokio::io::BufReader<TcpStream>);

impl Connection {
    /// An error says that the shop was killed.
    async fn ask(&mut self, customer: usize, body: &str) -> io::Result<(u16, String)> {
        let length = body.len();
        let request =
            format!("POST /carts/{customer} HTTP/1.1\r\nhost: shop\r\ncontent-length: {length}\r\n\r\n{body}");
        self.0.write_all(request.as_bytes()).await?;
        let (mut head, mut end) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            end = head.len();
        }
        let length = head[..end].lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.expect("it is not chunked")];
        self.0.read_exact(&mut body).await?;
        let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
        Ok((status, String::from_utf8(body).expect("text")))
    }

    /// Asks until there is room. `None` if it takes too long: then nobody knows whether it counts.
    async fn ask_again(&mut self, customer: usize, body: &str) -> io::Result<Option<u64>> {
        loop {
            match self.ask(customer, body).await? {
                (200, count) => return Ok(Some(count.parse().expect("a count"))),
                (503, _) => tokio::time::sleep(Duration::from_millis(1)).await,
                (504, _) => return Ok(None),
                other => panic!("customer {customer}: {other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_hundred_thousand_carts_are_as_they_were_said_to_be_after_the_shop_was_killed() {
    const CUSTOMERS: usize = 100_000;
    const CONNECTIONS: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let told: Arc<[AtomicBool]> = (0..CUSTOMERS).map(|_| AtomicBool::new(false)).collect();
    let next = Arc::new(AtomicUsize::new(0));
    // In the middle, and when the last ones are told.
    for kill_after in [40_000, CUSTOMERS - 40_000 - 2 * CONNECTIONS] {
        let path = folder.path().to_owned();
        let (mut shop, at) = spawn_blocking(|| started(path)).await.unwrap();
        let mut customers = JoinSet::new();
        let (answered, mut answers) = mpsc::unbounded_channel();
        for _ in 0..CONNECTIONS {
            let (told, next, answered) = (Arc::clone(&told), Arc::clone(&next), answered.clone());
            customers.spawn(async move {
                let mut shop = Connection(tokio::io::BufReader::new(TcpStream::connect(at).await.unwrap()));
                loop {
                    let customer = next.fetch_add(1, Ordering::Relaxed);
                    // Until the shop is killed.
                    if customer >= CUSTOMERS {
                        return;
                    }
                    let Ok(count) = shop.ask_again(customer, "add 1").await else { return };
                    assert!(count.is_none_or(|count| count == 1), "customer {customer}: {count:?}");
                    told[customer].store(count.is_some(), Ordering::Relaxed);
                    answered.send(()).unwrap();
                }
            });
        }
        drop(answered);
        for _ in 0..kill_after {
            answers.recv().await.expect("the shop is there");
        }
        shop.kill().unwrap();
        shop.wait().unwrap();
        customers.join_all().await;
    }
    let told_in_all = told.iter().filter(|told| told.load(Ordering::Relaxed)).count();
    assert!(told_in_all >= CUSTOMERS / 10 * 9, "{told_in_all}");

    let path = folder.path().to_owned();
    let (mut shop, at) = spawn_blocking(|| started(path)).await.unwrap();
    let (mut customers, next) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..CONNECTIONS {
        let (told, next) = (Arc::clone(&told), Arc::clone(&next));
        customers.spawn(async move {
            let mut shop = Connection(tokio::io::BufReader::new(TcpStream::connect(at).await.unwrap()));
            let mut kept = 0;
            loop {
                let customer = next.fetch_add(1, Ordering::Relaxed);
                if customer >= CUSTOMERS {
                    return kept;
                }
                let count = loop {
                    if let Some(count) = shop.ask_again(customer, "get").await.unwrap() {
                        break count;
                    }
                };
                // One that nobody was told of may have been kept.
                let least = u64::from(told[customer].load(Ordering::Relaxed));
                assert!((least..=1).contains(&count), "customer {customer} was told {least}, and has {count}");
                kept += count;
            }
        });
    }
    let kept: u64 = customers.join_all().await.into_iter().sum();
    assert!(kept >= told_in_all as u64);
    shop.kill().unwrap();
    shop.wait().unwrap();
}

/// The status and body of an answer that is not chunked.
async fn send(to: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    try_send(to, method, path, body).await.expect("it is there")
}

/// The same of somebody who may be killed.
async fn try_send(to: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    send_to(to, "shop", method, path, body).await
}

async fn send_to(to: SocketAddr, host: &str, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(to).await?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if length.is_some_and(|length: usize| body.len() < length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    Ok((status, body.to_owned()))
}

/// The shop of the lattice, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that is killed by another test"]
async fn shop_of_the_lattice() {
    let Some(broker) = env::var_os("BROKER") else { return };
    lattice::shop(broker.to_str().unwrap()).await.unwrap();
}

/// What `serve` and `ask` do, beside each other and the asker first, as they may be started by hand.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_before_the_shop_is_open_waits_for_it() {
    // Free until it is taken: others choose ports like it.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let asks = tokio::spawn(async move { lattice::ask(&format!("nats://127.0.0.1:{port}"), "add 2").await });
    let mut serves = tokio::spawn(lattice::serve(port));
    let answer = tokio::select! {
        answer = asks => answer.unwrap().unwrap(),
        served = &mut serves => panic!("{served:?}"),
    };
    serves.abort();
    assert_eq!(answer, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_another_host_is_told_what_became_of_it() {
    let mut shop = Command::new(env::current_exe().unwrap());
    shop.args(["--exact", "shop_of_the_lattice", "--ignored", "--nocapture", "--test-threads=1"]);
    let (before, killed, next, again) = lattice::run(shop).await.unwrap();
    assert_eq!((before.as_str(), again.as_str()), ("2", "0"));
    assert!(matches!(killed, AskError::Lost { .. }), "{killed:?}");
    assert_eq!(next.refusal(), Some(Refusal::Unreachable), "{next:?}");
}
