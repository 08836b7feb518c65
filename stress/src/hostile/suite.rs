//! Gives each guest a process of its own, and judges what it reports.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    arena::Report,
    corpus::{Guest, Limits},
};
use airssys_wasm_measurements::process;

/// What became of a guest.
#[derive(Debug)]
pub struct Verdict {
    /// Nothing of a process that did not come back.
    pub report: Option<Report>,
    /// Empty if all is as it should be.
    pub complaints: Vec<String>,
}

/// What a process may have more of at the end than after its first run: the allocator keeps some of what was freed, and
/// more where more was (half of the peak). What leaks little by little is for the leak check to find. Each guest has a slot of the
/// pool in each run, of up to three mappings, and there are up to three at a time.
const RESIDENT: u64 = 4 << 20;
const MAPPINGS: u64 = 24;

/// Milliseconds after which a neighbour that has not answered counts as one that is kept from it, on machines that are
/// as busy as those of tests.
const SILENCE: u64 = 1_000;

/// Bytes that a guest's host and its compilers may have together, beyond what they had before and but for files on a disk.
pub(super) const ALL: u64 = 256 << 20;

/// Looks again and again what a process and those it has started hold, until it is gone or this is dropped.
pub(super) struct Watch {
    most: Arc<AtomicU64>,
    _until: mpsc::Sender<()>,
}

impl Watch {
    pub(super) fn over(process: u32) -> Self {
        let (until, ended) = mpsc::channel::<()>();
        let most = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&most);
        thread::spawn(move || {
            while let Some(held) = process::held_by_all(process)
                && ended.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout)
            {
                seen.fetch_max(held, Relaxed);
            }
        });
        Self { most, _until: until }
    }

    /// The most bytes that were seen.
    pub(super) fn most(&self) -> u64 {
        self.most.load(Relaxed)
    }
}

/// Runs a guest in a process of its own, which is that of the program `hostile`, with one limit switched off if that is asked for.
///
/// # Errors
///
/// When there can be no such process.
pub fn try_guest(program: &Path, guest: &Guest, without: Option<&str>) -> Result<Verdict> {
    let mut command = Command::new(program);
    command.args(["hostile", "--arena", &guest.name]);
    if let Some(limit) = without {
        command.args(["--without", limit]);
    }
    // Each thread that compiles would keep some of what it had in an arena of its own.
    command.env("MALLOC_ARENA_MAX", "1");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let watch = Watch::over(child.id());
    let (mut out, mut err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
    let (done, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut report = Vec::new();
        let read = out.read_to_end(&mut report).map(|_| report);
        // Fails when nobody waits any more.
        _ = done.send(read);
    });
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        _ = err.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    // What goes wrong need not be waited for three times.
    let longest =
        Duration::from_millis(if without.is_some() { guest.within + 2_000 } else { 3 * guest.within + 20_000 });
    let report = heard.recv_timeout(longest);
    if report.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let errors = errors.join().unwrap_or_default();
    let Ok(report) = report else {
        return Ok(Verdict { report: None, complaints: vec![format!("had to be killed after {longest:?}")] });
    };
    let report: Option<Report> = serde_json::from_slice(&report?).ok();
    let mut complaints = Vec::new();
    if !status.success() {
        complaints.push(format!("its process ended with {status}"));
    }
    if !errors.is_empty() {
        complaints.push(format!("its process said: {:.300}", errors.trim().escape_debug()));
    }
    match &report {
        Some(report) => {
            complaints.extend(judge(guest, report)?);
            let grown = watch.most().saturating_sub(report.all);
            if grown > ALL {
                complaints.push(format!("host and compilers took {} MiB together, not {}", grown >> 20, ALL >> 20));
            }
        }
        None => complaints.push("its process reported nothing".to_owned()),
    }
    Ok(Verdict { report, complaints })
}

/// What is not as it should be.
///
/// # Errors
///
/// When the guest's limits are not as they should be.
pub fn judge(guest: &Guest, report: &Report) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut complain = |is_wrong: bool, what: String| {
        if is_wrong {
            complaints.push(what);
        }
    };
    for (outcome, says) in &report.outcomes {
        let is_expected = guest.outcome.split(" | ").any(|expected| expected == outcome);
        complain(!is_expected, format!("ended as {outcome:?} ({says}), not as {:?}", guest.outcome));
        complain(!says.contains(&guest.says), format!("says {says:?}, and nothing of {:?}", guest.says));
    }
    let within = guest.within as f64;
    complain(report.took > within, format!("took {:.0} ms, not {within}", report.took));
    complain(report.peak > guest.peak << 20, format!("took {} MiB at its peak, not {}", report.peak >> 20, guest.peak));
    complain(report.panics > 0, format!("{} panics", report.panics));
    for text in &report.unescaped {
        complain(true, format!("was written as it is: {text}"));
    }
    let (before, after) = (&report.settled, &report.after);
    let left = [
        ("bytes resident", before.resident + RESIDENT + report.peak / 2, after.resident),
        ("mappings", before.mappings + MAPPINGS, after.mappings),
        ("descriptors", before.descriptors, after.descriptors),
        ("threads", before.threads, after.threads),
        ("tasks", before.tasks, after.tasks),
        ("bytes of the budget", 0, after.budget),
    ];
    for (what, allowed, found) in left {
        complain(found > allowed, format!("left behind {what}: {found}, where {allowed} are allowed"));
    }
    let during = &report.during;
    complain(
        during.longest > SILENCE * 1_000 || (during.answers == 0 && report.took > SILENCE as f64),
        format!(
            "kept its neighbour silent: {} answers, the slowest after {} ms",
            during.answers,
            during.longest / 1_000
        ),
    );
    // What the host itself says comes on top.
    let log = Limits::of(guest)?.resources.log_bytes.as_u64();
    let logged = report.outcomes.len() as u64 * (2 + report.took as u64 / 1_000) * log + (64 << 10);
    complain(report.logged > logged, format!("wrote {} bytes into the log, not {logged}", report.logged));
    Ok(complaints)
}
