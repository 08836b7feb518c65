//! A guest in Rust with WASI 0.3: output, clocks and random numbers.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use airssys_wasm_isolation::{CrashKind, Stdio, WasiGrants};
use airssys_wasm_limits::ResourceLimits;

use crate::{limits, probe::Probe};

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let mut probe = Probe::wasi3(WasiGrants::default()).await;
    assert_eq!(probe.run("granted").await, "0,0,0");
    assert_eq!(probe.run("stdin").await, "0");
    assert_eq!(probe.run("stdout nowhere").await, "done");
    assert_eq!(probe.run("folders").await, "");
    let grants = WasiGrants {
        args: vec!["one".into()],
        env: [("A".into(), "b".into()), ("C".into(), "d".into())].into(),
        ..WasiGrants::default()
    };
    assert_eq!(Probe::wasi3(grants).await.run("granted").await, "1,2,0");
}

#[tokio::test]
async fn what_is_printed_arrives_where_it_was_granted() {
    let (out, err) = (Output::default(), Output::default());
    let grants =
        WasiGrants { stdout: Stdio::writer(out.clone()), stderr: Stdio::writer(err.clone()), ..WasiGrants::default() };
    let mut probe = Probe::wasi3(grants).await;
    assert_eq!(probe.run("stdout out").await, "done");
    assert_eq!(probe.run("stderr err").await, "done");
    assert_eq!((out.take(), err.take()), ("out".to_owned(), "err".to_owned()));
    for (bytes, writes) in [(1_u32, 1), (64 << 10, 1), ((64 << 10) + 1, 2), (1 << 20, 16)] {
        assert_eq!(probe.run(&format!("stdout-bytes {bytes}")).await, writes.to_string(), "{bytes}");
        assert_eq!(out.take().len(), bytes as usize);
    }
}

#[tokio::test]
async fn clocks_go_on_and_a_wait_ends_or_is_cancelled() {
    let mut probe = Probe::wasi3(WasiGrants::default()).await;
    assert_eq!(probe.run("clocks").await, "true");
    assert_eq!(probe.run("wait 0").await, "done");
    assert_eq!(probe.run("wait 1").await, "done");
    assert_eq!(probe.run("wait-until-now").await, "done");
    for _ in 0..10 {
        assert_eq!(probe.run("cancel-wait").await, "pending", "an hour");
    }
    assert_eq!(probe.run("clocks").await, "true");
}

#[tokio::test(start_paused = true)]
async fn a_wait_counts_against_the_deadline() {
    let mut probe = Probe::wasi3(WasiGrants::default()).await;
    let crash = probe.crash_or_run("wait 3600000000000").await.unwrap_err();
    let allowed = limits().deadline;
    assert_eq!(*crash.kind(), CrashKind::Deadline { allowed });
}

#[tokio::test]
async fn random_bytes_are_cut_to_what_a_host_call_carries() {
    let mut probe = Probe::wasi3(WasiGrants::default()).await;
    let allowed = limits().host_call_bytes.as_u64();
    for command in ["random", "insecure"] {
        for (asked, given) in [(0, 0), (1, 1), (allowed, allowed), (allowed + 1, allowed), (u64::MAX, allowed)] {
            assert_eq!(probe.run(&format!("{command} {asked}")).await, given.to_string(), "{command} {asked}");
        }
    }
    assert_eq!(probe.run("seed").await, "done");
}

#[tokio::test]
async fn calls_of_wasi_count_as_host_calls() {
    let limits = ResourceLimits { host_calls: 20, ..limits() };
    let spec = || Probe::wasi3_spec(WasiGrants::default(), limits.clone());
    // Refused at once, without a grant: none is on its way that could be cancelled.
    assert_eq!(Probe::of(spec()).await.run("cancel-resolve localhost 1").await, "0");
    let crash = Probe::of(spec()).await.crash_or_run("cancel-resolve localhost 100").await.unwrap_err();
    assert_eq!(*crash.kind(), CrashKind::HostCalls { allowed: 20 });
}
