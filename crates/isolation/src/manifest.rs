//! The tables of a `Component.toml` that this layer and those below read.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use airssys_wasm_limits::{ManifestError, ResourceLimits};
use serde::{
    Deserialize,
    de::{DeserializeOwned, Error as _},
};

use crate::{KeyValueGrants, WasiGrants};

/// The file of a component was not found.
#[derive(Debug, thiserror::Error)]
pub enum ComponentFileError {
    /// The folder of its `Component.toml` cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest names no file, and its folder does not hold exactly one `.wasm` file.
    #[error("there are {found} `.wasm` files, not one")]
    WhichFile {
        /// The number of `.wasm` files.
        found: usize,
    },
}

/// The file of a component: the one that its `Component.toml` names, or the only `.wasm` file next to that.
///
/// # Errors
///
/// [`ComponentFileError`].
pub fn component_file(manifest: &Path, named: Option<&Path>) -> Result<PathBuf, ComponentFileError> {
    let folder = manifest.parent().unwrap_or(Path::new(""));
    if let Some(named) = named {
        return Ok(folder.join(named));
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let read = |source| ComponentFileError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            found.push(path);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        found => Err(ComponentFileError::WhichFile { found }),
    }
}

/// The `[resources]`, `[wasi]`, `[keyvalue]` and `[config]` tables of a `Component.toml`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SandboxManifest {
    /// What the component may use.
    pub limits: ResourceLimits,
    /// What it is granted.
    pub wasi: WasiGrants,
    /// The buckets it is granted, and its quota.
    pub keyvalue: KeyValueGrants,
    /// Its configuration. Numbers and booleans become text.
    pub config: BTreeMap<String, String>,
}

const TABLES: &[&str] = &["resources", "wasi", "keyvalue", "config"];

impl SandboxManifest {
    /// Reads a whole `Component.toml` that has no tables but these.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], also for an unknown table.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        let mut manifest = text.parse()?;
        let this = Self::take_from(&mut manifest)?;
        match manifest.into_iter().next() {
            None => Ok(this),
            Some((key, _)) => Err(ManifestError::UnknownKey { table: String::new(), key, known: TABLES.to_vec() }),
        }
    }

    /// Takes the tables out of a parsed `Component.toml`. The rest is for the layers above.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn take_from(manifest: &mut toml::Table) -> Result<Self, ManifestError> {
        Ok(Self {
            limits: ResourceLimits::take_from(manifest)?,
            wasi: take(manifest, "wasi", WasiGrants::KEYS)?,
            keyvalue: take(manifest, "keyvalue", KeyValueGrants::KEYS)?,
            config: match manifest.remove("config") {
                None => BTreeMap::new(),
                Some(config) => {
                    let text = |(key, value): (String, _)| text_of(&key, value).map(|text| (key, text));
                    toml::Table::deserialize(config)?.into_iter().map(text).collect::<Result<_, _>>()?
                }
            },
        })
    }
}

fn take<T: DeserializeOwned + Default>(
    manifest: &mut toml::Table,
    name: &str,
    known: &[&'static str],
) -> Result<T, ManifestError> {
    let Some(value) = manifest.remove(name) else { return Ok(T::default()) };
    if let Some(table) = value.as_table() {
        ManifestError::check_keys(name, table, known)?;
    }
    Ok(value.try_into()?)
}

fn text_of(key: &str, value: toml::Value) -> Result<String, ManifestError> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        _ => Err(ManifestError::Toml(toml::de::Error::custom(format_args!(
            "[config] holds text, numbers and booleans, and `{key}` is none of them"
        )))),
    }
}
