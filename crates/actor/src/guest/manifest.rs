//! The tables of a `Component.toml` that make a component an actor.

use std::{
    collections::BTreeMap,
    fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use airssys_wasm_engine::{LinkError, LoadError, Profile};
use airssys_wasm_isolation::{SandboxManifest, SandboxSpec};
use airssys_wasm_limits::{ByteSize, ManifestError, QuotaError};
use airssys_wasm_registry::{ComponentId, TopicPattern};
use serde::{Deserialize, Deserializer, de};

use crate::{
    ActorSpec, ActorState, Capabilities, Recycle, RestartPolicy,
    guest::capabilities::{parsed, patterns},
    runtime::options::{DEFAULT_MAILBOX, DEFAULT_MAILBOX_BYTES, DEFAULT_MAILBOX_SHARES},
};

/// A whole `Component.toml`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorManifest {
    /// `[component]`: who it is.
    pub component: ComponentTable,
    /// `[resources]` and `[wasi]`.
    pub sandbox: SandboxManifest,
    /// `[messaging]`: what it may do with messages.
    pub messaging: Capabilities,
    /// `[supervision]`: how its failures are answered.
    pub supervision: RestartPolicy,
    /// `[config]`: what its `init` is given. Numbers and booleans become text.
    pub config: BTreeMap<String, String>,
}

/// The `[component]` table of a `Component.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ComponentTable {
    /// Its name.
    #[serde(deserialize_with = "id")]
    pub name: ComponentId,
    /// Its file, seen from the `Component.toml`. Default: the one `.wasm` that lies next to it.
    #[serde(default)]
    pub wasm: Option<PathBuf>,
    /// Messages that its mailbox holds. Default: 1,024.
    #[serde(default = "mailbox")]
    pub mailbox: u32,
    /// Bytes that messages of more than 4 KiB may take up in its mailbox. Default: 16 MiB.
    #[serde(default = "mailbox_bytes")]
    pub mailbox_bytes: ByteSize,
    /// In how many shares its mailbox is divided, of which a sender may have one. Default: 2.
    #[serde(default = "mailbox_shares")]
    pub mailbox_shares: NonZeroU32,
    /// How many times a message may crash it before it goes to the dead letters. Default: once.
    #[serde(default)]
    pub redelivery: Option<u32>,
    /// When it goes over to a fresh instance. Default: never.
    #[serde(default)]
    pub recycle: Recycle,
    /// Topics that it is subscribed to from the start.
    #[serde(default, deserialize_with = "patterns")]
    pub subscriptions: Vec<TopicPattern>,
    /// Actors that must be there before it, and are stopped after it.
    #[serde(default, deserialize_with = "ids")]
    pub depends_on: Vec<ComponentId>,
}

fn mailbox() -> u32 {
    DEFAULT_MAILBOX
}

fn mailbox_bytes() -> ByteSize {
    DEFAULT_MAILBOX_BYTES
}

fn mailbox_shares() -> NonZeroU32 {
    DEFAULT_MAILBOX_SHARES
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ComponentId, D::Error> {
    parsed(&String::deserialize(deserializer)?)
}

fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ComponentId>, D::Error> {
    Vec::<String>::deserialize(deserializer)?.iter().map(|text| parsed(text)).collect()
}

/// A component could not be loaded by its `Component.toml`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadManifestError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest cannot be used.
    #[error("{} cannot be used", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// It does not say which file the component is, and that is not plain to see.
    #[error(
        "{} names no file, and there are {found} `.wasm` files next to it; add `wasm = \"…\"` to [component]",
        path.display()
    )]
    WhichFile {
        /// The manifest.
        path: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The component imports what is not there.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The limits do not go with the component.
    #[error(transparent)]
    Quota(#[from] QuotaError),
}

const TABLES: &[&str] = &["component", "resources", "wasi", "messaging", "supervision", "config"];

impl ActorManifest {
    /// What an actor with this manifest is spawned from, in a sandbox that was made with its limits and grants.
    pub fn spec<U: Send + 'static>(self, sandbox: SandboxSpec<ActorState<U>>) -> ActorSpec<U> {
        let table = self.component;
        ActorSpec::new(table.name, sandbox)
            .with_capabilities(self.messaging)
            .with_config(self.config)
            .with_subscriptions(table.subscriptions)
            .with_mailbox(table.mailbox as usize)
            .with_mailbox_bytes(table.mailbox_bytes)
            .with_mailbox_shares(table.mailbox_shares)
            .with_recycle(table.recycle)
            .with_restart(self.supervision)
            .with_redelivery(table.redelivery)
            .with_dependencies(table.depends_on)
    }

    /// Reads a `Component.toml`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], also for an unknown table or key.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        let mut manifest: toml::Table = text.parse()?;
        let sandbox = SandboxManifest::take_from(&mut manifest)?;
        let messaging = take(&mut manifest, "messaging")?.unwrap_or_default();
        let supervision = take(&mut manifest, "supervision")?.unwrap_or_default();
        let config = match manifest.remove("config") {
            None => BTreeMap::new(),
            Some(config) => {
                let table: toml::Table = config.try_into()?;
                let text = |(key, value): (String, _)| text_of(&key, value).map(|text| (key, text));
                table.into_iter().map(text).collect::<Result<_, _>>()?
            }
        };
        let component: toml::Value = manifest
            .remove("component")
            .ok_or_else(|| de::Error::custom("there is no [component] table; add one with a `name`"))
            .map_err(ManifestError::Toml)?;
        let component: ComponentTable = component.try_into()?;
        if component.mailbox == 0 {
            return Err(ManifestError::Toml(de::Error::custom("a mailbox of 0 messages takes none")));
        }
        let Recycle { memory, age, .. } = component.recycle;
        if memory.is_some_and(|memory| memory.as_u64() == 0) || age.is_some_and(|age| age.is_zero()) {
            let error = "`recycle` by no memory or no age would be at each message; leave it out, or raise it";
            return Err(ManifestError::Toml(de::Error::custom(error)));
        }
        match manifest.into_iter().next() {
            None => Ok(Self { component, sandbox, messaging, supervision, config }),
            Some((key, _)) => Err(ManifestError::UnknownKey { table: String::new(), key, known: TABLES.to_vec() }),
        }
    }

    /// The code that its limits ask for.
    pub fn profile(&self) -> Profile {
        self.sandbox.limits.profile()
    }

    /// Reads a `Component.toml` and finds the component's file.
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`].
    pub(crate) fn read(path: &Path) -> Result<(Self, PathBuf), LoadManifestError> {
        let text =
            fs::read_to_string(path).map_err(|source| LoadManifestError::Read { path: path.to_owned(), source })?;
        let manifest =
            Self::from_toml(&text).map_err(|source| LoadManifestError::Manifest { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let wasm = match &manifest.component.wasm {
            Some(wasm) => folder.join(wasm),
            None => only_wasm(folder, path)?,
        };
        Ok((manifest, wasm))
    }
}

fn only_wasm(folder: &Path, manifest: &Path) -> Result<PathBuf, LoadManifestError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let read = |source| LoadManifestError::Read { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            found.push(path);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        found => Err(LoadManifestError::WhichFile { path: manifest.to_owned(), found }),
    }
}

fn take<T: de::DeserializeOwned>(manifest: &mut toml::Table, table: &str) -> Result<Option<T>, ManifestError> {
    Ok(manifest.remove(table).map(toml::Value::try_into).transpose()?)
}

fn text_of(key: &str, value: toml::Value) -> Result<String, ManifestError> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        _ => Err(ManifestError::Toml(de::Error::custom(format_args!(
            "[config] holds text, numbers and booleans, and `{key}` is none of them"
        )))),
    }
}
