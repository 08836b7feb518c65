//! `Component.toml`: the `[http]` table, and components that are loaded by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use airssys_wasm_actor::{ActorManifest, LoadManifestError, RestartPolicy, SpawnError};
use airssys_wasm_engine::{ExportError, LinkError, LoadError, WasmEngine};
use airssys_wasm_isolation::{
    ComponentFileError, KeyValueStore, SandboxManifest, SandboxSpec, add_config, add_keyvalue, add_wasi, component_file,
};
use airssys_wasm_limits::{ManifestError, QuotaError};
use serde::{Deserialize, Serialize, de};

use crate::{
    breaker::default_policy,
    component::{HttpComponent, HttpComponentSpec},
    host::{HttpState, add_http},
    limits::RouteLimits,
    outgoing::{Allow, Outgoing, OutgoingLimits},
    service::Route,
};

/// The `[http]` table of a `Component.toml`.
///
/// ```toml
/// [http]
/// routes = [{ host = "shop.example", path = "/cart" }]
/// allow = [{ host = "api.example.com", methods = ["GET"] }]
///
/// [http.limits]
/// concurrency = 16
/// request_body = "1MiB"
/// reuse = { requests = 1_000, memory = "16MiB", age = "1m" }
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpTable {
    /// Which requests go to it. Default: none.
    pub routes: Vec<Route>,
    /// Whether it is an actor that is asked by HTTP. Default: it is a component that answers HTTP by itself, or an actor that
    /// is not reached by HTTP and may send requests.
    pub ask: bool,
    /// What its requests may take.
    pub limits: RouteLimits,
    /// Outgoing requests that it is granted. Default: none.
    pub allow: Vec<Allow>,
    /// What these may take.
    pub outgoing: OutgoingLimits,
}

const TABLE: &str = "http";
const KEYS: &[&str] = &["routes", "ask", "limits", "allow", "outgoing"];

impl HttpTable {
    /// Takes the table out of a parsed `Component.toml`. The rest is for the layers below.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn take_from(manifest: &mut toml::Table) -> Result<Self, ManifestError> {
        let Some(table) = manifest.remove(TABLE) else { return Ok(Self::default()) };
        if let Some(table) = table.as_table() {
            ManifestError::check_keys(TABLE, table, KEYS)?;
        }
        Ok(table.try_into()?)
    }

    /// Reads the `Component.toml` of an actor that has an `[http]` table besides those of actors.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn with_actor(text: &str) -> Result<(Self, ActorManifest), ManifestError> {
        let mut manifest: toml::Table = text.parse()?;
        let http = Self::take_from(&mut manifest)?;
        Ok((http, ActorManifest::from_toml(&manifest.to_string())?))
    }

    /// What it is granted, to be shared by all its sandboxes.
    pub fn grants(&self) -> Outgoing {
        Outgoing::new(self.allow.clone(), self.outgoing)
    }
}

/// The `Component.toml` of a component that answers HTTP and is no actor: `[component]` with `name` and `wasm`, `[http]`,
/// `[supervision]`, and the tables of sandboxes. One that speaks with actors, or is one, is loaded by [`load`](crate::load()).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpManifest {
    /// Its name in log, events and metrics.
    pub name: String,
    /// Its file, relative to the `Component.toml`. Default: the only `.wasm` file next to it.
    pub wasm: Option<PathBuf>,
    /// `[http]`.
    pub http: HttpTable,
    /// `[supervision]`: when crashes close it. What the table leaves out is as in
    /// [`HttpComponentSpec::with_restart`].
    pub supervision: RestartPolicy,
    /// `[resources]`, `[wasi]`, `[keyvalue]` and `[config]`.
    pub sandbox: SandboxManifest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentTable {
    name: String,
    wasm: Option<PathBuf>,
}

/// A component that answers HTTP could not be loaded from its `Component.toml`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadHttpError {
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
    /// The manifest names no file, and its folder does not hold exactly one `.wasm` file.
    #[error("{} names no file, and there are {found} `.wasm` files next to it; add `wasm = \"…\"` to [component]", path.display())]
    WhichFile {
        /// The manifest.
        path: PathBuf,
        /// The number of `.wasm` files.
        found: usize,
    },
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The component imports what nobody defines.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The limits do not fit the component.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// The component does not answer HTTP.
    #[error(transparent)]
    NoHandler(#[from] ExportError),
    /// The component cannot be loaded for a system of actors.
    #[error(transparent)]
    Actor(#[from] LoadManifestError),
    /// Its actor was not spawned.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl HttpManifest {
    /// Parses a `Component.toml`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], also for an unknown table or key, and for `ask`, which is for actors.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        let mut manifest: toml::Table = text.parse()?;
        let sandbox = SandboxManifest::take_from(&mut manifest)?;
        let http = HttpTable::take_from(&mut manifest)?;
        if http.ask {
            return Err(custom("`ask` is for actors; read their manifest by `HttpTable::with_actor`"));
        }
        let supervision = supervision(&mut manifest)?;
        let component = manifest.remove("component");
        let component = component.ok_or_else(|| custom("there is no [component] table; add one with a `name`"))?;
        let ComponentTable { name, wasm } = component.try_into()?;
        match manifest.into_iter().next() {
            None => Ok(Self { name, wasm, http, supervision, sandbox }),
            Some((key, _)) => Err(ManifestError::UnknownKey {
                table: String::new(),
                key,
                known: vec!["component", "http", "resources", "wasi", "keyvalue", "supervision", "config"],
            }),
        }
    }

    /// Reads a `Component.toml`, and loads and links its component: with WASI, `wasi:http`, `wasi:config`, and
    /// `wasi:keyvalue` if there is a store for it. Its routes are in [`HttpTable::routes`].
    ///
    /// # Errors
    ///
    /// [`LoadHttpError`].
    pub async fn load(
        engine: &WasmEngine,
        path: impl AsRef<Path>,
        store: Option<Arc<dyn KeyValueStore>>,
    ) -> Result<(Self, HttpComponent), LoadHttpError> {
        let path = path.as_ref();
        let read = |path: &Path, source| LoadHttpError::Read { path: path.to_owned(), source };
        let text = fs::read_to_string(path).map_err(|source| read(path, source))?;
        let manifest =
            Self::from_toml(&text).map_err(|source| LoadHttpError::Manifest { path: path.to_owned(), source })?;
        let wasm = file_of(path, manifest.wasm.as_deref())?;
        let bytes = fs::read(&wasm).map_err(|source| read(&wasm, source))?;
        let loaded = engine.load(bytes, manifest.sandbox.limits.profile()).await?;
        let mut linker = loaded.linker::<airssys_wasm_isolation::HostState<HttpState>>();
        let linked = add_wasi(&mut linker).and_then(|()| add_http(&mut linker)).and_then(|()| add_config(&mut linker));
        linked.expect("a new linker has none of them");
        if store.is_some() {
            add_keyvalue(&mut linker).expect("a new linker has none of it");
        }
        let SandboxManifest { limits, wasi, keyvalue, config, .. } = manifest.sandbox.clone();
        let mut sandbox = SandboxSpec::new(loaded.link(&linker)?, limits)?
            .with_wasi(wasi)
            .with_config(config)
            .with_name(&manifest.name);
        if let Some(store) = store {
            sandbox = sandbox.with_keyvalue(store, keyvalue);
        }
        let component = HttpComponentSpec::new(&manifest.name, sandbox)
            .with_limits(manifest.http.limits)
            .with_restart(manifest.supervision.clone())
            .with_outgoing(manifest.http.grants())
            .build()?;
        Ok((manifest, component))
    }
}

/// The `[supervision]` table. What it leaves out is as in [`HttpComponentSpec::with_restart`].
pub(crate) fn supervision(manifest: &mut toml::Table) -> Result<RestartPolicy, ManifestError> {
    let Some(table) = manifest.remove("supervision") else { return Ok(default_policy()) };
    let names = |key: &str| table.as_table().is_some_and(|table| table.contains_key(key));
    let (intensity, backoff) = (names("intensity"), names("backoff"));
    let mut policy: RestartPolicy = table.try_into()?;
    if !intensity {
        policy.intensity = default_policy().intensity;
    }
    if !backoff {
        policy.backoff = default_policy().backoff;
    }
    Ok(policy)
}

pub(crate) fn custom(message: &str) -> ManifestError {
    ManifestError::Toml(de::Error::custom(message))
}

/// The component's file, see [`component_file`].
pub(crate) fn file_of(manifest: &Path, named: Option<&Path>) -> Result<PathBuf, LoadHttpError> {
    component_file(manifest, named).map_err(|error| match error {
        ComponentFileError::WhichFile { found } => LoadHttpError::WhichFile { path: manifest.to_owned(), found },
        ComponentFileError::Read { path, source } => LoadHttpError::Read { path, source },
    })
}
