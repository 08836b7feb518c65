//! What a C program can do with nothing, and with what it is granted.

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
};

use airssys_wasm_engine::wasmtime::component::Val;
use airssys_wasm_fixtures::{C, RANDOM};
use airssys_wasm_isolation::{Folder, InstantiateError, Permissions, SandboxManifest, Stdio, WasiError, WasiGrants};
use airssys_wasm_limits::{ByteSize, ResourceLimits};

use crate::{Host, call, limits, spec};

pub(crate) const RUN: &str = "wasi:cli/run@0.2.6#run";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the program prints under these grants.
async fn printed(mut grants: WasiGrants) -> Vec<String> {
    let lines = Lines::default();
    grants.stdout = Stdio::writer(lines.clone());
    let spec = spec(C, limits()).with_wasi(grants);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    call(&spec, sandbox, RUN, None).await.unwrap();
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

/// A folder `data` with `in.txt`, beside a secret.
fn files() -> (tempfile::TempDir, std::path::PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("in.txt"), "from the host\n").unwrap();
    fs::write(root.path().join("secret.txt"), "secret\n").unwrap();
    (root, data)
}

fn folder(host: &Path, permissions: Permissions) -> WasiGrants {
    let folder = Folder { host: host.to_owned(), guest: "/data".into(), permissions };
    WasiGrants { folders: vec![folder], ..WasiGrants::default() }
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let lines = printed(WasiGrants::default()).await;
    assert_eq!(
        lines,
        [
            "environment: nothing",
            "arguments: 0",
            "open /data/in.txt for r: denied",
            "open /data/out.txt for w: denied",
            "open /data/../secret.txt for r: denied",
            "open /etc/passwd for r: denied",
        ]
    );
}

#[tokio::test]
async fn a_folder_is_granted_to_read_and_no_further() {
    let (_root, data) = files();
    let lines = printed(folder(&data, Permissions::Read)).await;
    assert_eq!(
        lines[2..],
        [
            "read /data/in.txt: from the host",
            "open /data/out.txt for w: denied",
            "open /data/../secret.txt for r: denied",
            "open /etc/passwd for r: denied",
        ]
    );
    assert!(!data.join("out.txt").exists());
}

#[tokio::test]
async fn a_folder_is_granted_to_write() {
    let (_root, data) = files();
    let lines = printed(folder(&data, Permissions::ReadWrite)).await;
    assert_eq!(lines[3], "write /data/out.txt: done");
    assert_eq!(fs::read_to_string(data.join("out.txt")).unwrap(), "written by the guest\n");
    assert_eq!(lines[4], "open /data/../secret.txt for r: denied");
}

#[tokio::test]
async fn environment_and_arguments_are_what_was_named() {
    let grants = WasiGrants {
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        args: vec!["guest".into(), "one".into(), "two".into()],
        ..WasiGrants::default()
    };
    assert_eq!(printed(grants).await[..2], ["environment: hello", "arguments: 2"]);
}

#[tokio::test]
async fn grants_are_data_in_the_manifest() {
    let (_root, data) = files();
    let manifest = format!(
        r#"
        [resources]
        memory = "1MiB"

        [wasi]
        env = {{ GREETING = "from the manifest" }}
        folders = [{{ host = '{}', guest = "/data" }}]
        "#,
        data.display()
    );
    let manifest = SandboxManifest::from_toml(&manifest).unwrap();
    let lines = printed(manifest.wasi).await;
    assert_eq!(lines[0], "environment: from the manifest");
    assert_eq!(lines[2..4], ["read /data/in.txt: from the host", "open /data/out.txt for w: denied"]);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_an_error_that_names_it() {
    let spec = spec(C, limits()).with_wasi(folder(Path::new("/nonexistent/folder"), Permissions::Read));
    let error = spec.instantiate(Host::default()).await.unwrap_err();
    assert!(matches!(error, InstantiateError::Wasi(WasiError::Folder { .. })), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/folder"));
}

#[tokio::test]
async fn output_goes_to_tracing_line_by_line_and_escaped() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer({
            let lines = lines.clone();
            move || lines.clone()
        })
        .without_time()
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let grants = WasiGrants {
        env: [("GREETING".to_owned(), "\u{1b}[31mred\rforged".to_owned())].into(),
        stdout: Stdio::Tracing,
        stderr: Stdio::Tracing,
        ..WasiGrants::default()
    };
    let spec = spec(C, limits());
    // In any order.
    for spec in [spec.clone().with_wasi(grants.clone()).with_name("plugin"), spec.with_name("plugin").with_wasi(grants)]
    {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        drop(call(&spec, sandbox, RUN, None).await.unwrap());
        let bytes = std::mem::take(&mut *lines.0.lock().unwrap());
        let logged = String::from_utf8(bytes).unwrap();
        assert!(logged.contains(r#"environment: \u{1b}[31mred\rforged actor="plugin" stream=""#), "{logged}");
        assert!(logged.contains(r#"to stderr actor="plugin" stream="stderr""#), "{logged}");
        assert!(logged.lines().all(|line| line.trim_start().starts_with("INFO guest: ")), "{logged}");
    }
}

#[tokio::test]
async fn random_bytes_are_limited_like_every_host_call() {
    let mut limits = limits();
    limits.host_call_bytes = airssys_wasm_limits::ByteSize(1_000);
    let spec = spec(RANDOM, limits);
    for (len, fits) in [(1_000, true), (1_001, false)] {
        let mut sandbox = spec.instantiate(Host::default()).await.unwrap();
        let get = sandbox.dynamic(&spec.export("get").unwrap()).unwrap();
        let got = sandbox.call_dynamic(&get, &[Val::U64(len)]).await;
        assert_eq!(got.is_ok(), fits, "{len}: {got:?}");
    }
}

#[tokio::test]
async fn all_sandboxes_of_a_spec_write_as_much_as_one() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let limits = ResourceLimits { log_bytes: ByteSize::kib(2), ..limits() };
    let env = [("GREETING".to_owned(), "line\n".repeat(2_000))];
    let grants = WasiGrants { env: env.into(), stdout: Stdio::Tracing, ..WasiGrants::default() };
    let spec = spec(C, limits).with_wasi(grants);
    let mut after_each = Vec::new();
    for _ in 0..3 {
        let sandbox = spec.instantiate(Host::default()).await.unwrap();
        drop(call(&spec, sandbox, RUN, None).await.unwrap());
        after_each.push(lines.0.lock().unwrap().iter().filter(|&&byte| byte == b'\n').count());
    }
    assert!(after_each[0] > 10 && after_each.iter().all(|lines| *lines == after_each[0]), "{after_each:?}");
}

#[tokio::test]
async fn a_flood_of_lines_is_cut_with_a_word_on_the_rest() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let flood = "line\n\n\n".repeat(2_000);
    let limits = ResourceLimits { log_bytes: ByteSize::kib(2), ..limits() };
    let grants =
        WasiGrants { env: [("GREETING".to_owned(), flood)].into(), stdout: Stdio::Tracing, ..WasiGrants::default() };
    let spec = spec(C, limits).with_wasi(grants);
    let sandbox = spec.instantiate(Host::default()).await.unwrap();
    drop(call(&spec, sandbox, RUN, None).await.unwrap());
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(logged.matches("more than its `log_bytes`").count(), 1, "{logged}");
    assert!((10..40).contains(&logged.lines().count()), "{logged}");
}
