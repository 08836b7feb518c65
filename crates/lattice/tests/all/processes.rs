//! Hosts that are processes of their own, which tests kill and stop. A process is this test binary, started again; it is told what to
//! do line by line, and says line by line what happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use airssys_wasm_actor::{
    ActorSystem, AskError, Bytes, DeadReason, Fence, NativeActor, NativeContext, NativeSpec, registry::MessageEnvelope,
};
use airssys_wasm_fixtures::nats::{self, NatsServer};
use airssys_wasm_lattice::{Credentials, ExportError, Lattice, LatticeConfig, LatticeEvent, StandBy, TellError};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::{
    calls::offer_sum,
    security::CERTIFICATE,
    support::{LONG, id, system, until},
};

/// How a process joins.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) url: String,
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) grace: Duration,
    pub(crate) seed: Option<String>,
    /// The network namespace that the process is in, if that is another than this one's.
    pub(crate) network: Option<PathBuf>,
    /// Seconds by which the process' clock is ahead of this one's.
    pub(crate) ahead: Option<u64>,
    /// How many messages wait in the process, if that is not the default.
    pub(crate) waiting: Option<usize>,
    /// The latest version of the wire that the process speaks, if that is not the present one.
    pub(crate) latest: Option<u8>,
}

/// Runs a program whose clock is so many seconds ahead.
pub(crate) fn ahead(seconds: u64) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--time", "--boottime"]).arg(seconds.to_string());
    command
}

impl Settings {
    /// With a lease of 2 s, and other times as short as a busy machine permits.
    pub(crate) fn quick(server: &NatsServer) -> Self {
        Self {
            url: server.url(),
            lease: Duration::from_secs(2),
            heartbeat: Duration::from_millis(500),
            grace: Duration::from_secs(2),
            seed: None,
            network: None,
            ahead: None,
            waiting: None,
            latest: None,
        }
    }

    pub(crate) fn config(&self, host: &str) -> LatticeConfig {
        let mut config = LatticeConfig::new(id_of("test"), id_of(host))
            .with_servers([self.url.clone()])
            .with_lease(self.lease)
            .with_heartbeat(self.heartbeat);
        config.grace = self.grace;
        config.waiting = self.waiting.unwrap_or(config.waiting);
        config.latest_version = self.latest.unwrap_or(config.latest_version);
        if self.url.starts_with("tls://") {
            config.certificates.push(CERTIFICATE.into());
        }
        match &self.seed {
            Some(seed) => config.with_credentials(Credentials::NKey(seed.clone())),
            None => config,
        }
    }

    fn write(&self, host: &str) -> String {
        let millis = |duration: Duration| duration.as_millis().to_string();
        let Self { url, lease, heartbeat, grace, seed, network: _, ahead: _, waiting, latest } = self;
        let waiting = waiting.map(|waiting| waiting.to_string()).unwrap_or_default();
        let latest = latest.map(|latest| latest.to_string()).unwrap_or_default();
        let seed = seed.clone().unwrap_or_default();
        let times = [lease, heartbeat, grace].map(|time| millis(*time));
        format!("{host} {url} {} {seed} {waiting} {latest}", times.join(" "))
    }

    fn read(text: &str) -> (String, Self) {
        let parts: Vec<_> = text.split(' ').collect();
        let [host, url, lease, heartbeat, grace, seed, waiting, latest] = parts[..] else { panic!("{text}") };
        let millis = |text: &str| Duration::from_millis(text.parse().unwrap());
        let seed = (!seed.is_empty()).then(|| seed.to_owned());
        let settings = Self {
            url: url.to_owned(),
            lease: millis(lease),
            heartbeat: millis(heartbeat),
            grace: millis(grace),
            seed,
            network: None,
            ahead: None,
            waiting: waiting.parse().ok(),
            latest: latest.parse().ok(),
        };
        (host.to_owned(), settings)
    }
}

fn id_of(name: &str) -> airssys_wasm_lattice::HostName {
    name.parse().unwrap()
}

const SETTINGS: &str = "LATTICE_PROCESS";
/// What a process says last, by being gone.
const ENDED: &str = "ended";

fn say(line: &str) {
    // One write, so that a line is whole or not there.
    std::io::stdout().lock().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// Handles what comes, and says so. What ends with ` wait` waits for the gate; `ID relay TO` does, and then sends `ID-relayed`.
struct Book {
    host: Arc<str>,
    /// Which time it is that this process serves the name.
    tenure: u64,
    gate: Arc<Semaphore>,
}

impl NativeActor for Book {
    async fn handle(&mut self, message: &MessageEnvelope, context: &NativeContext) -> Result<Option<Bytes>, String> {
        let text = String::from_utf8_lossy(message.payload()).into_owned();
        let mut words = text.split(' ');
        let number = words.next().unwrap_or_default();
        let tenure = format!("{}/{}/{}", self.host, std::process::id(), self.tenure);
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        say(&format!("begin {} {tenure} {now} {number}", context.id()));
        match (words.next(), words.next()) {
            (Some("wait"), _) => self.gate.acquire().await.unwrap().forget(),
            (Some("relay"), Some(to)) => {
                self.gate.acquire().await.unwrap().forget();
                let sent = context.send(&id(to), format!("{number}-relayed"));
                say(&format!("outcome {number}-relayed {}", sent.map_or_else(|_| "refused Relay", |()| "queued")));
            }
            _ => {}
        }
        say(&format!("end {} {tenure} {number}", context.id()));
        Ok(Some(format!("{tenure} {number}").into()))
    }
}

/// What became of an ask.
pub(crate) fn asked(outcome: &Result<Bytes, AskError>) -> String {
    match outcome {
        Ok(answer) => format!("answered {}", String::from_utf8_lossy(answer)),
        Err(AskError::NotSent(back)) => format!("refused {:?}", back.reason),
        Err(AskError::Lost { accepted }) => format!("lost {accepted}"),
        Err(AskError::Deadline) => "lost deadline".to_owned(),
        Err(AskError::Stopped) => "lost stopped".to_owned(),
        Err(other) => format!("other {other:?}"),
    }
}

/// What became of a tell.
pub(crate) fn told(outcome: &Result<(), TellError>) -> String {
    match outcome {
        Ok(()) => "accepted".to_owned(),
        Err(TellError::NotSent(back)) => format!("refused {:?}", back.reason),
        Err(TellError::Lost { .. }) => "lost tell".to_owned(),
        Err(other) => format!("other {other:?}"),
    }
}

/// The process. It ends when nobody tells it anything any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that other tests start"]
async fn child() {
    let Some(settings) = env::var(SETTINGS).ok() else { return };
    let (host, settings) = Settings::read(&settings);
    let (commands, mut told) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if commands.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    let recorder = DebuggingRecorder::new();
    let counters = recorder.snapshotter();
    recorder.install().unwrap();
    let system = system();
    let lattice = match Lattice::join(&system, settings.config(&host)).await {
        Ok(lattice) => lattice,
        Err(error) => return say(&format!("failed {error:?}")),
    };
    let mut events = lattice.events();
    say("joined");
    let (gate, standing) = (Arc::new(Semaphore::new(0)), BTreeMap::new());
    let mut process = Process { host: host.into(), system, lattice, gate, standing, counters };
    loop {
        tokio::select! {
            event = events.recv() => say(&match event {
                Ok(LatticeEvent::Fenced) => "fenced".to_owned(),
                Ok(LatticeEvent::Rejoined) => "rejoined".to_owned(),
                Ok(LatticeEvent::Serving { name }) => format!("serving {name}"),
                Ok(LatticeEvent::Offline) => "offline".to_owned(),
                Ok(LatticeEvent::Online) => "online".to_owned(),
                other => format!("event {other:?}"),
            }),
            line = told.recv() => match line {
                Some(line) => process.command(&line).await,
                None => return,
            },
        }
    }
}

struct Process {
    host: Arc<str>,
    system: ActorSystem,
    lattice: Lattice,
    gate: Arc<Semaphore>,
    standing: BTreeMap<String, StandBy>,
    counters: Snapshotter,
}

impl Process {
    async fn command(&mut self, line: &str) {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["export", name, mailbox] => {
                let (host, gate) = (Arc::clone(&self.host), Arc::clone(&self.gate));
                let spec =
                    NativeSpec::new(id(name), move || Book { host: host.clone(), tenure: 0, gate: gate.clone() });
                let spec = spec.with_mailbox(mailbox.parse().unwrap());
                let actor = self.system.spawn_native(spec).await.unwrap();
                loop {
                    match self.lattice.export(&actor).await {
                        Ok(()) => break say(&format!("exported {name}")),
                        Err(error @ ExportError::NameTaken { .. }) => {
                            break say(&format!("unexported {name} {error:?}"));
                        }
                        // There is no server just now.
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            }
            ["export-sum", name] => {
                offer_sum(&self.system, &self.lattice, name).await;
                say(&format!("exported {name}"));
            }
            // Says when so many wait in its mailbox.
            ["queued", name, calls] => {
                let actor = self.system.find(name).unwrap();
                until(|| actor.info().mailbox.queued.to_string() == calls).await;
                say(line);
            }
            ["stand-by", name] => {
                let (host, gate, system) = (Arc::clone(&self.host), Arc::clone(&self.gate), self.system.clone());
                let tenures = Mutex::new(0);
                let standing = self.lattice.stand_by(id(name), move |name, fence: Arc<dyn Fence>| {
                    *tenures.lock() += 1;
                    let (host, gate, tenure) = (host.clone(), gate.clone(), *tenures.lock());
                    let make = move || Book { host: host.clone(), tenure, gate: gate.clone() };
                    let (system, spec) = (system.clone(), NativeSpec::new(name, make).with_fence(fence));
                    async move { system.spawn_native(spec).await }
                });
                self.standing.insert(name.to_owned(), standing);
            }
            ["open", permits] => self.gate.add_permits(permits.parse().unwrap()),
            ["dead"] => {
                for letter in self.system.dead_letters().drain() {
                    let text = String::from_utf8_lossy(letter.message.payload()).into_owned();
                    let number = text.split(' ').next().unwrap_or_default();
                    let reason = match letter.reason {
                        DeadReason::Undeliverable { because } => format!("refused {because:?}"),
                        DeadReason::Lost => "lost send".to_owned(),
                        DeadReason::Fenced | DeadReason::Stopped | DeadReason::Interrupted => "ended".to_owned(),
                        other => format!("other {other:?}"),
                    };
                    say(&format!("dead {number} {reason}"));
                }
                assert_eq!(self.system.dead_letters().evicted(), 0, "the books need all of them");
                say("dead-told");
            }
            ["dropped"] => {
                let counters = self.counters.snapshot().into_vec().into_iter();
                let dropped = counters.filter(|(key, ..)| key.key().name() == "lattice_dropped_total");
                let dropped = dropped.map(|(.., value)| if let DebugValue::Counter(count) = value { count } else { 0 });
                say(&format!("dropped {}", dropped.sum::<u64>()));
            }
            ["leave"] => {
                self.lattice.clone().leave(LONG).await;
                say("left");
            }
            // So many at once, of so many bytes.
            ["flood", to, first, more] => {
                let (count, size) = more.split_once(' ').unwrap();
                let (count, size): (usize, usize) = (count.parse().unwrap(), size.parse().unwrap());
                for number in (0..count).map(|n| format!("{first}-{n}")) {
                    self.message("tell", to, &number, format!("{number} {}", "x".repeat(size)));
                }
                say(&format!("flooded {first}"));
            }
            [how @ ("ask" | "tell" | "send"), to, number] => self.message(how, to, number, number.to_owned()),
            [how @ ("ask" | "tell" | "send"), to, number, more] => {
                self.message(how, to, number, format!("{number} {more}"));
            }
            _ => panic!("{line}"),
        }
    }

    fn message(&self, how: &str, to: &str, number: &str, text: String) {
        say(&format!("sending {number} {how} {to}"));
        let (recipient, number) = (self.lattice.recipient(id(to)), number.to_owned());
        match how {
            "send" => {
                let outcome = match recipient.try_tell(text) {
                    Ok(()) => "queued".to_owned(),
                    Err(back) => format!("refused {:?}", back.reason),
                };
                say(&format!("outcome {number} {outcome}"));
            }
            "tell" => {
                tokio::spawn(async move { say(&format!("outcome {number} {}", told(&recipient.tell(text).await))) });
            }
            _ => {
                tokio::spawn(async move { say(&format!("outcome {number} {}", asked(&recipient.ask(text).await))) });
            }
        }
    }
}

/// A process as the test has it. It is killed when this is dropped.
pub(crate) struct HostProcess {
    pub(crate) name: String,
    child: Child,
    stdin: ChildStdin,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    lines: Mutex<Vec<String>>,
    more: Notify,
}

impl HostProcess {
    /// Starts one, and waits until it has joined.
    pub(crate) async fn join(name: &str, settings: &Settings) -> Self {
        let host = Self::start(name, settings);
        host.says("joined").await;
        host
    }

    pub(crate) fn start(name: &str, settings: &Settings) -> Self {
        let this = env::current_exe().unwrap();
        let mut command = match (&settings.network, settings.ahead) {
            (None, None) => Command::new(this),
            (None, Some(seconds)) => {
                let mut command = ahead(seconds);
                command.arg(this);
                command
            }
            (Some(network), _) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg("--").arg(this);
                command
            }
        };
        let mut child = command
            .args(["--exact", "processes::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SETTINGS, settings.write(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let heard = Arc::new(Heard::default());
        let (lines, hears) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&heard));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| !line.is_empty()) {
                hears.lines.lock().push(line);
                hears.more.notify_waiters();
            }
            hears.lines.lock().push(ENDED.to_owned());
            hears.more.notify_waiters();
        });
        Self { name: name.to_owned(), stdin: child.stdin.take().unwrap(), child, heard }
    }

    /// Tells it what to do.
    pub(crate) fn tell(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Has it export an actor, and waits until it has.
    pub(crate) async fn export(&mut self, name: &str) {
        self.tell(&format!("export {name} 1000"));
        self.says(&format!("exported {name}")).await;
    }

    /// Waits for a line that begins so, and gives the rest of it.
    pub(crate) async fn says(&self, line: &str) -> String {
        self.says_after(0, line).await
    }

    /// The same, of the lines after so many.
    pub(crate) async fn says_after(&self, after: usize, line: &str) -> String {
        let heard = async {
            loop {
                let more = self.heard.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                let found = self.heard.lines.lock().iter().skip(after).find_map(|said| {
                    let rest = said.strip_prefix(line)?;
                    (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim().to_owned())
                });
                match found {
                    Some(rest) => return rest,
                    None => more.await,
                }
            }
        };
        match tokio::time::timeout(LONG, heard).await {
            Ok(rest) => rest,
            Err(_) => panic!("{} did not say `{line}`: {:#?}", self.name, self.lines()),
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.heard.lines.lock().clone()
    }

    /// How many lines it has said.
    pub(crate) fn said(&self) -> usize {
        self.heard.lines.lock().len()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// By SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// By SIGSTOP, until it is continued.
    pub(crate) fn stop(&self) {
        nats::stop(self.pid());
    }

    pub(crate) fn cont(&self) {
        nats::cont(self.pid());
    }

    /// Waits until all that it has said is heard, with its dead letters while it runs.
    pub(crate) async fn tells_all(&mut self) {
        let before = self.said();
        if self.child.try_wait().unwrap().is_some() {
            self.says(ENDED).await;
        } else {
            self.tell("dead");
            self.says_after(before, "dead-told").await;
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // An error says that it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What all processes have said, held against each other.
#[derive(Debug, Default)]
pub(crate) struct Books {
    sent: BTreeMap<String, Sent>,
    outcomes: BTreeMap<String, String>,
    dead: BTreeMap<String, String>,
    /// By whom, and each time.
    handled: BTreeMap<String, Vec<String>>,
    /// Of each name, when which process handled something.
    tenures: BTreeMap<String, BTreeSet<(u64, String)>>,
}

#[derive(Debug)]
struct Sent {
    how: String,
    to: String,
    /// Whether the process that has sent it was killed, and does not tell what became of it.
    by_killed: bool,
}

/// How many messages ended in which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) sent: usize,
    pub(crate) handled: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
}

impl Books {
    pub(crate) fn of<'a>(processes: impl IntoIterator<Item = &'a Vec<String>>) -> Self {
        let mut books = Self::default();
        for lines in processes {
            let by_killed = lines.iter().any(|line| line == ENDED);
            lines.iter().for_each(|line| books.line(line, by_killed));
        }
        books
    }

    fn line(&mut self, line: &str, by_killed: bool) {
        let once = |rows: &mut BTreeMap<String, String>, number: &str, what: &str| {
            let before = rows.insert(number.to_owned(), what.to_owned());
            assert_eq!(before, None, "{number} has one end, and `{what}`");
        };
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["sending", number, how, to] => {
                let sent = Sent { how: how.to_owned(), to: to.to_owned(), by_killed };
                assert!(self.sent.insert(number.to_owned(), sent).is_none(), "{number} is one message's");
            }
            ["outcome", number, ..] => once(&mut self.outcomes, number, &words[2..].join(" ")),
            ["dead", number, ..] => once(&mut self.dead, number, &words[2..].join(" ")),
            ["begin", name, tenure, time, number] => {
                self.handled.entry(number.to_owned()).or_default().push(tenure.to_owned());
                self.tenures.entry(name.to_owned()).or_default().insert((time.parse().unwrap(), tenure.to_owned()));
            }
            _ => {}
        }
    }

    /// Fails unless each message was handled once at the most, and as its outcome says. What was taken for a receiver may be lost only where
    /// that was killed with its mailbox.
    pub(crate) fn balance(&self, was_killed: impl Fn(&str) -> bool) -> Balance {
        let mut balance = Balance::default();
        for (number, Sent { how, to, by_killed }) in &self.sent {
            let handled = self.handled.get(number).map_or(0, Vec::len);
            let outcome = self.outcomes.get(number).map_or("", String::as_str);
            let dead = self.dead.get(number).map_or("", String::as_str);
            let by = self.handled.get(number);
            let told = format!("{number}, {how} {to}: `{outcome}`, dead `{dead}`, handled by {by:?}");
            assert!(handled <= 1, "handled twice: {told}");
            let is_refused = outcome.starts_with("refused") || dead.starts_with("refused");
            assert!(!is_refused || handled == 0, "refused and handled: {told}");
            assert!(!outcome.starts_with("answered") || handled == 1, "answered and not handled: {told}");
            assert!(!outcome.starts_with("other") && !dead.starts_with("other"), "{told}");
            balance.sent += 1;
            if handled == 1 {
                balance.handled += 1;
            } else if is_refused {
                balance.refused += 1;
            } else {
                let is_unknown = outcome.starts_with("lost") || dead.starts_with("lost") || dead == "ended";
                assert!(is_unknown || *by_killed || was_killed(to), "lost in silence: {told}");
                balance.unknown += 1;
            }
        }
        assert_eq!(balance.sent, balance.handled + balance.refused + balance.unknown);
        for number in self.handled.keys() {
            let sent = number.strip_suffix("-relayed").unwrap_or(number);
            assert!(self.sent.contains_key(sent), "{number} was never sent");
        }
        balance
    }

    /// Fails if a process began to handle something under a name after another had. Gives how many had the name.
    pub(crate) fn one_at_a_time(&self, name: &str) -> usize {
        let mut over = Vec::<&str>::new();
        for (_, tenure) in self.tenures.get(name).into_iter().flatten() {
            if over.last() != Some(&tenure.as_str()) {
                assert!(!over.contains(&tenure.as_str()), "{tenure} has {name} again after {over:?}");
                over.push(tenure);
            }
        }
        over.len()
    }
}
