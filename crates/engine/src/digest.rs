//! Digests that identify components and their code.

use std::hash::{Hash, Hasher};

use wasmtime::Engine;

use crate::config::{DENSE_IMAGE, Profile};

/// A 256-bit BLAKE3 digest.
pub(crate) type Digest = [u8; blake3::OUT_LEN];

/// What native code depends on beside the component and what it needs: wasmtime, the processor, the profile and the
/// settings. The engine is that for components which need nothing.
pub(crate) fn code_digest(engine: &Engine, profile: Profile) -> Digest {
    hashed(|hasher| {
        engine.precompile_compatibility_hash().hash(hasher);
        profile.hash(hasher);
        // The one setting that is compiled into code and not known to wasmtime's hash.
        DENSE_IMAGE.hash(hasher);
    })
}

/// The digest of all that is hashed.
pub(crate) fn hashed(hash: impl FnOnce(&mut Blake)) -> Digest {
    let mut hasher = Blake(blake3::Hasher::new());
    hash(&mut hasher);
    *hasher.0.finalize().as_bytes()
}

pub(crate) struct Blake(blake3::Hasher);

impl Hasher for Blake {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the whole digest is taken")
    }
}
