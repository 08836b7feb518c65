//! The tables of a `Component.toml` that this layer and those below read.

use airssys_wasm_limits::{ManifestError, ResourceLimits};

use crate::WasiGrants;

/// The `[resources]` and `[wasi]` tables of a `Component.toml`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SandboxManifest {
    /// What the component may use.
    pub limits: ResourceLimits,
    /// What it is granted.
    pub wasi: WasiGrants,
}

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
            Some((key, _)) => {
                Err(ManifestError::UnknownKey { table: String::new(), key, known: vec!["resources", "wasi"] })
            }
        }
    }

    /// Takes the tables out of a parsed `Component.toml`. The rest is for the layers above.
    ///
    /// # Errors
    ///
    /// [`ManifestError`].
    pub fn take_from(manifest: &mut toml::Table) -> Result<Self, ManifestError> {
        let limits = ResourceLimits::take_from(manifest)?;
        let wasi = match manifest.remove("wasi") {
            None => WasiGrants::default(),
            Some(wasi) => {
                if let Some(table) = wasi.as_table() {
                    ManifestError::check_keys("wasi", table, WasiGrants::KEYS)?;
                }
                wasi.try_into()?
            }
        };
        Ok(Self { limits, wasi })
    }
}
