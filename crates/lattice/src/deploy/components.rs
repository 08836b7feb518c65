//! The bytes of components, in an object store of the lattice. Each is named by its digest, which is checked by who gets it.

use std::time::Duration;

use airssys_wasm_actor::Bytes;
use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    object_store::{Config, GetErrorKind, InfoErrorKind, ObjectMetadata, ObjectStore},
};
use tokio::{io::AsyncReadExt, time::timeout};

use super::error::ComponentError;
use crate::{digest::Digest, host::Host};

/// Bytes that a component may have.
pub(super) const LARGEST: u64 = 64 << 20;
/// How long all of a component's bytes may be on their way.
const LONGEST: Duration = Duration::from_secs(120);
/// Bytes of a component in one message, if the server takes as many.
const CHUNK: usize = 128 << 10;
/// Bytes that a message of the server's has beside them, at the most.
const BESIDE: usize = 1 << 10;

pub(super) struct Components {
    jetstream: jetstream::Context,
    config: Config,
    chunk: usize,
}

impl Components {
    pub(super) fn new(host: &Host) -> Self {
        let (client, config) = (host.client(), &host.config);
        Self {
            jetstream: jetstream::new(client.clone()),
            config: Config {
                bucket: format!("aw_{}_components", config.lattice),
                description: Some("components of an AirsSys-WASM lattice".to_owned()),
                num_replicas: config.replicas,
                ..Config::default()
            },
            chunk: CHUNK.min(client.max_payload().saturating_sub(BESIDE)).max(1),
        }
    }

    /// The store, if it was ever made.
    async fn store(&self) -> Result<Option<ObjectStore>, async_nats::Error> {
        match self.jetstream.get_stream(format!("OBJ_{}", self.config.bucket)).await {
            Ok(_) => Ok(Some(self.jetstream.get_object_store(&self.config.bucket).await?)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(error.into()),
            },
        }
    }

    async fn made(&self) -> Result<ObjectStore, async_nats::Error> {
        if let Some(store) = self.store().await? {
            return Ok(store);
        }
        match self.jetstream.create_object_store(self.config.clone()).await {
            Ok(store) => Ok(store),
            // Another host may have made it meanwhile, with other settings.
            Err(error) => self.jetstream.get_object_store(&self.config.bucket).await.map_err(|_| error.into()),
        }
    }

    /// Stores a component, unless it is there.
    pub(super) async fn put(&self, bytes: &[u8]) -> Result<Digest, ComponentError> {
        let size = bytes.len() as u64;
        if size > LARGEST {
            return Err(ComponentError::TooLarge { size, allowed: LARGEST });
        }
        let digest = Digest::of(bytes);
        if self.get(digest).await.is_ok() {
            return Ok(digest);
        }
        let putting = async {
            let meta =
                ObjectMetadata { name: digest.to_string(), chunk_size: Some(self.chunk), ..ObjectMetadata::default() };
            self.made().await?.put(meta, &mut &*bytes).await?;
            Ok::<_, async_nats::Error>(())
        };
        in_time(putting).await.map_err(store)?;
        Ok(digest)
    }

    /// Whether something is stored under a digest.
    pub(super) async fn has(&self, digest: Digest) -> Result<bool, ComponentError> {
        let looking = async {
            let Some(store) = self.store().await? else { return Ok(false) };
            match store.info(digest.to_string()).await {
                Ok(info) => Ok(!info.deleted),
                Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(false),
                Err(error) => Err(error.into()),
            }
        };
        in_time(looking).await.map_err(store)
    }

    /// The component of a digest.
    pub(super) async fn get(&self, digest: Digest) -> Result<Bytes, ComponentError> {
        let getting = async {
            let Some(store) = self.store().await? else { return Ok(None) };
            let object = match store.get(digest.to_string()).await {
                Ok(object) => object,
                Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let mut bytes = Vec::new();
            // Whatever is said of its size.
            match object.take(LARGEST + 1).read_to_end(&mut bytes).await {
                Ok(_) => Ok(Some(Some(bytes))),
                // Other bytes than whoever has put it says.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(Some(None)),
                Err(error) => Err(error.into()),
            }
        };
        match in_time(getting).await.map_err(store)? {
            None => Err(ComponentError::NotFound { digest }),
            Some(Some(bytes)) if bytes.len() as u64 > LARGEST => {
                Err(ComponentError::TooLarge { size: bytes.len() as u64, allowed: LARGEST })
            }
            Some(Some(bytes)) if Digest::of(&bytes) == digest => Ok(bytes.into()),
            Some(_) => Err(ComponentError::Altered { digest }),
        }
    }
}

fn store(source: async_nats::Error) -> ComponentError {
    ComponentError::Store { source }
}

async fn in_time<T>(doing: impl Future<Output = Result<T, async_nats::Error>>) -> Result<T, async_nats::Error> {
    timeout(LONGEST, doing).await.unwrap_or_else(|late| Err(late.into()))
}
