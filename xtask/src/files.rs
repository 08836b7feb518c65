//! Files that are written as a whole, and read only where they are of this version.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::workspace::shown;

/// Writes a file all at once, so that one who is interrupted leaves the old one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file that was written so, if it has this schema; else it says what to do instead.
pub(crate) fn read_whole<T: DeserializeOwned>(path: &Path, schema: u32, instead: &str) -> Result<T> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", shown(path)))?;
    let unexpected = || format!("{} is not of this version: {instead}", shown(path));
    let value: serde_json::Value = serde_json::from_slice(&json).with_context(unexpected)?;
    ensure!(value["schema"] == schema, unexpected());
    serde_json::from_value(value).with_context(unexpected)
}

/// None where there is no such file.
pub(crate) fn optional<T>(path: &Path, read: impl Fn(&Path) -> Result<T>) -> Result<Option<T>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        _ => read(path).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_wrote_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some/file.json");
        write_whole(&path, br#"{"schema": 2, "n": 1.5}"#).unwrap();
        let read = |schema| read_whole::<std::collections::BTreeMap<String, f64>>(&path, schema, "do it anew");
        assert_eq!(read(2).unwrap()["n"], 1.5);
        assert!(read(3).unwrap_err().to_string().ends_with("is not of this version: do it anew"));
        write_whole(&path, b"{").unwrap();
        assert!(read(2).is_err());
    }
}
