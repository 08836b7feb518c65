//! Failures, with hosts that are processes, and a server that is killed, stopped and wiped. After each the books balance: what was sent
//! was handled once, or refused and not handled, or its fate is unknown and its sender told so.

use std::time::{Duration, Instant};

use airssys_wasm_actor::{AskError, registry::Refusal};
use airssys_wasm_lattice::Recipient;

use crate::{
    processes::{Books, HostProcess, Settings, asked},
    support::{LONG, TestHost, id, join, server, until, within},
};

async fn asker(settings: &Settings) -> TestHost {
    join(settings.config("asker")).await
}

/// Asks in a task, and gives what came of it in words, with how long it took.
fn ask(recipient: &Recipient, text: &str) -> tokio::task::JoinHandle<(String, Duration)> {
    let (recipient, text, since) = (recipient.clone(), text.to_owned(), Instant::now());
    tokio::spawn(async move { (asked(&recipient.ask(text).await), since.elapsed()) })
}

/// Asks again and again until there is an answer. Gives it, and fails if something else than a refusal or a loss comes.
async fn answered(recipient: &Recipient, text: &str) -> String {
    within(async {
        for attempt in 0.. {
            let outcome = asked(&recipient.ask(format!("{text}.{attempt}")).await);
            if let Some(answer) = outcome.strip_prefix("answered ") {
                return answer.to_owned();
            }
            assert!(
                ["refused Unreachable", "refused Moved", "refused Unknown"].contains(&outcome.as_str())
                    || outcome.starts_with("lost"),
                "{outcome}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!()
    })
    .await
}

fn is_unreachable(outcome: &Result<airssys_wasm_actor::Bytes, AskError>) -> bool {
    matches!(outcome, Err(AskError::NotSent(back)) if back.reason == Refusal::Unreachable)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_in_mid_ask_is_told_as_lost_and_the_next_ask_is_refused_at_once() {
    let server = server();
    let settings = Settings::quick(&server);
    let (a, mut b) = tokio::join!(asker(&settings), HostProcess::join("b", &settings));
    b.export("shop").await;
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));
    assert!(answered(&shop, "first").await.starts_with("b/"));

    let in_flight = ask(&shop, "held wait");
    b.says("begin shop").await;
    // `accepted` goes with what is said next, which is the answer to another.
    assert!(within(b_begins(&b, "held")).await);
    let since = Instant::now();
    b.kill();
    let (outcome, _) = within(in_flight).await.unwrap();
    println!("told of the killed host after {:?}", since.elapsed());
    assert!(outcome.starts_with("lost "), "{outcome}");
    let since = Instant::now();
    let next = within(shop.ask("next")).await;
    println!("the next ask was refused after {:?}", since.elapsed());
    assert!(is_unreachable(&next), "{next:?}");

    // Once the session before is over, it joins again under its name, which was kept for it.
    let mut again = HostProcess::join("b", &settings).await;
    again.export("shop").await;
    let answer = answered(&shop, "again").await;
    assert!(answer.starts_with(&format!("b/{}/", again.pid())), "{answer}");
    Books::of([&b.lines(), &again.lines()]);
}

async fn b_begins(host: &HostProcess, number: &str) -> bool {
    until(|| host.lines().iter().any(|line| line.starts_with("begin") && line.ends_with(&format!(" {number}")))).await;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_stopped_for_less_than_three_heartbeats_loses_nothing() {
    let server = server();
    // Long enough for what a busy machine adds to the pause.
    let settings = Settings { heartbeat: Duration::from_secs(5), lease: LONG, ..Settings::quick(&server) };
    let (a, mut b) = tokio::join!(asker(&settings), HostProcess::join("b", &settings));
    b.export("shop").await;
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));
    let held = ask(&shop, "held wait");
    b_begins(&b, "held").await;
    b.stop();
    let waits: Vec<_> = (0..20).map(|n| ask(&shop, &format!("waits-{n}"))).collect();
    // All of them are in the lane before it goes on, and one heartbeat has passed since.
    tokio::time::sleep(Duration::from_millis(500)).await;
    b.cont();
    b.tell("open 1");
    assert!(within(held).await.unwrap().0.starts_with("answered b/"));
    for (n, asked) in waits.into_iter().enumerate() {
        let (outcome, _) = within(asked).await.unwrap();
        assert!(outcome.ends_with(&format!("waits-{n}")), "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_stopped_for_longer_is_lost_and_goes_on_when_it_is_back() {
    let server = server();
    let settings = Settings::quick(&server);
    let (a, mut b) = tokio::join!(asker(&settings), HostProcess::join("b", &settings));
    b.export("shop").await;
    a.knows("shop").await;
    let shop = a.lattice.recipient(id("shop"));
    let held = ask(&shop, "held wait");
    b_begins(&b, "held").await;
    let since = Instant::now();
    b.stop();
    let waits = ask(&shop, "waits");
    for lost in [held, waits] {
        let (outcome, _) = within(lost).await.unwrap();
        assert!(outcome.starts_with("lost "), "{outcome}");
    }
    println!("told of the stopped host after {:?}", since.elapsed());
    let next = within(shop.ask("next")).await;
    assert!(is_unreachable(&next), "{next:?}");

    b.cont();
    b.tell("open 1");
    b.says("end shop").await;
    answered(&shop, "again").await;
    let handled = b.lines().iter().filter(|line| line.starts_with("begin") && line.ends_with(" next")).count();
    assert_eq!(handled, 0, "a refused message is not handled");
}

/// Waits until a process serves a name.
async fn serving<'a>(hosts: &'a mut [HostProcess], name: &str) -> usize {
    let line = format!("serving {name}");
    within(async {
        loop {
            if let Some(at) = hosts.iter().position(|host| host.lines().contains(&line)) {
                return at;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn pair(settings: &Settings) -> Vec<HostProcess> {
    let (b, c) = tokio::join!(HostProcess::join("b", settings), HostProcess::join("c", settings));
    let mut hosts = vec![b, c];
    hosts.iter_mut().for_each(|host| host.tell("stand-by alone"));
    hosts
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_that_stand_by_serves_and_the_other_when_that_is_killed() {
    let server = server();
    let settings = Settings::quick(&server);
    let (a, mut hosts) = tokio::join!(asker(&settings), pair(&settings));
    let alone = a.lattice.recipient(id("alone"));
    let first = serving(&mut hosts, "alone").await;
    a.knows("alone").await;
    let answer = answered(&alone, "first").await;
    assert!(answer.starts_with(&hosts[first].name), "{answer}");
    let other = 1 - first;
    assert!(!hosts[other].lines().iter().any(|line| line.starts_with("serving")), "one serves at a time");

    let since = Instant::now();
    hosts[first].kill();
    let answer = answered(&alone, "second").await;
    println!("another serves {:?} after the kill, with a lease of {:?}", since.elapsed(), settings.lease);
    assert!(answer.starts_with(&hosts[other].name), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_stopped_beyond_its_lease_handles_nothing_of_what_waits_and_joins_again() {
    let server = server();
    let settings = Settings::quick(&server);
    let (a, mut hosts) = tokio::join!(asker(&settings), pair(&settings));
    let alone = a.lattice.recipient(id("alone"));
    let first = serving(&mut hosts, "alone").await;
    let other = 1 - first;
    a.knows("alone").await;
    let (_, sink) = a.export("sink").await;

    // One in hand, and some in the mailbox.
    let held = ask(&alone, "held relay sink");
    b_begins(&hosts[first], "held").await;
    for n in 0..10 {
        within(alone.tell(format!("waits-{n}"))).await.unwrap();
    }
    hosts[first].stop();
    assert!(within(held).await.unwrap().0.starts_with("lost "));
    let said = hosts[first].said();
    hosts[other].says("serving alone").await;
    a.knows("alone").await;
    for n in 0..10 {
        assert!(answered(&alone, &format!("later-{n}")).await.starts_with(&hosts[other].name));
    }
    // Its message in hand has the gate open as soon as it goes on.
    hosts[first].tell("open 1000");
    hosts[first].cont();
    hosts[first].says("fenced").await;
    hosts[first].says("rejoined").await;
    assert!(answered(&alone, "last").await.starts_with(&hosts[other].name));
    hosts[first].tells_dead().await;
    let since: Vec<_> = hosts[first].lines().split_off(said);
    assert!(!since.iter().any(|line| line.starts_with("begin")), "{since:#?}");
    assert!(!sink.handled().contains("relayed"), "what is fenced sends nothing");
    // Sent and then answered for by nobody: accepted, and dead on the host that was fenced.
    let dead = since.iter().filter(|line| line.starts_with("dead waits-")).count();
    println!("{dead} of 10 messages that waited are dead letters of the fenced host");

    // It stands by still.
    hosts[other].kill();
    hosts[first].says_after(said, "serving alone").await;
    assert!(answered(&alone, "back").await.starts_with(&hosts[first].name));
    let lines: Vec<_> = hosts.iter().map(HostProcess::lines).collect();
    Books::of(&lines);
}
