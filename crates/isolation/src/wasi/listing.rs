//! What is in a folder, read a portion at a time.

use std::{
    fs::File,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec,
};

use airssys_wasm_engine::wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorType, DirectoryEntry, ErrorCode};
use cap_primitives::fs::{DirEntry, FileType, ReadDir, read_base_dir};
use tokio::task::spawn_blocking;

use super::{Job, Slot, UNDER_WAY, ended};

/// An entry, or why it cannot be shown: others may follow.
pub(crate) type Entry = Result<DirectoryEntry, ErrorCode>;

/// Entries of a portion, and bytes of their names: together no more than a stream holds, with room for the last name.
const ENTRIES: usize = 512;
const NAMES: usize = UNDER_WAY - ENTRIES * size_of::<Entry>() - (4 << 10);

/// Reads a folder when somebody waits for its entries. Each portion is a job; in between no thread is held.
pub(crate) struct FolderIn {
    state: State,
    slot: Slot,
}

enum State {
    Have(vec::IntoIter<Entry>, Rest),
    Busy(Job<(Vec<Entry>, Rest)>),
}

enum Rest {
    Unopened(Arc<File>),
    Open(ReadDir),
    Nothing,
}

impl FolderIn {
    pub(crate) fn new(folder: Arc<File>, slot: Slot) -> Self {
        Self { state: State::Have(Vec::new().into_iter(), Rest::Unopened(folder)), slot }
    }

    /// Some entries, of which there are none only at the end.
    pub(crate) fn poll_entries(&mut self, cx: &mut Context<'_>) -> Poll<&mut vec::IntoIter<Entry>> {
        if let State::Have(entries, rest) = &mut self.state
            && entries.len() == 0
            && let rest @ (Rest::Unopened(_) | Rest::Open(_)) = mem::replace(rest, Rest::Nothing)
        {
            let reading = async { ended(spawn_blocking(|| portion(rest)).await) };
            self.state = State::Busy(self.slot.jobs().spawn(reading));
        }
        if let State::Busy(job) = &mut self.state {
            let (entries, rest) = ready!(Pin::new(job).poll(cx));
            self.state = State::Have(entries.into_iter(), rest);
        }
        match &mut self.state {
            State::Have(entries, _) => Poll::Ready(entries),
            State::Busy(_) => Poll::Pending,
        }
    }
}

fn portion(folder: Rest) -> (Vec<Entry>, Rest) {
    let opened = match folder {
        Rest::Unopened(folder) => read_base_dir(&folder),
        Rest::Open(folder) => Ok(folder),
        Rest::Nothing => return (Vec::new(), Rest::Nothing),
    };
    let mut folder = match opened {
        Ok(folder) => folder,
        Err(error) => return (vec![Err(error.into())], Rest::Nothing),
    };
    let (mut entries, mut names) = (Vec::new(), 0);
    while entries.len() < ENTRIES && names < NAMES {
        let Some(entry) = folder.next() else { return (entries, Rest::Nothing) };
        let entry = shown(entry);
        names += entry.as_ref().map_or(0, |entry| entry.name.len());
        entries.push(entry);
    }
    (entries, Rest::Open(folder))
}

fn shown(entry: io::Result<DirEntry>) -> Entry {
    let entry = entry?;
    let kind = match entry.file_type()? {
        // Not all file systems tell it with the name.
        kind if kind == FileType::unknown() => entry.metadata()?.file_type(),
        kind => kind,
    };
    let name = entry.file_name().into_string().map_err(|_| ErrorCode::IllegalByteSequence)?;
    Ok(DirectoryEntry { type_: shown_kind(kind), name })
}

/// As `stat` of wasmtime-wasi has it.
fn shown_kind(kind: FileType) -> DescriptorType {
    if kind.is_dir() {
        DescriptorType::Directory
    } else if kind.is_symlink() {
        DescriptorType::SymbolicLink
    } else if kind.is_file() {
        DescriptorType::RegularFile
    } else {
        special(kind)
    }
}

#[cfg(unix)]
fn special(kind: FileType) -> DescriptorType {
    use cap_primitives::fs::FileTypeExt as _;
    if kind.is_block_device() {
        DescriptorType::BlockDevice
    } else if kind.is_char_device() {
        DescriptorType::CharacterDevice
    } else {
        DescriptorType::Unknown
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> DescriptorType {
    DescriptorType::Unknown
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, future::poll_fn};

    use super::*;
    use crate::{FileJobs, wasi::FileStreams};

    /// A folder with so many files whose names have so many letters.
    fn folder(files: usize, letters: usize) -> (tempfile::TempDir, BTreeSet<String>) {
        let folder = tempfile::tempdir().unwrap();
        let names: BTreeSet<_> = (0..files).map(|n| format!("{n:0letters$}")).collect();
        for name in &names {
            fs::write(folder.path().join(name), "").unwrap();
        }
        (folder, names)
    }

    fn listing(folder: &tempfile::TempDir, jobs: &FileJobs) -> FolderIn {
        let slot = FileStreams::new(1, jobs.clone()).slot().unwrap();
        FolderIn::new(Arc::new(File::open(folder.path()).unwrap()), slot)
    }

    #[tokio::test]
    async fn what_is_held_is_bounded_and_all_is_listed() {
        for (files, letters) in [(0, 1), (1, 1), (ENTRIES, 4), (2_000, 4), (1_000, 250)] {
            let (folder, names) = folder(files, letters);
            let mut listing = listing(&folder, &FileJobs::new(1));
            let mut listed = BTreeSet::new();
            loop {
                let portion: Vec<_> = poll_fn(|cx| listing.poll_entries(cx).map(|entries| entries.collect())).await;
                if portion.is_empty() {
                    break;
                }
                let held: usize =
                    portion.iter().map(|entry| size_of_val(entry) + entry.as_ref().unwrap().name.len()).sum();
                assert!(held <= UNDER_WAY, "{held} bytes of {files} files");
                for entry in portion {
                    assert!(listed.insert(entry.unwrap().name), "twice");
                }
            }
            assert_eq!(listed, names);
            assert!(
                poll_fn(|cx| listing.poll_entries(cx).map(|entries| entries.next())).await.is_none(),
                "it stays so"
            );
        }
    }

    #[tokio::test]
    async fn a_portion_is_a_job_and_no_job_is_held_between_two() {
        let (folder, _) = folder(ENTRIES + 1, 4);
        let jobs = FileJobs::new(1);
        let mut listing = listing(&folder, &jobs);
        let permit = jobs.permit().await;
        let mut next = async || poll_fn(|cx| listing.poll_entries(cx).map(|entries| entries.collect::<Vec<_>>())).await;
        for _ in 0..100 {
            let pending = poll_fn(|cx| Poll::Ready(std::pin::pin!(next()).poll(cx).is_pending())).await;
            assert!(pending, "another has the permit");
            tokio::task::yield_now().await;
        }
        drop(permit);
        assert_eq!(next().await.len(), ENTRIES);
        drop(jobs.permit().await);
        assert_eq!(next().await.len(), 1);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn kinds_are_told_and_names_that_are_no_text_are_errors() {
        use std::os::unix::{ffi::OsStrExt as _, fs::symlink};
        let (folder, _) = folder(1, 1);
        fs::create_dir(folder.path().join("d")).unwrap();
        symlink("nowhere", folder.path().join("l")).unwrap();
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let mut listing = listing(&folder, &FileJobs::default());
        let entries: Vec<_> = poll_fn(|cx| listing.poll_entries(cx).map(|entries| entries.collect())).await;
        let kind = |of: &str| entries.iter().flatten().find(|entry| entry.name == of).unwrap().type_;
        assert_eq!(kind("0"), DescriptorType::RegularFile);
        assert_eq!(kind("d"), DescriptorType::Directory);
        assert_eq!(kind("l"), DescriptorType::SymbolicLink);
        let errors: Vec<_> = entries.iter().filter_map(|entry| entry.as_ref().err()).collect();
        assert_eq!(errors, [&ErrorCode::IllegalByteSequence]);
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_one_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let slot = FileStreams::new(1, FileJobs::default()).slot().unwrap();
        let mut listing = FolderIn::new(Arc::new(File::open(file.path()).unwrap()), slot);
        let mut next = async || poll_fn(|cx| listing.poll_entries(cx).map(|entries| entries.next())).await;
        assert!(matches!(next().await, Some(Err(ErrorCode::NotDirectory))));
        assert!(next().await.is_none());
    }
}
