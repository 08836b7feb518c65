//! `Component.toml`: the `[keyed]` table, and kinds that are loaded by it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use airssys_wasm_actor::{ActorManifest, ActorSystem, LoadManifestError};
use airssys_wasm_limits::{ByteSize, ManifestError};
use serde::{Deserialize, Serialize};

use crate::{Admission, Durability, InstallError, Keyed, KeyedOptions, KeyedSpec, Keys, SaveWhen, StateStore};

/// The `[keyed]` table of a `Component.toml`: the component is a kind, with the name of the component. What it leaves out is
/// as in [`KeyedOptions`].
///
/// ```toml
/// [keyed]
/// save = { within = "5s" }    # or "on-idle", "each-message"
/// durability = "power"        # or "process"
/// idle = "30s"
/// residency = "1s"
/// live = 8_000
/// keys = ["eu", "us"]         # any, where it is left out
/// most_keys = 1_000_000
/// state = "64KiB"
///
/// [keyed.admission]
/// kind = { per_second = 20_000, burst = 20_000 }
/// caller = { per_second = 1_000, burst = 2_000 }
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyedTable {
    /// [`KeyedOptions::save`].
    pub save: Option<SaveWhen>,
    /// [`KeyedOptions::durability`].
    pub durability: Option<Durability>,
    /// [`KeyedOptions::idle`].
    #[serde(with = "humantime_serde")]
    pub idle: Option<Duration>,
    /// [`KeyedOptions::residency`].
    #[serde(with = "humantime_serde")]
    pub residency: Option<Duration>,
    /// [`KeyedOptions::live`].
    pub live: Option<usize>,
    /// [`KeyedOptions::keys`], one by one.
    pub keys: Option<HashSet<String>>,
    /// [`KeyedOptions::most_keys`].
    pub most_keys: Option<u64>,
    /// [`KeyedOptions::state`].
    pub state: Option<ByteSize>,
    /// [`KeyedOptions::admission`].
    pub admission: Option<Admission>,
}

const TABLE: &str = "keyed";
const KEYS: &[&str] = &["save", "durability", "idle", "residency", "live", "keys", "most_keys", "state", "admission"];

impl KeyedTable {
    /// Takes the table out of a parsed `Component.toml`, if there is one. The rest is for the layers below.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn take_from(manifest: &mut toml::Table) -> Result<Option<Self>, ManifestError> {
        let Some(table) = manifest.remove(TABLE) else { return Ok(None) };
        if let Some(table) = table.as_table() {
            ManifestError::check_keys(TABLE, table, KEYS)?;
        }
        Ok(Some(table.try_into()?))
    }

    /// Reads the `Component.toml` of an actor that may have a `[keyed]` table besides those of actors.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn with_actor(text: &str) -> Result<(Option<Self>, ActorManifest), ManifestError> {
        let mut manifest: toml::Table = text.parse()?;
        let keyed = Self::take_from(&mut manifest)?;
        Ok((keyed, ActorManifest::from_toml(&manifest.to_string())?))
    }

    /// The options.
    pub fn options(self) -> KeyedOptions {
        let Self { save, durability, idle, residency, live, keys, most_keys, state, admission } = self;
        let default = KeyedOptions::default();
        KeyedOptions {
            save: save.unwrap_or(default.save),
            durability: durability.unwrap_or(default.durability),
            idle: idle.unwrap_or(default.idle),
            residency: residency.unwrap_or(default.residency),
            live: live.unwrap_or(default.live),
            memory: None,
            keys: keys.map_or(Keys::Any, |keys| Keys::Known(Arc::new(move |key| keys.contains(key)))),
            most_keys: most_keys.unwrap_or(default.most_keys),
            state: state.unwrap_or(default.state),
            admission: admission.unwrap_or(default.admission),
        }
    }
}

/// A kind could not be loaded from its `Component.toml`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadKeyedError {
    /// The manifest has no `[keyed]` table.
    #[error("{} has no [keyed] table; spawn it as an actor, or add the table", path.display())]
    NotKeyed {
        /// The manifest.
        path: PathBuf,
    },
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadManifestError),
    /// The kind was not installed.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// Loads the component that a `Component.toml` with a `[keyed]` table stands for, and installs it as a kind.
///
/// # Errors
///
/// [`LoadKeyedError`].
///
/// # Panics
///
/// Outside a tokio runtime with timers.
pub async fn load<U: Send + 'static>(
    system: &ActorSystem<U>,
    manifest: impl AsRef<Path>,
    store: Arc<dyn StateStore>,
) -> Result<Keyed<U>, LoadKeyedError> {
    let path = manifest.as_ref().to_owned();
    let (table, spec) = system.load_with(&path, KeyedTable::take_from).await?;
    let Some(table) = table else { return Err(LoadKeyedError::NotKeyed { path }) };
    Ok(Keyed::install(system, KeyedSpec::new(spec).with_options(table.options()), store).await?)
}
