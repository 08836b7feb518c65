//! `cargo xtask compare` from end to end, on a repository of its own, with a program that stands in for cargo and for the
//! benchmarks: `../fake/main.rs`.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// A repository whose only commit has one version of the benchmarks, and whose working tree has another.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new(before: &str, after: &str) -> Self {
        let repository = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(repository.path().join("benches")).unwrap();
        fs::create_dir_all(repository.path().join("xtask")).unwrap();
        fs::write(repository.path().join("benches/Cargo.toml"), "").unwrap();
        fs::write(repository.path().join(".gitignore"), "/target\n").unwrap();
        repository.behave(before);
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit("before");
        repository.behave(after);
        repository
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn behave(&self, behaviour: &str) {
        fs::write(self.path().join("benches/behaviour"), behaviour).unwrap();
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git").arg("-C").arg(self.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        let who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"];
        self.git(&[&who[..], &["commit", "--quiet", "--message", message]].concat());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.xtask(&["compare", "--budget", "0.2"]);
        command.args(arguments);
        command
    }

    fn xtask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .args(arguments)
            .env("CARGO", env!("CARGO_BIN_EXE_fake-benchmarks"))
            .env("CARGO_MANIFEST_DIR", self.path().join("xtask"))
            .env("CARGO_TARGET_DIR", self.path().join("target"));
        command
    }

    fn compare(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let before = self.git(&["status", "--porcelain"]);
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        assert_eq!(self.git(&["status", "--porcelain"]), before, "the working tree is only read");
        self.is_put_away();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    /// No worktree is left.
    fn is_put_away(&self) {
        assert_eq!(self.git(&["worktree", "list", "--porcelain"]).matches("worktree ").count(), 1);
        assert!(!self.path().join("target/compare/tree").exists());
    }
}

const BEFORE: &str = "a/one 100 3\na/two 2000 0\nraw/a/one 90 0";

#[test]
fn without_a_change_nothing_is_found_and_that_is_a_success() {
    let (status, printed, said) = Repository::new(BEFORE, BEFORE).compare(&[]);
    assert_eq!(status, Some(0), "{printed}{said}");
    assert!(
        printed.contains("No regression in 2 benchmarks") && printed.contains("the two sides are the same"),
        "{printed}"
    );
}

#[test]
fn what_became_slower_is_named_and_fails() {
    let repository = Repository::new(BEFORE, "a/one 106 3\na/two 2000 0\nraw/a/one 190 0");
    let (status, printed, said) = repository.compare(&["main", "--json"]);
    assert_eq!(status, Some(1), "{printed}{said}");
    let outcome: Value = serde_json::from_str(&printed).unwrap();
    let verdicts: Vec<_> =
        outcome["rows"].as_array().unwrap().iter().map(|row| (&row["id"], &row["verdict"])).collect();
    assert_eq!(format!("{verdicts:?}"), r#"[(String("a/one"), String("slower")), (String("a/two"), String("same"))]"#);
    assert!(outcome["remarks"].to_string().contains("benches/behaviour"), "{}", outcome["remarks"]);
}

#[test]
fn what_became_faster_is_no_failure() {
    let (status, printed, said) = Repository::new(BEFORE, "a/one 90 3\na/two 2000 0").compare(&[]);
    assert_eq!(status, Some(0), "{printed}{said}");
    assert!(printed.contains("Faster: a/one"), "{printed}");
}

#[test]
fn one_allocation_more_fails_even_at_the_same_speed() {
    let (status, printed, said) = Repository::new(BEFORE, "a/one 100 4\na/two 2000 0").compare(&["--markdown"]);
    assert_eq!(status, Some(1), "{printed}{said}");
    assert!(printed.contains("Regression: a/one") && printed.contains("3.00 → 4.00: more"), "{printed}");
    assert!(printed.starts_with("## Is it slower than main"), "{printed}");
}

#[test]
fn a_benchmark_on_one_side_only_is_new_or_gone_and_never_a_failure() {
    let (status, printed, said) = Repository::new(BEFORE, "a/one 100 3\na/three 5 0").compare(&[]);
    assert_eq!(status, Some(0), "{printed}{said}");
    assert!(printed.contains("- new: a/three") && printed.contains("- gone: a/two"), "{printed}");
}

#[test]
fn a_filter_leaves_the_rest_out_and_one_that_fits_nothing_is_said() {
    let repository = Repository::new(BEFORE, "a/one 200 3\na/two 2000 0");
    let (status, printed, _) = repository.compare(&["--filter", "two"]);
    assert_eq!(status, Some(0), "{printed}");
    assert!(!printed.contains("a/one"), "{printed}");
    let (status, printed, _) = repository.compare(&["--filter", "nothing"]);
    assert_eq!(status, Some(2), "{printed}");
    assert!(printed.contains("no benchmark has \"nothing\" in its id"), "{printed}");
}

#[test]
fn a_second_build_of_the_reference_is_measured_against_the_first() {
    let (status, printed, said) = Repository::new(BEFORE, "broken").compare(&["--null"]);
    assert_eq!(status, Some(0), "{printed}{said}");
    assert!(printed.contains("a second build of main") && said.contains("a second time"), "{printed}{said}");
}

#[test]
fn what_cannot_be_compared_is_said_with_the_reason() {
    let broken = Repository::new("broken", BEFORE).compare(&[]);
    assert_eq!(broken.0, Some(2));
    assert!(broken.2.contains("cannot build main") && broken.2.contains("it is broken"), "{}", broken.2);

    let old = Repository::new("old", BEFORE).compare(&[]);
    assert_eq!(old.0, Some(2));
    assert!(old.2.contains("choose a later commit"), "{}", old.2);

    let unknown = Repository::new(BEFORE, BEFORE).compare(&["nothing"]);
    assert_eq!(unknown.0, Some(2));
    assert!(unknown.2.contains("\"nothing\" is not a commit here"), "{}", unknown.2);
    assert_eq!(Repository::new(BEFORE, BEFORE).compare(&["nothing", "--bisect"]).0, Some(125));

    let without = Repository::new(BEFORE, BEFORE);
    without.git(&["rm", "--quiet", "-r", "benches"]);
    without.commit("without");
    let without = without.compare(&["HEAD"]);
    assert_eq!(without.0, Some(2));
    assert!(without.2.contains("has no benchmarks"), "{}", without.2);
}

#[test]
fn noise_that_could_hide_a_slowdown_is_neither_a_success_nor_a_regression() {
    let noisy = format!("{BEFORE}\nnoisy");
    let repository = Repository::new(BEFORE, &noisy);
    let (status, printed, said) = repository.compare(&[]);
    assert_eq!(status, Some(2), "{printed}{said}");
    assert!(printed.contains("Could not measure well enough") && printed.contains("--budget"), "{printed}");
    let (status, ..) = repository.compare(&["--bisect"]);
    assert_eq!(status, Some(125), "a commit that cannot be told is left out");
}

#[test]
fn comparisons_of_two_commits_are_kept_and_those_of_what_is_none_are_not() {
    let repository = Repository::new(BEFORE, "a/one 110 3\na/two 2000 0");
    let kept = || fs::read_dir(repository.path().join("target/bench/compared")).map_or(0, Iterator::count);
    assert_eq!((repository.compare(&[]).0, kept()), (Some(1), 0));
    repository.commit("after");
    assert_eq!((repository.compare(&["HEAD^"]).0, kept()), (Some(1), 1));
}

#[test]
fn saved_results_are_compared_with_unless_they_are_of_another_machine() {
    let repository = Repository::new(BEFORE, BEFORE);
    let saved = repository.xtask(&["bench", "--save", "before"]).output().unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let (status, printed, said) = repository.compare(&["--saved", "before"]);
    assert_eq!(status, Some(0), "{printed}{said}");
    repository.behave("a/one 120 3\na/two 2000 0\nraw/a/one 90 0");
    let (status, printed, said) = repository.compare(&["--saved", "before"]);
    assert_eq!(status, Some(1), "{printed}{said}");
    assert!(printed.contains("Regression: a/one"), "{printed}");

    let path = repository.path().join("target/bench/saved/before.json");
    let mut results: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    results["machine"]["cpu"] = "another".into();
    fs::write(&path, results.to_string()).unwrap();
    let (status, printed, said) = repository.compare(&["--saved", "before"]);
    assert_eq!((status, &printed[..]), (Some(2), ""));
    assert!(said.contains("of another machine") && said.contains("--force"), "{said}");
    let (status, printed, said) = repository.compare(&["--saved", "before", "--force"]);
    assert_eq!(status, Some(1), "{printed}{said}");
    assert!(printed.contains("another machine: processor"), "{printed}");
}

#[test]
fn an_interrupt_leaves_nothing_behind_and_says_what_was_measured() {
    let repository = Repository::new(BEFORE, &format!("{BEFORE}\nhangs"));
    let mut command = repository.command(&[]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "hanging"));
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut printed = String::new();
    running.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(2), "{printed}");
    assert!(printed.contains("Interrupted") && printed.contains("a/one"), "{printed}");
    repository.is_put_away();
    assert!(!repository.path().join("target/bench/compare.json").exists(), "what is not whole is not kept");
}

#[test]
fn two_at_once_wait_for_each_other() {
    let repository = Repository::new(BEFORE, BEFORE);
    fs::create_dir_all(repository.path().join("target/bench")).unwrap();
    let lock = fs::File::create(repository.path().join("target/bench/lock")).unwrap();
    lock.lock().unwrap();
    let mut command = repository.command(&[]);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting for another run")));
    lock.unlock().unwrap();
    lines.for_each(drop);
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn a_disturbance_ends_with_the_input_of_whoever_made_it() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["disturb", "--core", "0", "--seed", "1"]).stdin(Stdio::piped());
    let mut disturbing = command.spawn().unwrap();
    assert!(disturbing.try_wait().unwrap().is_none(), "it goes on by itself");
    drop(disturbing.stdin.take());
    assert!(disturbing.wait().unwrap().success());
}
