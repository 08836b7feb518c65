//! Granted folders of a real disk: paths, links and permissions that lead nowhere else.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use airssys_wasm_isolation::{Folder, Permissions, WasiGrants};
use tempfile::TempDir;

use crate::probe::Probe;

/// A folder `data` that is granted, beside what is not.
struct Disk {
    root: TempDir,
}

/// What there is, by path.
type Snapshot = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    Link(PathBuf),
    File { content: Vec<u8>, modified: SystemTime, links: u64 },
}

impl Disk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["data/sub", "outside", "other"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for (file, content) in [
            ("data/in.txt", "inside"),
            ("data/sub/deep.txt", "deep"),
            ("secret.txt", "secret"),
            ("outside/secret.txt", "another secret"),
            ("other/in.txt", "of the other"),
        ] {
            fs::write(root.path().join(file), content).unwrap();
        }
        Self { root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn link(&self, target: impl AsRef<Path>, path: &str) {
        std::os::unix::fs::symlink(target, self.path(path)).unwrap();
    }

    fn grant(&self, folders: &[(&str, Permissions)]) -> WasiGrants {
        let folder =
            |&(name, permissions): &(&str, _)| Folder { host: self.path(name), guest: name.into(), permissions };
        WasiGrants { folders: folders.iter().map(folder).collect(), ..WasiGrants::default() }
    }

    async fn probe(&self, permissions: Permissions) -> Probe {
        Probe::new(self.grant(&[("data", permissions)])).await
    }

    fn snapshot(&self) -> Snapshot {
        let mut entries = Snapshot::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let entry = entry_at(&path).unwrap();
                if entry == Entry::Folder {
                    folders.push(path.clone());
                }
                entries.insert(path, entry);
            }
        }
        entries
    }

    /// What there is outside the granted folder.
    fn outside(&self) -> Snapshot {
        let data = self.path("data");
        self.snapshot().into_iter().filter(|(path, _)| !path.starts_with(&data)).collect()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }
}

fn entry_at(path: &Path) -> io::Result<Entry> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(path)?;
    Ok(if metadata.is_dir() {
        Entry::Folder
    } else if metadata.is_symlink() {
        Entry::Link(fs::read_link(path)?)
    } else {
        Entry::File { content: fs::read(path)?, modified: metadata.modified()?, links: metadata.nlink() }
    })
}

async fn refused(probe: &mut Probe, command: &str) {
    let answer = probe.run(command).await;
    // The system refuses to make a file by a name of a folder before anybody looks where that leads.
    let makes_by_name_of_folder = command.starts_with("write ") && command.contains("/ ");
    let expected: &[&str] =
        if makes_by_name_of_folder { &["not-permitted", "is-directory"] } else { &["not-permitted"] };
    assert!(expected.contains(&&*answer), "{command}: {answer}");
}

/// Everything that can be done at a path.
fn everything_at(path: &str) -> Vec<String> {
    vec![
        format!("read data {path}"),
        format!("stat data {path}"),
        format!("write data {path} overwritten"),
        format!("truncate data {path}"),
        format!("set-times data {path} 1 0"),
        format!("set-times-open data {path} 1 0"),
        format!("set-size data {path} 1"),
        format!("write-at data {path} overwritten"),
        format!("open-folder data {path} there"),
    ]
}

/// Everything that can be done with an entry that it names.
fn everything_with(path: &str) -> Vec<String> {
    vec![
        format!("lstat data {path}"),
        format!("readlink data {path}"),
        format!("rename data {path} data stolen"),
        format!("rename data in.txt data {path}"),
        format!("link data {path} data stolen"),
        format!("link data in.txt data {path}"),
        format!("symlink data in.txt {path}"),
        format!("mkdir data {path}"),
        format!("rmdir data {path}"),
        format!("unlink data {path}"),
    ]
}

const BOTH: [Permissions; 2] = [Permissions::Read, Permissions::ReadWrite];

#[tokio::test]
async fn a_path_that_leads_out_is_refused_whatever_is_done_there() {
    let disk = Disk::new();
    let before = disk.snapshot();
    let absolute = disk.path("secret.txt");
    for permissions in BOTH {
        let mut probe = disk.probe(permissions).await;
        for path in [
            "..",
            "../",
            "../.",
            "/",
            "//",
            "/etc/passwd",
            absolute.to_str().unwrap(),
            "../secret.txt",
            "../new.txt",
            "./../secret.txt",
            ".//..//secret.txt",
            "sub/../../secret.txt",
            "sub/../..",
            "../data/in.txt",
            "../outside/secret.txt",
        ] {
            for command in everything_at(path).into_iter().chain(everything_with(path)) {
                refused(&mut probe, &command).await;
            }
        }
        assert_eq!(disk.snapshot(), before);
        // Points that stay inside are no reason to refuse.
        for path in ["in.txt", "./in.txt", "sub/../in.txt", "sub/.././in.txt", ".//in.txt"] {
            assert_eq!(probe.run(&format!("read data {path}")).await, "inside", "{path}");
        }
    }
}

#[tokio::test]
async fn a_folder_that_a_guest_opened_is_one_of_its_own() {
    let disk = Disk::new();
    let mut probe = disk.probe(Permissions::ReadWrite).await;
    assert_eq!(probe.run("open-folder data sub deeper").await, "done");
    assert_eq!(probe.run("read deeper deep.txt").await, "deep");
    assert_eq!(probe.run("read deeper ../in.txt").await, "not-permitted");
    assert_eq!(probe.run("rename deeper deep.txt deeper ../moved.txt").await, "not-permitted");
    assert_eq!(probe.run("rename deeper deep.txt data moved.txt").await, "done");
    assert_eq!(disk.read("data/moved.txt"), "deep");
}

#[tokio::test]
async fn a_link_of_the_hosts_that_leads_out_is_not_followed() {
    let disk = Disk::new();
    disk.link("../secret.txt", "data/out");
    disk.link(disk.path("secret.txt"), "data/out-absolute");
    disk.link("../data/in.txt", "data/around");
    disk.link(disk.path("data/in.txt"), "data/in-absolute");
    disk.link("../new.txt", "data/dangling");
    disk.link("out", "data/to-out");
    disk.link("../outside", "data/folder");
    disk.link("folder", "data/to-folder");
    let before = disk.snapshot();
    for permissions in BOTH {
        let mut probe = disk.probe(permissions).await;
        for path in [
            "out",
            "out/",
            "out-absolute",
            "around",
            "in-absolute",
            "dangling",
            "dangling/",
            "to-out",
            "folder",
            "folder/",
            "folder/.",
            "folder/..",
            "to-folder/",
            "folder/secret.txt",
            "folder/new.txt",
            "to-folder/secret.txt",
        ] {
            for command in everything_at(path) {
                refused(&mut probe, &command).await;
            }
        }
        for path in ["folder/secret.txt", "folder/new.txt", "to-folder/secret.txt", "folder/../secret.txt"] {
            for command in everything_with(path) {
                refused(&mut probe, &command).await;
            }
        }
        assert_eq!(disk.snapshot(), before);
        // The links themselves are in the folder.
        assert_eq!(probe.run("lstat data out").await, "link");
        assert_eq!(probe.run("readlink data out").await, "../secret.txt");
    }
}

#[tokio::test]
async fn a_link_that_stays_inside_is_followed() {
    let disk = Disk::new();
    disk.link("in.txt", "data/beside");
    disk.link("../in.txt", "data/sub/up");
    disk.link("sub", "data/folder");
    let mut probe = disk.probe(Permissions::ReadWrite).await;
    for path in ["beside", "sub/up", "folder/up", "folder/../in.txt"] {
        assert_eq!(probe.run(&format!("read data {path}")).await, "inside", "{path}");
    }
    assert_eq!(probe.run("read data folder/deep.txt").await, "deep");
    assert_eq!(probe.run("write data sub/up changed").await, "done");
    assert_eq!(disk.read("data/in.txt"), "changed");
    assert_eq!(probe.run("read-nofollow data beside").await, "loop");
}

#[tokio::test]
async fn a_link_that_a_guest_makes_does_not_lead_out() {
    let disk = Disk::new();
    let outside = disk.outside();
    let mut probe = disk.probe(Permissions::ReadWrite).await;
    for (target, path) in [("..", "up"), ("../", "up-slash"), ("sub/../..", "up-sub"), (".", "here"), ("up", "to-up")] {
        assert_eq!(probe.run(&format!("symlink data {target} {path}")).await, "done");
    }
    for (target, path) in [("../secret.txt", "secret"), ("../new.txt", "new"), ("secret", "to-secret")] {
        assert_eq!(probe.run(&format!("symlink data {target} {path}")).await, "done");
    }
    assert_eq!(probe.run("symlink data /etc/passwd absolute").await, "not-permitted");
    for up in ["up", "up-slash", "up-sub", "to-up", "here/up", "sub/../up"] {
        for path in
            ["", "/", "/.", "/..", "//", "/secret.txt", "/./secret.txt", "/new.txt", "/data/in.txt", "/outside/"]
        {
            for command in everything_at(&format!("{up}{path}")) {
                refused(&mut probe, &command).await;
            }
        }
        for path in ["secret.txt", "new.txt", "outside/secret.txt", "data/in.txt", "../x", "data/new/"] {
            for command in everything_with(&format!("{up}/{path}")) {
                refused(&mut probe, &command).await;
            }
        }
    }
    for path in ["secret", "to-secret", "new", "secret/", "new/"] {
        for command in everything_at(path) {
            refused(&mut probe, &command).await;
        }
    }
    assert_eq!(disk.outside(), outside);
    assert_eq!(disk.read("data/in.txt"), "inside");
    // A link is an entry like others, and what stays inside is followed.
    assert_eq!(probe.run("read data here/in.txt").await, "inside");
    assert_eq!(probe.run("rename data up data moved-up").await, "done");
    assert_eq!(probe.run("lstat data moved-up").await, "link");
    assert_eq!(probe.run("read data moved-up/secret.txt").await, "not-permitted");
    assert_eq!(probe.run("rename data moved-up data sub/up").await, "done");
    assert_eq!(probe.run("read data sub/up/in.txt").await, "inside");
    assert_eq!(probe.run("unlink data sub/up").await, "done");
    assert_eq!(disk.outside(), outside);
}

#[tokio::test]
async fn an_entry_named_with_a_slash_behind_it_does_not_lead_out() {
    let disk = Disk::new();
    let outside = disk.outside();
    let mut probe = disk.probe(Permissions::ReadWrite).await;
    assert_eq!(probe.run("symlink data .. up").await, "done");
    assert_eq!(probe.run("symlink data ../new up-new").await, "done");
    for path in ["up/", "up//", "up/.", "up/./", "up-new/", "up-new/."] {
        for command in everything_with(path) {
            let answer = probe.run(&command).await;
            // It is the link itself that these would name, or nothing at all.
            assert!(!["done", "inside", "folder"].contains(&&*answer), "{command}: {answer}");
            assert!(!answer.starts_with("file"), "{command}: {answer}");
        }
        assert_eq!(disk.outside(), outside, "{path}");
        assert_eq!(disk.read("data/in.txt"), "inside", "{path}");
    }
    // A file is no folder, and none is made by such a name.
    assert_eq!(probe.run("read data in.txt/").await, "not-directory");
    for command in ["write data new.txt/ text", "truncate data in.txt/", "rename data in.txt data new.txt/"] {
        let answer = probe.run(command).await;
        assert_ne!(answer, "done", "{command}");
    }
    assert_eq!(disk.read("data/in.txt"), "inside");
    assert!(!disk.path("data/new.txt").exists());
    // That of a folder may have one.
    assert_eq!(probe.run("mkdir data made/").await, "done");
    assert_eq!(probe.run("stat data made/").await, "folder");
    assert_eq!(probe.run("rename data made/ data moved/").await, "done");
    assert_eq!(probe.run("stat data moved").await, "folder");
}

#[tokio::test]
async fn nothing_moves_between_a_folder_to_read_and_one_to_write() {
    let disk = Disk::new();
    let grants = [("data", Permissions::Read), ("other", Permissions::ReadWrite)];
    let mut probe = Probe::new(disk.grant(&grants)).await;
    assert_eq!(probe.run("open-folder data sub sub").await, "done");
    let before = disk.snapshot();
    for command in [
        "rename data in.txt other stolen.txt",
        "rename other in.txt data given.txt",
        "rename other in.txt data in.txt",
        "rename data sub other sub",
        "rename sub deep.txt other stolen.txt",
        "rename data in.txt data moved.txt",
        "link data in.txt other alias.txt",
        "link other in.txt data alias.txt",
        "link sub deep.txt other alias.txt",
        "link data in.txt data alias.txt",
    ] {
        assert_eq!(probe.run(command).await, "not-permitted", "{command}");
    }
    assert_eq!(disk.snapshot(), before);
    // … and a link does not make what is read into something to write.
    assert_eq!(probe.run("symlink other ../data/in.txt alias.txt").await, "done");
    assert_eq!(probe.run("write other alias.txt overwritten").await, "not-permitted");
    assert_eq!(disk.read("data/in.txt"), "inside");

    let grants = [("data", Permissions::ReadWrite), ("other", Permissions::ReadWrite)];
    let mut probe = Probe::new(disk.grant(&grants)).await;
    assert_eq!(probe.run("link data in.txt other alias2.txt").await, "done");
    assert_eq!(probe.run("rename data in.txt other moved.txt").await, "done");
    assert_eq!((disk.read("other/alias2.txt"), disk.read("other/moved.txt")), ("inside".into(), "inside".into()));
}

#[tokio::test]
async fn a_part_of_a_folder_is_granted_to_write_and_no_more_of_it() {
    let disk = Disk::new();
    let grants = [("data", Permissions::Read), ("data/sub", Permissions::ReadWrite)];
    let mut probe = Probe::new(disk.grant(&grants)).await;
    for command in [
        "write data in.txt overwritten",
        "write data sub/deep.txt overwritten",
        "write data/sub ../in.txt overwritten",
        "rename data in.txt data/sub stolen.txt",
        "link data in.txt data/sub alias.txt",
        "unlink data sub/deep.txt",
    ] {
        assert_eq!(probe.run(command).await, "not-permitted", "{command}");
    }
    assert_eq!((disk.read("data/in.txt"), disk.read("data/sub/deep.txt")), ("inside".into(), "deep".into()));
    assert_eq!(probe.run("write data/sub deep.txt changed").await, "done");
    assert_eq!(probe.run("read data sub/deep.txt").await, "changed");
}

#[tokio::test]
async fn a_folder_to_read_stays_as_it_is() {
    let changes = [
        "truncate data in.txt",
        "write data in.txt overwritten",
        "write data new.txt text",
        "set-times data in.txt 1 0",
        "set-times-open data in.txt 1 0",
        "set-times data sub 1 0",
        "set-times-open data sub 1 0",
        "symlink data in.txt link.txt",
        "link data in.txt data alias.txt",
        "rename data in.txt data moved.txt",
        "mkdir data made",
        "unlink data sub/deep.txt",
        "rmdir data sub",
    ];
    // These open the file to read, and so are refused in a folder to write as well, by the system.
    let of_a_file_that_is_read = ["set-size data in.txt 1", "write-at data in.txt overwritten"];

    let disk = Disk::new();
    let before = disk.snapshot();
    let mut probe = disk.probe(Permissions::Read).await;
    for command in changes.iter().chain(&of_a_file_that_is_read) {
        assert_eq!(probe.run(command).await, "not-permitted", "{command}");
        assert_eq!(disk.snapshot(), before, "{command}");
    }
    assert_eq!(probe.run("read data in.txt").await, "inside");

    let mut probe = disk.probe(Permissions::ReadWrite).await;
    for command in of_a_file_that_is_read {
        assert_ne!(probe.run(command).await, "done", "{command}");
    }
    assert_eq!(disk.snapshot(), before);
    for command in changes {
        assert_eq!(probe.run(command).await, "done", "{command}");
    }
    assert_eq!(disk.read("data/moved.txt"), "overwritten");
    let modified = fs::metadata(disk.path("data/moved.txt")).unwrap().modified().unwrap();
    assert_eq!(modified, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    assert!(!disk.path("data/sub").exists() && disk.path("data/made").is_dir());
}

#[tokio::test]
async fn times_that_nobody_can_write_down_are_an_error() {
    let disk = Disk::new();
    let mut probe = disk.probe(Permissions::ReadWrite).await;
    let before = disk.snapshot();
    let seconds = [u64::MAX, u64::MAX - 4, u64::MAX - 5, i64::MAX as u64 + 1, i64::MAX as u64];
    for seconds in seconds {
        for nanoseconds in [u32::MAX, 1_000_000_000] {
            for command in ["set-times", "set-times-open"] {
                let command = format!("{command} data in.txt {seconds} {nanoseconds}");
                assert_eq!(probe.run(&command).await, "overflow", "{command}");
            }
        }
    }
    assert_eq!(disk.snapshot(), before);
    // Nanoseconds beyond a second are seconds.
    assert_eq!(probe.run(&format!("set-times data in.txt 10 {}", u32::MAX)).await, "done");
    let modified = fs::metadata(disk.path("data/in.txt")).unwrap().modified().unwrap();
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(since, Duration::new(10 + u64::from(u32::MAX / 1_000_000_000), u32::MAX % 1_000_000_000));
    // What the system takes for the last second there is, a guest can ask for again.
    assert_eq!(probe.run(&format!("set-times data in.txt {} 999999999", i64::MAX)).await, "done");
    assert_eq!(probe.run("stat data in.txt").await, "file of 6");
    // WASI has no time before 1970.
    let file = fs::File::options().write(true).open(disk.path("data/in.txt")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).unwrap();
    assert_eq!(probe.run("stat data in.txt").await, "file of 6");
}
