//! A link that goes down for longer than the lease, and up again: one between two network namespaces. Where the machine does not permit
//! them, it is a proxy in this process that drops what is sent, and the test says so.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use airssys_wasm_fixtures::nats::NatsConfig;

use crate::{
    failures::{Asker, Proxy},
    processes::{HostProcess, Settings},
    security::tls,
    support::{server, within},
};

/// Set in a process that has a network namespace of its own.
const APART: &str = "LATTICE_APART";

/// A machine's end of the link in a namespace of its own, joined to that of this process.
const LINK: &str = "ip link set lo up && ip link add near type veth peer name far";

enum Link {
    Between,
    Proxy(Proxy),
}

impl Link {
    fn down(&self) {
        match self {
            Self::Between => shell("ip link set near down"),
            Self::Proxy(proxy) => proxy.cut(),
        }
    }

    fn up(&self) {
        match self {
            Self::Between => shell("ip link set near up"),
            Self::Proxy(proxy) => proxy.pass(Duration::ZERO),
        }
    }
}

fn shell(command: &str) {
    let done = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}: {done}");
}

/// Another network namespace, joined to that of this process by a link. It ends with the process that holds it, which ends with this.
struct Apart {
    holder: Child,
}

impl Apart {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "the namespace is not there");
        let apart = Self { holder };
        shell(&format!("{LINK} netns {}", apart.holder.id()));
        shell("ip address add 10.0.0.1/24 dev near && ip link set near up");
        let network = apart.network();
        let there = format!("nsenter --net={} sh -c", network.display());
        shell(&format!("{there} 'ip address add 10.0.0.2/24 dev far && ip link set far up'"));
        apart
    }

    fn network(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // An error says that it is gone already.
        _ = self.holder.kill();
        _ = self.holder.wait();
    }
}

/// What starts a process in a network namespace of its own, in which it may make others: as the superuser, or as one of its own.
fn unshare() -> Option<Command> {
    [&["--net"][..], &["--user", "--map-root-user", "--net"]].into_iter().find_map(|flags| {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(flags).arg("--");
            command
        };
        let tried = unshare().args(["sh", "-c", &format!("{LINK} && unshare --net true")]).output();
        tried.is_ok_and(|tried| tried.status.success()).then(unshare)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_a_link_that_goes_down_is_lost_and_comes_back() {
    if let Some(mut unshare) = unshare() {
        // The server is there as well, so that nothing of this machine's interfaces is touched.
        let apart = unshare
            .arg(env::current_exe().unwrap())
            .args(["--exact", "link::between_network_namespaces", "--ignored", "--nocapture", "--test-threads=1"])
            .env(APART, "")
            .stdin(Stdio::null());
        let output = apart.output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    // Past what holds back the output of a test that passes.
    writeln!(
        std::io::stderr(),
        "no network namespaces are permitted here, or `unshare`, `nsenter` or `ip` is missing: a proxy is the link"
    )
    .unwrap();
    let server = server();
    let (proxy, settings) = (Proxy::to(&server).await, Settings::quick(&server));
    let behind = Settings { url: format!("nats://{}", proxy.address), ..settings.clone() };
    goes_down(&Link::Proxy(proxy), &settings, &behind).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process that another test starts"]
async fn between_network_namespaces() {
    if env::var_os(APART).is_none() {
        return;
    }
    let apart = Apart::new();
    let more = format!("host: 0.0.0.0\n{}", tls());
    let server = NatsConfig { more, ..NatsConfig::jetstream() }.start().unwrap();
    let settings = Settings::quick(&server);
    let behind = Settings {
        url: format!("tls://10.0.0.1:{}", server.address().port()),
        network: Some(apart.network()),
        ..settings.clone()
    };
    goes_down(&Link::Between, &settings, &behind).await;
}

/// Two hosts behind the link, one with a name that is its own and one that stands by for another; two beside the server.
async fn goes_down(link: &Link, settings: &Settings, behind: &Settings) {
    let (a, mut own, mut alone, mut other) = tokio::join!(
        Asker::join(settings),
        HostProcess::join("own", behind),
        HostProcess::join("alone", behind),
        HostProcess::join("other", settings)
    );
    own.export("shop").await;
    other.export("elsewhere").await;
    alone.tell("stand-by alone");
    alone.says("serving alone").await;
    other.tell("stand-by alone");
    a.answered("shop", "before").await;
    let mut told = Vec::new();
    for round in 0..2 {
        let held = a.held(&own, "shop", &format!("held-{round}")).await;
        let said = (own.said(), alone.said());
        let since = Instant::now();
        link.down();
        let (outcome, _) = within(held).await.unwrap();
        told.push(since.elapsed());
        assert!(outcome.starts_with("lost "), "{outcome}");
        a.is_refused("shop", &format!("refused-{round}")).await;
        // On the side that has the server all goes on; on the other what is its host's.
        a.answered("elsewhere", &format!("elsewhere-{round}")).await;
        own.says_after(said.0, "offline").await;
        own.tell(&format!("ask elsewhere cut-off-{round} x"));
        assert_eq!(own.says(&format!("outcome cut-off-{round}")).await, "refused Unreachable");
        own.tell("open 1");
        own.tell(&format!("ask shop at-home-{round} x"));
        assert!(own.says(&format!("outcome at-home-{round}")).await.starts_with("answered own/"));
        if round == 0 {
            alone.says_after(said.1, "fenced").await;
            other.says("serving alone").await;
            assert!(a.answered("alone", "moved").await.starts_with("other/"));
        }
        link.up();
        a.answered("shop", &format!("again-{round}")).await;
        own.tell(&format!("ask elsewhere back-{round} x"));
        own.says(&format!("outcome back-{round}")).await;
    }
    // By the last heartbeat, which was before; and the next look at it. A busy machine adds what it wants.
    let most = 3 * settings.heartbeat + Duration::from_millis(500);
    assert!(
        told.iter().any(|took| *took <= most),
        "told of the host behind the link after {told:?}, at the most {most:?}"
    );
    let lines = alone.lines();
    let fenced = lines.iter().position(|line| line == "fenced").unwrap();
    assert!(!lines[fenced..].iter().any(|line| line.starts_with("begin alone")), "{lines:#?}");
    println!("{:?}", a.balance(&mut [&mut own, &mut alone, &mut other]).await);
}
