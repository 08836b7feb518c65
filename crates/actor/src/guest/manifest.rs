//! `Component.toml`: the tables for actors, besides those for sandboxes.

use std::{
    collections::BTreeMap,
    fs, io, mem,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use airssys_wasm_engine::{LoadError, Profile};
use airssys_wasm_isolation::{ComponentFileError, SandboxManifest, SandboxSpec, component_file};
use airssys_wasm_limits::{ByteSize, ManifestError, QuotaError};
use airssys_wasm_registry::{ComponentId, TopicPattern};
use serde::{Deserialize, de};

use crate::{
    ActorSpec, ActorState, Capabilities, ContractKind, Links, LinksError, Recycle, RestartPolicy,
    runtime::options::{DEFAULT_MAILBOX, DEFAULT_MAILBOX_BYTES, DEFAULT_MAILBOX_SHARES},
};

/// A parsed `Component.toml`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorManifest {
    /// `[component]`: its name, file and mailbox.
    pub component: ComponentTable,
    /// `[resources]`, `[wasi]` and `[keyvalue]`. Its `config` is empty: it is the actor's, below.
    pub sandbox: SandboxManifest,
    /// `[messaging]`: grants for messages.
    pub messaging: Capabilities,
    /// `[link]`: imports that lead to actors.
    pub links: Links,
    /// `[supervision]`: its restarts.
    pub supervision: RestartPolicy,
    /// `[config]`: what its `init` and `wasi:config` receive. Numbers and booleans become text.
    pub config: BTreeMap<String, String>,
}

/// The `[component]` table of a `Component.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ComponentTable {
    /// The actor's name.
    pub name: ComponentId,
    /// The component's file, relative to the `Component.toml`. Default: the only `.wasm` file next to it.
    #[serde(default)]
    pub wasm: Option<PathBuf>,
    /// Messages the mailbox holds. Default: 1,024.
    #[serde(default = "mailbox")]
    pub mailbox: u32,
    /// Bytes in the mailbox for messages of more than 4 KiB. Default: 16 MiB.
    #[serde(default = "mailbox_bytes")]
    pub mailbox_bytes: ByteSize,
    /// Shares of the mailbox, of which a sender may hold one. Default: 2.
    #[serde(default = "mailbox_shares")]
    pub mailbox_shares: NonZeroU32,
    /// Attempts per message: crashes before it goes to the dead letters. Default: 1.
    #[serde(default)]
    pub redelivery: Option<u32>,
    /// When the instance is replaced by a fresh one. Default: never.
    #[serde(default)]
    pub recycle: Recycle,
    /// By what it is reached, where it is not to be found out: with `exports` it needs no handler, takes no messages, and
    /// is called by its exports.
    #[serde(default)]
    pub contract: Option<ContractKind>,
    /// Messages in flight at the same time, see [`ActorSpec::with_concurrency`]. Default: 1.
    #[serde(default = "one")]
    pub concurrency: NonZeroU32,
    /// Subscriptions from the start.
    #[serde(default)]
    pub subscriptions: Vec<TopicPattern>,
    /// Actors that must exist before it, and are stopped after it.
    #[serde(default)]
    pub depends_on: Vec<ComponentId>,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
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

/// A component could not be loaded from its `Component.toml`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadManifestError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest is invalid.
    #[error("{} cannot be used", path.display())]
    Manifest {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// The manifest names no component file, and its folder does not hold exactly one `.wasm` file.
    #[error(
        "{} names no file, and there are {found} `.wasm` files next to it; add `wasm = \"…\"` to [component]",
        path.display()
    )]
    WhichFile {
        /// The manifest.
        path: PathBuf,
        /// The number of `.wasm` files.
        found: usize,
    },
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The component cannot be linked.
    #[error(transparent)]
    Link(#[from] LinksError),
    /// The limits do not fit the component.
    #[error(transparent)]
    Quota(#[from] QuotaError),
}

const TABLES: &[&str] = &["component", "resources", "wasi", "keyvalue", "messaging", "link", "supervision", "config"];

/// A table of the layer above, and who reads it with the rest.
const HTTP: (&str, &str) = ("http", "airssys_wasm_http::load");

impl ActorManifest {
    /// The actor's specification, with a sandbox made from the manifest's limits and grants.
    pub fn spec<U: Send + 'static>(self, sandbox: SandboxSpec<ActorState<U>>) -> ActorSpec<U> {
        let table = self.component;
        let mut spec = ActorSpec::new(table.name, sandbox);
        spec.contract = table.contract;
        spec.concurrency = table.concurrency;
        spec.with_capabilities(self.messaging)
            .with_links(self.links)
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

    /// Parses a `Component.toml`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], also for an unknown table or key, and for `[http]`, which `airssys_wasm_http::load` reads.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        Self::from_table(text.parse()?)
    }

    fn from_table(mut manifest: toml::Table) -> Result<Self, ManifestError> {
        let mut sandbox = SandboxManifest::take_from(&mut manifest)?;
        let config = mem::take(&mut sandbox.config);
        let messaging = take(&mut manifest, "messaging")?.unwrap_or_default();
        let links = take(&mut manifest, "link")?.unwrap_or_default();
        let supervision = take(&mut manifest, "supervision")?.unwrap_or_default();
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
            None => Ok(Self { component, sandbox, messaging, links, supervision, config }),
            Some((key, _)) if key == HTTP.0 => Err(ManifestError::ReadElsewhere { table: HTTP.0, by: HTTP.1 }),
            Some((key, _)) => Err(ManifestError::UnknownKey { table: String::new(), key, known: TABLES.to_vec() }),
        }
    }

    /// The profile of code that the limits need.
    pub fn profile(&self) -> Profile {
        self.sandbox.limits.profile()
    }

    /// Reads a `Component.toml`, of which a layer above takes its tables, and finds the component's file.
    ///
    /// # Errors
    ///
    /// [`LoadManifestError`].
    pub(crate) fn read<T>(
        path: &Path,
        take: impl FnOnce(&mut toml::Table) -> Result<T, ManifestError>,
    ) -> Result<(T, Self, PathBuf), LoadManifestError> {
        let text =
            fs::read_to_string(path).map_err(|source| LoadManifestError::Read { path: path.to_owned(), source })?;
        let parsed = text.parse().map_err(ManifestError::from).and_then(|mut table: toml::Table| {
            let taken = take(&mut table)?;
            Ok((taken, Self::from_table(table)?))
        });
        let (taken, manifest) =
            parsed.map_err(|source| LoadManifestError::Manifest { path: path.to_owned(), source })?;
        let wasm = component_file(path, manifest.component.wasm.as_deref()).map_err(|error| match error {
            ComponentFileError::WhichFile { found } => LoadManifestError::WhichFile { path: path.to_owned(), found },
            ComponentFileError::Read { path, source } => LoadManifestError::Read { path, source },
        })?;
        Ok((taken, manifest, wasm))
    }
}

fn take<T: de::DeserializeOwned>(manifest: &mut toml::Table, table: &str) -> Result<Option<T>, ManifestError> {
    Ok(manifest.remove(table).map(toml::Value::try_into).transpose()?)
}
