//! The way to the servers: who may be spoken to, subjects, and the bucket of the lattice's records.

use std::{net::IpAddr, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, ServerAddr, Subject,
    jetstream::{self, kv, stream::LastRawMessageErrorKind},
};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::{
    JoinError,
    config::{Credentials, HostName, LatticeConfig},
    lease::Bucket,
};

/// The oldest server: before it TTLs and some answers of JetStream are others.
const OLDEST: (i64, i64, i64) = (2, 11, 0);
/// How often a silent server is looked at. Twice unanswered, the connection counts as gone.
const PING: Duration = Duration::from_secs(1);

/// The subjects of a host.
#[derive(Debug, Clone)]
pub(crate) struct Subjects {
    lattice: HostName,
    host: HostName,
}

impl Subjects {
    pub(crate) fn new(config: &LatticeConfig) -> Self {
        Self { lattice: config.lattice.clone(), host: config.host.clone() }
    }

    /// For packets to another host. Only this host may publish to it.
    pub(crate) fn packets_to(&self, to: &HostName) -> Subject {
        format!("aw.{}.h.{to}.{}", self.lattice, self.host).into()
    }

    /// For packets to this host, from whom is the last token.
    pub(crate) fn packets(&self) -> String {
        format!("aw.{}.h.{}.*", self.lattice, self.host)
    }

    /// Where the server says that nobody takes packets to a host.
    pub(crate) fn nobody_at(&self, to: &HostName) -> Subject {
        format!("aw.{}.n.{}.{to}", self.lattice, self.host).into()
    }

    /// The same of all hosts, the last token.
    pub(crate) fn nobody(&self) -> String {
        format!("aw.{}.n.{}.*", self.lattice, self.host)
    }

    /// For this host's heartbeats.
    pub(crate) fn heartbeat(&self) -> Subject {
        format!("aw.{}.b.{}", self.lattice, self.host).into()
    }

    /// For those of all hosts, the last token.
    pub(crate) fn heartbeats(&self) -> String {
        format!("aw.{}.b.*", self.lattice)
    }

    /// For what this host publishes to a topic.
    pub(crate) fn publication(&self, topic: &str) -> Subject {
        format!("aw.{}.t.{}.{topic}", self.lattice, self.host).into()
    }

    /// For what all hosts publish to topics of a pattern; whose is the fourth token, and the topic begins at the fifth.
    pub(crate) fn publications(&self, pattern: &str) -> String {
        format!("aw.{}.t.*.{pattern}", self.lattice)
    }

    fn inbox(&self) -> String {
        format!("aw.{}.i.{}", self.lattice, self.host)
    }

    fn bucket(&self) -> String {
        format!("aw_{}", self.lattice)
    }
}

/// A connection, and what is told of it.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// Whether there is a server, as far as the client has told.
    pub(crate) online: watch::Sender<bool>,
    /// Subscriptions of which messages were dropped.
    pub(crate) slow: mpsc::UnboundedReceiver<u64>,
}

pub(crate) async fn connect(config: &LatticeConfig) -> Result<Connection, JoinError> {
    let mut addresses = Vec::new();
    let mut needs_tls = false;
    for server in &config.servers {
        let address: ServerAddr = server.parse().map_err(|_| JoinError::Address { server: server.clone() })?;
        needs_tls |= !is_loopback(&address);
        addresses.push(address);
    }
    let online = watch::Sender::new(true);
    let is_online = online.clone();
    let (slow_is, slow) = mpsc::unbounded_channel();
    let mut options = ConnectOptions::new()
        .name(format!("{} of {}", config.host, config.lattice))
        .custom_inbox_prefix(Subjects::new(config).inbox())
        .ping_interval(PING)
        .subscription_capacity(config.waiting)
        .require_tls(needs_tls)
        .reconnect_delay_callback(|attempt| Duration::from_millis(50 << attempt.min(5)))
        .event_callback(move |event| {
            match event {
                Event::Connected => _ = is_online.send_replace(true),
                Event::Disconnected | Event::Closed => _ = is_online.send_replace(false),
                // Who receives it is gone when the host has left.
                Event::SlowConsumer(subscription) => _ = slow_is.send(subscription),
                Event::ServerError(error) => tracing::warn!(%error, "the server refused something"),
                _ => {}
            }
            std::future::ready(())
        });
    if !needs_tls {
        // A server on loopback may name others that are not.
        options = options.ignore_discovered_servers();
    }
    options = match &config.credentials {
        Credentials::None => options,
        Credentials::NKey(seed) => options.nkey(seed.clone()),
        Credentials::File(file) => {
            options.credentials_file(file).await.map_err(|source| JoinError::Credentials { source })?
        }
    };
    for file in &config.certificates {
        options = options.add_root_certificates(file.clone());
    }
    let client = options.connect(addresses).await.map_err(|source| JoinError::Connect { source })?;
    let (major, minor, patch) = OLDEST;
    if !client.is_server_compatible(major, minor, patch) {
        let found = client.server_info().version;
        return Err(JoinError::TooOld { found, oldest: format!("{major}.{minor}") });
    }
    Ok(Connection { client, online, slow })
}

fn is_loopback(address: &ServerAddr) -> bool {
    let host = address.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The bucket of a lattice's records, made by the first host.
pub(crate) struct Records {
    pub(crate) store: kv::Store,
    jetstream: jetstream::Context,
    config: kv::Config,
}

impl Records {
    pub(crate) async fn open(client: &Client, config: &LatticeConfig) -> Result<Self, JoinError> {
        let jetstream = jetstream::new(client.clone());
        let config = kv::Config {
            bucket: Subjects::new(config).bucket(),
            description: "an AirsSys-WASM lattice".to_owned(),
            history: 1,
            num_replicas: config.replicas,
            ..kv::Config::default()
        };
        let store = open(&jetstream, &config).await.map_err(|source| JoinError::Records { source })?;
        Ok(Self { store, jetstream, config })
    }

    /// Which bucket it is now. It is made if there is none.
    pub(crate) async fn remake(&self) -> Result<Bucket, async_nats::Error> {
        open(&self.jetstream, &self.config).await?;
        self.bucket().await
    }

    /// A record with its revision, also if it is gone, as the leader of the stream has it: where it is decided.
    pub(crate) async fn decided(&self, key: &str) -> Result<Option<(Option<Bytes>, u64)>, async_nats::Error> {
        let found = self.store.stream.get_last_raw_message_by_subject(&format!("$KV.{}.{key}", self.store.name)).await;
        match found {
            Ok(message) => {
                let is_gone = message.headers.get("KV-Operation").is_some();
                Ok(Some(((!is_gone).then_some(message.payload), message.sequence)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Which bucket it is now.
    pub(crate) async fn bucket(&self) -> Result<Bucket, async_nats::Error> {
        Ok(self.look().await?.bucket)
    }

    /// Which bucket it is now, and what is in it.
    pub(crate) async fn look(&self) -> Result<Look, async_nats::Error> {
        let stream = self.jetstream.get_stream(stream(&self.config)).await?;
        let info = stream.cached_info();
        Ok(Look {
            bucket: Bucket(info.created.unix_timestamp_nanos()),
            is_empty: info.state.messages == 0,
            last: info.state.last_sequence,
        })
    }
}

/// A bucket as it was found.
pub(crate) struct Look {
    pub(crate) bucket: Bucket,
    /// Whether nothing was ever written to it.
    pub(crate) is_empty: bool,
    /// The revision of what was written last.
    pub(crate) last: u64,
}

/// Opens a bucket, or makes it. Only a host that makes it needs the permission to.
async fn open(jetstream: &jetstream::Context, config: &kv::Config) -> Result<kv::Store, async_nats::Error> {
    use jetstream::{ErrorCode, context::GetStreamErrorKind};
    match jetstream.get_stream(stream(config)).await {
        Ok(_) => Ok(jetstream.get_key_value(&config.bucket).await?),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                match jetstream.create_key_value(config.clone()).await {
                    Ok(store) => Ok(store),
                    // Another host may have made it meanwhile, with other settings.
                    Err(error) => jetstream.get_key_value(&config.bucket).await.map_err(|_| error.into()),
                }
            }
            _ => Err(error.into()),
        },
    }
}

fn stream(config: &kv::Config) -> String {
    format!("KV_{}", config.bucket)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_loopback_may_be_in_plain_text() {
        for (address, is_loopback) in [
            ("nats://127.0.0.1:4222", true),
            ("nats://127.8.8.8", true),
            ("nats://localhost:4222", true),
            ("nats://[::1]:4222", true),
            ("nats://10.0.0.1:4222", false),
            ("nats://[2001:db8::1]", false),
            ("nats://localhost.example.org", false),
            ("nats://127.0.0.1.example.org", false),
        ] {
            assert_eq!(super::is_loopback(&address.parse().unwrap()), is_loopback, "{address}");
        }
    }
}
