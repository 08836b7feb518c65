//! The on-disk code cache: native code in files that are mapped, not read.
//!
//! An entry is the artefact exactly as wasmtime serialises it, so that it can be mapped where it lies, followed by a
//! trailer that binds it to its name and its length.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{CacheError, Features, digest::Digest};

/// A folder of compiled components. An entry is mapped in about a millisecond whatever its size, and processes share
/// its pages.
///
/// # Safety
///
/// An entry is machine code, and who can write it can run anything with this process's rights. So:
///
/// - The folder must belong to the user the process runs as, and nobody else may be able to write to it; opening it
///   fails otherwise. On systems other than Unix this is not checked: use a folder that only the user can write.
/// - An entry is named by a digest of the component's bytes, of the settings of the engine, its version and the
///   processor's features. wasmtime checks the engine part again in the file's own header.
/// - An entry ends with a trailer that repeats its name and length, and says what it needs. An entry that is truncated,
///   misnamed or has another header is compiled anew and replaced, never trusted.
///
/// Not detected: a change inside the code of an entry by somebody who can write to it (the same user, root, or a
/// failing disk), and a folder swapped through a parent that others can write to.
///
/// Nothing is evicted. The folder can be emptied at any time, also while processes use it.
#[derive(Debug, Clone)]
pub struct CodeCache {
    folder: PathBuf,
}

const MAGIC: [u8; 8] = *b"AWCODE\x00\x02";
const TRAILER: usize = MAGIC.len() + size_of::<Digest>() + size_of::<u64>() + 1;

impl CodeCache {
    /// Opens a folder. A missing one is created, private to the user.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or does not belong to this user alone.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let folder = folder.into();
        let io = |source| CacheError::Io { path: folder.clone(), source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).or_else(|error| if folder.exists() { Ok(()) } else { Err(error) }).map_err(io)?;
        let folder = folder.canonicalize().map_err(io)?;
        let meta = fs::metadata(&folder).map_err(io)?;
        if !meta.is_dir() {
            return Err(CacheError::NotAFolder(folder));
        }
        check_private(&folder, &meta)?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, key: &Digest) -> PathBuf {
        let mut name = blake3::Hash::from_bytes(*key).to_hex().to_string();
        name.push_str(".cwasm");
        self.folder.join(name)
    }

    /// The file with this entry and what its code needs, if it is there and its trailer is right.
    pub(crate) fn find(&self, key: &Digest) -> Option<(PathBuf, Features)> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let meta = file.metadata().ok()?;
        check_private(&path, &meta).ok()?;
        let code_len = meta.len().checked_sub(TRAILER as u64)?;
        file.seek(SeekFrom::Start(code_len)).ok()?;
        let mut found = [0; TRAILER];
        file.read_exact(&mut found).ok()?;
        let features = Features::ALL.combinations().find(|features| found == trailer(key, code_len, *features));
        if features.is_none() {
            tracing::warn!(path = %path.display(), "code cache entry with a wrong trailer: compiling again");
        }
        Some((path, features?))
    }

    /// Writes an entry atomically.
    pub(crate) fn store(
        &self,
        key: &Digest,
        features: Features,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let path = self.path(key);
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.folder)?;
        write(file.as_file_mut())?;
        let code_len = file.as_file_mut().stream_position()?;
        file.write_all(&trailer(key, code_len, features))?;
        // A crash of the system must not leave a right name and trailer on code that never reached the disk.
        file.as_file().sync_data()?;
        file.persist(&path)?;
        Ok(path)
    }
}

fn trailer(key: &Digest, code_len: u64, features: Features) -> [u8; TRAILER] {
    let mut trailer = [0; TRAILER];
    let (magic, rest) = trailer.split_at_mut(MAGIC.len());
    let (name, rest) = rest.split_at_mut(key.len());
    let (len, needed) = rest.split_at_mut(size_of::<u64>());
    magic.copy_from_slice(&MAGIC);
    name.copy_from_slice(key);
    len.copy_from_slice(&code_len.to_le_bytes());
    needed[0] = features.index() as u8;
    trailer
}

#[cfg(unix)]
fn check_private(path: &Path, meta: &fs::Metadata) -> Result<(), CacheError> {
    use std::os::unix::fs::MetadataExt;

    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        return Err(CacheError::ForeignOwner { path: path.to_owned(), owner: meta.uid(), user });
    }
    if meta.mode() & 0o022 != 0 {
        return Err(CacheError::WritableByOthers { path: path.to_owned(), mode: meta.mode() & 0o7777 });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_path: &Path, _meta: &fs::Metadata) -> Result<(), CacheError> {
    Ok(())
}
