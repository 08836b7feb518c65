//! `Component.toml`: the `[lattice]` table, and components that are loaded by it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use airssys_wasm_actor::{
    ActorRef, ActorSpec, LoadManifestError, SpawnError,
    limits::ManifestError,
    registry::{ComponentId, TopicPattern},
};
use airssys_wasm_keyed::{Keyed, KeyedSpec, KeyedTable};
use serde::{Deserialize, Serialize};

use crate::{
    JetStreamStore, Lattice, OfferError, StandBy,
    error::{ExportError, ExportKindError},
    offer,
};

/// The `[lattice]` table of a `Component.toml`.
///
/// ```toml
/// [lattice]
/// export = "here"             # or "alone": one host at a time, of those that load it
/// calls = ["acme:kv/store@1.0.0"] # what actors of other hosts may call, beside sending messages
/// topics = ["orders.>"]       # what is taken of other hosts' publications
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatticeTable {
    /// Whether, and how, other hosts reach the component. Default: not at all.
    pub export: Export,
    /// Interfaces that actors of other hosts may call: [`Lattice::offer`].
    pub calls: Vec<String>,
    /// Topics whose publications by other hosts are taken: [`Lattice::take_topics`].
    pub topics: Vec<TopicPattern>,
}

/// How other hosts reach a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Export {
    /// Not at all: its name is this host's alone.
    #[default]
    No,
    /// The component lives here, and its name is this host's in the lattice: [`Lattice::export`].
    Here,
    /// The component lives on one host of those that have loaded it: [`Lattice::stand_by`].
    Alone,
}

const TABLE: &str = "lattice";
const KEYS: &[&str] = &["calls", "export", "topics"];

impl LatticeTable {
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
}

/// A component was not loaded into a lattice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadLatticeError {
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadManifestError),
    /// It was not spawned.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It lives, and was not exported.
    #[error("`{name}` lives, and was not exported: {error}")]
    Export {
        /// The component.
        name: ComponentId,
        /// Why.
        error: ExportError,
    },
    /// What actors of other hosts are to call cannot be offered to them.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// The system has ended.
    #[error("the system has ended")]
    Ended,
}

/// A kind was not loaded into a lattice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadKindError {
    /// The manifest has no `[keyed]` table.
    #[error("{} has no [keyed] table; load it as an actor, or add the table", path.display())]
    NotKeyed {
        /// The manifest.
        path: PathBuf,
    },
    /// Its `[lattice]` table says how an actor is exported.
    #[error("{}: a kind is of all hosts that load it; leave `export` out of [lattice]", path.display())]
    Exported {
        /// The manifest.
        path: PathBuf,
    },
    /// The component cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadManifestError),
    /// What actors of other hosts are to call cannot be offered to them.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// Other hosts' publications are not taken.
    #[error(transparent)]
    Topics(#[from] ExportError),
    /// The kind was not installed.
    #[error(transparent)]
    Install(#[from] ExportKindError),
    /// The system has ended.
    #[error("the system has ended")]
    Ended,
}

/// A component that was loaded into a lattice.
#[derive(Debug)]
#[non_exhaustive]
pub enum Loaded {
    /// It lives here.
    Here(ActorRef),
    /// It lives here or on another host that has loaded it.
    Alone(StandBy),
}

impl<U: Send + 'static> Lattice<U> {
    /// Loads the component that a `Component.toml` stands for, spawns it, and exports it as its `[lattice]` table says. Without the table
    /// it is an actor of this host alone.
    ///
    /// # Errors
    ///
    /// [`LoadLatticeError`].
    pub async fn load(&self, manifest: impl AsRef<Path>) -> Result<Loaded, LoadLatticeError> {
        let system = self.system().ok_or(LoadLatticeError::Ended)?;
        let (table, spec) = system.load_with(manifest, LatticeTable::take_from).await?;
        let LatticeTable { export, calls, topics } = table.unwrap_or_default();
        let name = spec.id().clone();
        calls.iter().try_for_each(|interface| offer::check(interface))?;
        let failed = |error| LoadLatticeError::Export { name: name.clone(), error };
        // Before the component lives: it misses nothing of what is published from then on.
        for pattern in &topics {
            self.take_topics(pattern).await.map_err(failed)?;
        }
        if export == Export::Alone {
            self.offer(&name, calls)?;
            return Ok(Loaded::Alone(self.stand_by_for(spec)));
        }
        let actor = system.spawn(spec).await?;
        if export == Export::Here {
            self.offer(&name, calls)?;
            if let Err(error) = self.export(&actor).await {
                self.host().end_offer(&name);
                return Err(failed(error));
            }
        }
        Ok(Loaded::Here(actor))
    }

    /// Loads the component that a `Component.toml` with a `[keyed]` table stands for, as a kind that other hosts have as well:
    /// [`export_kind`](Self::export_kind). Of a `[lattice]` table it takes `calls` and `topics`.
    ///
    /// # Errors
    ///
    /// [`LoadKindError`].
    pub async fn load_kind(
        &self,
        manifest: impl AsRef<Path>,
        store: Arc<JetStreamStore>,
    ) -> Result<Keyed<U>, LoadKindError> {
        let path = manifest.as_ref().to_owned();
        let system = self.system().ok_or(LoadKindError::Ended)?;
        let tables = |manifest: &mut _| Ok((KeyedTable::take_from(manifest)?, LatticeTable::take_from(manifest)?));
        let ((keyed, table), spec) = system.load_with(&path, tables).await?;
        let Some(keyed) = keyed else { return Err(LoadKindError::NotKeyed { path }) };
        let LatticeTable { export, calls, topics } = table.unwrap_or_default();
        if export != Export::No {
            return Err(LoadKindError::Exported { path });
        }
        calls.iter().try_for_each(|interface| offer::check(interface))?;
        for pattern in &topics {
            self.take_topics(pattern).await?;
        }
        let kind = self.export_kind(KeyedSpec::new(spec).with_options(keyed.options()), store).await?;
        self.offer(kind.kind(), calls)?;
        Ok(kind)
    }

    /// [`stand_by`](Self::stand_by) with an actor of this specification.
    pub fn stand_by_for(&self, spec: ActorSpec<U>) -> StandBy {
        let system = self.weak_system();
        self.stand_by(spec.id().clone(), move |_, fence| {
            let (system, spec) = (system.clone(), spec.clone().with_fence(fence));
            async move {
                let system = system.upgrade().ok_or(SpawnError::ShuttingDown)?;
                system.spawn(spec).await
            }
        })
    }
}
