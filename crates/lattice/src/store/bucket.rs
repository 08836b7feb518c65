//! The stream that a bucket is: what is asked of its leader, what the answers mean, and whether it is still the same one.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use airssys_wasm_keyed::StoreError;
use async_nats::{
    Client, HeaderMap, HeaderValue,
    connection::State,
    jetstream::{
        self, Context, ContextBuilder, ErrorCode,
        consumer::{AckPolicy, DeliverPolicy, pull},
        context::{PublishError, PublishErrorKind, RequestError, traits::Publisher},
        message::{PublishMessage, StreamMessage},
        response::Response,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::config::{BucketConfig, BucketError, Storage};

/// Bytes of a message beside its state, at the most: its headers.
const HEADERS: u64 = 256;

/// Bytes that the server has for a message beside its subject, its headers and its state, at the most.
const RECORD: u64 = 64;

/// How long a bucket is taken to be the same one without asking, on a connection.
const SAME: Duration = Duration::from_secs(1);

/// How often, and how long apart, a leader is asked that has less than was acknowledged.
const CATCHES_UP: u32 = 20;
const CATCH_UP: Duration = Duration::from_millis(50);

/// How long the server keeps what it was asked to read names by, if nobody does.
const UNUSED: Duration = Duration::from_secs(30);

/// Names that are read at a time.
const BATCH: usize = 1_000;

/// The header that says what a message of a bucket is, if it is no value.
pub(super) const KV_OPERATION: &str = "KV-Operation";

/// A bucket, as one client sees it.
#[derive(Debug)]
pub(super) struct Bucket {
    client: Client,
    context: Context,
    stream: Stream<()>,
    name: String,
    /// When it was made, as the server writes it: another one has another.
    created: String,
    /// Bytes that a message may have.
    max_message: Option<u64>,
    max_bytes: Option<u64>,
    /// The highest sequence that it is known to have given.
    highest: AtomicU64,
    /// It is not the same any more.
    is_gone: AtomicBool,
    asked: Mutex<Asked>,
}

/// When it was last seen to be the same.
#[derive(Debug)]
struct Asked {
    /// Number of the connection.
    connection: u64,
    at: Instant,
}

/// A message was not stored.
#[derive(Debug)]
pub(super) enum Refused {
    /// The last one of its subject is another than expected, or yet under way.
    Conflict,
    /// Certainly not stored.
    Not(StoreError),
    /// It may have been stored, or may yet be.
    Unknown(StoreError),
}

/// Settings of a stream: those that are needed here, as they are made and read.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    name: String,
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    max_msgs_per_subject: i64,
    #[serde(default)]
    max_msgs: i64,
    #[serde(default)]
    max_bytes: i64,
    #[serde(default)]
    max_msg_size: i64,
    #[serde(default)]
    max_age: u64,
    discard: String,
    retention: String,
    storage: String,
    num_replicas: usize,
    #[serde(default)]
    allow_msg_ttl: bool,
    #[serde(default)]
    sealed: bool,
    #[serde(default)]
    deny_delete: bool,
    #[serde(default)]
    no_ack: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject_delete_marker_ttl: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Info {
    created: String,
    config: Settings,
    state: StreamState,
}

#[derive(Debug, Deserialize)]
struct StreamState {
    bytes: u64,
    last_seq: u64,
}

impl Bucket {
    /// Opens the bucket, and makes it if there is none.
    pub(super) async fn open(client: Client, config: &BucketConfig) -> Result<Self, BucketError> {
        let bucket = &config.bucket;
        if bucket.is_empty() || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(BucketError::Name { bucket: bucket.clone() });
        }
        let server = |error: StoreError| BucketError::Server { source: error.into() };
        let context = ContextBuilder::new().timeout(config.timeout).build(client.clone());
        let name = format!("KV_{bucket}");
        let wanted = Settings::of(&name, config);
        let info = match info(&context, &name).await.map_err(server)? {
            Some(info) => info,
            None => {
                let made = context.request(format!("STREAM.CREATE.{name}"), &wanted).await;
                match made.map_err(|error| server(StoreError::io(error)))? {
                    Response::Ok(info) => info,
                    // Another host makes it at the same time.
                    Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                        info(&context, &name).await.map_err(server)?.ok_or_else(|| server(StoreError::Closed))?
                    }
                    Response::Err { error } => return Err(BucketError::Server { source: error.into() }),
                }
            }
        };
        if let Some(setting) = info.config.unfit(&wanted) {
            return Err(BucketError::Unfit { bucket: bucket.clone(), setting });
        }
        let stream = context.get_stream_no_info(&name).await;
        let stream = stream.map_err(|error| BucketError::Server { source: error.into() })?;
        let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
        let connection = client.statistics().connects.load(Ordering::Relaxed);
        Ok(Self {
            client,
            context,
            stream,
            name,
            created: info.created,
            max_message: positive(info.config.max_msg_size),
            max_bytes: positive(info.config.max_bytes),
            highest: AtomicU64::new(info.state.last_seq),
            is_gone: AtomicBool::new(false),
            asked: Mutex::new(Asked { connection, at: Instant::now() }),
        })
    }

    /// Before an operation: whether there is a connection, and the bucket is known to be the same.
    pub(super) async fn is_there(&self) -> Result<(), StoreError> {
        if self.is_gone.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        // What is sent without a connection waits for one, longer than its sender.
        if self.client.connection_state() != State::Connected {
            return Err(StoreError::io(io::Error::from(io::ErrorKind::NotConnected)));
        }
        let is_due = {
            let asked = self.asked.lock();
            asked.connection != self.connection() || asked.at.elapsed() >= SAME
        };
        if is_due { self.is_the_same().await } else { Ok(()) }
    }

    /// Asks the server, after a change of the connection and now and then.
    async fn is_the_same(&self) -> Result<(), StoreError> {
        let highest = self.highest();
        for _ in 0..CATCHES_UP {
            let (connection, at) = (self.connection(), Instant::now());
            match info(&self.context, &self.name).await? {
                Some(info) if info.created == self.created => {
                    self.saw(info.state.last_seq);
                    if info.state.last_seq >= highest {
                        *self.asked.lock() = Asked { connection, at };
                        return Ok(());
                    }
                }
                _ => break,
            }
            // A leader that has just become one may not have come so far.
            sleep(CATCH_UP).await;
        }
        Err(self.gone())
    }

    /// Number of the connection.
    fn connection(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }

    fn saw(&self, sequence: u64) {
        self.highest.fetch_max(sequence, Ordering::Relaxed);
    }

    fn gone(&self) -> StoreError {
        if !self.is_gone.swap(true, Ordering::Relaxed) {
            tracing::error!(
                stream = self.name,
                "a bucket of states was removed or made anew: it has to be opened again"
            );
        }
        StoreError::Closed
    }

    /// A name that nothing else has.
    pub(super) fn unique(&self) -> String {
        let inbox = self.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// Bytes that a state may have.
    pub(super) fn max_state(&self) -> u64 {
        let allowed = self.client.max_payload() as u64;
        self.max_message.map_or(allowed, |bytes| bytes.min(allowed)).saturating_sub(HEADERS)
    }

    /// The last message of a subject, as the leader of the stream has it.
    pub(super) async fn last(&self, subject: &str) -> Result<Option<StreamMessage>, StoreError> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => {
                self.saw(message.sequence);
                Ok(Some(message))
            }
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error) => Err(self.failed(error)),
                _ => Err(StoreError::io(error)),
            },
        }
    }

    /// Stores a message if the last one of its subject has this sequence, 0 if there is none, and gives its sequence.
    pub(super) async fn publish(
        &self,
        subject: &str,
        follows: u64,
        mut headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, Refused> {
        let (highest, size) = (self.highest(), (payload.len() + subject.len()) as u64 + HEADERS + RECORD);
        headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(follows));
        let message = PublishMessage::build().headers(headers).payload(payload).outbound_message(subject.to_owned());
        let published = async { self.context.publish_message(message).await?.await };
        match published.await {
            Ok(ack) if ack.sequence <= highest => Err(Refused::Not(self.gone())),
            Ok(ack) => {
                self.saw(ack.sequence);
                let connection = self.asked.lock().connection;
                if connection != self.connection() {
                    self.is_the_same().await.map_err(Refused::Unknown)?;
                }
                Ok(ack.sequence)
            }
            Err(error) => Err(self.refused(error, size).await),
        }
    }

    async fn refused(&self, error: PublishError, size: u64) -> Refused {
        let code = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<jetstream::Error>());
        match (error.kind(), code.map(jetstream::Error::error_code)) {
            (PublishErrorKind::WrongLastSequence, _)
            | (
                _,
                Some(
                    ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
                    | ErrorCode::STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_NOT_READY,
                ),
            ) => Refused::Conflict,
            (PublishErrorKind::MaxPayloadExceeded, _) | (_, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM)) => {
                Refused::Not(StoreError::TooLarge { size, allowed: self.max_state() })
            }
            (
                _,
                Some(
                    ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
                    | ErrorCode::INSUFFICIENT_RESOURCES
                    | ErrorCode::MEMORY_RESOURCES_EXCEEDED
                    | ErrorCode::STORAGE_RESOURCES_EXCEEDED,
                ),
            ) => Refused::Not(StoreError::Full),
            // One code for a full stream and a broken disk.
            (_, Some(ErrorCode::STREAM_STORE_FAILED)) => match self.has_room(size).await {
                Ok(false) => Refused::Not(StoreError::Full),
                _ => Refused::Unknown(StoreError::io(error)),
            },
            // Nobody takes messages of the subject: the stream is gone, or has no leader.
            (PublishErrorKind::StreamNotFound, _) => match self.is_the_same().await {
                Err(StoreError::Closed) => Refused::Not(StoreError::Closed),
                _ => Refused::Not(StoreError::io(error)),
            },
            _ => Refused::Unknown(StoreError::io(error)),
        }
    }

    /// Whether so many bytes more are within what the stream may have.
    async fn has_room(&self, size: u64) -> Result<bool, StoreError> {
        let Some(allowed) = self.max_bytes else { return Ok(true) };
        let info = info(&self.context, &self.name).await?.ok_or(StoreError::Closed)?;
        Ok(info.state.bytes + size <= allowed)
    }

    /// The subjects that match and whose last message is no marker.
    pub(super) async fn subjects(&self, matching: String) -> Result<HashSet<String>, StoreError> {
        let config = pull::Config {
            filter_subject: matching,
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            headers_only: true,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: UNUSED,
            ..pull::Config::default()
        };
        let mut consumer = self.stream.create_consumer(config).await.map_err(StoreError::io)?;
        let mut subjects = HashSet::new();
        loop {
            // Without a wait: what comes is what is there, and what has been written meanwhile.
            let mut batch = consumer.fetch().max_messages(BATCH).messages().await.map_err(StoreError::io)?;
            let mut is_empty = true;
            while let Some(message) = batch.next().await {
                let message = message.map_err(StoreError::io)?;
                is_empty = false;
                if is_marker(message.headers.as_ref()) {
                    subjects.remove(message.subject.as_str());
                } else {
                    subjects.insert(message.subject.to_string());
                }
            }
            // A batch may have ended early; whether there is more the server says.
            if is_empty && consumer.info().await.map_err(StoreError::io)?.num_pending == 0 {
                break;
            }
        }
        let name = consumer.cached_info().name.clone();
        // If that fails, the server does it in a time.
        _ = self.stream.delete_consumer(&name).await;
        Ok(subjects)
    }

    fn failed(&self, error: jetstream::Error) -> StoreError {
        match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => self.gone(),
            _ => StoreError::io(error),
        }
    }
}

/// What the leader of a stream says of it; `None` if there is no such stream.
async fn info(context: &Context, name: &str) -> Result<Option<Info>, StoreError> {
    let asked: Result<_, RequestError> = context.request(format!("STREAM.INFO.{name}"), &()).await;
    match asked.map_err(StoreError::io)? {
        Response::Ok(info) => Ok(Some(info)),
        Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Response::Err { error } => Err(StoreError::io(error)),
    }
}

/// Whether a message says that there is no row.
pub(super) fn is_marker(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.get(KV_OPERATION).is_some())
}

impl Settings {
    fn of(name: &str, config: &BucketConfig) -> Self {
        let limit = |bytes: Option<u64>| bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        let largest = config.max_state.map(|size| size.as_u64() + HEADERS);
        Self {
            name: name.to_owned(),
            subjects: vec![format!("$KV.{}.>", config.bucket)],
            max_msgs_per_subject: 1,
            max_msgs: -1,
            max_bytes: limit(config.max_bytes.map(|size| size.as_u64())),
            // The server has it in 32 bits.
            max_msg_size: limit(largest).min(i32::MAX.into()),
            max_age: 0,
            discard: "new".to_owned(),
            retention: "limits".to_owned(),
            storage: match config.storage {
                Storage::File => "file".to_owned(),
                Storage::Memory => "memory".to_owned(),
            },
            num_replicas: config.replicas,
            allow_msg_ttl: true,
            sealed: false,
            deny_delete: false,
            no_ack: false,
            subject_delete_marker_ttl: None,
        }
    }

    /// The first setting by which rows would be lost, or be there that were removed.
    fn unfit(&self, wanted: &Self) -> Option<&'static str> {
        [
            (self.subjects == wanted.subjects, "subjects"),
            (self.max_msgs_per_subject == 1, "max_msgs_per_subject"),
            (self.max_msgs <= 0, "max_msgs"),
            (self.max_age == 0, "max_age"),
            (self.discard == wanted.discard, "discard"),
            (self.retention == wanted.retention, "retention"),
            (self.allow_msg_ttl, "allow_msg_ttl"),
            (!self.sealed, "sealed"),
            (!self.deny_delete, "deny_delete"),
            (!self.no_ack, "no_ack"),
            (self.subject_delete_marker_ttl.is_none_or(|ttl| ttl == 0), "subject_delete_marker_ttl"),
        ]
        .into_iter()
        .find_map(|(is_fit, setting)| (!is_fit).then_some(setting))
    }
}
