//! A guest in Rust with WASI 0.3: files and folders, each function of theirs.

use std::fs;

use airssys_wasm_isolation::{FileJobs, Folder, Permissions, WasiGrants};
use tempfile::TempDir;

use crate::{limits, probe::Probe};

fn granted(permissions: Permissions, file_streams: u32) -> (WasiGrants, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let granted = Folder { host: folder.path().to_owned(), guest: "data".into(), permissions };
    (WasiGrants { folders: vec![granted], file_streams, ..WasiGrants::default() }, folder)
}

async fn probe(permissions: Permissions) -> (Probe, TempDir) {
    let (grants, folder) = granted(permissions, 32);
    (Probe::wasi3(grants).await, folder)
}

/// Runs commands, each with its answer.
async fn all(probe: &mut Probe, commands: &[(&str, &str)]) {
    for (command, answer) in commands {
        assert_eq!(probe.run(command).await, *answer, "{command}");
    }
}

#[tokio::test]
async fn files_are_opened_written_and_read() {
    let (mut probe, folder) = probe(Permissions::ReadWrite).await;
    all(
        &mut probe,
        &[
            ("folders", "data"),
            ("open data f r f", "no-entry"),
            ("open data f rwcx f", "done"),
            ("open data f rwcx g", "exist"),
            ("flags f", "rw"),
            ("type f", "regular-file"),
            ("flags data", "rm"),
            ("type data", "directory"),
            ("write f 0 hello", "done"),
            ("append f !", "done"),
            ("write f 1 a", "done"),
            ("read f 0", "hallo!"),
            ("read f 3", "lo!"),
            ("read f 100", ""),
            ("stat f", "file of 6"),
            ("fill f 200000", "4"),
            ("read f 0", "200000"),
            ("read-part f 1000000", "65536"),
            ("read-part f 10", "10"),
            ("set-size f 3", "done"),
            ("read f 0", "xxx"),
            ("sync f", "done"),
            ("sync-data f", "done"),
            ("advise f", "done"),
            ("open data f rwt g", "done"),
            ("read f 0", ""),
            ("read data 0", "is-directory"),
            ("write data 0 text", "bad-descriptor"),
            ("close g", "done"),
        ],
    )
    .await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"");
}

#[tokio::test]
async fn folders_are_made_listed_and_changed() {
    let (mut probe, folder) = probe(Permissions::ReadWrite).await;
    fs::write(folder.path().join("f"), "from the host").unwrap();
    all(
        &mut probe,
        &[
            ("list data", "f"),
            ("mkdir data sub", "done"),
            ("mkdir data sub", "exist"),
            ("open data sub rmd sub", "done"),
            ("rename data f sub g", "done"),
            ("list sub", "g"),
            ("stat-at data sub/g", "file of 13"),
            ("stat-at data sub", "folder"),
            ("stat-at data f", "no-entry"),
            ("link sub g data h", "done"),
            ("symlink data h l", "done"),
            ("readlink data l", "h"),
            ("lstat-at data l", "link"),
            ("stat-at data l", "file of 13"),
            ("list data", "h,l,sub"),
            ("open data h r h", "done"),
            ("open sub g r g", "done"),
            ("same h g", "true"),
            ("same h data", "false"),
            ("same-hash h sub g", "true"),
            ("same-hash data sub g", "false"),
            ("list h", "not-directory"),
            ("set-times-at data sub/g 1000000000", "done"),
            ("rmdir data sub", "not-empty"),
            ("unlink sub g", "done"),
            ("rmdir data sub", "done"),
            ("unlink data l", "done"),
            ("read h 0", "from the host"),
        ],
    )
    .await;
    let modified = fs::metadata(folder.path().join("h")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 1_000_000_000);
    all(&mut probe, &[("open data h w h", "done"), ("set-times h 2000000000", "done")]).await;
    let modified = fs::metadata(folder.path().join("h")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 2_000_000_000);
}

#[tokio::test]
async fn what_is_granted_to_read_is_not_changed() {
    let (mut probe, folder) = probe(Permissions::Read).await;
    fs::write(folder.path().join("f"), "from the host").unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    all(
        &mut probe,
        &[
            ("open data f r f", "done"),
            ("read f 0", "from the host"),
            ("list data", "f,sub"),
            ("flags f", "r"),
            ("flags data", "r"),
            ("open data f w g", "not-permitted"),
            ("open data f rt g", "not-permitted"),
            ("open data g rc g", "not-permitted"),
            ("write f 0 text", "not-permitted"),
            ("append f text", "not-permitted"),
            ("set-size f 0", "not-permitted"),
            ("set-times f 1", "not-permitted"),
            ("set-times-at data f 1", "not-permitted"),
            ("mkdir data g", "not-permitted"),
            ("rmdir data sub", "not-permitted"),
            ("unlink data f", "not-permitted"),
            ("rename data f data g", "not-permitted"),
            ("link data f data g", "not-permitted"),
            ("symlink data f g", "not-permitted"),
            ("read f 0", "from the host"),
        ],
    )
    .await;
}

#[tokio::test]
async fn nothing_is_reached_outside_the_folder() {
    let (mut probe, folder) = probe(Permissions::ReadWrite).await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path(), folder.path().join("out")).unwrap();
    #[cfg(unix)]
    all(&mut probe, &[("open data out/secret r s", "not-permitted"), ("stat-at data out/secret", "not-permitted")])
        .await;
    let absolute = outside.path().join("secret");
    let absolute = absolute.to_str().unwrap();
    assert_eq!(probe.run(&format!("open data {absolute} r s")).await, "not-permitted");
    assert_eq!(probe.run(&format!("symlink data {absolute} l")).await, "not-permitted");
    all(
        &mut probe,
        &[
            ("open data .. rd s", "not-permitted"),
            ("mkdir data ../made", "not-permitted"),
            ("rename data out data ../out", "not-permitted"),
            ("unlink data ../secret", "not-permitted"),
        ],
    )
    .await;
    assert_eq!(probe.run(&format!("stat-at data {}", "f".repeat(5_000))).await, "name-too-long");
    assert_eq!(probe.run(&format!("rename data f data {}", "f".repeat(5_000))).await, "name-too-long");
}

#[tokio::test]
async fn streams_are_limited_and_given_back() {
    let (grants, folder) = granted(Permissions::ReadWrite, 3);
    fs::write(folder.path().join("f"), "from the host").unwrap();
    let mut probe = Probe::wasi3(grants).await;
    all(
        &mut probe,
        &[
            ("open data f rw f", "done"),
            ("keep-streams f 3", "3"),
            ("read f 0", "insufficient-memory"),
            ("write f 0 text", "insufficient-memory"),
            ("append f text", "insufficient-memory"),
            ("list data", "insufficient-memory"),
            ("drop-streams", "done"),
        ],
    )
    .await;
    // What is dropped half-way is closed by a task of its own.
    while probe.run("keep-streams f 3").await != "3" {
        assert_eq!(probe.run("drop-streams").await, "done");
        tokio::task::yield_now().await;
    }
    assert_eq!(probe.run("drop-streams").await, "done");
    while probe.run("list data").await != "f" {
        tokio::task::yield_now().await;
    }
    all(
        &mut probe,
        &[
            ("list-unread data 3", "done"),
            ("list data", "insufficient-memory"),
            ("drop-streams", "done"),
            ("list data", "f"),
            ("list-dropped data 100", "done"),
            ("list data", "f"),
        ],
    )
    .await;
}

#[tokio::test]
async fn one_stream_after_another_needs_one_slot() {
    let (grants, folder) = granted(Permissions::ReadWrite, 1);
    fs::write(folder.path().join("f"), "from the host").unwrap();
    let mut probe = Probe::wasi3(grants).await;
    assert_eq!(probe.run("open data f rw f").await, "done");
    for _ in 0..20 {
        all(
            &mut probe,
            &[
                ("read f 0", "from the host"),
                ("read f 0", "from the host"),
                ("list data", "f"),
                ("write f 0 f", "done"),
                ("write f 1 r", "done"),
                ("append f !", "done"),
                ("set-size f 13", "done"),
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn a_listing_is_read_to_its_end_in_part_or_not_at_all() {
    let (mut probe, folder) = probe(Permissions::Read).await;
    for n in 0..1_000 {
        fs::write(folder.path().join(format!("file-{n}")), "").unwrap();
    }
    assert_eq!(probe.run("list data").await, "1000");
    assert!(probe.run("list-part data").await.starts_with("file-"));
    all(&mut probe, &[("list-dropped data 50", "done"), ("list-unread data 20", "done"), ("list data", "1000")]).await;
}

#[tokio::test]
async fn what_is_cancelled_leaves_nothing_behind() {
    let (grants, folder) = granted(Permissions::ReadWrite, 4);
    fs::write(folder.path().join("f"), "from the host").unwrap();
    let jobs = FileJobs::new(2);
    let mut probe = Probe::of(Probe::wasi3_spec(grants, limits()).with_file_jobs(jobs.clone())).await;
    assert_eq!(probe.run("open data f rw f").await, "done");
    for _ in 0..20 {
        all(
            &mut probe,
            &[
                ("cancel-open data f", "pending"),
                ("cancel-sync f", "pending"),
                ("cancel-stat f", "pending"),
                ("cancel-syncs f 100", "100"),
                ("cancel-read f", "from the host"),
                ("cancel-list data", "f"),
                ("read-part f 4", "4"),
            ],
        )
        .await;
    }
    assert_eq!(probe.run("cancel-write f text").await, "13");
    assert_eq!(probe.run("read f 0").await, "text the host");
    // All permits are back.
    let (one, other) = (jobs.start(|| 1).await, jobs.start(|| 2).await);
    assert_eq!((one.await.unwrap(), other.await.unwrap()), (1, 2));
}
