//! The bytes of components, in an object store of the lattice. Each is named by its digest, which is checked by who gets it.
//!
//! They are read through the leader of the store's stream, which has all that was put. What the client does for an object may be
//! answered by another replica, which may not have it yet: it gets the object directly, and its consumer is where the servers place it.

use std::time::Duration;

use airssys_wasm_actor::Bytes;
use async_nats::jetstream::{
    self, ErrorCode,
    context::GetStreamErrorKind,
    message::StreamMessage,
    object_store::{ObjectInfo, ObjectMetadata},
    stream::{self, DiscardPolicy, LastRawMessageErrorKind, RawMessageError, Stream},
};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use tokio::time::timeout;

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
    bucket: String,
    replicas: usize,
    chunk: usize,
}

impl Components {
    pub(super) fn new(host: &Host) -> Self {
        let (client, config) = (host.client(), &host.config);
        Self {
            jetstream: jetstream::new(client.clone()),
            bucket: format!("aw_{}_components", config.lattice),
            replicas: config.replicas,
            chunk: CHUNK.min(client.max_payload().saturating_sub(BESIDE)).max(1),
        }
    }

    /// The store's stream, if it was ever made.
    async fn stream(&self) -> Result<Option<Stream>, async_nats::Error> {
        match self.jetstream.get_stream(format!("OBJ_{}", self.bucket)).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(error.into()),
            },
        }
    }

    async fn make(&self) -> Result<(), async_nats::Error> {
        if self.stream().await?.is_some() {
            return Ok(());
        }
        let bucket = &self.bucket;
        let made = self.jetstream.create_stream(stream::Config {
            name: format!("OBJ_{bucket}"),
            description: Some("components of an AirsSys-WASM lattice".to_owned()),
            subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
            num_replicas: self.replicas,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            // So that the client asks the leader as well, when it puts an object.
            allow_direct: false,
            ..stream::Config::default()
        });
        match made.await {
            Ok(_) => Ok(()),
            // Another host may have made it meanwhile, with other settings.
            Err(error) => self.stream().await?.map(drop).ok_or_else(|| error.into()),
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
            self.make().await?;
            self.jetstream.get_object_store(&self.bucket).await?.put(meta, &mut &*bytes).await?;
            Ok::<_, async_nats::Error>(())
        };
        in_time(putting).await.map_err(store)?;
        Ok(digest)
    }

    /// Whether something is stored under a digest.
    pub(super) async fn has(&self, digest: Digest) -> Result<bool, ComponentError> {
        let looking = async {
            match self.stream().await? {
                Some(stream) => Ok(self.info(&stream, digest).await?.is_some()),
                None => Ok(false),
            }
        };
        in_time(looking).await.map_err(store)
    }

    /// What is said of an object, unless it is deleted.
    async fn info(&self, stream: &Stream, digest: Digest) -> Result<Option<ObjectInfo>, async_nats::Error> {
        let subject = format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(digest.to_string()));
        let Some(message) = found(stream.get_last_raw_message_by_subject(&subject).await)? else { return Ok(None) };
        let info: ObjectInfo = serde_json::from_slice(&message.payload)?;
        Ok((!info.deleted).then_some(info))
    }

    /// The bytes of an object, whatever is said of them; one more than a component may have at the most.
    async fn bytes(
        &self,
        stream: &Stream,
        ObjectInfo { nuid, chunks, .. }: &ObjectInfo,
    ) -> Result<Vec<u8>, async_nats::Error> {
        let subject = format!("$O.{}.C.{nuid}", self.bucket);
        let (mut bytes, mut next) = (Vec::new(), 1);
        for _ in 0..*chunks {
            let Some(message) = found(stream.get_first_raw_message_by_subject(&subject, next).await)? else { break };
            next = message.sequence + 1;
            bytes.extend_from_slice(&message.payload);
            if bytes.len() as u64 > LARGEST {
                bytes.truncate(LARGEST as usize + 1);
                break;
            }
        }
        Ok(bytes)
    }

    /// The component of a digest.
    pub(super) async fn get(&self, digest: Digest) -> Result<Bytes, ComponentError> {
        let getting = async {
            let Some(stream) = self.stream().await? else { return Ok(None) };
            let mut info = self.info(&stream, digest).await?;
            while let Some(object) = info {
                let bytes = self.bytes(&stream, &object).await?;
                if Digest::of(&bytes) == digest {
                    return Ok(Some(bytes));
                }
                // Somebody may have replaced it meanwhile.
                info = self.info(&stream, digest).await?;
                if info.as_ref().is_some_and(|now| now.nuid == object.nuid) {
                    return Ok(Some(bytes));
                }
            }
            Ok(None)
        };
        match in_time(getting).await.map_err(store)? {
            None => Err(ComponentError::NotFound { digest }),
            Some(bytes) if bytes.len() as u64 > LARGEST => {
                Err(ComponentError::TooLarge { size: bytes.len() as u64, allowed: LARGEST })
            }
            Some(bytes) if Digest::of(&bytes) == digest => Ok(bytes.into()),
            Some(_) => Err(ComponentError::Altered { digest }),
        }
    }
}

/// A message, if there is one.
fn found(got: Result<StreamMessage, RawMessageError>) -> Result<Option<StreamMessage>, async_nats::Error> {
    match got {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn store(source: async_nats::Error) -> ComponentError {
    ComponentError::Store { source }
}

async fn in_time<T>(doing: impl Future<Output = Result<T, async_nats::Error>>) -> Result<T, async_nats::Error> {
    timeout(LONGEST, doing).await.unwrap_or_else(|late| Err(late.into()))
}
